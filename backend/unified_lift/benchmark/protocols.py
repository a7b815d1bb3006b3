# SPDX-License-Identifier: GPL-3.0-or-later
"""How the three public benchmarks score label maps: their rules, on arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from unified_lift.metrics import MATCH_IOU, Table, boundary_band, count, quality, total

RARE_SHARE = 0.005  # of the pixels: rarer classes are not scored (Panoptic Lifting's code)
VOID_SHARE = 0.5  # a segment with more void than this is excused
_VOID = -1
_CLASS_BITS = 32  # a segment's code is its class in front of its instance


class Panoptic(NamedTuple):
    """One view's label maps: classes and instances, (H, W) int >= 0 each."""

    classes: np.ndarray
    instances: np.ndarray


# ---- LERF-Mask: masks of prompts


def mask_ious(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float] | None:
    """IoU and boundary IoU of two masks, (H, W) bool; None where both are empty."""
    union = predicted | truth
    if not union.any():
        return None
    edges = [mask & boundary_band(mask.astype(np.int8)) for mask in (predicted, truth)]
    shared = (predicted & truth).sum() / union.sum()
    return float(shared), float((edges[0] & edges[1]).sum() / (edges[0] | edges[1]).sum())


def best_codes(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The ids whose union has the largest IoU with a mask; (k,), none of them 0.

    In order of the share of an id that lies inside, the best set is one of the first k ids.

    Args:
        labels: (H, W) int, 0 = none.
        mask: (H, W) bool, not empty.
    """
    ids, inverse = np.unique(labels, return_inverse=True)
    areas = np.bincount(inverse.ravel())
    inside = np.bincount(inverse.ravel(), mask.ravel())
    order = np.argsort(-inside / areas, kind="stable")
    order = order[(ids[order] != 0) & (inside[order] > 0)]
    shared = np.append(0, inside[order].cumsum())
    outside = np.append(0, (areas - inside)[order].cumsum())
    return ids[order[: (shared / (mask.sum() + outside)).argmax()]]


# ---- Panoptic quality of a scene (Panoptic Lifting, Contrastive Lift)


def scene_panoptic_quality(
    views: Iterable[tuple[Panoptic, Panoptic]],
    things: Collection[int],
    stuff: Collection[int],
    void: int | None,
) -> dict:
    """PQ^scene: a segment is what has one class and instance in all views; mean over the classes.

    Left out are pixels whose true class is `void`, and classes that cover less than half a percent
    of the prediction or of the truth: such pixels become void. Void on either side does not count
    in unions, and excuses a segment that is void for more than a half.

    Args:
        views: prediction and ground truth of each test view, of the same size.
        things: classes whose instances are told apart.
        stuff: classes that are one segment each.
        void: true class to leave out, None if there is none.

    Returns:
        PQ, SQ, RQ (0 where nothing counts) and `classes`: for each class scored the same, with TP,
        FP, FN.
    """
    tables = []
    for prediction, truth in views:
        kept = np.ones(truth.classes.shape, bool) if void is None else truth.classes != void
        pair = (segment_codes(view, stuff)[kept] for view in (prediction, truth))
        tables.append(count(*pair))
    table = total(tables)
    active = _active_classes(table, {*things, *stuff})
    table = _with_void(table, active)
    scores = {name: _score_class(table, name) for name in sorted(active)}
    means = {
        key: float(np.mean([entry[key] for entry in scores.values()])) if scores else 0.0
        for key in ("PQ", "SQ", "RQ")
    }
    return {**means, "classes": scores}


def segment_codes(view: Panoptic, stuff: Collection[int]) -> np.ndarray:
    """(H, W) int64, one number for each class of stuff and each instance of another class."""
    instances = np.where(np.isin(view.classes, list(stuff)), 0, view.instances)
    return view.classes.astype(np.int64) << _CLASS_BITS | instances


def _class_of(codes: np.ndarray) -> np.ndarray:
    return codes >> _CLASS_BITS  # of void: -1


def _active_classes(table: Table, known: set[int]) -> set[int]:
    active, rare = set(), set()
    for codes, sizes in (
        (table.predicted_ids, table.counts.sum(1)),
        (table.truth_ids, table.counts.sum(0)),
    ):
        classes, column = np.unique(_class_of(codes), return_inverse=True)
        shares = np.bincount(column, sizes) / max(sizes.sum(), 1)
        active |= set(classes.tolist())
        rare |= set(classes[shares < RARE_SHARE].tolist())
    return (active & known) - rare


def _with_void(table: Table, active: set[int]) -> Table:
    """The table whose first row and column are void: all segments of other classes."""

    def voided(codes: np.ndarray) -> np.ndarray:
        return np.where(np.isin(_class_of(codes), list(active)), codes, _VOID)

    rows, row = np.unique(np.append(_VOID, voided(table.predicted_ids)), return_inverse=True)
    columns, column = np.unique(np.append(_VOID, voided(table.truth_ids)), return_inverse=True)
    counts = np.zeros((len(rows), len(columns)), np.int64)
    np.add.at(counts, (row[1:, None], column[1:]), table.counts)
    return Table(rows, columns, counts)


def _score_class(table: Table, name: int) -> dict:
    row, column = _class_of(table.predicted_ids) == name, _class_of(table.truth_ids) == name
    shared = table.counts[row][:, column]
    areas, void = table.counts[row].sum(1), table.counts[row, 0]
    true_areas, true_void = table.counts[:, column].sum(0), table.counts[0, column]
    union = (areas - void)[:, None] + (true_areas - true_void) - shared
    iou = shared / np.maximum(union, 1)
    hits = iou > MATCH_IOU
    true = int(hits.sum())
    false = int((~hits.any(1) & (void <= VOID_SHARE * areas)).sum())
    missed = int((~hits.any(0) & (true_void <= VOID_SHARE * true_areas)).sum())
    return quality(float(iou[hits].sum()), true, false, missed)


# ---- Class-agnostic IoU of a scene (Gaga)


def class_agnostic_iou(views: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict:
    """Mean IoU and F-score of segments whose IoU is the mean over the views that show them.

    The IoU of a true and a predicted id is their mean IoU over the views where the true one is
    present; the pairs are those with the largest sum. Id 0 is a label like the others, on both
    sides. A prediction in views without its true partner costs nothing; `tube_mIoU`, where
    intersections and unions are summed over all views first, does count it.

    Args:
        views: predicted and true ids of each test view, (H, W) int both.

    Returns:
        mIoU, tube_mIoU, precision, recall, F (of pairs with an IoU above .5).
    """
    tables = [count(*pair) for pair in views]
    scene = total(tables)
    sums = np.zeros(scene.counts.shape)
    presence = np.zeros(len(scene.truth_ids))
    for table in tables:
        rows = np.searchsorted(scene.predicted_ids, table.predicted_ids)
        columns = np.searchsorted(scene.truth_ids, table.truth_ids)
        sums[np.ix_(rows, columns)] += table.iou
        presence[columns] += 1
    iou = sums / presence
    pairs = iou[linear_sum_assignment(-iou)]
    hits = float((pairs > MATCH_IOU).sum())
    num_predicted, num_true = iou.shape
    tubes = scene.iou[linear_sum_assignment(-scene.iou)]
    return {
        "mIoU": float(pairs.sum() / num_true),
        "tube_mIoU": float(tubes.sum() / num_true),
        "precision": hits / num_predicted,
        "recall": hits / num_true,
        "F": 2 * hits / (num_predicted + num_true),
    }
