// SPDX-License-Identifier: GPL-3.0-or-later
// View-dependent colour from real spherical harmonics of degree 0 to 3, and its gradient.
//
//   colour = max(0, 1/2 + sum_k Y_k(d) sh_k),   d = (mean - camera centre) / its length
// Y_k and their signs are those of 3DGS.
#pragma once
#include "threads.h"
#include <math.h>

namespace ul {

constexpr int MAX_SH = 15;  // coefficients beyond the constant one, at degree 3
constexpr float SH0 = 0.28209479177387814f;
constexpr float SH1 = 0.4886025119029199f;
constexpr float SH2[5] = {1.0925484305920792f, -1.0925484305920792f, 0.31539156525252005f,
                          -1.0925484305920792f, 0.5462742152960396f};
constexpr float SH3[7] = {-0.5900435899266435f, 2.890611442640554f,  -0.4570457994644658f,
                          0.3731763325901154f,  -0.4570457994644658f, 1.445305721320277f,
                          -0.5900435899266435f};

struct Direction {
  float x, y, z, inverse_length;
};

static inline Direction view_direction(const float* mean, const float* camera_centre) {
  float x = mean[0] - camera_centre[0];
  float y = mean[1] - camera_centre[1];
  float z = mean[2] - camera_centre[2];
  float inverse = 1.f / greatest(sqrtf(x * x + y * y + z * z), 1e-12f);
  return {x * inverse, y * inverse, z * inverse, inverse};
}

// The first `num_coeffs` (0, 3, 8 or 15) of Y_1 ... Y_15.
static inline void sh_basis(const Direction& d, int num_coeffs, float* Y) {
  float x = d.x, y = d.y, z = d.z;
  if (num_coeffs < 3) return;
  Y[0] = -SH1 * y;
  Y[1] = SH1 * z;
  Y[2] = -SH1 * x;
  if (num_coeffs < 8) return;
  float xx = x * x, yy = y * y, zz = z * z;
  Y[3] = SH2[0] * x * y;
  Y[4] = SH2[1] * y * z;
  Y[5] = SH2[2] * (2 * zz - xx - yy);
  Y[6] = SH2[3] * x * z;
  Y[7] = SH2[4] * (xx - yy);
  if (num_coeffs < MAX_SH) return;
  Y[8] = SH3[0] * y * (3 * xx - yy);
  Y[9] = SH3[1] * x * y * z;
  Y[10] = SH3[2] * y * (4 * zz - xx - yy);
  Y[11] = SH3[3] * z * (2 * zz - 3 * xx - 3 * yy);
  Y[12] = SH3[4] * x * (4 * zz - xx - yy);
  Y[13] = SH3[5] * z * (xx - yy);
  Y[14] = SH3[6] * x * (xx - 3 * yy);
}

// sum_k w_k grad Y_k, the polynomials above taken as functions of all space.
static inline void sh_basis_gradient(const Direction& d, int num_coeffs, const float* w,
                                     float* v) {
  float x = d.x, y = d.y, z = d.z;
  v[0] = v[1] = v[2] = 0;
  if (num_coeffs < 3) return;
  v[0] = -SH1 * w[2];
  v[1] = -SH1 * w[0];
  v[2] = SH1 * w[1];
  if (num_coeffs < 8) return;
  float a = SH2[0] * w[3], b = SH2[1] * w[4], c = SH2[2] * w[5], e = SH2[3] * w[6];
  float f = SH2[4] * w[7];
  v[0] += a * y - 2 * c * x + e * z + 2 * f * x;
  v[1] += a * x + b * z - 2 * c * y - 2 * f * y;
  v[2] += b * y + 4 * c * z + e * x;
  if (num_coeffs < MAX_SH) return;
  float xx = x * x, yy = y * y, zz = z * z;
  float g[7];
  for (int k = 0; k < 7; k++) g[k] = SH3[k] * w[8 + k];
  v[0] += 6 * g[0] * x * y + g[1] * y * z - 2 * g[2] * x * y - 6 * g[3] * x * z;
  v[0] += g[4] * (4 * zz - 3 * xx - yy) + 2 * g[5] * x * z + 3 * g[6] * (xx - yy);
  v[1] += 3 * g[0] * (xx - yy) + g[1] * x * z + g[2] * (4 * zz - xx - 3 * yy);
  v[1] += -6 * g[3] * y * z - 2 * g[4] * x * y - 2 * g[5] * y * z - 6 * g[6] * x * y;
  v[2] += g[1] * x * y + 8 * g[2] * y * z + 3 * g[3] * (2 * zz - xx - yy);
  v[2] += 8 * g[4] * x * z + g[5] * (xx - yy);
}

static inline void camera_centre(const float* viewmat, float* centre) {
  for (int j = 0; j < 3; j++) {
    centre[j] = -(viewmat[j] * viewmat[3] + viewmat[4 + j] * viewmat[7] +
                  viewmat[8 + j] * viewmat[11]);
  }
}

// What is not finite stays so: the projection culls such a Gaussian.
INLINE float held_colour(float c) { return c < 0 && c > -INFINITY ? 0.f : c; }

// colors: n x 3.
static void shade_forward(int n, int num_coeffs, const float* viewmat, const float* means,
                          const float* sh0, const float* shN, int num_threads, float* colors) {
  float centre[3];
  camera_centre(viewmat, centre);
  parallel_for(num_threads, n, 4096, [&](int begin, int end) {
    for (int i = begin; i < end; i++) {
      float Y[MAX_SH];
      sh_basis(view_direction(means + 3 * i, centre), num_coeffs, Y);
      const float* base = sh0 + 3 * i;
      const float* sh = shN + (int64_t)3 * num_coeffs * i;
      float r = .5f + SH0 * base[0], g = .5f + SH0 * base[1], b = .5f + SH0 * base[2];
      for (int k = 0; k < num_coeffs; k++) {
        r += Y[k] * sh[3 * k];
        g += Y[k] * sh[3 * k + 1];
        b += Y[k] * sh[3 * k + 2];
      }
      colors[3 * i] = held_colour(r);
      colors[3 * i + 1] = held_colour(g);
      colors[3 * i + 2] = held_colour(b);
    }
  });
}

// The gradients of one Gaussian: v = d loss / d colour where the colour was not cut off at 0.
static inline void shade_backward_one(const Direction& d, int num_coeffs, const float* sh,
                                      const float* v, float* v_mean, float* v_sh) {
  float Y[MAX_SH], along_sh[MAX_SH], v_d[3];
  sh_basis(d, num_coeffs, Y);
  for (int k = 0; k < num_coeffs; k++) {
    const float* s = sh + 3 * k;
    along_sh[k] = v[0] * s[0] + v[1] * s[1] + v[2] * s[2];
    for (int c = 0; c < 3; c++) v_sh[3 * k + c] = Y[k] * v[c];
  }
  sh_basis_gradient(d, num_coeffs, along_sh, v_d);
  // d d / d mean = (I - d d') / length
  float radial = v_d[0] * d.x + v_d[1] * d.y + v_d[2] * d.z;
  v_mean[0] = (v_d[0] - radial * d.x) * d.inverse_length;
  v_mean[1] = (v_d[1] - radial * d.y) * d.inverse_length;
  v_mean[2] = (v_d[2] - radial * d.z) * d.inverse_length;
}

static void shade_backward(int n, int num_coeffs, const float* viewmat, const float* means,
                           const float* shN, const float* colors, const float* v_colors,
                           int num_threads, float* v_means, float* v_sh0, float* v_shN) {
  float centre[3];
  camera_centre(viewmat, centre);
  parallel_for(num_threads, n, 4096, [&](int begin, int end) {
    for (int i = begin; i < end; i++) {
      int64_t at = (int64_t)3 * num_coeffs * i;
      float v[3];
      for (int c = 0; c < 3; c++) {
        v[c] = colors[3 * i + c] > 0.f ? v_colors[3 * i + c] : 0.f;
        v_sh0[3 * i + c] = SH0 * v[c];
      }
      if (v[0] == 0.f && v[1] == 0.f && v[2] == 0.f) {
        for (int c = 0; c < 3; c++) v_means[3 * i + c] = 0;
        for (int k = 0; k < 3 * num_coeffs; k++) v_shN[at + k] = 0;
        continue;
      }
      Direction d = view_direction(means + 3 * i, centre);
      shade_backward_one(d, num_coeffs, shN + at, v, v_means + 3 * i, v_shN + at);
    }
  });
}

}  // namespace ul
