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
constexpr int CHUNK = 64;    // entries whose masks are found before any of them is blended
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
  Array<int32_t> last;          // of each pixel: the last entry before it was finished
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

// A splat as seen from a tile's corner: u = across x + skew y + u0, v = along y + v0.
struct Footprint {
  Float8 across, skew, along, u0, v0, log2_opacity;
};

INLINE Footprint footprint(const Splat& s, const Tile& tile) {
  float x = s.x - (float)tile.x, y = s.y - (float)tile.y;
  return {splat(s.across), splat(s.skew), splat(s.along), splat(-s.across * x - s.skew * y),
          splat(-s.along * y), splat(s.log2_opacity)};
}

INLINE Float8 u_at(const Footprint& f, Float8 x, Float8 y) {
  return f.across * x + (f.skew * y + f.u0);
}
INLINE Float8 v_at(const Footprint& f, Float8 y) { return f.along * y + f.v0; }

// alpha before it is held at alpha_max, right where `counts` says that it counts.
INLINE Float8 alpha_at(const Footprint& f, Float8 u, Float8 v, Float8 log2_least, Int8* counts) {
  Float8 power = f.log2_opacity - v * v - u * u;
  *counts = power >= log2_least;
  return exp2(power);
}

// The state of one tile's pixels.
struct TileState {
  Float8 transmittances[NUM_BLOCKS];  // 0 where a pixel is finished or outside the image
  Float8 finished[NUM_BLOCKS];        // what a finished pixel's transmittance was
  Int8 last[NUM_BLOCKS];              // the last entry before a pixel was finished
  uint32_t unfinished[NUM_BLOCKS];    // one bit a pixel
  uint32_t alive;                     // blocks with an unfinished pixel

  // The pixels without a `live` lane end before this entry.
  ALWAYS_INLINE void finish(int block, int entry, Int8 live) {
    Float8 T = transmittances[block];
    Int8 ends = ~live & (T > splat(0.f));
    finished[block] += keep(T, ends);
    last[block] += ends & (splat_int(entry - 1) - last[block]);
    unfinished[block] = sign_bits(live);
    if (!unfinished[block]) alive &= ~(1u << block);
  }
};

static inline void start_tile(const Grid& grid, const Tile& tile, TileState& state) {
  state.alive = 0;
  for (int block = 0; block < NUM_BLOCKS; block++) {
    Int8 inside = (grid.x[block] < splat((float)tile.width)) &
                  (grid.y[block] < splat((float)tile.height));
    state.transmittances[block] = keep(splat(1.f), inside);
    state.finished[block] = splat(0.f);
    state.last[block] = splat_int(tile.end - 1);
    state.unfinished[block] = sign_bits(inside);
    if (state.unfinished[block]) state.alive |= 1u << block;
  }
}

// Blend all entries of a tile. receiver.add(entry, block, weights) is called for each entry and the
// blocks that it touches, receiver.end_chunk(begin, end) after every CHUNK entries at most.
// masks[entry] is set for all entries up to the last one that was blended.
template <class Receiver>
INLINE void blend_tile(const Frame& frame, const Grid& grid, const Tile& tile, uint32_t* masks,
                       TileState& state, Receiver& receiver) {
  const Float8 alpha_max = splat(frame.constants.alpha_max);
  const Float8 transmittance_min = splat(frame.constants.transmittance_min);
  const Float8 log2_least = splat(log2f(frame.constants.alpha_min));
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
      const Footprint f = footprint(frame.splats[ids[entry]], tile);
      for (uint32_t m = masks[entry] & state.alive; m; m &= m - 1) {
        int block = __builtin_ctz(m);
        Int8 counts;
        Float8 u = u_at(f, grid.x[block], grid.y[block]), v = v_at(f, grid.y[block]);
        Float8 alpha = alpha_at(f, u, v, log2_least, &counts);
        alpha = keep(minimum(alpha, alpha_max), counts);
        Float8 T = state.transmittances[block];
        Float8 weight = alpha * T, left = T - weight;
        Int8 live = left > transmittance_min;
        if (sign_bits(live) != state.unfinished[block]) {  // seldom: once a pixel
          state.finish(block, entry, live);
          weight = keep(weight, live);
          left = keep(left, live);
        }
        state.transmittances[block] = left;
        receiver.add(entry, block, weight);
      }
    }
    receiver.end_chunk(begin, end);
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
    constexpr int AT_ONCE = 10;  // as many as stay in registers
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
      float left = state.transmittances[block][lane] + state.finished[block][lane];
      frame.transmittances[pixel] = left;
      frame.last[pixel] = state.last[block][lane];
      alphas[pixel] = 1.f - left;
      const float* from = (const float*)(sums + (int64_t)block * num_channels) + lane;
      float* to = out + pixel * num_channels;
      for (int k = 0; k < num_channels; k++) to[k] = from[LANES * k];
      if (background) {
        for (int k = 0; k < num_channels; k++) to[k] += background[k] * left;
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
