// SPDX-License-Identifier: GPL-3.0-or-later
// The exported functions of the native core: a plain C interface for Python's ctypes.
//
// All arrays are contiguous float32 unless typed otherwise and belong to the caller. Rows of the
// arrays are Gaussians or pixels (row-major). Nothing throws; out of memory ends the process.
#include "loss.h"
#include "raster_backward.h"
#include "shading.h"
#include "weights.h"

#if defined(_WIN32)
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif

#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

using namespace ul;

// Raised whenever a function here changes; native/__init__.py has the same number.
API int abi_version() { return 2; }

// The hash that compile.py gives, so that it finds out whether a library is current.
API const char* source_hash() { return STRING(UL_SOURCE_HASH); }

// Project the Gaussians into a view and list them by tiles. Null if the view has more pairs of
// Gaussian and tile than MAX_SLOTS. A frame must be freed.
API Frame* frame_create(const Constants* constants, int num_gaussians, const float* means,
                        const float* quats, const float* scales, const float* opacities,
                        int num_channels, const float* channels, const float* viewmat,
                        const float* K, int width, int height, int num_threads) {
  Frame* frame = make<Frame>();
  frame->constants = *constants;
  frame->camera = make_camera(viewmat, K, width, height);
  frame->num_gaussians = num_gaussians;
  frame->num_threads = num_threads;
  frame->splats.resize(num_gaussians);
  project_forward(frame->camera, *constants, num_gaussians, means, quats, scales, opacities,
                  num_channels, channels, num_threads, frame->splats.data);
  if (make_tile_lists(frame->splats.data, num_gaussians, width, height, num_threads,
                      frame->lists)) {
    return frame;
  }
  destroy(frame);
  return nullptr;
}

API void frame_free(Frame* frame) { destroy(frame); }

// background: one value a channel, or null. out: pixels x channels; alphas: pixels.
API void frame_forward(Frame* frame, int num_channels, const float* channels,
                       const float* background, float* out, float* alphas) {
  rasterize_forward(*frame, num_channels, channels, background, out, alphas);
}

// After frame_forward with the same arguments. v_means2d (pixels) may be null.
API void frame_backward(const Frame* frame, int num_channels, const float* channels,
                        const float* background, const float* v_out, const float* v_alphas,
                        const float* means, const float* quats, const float* scales,
                        float* v_means, float* v_quats, float* v_scales, float* v_opacities,
                        float* v_channels, float* v_means2d) {
  Array<float> moments((int64_t)frame->num_gaussians * NUM_MOMENTS);
  rasterize_backward(*frame, num_channels, channels, background, v_out, v_alphas, moments.data,
                     v_channels);
  project_backward(frame->camera, frame->constants, frame->num_gaussians, means, quats, scales,
                   frame->splats.data, moments.data, frame->num_threads,
                   {v_means, v_quats, v_scales, v_opacities, v_means2d});
}

// counts: the number of blend weights of each pixel.
API void frame_count_weights(const Frame* frame, int64_t* counts) {
  count_weights(*frame, counts);
}

// row_begin: sums of the counts, pixels + 1.
API void frame_fill_weights(const Frame* frame, const int64_t* row_begin, int32_t* ids,
                            uint16_t* weights) {
  fill_weights(*frame, row_begin, ids, weights);
}

// num_coeffs: 0, 3, 8 or 15 beyond sh0; shN: Gaussians x num_coeffs x 3.
API void sh_forward(int num_gaussians, int num_coeffs, const float* viewmat, const float* means,
                    const float* sh0, const float* shN, int num_threads, float* colors) {
  shade_forward(num_gaussians, num_coeffs, viewmat, means, sh0, shN, num_threads, colors);
}

API void sh_backward(int num_gaussians, int num_coeffs, const float* viewmat, const float* means,
                     const float* shN, const float* colors, const float* v_colors,
                     int num_threads, float* v_means, float* v_sh0, float* v_shN) {
  shade_backward(num_gaussians, num_coeffs, viewmat, means, shN, colors, v_colors, num_threads,
                 v_means, v_sh0, v_shN);
}

// Images: height x width x channels. Returns the loss; v_image gets its gradient.
API double l1_ssim_loss(int height, int width, int channels, const float* image,
                        const float* target, float ssim_weight, int num_threads,
                        float* v_image) {
  return photometric_loss(height, width, channels, image, target, ssim_weight, num_threads,
                          v_image);
}

// out (num_rows x channels) = rows of the weights times values; rows null = all of them in order.
API void weights_blend(const int64_t* row_begin, const int32_t* ids, const uint16_t* weights,
                       int num_rows, const int64_t* rows, int num_channels, const float* values,
                       int num_threads, float* out) {
  blend_values({row_begin, ids, weights}, num_rows, rows, num_channels, values, num_threads, out);
}

// v_values (num_gaussians x channels) = those rows, transposed, times v (num_rows x channels).
API void weights_blend_backward(const int64_t* row_begin, const int32_t* ids,
                                const uint16_t* weights, int num_rows, const int64_t* rows,
                                int num_channels, const float* v, int num_gaussians,
                                int num_threads, float* v_values) {
  blend_values_backward({row_begin, ids, weights}, num_rows, rows, num_channels, v, num_gaussians,
                        num_threads, v_values);
}

// Mass of each Gaussian in each label, sparse. First with ids null: counts gets the entries of each
// label. Then with label_begin, the sums of the counts: ids and masses get the entries, by id.
API void weights_mask_mass(const int64_t* row_begin, const int32_t* ids, const uint16_t* weights,
                           int num_rows, const int32_t* labels, int num_labels, int num_gaussians,
                           int num_threads, int64_t* counts, const int64_t* label_begin,
                           int32_t* mass_ids, float* masses) {
  mask_mass({row_begin, ids, weights}, num_rows, labels, num_labels, num_gaussians, num_threads,
            counts, label_begin, mass_ids, masses);
}
