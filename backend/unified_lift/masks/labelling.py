# SPDX-License-Identifier: GPL-3.0-or-later
"""From regions of a surface to label maps of photos, refined by colour."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy import ndimage
from skimage.segmentation import felzenszwalb

from unified_lift.config import SurfaceMaskConfig


def label_photo(
    photo: np.ndarray,
    pixel_voxels: np.ndarray,
    flat: np.ndarray,
    regions: np.ndarray,
    plane_regions: np.ndarray,
    config: SurfaceMaskConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Label map of one photo, and what of it is sure.

    Args:
        photo: (H, W, 3) uint8.
        pixel_voxels: (H, W) int32 voxel of each pixel, -1 = none.
        flat: (H, W) int32 flat thing of each pixel, 0 = none.
        regions: (n,) int32 region of each voxel, 0 = none.
        plane_regions: the regions that are planes.
        config: the constants `fill_gap` and `snap_*`.

    Returns:
        (H, W) int32, 0 = unlabelled; regions keep their number, flat things on planes get those
        above. And the same where surface and colours agree, else 0: each is wrong by some pixels at
        borders, the one by voxels, the other where two things look alike.
    """
    scale = max(photo.shape[:2]) / config.reference_side
    labels = np.where(pixel_voxels >= 0, regions[pixel_voxels], 0)
    labels = fill_gaps(labels, config.fill_gap * scale)
    on_plane = np.isin(labels, plane_regions) & (flat > 0)
    labels = np.where(on_plane, regions.max() + flat, labels)
    snapped = snap(photo, labels, scale, config)
    return snapped, np.where(snapped == labels, snapped, 0)


def fill_gaps(labels: np.ndarray, reach: float) -> np.ndarray:
    """Give unlabelled pixels the nearest label, if it is not farther than `reach` pixels."""
    distance, (rows, columns) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(distance <= reach, labels[rows, columns], 0)


def snap(
    photo: np.ndarray, labels: np.ndarray, scale: float, config: SurfaceMaskConfig
) -> np.ndarray:
    """Move borders to colour edges: each small colour segment takes its most frequent label."""
    min_area = config.snap_min_area * scale**2
    segments = colour_segments(photo, config.snap_scale, config.snap_sigma, min_area, scale)
    ones = np.ones(labels.size, np.int32)
    counts = scipy.sparse.coo_array((ones, (segments.ravel(), labels.ravel()))).tocsr()
    return counts.argmax(1).astype(np.int32).reshape(-1)[segments]


def colour_segments(
    photo: np.ndarray, coarseness: float, sigma: float, min_area: float, scale: float
) -> np.ndarray:
    """Graph-based segmentation (Felzenszwalb and Huttenlocher 2004), (H, W) int64 from 0.

    Larger photos have smaller steps between pixels and more pixels in a segment; the coarseness
    grows by the quotient of the two.
    """
    return felzenszwalb(
        photo, scale=coarseness * scale, sigma=sigma * scale, min_size=round(min_area)
    )
