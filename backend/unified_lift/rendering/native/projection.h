// SPDX-License-Identifier: GPL-3.0-or-later
// Gaussians in space to ellipses in the image (EWA splatting), and the gradient of that.
//
// With W, t the rotation and translation of the camera, M the rotation of the Gaussian, S its
// scales, p = W mean + t = (x, y, z) and J the Jacobian of the perspective projection at p:
//   mean2d = (fx x/z + cx, fy y/z + cy)         A = J W,  B = A M,  T = B S      (2 x 3 each)
//   cov2d  = T T' + eps2d I                     conic = cov2d^-1
//   alpha(pixel) = opacity exp(-sigma),         sigma = d' conic d / 2,  d = pixel - mean2d
// As in 3DGS, x/z and y/z are held near the image when J is taken.
#pragma once
#include "simd.h"
#include "threads.h"

namespace ul {

// Rules of compositing, given by the caller so that all engines share them.
struct Constants {
  float alpha_min;          // what is fainter does not count
  float alpha_max;          // alpha is held at this
  float transmittance_min;  // a pixel ends before its transmittance would fall to this
  float eps2d;              // added to cov2d: a pixel's own blur
  float near_plane;
};

struct Camera {
  float R[9], t[3], fx, fy, cx, cy;
  int width, height;
  // Limits of x/z and y/z for J: 30 % of half a field of view beyond the image's edges.
  float x_low, x_high, y_low, y_high;
};

static inline Camera make_camera(const float* viewmat, const float* K, int width, int height) {
  constexpr float MARGIN = 0.15f;
  Camera c;
  for (int i = 0; i < 3; i++) {
    for (int j = 0; j < 3; j++) c.R[3 * i + j] = viewmat[4 * i + j];
    c.t[i] = viewmat[4 * i + 3];
  }
  c.fx = K[0];
  c.fy = K[4];
  c.cx = K[2];
  c.cy = K[5];
  c.width = width;
  c.height = height;
  c.x_low = -(c.cx + MARGIN * (float)width) / c.fx;
  c.x_high = ((float)width - c.cx + MARGIN * (float)width) / c.fx;
  c.y_low = -(c.cy + MARGIN * (float)height) / c.fy;
  c.y_high = ((float)height - c.cy + MARGIN * (float)height) / c.fy;
  return c;
}

// A projected Gaussian: one cache line.
struct Splat {
  float x, y;          // mean2d, pixels
  // alpha = 2^(log2_opacity - u^2 - v^2) with u = across dx + skew dy, v = along dy. Other than the
  // three terms of the conic both squares lower it: nothing cancels where a Gaussian is a needle.
  float across, skew, along;
  float log2_opacity;
  // The ellipse {alpha >= alpha_min}: dy from the mean it reaches over
  // dx = slope dy +- sqrt(row_constant - row_curve dy^2).
  float slope, row_constant, row_curve;
  float half_width, half_height;  // of its bounding box
  float right_dy;                 // dy of its rightmost point; its leftmost is at -right_dy
  float depth;
  float opacity;  // 0 = culled
  float unused[2];
};
constexpr int SPLAT_FLOATS = 16;
static_assert(sizeof(Splat) == sizeof(float) * SPLAT_FLOATS, "a Splat is a cache line");

// Sums over the pixels of a Gaussian with g = -d loss / d sigma and the u and v of its Splat:
// g u, g v, g u^2, g u v, g v^2, g. All gradients of its geometry follow from them.
constexpr int NUM_MOMENTS = 6;

// Eight Gaussians on their way through the projection.
struct Projection {
  Float8 x, y, z;                // p
  Float8 x_ratio, y_ratio;       // x/z, y/z as held for J
  Int8 x_held, y_held;           // where they were changed
  Float8 A[6], T[6];             // row by row
  Float8 M[9];
  Float8 q[4], q_inverse;        // unit quaternion, 1 / length
  Float8 scales[3];
  Float8 cov_xx, cov_xy, cov_yy;
  Float8 normal[3];              // T's first row x its second row
  Float8 det;                    // of cov2d
};

INLINE void rotate(const Float8* quat, Projection& o) {
  Float8 w = quat[0], x = quat[1], y = quat[2], z = quat[3];
  o.q_inverse = 1.f / square_root(maximum(w * w + x * x + y * y + z * z, splat(1e-24f)));
  w *= o.q_inverse;
  x *= o.q_inverse;
  y *= o.q_inverse;
  z *= o.q_inverse;
  o.q[0] = w;
  o.q[1] = x;
  o.q[2] = y;
  o.q[3] = z;
  o.M[0] = 1 - 2 * (y * y + z * z);
  o.M[1] = 2 * (x * y - w * z);
  o.M[2] = 2 * (x * z + w * y);
  o.M[3] = 2 * (x * y + w * z);
  o.M[4] = 1 - 2 * (x * x + z * z);
  o.M[5] = 2 * (y * z - w * x);
  o.M[6] = 2 * (x * z - w * y);
  o.M[7] = 2 * (y * z + w * x);
  o.M[8] = 1 - 2 * (x * x + y * y);
}

INLINE Float8 camera_axis(const Camera& c, int axis, const Float8* mean) {
  const float* R = c.R + 3 * axis;
  return R[0] * mean[0] + R[1] * mean[1] + R[2] * mean[2] + c.t[axis];
}

INLINE void project(const Camera& c, float eps2d, const Float8* mean, const Float8* quat,
                    const Float8* log_scales, Projection& o) {
  o.x = camera_axis(c, 0, mean);
  o.y = camera_axis(c, 1, mean);
  o.z = camera_axis(c, 2, mean);
  Float8 iz = 1.f / o.z;
  Float8 rx = o.x * iz, ry = o.y * iz;
  o.x_held = (rx < c.x_low) | (rx > c.x_high);
  o.y_held = (ry < c.y_low) | (ry > c.y_high);
  o.x_ratio = minimum(maximum(rx, splat(c.x_low)), splat(c.x_high));
  o.y_ratio = minimum(maximum(ry, splat(c.y_low)), splat(c.y_high));
  Float8 J00 = c.fx * iz, J02 = -c.fx * o.x_ratio * iz;
  Float8 J11 = c.fy * iz, J12 = -c.fy * o.y_ratio * iz;
  for (int j = 0; j < 3; j++) {
    o.A[j] = J00 * c.R[j] + J02 * c.R[6 + j];
    o.A[3 + j] = J11 * c.R[3 + j] + J12 * c.R[6 + j];
    o.scales[j] = exponential(log_scales[j]);
  }
  rotate(quat, o);
  for (int i = 0; i < 6; i += 3) {
    for (int j = 0; j < 3; j++) {
      Float8 B = o.A[i] * o.M[j] + o.A[i + 1] * o.M[3 + j] + o.A[i + 2] * o.M[6 + j];
      o.T[i + j] = B * o.scales[j];
    }
  }
  const Float8* T = o.T;
  Float8 xx = T[0] * T[0] + T[1] * T[1] + T[2] * T[2];
  Float8 yy = T[3] * T[3] + T[4] * T[4] + T[5] * T[5];
  o.cov_xy = T[0] * T[3] + T[1] * T[4] + T[2] * T[5];
  o.cov_xx = xx + eps2d;
  o.cov_yy = yy + eps2d;
  // det(T T') is the squared cross product of T's rows. So the determinant is a sum of positive
  // terms, while xx yy - xy^2 would lose all digits where a Gaussian is a long needle.
  Float8* n = o.normal;
  n[0] = T[1] * T[5] - T[2] * T[4];
  n[1] = T[2] * T[3] - T[0] * T[5];
  n[2] = T[0] * T[4] - T[1] * T[3];
  o.det = n[0] * n[0] + n[1] * n[1] + n[2] * n[2] + eps2d * (xx + yy) + eps2d * eps2d;
}

INLINE Int8 finite_records(const float* values, int num_values, int count) {
  Int8 finite = {};
  for (int i = 0; i < count; i++) {
    float sum = 0;  // stays 0 unless a value is infinite or NaN
    for (int k = 0; k < num_values; k++) sum += values[i * num_values + k] * 0.f;
    finite[i] = sum == 0.f ? -1 : 0;
  }
  return finite;
}

INLINE Float8 log2_of(Float8 a, Int8 where) {
  Float8 r = {};
  for (int i = 0; i < LANES; i++) {
    if (where[i]) r[i] = log2f(a[i]);
  }
  return r;
}

// L of (u, v) = L d, with conic = KAPPA L' L and no number below its diagonal.
constexpr float KAPPA = 2.f / LOG2E;
struct Root {
  Float8 across, skew, along;
};

INLINE Root root_of_conic(const Projection& o) {
  Float8 inverse_yy = 1.f / o.cov_yy;
  Root L;
  L.across = square_root(o.cov_yy / (KAPPA * o.det));
  L.skew = -L.across * o.cov_xy * inverse_yy;
  L.along = square_root(inverse_yy / KAPPA);
  return L;
}

// Turn the projections into splats; those that `visible` leaves out become zeros.
INLINE void make_splats(const Camera& c, const Constants& constants, const Projection& o,
                        Float8 opacity, Int8 visible, int count, Splat* splats) {
  // The box and the blocks are rounded outwards by this share of sigma's range: what is at their
  // edge is decided by alpha itself, pixel by pixel.
  constexpr float SLACK = 1e-4f;
  const Float8 zero = splat(0.f);
  Float8 log2_opacity = log2_of(opacity, visible);
  Float8 log2_least = log2f(constants.alpha_min) - log2_opacity;
  Float8 range = maximum(zero, -KAPPA * log2_least) + SLACK;  // 2 sigma at alpha_min
  Float8 half_width = square_root(range * o.cov_xx);
  Float8 half_height = square_root(range * o.cov_yy);
  Float8 x = c.fx * o.x / o.z + c.cx;
  Float8 y = c.fy * o.y / o.z + c.cy;
  visible &= (x + half_width > zero) & (x - half_width < splat((float)c.width));
  visible &= (y + half_height > zero) & (y - half_height < splat((float)c.height));
  Float8 inverse_yy = 1.f / o.cov_yy;
  Root L = root_of_conic(o);
  Float8 fields[SPLAT_FLOATS] = {
      x,
      y,
      L.across,
      L.skew,
      L.along,
      log2_opacity,
      o.cov_xy * inverse_yy,
      range * o.det * inverse_yy,
      o.det * inverse_yy * inverse_yy,
      half_width,
      half_height,
      half_width * o.cov_xy / o.cov_xx,
      o.z,
      opacity,
      zero,
      zero,
  };
  for (Float8& field : fields) field = keep(field, visible);
  store_records<SPLAT_FLOATS>((float*)splats, count, fields);
}

// Raw parameters to splats. A Gaussian is culled if it lies before the near plane, is too faint or
// outside the image, or has a parameter or channel that is not finite.
static void project_forward(const Camera& c, const Constants& constants, int n, const float* means,
                            const float* quats, const float* scales, const float* opacities,
                            int num_channels, const float* channels, int num_threads,
                            Splat* splats) {
  parallel_for(num_threads, n, 4096, [&](int begin, int end) {
    for (int i = begin; i < end; i += LANES) {
      int count = least(LANES, end - i);
      Float8 mean[3], quat[4], log_scales[3], logit[1];
      load_records<3>(means + 3 * i, count, mean);
      load_records<4>(quats + 4 * i, count, quat);
      load_records<3>(scales + 3 * i, count, log_scales);
      load_records<1>(opacities + i, count, logit);
      Float8 opacity = 1.f / (1.f + exponential(-logit[0]));
      Projection o;
      project(c, constants.eps2d, mean, quat, log_scales, o);
      Float8 all = mean[0] + mean[1] + mean[2] + quat[0] + quat[1] + quat[2] + quat[3];
      all += log_scales[0] + log_scales[1] + log_scales[2] + logit[0];
      Int8 visible = (o.z > splat(constants.near_plane)) & (opacity >= splat(constants.alpha_min));
      visible &= is_finite(all) & is_finite(o.det);
      visible &= finite_records(channels + (int64_t)i * num_channels, num_channels, count);
      make_splats(c, constants, o, opacity, visible, count, splats + i);
    }
  });
}

// Gradients of mean2d, the log scales and B. With G = (g u^2, g u v; g u v, g v^2) and W = L T,
// d loss / d T = KAPPA^2 L' G W. The first row of W is taken from T's cross product n, since the
// terms of the plain product cancel where a Gaussian is a needle:
// det (conic T)_0 = eps2d T_0 + T_1 x n, and that is KAPPA det across W_0.
INLINE void shape_gradient(const Projection& o, float eps2d, const Float8* moments,
                           Float8* v_mean2d, Float8* v_scales, Float8* vB) {
  const Float8 *T = o.T, *n = o.normal;
  Root L = root_of_conic(o);
  v_mean2d[0] = KAPPA * L.across * moments[0];
  v_mean2d[1] = KAPPA * (L.skew * moments[0] + L.along * moments[1]);
  Float8 inverse = 1.f / (KAPPA * o.det * L.across);
  Float8 guu = moments[2], guv = moments[3], gvv = moments[4];
  for (int j = 0; j < 3; j++) {
    int k = (j + 1) % 3, l = (j + 2) % 3;
    Float8 W0 = (eps2d * T[j] + T[3 + k] * n[l] - T[3 + l] * n[k]) * inverse;
    Float8 W1 = L.along * T[3 + j];
    Float8 vW0 = KAPPA * KAPPA * (guu * W0 + guv * W1);
    Float8 vW1 = KAPPA * KAPPA * (guv * W0 + gvv * W1);
    v_scales[j] = W0 * vW0 + W1 * vW1;  // d T / d log scale = T
    vB[j] = L.across * vW0 * o.scales[j];
    vB[3 + j] = (L.skew * vW0 + L.along * vW1) * o.scales[j];
  }
}

// d loss / d quat from d loss / d M, through the normalisation.
INLINE void quat_gradient(const Projection& o, const Float8* vM, Float8* v_quat) {
  Float8 w = o.q[0], x = o.q[1], y = o.q[2], z = o.q[3];
  Float8 g[4];
  g[0] = x * (vM[7] - vM[5]) + y * (vM[2] - vM[6]) + z * (vM[3] - vM[1]);
  g[1] = -2 * x * (vM[4] + vM[8]) + y * (vM[1] + vM[3]) + z * (vM[2] + vM[6]);
  g[1] += w * (vM[7] - vM[5]);
  g[2] = x * (vM[1] + vM[3]) - 2 * y * (vM[0] + vM[8]) + z * (vM[5] + vM[7]);
  g[2] += w * (vM[2] - vM[6]);
  g[3] = x * (vM[2] + vM[6]) + y * (vM[5] + vM[7]) - 2 * z * (vM[0] + vM[4]);
  g[3] += w * (vM[3] - vM[1]);
  Float8 along = g[0] * w + g[1] * x + g[2] * y + g[3] * z;
  for (int k = 0; k < 4; k++) v_quat[k] = 2 * (g[k] - along * o.q[k]) * o.q_inverse;
}

// d loss / d mean from those of mean2d and of A = J W.
INLINE void mean_gradient(const Camera& c, const Projection& o, const Float8* v_mean2d,
                          const Float8* vA, Float8* v_mean) {
  const float* R = c.R;
  Float8 iz = 1.f / o.z, iz2 = iz * iz;
  Float8 vJ00 = vA[0] * R[0] + vA[1] * R[1] + vA[2] * R[2];
  Float8 vJ02 = vA[0] * R[6] + vA[1] * R[7] + vA[2] * R[8];
  Float8 vJ11 = vA[3] * R[3] + vA[4] * R[4] + vA[5] * R[5];
  Float8 vJ12 = vA[3] * R[6] + vA[4] * R[7] + vA[5] * R[8];
  const Float8 zero = splat(0.f), one = splat(1.f), two = splat(2.f);
  // J02 = -fx ratio / z: the ratio x/z depends on p only where it was not held.
  Float8 vx = c.fx * iz * v_mean2d[0] - select(o.x_held, zero, c.fx * iz2 * vJ02);
  Float8 vy = c.fy * iz * v_mean2d[1] - select(o.y_held, zero, c.fy * iz2 * vJ12);
  Float8 vz = -iz2 * (c.fx * vJ00 + c.fy * vJ11);
  vz += select(o.x_held, one, two) * c.fx * o.x_ratio * iz2 * vJ02;
  vz += select(o.y_held, one, two) * c.fy * o.y_ratio * iz2 * vJ12;
  vz -= (c.fx * o.x * v_mean2d[0] + c.fy * o.y * v_mean2d[1]) * iz2;
  for (int j = 0; j < 3; j++) v_mean[j] = R[j] * vx + R[3 + j] * vy + R[6 + j] * vz;
}

struct GeometryGradients {
  float *means, *quats, *scales, *opacities;  // of the raw parameters
  float* means2d;                             // may be null
};

// Gradients of the raw parameters from the moments of each Gaussian (n x NUM_MOMENTS).
static void project_backward(const Camera& c, const Constants& constants, int n,
                             const float* means, const float* quats, const float* scales,
                             const Splat* splats, const float* moments, int num_threads,
                             const GeometryGradients& out) {
  parallel_for(num_threads, n, 4096, [&](int begin, int end) {
    for (int i = begin; i < end; i += LANES) {
      int count = least(LANES, end - i);
      Float8 mean[3], quat[4], log_scales[3], g[NUM_MOMENTS], opacity = {};
      for (int l = 0; l < count; l++) opacity[l] = splats[i + l].opacity;
      Int8 visible = opacity > splat(0.f);
      load_records<3>(means + 3 * i, count, mean);
      load_records<4>(quats + 4 * i, count, quat);
      load_records<3>(scales + 3 * i, count, log_scales);
      load_records<NUM_MOMENTS>(moments + NUM_MOMENTS * i, count, g);
      Projection o;
      project(c, constants.eps2d, mean, quat, log_scales, o);

      Float8 vM[9], vA[6], vB[6];
      Float8 v_mean[3], v_quat[4], v_scales[3], v_opacity[1], v_mean2d[2];
      v_opacity[0] = g[5] * (1.f - opacity);  // d ln(alpha) / d logit = 1 - opacity
      shape_gradient(o, constants.eps2d, g, v_mean2d, v_scales, vB);
      for (int r = 0; r < 3; r++) {
        for (int j = 0; j < 3; j++) vM[3 * r + j] = o.A[r] * vB[j] + o.A[3 + r] * vB[3 + j];
      }
      for (int r = 0; r < 6; r += 3) {
        for (int j = 0; j < 3; j++) {
          const Float8* M = o.M + 3 * j;
          vA[r + j] = vB[r] * M[0] + vB[r + 1] * M[1] + vB[r + 2] * M[2];
        }
      }
      quat_gradient(o, vM, v_quat);
      mean_gradient(c, o, v_mean2d, vA, v_mean);

      // No step at all is better than one that ends in NaN, where a Gaussian is beyond float32.
      Float8 all = v_mean[0] + v_mean[1] + v_mean[2] + v_opacity[0];
      for (Float8 v : v_quat) all += v;
      for (Float8 v : v_scales) all += v;
      visible &= is_finite(all);
      for (Float8& v : v_mean) v = keep(v, visible);
      for (Float8& v : v_quat) v = keep(v, visible);
      for (Float8& v : v_scales) v = keep(v, visible);
      for (Float8& v : v_mean2d) v = keep(v, visible);
      v_opacity[0] = keep(v_opacity[0], visible);
      store_records<3>(out.means + 3 * i, count, v_mean);
      store_records<4>(out.quats + 4 * i, count, v_quat);
      store_records<3>(out.scales + 3 * i, count, v_scales);
      store_records<1>(out.opacities + i, count, v_opacity);
      if (out.means2d) store_records<2>(out.means2d + 2 * i, count, v_mean2d);
    }
  });
}

}  // namespace ul
