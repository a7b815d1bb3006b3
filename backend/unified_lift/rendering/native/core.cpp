// Prototype CPU 3DGS rasterizer: plain C ABI, no Python/torch/OpenMP dependency.
// GCC/Clang vector extensions (8 x f32): AVX2 on x86-64-v3, 2 x NEON on arm64.
// Tiles of TS x TS pixels (TS = 8 or 16), SoA in tile, SIMD over 8 pixels of a row.
#include <stdint.h>
#include <string.h>
#include <math.h>
#include <stdlib.h>
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <pthread.h>
#endif
// No C++ standard library: trivially cross-compiled (zig cc) and ABI-free.
template <class T> static inline T mn(T a, T b) { return b < a ? b : a; }
template <class T> static inline T mx_(T a, T b) { return a < b ? b : a; }
template <class T> struct Vec { // 64-byte aligned scratch array
  T* p; void* raw; int64_t n;
  explicit Vec(int64_t n_ = 0) : p(0), raw(0), n(n_) { if (n) { raw = malloc(sizeof(T) * n + 64); p = (T*)(((uintptr_t)raw + 63) & ~(uintptr_t)63); } }
  ~Vec() { free(raw); }
  T& operator[](int64_t i) { return p[i]; }
  T* data() { return p; }
  void zero() { memset((void*)p, 0, sizeof(T) * n); }
  void swap(Vec& o) { T* a = p; p = o.p; o.p = a; void* r = raw; raw = o.raw; o.raw = r; }
};
#if defined(__AVX__)
#include <immintrin.h>
#endif
#if defined(_WIN32)
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif
typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
#define INL static inline __attribute__((always_inline))

static const float ALPHA_MIN = 1.f / 255.f, ALPHA_MAX = 0.99f, T_MIN = 1e-4f;

INL v8 splat(float x) { return v8{x, x, x, x, x, x, x, x}; }
INL v8 sel(v8i m, v8 a, v8 b) { return m ? a : b; }
INL bool any(v8i m) {
#if defined(__AVX__)
  return _mm256_movemask_ps((__m256)m) != 0;
#else
  int32_t r = 0; for (int i = 0; i < 8; i++) r |= m[i]; return r != 0;
#endif
}
INL float hsum(v8 a) {
#if defined(__AVX__)
  __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s)); s = _mm_add_ss(s, _mm_movehdup_ps(s)); return _mm_cvtss_f32(s);
#else
  float r = 0; for (int i = 0; i < 8; i++) r += a[i]; return r;
#endif
}
// reduce 8 vectors to one vector holding their 8 horizontal sums
INL v8 hsum8(const v8* a) {
#if defined(__AVX__)
  __m256 s0 = _mm256_hadd_ps((__m256)a[0], (__m256)a[1]), s1 = _mm256_hadd_ps((__m256)a[2], (__m256)a[3]);
  __m256 s2 = _mm256_hadd_ps((__m256)a[4], (__m256)a[5]), s3 = _mm256_hadd_ps((__m256)a[6], (__m256)a[7]);
  __m256 t0 = _mm256_hadd_ps(s0, s1), t1 = _mm256_hadd_ps(s2, s3);
  return (v8)_mm256_add_ps(_mm256_permute2f128_ps(t0, t1, 0x20), _mm256_permute2f128_ps(t0, t1, 0x31));
#else
  v8 r; for (int i = 0; i < 8; i++) r[i] = hsum(a[i]); return r;
#endif
}
// 2^x for x <= 0 (clamped at -126); rel. error ~1e-7
INL v8 exp2n(v8 x) {
  x = sel(x > splat(-126.f), x, splat(-126.f));
  v8i n = __builtin_convertvector(x, v8i);           // trunc toward 0
  v8 f = x - __builtin_convertvector(n, v8);         // (-1, 0]
  v8 p = splat(0.000944903408f);
  p = p * f + splat(0.00920579761f); p = p * f + splat(0.0552973578f);
  p = p * f + splat(0.240180143f); p = p * f + splat(0.693143721f); p = p * f + splat(1.f);
  v8i e = (n + 127) << 23;
  return p * (v8)e;
}

struct Job { void (*fn)(void*, int, int); void* arg; int n, grain; int next; };
static void job_run(Job* j) { for (;;) { int i = __atomic_fetch_add(&j->next, j->grain, __ATOMIC_RELAXED); if (i >= j->n) break; j->fn(j->arg, i, mn(j->n, i + j->grain)); } }
#if defined(_WIN32)
typedef HANDLE thr_t;
static DWORD WINAPI thr_main(LPVOID p) { job_run((Job*)p); return 0; }
static bool thr_start(thr_t* t, Job* j) { *t = CreateThread(0, 0, thr_main, j, 0, 0); return *t != 0; }
static void thr_join(thr_t t) { WaitForSingleObject(t, INFINITE); CloseHandle(t); }
#else
typedef pthread_t thr_t;
static void* thr_main(void* p) { job_run((Job*)p); return 0; }
static bool thr_start(thr_t* t, Job* j) { return pthread_create(t, 0, thr_main, j) == 0; }
static void thr_join(thr_t t) { pthread_join(t, 0); }
#endif
template <class F> static void parallel_for(int nthreads, int n, int grain, F f) {
  if (nthreads <= 1 || n <= grain) { f(0, n); return; }
  Job j = {[](void* a, int b, int e) { (*(F*)a)(b, e); }, (void*)&f, n, grain, 0};
  thr_t th[64]; int k = 0; for (; k < mn(nthreads, 64) - 1; k++) if (!thr_start(&th[k], &j)) break;
  job_run(&j); for (int i = 0; i < k; i++) thr_join(th[i]);
}

struct Cam { float R[9], t[3], fx, fy, cx, cy, W, H, eps2d, near_, far_, radius_clip; };

static void make_cam(Cam& c, const float* vm, const float* K, int W, int H, float eps2d, float n, float f, float rc) {
  for (int i = 0; i < 3; i++) { for (int j = 0; j < 3; j++) c.R[i * 3 + j] = vm[i * 4 + j]; c.t[i] = vm[i * 4 + 3]; }
  c.fx = K[0]; c.fy = K[4]; c.cx = K[2]; c.cy = K[5]; c.W = W; c.H = H; c.eps2d = eps2d; c.near_ = n; c.far_ = f; c.radius_clip = rc;
}
INL uint32_t mmask(v8i m) {
#if defined(__AVX__)
  return (uint32_t)_mm256_movemask_ps((__m256)m);
#else
  uint32_t r = 0; for (int i = 0; i < 8; i++) r |= (m[i] < 0 ? 1u : 0u) << i; return r;
#endif
}
INL v8 vsqrt(v8 a) {
#if defined(__AVX__)
  return (v8)_mm256_sqrt_ps((__m256)a);
#else
  v8 r; for (int i = 0; i < 8; i++) r[i] = sqrtf(a[i]); return r;
#endif
}
#if defined(__AVX__)
INL v8 vmin(v8 a, v8 b) { return (v8)_mm256_min_ps((__m256)a, (__m256)b); }
INL v8 vmax(v8 a, v8 b) { return (v8)_mm256_max_ps((__m256)a, (__m256)b); }
#else
INL v8 vmin(v8 a, v8 b) { return sel(a < b, a, b); }
INL v8 vmax(v8 a, v8 b) { return sel(a > b, a, b); }
#endif
INL v8 vand(v8 a, v8i m) { return (v8)((v8i)a & m); }
INL void quat2rot8(const v8* q, v8* M, v8* qn, v8& inv) {
  v8 w = q[0], x = q[1], y = q[2], z = q[3];
  inv = 1.f / vsqrt(vmax(w * w + x * x + y * y + z * z, splat(1e-24f)));
  w *= inv; x *= inv; y *= inv; z *= inv; qn[0] = w; qn[1] = x; qn[2] = y; qn[3] = z;
  M[0] = 1 - 2 * (y * y + z * z); M[1] = 2 * (x * y - w * z); M[2] = 2 * (x * z + w * y);
  M[3] = 2 * (x * y + w * z); M[4] = 1 - 2 * (x * x + z * z); M[5] = 2 * (y * z - w * x);
  M[6] = 2 * (x * z - w * y); M[7] = 2 * (y * z + w * x); M[8] = 1 - 2 * (x * x + y * y);
}
struct Proj8 { v8 p[3], tx, ty; v8i cxl, cyl; v8 A[6], B[6], T[6], M[9], qn[4], qinv, c00, c01, c11, det, det0; };
INL void proj_one8(const Cam& c, const v8* m, const v8* q, const v8* s, Proj8& o) {
  for (int i = 0; i < 3; i++) o.p[i] = c.R[i * 3] * m[0] + c.R[i * 3 + 1] * m[1] + c.R[i * 3 + 2] * m[2] + c.t[i];
  v8 z = o.p[2], iz = 1.f / z;
  float tfx = 0.5f * c.W / c.fx, tfy = 0.5f * c.H / c.fy;
  float lxp = (c.W - c.cx) / c.fx + 0.3f * tfx, lxn = -(c.cx / c.fx + 0.3f * tfx);
  float lyp = (c.H - c.cy) / c.fy + 0.3f * tfy, lyn = -(c.cy / c.fy + 0.3f * tfy);
  v8 rx = o.p[0] * iz, ry = o.p[1] * iz;
  o.cxl = (rx < lxn) | (rx > lxp); o.cyl = (ry < lyn) | (ry > lyp);
  rx = vmin(vmax(rx, splat(lxn)), splat(lxp)); ry = vmin(vmax(ry, splat(lyn)), splat(lyp));
  o.tx = rx * z; o.ty = ry * z;
  v8 J0 = c.fx * iz, J2 = -c.fx * rx * iz, J4 = c.fy * iz, J5 = -c.fy * ry * iz;
  for (int j = 0; j < 3; j++) { o.A[j] = J0 * c.R[j] + J2 * c.R[6 + j]; o.A[3 + j] = J4 * c.R[3 + j] + J5 * c.R[6 + j]; }
  quat2rot8(q, o.M, o.qn, o.qinv);
  for (int i = 0; i < 2; i++) for (int j = 0; j < 3; j++) {
    v8 b = o.A[i * 3] * o.M[j] + o.A[i * 3 + 1] * o.M[3 + j] + o.A[i * 3 + 2] * o.M[6 + j];
    o.B[i * 3 + j] = b; o.T[i * 3 + j] = b * s[j];
  }
  o.c00 = o.T[0] * o.T[0] + o.T[1] * o.T[1] + o.T[2] * o.T[2];
  o.c01 = o.T[0] * o.T[3] + o.T[1] * o.T[4] + o.T[2] * o.T[5];
  o.c11 = o.T[3] * o.T[3] + o.T[4] * o.T[4] + o.T[5] * o.T[5];
  o.det0 = o.c00 * o.c11 - o.c01 * o.c01;
  o.c00 += c.eps2d; o.c11 += c.eps2d;
  o.det = o.c00 * o.c11 - o.c01 * o.c01;
}
static const float MIN_COMP = 0.005f;

