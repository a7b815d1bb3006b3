// SPDX-License-Identifier: GPL-3.0-or-later
// (1 - w) L1 + w (1 - SSIM) of two images, with its gradient.
//
// SSIM has an 11 x 11 Gaussian window, sigma 1.5, and is averaged over the places where the window
// fits into the image. With m the blurred images and s the blurred products less m's products:
//   S = A B / (C D),  A = 2 m_x m_y + C1,          B = 2 s_xy + C2,
//                     C = m_x^2 + m_y^2 + C1,      D = s_xx + s_yy + C2
// A row is handled as one array of width * channels floats: neighbours are `channels` apart, and
// the channels never meet.
#pragma once
#include "threads.h"
#include <math.h>

namespace ul {

constexpr int WINDOW = 11;
constexpr float WINDOW_WEIGHTS[WINDOW] = {0.00102838f, 0.00759876f, 0.03600077f, 0.10936069f,
                                          0.21300554f, 0.26601172f, 0.21300554f, 0.10936069f,
                                          0.03600077f, 0.00759876f, 0.00102838f};
constexpr float SSIM_C1 = 1e-4f, SSIM_C2 = 9e-4f;  // (.01)^2 and (.03)^2, images in [0, 1]
constexpr int NUM_BLURRED = 5;                     // x, y, x x, y y, x y
constexpr int NUM_DERIVATIVES = 3;                 // of S by the blurred x, x x and x y

// out[i] = sum_k weight_k in[i + k * step]
static inline void blur_row(const float* __restrict in, int size, int step, float* __restrict out) {
  for (int i = 0; i < size; i++) {
    float sum = 0;
    for (int k = 0; k < WINDOW; k++) sum += WINDOW_WEIGHTS[k] * in[i + k * step];
    out[i] = sum;
  }
}

// The transpose: out[i + k * step] += weight_k in[i]
static inline void spread_row(const float* __restrict in, int size, int step,
                              float* __restrict out) {
  for (int k = 0; k < WINDOW; k++) {
    float* to = out + k * step;
    for (int i = 0; i < size; i++) to[i] += WINDOW_WEIGHTS[k] * in[i];
  }
}

static inline void add_scaled(const float* __restrict in, int size, float scale,
                              float* __restrict out) {
  for (int i = 0; i < size; i++) out[i] += scale * in[i];
}

// SSIM of one row of windows, summed; `b` holds the NUM_BLURRED rows, `d` gets the derivatives.
static inline float ssim_row(const float* __restrict b, int size, float* __restrict d) {
  float total = 0;
  for (int i = 0; i < size; i++) {
    float mx = b[i], my = b[size + i];
    float sxx = b[2 * size + i] - mx * mx;
    float syy = b[3 * size + i] - my * my;
    float sxy = b[4 * size + i] - mx * my;
    float A = 2 * mx * my + SSIM_C1, B = 2 * sxy + SSIM_C2;
    float inverse_C = 1.f / (mx * mx + my * my + SSIM_C1);
    float inverse_D = 1.f / (sxx + syy + SSIM_C2);
    float S = A * B * inverse_C * inverse_D;
    float by_xx = -S * inverse_D;
    float by_xy = 2 * A * inverse_C * inverse_D;
    float by_x = 2 * my * B * inverse_C * inverse_D - 2 * mx * S * inverse_C;
    d[i] = by_x - 2 * mx * by_xx - my * by_xy;
    d[size + i] = by_xx;
    d[2 * size + i] = by_xy;
    total += S;
  }
  return total;
}

// Images are height x width x channels. Where the window does not fit, the loss is L1 alone.
static double photometric_loss(int height, int width, int channels, const float* image,
                               const float* target, float ssim_weight, int num_threads,
                               float* v_image) {
  const int row = width * channels, valid_height = height - WINDOW + 1;
  const int valid_row = (width - WINDOW + 1) * channels;
  const bool with_ssim = ssim_weight > 0 && valid_height > 0 && valid_row > 0;
  const double w = with_ssim ? ssim_weight : 0.;
  const float l1_slope = (float)((1. - w) / ((double)height * row));
  const float ssim_slope = with_ssim ? (float)(-w / ((double)valid_height * valid_row)) : 0.f;
  const int blurred_size = NUM_BLURRED * valid_row, derivative_size = NUM_DERIVATIVES * valid_row;
  Array<float> blurred(with_ssim ? (int64_t)height * blurred_size : 0);
  Array<float> derivatives(with_ssim ? (int64_t)valid_height * derivative_size : 0);
  Array<double> l1_sums(height), ssim_sums(height);
  l1_sums.zero();
  ssim_sums.zero();

  parallel_for(num_threads, height, 8, [&](int begin, int end) {
    Array<float> product(row);
    for (int r = begin; r < end; r++) {
      const float* x = image + (int64_t)r * row;
      const float* y = target + (int64_t)r * row;
      float* v = v_image + (int64_t)r * row;
      float sum = 0;
      for (int i = 0; i < row; i++) {
        float difference = x[i] - y[i];
        sum += fabsf(difference);
        v[i] = difference > 0 ? l1_slope : difference < 0 ? -l1_slope : 0.f;
      }
      l1_sums[r] = sum;
      if (!with_ssim) continue;
      float* to = &blurred[(int64_t)r * blurred_size];
      const float* pairs[3][2] = {{x, x}, {y, y}, {x, y}};
      blur_row(x, valid_row, channels, to);
      blur_row(y, valid_row, channels, to + valid_row);
      for (int p = 0; p < 3; p++) {
        for (int i = 0; i < row; i++) product[i] = pairs[p][0][i] * pairs[p][1][i];
        blur_row(product.data, valid_row, channels, to + (2 + p) * valid_row);
      }
    }
  });
  if (with_ssim) {
    parallel_for(num_threads, valid_height, 8, [&](int begin, int end) {
      Array<float> sums(blurred_size);
      for (int r = begin; r < end; r++) {
        sums.zero();
        for (int k = 0; k < WINDOW; k++) {
          const float* from = &blurred[(int64_t)(r + k) * blurred_size];
          add_scaled(from, blurred_size, WINDOW_WEIGHTS[k], sums.data);
        }
        ssim_sums[r] = ssim_row(sums.data, valid_row, &derivatives[(int64_t)r * derivative_size]);
      }
    });
    parallel_for(num_threads, height, 8, [&](int begin, int end) {
      Array<float> sums(derivative_size), spread(NUM_DERIVATIVES * row);
      for (int r = begin; r < end; r++) {
        sums.zero();
        spread.zero();
        for (int k = 0; k < WINDOW; k++) {
          if (r - k < 0 || r - k >= valid_height) continue;
          const float* from = &derivatives[(int64_t)(r - k) * derivative_size];
          add_scaled(from, derivative_size, WINDOW_WEIGHTS[k], sums.data);
        }
        for (int d = 0; d < NUM_DERIVATIVES; d++) {
          spread_row(sums.data + d * valid_row, valid_row, channels, spread.data + d * row);
        }
        const float* x = image + (int64_t)r * row;
        const float* y = target + (int64_t)r * row;
        float* v = v_image + (int64_t)r * row;
        const float *by_x = spread.data, *by_xx = by_x + row, *by_xy = by_xx + row;
        for (int i = 0; i < row; i++) {
          v[i] += ssim_slope * (by_x[i] + 2 * x[i] * by_xx[i] + y[i] * by_xy[i]);
        }
      }
    });
  }
  double l1 = 0, ssim = 0;
  for (int r = 0; r < height; r++) {
    l1 += l1_sums[r];
    ssim += ssim_sums[r];
  }
  double loss = (1. - w) * l1 / ((double)height * row);
  return with_ssim ? loss + w * (1. - ssim / ((double)valid_height * valid_row)) : loss;
}

}  // namespace ul
