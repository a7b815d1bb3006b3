// SPDX-License-Identifier: GPL-3.0-or-later
// The blend weights of a view as a sparse matrix W (pixels x Gaussians), and products with it.
//
// Row-major; a row's entries stand front to back; a weight is a uint16, 65535 = 1.
#pragma once
#include "raster.h"

namespace ul {

constexpr float FIXED_POINT = 65535.f;

struct SparseWeights {
  const int64_t* row_begin;  // pixels + 1
  const int32_t* ids;
  const uint16_t* weights;
};

// Call f(pixel, splat, weight) for all weights of at least alpha_min. A pixel's come in order, and
// from one thread.
template <class F>
static void for_each_weight(const Frame& frame, F f) {
  struct Receiver {
    const Frame& frame;
    const Tile& tile;
    const F& f;
    int block;

    ALWAYS_INLINE void begin(int b) { block = b; }
    ALWAYS_INLINE void add(int entry, Float8 weights) {
      int id = frame.lists.entry_splat[entry];
      uint32_t lanes = sign_bits(weights >= splat(frame.constants.alpha_min));
      for (; lanes; lanes &= lanes - 1) {
        int lane = __builtin_ctz(lanes);
        int y = tile.y + y_of(block, lane), x = tile.x + x_of(block, lane);
        f((int64_t)y * frame.camera.width + x, id, weights[lane]);
      }
    }
    void end(int) {}
  };
  const Grid grid;
  parallel_for(frame.num_threads, frame.lists.num_tiles, 4, [&](int begin, int end) {
    for (int t = begin; t < end; t++) {
      Tile tile = get_tile(frame, t);
      TileState state;
      Receiver receiver = {frame, tile, f, 0};
      blend_tile(frame, grid, tile, nullptr, state, receiver);
    }
  });
}

// counts: entries of each pixel.
static void count_weights(const Frame& frame, int64_t* counts) {
  memset(counts, 0, sizeof(int64_t) * (size_t)frame.camera.width * (size_t)frame.camera.height);
  for_each_weight(frame, [&](int64_t pixel, int, float) { counts[pixel]++; });
}

static void fill_weights(const Frame& frame, const int64_t* row_begin, int32_t* ids,
                         uint16_t* weights) {
  int64_t num_pixels = (int64_t)frame.camera.width * frame.camera.height;
  Array<int64_t> place(num_pixels);
  memcpy(place.data, row_begin, sizeof(int64_t) * (size_t)num_pixels);
  for_each_weight(frame, [&](int64_t pixel, int id, float weight) {
    int64_t at = place[pixel]++;
    ids[at] = id;
    weights[at] = (uint16_t)(weight * FIXED_POINT + 0.5f);
  });
}

INLINE int64_t row_of(const int64_t* rows, int i) { return rows ? rows[i] : i; }

// out = (W values) in the K * LANES channels from `first` on, for one row.
template <int K>
INLINE void blend_row(const SparseWeights& W, int64_t row, const float* values, int num_channels,
                      int first, float* out) {
  Float8 s[K] = {};
  for (int64_t i = W.row_begin[row]; i < W.row_begin[row + 1]; i++) {
    const float* from = values + (int64_t)W.ids[i] * num_channels + first;
    Float8 w = splat((float)W.weights[i]);
    for (int k = 0; k < K; k++) s[k] += w * load(from + LANES * k);
  }
  for (int k = 0; k < K; k++) store(out + first + LANES * k, s[k] * splat(1.f / FIXED_POINT));
}

// out (num_rows x D) = the given rows of W times values; all rows where `rows` is null.
static void blend_values(const SparseWeights& W, int num_rows, const int64_t* rows,
                         int num_channels, const float* values, int num_threads, float* out) {
  const int D = num_channels;
  parallel_for(num_threads, num_rows, 512, [&](int begin, int end) {
    for (int r = begin; r < end; r++) {
      int64_t row = row_of(rows, r);
      float* to = out + (int64_t)r * D;
      int k = 0;
      for (; k + 2 * LANES <= D; k += 2 * LANES) blend_row<2>(W, row, values, D, k, to);
      for (; k + LANES <= D; k += LANES) blend_row<1>(W, row, values, D, k, to);
      for (; k < D; k++) {
        float sum = 0;
        for (int64_t i = W.row_begin[row]; i < W.row_begin[row + 1]; i++) {
          sum += (float)W.weights[i] * values[(int64_t)W.ids[i] * D + k];
        }
        to[k] = sum * (1.f / FIXED_POINT);
      }
    }
  });
}

// sums += W' v in the K * LANES channels from `first` on, for one row.
template <int K>
INLINE void scatter_row(const SparseWeights& W, int64_t row, const float* v_row, int num_channels,
                        int first, float* sums) {
  Float8 v[K];
  for (int k = 0; k < K; k++) v[k] = load(v_row + first + LANES * k) * splat(1.f / FIXED_POINT);
  for (int64_t i = W.row_begin[row]; i < W.row_begin[row + 1]; i++) {
    float* to = sums + (int64_t)W.ids[i] * num_channels + first;
    Float8 w = splat((float)W.weights[i]);
    for (int k = 0; k < K; k++) store(to + LANES * k, load(to + LANES * k) + w * v[k]);
  }
}

// sums (Gaussians x D) = W' v over the rows [begin, end).
INLINE void scatter_rows(const SparseWeights& W, int begin, int end, const int64_t* rows,
                         int num_channels, const float* v, int num_gaussians, float* sums) {
  const int D = num_channels;
  memset(sums, 0, sizeof(float) * (size_t)num_gaussians * (size_t)D);
  for (int r = begin; r < end; r++) {
    int64_t row = row_of(rows, r);
    const float* v_row = v + (int64_t)r * D;
    int k = 0;
    for (; k + 2 * LANES <= D; k += 2 * LANES) scatter_row<2>(W, row, v_row, D, k, sums);
    for (; k + LANES <= D; k += LANES) scatter_row<1>(W, row, v_row, D, k, sums);
    for (; k < D; k++) {
      float v_k = v_row[k] * (1.f / FIXED_POINT);
      for (int64_t i = W.row_begin[row]; i < W.row_begin[row + 1]; i++) {
        sums[(int64_t)W.ids[i] * D + k] += (float)W.weights[i] * v_k;
      }
    }
  }
}

// v_values (Gaussians x D) = W' v, the transpose of blend_values. The rows are cut into parts with
// sums of their own. How many depends on the matrix alone, so the result is the same for any number
// of threads.
static void blend_values_backward(const SparseWeights& W, int num_rows, const int64_t* rows,
                                  int num_channels, const float* v, int num_gaussians,
                                  int num_threads, float* v_values) {
  constexpr int MAX_PARTS = 4, WORTH_A_PART = 4;  // entries a Gaussian, or its sums cost too much
  const int64_t size = (int64_t)num_gaussians * num_channels;
  if (size == 0) return;
  int64_t num_entries = 0;
  for (int r = 0; r < num_rows; r++) {
    int64_t row = row_of(rows, r);
    num_entries += W.row_begin[row + 1] - W.row_begin[row];
  }
  int64_t worth = 1 + num_entries / ((int64_t)WORTH_A_PART * num_gaussians);
  const int num_parts = (int)least<int64_t>(worth, MAX_PARTS);
  Array<float> others(size * (num_parts - 1));
  parallel_for(num_threads, num_parts, 1, [&](int begin, int end) {
    for (int part = begin; part < end; part++) {
      float* sums = part == 0 ? v_values : others.data + size * (part - 1);
      scatter_rows(W, (int)((int64_t)num_rows * part / num_parts),
                   (int)((int64_t)num_rows * (part + 1) / num_parts), rows, num_channels, v,
                   num_gaussians, sums);
    }
  });
  parallel_for(num_threads, num_gaussians, 4096, [&](int begin, int end) {
    for (int part = 1; part < num_parts; part++) {
      const float* from = others.data + size * (part - 1);
      for (int64_t i = (int64_t)begin * num_channels; i < (int64_t)end * num_channels; i++) {
        v_values[i] += from[i];
      }
    }
  });
}

// Rows grouped by label, each label's in order.
struct LabelRows {
  Array<int64_t> begin;  // num_labels + 1
  Array<int32_t> rows;

