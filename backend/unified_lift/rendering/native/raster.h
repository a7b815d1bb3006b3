// SPDX-License-Identifier: GPL-3.0-or-later
// Blending of the splats of each tile, front to back, and the per-pixel weights of that.
//
// A pixel's weight for its i-th splat is w_i = alpha_i T_i with T_i = prod_{j < i} (1 - alpha_j).
// A tile of 16 x 16 pixels is made of 32 blocks of 4 x 2 pixels, one vector each: small enough that
// most lanes of a block that an ellipse touches lie inside it.
#pragma once
#include "tiles.h"

namespace ul {

constexpr int BLOCK_WIDTH = 4, BLOCK_HEIGHT = 2;
constexpr int BLOCKS_Y = TILE / BLOCK_HEIGHT;
constexpr int NUM_BLOCKS = TILE * TILE / LANES;
static_assert(NUM_BLOCKS == 32, "a mask of blocks is a uint32");
constexpr int CHUNK = 32;  // entries between two looks at which pixels are finished
constexpr int PREFETCH = 8;  // entries ahead
constexpr int RGB = 3;       // the number of channels that has a path of its own

INLINE int block_of(int x, int y) { return x / BLOCK_WIDTH * BLOCKS_Y + y / BLOCK_HEIGHT; }
INLINE int lane_of(int x, int y) { return x % BLOCK_WIDTH + BLOCK_WIDTH * (y % BLOCK_HEIGHT); }
INLINE int x_of(int block, int lane) {
  return block / BLOCKS_Y * BLOCK_WIDTH + lane % BLOCK_WIDTH;
}
INLINE int y_of(int block, int lane) {
  return block % BLOCKS_Y * BLOCK_HEIGHT + lane / BLOCK_WIDTH;
}

// Pixel centres of the blocks, from the tile's corner.
struct Grid {
  Float8 x[NUM_BLOCKS], y[NUM_BLOCKS];