// 8 Gaussians at a time: array-of-structures <-> vectors
template <int K> INL void ld8(const float* p, int n, v8* o) { float t[K][8] __attribute__((aligned(32))); for (int i = 0; i < 8; i++) { const float* q = p + K * (i < n ? i : 0); for (int k = 0; k < K; k++) t[k][i] = q[k]; } memcpy(o, t, sizeof(t)); }
template <int K> INL void st8(float* p, int n, const v8* o) { float t[K][8] __attribute__((aligned(32))); memcpy(t, o, sizeof(t)); for (int i = 0; i < n; i++) for (int k = 0; k < K; k++) p[K * i + k] = t[k][i]; }
API void project_fwd(int N, const float* means, const float* quats, const float* scales, const float* opac, const float* vm,
                     const float* K, int W, int H, float eps2d, float near_, float far_, float radius_clip, int aa, int nthreads,
                     int32_t* radii, float* means2d, float* depths, float* conics, float* comps) {
  Cam c; make_cam(c, vm, K, W, H, eps2d, near_, far_, radius_clip);
  parallel_for(nthreads, N, 4096, [&](int i0, int i1) {
    for (int i = i0; i < i1; i += 8) {
      int n = mn(8, i1 - i); v8 m8[3], q8[4], s8[3], op8[1]; ld8<3>(means + 3 * i, n, m8);
      v8 zero = splat(0.f), uv[2] = {zero, zero}, dp[1] = {zero}, cn[3] = {zero, zero, zero}, cp[1] = {zero}, rad[2] = {zero, zero};
      v8 z = c.R[6] * m8[0] + c.R[7] * m8[1] + c.R[8] * m8[2] + c.t[2]; v8i vis = (z > splat(near_)) & (z < splat(far_));
      if (any(vis)) {
        ld8<4>(quats + 4 * i, n, q8); ld8<3>(scales + 3 * i, n, s8); ld8<1>(opac + i, n, op8);
        Proj8 o; proj_one8(c, m8, q8, s8, o);
        v8 comp = vmax(splat(MIN_COMP), vsqrt(vmax(zero, o.det0 / o.det))), op = aa ? op8[0] * comp : op8[0];
        vis &= (o.det > zero) & (op >= splat(ALPHA_MIN));
        v8 lg; { float t[8] __attribute__((aligned(32))); memcpy(t, &op, 32); for (int l = 0; l < 8; l++) t[l] = vis[l] ? logf(t[l] / ALPHA_MIN) : 0.f; memcpy(&lg, t, 32); }
        v8 ext = vmin(splat(3.33f), vsqrt(vmax(zero, 2.f * lg))), rx = ext * vsqrt(vmax(o.c00, zero)), ry = ext * vsqrt(vmax(o.c11, zero));
        v8 trx, tr_y; { float t[8], w[8]; memcpy(t, &rx, 32); memcpy(w, &ry, 32); for (int l = 0; l < 8; l++) { t[l] = ceilf(t[l]); w[l] = ceilf(w[l]); } memcpy(&trx, t, 32); memcpy(&tr_y, w, 32); }
        v8 u = c.fx * o.p[0] / z + c.cx, v = c.fy * o.p[1] / z + c.cy;
        vis &= ~((trx <= splat(radius_clip)) & (tr_y <= splat(radius_clip)));
        vis &= (u + trx > zero) & (u - trx < splat((float)W)) & (v + tr_y > zero) & (v - tr_y < splat((float)H));
        v8 id = 1.f / o.det;
        rad[0] = vand(trx, vis); rad[1] = vand(tr_y, vis); uv[0] = vand(u, vis); uv[1] = vand(v, vis); dp[0] = vand(z, vis); cp[0] = vand(comp, vis);
        cn[0] = vand(o.c11 * id, vis); cn[1] = vand(-o.c01 * id, vis); cn[2] = vand(o.c00 * id, vis);
      }
      for (int l = 0; l < n; l++) { radii[2 * (i + l)] = (int)rad[0][l]; radii[2 * (i + l) + 1] = (int)rad[1][l]; }
      st8<2>(means2d + 2 * i, n, uv); st8<1>(depths + i, n, dp); st8<3>(conics + 3 * i, n, cn); st8<1>(comps + i, n, cp);
    }
  });
}

API void project_bwd(int N, const float* means, const float* quats, const float* scales, const float* vm, const float* K, int W, int H,
                     float eps2d, int nthreads, const int32_t* radii, const float* v_means2d, const float* v_depths,
                     const float* v_conics, const float* v_comps /*may be null*/, float* v_means, float* v_quats, float* v_scales) {
  Cam c; make_cam(c, vm, K, W, H, eps2d, 0, 0, 0);
  parallel_for(nthreads, N, 4096, [&](int i0, int i1) {
    for (int i = i0; i < i1; i += 8) {
      int n = mn(8, i1 - i); v8 m8[3], q8[4], s8[3], zero = splat(0.f);
      v8i vis; { int32_t t[8] __attribute__((aligned(32))); for (int l = 0; l < 8; l++) t[l] = l < n && radii[2 * (i + l)] > 0 ? -1 : 0; memcpy(&vis, t, 32); }
      if (!any(vis)) { memset(v_means + 3 * i, 0, 12 * n); memset(v_quats + 4 * i, 0, 16 * n); memset(v_scales + 3 * i, 0, 12 * n); continue; }
      ld8<3>(means + 3 * i, n, m8); ld8<4>(quats + 4 * i, n, q8); ld8<3>(scales + 3 * i, n, s8);
      v8 vcn[3], vuv[2], vdp[1] = {zero}, vcp[1] = {zero}, vm_[3], vq[4], vs[3]; ld8<3>(v_conics + 3 * i, n, vcn); ld8<2>(v_means2d + 2 * i, n, vuv);
      if (v_depths) ld8<1>(v_depths + i, n, vdp); if (v_comps) ld8<1>(v_comps + i, n, vcp);
      Proj8 o; proj_one8(c, m8, q8, s8, o);
      v8 x = o.p[0], y = o.p[1], z = o.p[2], iz = 1.f / z, iz2 = iz * iz;
      v8 id = 1.f / o.det, a = o.c11 * id, b = -o.c01 * id, cc = o.c00 * id;
      v8 va = vcn[0], vb = 0.5f * vcn[1], vc = vcn[2];
      // v_cov = -P V P
      v8 p00 = a * va + b * vb, p01 = a * vb + b * vc, p10 = b * va + cc * vb, p11 = b * vb + cc * vc;
      v8 s00 = -(p00 * a + p01 * b), s01 = -(p00 * b + p01 * cc), s11 = -(p10 * b + p11 * cc);
      if (v_comps) {
        v8 r = o.det0 / o.det; v8i okr = r > splat(MIN_COMP * MIN_COMP); v8 comp = vsqrt(vmax(r, splat(MIN_COMP * MIN_COMP))), h = sel(okr, 0.5f * vcp[0] / comp, zero);
        v8 k0 = h * id, k1 = -h * r * id;
        s00 += k0 * (o.c11 - c.eps2d) + k1 * o.c11; s11 += k0 * (o.c00 - c.eps2d) + k1 * o.c00; s01 += -(k0 + k1) * o.c01;
      }
      v8 vT[6];
      for (int j = 0; j < 3; j++) { vT[j] = 2 * (s00 * o.T[j] + s01 * o.T[3 + j]); vT[3 + j] = 2 * (s01 * o.T[j] + s11 * o.T[3 + j]); }
      const v8* s = s8; v8 vB[6];
      for (int j = 0; j < 3; j++) { vs[j] = vT[j] * o.B[j] + vT[3 + j] * o.B[3 + j]; vB[j] = vT[j] * s[j]; vB[3 + j] = vT[3 + j] * s[j]; }
      v8 vM[9], vA[6];
      for (int r = 0; r < 3; r++) for (int j = 0; j < 3; j++) vM[r * 3 + j] = o.A[r] * vB[j] + o.A[3 + r] * vB[3 + j];
      for (int r = 0; r < 2; r++) for (int j = 0; j < 3; j++)
        vA[r * 3 + j] = vB[r * 3] * o.M[j * 3] + vB[r * 3 + 1] * o.M[j * 3 + 1] + vB[r * 3 + 2] * o.M[j * 3 + 2];
      v8 vJ0 = vA[0] * c.R[0] + vA[1] * c.R[1] + vA[2] * c.R[2], vJ2 = vA[0] * c.R[6] + vA[1] * c.R[7] + vA[2] * c.R[8];
      v8 vJ4 = vA[3] * c.R[3] + vA[4] * c.R[4] + vA[5] * c.R[5], vJ5 = vA[3] * c.R[6] + vA[4] * c.R[7] + vA[5] * c.R[8];
      v8 vp0 = zero, vp1 = zero, vp2 = vdp[0];
      vp2 += -c.fx * iz2 * vJ0 - c.fy * iz2 * vJ4;
      vp0 += sel(o.cxl, zero, -c.fx * iz2 * vJ2); vp2 += sel(o.cxl, c.fx * o.tx, 2 * c.fx * x) * iz2 * iz * vJ2;
      vp1 += sel(o.cyl, zero, -c.fy * iz2 * vJ5); vp2 += sel(o.cyl, c.fy * o.ty, 2 * c.fy * y) * iz2 * iz * vJ5;
      v8 vu = vuv[0], vv = vuv[1];
      vp0 += c.fx * iz * vu; vp1 += c.fy * iz * vv; vp2 -= (c.fx * x * vu + c.fy * y * vv) * iz2;
      for (int j = 0; j < 3; j++) vm_[j] = c.R[j] * vp0 + c.R[3 + j] * vp1 + c.R[6 + j] * vp2;
      v8 w = o.qn[0], qx = o.qn[1], qy = o.qn[2], qz = o.qn[3];
      v8 g0 = 2 * (qx * (vM[7] - vM[5]) + qy * (vM[2] - vM[6]) + qz * (vM[3] - vM[1]));
      v8 g1 = 2 * (-2 * qx * (vM[4] + vM[8]) + qy * (vM[1] + vM[3]) + qz * (vM[2] + vM[6]) + w * (vM[7] - vM[5]));
      v8 g2 = 2 * (qx * (vM[1] + vM[3]) - 2 * qy * (vM[0] + vM[8]) + qz * (vM[5] + vM[7]) + w * (vM[2] - vM[6]));
      v8 g3 = 2 * (qx * (vM[2] + vM[6]) + qy * (vM[5] + vM[7]) - 2 * qz * (vM[0] + vM[4]) + w * (vM[3] - vM[1]));
      v8 d = g0 * w + g1 * qx + g2 * qy + g3 * qz;
      vq[0] = (g0 - d * w) * o.qinv; vq[1] = (g1 - d * qx) * o.qinv; vq[2] = (g2 - d * qy) * o.qinv; vq[3] = (g3 - d * qz) * o.qinv;
      for (int k = 0; k < 3; k++) { vm_[k] = vand(vm_[k], vis); vs[k] = vand(vs[k], vis); } for (int k = 0; k < 4; k++) vq[k] = vand(vq[k], vis);
      st8<3>(v_means + 3 * i, n, vm_); st8<4>(v_quats + 4 * i, n, vq); st8<3>(v_scales + 3 * i, n, vs);
    }
  });
}