  LabelRows(int num_rows, const int32_t* labels, int num_labels)
      : begin(num_labels + 1), rows(num_rows) {
    begin.zero();
    for (int r = 0; r < num_rows; r++) {
      if (labels[r] >= 0) begin[labels[r] + 1]++;
    }
    for (int label = 0; label < num_labels; label++) begin[label + 1] += begin[label];
    Array<int64_t> place(num_labels + 1);
    memcpy(place.data, begin.data, sizeof(int64_t) * (size_t)(num_labels + 1));
    for (int r = 0; r < num_rows; r++) {
      if (labels[r] >= 0) rows[place[labels[r]]++] = r;
    }
  }
};

// The Gaussians that a label has touched, as bits, and their sums.
struct MassAccumulator {
  Array<uint64_t> touched;
  Array<uint64_t> sums;

  explicit MassAccumulator(int num_gaussians)
      : touched((num_gaussians + 63) / 64), sums(num_gaussians) {
    touched.zero();
    sums.zero();
  }

  void add_label(const SparseWeights& W, const LabelRows& by_label, int label) {
    for (int64_t r = by_label.begin[label]; r < by_label.begin[label + 1]; r++) {
      int32_t row = by_label.rows[r];
      for (int64_t i = W.row_begin[row]; i < W.row_begin[row + 1]; i++) {
        touched[W.ids[i] / 64] |= (uint64_t)1 << (W.ids[i] % 64);
        sums[W.ids[i]] += W.weights[i];
      }
    }
  }

  // Call f(Gaussian, mass) in order and be empty again.
  template <class F>
  void take(F f) {
    for (int64_t word = 0; word < touched.size; word++) {
      for (uint64_t bits = touched[word]; bits; bits &= bits - 1) {
        int id = (int)(word * 64) + __builtin_ctzll(bits);
        f(id, (float)((double)sums[id] / FIXED_POINT));
        sums[id] = 0;
      }
      touched[word] = 0;
    }
  }
};

// The mass of each Gaussian in each label, sum of its weights over the label's pixels, as a sparse
// matrix (labels x Gaussians). With ids null only `counts`, the entries of each label, is set; else
// ids and masses are filled from label_begin on.
static void mask_mass(const SparseWeights& W, int num_rows, const int32_t* labels, int num_labels,
                      int num_gaussians, int num_threads, int64_t* counts,
                      const int64_t* label_begin, int32_t* ids, float* masses) {
  LabelRows by_label(num_rows, labels, num_labels);
  int grain = 1 + num_labels / (8 * greatest(num_threads, 1));  // accumulators are not free
  parallel_for(num_threads, num_labels, grain, [&](int begin, int end) {
    MassAccumulator mass(num_gaussians);
    for (int label = begin; label < end; label++) {
      mass.add_label(W, by_label, label);
      int64_t at = ids ? label_begin[label] : 0;
      int64_t count = 0;
      mass.take([&](int id, float value) {
        if (ids) {
          ids[at + count] = id;
          masses[at + count] = value;
        }
        count++;
      });
      counts[label] = count;
    }
  });
}

}  // namespace ul
