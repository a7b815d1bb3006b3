# SPDX-License-Identifier: GPL-3.0-or-later
"""The lens model k1 k2 p1 p2 of OpenCV and COLMAP, and the pinhole camera inside it (numpy)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from unified_lift.capture.views import NO_DISTORTION, View, intrinsics
from unified_lift.config import CaptureConfig
from unified_lift.protocol import JobError

_NEWTON_STEPS = 20
_BORDER_SAMPLES = 65  # of each side


class Remap(NamedTuple):
    """From the pixels of a distorted view to those of its pinhole view."""

    source: View
    target: View


def distort(xy: np.ndarray, distortion: tuple[float, float, float, float]) -> np.ndarray:
    """Where the lens puts ideal image points.

    Args:
        xy: (..., 2) float64, on the plane z = 1 of the camera.
        distortion: k1, k2, p1, p2.

    Returns:
        (..., 2) float64, on the same plane.
    """
    k1, k2, p1, p2 = distortion
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        axis=-1,
    )


def _jacobian(xy: np.ndarray, distortion: tuple[float, float, float, float]) -> np.ndarray:
    """(..., 2, 2) derivative of `distort`; it is symmetric."""
    k1, k2, p1, p2 = distortion
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    slope = 2 * (k1 + 2 * k2 * r2)
    mixed = slope * x * y + 2 * p1 * x + 2 * p2 * y
    xx = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x
    yy = radial + slope * y * y + 6 * p1 * y + 2 * p2 * x
    return np.stack([np.stack([xx, mixed], -1), np.stack([mixed, yy], -1)], -2)


def undistort_points(
    xy: np.ndarray, distortion: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Invert `distort` by Newton's method.

    Returns:
        (..., 2) ideal points, and (...) bool: whether the lens model is one-to-one there.
    """
    ideal = xy.copy()
    for _ in range(_NEWTON_STEPS):
        step = np.linalg.solve(
            _jacobian(ideal, distortion), (xy - distort(ideal, distortion))[..., None]
        )
        ideal = ideal + step[..., 0]
    return ideal, np.linalg.det(_jacobian(ideal, distortion)) > 0


def undistort_view(view: View) -> tuple[View, Remap]:
    """The largest pinhole view, of the same size and axis, that shows valid pixels only.

    Returns:
        The view without distortion (itself if it has none), and the remap for `undistort`.

    Raises:
        JobError: the lens model folds over inside the photo, so it cannot be undone.
    """
    if view.distortion == NO_DISTORTION:
        return view, Remap(view, view)
    focal, size = view.K[[0, 1], [0, 1]], np.array([view.width, view.height])
    low, high = _inner_rectangle(view)
    # One zoom for both axes keeps the pixel aspect; the tighter side decides.
    focal = focal * (size / focal / (high - low)).max()
    center = size / 2 - focal * (low + high) / 2
    pinhole = replace(view, K=intrinsics(*focal, *center), distortion=NO_DISTORTION)
    return pinhole, Remap(view, pinhole)


def _inner_rectangle(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Opposite corners, on the plane z = 1, of a rectangle inside the undistorted photo."""
    along = np.linspace(0.0, 1.0, _BORDER_SAMPLES)
    zero, one = np.zeros_like(along), np.ones_like(along)
    sides = np.array([(zero, along), (along, zero), (one, along), (along, one)])
    pixels = np.moveaxis(sides, 1, -1) * (view.width, view.height)  # (4, samples, 2)
    focal, center = view.K[[0, 1], [0, 1]], view.K[:2, 2]
    distorted = (pixels - center) / focal
    ideal, one_to_one = undistort_points(distorted, view.distortion)
    error = np.abs((distort(ideal, view.distortion) - distorted) * focal).max()
    if not error < CaptureConfig.undistortion_tolerance or not one_to_one.all():
        raise JobError(
            f"The lens distortion {view.distortion} of {view.name} has no inverse on the whole "
            "photo. Calibrate again, or undistort the photos with the tool that made the capture."
        )
    left, top, right, bottom = ideal
    low = np.array([left[:, 0].max(), top[:, 1].max()])
    return low, np.array([right[:, 0].min(), bottom[:, 1].min()])


def source_pixels(remap: Remap, rows: np.ndarray) -> np.ndarray:
    """(R, W, 2) float64 positions in the source photo of the pixel centres of target rows (R,)."""
    source, target = remap
    x = (np.arange(target.width) + 0.5 - target.K[0, 2]) / target.K[0, 0]
    y = (rows + 0.5 - target.K[1, 2]) / target.K[1, 1]
    ideal = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
    return distort(ideal, source.distortion) * source.K[[0, 1], [0, 1]] + source.K[:2, 2]
