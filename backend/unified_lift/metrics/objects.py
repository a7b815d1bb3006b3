# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics of the splats themselves: objects rendered alone, and the ids of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from unified_lift.metrics.segments import adjusted_rand_index
from unified_lift.metrics.tables import Table, count
from unified_lift.protocol import JobError

MIN_ALPHA = 0.5  # above this a pixel shows the object
NEIGHBOURS = 5  # surface points that vote for a Gaussian's true id
FLOATER_SPACINGS = 4  # median distances between surface points; farther away is a floater
SPACING_STRIDE = 17  # every so many points measure that distance


class Extraction(NamedTuple):
    """How well an object rendered alone covers its true mask.

    Attributes:
        iou: over all views, 0..1.
        left_out: share of the object's pixels that were left out, 0..1.
    """

    iou: float
    left_out: float


def extraction_iou(
    alphas: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predicted_id: int,
    true_id: int,
    things: Sequence[int],
) -> Extraction:
    """Compare an object rendered alone (alpha > 1/2) with its true mask.

    An object rendered alone also shows what another one hides in the photo. Such pixels are left
    out: the truth there is *another thing*, and the whole scene's own rendering does not show the
    object either. So an object that has swallowed its neighbour, or floats before it, still pays,
    because then the whole scene shows it there. What cannot be told apart is the object's hidden
    side from wrong splats inside or behind the other thing: both are left out, and `left_out` says
    how much. Floor and walls hide nothing here: splats below the floor count as wrong. Where the
    truth is 0 (not annotated) nothing is counted.

    Args:
        alphas: (H, W) float each, of the object alone.
        predictions: (H, W) int each, label maps of the whole scene.
        truths: (H, W) int each, true ids.
        predicted_id: the object's id in `predictions`.
        true_id: its id in `truths`.
        things: ids of the objects in `truths`.

    Raises:
        JobError: an alpha is not a finite number, or no view shows the object at all.
    """
    shared = union = hidden = shown = 0
    for alpha, prediction, truth in zip(alphas, predictions, truths, strict=True):
        if not np.isfinite(alpha).all():
            raise JobError(f"The rendering of object {predicted_id} alone has NaN in its alpha.")
        mask, known = truth == true_id, truth != 0
        drawn = (alpha > MIN_ALPHA) & known
        other = np.isin(truth, things) & ~mask
        behind = drawn & other & (prediction != predicted_id)
        kept = drawn & ~behind
        shared += int((kept & mask).sum())
        union += int((kept | mask).sum())
        hidden += int(behind.sum())
        shown += int(drawn.sum())
    if not union + hidden:
        raise JobError(f"No view shows object {predicted_id}, nor its truth {true_id}.")
    return Extraction(shared / max(union, 1), hidden / max(shown, 1))


def gaussian_accuracy(
    means: np.ndarray,
    object_ids: np.ndarray,
    surface: np.ndarray,
    labels: np.ndarray,
    things: Sequence[int],
) -> dict:
    """Compare the ids of Gaussians with those of the nearest labelled surface points.

    A Gaussian's true id is the most frequent one of its 5 nearest points (the smallest of equals).
    Gaussians farther from the nearest point than 4 median distances between points are floaters:
    they are counted apart and not scored. Ids are matched one to one, for the most Gaussians
    (accuracy) or the largest sum of IoU (mIoU); a Gaussian without an object is wrong.

    Args:
        means: (N, 3), in the world of `surface`.
        object_ids: (N,) int, 0 = none.
        surface: (P, 3), P > 5.
        labels: (P,) int, 0 = not annotated: Gaussians nearest to such points are not scored.
        things: labels that are objects.

    Returns:
        {"things": scores, "all": scores, "scored": share of the Gaussians, "floaters": share};
        scores has accuracy, mIoU and ARI. A protocol without Gaussians is left out.

    Raises:
        JobError: a position is not finite.
    """
    if not np.isfinite(means).all() or not np.isfinite(surface).all():
        raise JobError("A Gaussian or surface point has NaN as position. Train the scene again.")
    tree = cKDTree(surface)
    spacing = np.median(tree.query(surface[::SPACING_STRIDE], 2)[0][:, 1])
    distances, nearest = tree.query(means, NEIGHBOURS)
    near = distances[:, 0] <= FLOATER_SPACINGS * spacing
    truth = stats.mode(labels[nearest].astype(np.int64), axis=1).mode
    scored = near & (truth != 0)
    table = count(np.asarray(object_ids)[scored], truth[scored])
    is_thing = np.isin(table.truth_ids, things)
    protocols = {"things": is_thing, "all": np.ones_like(is_thing)}
    return {
        **{name: _score_ids(table, pick) for name, pick in protocols.items() if pick.any()},
        "scored": float(scored.mean()),
        "floaters": float(1 - near.mean()),
    }


def _score_ids(table: Table, columns: np.ndarray) -> dict:
    rows = table.predicted_ids != 0
    counts, iou = table.counts[rows][:, columns], table.iou[rows][:, columns]
    hits = counts[linear_sum_assignment(-counts)].sum()
    return {
        "accuracy": float(hits / table.counts[:, columns].sum()),
        "mIoU": float(iou[linear_sum_assignment(-iou)].sum() / columns.sum()),
        "ARI": adjusted_rand_index(table.counts[:, columns]),
    }
