# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics of rendered pictures against photos."""

from __future__ import annotations

import math

import numpy as np
from skimage.metrics import structural_similarity

from unified_lift.protocol import JobError

SSIM_SIGMA = 1.5  # pixels, a window of 11; Wang et al. 2004
SSIM_WINDOW = 11
MIN_ERROR = 1e-10  # mean squared: equal pictures have 100 dB


def psnr(image: np.ndarray, photo: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, at most 100.

    Args:
        image: (H, W, 3) uint8, or float 0..1 (values beyond are cut), display space.
        photo: the same.

    Raises:
        JobError: the sizes differ, or a picture has NaN.
    """
    image, photo = _pair(image, photo)
    return -10 * math.log10(max(float(((image - photo) ** 2).mean()), MIN_ERROR))


def ssim(image: np.ndarray, photo: np.ndarray) -> float:
    """Structural similarity of Wang et al. 2004 (Gaussian window), mean over the colours.

    Args:
        image: as `psnr`, at least 11 pixels wide and high.
        photo: the same.

    Raises:
        JobError: the sizes differ, are below 11 pixels, or a picture has NaN.
    """
    image, photo = _pair(image, photo)
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise JobError(f"SSIM needs {SSIM_WINDOW} pixels each way, the picture is {_size(image)}.")
    return float(
        structural_similarity(
            image,
            photo,
            data_range=1.0,
            channel_axis=2,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
        )
    )


def _pair(image: np.ndarray, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if image.shape != photo.shape:
        raise JobError(f"A picture is {_size(image)}, its photo {_size(photo)} pixels.")
    if not np.isfinite(image).all() or not np.isfinite(photo).all():
        raise JobError("A rendered picture has NaN. Train the scene again.")
    return _unit(image), _unit(photo)


def _unit(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image.astype(np.float64) / 255
    return image.astype(np.float64).clip(0, 1)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