  Grid() {
    for (int block = 0; block < NUM_BLOCKS; block++) {
      for (int lane = 0; lane < LANES; lane++) {
        x[block][lane] = (float)x_of(block, lane) + 0.5f;
        y[block][lane] = (float)y_of(block, lane) + 0.5f;
      }
    }
  }
};

// A view with its splats; what forward leaves here, backward needs.
struct Frame {
  Constants constants;
  Camera camera;
  int num_gaussians, num_threads;
  Array<Splat> splats;
  TileLists lists;
  Array<uint32_t> masks;        // of each entry: the blocks it touches; unset behind the last one
  Array<float> transmittances;  // of each pixel, at the end
  Array<int32_t> last;          // of each pixel: the last entry that it blended, or -1
};

struct Tile {
  int x, y, width, height;  // pixels; narrower and lower at the image's edge
  int begin, end;           // entries
};

static inline Tile get_tile(const Frame& frame, int t) {
  Tile tile;
  tile.x = t % frame.lists.num_tiles_x * TILE;
  tile.y = t / frame.lists.num_tiles_x * TILE;
  tile.width = least(TILE, frame.camera.width - tile.x);
  tile.height = least(TILE, frame.camera.height - tile.y);
  tile.begin = frame.lists.tile_begin[t];
  tile.end = frame.lists.tile_begin[t + 1];
  return tile;
}

// One bit for each block with a pixel centre in the ellipse {alpha >= alpha_min}; (x, y) is the
// mean from the tile's corner. Lanes are the eight rows of blocks.
INLINE uint32_t block_mask(const Splat& s, float x, float y) {
  constexpr float SLACK = 0.01f, NOWHERE = 1e9f;
  const Float8 even_rows = {0.5f, 2.5f, 4.5f, 6.5f, 8.5f, 10.5f, 12.5f, 14.5f};
  const Float8 zero = splat(0.f), nowhere = splat(NOWHERE);
  Float8 dy0 = even_rows - splat(y), dy1 = dy0 + splat(1.f);
  Float8 square0 = splat(s.row_constant) - splat(s.row_curve) * dy0 * dy0;
  Float8 square1 = splat(s.row_constant) - splat(s.row_curve) * dy1 * dy1;
  Float8 half0 = square_root(maximum(square0, zero)), half1 = square_root(maximum(square1, zero));
  Float8 middle0 = splat(s.slope) * dy0 + splat(x);
  Float8 middle1 = splat(s.slope) * dy1 + splat(x);
  Int8 crossed0 = square0 >= zero, crossed1 = square1 >= zero;
  Float8 left = minimum(select(crossed0, middle0 - half0, nowhere),
                        select(crossed1, middle1 - half1, nowhere));
  Float8 right = maximum(select(crossed0, middle0 + half0, -nowhere),
                         select(crossed1, middle1 + half1, -nowhere));
  uint32_t mask = 0;
  for (int column = 0; column < TILE / BLOCK_WIDTH; column++) {
    float first = (float)(column * BLOCK_WIDTH) + 0.5f - SLACK;
    float last = (float)(column * BLOCK_WIDTH + BLOCK_WIDTH) - 0.5f + SLACK;
    Int8 touched = (left <= splat(last)) & (right >= splat(first));
    mask |= sign_bits(touched) << (BLOCKS_Y * column);
  }
  return mask;
}

// alpha before it is held at alpha_max, right where `counts` says that it counts; (dx, dy) is the
// pixel less the mean.
INLINE Float8 alpha_at(const Splat& s, Float8 dx, Float8 dy, Int8* counts) {
  Float8 t = dx - splat(s.slope) * dy;
  Float8 power = splat(s.across) * t * t + splat(s.along) * dy * dy;
  *counts = ~(Int8)(power - splat(s.log2_least)) >> 31;  // all bits where it is not negative
  return exp2(power + splat(s.log2_opacity));
}

// The state of one tile's pixels. A negative transmittance marks a pixel that is finished (or lies
// outside the image); its size stays what it was.
struct TileState {
  Float8 transmittances[NUM_BLOCKS];
  Int8 last[NUM_BLOCKS];  // one more than the last entry that was blended, or 0
  uint32_t alive;         // blocks with an unfinished pixel
};

static inline void start_tile(const Grid& grid, const Tile& tile, TileState& state) {
  state.alive = 0;
  for (int block = 0; block < NUM_BLOCKS; block++) {
    Int8 inside = (grid.x[block] < splat((float)tile.width)) &
                  (grid.y[block] < splat((float)tile.height));
    state.transmittances[block] = select(inside, splat(1.f), splat(-1.f));
    state.last[block] = splat_int(0);
    if (any(inside)) state.alive |= 1u << block;
  }
}

// Blend all entries of a tile. receiver.add(entry, block, weights) is called for each entry and the
// blocks that it touches, receiver.end_chunk(begin, end) after every CHUNK entries at most.
// masks[entry] is set for all entries up to the last one that was blended.
template <class Receiver>
INLINE void blend_tile(const Frame& frame, const Grid& grid, const Tile& tile, uint32_t* masks,
                       TileState& state, Receiver& receiver) {
  const Int8 sign = splat_int(INT32_MIN);
  const Float8 alpha_max = splat(frame.constants.alpha_max);
  const Float8 transmittance_min = splat(frame.constants.transmittance_min);
  const int32_t* ids = frame.lists.entry_splat.data;
  start_tile(grid, tile, state);
  for (int begin = tile.begin; begin < tile.end && state.alive; begin += CHUNK) {
    int end = least(begin + CHUNK, tile.end);
    for (int entry = begin; entry < end; entry++) {
      if (entry + PREFETCH < tile.end) __builtin_prefetch(&frame.splats[ids[entry + PREFETCH]]);
      const Splat& s = frame.splats[ids[entry]];
      masks[entry] = block_mask(s, s.x - (float)tile.x, s.y - (float)tile.y);
    }
    for (int entry = begin; entry < end; entry++) {
      const Splat& s = frame.splats[ids[entry]];
      Float8 x = splat(s.x - (float)tile.x), y = splat(s.y - (float)tile.y);
      for (uint32_t m = masks[entry] & state.alive; m; m &= m - 1) {
        int block = __builtin_ctz(m);
        Int8 counts;
        Float8 alpha = alpha_at(s, grid.x[block] - x, grid.y[block] - y, &counts);
        alpha = keep(minimum(alpha, alpha_max), counts);
        Float8 T = state.transmittances[block];
        Float8 weight = alpha * T, left = T - weight;
        Int8 live = left > transmittance_min;
        state.transmittances[block] = select(live, left, (Float8)((Int8)T | sign));
        state.last[block] = max_int(state.last[block], counts & live & splat_int(entry + 1));
        receiver.add(entry, block, keep(weight, live));
      }
    }
    receiver.end_chunk(begin, end);
    for (uint32_t m = state.alive; m; m &= m - 1) {
      int block = __builtin_ctz(m);
      if (all_negative(state.transmittances[block])) state.alive &= ~(1u << block);
    }
  }
}

// Sums of weight * channel over the entries, [block][channel], of D channels: at once.
template <int D>
struct ChannelSums {
  const int32_t* ids;
  const float* channels;
  Float8* sums;

  ALWAYS_INLINE void add(int entry, int block, Float8 weight) {
    const float* c = channels + (int64_t)ids[entry] * D;
    for (int k = 0; k < D; k++) sums[block * D + k] += weight * splat(c[k]);
  }
  void end_chunk(int, int) {}
};

// The same for any number of channels: the weights are kept until the chunk ends, then the sums of
// a block stay in registers while its entries are added up.
struct DeferredChannelSums {
  struct Pending {
    int count;
    uint8_t entries[CHUNK];  // from the chunk's first on
    Float8 weights[CHUNK];
  };
  const int32_t* ids;
  const float* channels;
  Float8* sums;
  int num_channels;
  Pending* pending;  // of each block
  int chunk_begin;