// ---------------------------------------------------------------- binning
// Exact ellipse/tile test (alpha >= 1/255 region) per tile row.
struct Ell { float mx, my, a, b, c, K, ex, ey, dyr; };
INL bool make_ell(const float* m, const float* q, float op, Ell& e) {
  if (!(op >= ALPHA_MIN)) return false;
  e.mx = m[0]; e.my = m[1]; e.a = q[0]; e.b = q[1]; e.c = q[2];
  e.K = 2.f * logf(op * 255.f) + 1e-4f;
  float det = e.a * e.c - e.b * e.b; if (!(det > 0)) return false;
  e.ex = sqrtf(e.K * e.c / det); e.ey = sqrtf(e.K * e.a / det); e.dyr = -e.b / e.c * e.ex;
  return true;
}
INL void rows_of(const Ell& e, int H, int& y0, int& y1) {
  y0 = mx_(0, (int)ceilf(e.my - e.ey - 0.501f)); y1 = mn(H, (int)floorf(e.my + e.ey - 0.499f) + 1);
}
template <class F> INL void for_tiles(const Ell& e, int W, int H, int TS, int tw, F f) {
  int y0, y1; rows_of(e, H, y0, y1); if (y0 >= y1) return;
  float ia = 1.f / e.a;
  for (int ty = y0 / TS; ty * TS < y1; ty++) {
    float dlo = mx_(y0, ty * TS) + 0.5f - e.my, dhi = mn(y1, ty * TS + TS) - 0.5f - e.my;
    float dr = mn(mx_(e.dyr, dlo), dhi), dl = mn(mx_(-e.dyr, dlo), dhi);
    float r = (-e.b * dr + sqrtf(mx_(0.f, e.b * e.b * dr * dr - e.a * (e.c * dr * dr - e.K)))) * ia;
    float l = (-e.b * dl - sqrtf(mx_(0.f, e.b * e.b * dl * dl - e.a * (e.c * dl * dl - e.K)))) * ia;
    int x0 = mx_(0, (int)ceilf(e.mx + l - 0.51f)), x1 = mn(W, (int)floorf(e.mx + r - 0.49f) + 1);
    if (x0 >= x1) continue;
    for (int tx = x0 / TS; tx * TS < x1; tx++) f(ty * tw + tx);
  }
}
static void radix_argsort(const uint32_t* key, int n, int32_t* idx) {
  Vec<uint64_t> A(n), B(n);
  for (int i = 0; i < n; i++) A[i] = ((uint64_t)key[i] << 32) | (uint32_t)idx[i];
  Vec<uint32_t> h(3 * 2048); h.zero();
  for (int i = 0; i < n; i++) { uint32_t k = (uint32_t)(A[i] >> 32); h[k & 2047]++; h[2048 + ((k >> 11) & 2047)]++; h[4096 + (k >> 22)]++; }
  for (int p = 0; p < 3; p++) {
    uint32_t s = 0; uint32_t* hp = &h[p * 2048]; for (int i = 0; i < 2048; i++) { uint32_t t = hp[i]; hp[i] = s; s += t; }
    int sh = 32 + 11 * p; for (int i = 0; i < n; i++) B[hp[(A[i] >> sh) & (p == 2 ? 1023 : 2047)]++] = A[i];
    A.swap(B);
  }
  for (int i = 0; i < n; i++) idx[i] = (int32_t)A[i];
}
// pass 1: tiles per Gaussian, exclusive prefix (cum, N+1). Returns n_isects.
API int64_t bin_count(int N, const float* means2d, const float* conics, const float* opac, const int32_t* radii, int W, int H, int TS,
                      int nthreads, int32_t* cum) {
  int tw = (W + TS - 1) / TS;
  parallel_for(nthreads, N, 4096, [&](int i0, int i1) {
    for (int i = i0; i < i1; i++) {
      int n = 0; Ell e;
      if (radii[2 * i] > 0 && make_ell(means2d + 2 * i, conics + 3 * i, opac[i], e)) for_tiles(e, W, H, TS, tw, [&](int) { n++; });
      cum[i + 1] = n;
    }
  });
  cum[0] = 0; int64_t s = 0; for (int i = 0; i < N; i++) { s += cum[i + 1]; cum[i + 1] = (int32_t)s; }
  return s;
}
// pass 2: depth-sort Gaussians once, then append to the tile lists in that order.
API void bin_fill(int N, const float* means2d, const float* conics, const float* opac, const float* depths, int W, int H, int TS,
                  int nthreads, const int32_t* cum, int32_t* tile_off, int32_t* ids, int32_t* slots) {
  int tw = (W + TS - 1) / TS, th = (H + TS - 1) / TS, nt = tw * th;
  Vec<int32_t> order(N); Vec<uint32_t> key(N); int n = 0;
  for (int i = 0; i < N; i++) if (cum[i + 1] > cum[i]) { order[n] = i; memcpy(&key[n], depths + i, 4); n++; }
  radix_argsort(key.data(), n, order.data());
  // tile ids in slot order (parallel), then counting sort by tile in depth order
  int64_t ni = cum[N]; Vec<int32_t> tid(ni);
  parallel_for(nthreads, N, 4096, [&](int i0, int i1) {
    for (int i = i0; i < i1; i++) if (cum[i + 1] > cum[i]) { Ell e; make_ell(means2d + 2 * i, conics + 3 * i, opac[i], e);
      int32_t s = cum[i]; for_tiles(e, W, H, TS, tw, [&](int t) { tid[s++] = t; }); } });
  // stable counting sort, split over depth-ordered chunks (one histogram per chunk)
  int nc = mx_(1, nthreads); Vec<int32_t> hist((int64_t)nc * nt); hist.zero();
  parallel_for(nthreads, nc, 1, [&](int c0, int c1) { for (int c = c0; c < c1; c++) { int32_t* h = &hist[(size_t)c * nt];
    for (int o = (int)((int64_t)n * c / nc); o < (int)((int64_t)n * (c + 1) / nc); o++) { int g = order[o]; for (int s = cum[g]; s < cum[g + 1]; s++) h[tid[s]]++; } } });
  int32_t s = 0; for (int t = 0; t < nt; t++) { tile_off[t] = s; for (int c = 0; c < nc; c++) { int32_t v = hist[(size_t)c * nt + t]; hist[(size_t)c * nt + t] = s; s += v; } }
  tile_off[nt] = s;
  parallel_for(nthreads, nc, 1, [&](int c0, int c1) { for (int c = c0; c < c1; c++) { int32_t* h = &hist[(size_t)c * nt];
    for (int o = (int)((int64_t)n * c / nc); o < (int)((int64_t)n * (c + 1) / nc); o++) { int g = order[o];
      for (int q = cum[g]; q < cum[g + 1]; q++) { int p = h[tid[q]]++; ids[p] = g; slots[p] = q; } } } });
}

