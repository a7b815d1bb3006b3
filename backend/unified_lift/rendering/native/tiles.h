// SPDX-License-Identifier: GPL-3.0-or-later
// Which splats each tile of the image has, front to back.
//
// The visible splats are sorted by depth once and then dealt out to their tiles in that order, so
// every tile's list is sorted as well.
#pragma once
#include "projection.h"

namespace ul {

constexpr int TILE = 16;          // pixels a side
constexpr int BIN_CHUNK = 2048;   // splats whose tiles are listed by one thread at a time
constexpr int64_t MAX_SLOTS = 1 << 28;    // of a view: lists of at most some 5 GB
constexpr int64_t COUNT_SLOTS = 1 << 16;  // listed by a thread before it tells the others

struct TileLists {
  int num_tiles_x = 0, num_tiles = 0;
  // A slot is one (splat, tile) pair. Slots [slots_begin[i], slots_begin[i + 1]) are splat i's.
  Array<int32_t> slots_begin;
  // An entry is a slot in the order of the tiles: [tile_begin[t], tile_begin[t + 1]) are tile t's.
  Array<int32_t> tile_begin;
  Array<int32_t> entry_splat, entry_slot;
};

// The first and one past the last index whose pixel centre lies in [low, high], held in [0, size].
INLINE void pixel_range(float low, float high, int size, int* first, int* end) {
  constexpr float SLACK = 0.01f;  // for rounding; a tile too many does no harm
  float a = ceilf(low - 0.5f - SLACK), b = floorf(high - 0.5f + SLACK) + 1.f;
  *first = (int)least(greatest(a, 0.f), (float)size);
  *end = (int)least(greatest(b, 0.f), (float)size);
}

// Call f(tile) for all tiles with a pixel in which the splat's alpha can reach alpha_min.
template <class F>
INLINE void for_each_tile(const Splat& s, int width, int height, int num_tiles_x, F f) {
  int y_first, y_end;
  pixel_range(s.y - s.half_height, s.y + s.half_height, height, &y_first, &y_end);
  for (int ty = y_first / TILE; ty * TILE < y_end; ty++) {
    // Within the rows of this tile the ellipse reaches furthest at its rightmost and leftmost
    // points, or at the row next to them.
    float low = (float)greatest(y_first, ty * TILE) + 0.5f - s.y;
    float high = (float)least(y_end, ty * TILE + TILE) - 0.5f - s.y;
    float dy_right = least(greatest(s.right_dy, low), high);
    float dy_left = least(greatest(-s.right_dy, low), high);
    float right = sqrtf(greatest(s.row_constant - s.row_curve * dy_right * dy_right, 0.f));
    float left = sqrtf(greatest(s.row_constant - s.row_curve * dy_left * dy_left, 0.f));
    int x_first, x_end;
    pixel_range(s.x + s.slope * dy_left - left, s.x + s.slope * dy_right + right, width,
                &x_first, &x_end);
    if (x_first >= x_end) continue;
    for (int tx = x_first / TILE; tx * TILE < x_end; tx++) f(ty * num_tiles_x + tx);
  }
}

// Sort indices by depth, keeping the order of equals: radix sort of 11, 11 and 10 bits. Positive
// floats sort like their bits.
static void sort_by_depth(const Splat* splats, int n, int32_t* indices) {
  constexpr int BITS = 11, BUCKETS = 1 << BITS, PASSES = 3, INDEX_BITS = 32;
  Array<uint64_t> buffers[2];
  buffers[0].resize(n);
  buffers[1].resize(n);
  Array<uint32_t> counts(PASSES * BUCKETS);
  counts.zero();
  for (int i = 0; i < n; i++) {
    uint32_t key;
    memcpy(&key, &splats[indices[i]].depth, sizeof(key));
    buffers[0][i] = ((uint64_t)key << INDEX_BITS) | (uint32_t)indices[i];
    for (int p = 0; p < PASSES; p++) counts[p * BUCKETS + ((key >> BITS * p) & (BUCKETS - 1))]++;
  }
  for (int p = 0; p < PASSES; p++) {
    const Array<uint64_t>& from = buffers[p & 1];
    Array<uint64_t>& to = buffers[1 - (p & 1)];
    uint32_t* count = &counts[p * BUCKETS];
    uint32_t begin = 0;
    for (int b = 0; b < BUCKETS; b++) {
      uint32_t size = count[b];
      count[b] = begin;
      begin += size;
    }
    for (int i = 0; i < n; i++) {
      to[count[(from[i] >> (INDEX_BITS + BITS * p)) & (BUCKETS - 1)]++] = from[i];
    }
  }
  for (int i = 0; i < n; i++) indices[i] = (int32_t)buffers[PASSES & 1][i];
}

// Deal the slots out to their tiles in depth order. Every piece of the order has its own histogram
// and so its own places in each tile's list: the result is the same for any number of pieces.
static void deal_slots(const Array<int32_t>& order, int n,
                       const Array<List<int32_t>>& chunk_tiles, int num_threads,
                       TileLists& lists) {
  int pieces = greatest(1, num_threads), num_tiles = lists.num_tiles;
  const int32_t* slots_begin = lists.slots_begin.data;
  Array<int32_t> counts((int64_t)pieces * num_tiles);
  counts.zero();
  // f(splat, its tiles, place): for the splats of a piece.
  auto for_piece = [&](int piece, auto f) {
    int end = (int)((int64_t)n * (piece + 1) / pieces);
    for (int i = (int)((int64_t)n * piece / pieces); i < end; i++) {
      int g = order[i], chunk = g / BIN_CHUNK;
      f(g, chunk_tiles[chunk].data + (slots_begin[g] - slots_begin[chunk * BIN_CHUNK]));
    }
  };
  parallel_for(num_threads, pieces, 1, [&](int begin, int end) {
    for (int piece = begin; piece < end; piece++) {
      int32_t* count = &counts[(int64_t)piece * num_tiles];
      for_piece(piece, [&](int g, const int32_t* tiles) {
        for (int k = 0; k < slots_begin[g + 1] - slots_begin[g]; k++) count[tiles[k]]++;
      });
    }
  });
  int32_t begin = 0;
  for (int t = 0; t < num_tiles; t++) {
    lists.tile_begin[t] = begin;
    for (int piece = 0; piece < pieces; piece++) {
      int32_t& count = counts[(int64_t)piece * num_tiles + t];
      int32_t size = count;
      count = begin;
      begin += size;
    }
  }
  lists.tile_begin[num_tiles] = begin;
  parallel_for(num_threads, pieces, 1, [&](int first, int end) {
    for (int piece = first; piece < end; piece++) {
      int32_t* place = &counts[(int64_t)piece * num_tiles];
      for_piece(piece, [&](int g, const int32_t* tiles) {
        for (int k = 0; k < slots_begin[g + 1] - slots_begin[g]; k++) {
          int32_t entry = place[tiles[k]]++;
          lists.entry_splat[entry] = g;
          lists.entry_slot[entry] = slots_begin[g] + k;
        }
      });
    }
  });
}

// List the tiles of the splats [begin, end), and how many each has; not all of them if `total`, of
// all threads, comes to more than MAX_SLOTS.
static void list_tiles(const Splat* splats, int begin, int end, int width, int height,
                       int64_t* total, TileLists& lists, List<int32_t>& result) {
  List<int32_t> tiles = {};  // not `result`: two threads that write side by side slow each other
  int64_t told = 0;
  for (int i = begin; i < end; i++) {
    int64_t before = tiles.size;
    if (splats[i].opacity > 0.f) {
      for_each_tile(splats[i], width, height, lists.num_tiles_x, [&](int t) { tiles.push(t); });
    }
    lists.slots_begin[i + 1] = (int32_t)(tiles.size - before);
    if (tiles.size - told >= COUNT_SLOTS || i == end - 1) {
      int64_t all = __atomic_add_fetch(total, tiles.size - told, __ATOMIC_RELAXED);
      told = tiles.size;
      if (all > MAX_SLOTS) break;
    }
  }
  result = tiles;
}

// False if the view has more than MAX_SLOTS (splat, tile) pairs, which is found out before there is
// memory for them.
static bool make_tile_lists(const Splat* splats, int n, int width, int height, int num_threads,
                            TileLists& lists) {
  lists.num_tiles_x = (width + TILE - 1) / TILE;
  lists.num_tiles = lists.num_tiles_x * ((height + TILE - 1) / TILE);
  lists.slots_begin.resize(n + 1);
  lists.tile_begin.resize(lists.num_tiles + 1);
  int num_chunks = (n + BIN_CHUNK - 1) / BIN_CHUNK;
  Array<List<int32_t>> chunk_tiles(num_chunks);
  chunk_tiles.zero();
  int64_t total = 0;
  parallel_for(num_threads, num_chunks, 1, [&](int begin, int end) {
    for (int chunk = begin; chunk < end; chunk++) {
      if (__atomic_load_n(&total, __ATOMIC_RELAXED) > MAX_SLOTS) return;
      int first = chunk * BIN_CHUNK, last = least(n, first + BIN_CHUNK);
      list_tiles(splats, first, last, width, height, &total, lists, chunk_tiles[chunk]);
    }
  });
  bool fits = total <= MAX_SLOTS;
  if (fits) {
    Array<int32_t> order(n);
    int num_visible = 0;
    lists.slots_begin[0] = 0;
    for (int i = 0; i < n; i++) {
      if (lists.slots_begin[i + 1] > 0) order[num_visible++] = i;
      lists.slots_begin[i + 1] += lists.slots_begin[i];
    }
    lists.entry_splat.resize(total);
    lists.entry_slot.resize(total);
    sort_by_depth(splats, num_visible, order.data);
    deal_slots(order, num_visible, chunk_tiles, num_threads, lists);
  }
  for (int c = 0; c < num_chunks; c++) chunk_tiles[c].release();
  return fits;
}

}  // namespace ul