  void start(const Tile& tile) {
    chunk_begin = tile.begin;
    for (int block = 0; block < NUM_BLOCKS; block++) pending[block].count = 0;
  }
  ALWAYS_INLINE void add(int entry, int block, Float8 weight) {
    Pending& p = pending[block];
    p.entries[p.count] = (uint8_t)(entry - chunk_begin);
    p.weights[p.count++] = weight;
  }
  void end_chunk(int begin, int end) {
    constexpr int AT_ONCE = 8;
    const float* rows[CHUNK];
    for (int i = begin; i < end; i++) rows[i - begin] = channels + (int64_t)ids[i] * num_channels;
    for (int block = 0; block < NUM_BLOCKS; block++) {
      Pending& p = pending[block];
      Float8* to = sums + (int64_t)block * num_channels;
      int k = 0;
      for (; k + AT_ONCE <= num_channels; k += AT_ONCE) add_channels<AT_ONCE>(p, rows, k, to);
      add_rest<AT_ONCE - 1>(num_channels - k, p, rows, k, to);
      p.count = 0;
    }
    chunk_begin = end;
  }

 private:
  // K channels from `first` on.
  template <int K>
  INLINE void add_channels(const Pending& p, const float* const* rows, int first, Float8* to) {
    Float8 s[K];
    for (int k = 0; k < K; k++) s[k] = to[first + k];
    for (int i = 0; i < p.count; i++) {
      const float* c = rows[p.entries[i]] + first;
      for (int k = 0; k < K; k++) s[k] += p.weights[i] * splat(c[k]);
    }
    for (int k = 0; k < K; k++) to[first + k] = s[k];
  }
  // The last `rest` <= K channels.
  template <int K>
  INLINE void add_rest(int rest, const Pending& p, const float* const* rows, int first,
                       Float8* to) {
    if (rest == K) add_channels<K>(p, rows, first, to);
    if constexpr (K > 1) {
      if (rest < K) add_rest<K - 1>(rest, p, rows, first, to);
    }
  }
};

// Write what a tile has become to the image and to the frame.
static inline void store_tile(Frame& frame, const Tile& tile, const TileState& state,
                              const Float8* sums, int num_channels, const float* background,
                              float* out, float* alphas) {
  for (int y = 0; y < tile.height; y++) {
    for (int x = 0; x < tile.width; x++) {
      int block = block_of(x, y), lane = lane_of(x, y);
      int64_t pixel = (int64_t)(tile.y + y) * frame.camera.width + tile.x + x;
      float left = fabsf(state.transmittances[block][lane]);
      frame.transmittances[pixel] = left;
      frame.last[pixel] = state.last[block][lane] - 1;
      alphas[pixel] = 1.f - left;
      for (int k = 0; k < num_channels; k++) {
        float behind = background ? background[k] * left : 0.f;
        out[pixel * num_channels + k] = sums[block * num_channels + k][lane] + behind;
      }
    }
  }
}

// channels: num_gaussians x D; background: D or null; out: pixels x D; alphas: pixels.
static void rasterize_forward(Frame& frame, int num_channels, const float* channels,
                              const float* background, float* out, float* alphas) {
  const Grid grid;
  const int32_t* ids = frame.lists.entry_splat.data;
  const int64_t num_pixels = (int64_t)frame.camera.width * frame.camera.height;
  frame.masks.resize(frame.lists.entry_splat.size);
  frame.transmittances.resize(num_pixels);
  frame.last.resize(num_pixels);
  parallel_for(frame.num_threads, frame.lists.num_tiles, 4, [&](int begin, int end) {
    Array<float> memory((int64_t)NUM_BLOCKS * num_channels * LANES);
    Float8* sums = (Float8*)memory.data;
    Array<DeferredChannelSums::Pending> pending(NUM_BLOCKS);
    ChannelSums<RGB> rgb = {ids, channels, sums};
    DeferredChannelSums any = {ids, channels, sums, num_channels, pending.data, 0};
    for (int t = begin; t < end; t++) {
      Tile tile = get_tile(frame, t);
      TileState state;
      memory.zero();
      if (num_channels == RGB) {
        blend_tile(frame, grid, tile, frame.masks.data, state, rgb);
      } else {
        any.start(tile);
        blend_tile(frame, grid, tile, frame.masks.data, state, any);
      }
      store_tile(frame, tile, state, sums, num_channels, background, out, alphas);
    }
  });
}

}  // namespace ul
