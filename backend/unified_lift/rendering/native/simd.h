// SPDX-License-Identifier: GPL-3.0-or-later
// Eight floats or integers at a time, as GCC/Clang vector types: AVX2, two NEON or two SSE vectors.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define INLINE static ALWAYS_INLINE

namespace ul {

constexpr int LANES = 8;
constexpr float LOG2E = 1.44269504088896f;

// may_alias: arrays of floats are read as vectors and vectors lane by lane.
typedef float Float8 __attribute__((vector_size(32), may_alias));
// A comparison gives an Int8 mask: -1 where it holds, 0 elsewhere.
typedef int32_t Int8 __attribute__((vector_size(32), may_alias));
typedef uint32_t Bits8 __attribute__((vector_size(32), may_alias));

INLINE Float8 splat(float x) { return Float8{x, x, x, x, x, x, x, x}; }
INLINE Int8 splat_int(int32_t x) { return Int8{x, x, x, x, x, x, x, x}; }

INLINE Float8 load(const float* p) {
  Float8 r;
  memcpy(&r, p, sizeof(r));
  return r;
}
INLINE void store(float* p, Float8 a) { memcpy(p, &a, sizeof(a)); }

INLINE Float8 select(Int8 mask, Float8 a, Float8 b) { return mask ? a : b; }
INLINE Float8 keep(Float8 a, Int8 mask) { return (Float8)((Int8)a & mask); }  // 0 elsewhere

#if defined(__AVX__)
INLINE Float8 minimum(Float8 a, Float8 b) { return (Float8)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE Float8 maximum(Float8 a, Float8 b) { return (Float8)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE Float8 square_root(Float8 a) { return (Float8)_mm256_sqrt_ps((__m256)a); }

// One bit a lane: its sign.
INLINE uint32_t sign_bits(Int8 a) { return (uint32_t)_mm256_movemask_ps((__m256)a); }

// A vector of the sums of eight vectors.
INLINE Float8 sums_of_8(const Float8* a) {
  __m256 s0 = _mm256_hadd_ps((__m256)a[0], (__m256)a[1]);
  __m256 s1 = _mm256_hadd_ps((__m256)a[2], (__m256)a[3]);
  __m256 s2 = _mm256_hadd_ps((__m256)a[4], (__m256)a[5]);
  __m256 s3 = _mm256_hadd_ps((__m256)a[6], (__m256)a[7]);
  __m256 t0 = _mm256_hadd_ps(s0, s1);
  __m256 t1 = _mm256_hadd_ps(s2, s3);
  __m256 low = _mm256_permute2f128_ps(t0, t1, 0x20);
  __m256 high = _mm256_permute2f128_ps(t0, t1, 0x31);
  return (Float8)_mm256_add_ps(low, high);
}
#else
INLINE Float8 minimum(Float8 a, Float8 b) { return select(a < b, a, b); }
INLINE Float8 maximum(Float8 a, Float8 b) { return select(a > b, a, b); }

INLINE Float8 square_root(Float8 a) {
  Float8 r;
  for (int i = 0; i < LANES; i++) r[i] = sqrtf(a[i]);
  return r;
}

INLINE uint32_t sign_bits(Int8 a) {
  Int8 bits = (a < splat_int(0)) & Int8{1, 2, 4, 8, 16, 32, 64, 128};
  int32_t r = 0;
  for (int i = 0; i < LANES; i++) r |= bits[i];
  return (uint32_t)r;
}

INLINE Float8 sums_of_8(const Float8* a) {
  Float8 r;
  for (int i = 0; i < LANES; i++) {
    Float8 v = a[i];
    r[i] = ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
  }
  return r;
}
#endif

INLINE Int8 is_finite(Float8 a) { return a - a == splat(0.f); }

// 2^x for |x| <= 126 with a relative error of 2e-7; any number for other x. x is split into an
// integer n and f in [-.5, .5]: adding 1.5 * 2^23 leaves n in the low bits of the sum; 2^f is a
// minimax polynomial of degree 5; n goes into the exponent.
INLINE Float8 exp2(Float8 x) {
  const Float8 shift = splat(12582912.f);
  Float8 n = x + shift;
  Float8 f = x - (n - shift);
  Float8 f2 = f * f;
  Float8 low = splat(6.93147182e-1f) * f + splat(1.f);
  Float8 middle = splat(5.5503324e-2f) * f + splat(2.40226462e-1f);
  Float8 high = splat(1.33952e-3f) * f + splat(9.61817e-3f);
  Float8 p = (high * f2 + middle) * f2 + low;
  return (Float8)((Bits8)p + ((Bits8)n << 23));
}

// e^x, held in the range of finite floats; NaN gives a finite value, too.
INLINE Float8 exponential(Float8 x) {
  return exp2(minimum(maximum(x * LOG2E, splat(-125.f)), splat(125.f)));
}

// Read `count` <= 8 records of K floats into K vectors, one record a lane; the other lanes repeat
// the first record.
template <int K>
INLINE void load_records(const float* p, int count, Float8* out) {
  alignas(32) float lanes[K][LANES];
  for (int i = 0; i < LANES; i++) {
    const float* record = p + K * (i < count ? i : 0);
    for (int k = 0; k < K; k++) lanes[k][i] = record[k];
  }
  memcpy(out, lanes, sizeof(lanes));
}

template <int K>
INLINE void store_records(float* p, int count, const Float8* values) {
  alignas(32) float lanes[K][LANES];
  memcpy(lanes, values, sizeof(lanes));
  for (int i = 0; i < count; i++) {
    for (int k = 0; k < K; k++) p[K * i + k] = lanes[k][i];
  }
}

}  // namespace ul
