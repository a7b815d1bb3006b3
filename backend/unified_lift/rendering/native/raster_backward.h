// SPDX-License-Identifier: GPL-3.0-or-later
// The gradient of the blending, tile by tile and back to front.
//
// With v = d loss / d out, c_i the channels of a pixel's i-th splat and q_i = c_i . v:
//   d loss / d c_i     = w_i v
//   d loss / d alpha_i = T_i q_i - S_i / (1 - alpha_i),
//   S_i = sum_{j > i} w_j q_j + T_end (background . v - d loss / d alphas)
// T_i is won back from T_{i + 1} by division, and S_i by adding w_i q_i: one number a pixel,
// however many channels there are. With g = alpha_i d loss / d alpha_i = - d loss / d sigma the
// geometry's gradients are the moments of projection.h. Every (splat, tile) slot has its own place
// for the sums over the tile, and they are added splat by splat afterwards: no atomic additions, so
// the result is the same for any number of threads.
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

// The weights that one entry has had in the blocks that it touches.
struct EntryWeights {
  int count = 0;
  int blocks[NUM_BLOCKS];
  Float8 weights[NUM_BLOCKS];
};

// sums[k] = sum over the blocks of weight * v, for the K channels from `first` on.
template <int K>
INLINE void sum_channels(const EntryWeights& entry, const Float8* v, int num_channels, int first,
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
INLINE void sum_rest(int rest, const EntryWeights& entry, const Float8* v, int num_channels,
                     int first, Float8* sums) {
  if (rest == K) sum_channels<K>(entry, v, num_channels, first, sums);
  if constexpr (K > 1) {
    if (rest < K) sum_rest<K - 1>(rest, entry, v, num_channels, first, sums);
  }
}

INLINE void sum_all_channels(const EntryWeights& entry, const Float8* v, int num_channels,
                             Float8* sums) {
  constexpr int AT_ONCE = 8;
  int k = 0;
  for (; k + AT_ONCE <= num_channels; k += AT_ONCE) {
    sum_channels<AT_ONCE>(entry, v, num_channels, k, sums);
  }
  sum_rest<AT_ONCE - 1>(num_channels - k, entry, v, num_channels, k, sums);
}

// One entry over the blocks of `mask`: sums[0 .. NUM_MOMENTS + D) over the tile, lane by lane.
// (x, y) is its mean from the tile's corner. FIXED is D where the compiler is to know it, or 0.
template <int FIXED>
INLINE void blend_backward(const Grid& grid, float alpha_limit, const Splat& s, float x, float y,
                           int entry, const float* channels, int num_channels, const Float8* v,
                           uint32_t mask, BackwardState& state, Float8* sums) {
  const int D = FIXED ? FIXED : num_channels;
  const Float8 one = splat(1.f), alpha_max = splat(alpha_limit);
  Float8 gx = {}, gy = {}, gxx = {}, gxy = {}, gyy = {}, g_all = {};
  Float8 channel_sums[FIXED ? FIXED : 1] = {};
  EntryWeights blended;
  for (; mask; mask &= mask - 1) {
    int block = __builtin_ctz(mask);
    const Float8* v_block = v + block * D;
    Float8 dx = grid.x[block] - splat(x), dy = grid.y[block] - splat(y);
    Int8 counts;
    Float8 raw = alpha_at(s, dx, dy, &counts);
    raw = keep(raw, counts & (state.last[block] >= splat_int(entry)));
    Float8 alpha = minimum(raw, alpha_max);
    Float8 inverse = one / (one - alpha);
    Float8 q = splat(channels[0]) * v_block[0];
    for (int k = 1; k < D; k++) q += splat(channels[k]) * v_block[k];
    Float8 T = state.T[block] * inverse, S = state.S[block];
    Float8 weight = alpha * T;
    state.T[block] = T;
    state.S[block] = S + weight * q;
    // Where alpha was held at its maximum, the geometry does not change it.
    Float8 g = keep(raw * (T * q - inverse * S), raw <= alpha_max);
    Float8 g_dx = g * dx, g_dy = g * dy;
    gx += g_dx;
    gy += g_dy;
    gxx += g_dx * dx;
    gxy += g_dx * dy;
    gyy += g_dy * dy;
    g_all += g;
    if constexpr (FIXED > 0) {
      for (int k = 0; k < FIXED; k++) channel_sums[k] += weight * v_block[k];
    } else {
      blended.weights[blended.count] = weight;
      blended.blocks[blended.count++] = block;
    }
  }
  const Float8 moments[NUM_MOMENTS] = {gx, gy, gxx, gxy, gyy, g_all};
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
    const Splat& s = frame.splats[ids[entry]];
    blend_backward<FIXED>(grid, frame.constants.alpha_max, s, s.x - (float)tile.x,
                          s.y - (float)tile.y, entry,
                          channels + (int64_t)ids[entry] * num_channels, num_channels, v, mask,
                          state, sums);
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