// ---------------------------------------------------------------- raster
// Tiles of 16x16 pixels = 32 blocks of 4x2 pixels (one 8-lane vector each); block b: column b>>3, row pair b&7.
// An exact ellipse test gives one 32-bit mask of touched blocks per (Gaussian, tile); forward stores it, backward reuses it.
struct GRow { float mx, my, ha, b, hc, lop, smin, ka, da, nba; int16_t y0, y1; float pad[5]; };  // 64 bytes
static const float LOG2_AMIN = -7.99435343685886f;
static const float LOG2E = 1.44269504088896f;
INL void load_g(const Ell& e, float op, int H, GRow& r) {
  r.mx = e.mx; r.my = e.my; r.ha = -0.5f * LOG2E * e.a; r.b = -LOG2E * e.b; r.hc = -0.5f * LOG2E * e.c; r.lop = log2f(op);
  r.smin = LOG2_AMIN - r.lop; double ia = 1.0 / e.a; r.ka = (float)(e.K * ia); r.nba = (float)(-e.b * ia); r.da = (float)(((double)e.a * e.c - (double)e.b * e.b) * ia * ia);
  int y0, y1; rows_of(e, H, y0, y1); r.y0 = y0; r.y1 = y1;
}
INL void load_g(const float* m, const float* q, float op, int H, GRow& r) { Ell e; make_ell(m, q, op, e); load_g(e, op, H, r); }
static const GRow* make_rows(int N, const int32_t* cum, const float* means2d, const float* conics, const float* opac, int H, int nthreads, Vec<GRow>& R) {
  parallel_for(nthreads, N, 4096, [&](int i0, int i1) { for (int i = i0; i < i1; i++) if (cum[i + 1] > cum[i]) load_g(means2d + 2 * i, conics + 3 * i, opac[i], H, R[i]); });
  return R.data();
}
static const v8 LANE = {0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f, 7.5f};
static const v8 LANE4 = {0.5f, 1.5f, 2.5f, 3.5f, 0.5f, 1.5f, 2.5f, 3.5f}, LANE2 = {0.5f, 0.5f, 0.5f, 0.5f, 1.5f, 1.5f, 1.5f, 1.5f};
static const v8 ROWE = {0.5f, 2.5f, 4.5f, 6.5f, 8.5f, 10.5f, 12.5f, 14.5f};
// mask of the 4x2 blocks whose pixel centres the ellipse {alpha >= 1/255} reaches; (mx,my) relative to the tile
INL uint32_t block_mask(const GRow& r, float mx, float my) {
  v8 e = ROWE - splat(my), o = e + splat(1.f);
  v8 qe = splat(r.ka) - splat(r.da) * e * e, qo = splat(r.ka) - splat(r.da) * o * o;
  v8i ve = qe >= splat(0.f), vo = qo >= splat(0.f);
  v8 he = vsqrt(vmax(qe, splat(0.f))), ho = vsqrt(vmax(qo, splat(0.f)));
  v8 ce = splat(r.nba) * e + splat(mx), co = splat(r.nba) * o + splat(mx);
  v8 big = splat(1e9f);
  v8 xl = vmin(sel(ve, ce - he, big), sel(vo, co - ho, big)), xr = vmax(sel(ve, ce + he, -big), sel(vo, co + ho, -big));
  const float s = 0.01f; uint32_t m = 0;
  m |= mmask((xl <= splat(3.5f + s)) & (xr >= splat(0.5f - s)));
  m |= mmask((xl <= splat(7.5f + s)) & (xr >= splat(4.5f - s))) << 8;
  m |= mmask((xl <= splat(11.5f + s)) & (xr >= splat(8.5f - s))) << 16;
  m |= mmask((xl <= splat(15.5f + s)) & (xr >= splat(12.5f - s))) << 24;
  return m;
}
// 2^x for -9 < x <= 0 (other lanes give garbage that the caller masks out); rel. error ~2e-7
INL v8 exp2m(v8 x) {
  v8 r = x + splat(12582912.f); v8 f = x - (r - splat(12582912.f)); // f in [-.5,.5]
  v8 p = splat(1.33952e-3f);
  p = p * f + splat(9.61817e-3f); p = p * f + splat(5.5503324e-2f);
  p = p * f + splat(2.40226462e-1f); p = p * f + splat(6.93147182e-1f); p = p * f + splat(1.f);
  return (v8)((v8i)p + ((v8i)r << 23));
}
// Wide type of the raster loops: 8 lanes (4x2 blocks, AVX2/NEON/SSE) or 16 lanes (4x4 blocks, AVX-512)
#if defined(__AVX512F__) && !defined(NO512)
enum { VL = 16, NB = 16 };
typedef float wf __attribute__((vector_size(64))); typedef int32_t wi __attribute__((vector_size(64))); typedef __mmask16 MK;
INL wf wsplat(float x) { return (wf)_mm512_set1_ps(x); }
INL MK kge(wf a, wf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
INL MK kle(wf a, wf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
INL MK kgt(wf a, wf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
INL MK kgei(wi a, int o) { return _mm512_cmp_epi32_mask((__m512i)a, _mm512_set1_epi32(o), _MM_CMPINT_NLT); }
INL bool anyk(MK m) { return m != 0; }
INL bool all_neg(wf a) { return _mm512_cmp_epi32_mask((__m512i)a, _mm512_setzero_si512(), _MM_CMPINT_LT) == 0xffff; }
INL wf vand(wf a, MK m) { return (wf)_mm512_maskz_mov_ps(m, (__m512)a); }
INL wf sel(MK m, wf a, wf b) { return (wf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
INL wi maxi(wi a, wi b) { return (wi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INL wi kandi(MK m, int o) { return (wi)_mm512_maskz_set1_epi32(m, o); }
INL wi seli(MK m, int o, wi b) { return (wi)_mm512_mask_set1_epi32((__m512i)b, m, o); }
INL wf vmin(wf a, wf b) { return (wf)_mm512_min_ps((__m512)a, (__m512)b); }
INL wf vmax(wf a, wf b) { return (wf)_mm512_max_ps((__m512)a, (__m512)b); }
INL v8 fold(wf a) { return (v8)_mm512_castps512_ps256((__m512)a) + (v8)_mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)a, 1)); }
INL v8 hsum8(const wf* a) { v8 t[8]; for (int i = 0; i < 8; i++) t[i] = fold(a[i]); return hsum8(t); }
INL int BIDX(int x, int y) { return (x >> 2) * 4 + (y >> 2); }
INL int LIDX(int x, int y) { return (x & 3) + 4 * (y & 3); }
INL uint32_t pair_rows(uint32_t m) { return _pext_u32(m | m >> 1, 0x55555555u); }
#else
enum { VL = 8, NB = 32 };
typedef v8 wf; typedef v8i wi; typedef v8i MK;
INL wf wsplat(float x) { return splat(x); }
INL MK kge(wf a, wf b) { return a >= b; }
INL MK kle(wf a, wf b) { return a <= b; }
INL MK kgt(wf a, wf b) { return a > b; }
INL MK kgei(wi a, int o) { return a >= o; }
INL bool anyk(MK m) { return any(m); }
INL bool all_neg(wf a) { return mmask((v8i)a) == 255u; }
// (a select on a loaded value that is stored back becomes a slow masked store in clang: use max instead)
INL wi maxi(wi a, wi b) { return a > b ? a : b; }
INL wi kandi(MK m, int o) { return m & o; }
INL wi seli(MK m, int o, wi b) { return m ? wi{} + o : b; }
INL int BIDX(int x, int y) { return (x >> 2) * 8 + (y >> 1); }
INL int LIDX(int x, int y) { return (x & 3) + 4 * (y & 1); }
INL uint32_t pair_rows(uint32_t m) { return m; }
#endif
struct BT { wf lx[NB + 1], ly[NB + 1]; };
static void init_bt(BT& t) { for (int b = 0; b < NB; b++) { for (int x = 0; x < 16; x++) for (int y = 0; y < 16; y++) if (BIDX(x, y) == b) { t.lx[b][LIDX(x, y)] = x + .5f; t.ly[b][LIDX(x, y)] = y + .5f; } } t.lx[NB] = t.ly[NB] = wsplat(0.f); }
#ifndef UF
#define UF 2
#endif
#ifndef UB
#define UB 2
#endif
#ifndef UB3
#define UB3 4
#endif
#define EACH(U) _Pragma("GCC unroll 8") for (int u = 0; u < U; u++)
template <int U> INL void next_bits(uint32_t& m, int* b) { EACH(U) { b[u] = m ? __builtin_ctz(m) : NB; m &= m - 1; } }

template <int DT> static void fwd_tile(int t, int W, int H, int tw, int D_, const GRow* __restrict R,
                                       const float* colors, const float* bg, const int32_t* tile_off, const int32_t* ids,
                                       float* out, float* alpha_out, float* tfin, int32_t* last, uint32_t* masks, float* buf, const BT& bt) {
  const int D = DT ? DT : D_;
  int tx = (t % tw) * 16, ty = (t / tw) * 16;
  wf T[NB + 1]; wi la[NB + 1]; wf* acc = (wf*)buf; // acc[b*D + k]
  int hh = mn(16, H - ty), ww = mn(16, W - tx); uint32_t alive = 0;
  for (int b = 0; b < NB; b++) { la[b] = wi{}; MK in = kgt(wsplat((float)ww), bt.lx[b]) & kgt(wsplat((float)hh), bt.ly[b]); T[b] = sel(in, wsplat(1.f), wsplat(-1.f)); if (anyk(in)) alive |= 1u << b; }
  memset((void*)acc, 0, sizeof(wf) * (NB + 1) * D); T[NB] = wsplat(-1.f); la[NB] = wi{};
  int o0 = tile_off[t], o1 = tile_off[t + 1], o = o0;
  const wi SIGN = wi{} + (int32_t)0x80000000;
  for (int oc = o; o < o1 && alive; o++) {
    if (o == oc) { // masks of the next 32 entries ahead of use: hides the latency behind the unpredictable loop exit
      oc = mn(o1, o + 32); for (int i = o; i < oc; i++) { if (i + 8 < o1) { int gn = ids[i + 8]; __builtin_prefetch(R + gn); __builtin_prefetch(colors + (size_t)gn * D); if (D > 12) __builtin_prefetch(colors + (size_t)gn * D + 16); }
        const GRow& r = R[ids[i]]; masks[i] = pair_rows(block_mask(r, r.mx - (float)tx, r.my - (float)ty)); } }
    int g = ids[o]; const GRow& r = R[g]; const float* __restrict col = colors + (size_t)g * D;
    float mx = r.mx - (float)tx, my = r.my - (float)ty;
    uint32_t m = masks[o] & alive;
    while (m) {
      int b[UF]; next_bits<UF>(m, b);
      wf dx[UF], dy[UF], s2[UF], e[UF], f[UF], p[UF], Tb[UF], w[UF], nT[UF]; MK ok[UF], live[UF];
      EACH(UF) { dx[u] = bt.lx[b[u]] - wsplat(mx); dy[u] = bt.ly[b[u]] - wsplat(my); }
      EACH(UF) { s2[u] = (wsplat(r.ha) * dx[u] + wsplat(r.b) * dy[u]) * dx[u] + wsplat(r.hc) * dy[u] * dy[u]; }    // -sigma*log2e
      EACH(UF) { ok[u] = kge(s2[u], wsplat(r.smin)) & kle(s2[u], wsplat(0.f)); s2[u] = s2[u] + wsplat(r.lop); }
      EACH(UF) e[u] = s2[u] + wsplat(12582912.f);
      EACH(UF) f[u] = s2[u] - (e[u] - wsplat(12582912.f));
      EACH(UF) { wf f2 = f[u] * f[u], a = wsplat(6.93147182e-1f) * f[u] + wsplat(1.f), bq = wsplat(5.5503324e-2f) * f[u] + wsplat(2.40226462e-1f), cq = wsplat(1.33952e-3f) * f[u] + wsplat(9.61817e-3f);
        p[u] = (cq * f2 + bq) * f2 + a; }
      EACH(UF) p[u] = (wf)((wi)p[u] + ((wi)e[u] << 23));
      EACH(UF) { p[u] = vand(vmin(p[u], wsplat(ALPHA_MAX)), ok[u]); Tb[u] = T[b[u]]; }
      EACH(UF) { w[u] = p[u] * Tb[u]; nT[u] = Tb[u] - p[u] * Tb[u]; }
      EACH(UF) live[u] = kgt(nT[u], wsplat(T_MIN));
      EACH(UF) { T[b[u]] = sel(live[u], nT[u], (wf)((wi)Tb[u] | SIGN)); w[u] = vand(w[u], live[u]); la[b[u]] = maxi(la[b[u]], kandi(ok[u] & live[u], o + 1)); }
      wf* ap[UF]; EACH(UF) ap[u] = acc + b[u] * D;
      if (DT == 3) { EACH(UF) { ap[u][0] += w[u] * wsplat(col[0]); ap[u][1] += w[u] * wsplat(col[1]); ap[u][2] += w[u] * wsplat(col[2]); } }
      else for (int k = 0; k < D; k++) { wf c = wsplat(col[k]); EACH(UF) ap[u][k] += w[u] * c; }
    }
    if ((o & 15) == 15) { uint32_t a = 0; for (int b = 0; b < NB; b++) a |= (all_neg(T[b]) ? 0u : 1u) << b; alive &= a; }
  }
  for (; o < o1; o++) masks[o] = 0;
  for (int y = 0; y < hh; y++) for (int x = 0; x < ww; x++) {
    int b = BIDX(x, y), i = LIDX(x, y); size_t q = (size_t)(ty + y) * W + tx + x;
    float Tf = fabsf(T[b][i]); alpha_out[q] = 1.f - Tf; tfin[q] = Tf; last[q] = la[b][i] - 1;
    float* oq = out + q * D; for (int k = 0; k < D; k++) oq[k] = acc[b * D + k][i] + (bg ? bg[k] * Tf : 0.f);
  }
}

// Forward for many channels, block-major: per chunk of CH entries the touched blocks are listed, then every block walks its own list with T in registers; the D channels are then a small matrix product in registers.
enum { CH = 64 };
struct FE { float mx, my, ha, b, hc, lop, smin; int32_t o; };
template <int K> INL void gemm_acc(wf* __restrict acc, const wf* __restrict w, const uint8_t* __restrict L, int n, const float* const* colp, int k) {
  wf s[K]; for (int z = 0; z < K; z++) s[z] = acc[k + z];
  for (int i = 0; i < n; i++) { wf wi_ = w[i]; const float* c = colp[L[i]] + k; _Pragma("GCC unroll 16") for (int z = 0; z < K; z++) s[z] += wi_ * wsplat(c[z]); }
  for (int z = 0; z < K; z++) acc[k + z] = s[z];
}
template <int DT> static void fwd_tile_bm(int t, int W, int H, int tw, int D_, const GRow* __restrict R,
                                       const float* colors, const float* bg, const int32_t* tile_off, const int32_t* ids,
                                       float* out, float* alpha_out, float* tfin, int32_t* last, uint32_t* masks, float* buf, const BT& bt) {
  const int D = DT ? DT : D_;
  int tx = (t % tw) * 16, ty = (t / tw) * 16;
  wf T[NB]; wi la[NB]; wf* acc = (wf*)buf; // acc[b*D + k]
  FE E[CH + 1]; uint8_t lst[NB][CH + 2]; int cnt[NB]; const float* colp[CH + 1]; wf wb[CH + 2];
  int hh = mn(16, H - ty), ww = mn(16, W - tx); uint32_t alive = 0;
  for (int b = 0; b < NB; b++) { la[b] = wi{} - 1; MK in = kgt(wsplat((float)ww), bt.lx[b]) & kgt(wsplat((float)hh), bt.ly[b]); T[b] = sel(in, wsplat(1.f), wsplat(-1.f)); if (anyk(in)) alive |= 1u << b; }
  memset((void*)acc, 0, sizeof(wf) * NB * D);
  memset((void*)&E[CH], 0, sizeof(FE)); E[CH].smin = 1e30f; colp[CH] = colors; // dummy that touches nothing
  int o0 = tile_off[t], o1 = tile_off[t + 1], o = o0;
  const wi SIGN = wi{} + (int32_t)0x80000000;
  for (; o < o1 && alive; o += CH) {
    int n = mn((int)CH, o1 - o); memset(cnt, 0, sizeof(cnt));
    for (int i = 0; i < n; i++) {
      if (o + i + 8 < o1) { int gn = ids[o + i + 8]; __builtin_prefetch(R + gn); __builtin_prefetch(colors + (size_t)gn * D); if (D > 12) __builtin_prefetch(colors + (size_t)gn * D + 16); }
      int g = ids[o + i]; const GRow& r = R[g]; float mx = r.mx - (float)tx, my = r.my - (float)ty;
      masks[o + i] = pair_rows(block_mask(r, mx, my));
      FE& e = E[i]; e.mx = mx; e.my = my; e.ha = r.ha; e.b = r.b; e.hc = r.hc; e.lop = r.lop; e.smin = r.smin; e.o = o + i; colp[i] = colors + (size_t)g * D;
    }
    for (int i = 0; i < n; i++) for (uint32_t m = masks[o + i] & alive; m; m &= m - 1) { int b = __builtin_ctz(m); lst[b][cnt[b]++] = (uint8_t)i; }
    for (uint32_t mb = alive; mb; mb &= mb - 1) {
      int b = __builtin_ctz(mb), nb = cnt[b]; if (!nb) continue;
      uint8_t* L = lst[b]; L[nb] = CH; if (nb & 1) nb++;
      wf lx = bt.lx[b], ly = bt.ly[b], Tb = T[b];  wi lb = la[b]; wf* ap = acc + b * D;
      for (int q = 0; q < nb; q += 2) {
        const FE *e0[2] = {E + L[q], E + L[q + 1]};
        wf s2[2], e[2], f[2], p[2]; MK ok[2];
        EACH(2) { wf dx = lx - wsplat(e0[u]->mx), dy = ly - wsplat(e0[u]->my); s2[u] = (wsplat(e0[u]->ha) * dx + wsplat(e0[u]->b) * dy) * dx + wsplat(e0[u]->hc) * dy * dy; } // -sigma*log2e
        EACH(2) { ok[u] = kge(s2[u], wsplat(e0[u]->smin)) & kle(s2[u], wsplat(0.f)); s2[u] = s2[u] + wsplat(e0[u]->lop); }
        EACH(2) e[u] = s2[u] + wsplat(12582912.f);
        EACH(2) f[u] = s2[u] - (e[u] - wsplat(12582912.f));
        EACH(2) p[u] = wsplat(1.33952e-3f) * f[u] + wsplat(9.61817e-3f);
        EACH(2) p[u] = p[u] * f[u] + wsplat(5.5503324e-2f);
        EACH(2) p[u] = p[u] * f[u] + wsplat(2.40226462e-1f);
        EACH(2) p[u] = p[u] * f[u] + wsplat(6.93147182e-1f);
        EACH(2) p[u] = p[u] * f[u] + wsplat(1.f);
        EACH(2) p[u] = vand(vmin((wf)((wi)p[u] + ((wi)e[u] << 23)), wsplat(ALPHA_MAX)), ok[u]);
        EACH(2) {
          wf w = p[u] * Tb, nT = Tb - p[u] * Tb; MK live = kgt(nT, wsplat(T_MIN));
          Tb = sel(live, nT, (wf)((wi)Tb | SIGN)); w = vand(w, live); lb = seli(ok[u] & live, e0[u]->o, lb); // negative T = saturated (value kept)
          wb[q + u] = w;
        }
      }
      T[b] = Tb; la[b] = lb; if (all_neg(Tb)) alive &= ~(1u << b);
      { int k = 0, m = cnt[b]; for (; k + 10 <= D; k += 10) gemm_acc<10>(ap, wb, L, m, colp, k); if (D - k == 9) { gemm_acc<9>(ap, wb, L, m, colp, k); k += 9; } if (D - k >= 6) { gemm_acc<6>(ap, wb, L, m, colp, k); k += 6; } if (D - k >= 4) { gemm_acc<4>(ap, wb, L, m, colp, k); k += 4; } for (; k < D; k++) gemm_acc<1>(ap, wb, L, m, colp, k); }
    }
  }
  for (; o < o1; o++) masks[o] = 0;
  for (int y = 0; y < hh; y++) for (int x = 0; x < ww; x++) {
    int b = BIDX(x, y), i = LIDX(x, y); size_t q = (size_t)(ty + y) * W + tx + x;
    float Tf = fabsf(T[b][i]); alpha_out[q] = 1.f - Tf; tfin[q] = Tf; last[q] = la[b][i];
    float* oq = out + q * D; for (int k = 0; k < D; k++) oq[k] = acc[b * D + k][i] + (bg ? bg[k] * Tf : 0.f);
  }
}

template <int DT> static void bwd_tile(int t, int W, int H, int tw, int D_, const GRow* __restrict R,
                                       const float* colors, const float* bg, const int32_t* tile_off, const int32_t* ids, const int32_t* slots,
                                       const float* tfin, const int32_t* last, const uint32_t* masks, const float* v_out, const float* v_alpha,
                                       float* slotg, int absg, float* buf, const BT& bt) {
  constexpr int U_ = DT == 3 || DT == 4 ? UB3 : UB; const int D = DT ? DT : D_; const int DP = (D + 7) & ~7; const int GS = 8 + ((D + 3) & ~3);
  int tx = (t % tw) * 16, ty = (t / tw) * 16;
  int hh = mn(16, H - ty), ww = mn(16, W - tx);
  wf T[NB + 1], S[NB + 1]; wi la[NB + 1]; wf* v = (wf*)buf; wf* vc = v + (size_t)(NB + 1) * D; // v[b*D+k], vc[DP]
  for (int k = 0; k < DP; k++) vc[k] = wf{};
  float* vf = (float*)v;
  for (int k = 0; k < D; k++) v[NB * D + k] = wf{};
  for (int p = 0; p < NB + 1; p++) { T[p] = wsplat(1.f); S[p] = wsplat(0.f); la[p] = wi{} - 1; }
  if (hh < 16 || ww < 16) memset((void*)v, 0, sizeof(wf) * NB * D);
  int lb[NB + 1]; for (int b = 0; b < NB + 1; b++) lb[b] = -1;
  for (int y = 0; y < hh; y++) for (int x = 0; x < ww; x++) {
    int p = BIDX(x, y), i = LIDX(x, y); size_t q = (size_t)(ty + y) * W + tx + x;
    const float* vo = v_out + q * D; float Tfin = tfin[q]; float va = v_alpha ? v_alpha[q] : 0.f;
    for (int k = 0; k < D; k++) { vf[((size_t)p * D + k) * VL + i] = vo[k]; if (bg) va -= bg[k] * vo[k]; }
    ((float*)T)[p * VL + i] = Tfin; ((float*)S)[p * VL + i] = -Tfin * va; ((int32_t*)la)[p * VL + i] = last[q]; lb[p] = mx_(lb[p], last[q]);
  }
  int ord[NB + 1]; for (int b = 0; b < NB; b++) { int j = b; for (; j > 0 && lb[ord[j - 1]] < lb[b]; j--) ord[j] = ord[j - 1]; ord[j] = b; } ord[NB] = NB; // blocks by last entry, descending
  int o0 = tile_off[t], o1 = tile_off[t + 1], lmax = lb[ord[0]], nb = 0; uint32_t act = 0;
  for (int o = o1 - 1; o > lmax && o >= o0; o--) memset(slotg + (size_t)slots[o] * GS, 0, sizeof(float) * GS);
  int ab[NB + 4]; wf wb[NB + 4];
  for (int o = lmax; o >= o0; o--) {
    while (lb[ord[nb]] >= o) act |= 1u << ord[nb++];
    int g = ids[o]; const GRow& r = R[g];
    float* __restrict sg = slotg + (size_t)slots[o] * GS;
    if (o - 6 >= o0) { int gn = ids[o - 6]; __builtin_prefetch(R + gn); __builtin_prefetch(colors + (size_t)gn * D); if (D > 12) __builtin_prefetch(colors + (size_t)gn * D + 16); __builtin_prefetch(slotg + (size_t)slots[o - 6] * GS, 1); if (D > 8) __builtin_prefetch(slotg + (size_t)slots[o - 6] * GS + 16, 1); }
    const float* __restrict col = colors + (size_t)g * D;
    uint32_t m = masks[o] & act;
    if (!m) { memset(sg, 0, sizeof(float) * GS); continue; }
    float mx = r.mx - (float)tx, my = r.my - (float)ty;
    wf aA = {}, aB = {}, aC = {}, aX = {}, aY = {}, aO = {}, aXa = {}, aYa = {}; int na = 0;
    wf c0 = {}, c1 = {}, c2 = {};
    while (m) {
      int b[U_]; next_bits<U_>(m, b);
      wf dx[U_], dy[U_], s2[U_], e[U_], f[U_], p[U_], al[U_], ra[U_], Tp[U_], w[U_], q[U_], rv[U_]; MK ok[U_];
      EACH(U_) { dx[u] = bt.lx[b[u]] - wsplat(mx); dy[u] = bt.ly[b[u]] - wsplat(my); }
      EACH(U_) { s2[u] = (wsplat(r.ha) * dx[u] + wsplat(r.b) * dy[u]) * dx[u] + wsplat(r.hc) * dy[u] * dy[u]; }
      EACH(U_) { ok[u] = kge(s2[u], wsplat(r.smin)) & kle(s2[u], wsplat(0.f)) & kgei(la[b[u]], o); s2[u] = s2[u] + wsplat(r.lop); }
      EACH(U_) e[u] = s2[u] + wsplat(12582912.f);
      EACH(U_) f[u] = s2[u] - (e[u] - wsplat(12582912.f));
      EACH(U_) { wf f2 = f[u] * f[u], a = wsplat(6.93147182e-1f) * f[u] + wsplat(1.f), bq = wsplat(5.5503324e-2f) * f[u] + wsplat(2.40226462e-1f), cq = wsplat(1.33952e-3f) * f[u] + wsplat(9.61817e-3f);
        p[u] = (cq * f2 + bq) * f2 + a; }
      EACH(U_) p[u] = vand((wf)((wi)p[u] + ((wi)e[u] << 23)), ok[u]);
      EACH(U_) { al[u] = vmin(p[u], wsplat(ALPHA_MAX)); ra[u] = wsplat(1.f) / (wsplat(1.f) - al[u]); }
      const wf* vp[U_]; EACH(U_) vp[u] = v + b[u] * D;
      if (DT == 3) { EACH(U_) q[u] = wsplat(col[0]) * vp[u][0]; EACH(U_) q[u] = q[u] + wsplat(col[1]) * vp[u][1]; EACH(U_) q[u] = q[u] + wsplat(col[2]) * vp[u][2]; }
      else { wf q2[U_]; EACH(U_) { q[u] = wsplat(col[0]) * vp[u][0]; q2[u] = wf{}; } int k = 1;
        for (; k + 1 < D; k += 2) { wf ca = wsplat(col[k]), cb = wsplat(col[k + 1]); EACH(U_) { q2[u] += ca * vp[u][k]; q[u] += cb * vp[u][k + 1]; } }
        if (k < D) { wf ca = wsplat(col[k]); EACH(U_) q2[u] += ca * vp[u][k]; } EACH(U_) q[u] += q2[u]; }
      EACH(U_) { Tp[u] = T[b[u]] * ra[u]; T[b[u]] = Tp[u]; }              // al==0 on inactive lanes: unchanged
      EACH(U_) { w[u] = al[u] * Tp[u]; wf Sb = S[b[u]]; rv[u] = Tp[u] * q[u] - ra[u] * Sb; S[b[u]] = Sb + w[u] * q[u]; }
      EACH(U_) rv[u] = vand(p[u] * rv[u], kle(p[u], wsplat(ALPHA_MAX))); // = -v_sigma ; v_opac = rv/opac
      EACH(U_) { aO += rv[u];
        wf gx = rv[u] * dx[u], gy = rv[u] * dy[u];             // d = pixel - mean
        aA += gx * dx[u]; aB += gx * dy[u]; aC += gy * dy[u]; aX += gx; aY += gy;
        if (absg) { wf A = wsplat(r.ha * (-2.f / LOG2E)), Bc = wsplat(r.b * (-1.f / LOG2E)), C = wsplat(r.hc * (-2.f / LOG2E)); wf ex = A * gx + Bc * gy, ey = Bc * gx + C * gy;
          aXa += vmax(ex, -ex); aYa += vmax(ey, -ey); } }
      if (DT == 3) { EACH(U_) { c0 += w[u] * vp[u][0]; c1 += w[u] * vp[u][1]; c2 += w[u] * vp[u][2]; } }
      else EACH(U_) if (u == 0 || b[u] < NB) { wb[na] = w[u]; ab[na++] = b[u]; }
    }
    if (DT == 3) { vc[0] = c0; vc[1] = c1; vc[2] = c2; }
    else {
      int k = 0;
      for (; k + 10 <= D; k += 10) { wf s[10]; for (int z = 0; z < 10; z++) s[z] = wf{}; for (int n = 0; n < na; n++) { wf w = wb[n]; const wf* vp = v + ab[n] * D + k; for (int z = 0; z < 10; z++) s[z] += w * vp[z]; } for (int z = 0; z < 10; z++) vc[k + z] = s[z]; }
      if (DT && DT % 10 == 9) { wf s[9]; for (int z = 0; z < 9; z++) s[z] = wf{}; for (int n = 0; n < na; n++) { wf w = wb[n]; const wf* vp = v + ab[n] * D + k; for (int z = 0; z < 9; z++) s[z] += w * vp[z]; } for (int z = 0; z < 9; z++) vc[k + z] = s[z]; }
      else for (; k < D; k++) { wf s = {}; for (int n = 0; n < na; n++) s += wb[n] * v[ab[n] * D + k]; vc[k] = s; }
    }
    wf red[8] = {aX, aY, aA, aB, aC, aO, aXa, aYa};
    v8 h = hsum8(red); memcpy(sg, &h, 32);
    for (int k = 0; k < D; k += 8) { v8 hh8 = hsum8(vc + k); memcpy(sg + 8 + k, &hh8, sizeof(float) * mn(8, ((D + 3) & ~3) - k)); }
  }
}

API void raster_fwd2(int W, int H, int D, const float* rows, const float* colors,
                    const float* bg, const int32_t* tile_off, const int32_t* ids, int nthreads, float* out, float* alpha, float* tfin, int32_t* last, uint32_t* masks) {
  const GRow* R = (const GRow*)rows; int tw = (W + 15) / 16, th = (H + 15) / 16; BT bt; init_bt(bt);
  parallel_for(nthreads, tw * th, 4, [&](int t0, int t1) {
    Vec<float> raw((size_t)VL * (NB + 1) * D + 64); float* buf = raw.data();
    for (int t = t0; t < t1; t++) {
      if (D == 3) fwd_tile<3>(t, W, H, tw, D, R, colors, bg, tile_off, ids, out, alpha, tfin, last, masks, buf, bt);
      else if (D == 4) fwd_tile<4>(t, W, H, tw, D, R, colors, bg, tile_off, ids, out, alpha, tfin, last, masks, buf, bt);
      else if (D == 16) fwd_tile_bm<16>(t, W, H, tw, D, R, colors, bg, tile_off, ids, out, alpha, tfin, last, masks, buf, bt);
      else if (D == 19) fwd_tile_bm<19>(t, W, H, tw, D, R, colors, bg, tile_off, ids, out, alpha, tfin, last, masks, buf, bt);
      else fwd_tile_bm<0>(t, W, H, tw, D, R, colors, bg, tile_off, ids, out, alpha, tfin, last, masks, buf, bt);
    }
  });
}
// slotg: [n_isects, 8 + round_up(D,4)] = sums over the tile of rv*(dx, dy, dx^2, dx dy, dy^2, 1), |vx|, |vy|, vcolor...
API void raster_bwd2(int N, int W, int H, int D, const float* rows, const float* conics, const float* opac, const float* colors,
                    const float* bg, const int32_t* tile_off, const int32_t* ids, const int32_t* slots, const int32_t* cum,
                    const float* tfin, const int32_t* last, const uint32_t* masks, const float* v_out, const float* v_alpha, int absg, int nthreads, float* slotg,
                    float* v_means2d, float* v_conics, float* v_opac, float* v_colors, float* v_abs) {
  const GRow* R = (const GRow*)rows; int tw = (W + 15) / 16, th = (H + 15) / 16; BT bt; init_bt(bt);
  parallel_for(nthreads, tw * th, 4, [&](int t0, int t1) {
    Vec<float> raw((size_t)VL * (NB + 1) * D + VL * (D + 8) + 64); float* buf = raw.data();
    for (int t = t0; t < t1; t++) {
      if (D == 3) bwd_tile<3>(t, W, H, tw, D, R, colors, bg, tile_off, ids, slots, tfin, last, masks, v_out, v_alpha, slotg, absg, buf, bt);
      else if (D == 4) bwd_tile<4>(t, W, H, tw, D, R, colors, bg, tile_off, ids, slots, tfin, last, masks, v_out, v_alpha, slotg, absg, buf, bt);
      else if (D == 16) bwd_tile<16>(t, W, H, tw, D, R, colors, bg, tile_off, ids, slots, tfin, last, masks, v_out, v_alpha, slotg, absg, buf, bt);
      else if (D == 19) bwd_tile<19>(t, W, H, tw, D, R, colors, bg, tile_off, ids, slots, tfin, last, masks, v_out, v_alpha, slotg, absg, buf, bt);
      else bwd_tile<0>(t, W, H, tw, D, R, colors, bg, tile_off, ids, slots, tfin, last, masks, v_out, v_alpha, slotg, absg, buf, bt);
    }
  });
  int GS = 8 + ((D + 3) & ~3), NC = GS / 4;
  parallel_for(nthreads, N, 2048, [&](int i0, int i1) { // deterministic per-Gaussian reduction
    Vec<float> sv(GS); float* sp = sv.data();
    for (int i = i0; i < i1; i++) {
      int q0 = cum[i], q1 = cum[i + 1]; float* vcp = v_colors + (size_t)i * D;
      if (q0 == q1) { v_means2d[2 * i] = v_means2d[2 * i + 1] = v_conics[3 * i] = v_conics[3 * i + 1] = v_conics[3 * i + 2] = v_opac[i] = 0; if (v_abs) v_abs[2 * i] = v_abs[2 * i + 1] = 0; memset(vcp, 0, sizeof(float) * D); continue; }
      memcpy(sp, slotg + (size_t)q0 * GS, sizeof(float) * GS);
      for (int q = q0 + 1; q < q1; q++) { const float* __restrict p = slotg + (size_t)q * GS; for (int k = 0; k < 4 * NC; k++) sp[k] += p[k]; }
      const float *cn = conics + 3 * i;
      v_means2d[2 * i] = cn[0] * sp[0] + cn[1] * sp[1]; v_means2d[2 * i + 1] = cn[1] * sp[0] + cn[2] * sp[1];
      v_conics[3 * i] = -0.5f * sp[2]; v_conics[3 * i + 1] = -sp[3]; v_conics[3 * i + 2] = -0.5f * sp[4];
      v_opac[i] = sp[5] / opac[i]; if (v_abs) { v_abs[2 * i] = sp[6]; v_abs[2 * i + 1] = sp[7]; }
      memcpy(vcp, sp + 8, sizeof(float) * D);
    }
  });
}
// ---------------------------------------------------------------- binning in two calls, tiles computed once
// bin_begin: rows + tile ids per Gaussian (kept in chunk buffers of the handle), cum; bin_end: depth sort + scatter, frees the handle.
struct BinH { int N, nch, nthreads, TS, W, H; int32_t** tid; };
enum { BCH = 2048 };
API void* bin_begin(int N, const float* means2d, const float* conics, const float* opac, const int32_t* radii, int W, int H, int nthreads, float* rows, int32_t* cum, int64_t* total) {
  BinH* h = (BinH*)malloc(sizeof(BinH)); int nch = (N + BCH - 1) / BCH, tw = (W + 15) / 16; GRow* R = (GRow*)rows;
  h->N = N; h->nch = nch; h->nthreads = nthreads; h->W = W; h->H = H; h->tid = (int32_t**)calloc(nch + 1, sizeof(int32_t*));
  parallel_for(nthreads, nch, 1, [&](int c0, int c1) { for (int c = c0; c < c1; c++) {
    int cap = BCH * 8, n = 0; int32_t* b = (int32_t*)malloc(sizeof(int32_t) * cap); int nt = tw * ((H + 15) / 16);
    for (int i = c * BCH; i < mn(N, (c + 1) * BCH); i++) {
      int s = n; Ell e;
      if (radii[2 * i] > 0 && make_ell(means2d + 2 * i, conics + 3 * i, opac[i], e)) {
        if (n + nt > cap) { cap = 2 * cap + nt; b = (int32_t*)realloc(b, sizeof(int32_t) * cap); }
        for_tiles(e, W, H, 16, tw, [&](int t) { b[n++] = t; });
        if (n > s) load_g(e, opac[i], H, R[i]);
      }
      cum[i + 1] = n - s;
    }
    h->tid[c] = b;
  } });
  cum[0] = 0; int64_t s = 0; for (int i = 0; i < N; i++) { s += cum[i + 1]; cum[i + 1] = (int32_t)s; }
  *total = s; return h;
}
API void bin_end(void* hp, const float* depths, const int32_t* cum, int32_t* tile_off, int32_t* ids, int32_t* slots) {
  BinH* h = (BinH*)hp; int N = h->N, tw = (h->W + 15) / 16, th = (h->H + 15) / 16, nt = tw * th;
  Vec<int32_t> order(N + 1); Vec<uint32_t> key(N + 1); int n = 0;
  for (int i = 0; i < N; i++) if (cum[i + 1] > cum[i]) { order[n] = i; memcpy(&key[n], depths + i, 4); n++; }
  radix_argsort(key.data(), n, order.data());
  int nc = mx_(1, h->nthreads); Vec<int32_t> hist((int64_t)nc * nt); hist.zero();
  if (nc == 1) { for (int c = 0; c < h->nch; c++) { const int32_t* b = h->tid[c]; int m = cum[mn(N, (c + 1) * BCH)] - cum[c * BCH]; for (int k = 0; k < m; k++) hist[b[k]]++; } }
  else parallel_for(nc, nc, 1, [&](int c0, int c1) { for (int c = c0; c < c1; c++) { int32_t* hh = &hist[(size_t)c * nt];
    for (int o = (int)((int64_t)n * c / nc); o < (int)((int64_t)n * (c + 1) / nc); o++) { int g = order[o]; const int32_t* b = h->tid[g / BCH] - cum[g / BCH * BCH]; for (int s = cum[g]; s < cum[g + 1]; s++) hh[b[s]]++; } } });
  int32_t s = 0; for (int t = 0; t < nt; t++) { tile_off[t] = s; for (int c = 0; c < nc; c++) { int32_t v = hist[(size_t)c * nt + t]; hist[(size_t)c * nt + t] = s; s += v; } }
  tile_off[nt] = s;
  parallel_for(nc, nc, 1, [&](int c0, int c1) { for (int c = c0; c < c1; c++) { int32_t* hh = &hist[(size_t)c * nt]; int e = (int)((int64_t)n * (c + 1) / nc);
    for (int o = (int)((int64_t)n * c / nc); o < e; o++) { if (o + 8 < e) { int gn = order[o + 8]; __builtin_prefetch(h->tid[gn / BCH] + (cum[gn] - cum[gn / BCH * BCH])); } if (o + 16 < e) __builtin_prefetch(cum + order[o + 16]);
      int g = order[o]; const int32_t* b = h->tid[g / BCH] - cum[g / BCH * BCH]; for (int q = cum[g]; q < cum[g + 1]; q++) { int p = hh[b[q]]++; ids[p] = g; slots[p] = q; } } } });
  for (int c = 0; c < h->nch; c++) free(h->tid[c]); free(h->tid); free(h);
}
// Blend weights of every pixel as CSR (pixels x Gaussians): exact same compositing. Two passes: count, fill.
template <int TS> static void csr_tile(int t, int W, int H, int tw, const GRow* R,
                                       const int32_t* tile_off, const int32_t* ids, int32_t* count, const int64_t* indptr, int32_t* col, float* val) {
  int tx = (t % tw) * TS, ty = (t / tw) * TS; int hh = mn(TS, H - ty), ww = mn(TS, W - tx);
  int64_t cur[TS * TS]; float T[TS * TS]; int nlive = 0; int32_t c[TS * TS];
  for (int y = 0; y < TS; y++) for (int x = 0; x < TS; x++) { int q = y * TS + x; bool in = y < hh && x < ww; T[q] = in ? 1.f : 0.f; nlive += in; c[q] = 0;
    if (in && indptr) cur[q] = indptr[(size_t)(ty + y) * W + tx + x]; }
  for (int o = tile_off[t]; o < tile_off[t + 1] && nlive; o++) {
    int g = ids[o]; const GRow& r = R[g];
    int y0 = mx_(r.y0 - ty, 0), y1 = mn(r.y1 - ty, hh);
    for (int y = y0; y < y1; y++) {
      float dy = (float)(ty + y) + 0.5f - r.my;
      for (int j = 0; j < TS / 8; j++) {
        v8 dx = LANE + splat((float)(tx + 8 * j) - r.mx); v8 s2 = (splat(r.ha) * dx + splat(r.b * dy)) * dx + splat(r.hc * dy * dy);
        v8 al = exp2n(s2 + splat(r.lop)); v8i ok = (al >= splat(ALPHA_MIN)) & (s2 <= splat(0.f)); if (!any(ok)) continue;
        for (int i = 0; i < 8; i++) { int x = 8 * j + i, q = y * TS + x; if (!ok[i] || T[q] <= 0.f) continue;
          float a = mn(al[i], ALPHA_MAX), nT = T[q] * (1.f - a);
          if (nT <= T_MIN) { T[q] = 0.f; nlive--; continue; }
          if (indptr) { col[cur[q]] = g; val[cur[q]++] = a * T[q]; } else c[q]++;
          T[q] = nT; }
      }
    }
  }
  if (!indptr) for (int y = 0; y < hh; y++) for (int x = 0; x < ww; x++) count[(size_t)(ty + y) * W + tx + x] = c[y * TS + x];
}
API void raster_csr(int N, int W, int H, int TS, const float* means2d, const float* conics, const float* opac, const int32_t* cum, const int32_t* tile_off, const int32_t* ids,
                    int nthreads, int32_t* count, const int64_t* indptr, int32_t* col, float* val) {
  Vec<GRow> Rv(N); const GRow* R = make_rows(N, cum, means2d, conics, opac, H, nthreads, Rv);
  int tw = (W + TS - 1) / TS, th = (H + TS - 1) / TS;
  parallel_for(nthreads, tw * th, 4, [&](int t0, int t1) { for (int t = t0; t < t1; t++) {
    if (TS == 8) csr_tile<8>(t, W, H, tw, R, tile_off, ids, count, indptr, col, val);
    else csr_tile<16>(t, W, H, tw, R, tile_off, ids, count, indptr, col, val); } });
}

// ---------------------------------------------------------------- activations + spherical harmonics (degree 0-2, KN = 0, 3 or 8 extra coefficients), one pass each way
// scales = exp(ls), opac = sigmoid(lo), colour = max(0, .5 + SH(dir)); direction = mean - camera centre, no gradient to the means (as the Python model)
INL v8 vexp(v8 x) { x = vmin(vmax(x * LOG2E, splat(-125.f)), splat(125.f)); return exp2m(x); }
INL void sh_basis(const float* m, const float* cc, int KN, float* b) {
  float x = m[0] - cc[0], y = m[1] - cc[1], z = m[2] - cc[2], n = 1.f / mx_(sqrtf(x * x + y * y + z * z), 1e-12f); x *= n; y *= n; z *= n;
  if (KN >= 3) { const float f = 0.48860251f; b[0] = -f * y; b[1] = f * z; b[2] = -f * x; }
  if (KN >= 8) { b[3] = 1.0925484f * x * y; b[4] = -1.0925484f * y * z; b[5] = .9461747f * z * z - .31539157f; b[6] = -1.0925484f * x * z; b[7] = .54627422f * (x * x - y * y); }
}
template <class F> static void each8(int a, int e, F f) { for (int i = a; i < e; i += 8) f(i, mn(8, e - i)); }
API void act_fwd(int N, int KN, const float* vm, const float* means, const float* ls, const float* lo, const float* sh0, const float* shN, int nthreads, float* scales, float* opac, float* col) {
  float cc[3]; for (int j = 0; j < 3; j++) cc[j] = -(vm[j] * vm[3] + vm[4 + j] * vm[7] + vm[8 + j] * vm[11]);
  parallel_for(nthreads, N, 4096, [&](int i0, int i1) {
    each8(3 * i0, 3 * i1, [&](int i, int n) { v8 x = {}; memcpy(&x, ls + i, 4 * n); x = vexp(x); memcpy(scales + i, &x, 4 * n); });
    each8(i0, i1, [&](int i, int n) { v8 x = {}; memcpy(&x, lo + i, 4 * n); x = 1.f / (1.f + vexp(-x)); memcpy(opac + i, &x, 4 * n); });
    for (int i = i0; i < i1; i++) { float b[8]; sh_basis(means + 3 * i, cc, KN, b); float c0 = .5f + 0.28209479f * sh0[3 * i], c1 = .5f + 0.28209479f * sh0[3 * i + 1], c2 = .5f + 0.28209479f * sh0[3 * i + 2];
      const float* s = shN + (size_t)3 * KN * i; for (int k = 0; k < KN; k++) { c0 += b[k] * s[3 * k]; c1 += b[k] * s[3 * k + 1]; c2 += b[k] * s[3 * k + 2]; }
      col[3 * i] = mx_(c0, 0.f); col[3 * i + 1] = mx_(c1, 0.f); col[3 * i + 2] = mx_(c2, 0.f); }
  });
}
API void act_bwd(int N, int KN, const float* vm, const float* means, const float* scales, const float* opac, const float* col, const float* vs, const float* vo, const float* vcol, int nthreads,
                 float* vls, float* vlo, float* vsh0, float* vshN) {
  float cc[3]; for (int j = 0; j < 3; j++) cc[j] = -(vm[j] * vm[3] + vm[4 + j] * vm[7] + vm[8 + j] * vm[11]);
  parallel_for(nthreads, N, 4096, [&](int i0, int i1) {
    for (int i = 3 * i0; i < 3 * i1; i++) vls[i] = vs[i] * scales[i];
    for (int i = i0; i < i1; i++) vlo[i] = vo[i] * opac[i] * (1.f - opac[i]);
    for (int i = i0; i < i1; i++) { float v[3]; for (int k = 0; k < 3; k++) { v[k] = col[3 * i + k] > 0.f ? vcol[3 * i + k] : 0.f; vsh0[3 * i + k] = 0.28209479f * v[k]; }
      float* s = vshN + (size_t)3 * KN * i; if (v[0] == 0.f && v[1] == 0.f && v[2] == 0.f) { memset(s, 0, sizeof(float) * 3 * KN); continue; }
      float b[8]; sh_basis(means + 3 * i, cc, KN, b); for (int k = 0; k < KN; k++) { s[3 * k] = b[k] * v[0]; s[3 * k + 1] = b[k] * v[1]; s[3 * k + 2] = b[k] * v[2]; } }
  });
}

// ---------------------------------------------------------------- fused L1 + SSIM loss (value and gradient), HWC float images, 'valid' 11x11 window
static const float GW[11] = {0.00102838f, 0.00759876f, 0.03600077f, 0.10936069f, 0.21300554f, 0.26601172f, 0.21300554f, 0.10936069f, 0.03600077f, 0.00759876f, 0.00102838f};
static void blur_h(const float* __restrict a, float* __restrict o, int W) { int n = W - 10; for (int x = 0; x < n; x++) { float s = 0; for (int k = 0; k < 11; k++) s += GW[k] * a[x + k]; o[x] = s; } }
API double l1_ssim(int H, int W, int C, const float* img, const float* gt, float lam, int nthreads, float* grad) {
  int Hv = H - 10, Wv = W - 10; double part[8][2] = {};
  const float C1 = 1e-4f, C2 = 9e-4f; float gl1 = (1.f - lam) / ((float)H * W * C), gss = -lam / ((float)Hv * Wv * C);
  parallel_for(nthreads, C, 1, [&](int c0, int c1) { for (int c = c0; c < c1; c++) {
    Vec<float> X((int64_t)H * W), Y((int64_t)H * W), Hb((int64_t)5 * H * W), G((int64_t)3 * Hv * Wv), tmp(5 * W), V((int64_t)3 * H * Wv);
    double l1 = 0, ss = 0; float *x = X.p, *y = Y.p;
    for (int i = 0; i < H * W; i++) { x[i] = img[(int64_t)i * C + c]; y[i] = gt[(int64_t)i * C + c]; }
    for (int r = 0; r < H; r++) {
      float *xr = x + r * W, *yr = y + r * W, *t = tmp.p; float a = 0;
      for (int i = 0; i < W; i++) { a += fabsf(xr[i] - yr[i]); t[i] = xr[i] * xr[i]; t[W + i] = yr[i] * yr[i]; t[2 * W + i] = xr[i] * yr[i]; } l1 += a;
      float* h = Hb.p + (int64_t)r * 5 * Wv; blur_h(xr, h, W); blur_h(yr, h + Wv, W); blur_h(t, h + 2 * Wv, W); blur_h(t + W, h + 3 * Wv, W); blur_h(t + 2 * W, h + 4 * Wv, W);
    }
    for (int r = 0; r < Hv; r++) {
      float* t = tmp.p; memset(t, 0, sizeof(float) * 5 * Wv);
      for (int k = 0; k < 11; k++) { const float* h = Hb.p + (int64_t)(r + k) * 5 * Wv; float w = GW[k]; for (int i = 0; i < 5 * Wv; i++) t[i] += w * h[i]; }
      float *g0 = G.p + (int64_t)r * 3 * Wv, *g1 = g0 + Wv, *g2 = g1 + Wv; float acc = 0;
      for (int i = 0; i < Wv; i++) {
        float m1 = t[i], m2 = t[Wv + i], s11 = t[2 * Wv + i] - m1 * m1, s22 = t[3 * Wv + i] - m2 * m2, s12 = t[4 * Wv + i] - m1 * m2;
        float A = 2 * m1 * m2 + C1, B = 2 * s12 + C2, Cc = m1 * m1 + m2 * m2 + C1, D = s11 + s22 + C2, iC = 1.f / Cc, iD = 1.f / D, S = A * B * iC * iD;
        float d11 = -S * iD, d12 = 2 * A * iC * iD; acc += S; g1[i] = d11; g2[i] = d12;
        g0[i] = 2 * m2 * B * iC * iD - 2 * m1 * S * iC - 2 * m1 * d11 - m2 * d12;
      }
      ss += acc;
    }
    memset(V.p, 0, sizeof(float) * 3 * H * Wv); // transposed vertical blur
    for (int r = 0; r < Hv; r++) { const float* g = G.p + (int64_t)r * 3 * Wv; for (int k = 0; k < 11; k++) { float* v = V.p + (int64_t)(r + k) * 3 * Wv; float w = GW[k]; for (int i = 0; i < 3 * Wv; i++) v[i] += w * g[i]; } }
    for (int r = 0; r < H; r++) { // transposed horizontal blur + combine
      float* t = tmp.p; memset(t, 0, sizeof(float) * 3 * W); const float* v = V.p + (int64_t)r * 3 * Wv;
      for (int m = 0; m < 3; m++) for (int k = 0; k < 11; k++) { float w = GW[k]; float* o = t + m * W + k; const float* q = v + m * Wv; for (int i = 0; i < Wv; i++) o[i] += w * q[i]; }
      for (int i = 0; i < W; i++) { int64_t p = (int64_t)r * W + i; float d = x[p] - y[p]; grad[p * C + c] = gss * (t[i] + 2 * x[p] * t[W + i] + y[p] * t[2 * W + i]) + (d > 0 ? gl1 : d < 0 ? -gl1 : 0.f); }
    }
    part[c & 7][0] += l1; part[c & 7][1] += ss;
  } });
  double a = 0, b = 0; for (int i = 0; i < 8; i++) { a += part[i][0]; b += part[i][1]; }
  return (1.0 - lam) * a / ((double)H * W * C) + lam * (1.0 - b / ((double)Hv * Wv * C));
}

// ---------------------------------------------------------------- frozen-geometry feature training: rendered = W F, gF = W^T G (CSR rows = pixels)
template <int DT> static void spmm_row(const int32_t* col, const float* val, int64_t b, int64_t e, int D_, const float* __restrict F, float* __restrict o) {
  const int D = DT ? DT : D_;
  if (DT && DT % 8 == 0) { v8 a[DT ? (DT + 7) / 8 : 1]; for (int k = 0; k < DT / 8; k++) a[k] = v8{};
    for (int64_t i = b; i < e; i++) { const float* f = F + (int64_t)col[i] * DT; v8 w = splat(val[i]); for (int k = 0; k < DT / 8; k++) { v8 x; memcpy(&x, f + 8 * k, 32); a[k] += w * x; } }
    memcpy(o, a, sizeof(float) * DT); }
  else { for (int k = 0; k < D; k++) o[k] = 0; for (int64_t i = b; i < e; i++) { const float* f = F + (int64_t)col[i] * D; float w = val[i]; for (int k = 0; k < D; k++) o[k] += w * f[k]; } }
}
API void spmm_fwd(int M, const int32_t* rows, const int64_t* ip, const int32_t* col, const float* val, int D, const float* F, int nthreads, float* out) {
  parallel_for(nthreads, M, 512, [&](int m0, int m1) { for (int m = m0; m < m1; m++) { int64_t r = rows ? rows[m] : m;
    if (D == 16) spmm_row<16>(col, val, ip[r], ip[r + 1], D, F, out + (int64_t)m * D); else spmm_row<0>(col, val, ip[r], ip[r + 1], D, F, out + (int64_t)m * D); } });
}
API void spmm_bwd(int M, const int32_t* rows, const int64_t* ip, const int32_t* col, const float* val, int D, const float* G, int N, int nthreads, float* gF) {
  int nt = nthreads < 1 ? 1 : nthreads; Vec<float> buf(nt > 1 ? (int64_t)(nt - 1) * N * D : 0); if (nt > 1) buf.zero(); memset(gF, 0, sizeof(float) * N * D);
  parallel_for(nt, nt, 1, [&](int t0, int t1) { for (int t = t0; t < t1; t++) { float* g = t == 0 ? gF : buf.p + (int64_t)(t - 1) * N * D;
    for (int m = (int)((int64_t)M * t / nt); m < (int)((int64_t)M * (t + 1) / nt); m++) { int64_t r = rows ? rows[m] : m; const float* __restrict q = G + (int64_t)m * D;
      if (D == 16) { v8 q0, q1; memcpy(&q0, q, 32); memcpy(&q1, q + 8, 32);
        for (int64_t i = ip[r]; i < ip[r + 1]; i++) { float* o = g + (int64_t)col[i] * 16; v8 w = splat(val[i]), x, y; memcpy(&x, o, 32); memcpy(&y, o + 8, 32); x += w * q0; y += w * q1; memcpy(o, &x, 32); memcpy(o + 8, &y, 32); } }
      else for (int64_t i = ip[r]; i < ip[r + 1]; i++) { float* __restrict o = g + (int64_t)col[i] * D; float w = val[i]; for (int k = 0; k < D; k++) o[k] += w * q[k]; } } } });
  for (int t = 1; t < nt; t++) { const float* b = buf.p + (int64_t)(t - 1) * N * D; for (int64_t i = 0; i < (int64_t)N * D; i++) gF[i] += b[i]; }
}
API int abi_version() { return 1; }
#define UL_STRING_(x) #x
#define UL_STRING(x) UL_STRING_(x)
#ifdef UL_SOURCE_HASH
API const char* source_hash() { return UL_STRING(UL_SOURCE_HASH); }
#endif
