# SPDX-License-Identifier: GPL-3.0-or-later
"""From regions of a surface to label maps of photos, refined by colour."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import regionprops
from skimage.segmentation import felzenszwalb

from unified_lift.config import SurfaceMaskConfig
from unified_lift.masks.regions import LAB_WEIGHTS


def label_photo(
    photo: np.ndarray,
    pixel_voxels: np.ndarray,
    regions: np.ndarray,
    plane_regions: np.ndarray,
    config: SurfaceMaskConfig,
) -> np.ndarray:
    """Label map of one photo.

    Args:
        photo: (H, W, 3) uint8.
        pixel_voxels: (H, W) int32 voxel of each pixel, -1 = none.
        regions: (n,) int32 region of each voxel, 0 = none.
        plane_regions: the regions that are planes.
        config: the constants `fill_gap`, `flat_*`, `snap_*`.

    Returns:
        (H, W) int32, 0 = unlabelled; regions keep their number, flat things on planes get numbers
        above those, of this view alone.
    """
    scale = max(photo.shape[:2]) / config.reference_side
    labels = np.where(pixel_voxels >= 0, regions[pixel_voxels], 0)
    labels = fill_gaps(labels, config.fill_gap * scale)
    labels = add_flat_things(photo, labels, plane_regions, regions.max() + 1, scale, config)
    return snap(photo, labels, scale, config)


def fill_gaps(labels: np.ndarray, reach: float) -> np.ndarray:
    """Give unlabelled pixels the nearest label, if it is not farther than `reach` pixels."""
    distance, (rows, columns) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(distance <= reach, labels[rows, columns], 0)


def add_flat_things(
    photo: np.ndarray,
    labels: np.ndarray,
    plane_regions: np.ndarray,
    first_label: int,
    scale: float,
    config: SurfaceMaskConfig,
) -> np.ndarray:
    """Give each compact colour segment inside a plane a label: paper on a table has no height.

    The labels hold for this view only; the lifting keeps what repeats across views.

    Args:
        photo: (H, W, 3) uint8.
        labels: (H, W) int32.
        plane_regions: the labels that are planes.
        first_label: of the new ones.
        scale: photo size over reference size.
        config: the constants `flat_*`.
    """
    min_area = config.flat_min_area * scale**2
    segments = colour_segments(photo, config.flat_scale, config.flat_sigma, min_area, scale)
    in_plane = np.isin(labels, plane_regions)
    share = np.bincount(segments.ravel(), in_plane.ravel()) / np.bincount(segments.ravel())
    colors = rgb2lab(photo).astype(np.float32) * LAB_WEIGHTS.astype(np.float32)
    pixels = np.bincount(labels.ravel())
    result = labels.copy()
    for segment in regionprops(np.where(in_plane, segments + 1, 0)):
        if segment.area < min_area or share[segment.label - 1] < config.flat_min_inside:
            continue
        where = tuple(segment.coords.T)
        plane = np.bincount(labels[where]).argmax()
        if segment.area > config.flat_max_share * pixels[plane]:
            continue
        around = colors[(labels == plane) & (segments != segment.label - 1)]
        if segment.solidity >= config.flat_min_solidity and not repeats(
            colors[where], around, config
        ):
            result[where] = first_label
            first_label += 1
    return result


def repeats(inside: np.ndarray, around: np.ndarray, config: SurfaceMaskConfig) -> bool:
    """Whether a segment's colour recurs in its plane: a tile or a printed rose, not a thing.

    Args:
        inside: (n, 3) colours of the segment.
        around: (m, 3) colours of the rest of its plane.
        config: `flat_same_color` and `flat_max_repeats`.
    """
    difference = np.linalg.norm(around - np.median(inside, 0), axis=1)
    alike = np.count_nonzero(difference < config.flat_same_color)
    return alike > config.flat_max_repeats * len(inside)


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
