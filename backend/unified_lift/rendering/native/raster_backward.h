// SPDX-License-Identifier: GPL-3.0-or-later
// The gradient of the blending, tile by tile and back to front.
//
// With v = d loss / d out, c_i the channels of a pixel's i-th splat, q_i = c_i . v and
// r_i = alpha_i / (1 - alpha_i):
//   d loss / d c_i             = w_i v,  w_i = r_i T_{i + 1},  T_i = T_{i + 1} + w_i
//   alpha_i d loss / d alpha_i = r_i (T_{i + 1} q_i - S_i)
//   S_i = sum_{j > i} w_j q_j + T_end (background . v - d loss / d alphas)
// So two numbers a pixel are carried from the back, T and S, however many channels there are. With
// g = alpha_i d loss / d alpha_i = - d loss / d sigma the geometry's gradients are the moments of
// projection.h. Every (splat, tile) slot has its own place for the sums over the tile, and they are
// added splat by splat afterwards: no atomic additions, so the result is the same for any number of
// threads.
#pragma once
#include "raster.h"

namespace ul {

// Floats in a slot: moments and channels, rounded up to what memset and prefetch like.
INLINE int slot_size(int num_channels) { return (NUM_MOMENTS + num_channels + 3) & ~3; }

// The pixels of a tile on the way back.
struct BackwardState {
  Float8 T[NUM_BLOCKS];
  Float8 S[NUM_BLOCKS];
  Int8 last[NUM_BLOCKS];
  int block_last[NUM_BLOCKS];  // the greatest of `last`
};

static inline void start_backward(const Frame& frame, const Tile& tile, int num_channels,
                                  const float* background, const float* v_out,
                                  const float* v_alphas, BackwardState& state, Float8* v) {
  const int D = num_channels;
  for (int block = 0; block < NUM_BLOCKS; block++) {
    state.T[block] = splat(1.f);
    state.S[block] = splat(0.f);
    state.last[block] = splat_int(-1);
    state.block_last[block] = -1;
  }
  memset((void*)v, 0, sizeof(Float8) * NUM_BLOCKS * (size_t)D);
  for (int y = 0; y < tile.height; y++) {
    for (int x = 0; x < tile.width; x++) {
      int block = block_of(x, y), lane = lane_of(x, y);
      int64_t pixel = (int64_t)(tile.y + y) * frame.camera.width + tile.x + x;
      float behind = -v_alphas[pixel];
      for (int k = 0; k < D; k++) {
        float v_k = v_out[pixel * D + k];
        ((float*)(v + block * D + k))[lane] = v_k;
        if (background) behind += background[k] * v_k;
      }
      ((float*)(state.T + block))[lane] = frame.transmittances[pixel];
      ((float*)(state.S + block))[lane] = frame.transmittances[pixel] * behind;
      ((int32_t*)(state.last + block))[lane] = frame.last[pixel];
      state.block_last[block] = greatest(state.block_last[block], frame.last[pixel]);
    }
  }
}

// Blocks ordered by their last entry, the greatest first.
static inline void order_blocks(const int* block_last, int* order) {
  for (int block = 0; block < NUM_BLOCKS; block++) {
    int at = block;
    for (; at > 0 && block_last[order[at - 1]] < block_last[block]; at--) order[at] = order[at - 1];
    order[at] = block;
  }
}

constexpr int CHANNELS_AT_ONCE = 10, BLOCKS_AT_ONCE = 4;  // as many as stay in registers

// Limits of alpha, for every lane.
struct Limits {
  Float8 log2_least, alpha_max, ratio_max;
};

INLINE Limits limits_of(const Constants& constants) {
  Limits r;
  r.log2_least = splat(log2f(constants.alpha_min));
  r.alpha_max = splat(constants.alpha_max);
  r.ratio_max = r.alpha_max / (splat(1.f) - r.alpha_max);
  return r;
}

// What one entry is in the blocks that it touches.
struct EntryBlocks {
  int count;
  int blocks[NUM_BLOCKS + BLOCKS_AT_ONCE];
  Float8 ratios[NUM_BLOCKS];                 // r
  Float8 dots[NUM_BLOCKS + BLOCKS_AT_ONCE];  // q
  Float8 weights[NUM_BLOCKS];
};

INLINE void find_ratios(const Grid& grid, const Limits& limits, const Footprint& f, int entry,
                        uint32_t mask, const BackwardState& state, EntryBlocks& out) {
  int count = 0;
  for (; mask; mask &= mask - 1) {
    int block = __builtin_ctz(mask);
    Float8 x = grid.x[block], y = grid.y[block];
    Int8 counts;
    Float8 alpha = alpha_at(f, u_at(f, x, y), v_at(f, y), limits.log2_least, &counts);
    counts &= state.last[block] >= splat_int(entry);
    alpha = keep(minimum(alpha, limits.alpha_max), counts);
    out.blocks[count] = block;
    out.ratios[count++] = alpha / (splat(1.f) - alpha);
  }
  out.count = count;
}

// dots = channels . v in every block. The last blocks are filled up with the first one.
INLINE void find_dots(const float* channels, const Float8* v, int num_channels,
                      EntryBlocks& entry) {
  for (int i = 0; i < BLOCKS_AT_ONCE; i++) entry.blocks[entry.count + i] = entry.blocks[0];
  for (int first = 0; first < entry.count; first += BLOCKS_AT_ONCE) {
    Float8 q[BLOCKS_AT_ONCE] = {};
    const Float8* from[BLOCKS_AT_ONCE];
    for (int i = 0; i < BLOCKS_AT_ONCE; i++) from[i] = v + entry.blocks[first + i] * num_channels;
    for (int k = 0; k < num_channels; k++) {
      Float8 c = splat(channels[k]);
      for (int i = 0; i < BLOCKS_AT_ONCE; i++) q[i] += c * from[i][k];
    }
    for (int i = 0; i < BLOCKS_AT_ONCE; i++) entry.dots[first + i] = q[i];
  }
}

// sums[k] = sum over the blocks of weight * v, for the K channels from `first` on.
template <int K>
INLINE void sum_channels(const EntryBlocks& entry, const Float8* v, int num_channels, int first,
                         Float8* sums) {
  Float8 s[K] = {};
  for (int i = 0; i < entry.count; i++) {
    const Float8* from = v + entry.blocks[i] * num_channels + first;
    for (int k = 0; k < K; k++) s[k] += entry.weights[i] * from[k];
  }
  for (int k = 0; k < K; k++) sums[first + k] = s[k];
}

// The last `rest` <= K channels.
template <int K>
INLINE void sum_rest(int rest, const EntryBlocks& entry, const Float8* v, int num_channels,
                     int first, Float8* sums) {
  if (rest == K) sum_channels<K>(entry, v, num_channels, first, sums);
  if constexpr (K > 1) {
    if (rest < K) sum_rest<K - 1>(rest, entry, v, num_channels, first, sums);
  }
}

INLINE void sum_all_channels(const EntryBlocks& entry, const Float8* v, int num_channels,
                             Float8* sums) {
  int k = 0;
  for (; k + CHANNELS_AT_ONCE <= num_channels; k += CHANNELS_AT_ONCE) {
    sum_channels<CHANNELS_AT_ONCE>(entry, v, num_channels, k, sums);
  }
  sum_rest<CHANNELS_AT_ONCE - 1>(num_channels - k, entry, v, num_channels, k, sums);
}

// One entry over the blocks of `mask`: sums[0 .. NUM_MOMENTS + D) over the tile, lane by lane.
// FIXED is D where the compiler is to know it, or 0.
template <int FIXED>
INLINE void blend_backward(const Grid& grid, const Limits& limits, const Footprint& f, int entry,
                           const float* channels, int num_channels, const Float8* v, uint32_t mask,
                           BackwardState& state, Float8* sums) {
  const int D = FIXED ? FIXED : num_channels;
  EntryBlocks blended;
  find_ratios(grid, limits, f, entry, mask, state, blended);
  if constexpr (FIXED == 0) find_dots(channels, v, D, blended);
  Float8 gu = {}, gv = {}, guu = {}, guv = {}, gvv = {}, g_all = {};
  Float8 channel_sums[FIXED ? FIXED : 1] = {};
  for (int i = 0; i < blended.count; i++) {
    int block = blended.blocks[i];
    const Float8* v_block = v + block * D;
    Float8 ratio = blended.ratios[i], T = state.T[block], S = state.S[block], q = {};
    if constexpr (FIXED > 0) {
      for (int k = 0; k < FIXED; k++) q += splat(channels[k]) * v_block[k];
    } else {
      q = blended.dots[i];
    }
    Float8 weight = ratio * T, Tq = T * q;
    state.T[block] = T + weight;
    state.S[block] = S + ratio * Tq;
    // Where alpha was held at its maximum, the geometry does not change it.
    Float8 g = keep(ratio * (Tq - S), ratio < limits.ratio_max);
    Float8 u_pixel = u_at(f, grid.x[block], grid.y[block]), v_pixel = v_at(f, grid.y[block]);
    Float8 g_u = g * u_pixel, g_v = g * v_pixel;
    gu += g_u;
    gv += g_v;
    guu += g_u * u_pixel;
    guv += g_u * v_pixel;
    gvv += g_v * v_pixel;
    g_all += g;
    if constexpr (FIXED > 0) {
      for (int k = 0; k < FIXED; k++) channel_sums[k] += weight * v_block[k];
    } else {
      blended.weights[i] = weight;
    }
  }
  const Float8 moments[NUM_MOMENTS] = {gu, gv, guu, guv, gvv, g_all};
  memcpy(sums, moments, sizeof(moments));
  if constexpr (FIXED > 0) {
    memcpy(sums + NUM_MOMENTS, channel_sums, sizeof(channel_sums));
  } else {
    sum_all_channels(blended, v, num_channels, sums + NUM_MOMENTS);
  }
}

INLINE void prefetch_floats(const float* p, int count) {
  constexpr int CACHE_LINE = 16;
  for (int k = 0; k < count; k += CACHE_LINE) __builtin_prefetch(p + k);
}

template <int FIXED>
static void backward_tile(const Frame& frame, const Grid& grid, const Tile& tile,
                          int num_channels, const float* channels, const Float8* v,
                          BackwardState& state, Float8* sums, float* slots) {
  const int size = slot_size(num_channels);
  const Limits limits = limits_of(frame.constants);
  const int32_t* ids = frame.lists.entry_splat.data;
  const int32_t* entry_slot = frame.lists.entry_slot.data;
  int order[NUM_BLOCKS], num_active = 0;
  order_blocks(state.block_last, order);
  uint32_t active = 0;  // blocks that blended this entry or one behind it
  for (int entry = tile.end - 1; entry >= tile.begin; entry--) {
    float* slot = slots + (int64_t)entry_slot[entry] * size;
    while (num_active < NUM_BLOCKS && state.block_last[order[num_active]] >= entry) {
      active |= 1u << order[num_active++];
    }
    uint32_t mask = active ? frame.masks[entry] & active : 0;
    if (!mask) {
      memset(slot, 0, sizeof(float) * (size_t)size);
      continue;
    }
    if (entry - PREFETCH >= tile.begin) {
      int next = ids[entry - PREFETCH];
      __builtin_prefetch(&frame.splats[next]);
      prefetch_floats(channels + (int64_t)next * num_channels, num_channels);
      prefetch_floats(slots + (int64_t)entry_slot[entry - PREFETCH] * size, size);
    }
    int id = ids[entry];
    blend_backward<FIXED>(grid, limits, footprint(frame.splats[id], tile), entry,
                          channels + (int64_t)id * num_channels, num_channels, v, mask, state,
                          sums);
    for (int k = 0; k < size; k += LANES) {
      Float8 totals = sums_of_8(sums + k);
      memcpy(slot + k, &totals, sizeof(float) * (size_t)least(LANES, size - k));
    }
  }
}

// Add up the slots of every Gaussian.
static void sum_slots(const Frame& frame, const float* slots, int num_channels, float* moments,
                      float* v_channels) {
  const int size = slot_size(num_channels);
  const int32_t* slots_begin = frame.lists.slots_begin.data;
  parallel_for(frame.num_threads, frame.num_gaussians, 2048, [&](int begin, int end) {
    Array<float> total(size);
    for (int i = begin; i < end; i++) {
      total.zero();
      for (int slot = slots_begin[i]; slot < slots_begin[i + 1]; slot++) {
        const float* from = slots + (int64_t)slot * size;
        for (int k = 0; k < size; k++) total[k] += from[k];
      }
      memcpy(moments + (int64_t)i * NUM_MOMENTS, total.data, sizeof(float) * NUM_MOMENTS);
      memcpy(v_channels + (int64_t)i * num_channels, total.data + NUM_MOMENTS,
             sizeof(float) * (size_t)num_channels);
    }
  });
}

// moments: num_gaussians x NUM_MOMENTS; v_channels: num_gaussians x D.
static void rasterize_backward(const Frame& frame, int num_channels, const float* channels,
                               const float* background, const float* v_out,
                               const float* v_alphas, float* moments, float* v_channels) {
  const Grid grid;
  Array<float> slots(frame.lists.entry_slot.size * slot_size(num_channels));
  parallel_for(frame.num_threads, frame.lists.num_tiles, 4, [&](int begin, int end) {
    Array<float> v_memory((int64_t)NUM_BLOCKS * num_channels * LANES);
    Array<float> sums_memory((NUM_MOMENTS + num_channels + LANES) * LANES);
    Float8 *v = (Float8*)v_memory.data, *sums = (Float8*)sums_memory.data;
    sums_memory.zero();
    for (int t = begin; t < end; t++) {
      Tile tile = get_tile(frame, t);
      BackwardState state;
      start_backward(frame, tile, num_channels, background, v_out, v_alphas, state, v);
      auto backward = num_channels == RGB ? backward_tile<RGB> : backward_tile<0>;
      backward(frame, grid, tile, num_channels, channels, v, state, sums, slots.data);
    }
  });
  sum_slots(frame, slots.data, num_channels, moments, v_channels);
}

}  // namespace ul
