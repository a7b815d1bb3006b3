# SPDX-License-Identifier: GPL-3.0-or-later
"""From many overlapping masks of one image to one label map of whole objects."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from unified_lift.config import SamConfig

_CHUNK_PIXELS = 1 << 16  # compared at a time, to bound memory


def flatten_masks(masks: np.ndarray, scores: np.ndarray, config: SamConfig) -> np.ndarray:
    """Paint the masks that are no part of another one, small ones on top of large ones.

    Duplicates go first; then a mask is part of another if `containment` of it lies inside a
    larger one. A line of one pixel between two labels, and small pieces, stay unlabelled.

    Args:
        masks: (M, H, W) bool, M may be 0.
        scores: (M,) float, the better of two duplicates has the higher one.
        config: thresholds; areas are shares of H * W.

    Returns:
        (H, W) int32, 0 = unlabelled, else 1 to the number of objects.
    """
    height, width = masks.shape[1:]
    min_pixels = config.min_area * height * width
    areas = masks.sum(axis=(1, 2))
    sized = (areas >= min_pixels) & (areas <= config.max_area * height * width)
    masks, scores = masks[sized], scores[sized]
    overlaps = _overlaps(masks)  # (M, M) pixels
    kept = _without_duplicates(overlaps, scores, config.duplicate_iou)
    whole = kept[_is_whole(overlaps[np.ix_(kept, kept)], config.containment)]
    labels = np.zeros((height, width), np.int32)
    by_size = whole[np.argsort(-overlaps[whole, whole], kind="stable")]
    for number, index in enumerate(by_size, start=1):
        labels[_fill_small_holes(masks[index], min_pixels)] = number
    return _drop_small_pieces(_cut_borders(labels), min_pixels)


def _overlaps(masks: np.ndarray) -> np.ndarray:
    """(M, M) float64 pixels shared by two masks; their areas on the diagonal."""
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    shared = np.zeros((len(masks), len(masks)))
    for start in range(0, flat.shape[1], _CHUNK_PIXELS):
        chunk = flat[:, start : start + _CHUNK_PIXELS].astype(np.float32)
        shared += chunk @ chunk.T
    return shared


def _without_duplicates(overlaps: np.ndarray, scores: np.ndarray, max_iou: float) -> np.ndarray:
    """Indices of the masks kept by greedy suppression, best first."""
    areas = np.diag(overlaps)
    ious = overlaps / np.maximum(areas[:, None] + areas[None, :] - overlaps, 1)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not (ious[index, kept] > max_iou).any():
            kept.append(int(index))
    return np.array(kept, np.int64)


def _is_whole(overlaps: np.ndarray, containment: float) -> np.ndarray:
    """(M,) bool: whether no larger mask contains this one."""
    areas = np.diag(overlaps)
    inside = overlaps >= containment * areas[:, None]  # row in column
    return ~(inside & (areas[None, :] > areas[:, None])).any(axis=1)


def _fill_small_holes(mask: np.ndarray, min_pixels: float) -> np.ndarray:
    holes, count = ndimage.label(~mask)
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    small = sizes < min_pixels
    small[0] = False  # the mask itself
    return mask | small[holes]


def _cut_borders(labels: np.ndarray) -> np.ndarray:
    """Clear the pixels whose right or lower neighbour has another label."""
    border = np.zeros(labels.shape, bool)
    for here, there in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1, :], np.s_[1:, :]),
    ):
        differ = labels[here] != labels[there]
        border[here] |= differ & (labels[here] > 0) & (labels[there] > 0)
    return np.where(border, 0, labels)


def _drop_small_pieces(labels: np.ndarray, min_pixels: float) -> np.ndarray:
    """Clear small components (borders separate all labels), and number the rest from 1."""
    pieces, count = ndimage.label(labels > 0)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    labels = np.where(sizes[pieces] < min_pixels, 0, labels)
    present, inverse = np.unique(labels, return_inverse=True)
    numbers = np.arange(len(present)) + (0 if present[0] == 0 else 1)
    return numbers[inverse].reshape(labels.shape).astype(np.int32)
