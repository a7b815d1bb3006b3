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
static_assert(CHUNK == 64, "a mask of entries is a uint64");
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
  float across, skew, along, u0, v0, log2_opacity;
};

INLINE Footprint footprint(const Splat& s, const Tile& tile) {
  float x = s.x - (float)tile.x, y = s.y - (float)tile.y;
  return {s.across, s.skew, s.along, -s.across * x - s.skew * y, -s.along * y, s.log2_opacity};
}

INLINE Float8 u_at(const Footprint& f, Float8 x, Float8 y) {
  return splat(f.across) * x + (splat(f.skew) * y + splat(f.u0));
}
INLINE Float8 v_at(const Footprint& f, Float8 y) { return splat(f.along) * y + splat(f.v0); }

// alpha before it is held at alpha_max, right where `counts` says that it counts.
INLINE Float8 alpha_at(const Footprint& f, Float8 u, Float8 v, Float8 log2_least, Int8* counts) {
  Float8 power = splat(f.log2_opacity) - v * v - u * u;
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

  // The pixels without a `live` lane, of transmittance T, end before this entry.
  ALWAYS_INLINE void finish(int block, int entry, Float8 T, Int8 live) {
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

// Up to CHUNK entries of a tile, seen from its blocks.
struct Chunk {
  Footprint footprints[CHUNK];
  uint64_t entries[NUM_BLOCKS];  // of each block: one bit for each entry that touches it
};

// Read the chunk that begins at an entry, and set masks[entry] of its entries unless masks is null.
static inline void read_chunk(const Frame& frame, const Tile& tile, int begin, uint32_t* masks,
                              Chunk& chunk) {
  const int32_t* ids = frame.lists.entry_splat.data;
  const int count = least(CHUNK, tile.end - begin);
  alignas(32) uint32_t rows[CHUNK] = {};
  for (int i = 0; i < count; i++) {
    int entry = begin + i;
    if (entry + PREFETCH < tile.end) __builtin_prefetch(&frame.splats[ids[entry + PREFETCH]]);
    const Splat& s = frame.splats[ids[entry]];
    rows[i] = block_mask(s, s.x - (float)tile.x, s.y - (float)tile.y);
    chunk.footprints[i] = footprint(s, tile);
  }
  if (masks) memcpy(masks + begin, rows, sizeof(uint32_t) * (size_t)count);
  memset(chunk.entries, 0, sizeof(chunk.entries));
  for (int i = 0; i < count; i += LANES) {
    Bits8 bits;
    memcpy(&bits, rows + i, sizeof(bits));
    for (int block = NUM_BLOCKS - 1; block >= 0; block--, bits <<= 1) {
      chunk.entries[block] |= (uint64_t)sign_bits((Int8)bits) << i;
    }
  }
}

// Blend all entries of a tile, block by block in each chunk of them. receiver.begin(block) is
// called for a block with entries, receiver.add(entry, weights) for these, receiver.end(block).
// masks[entry] is set for all entries up to the last one that was blended; masks may be null.
template <class Receiver>
INLINE void blend_tile(const Frame& frame, const Grid& grid, const Tile& tile, uint32_t* masks,
                       TileState& state, Receiver& receiver) {
  const Float8 alpha_max = splat(frame.constants.alpha_max);
  const Float8 transmittance_min = splat(frame.constants.transmittance_min);
  const Float8 log2_least = splat(log2f(frame.constants.alpha_min));
  Chunk chunk;
  start_tile(grid, tile, state);
  for (int begin = tile.begin; begin < tile.end && state.alive; begin += CHUNK) {
    read_chunk(frame, tile, begin, masks, chunk);
    for (uint32_t alive = state.alive; alive; alive &= alive - 1) {
      int block = __builtin_ctz(alive);
      uint64_t entries = chunk.entries[block];
      if (!entries) continue;
      const Float8 x = grid.x[block], y = grid.y[block];
      uint32_t unfinished = state.unfinished[block];
      Float8 T = state.transmittances[block];
      receiver.begin(block);
      while (entries) {
        int i = __builtin_ctzll(entries);
        entries &= entries - 1;
        const Footprint& f = chunk.footprints[i];
        Int8 counts;
        Float8 alpha = alpha_at(f, u_at(f, x, y), v_at(f, y), log2_least, &counts);
        alpha = keep(minimum(alpha, alpha_max), counts);
        Float8 weight = alpha * T, left = T - weight;
        Int8 live = left > transmittance_min;
        uint32_t live_bits = sign_bits(live);
        if (live_bits != unfinished) {  // seldom: once a pixel
          state.finish(block, begin + i, T, live);
          unfinished = live_bits;
          weight = keep(weight, live);
          left = keep(left, live);
          if (!unfinished) entries = 0;
        }
        T = left;
        receiver.add(begin + i, weight);
      }
      receiver.end(block);
      state.transmittances[block] = T;
    }
  }
}

// Sums of weight * channel over the entries, [block][channel], of D channels: at once.
template <int D>
struct ChannelSums {
  const int32_t* ids;
  const float* channels;
  Float8* sums;
  Float8 s[D];

  ALWAYS_INLINE void begin(int block) {
    for (int k = 0; k < D; k++) s[k] = sums[block * D + k];
  }
  ALWAYS_INLINE void add(int entry, Float8 weight) {
    const float* c = channels + (int64_t)ids[entry] * D;
    for (int k = 0; k < D; k++) s[k] += weight * splat(c[k]);
  }
  ALWAYS_INLINE void end(int block) {
    for (int k = 0; k < D; k++) sums[block * D + k] = s[k];
  }
};

// The same for any number of channels: the weights of a block are kept until its chunk ends, then
// its sums stay in registers, some channels at a time.
struct DeferredChannelSums {
  const int32_t* ids;
  const float* channels;
  Float8* sums;
  int num_channels;
  int count;
  const float* rows[CHUNK];
  Float8 weights[CHUNK];

  ALWAYS_INLINE void begin(int) { count = 0; }
  ALWAYS_INLINE void add(int entry, Float8 weight) {
    rows[count] = channels + (int64_t)ids[entry] * num_channels;
    weights[count++] = weight;
  }
  ALWAYS_INLINE void end(int block) {
    constexpr int AT_ONCE = 10;  // as many as stay in registers
    Float8* to = sums + (int64_t)block * num_channels;
    int k = 0;
    for (; k + AT_ONCE <= num_channels; k += AT_ONCE) add_channels<AT_ONCE>(k, to);
    add_rest<AT_ONCE - 1>(num_channels - k, k, to);
  }

 private:
  // K channels from `first` on.
  template <int K>
  ALWAYS_INLINE void add_channels(int first, Float8* to) const {
    Float8 s[K];
    for (int k = 0; k < K; k++) s[k] = to[first + k];
    for (int i = 0; i < count; i++) {
      const float* c = rows[i] + first;
      for (int k = 0; k < K; k++) s[k] += weights[i] * splat(c[k]);
    }
    for (int k = 0; k < K; k++) to[first + k] = s[k];
  }
  // The last `rest` <= K channels.
  template <int K>
  ALWAYS_INLINE void add_rest(int rest, int first, Float8* to) const {
    if (rest == K) add_channels<K>(first, to);
    if constexpr (K > 1) {
      if (rest < K) add_rest<K - 1>(rest, first, to);
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
    ChannelSums<RGB> rgb = {ids, channels, sums, {}};
    DeferredChannelSums any = {ids, channels, sums, num_channels, 0, {}, {}};
    for (int t = begin; t < end; t++) {
      Tile tile = get_tile(frame, t);
      TileState state;
      memory.zero();
      if (num_channels == RGB) {
        blend_tile(frame, grid, tile, frame.masks.data, state, rgb);
      } else {
        blend_tile(frame, grid, tile, frame.masks.data, state, any);
      }
      store_tile(frame, tile, state, sums, num_channels, background, out, alphas);
    }
  });
}

}  // namespace ul
