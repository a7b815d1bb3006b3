# SPDX-License-Identifier: GPL-3.0-or-later
"""Scene-level instance segmentation metrics: label maps of many views against ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from unified_lift.metrics.tables import Table, count, share, total

MATCH_IOU = 0.5  # panoptic quality: above this a match is unique
AP_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO
AP_RECALLS = np.linspace(0, 1, 101)  # COCO
BOUNDARY_SHARE = 0.02  # boundary IoU: width of the band, of the image diagonal
SAME_ID_SHARE = 0.95  # of the views that show an object, for its id to be called consistent


def score(
    predictions: list[np.ndarray],
    truths: list[np.ndarray],
    things: list[int],
    stuff: list[int],
    ranks: np.ndarray | None = None,
) -> dict:
    """Score label maps in memory; the views are one long image, so ids must agree between them.

    Ground-truth id 0 (not annotated) is left out; pixels without a predicted id cost IoU. Protocol
    `things`: the ground truth is the things alone, and predictions that lie mostly on something
    else are ignored. `all`: things and stuff.

    `id_consistency` is the share of true segments with one predicted id: the largest id on the
    segment is the same in at least 95 % of the views that show it, and not 0. It does not ask
    whether two segments share that id, so it means little where PQ is low. `count_error` is
    |P - G| / G; P counts the predicted ids of any size that lie at least half on the protocol's
    segments, G the true segments that the views show.

    Args:
        predictions: (H, W) int >= 0 each.
        truths: (H, W) int >= 0 each, of the same sizes.
        things: ids of the objects in `truths`.
        stuff: ids of floor, walls and the like.
        ranks: (P + 1,) how sure the split is of each predicted id up to P, for AP; None for their
            areas.

    Returns:
        {"things": scores, "all": scores}; scores has PQ SQ RQ TP FP FN mIoU mBIoU AP AP50 AP75 ARI
        best_iou n_pred n_gt id_consistency count_error. A protocol without ground truth is left
        out.
    """
    known = [truth != 0 for truth in truths]
    tables = [count(p[k], t[k]) for p, t, k in zip(predictions, truths, known, strict=True)]
    pixels = total(tables)
    bands = _boundary_overlaps(predictions, truths, known, pixels)
    same = _same_id(tables, pixels.truth_ids)
    sure = pixels.counts.sum(1) if ranks is None else ranks[pixels.predicted_ids]
    scores = {}
    for protocol, ids in (("things", things), ("all", [*things, *stuff])):
        columns = np.isin(pixels.truth_ids, ids)
        if columns.any():
            scores[protocol] = _score_segments(pixels, bands, columns, sure)
            scores[protocol]["id_consistency"] = float(same[columns].mean())
    return scores


def match(
    predictions: list[np.ndarray], truths: list[np.ndarray], ids: Sequence[int]
) -> dict[int, int]:
    """Which predicted id stands for a true one: one to one, for the largest sum of IoU.

    Args:
        predictions: (H, W) int >= 0 each; 0 stands for nothing.
        truths: (H, W) int >= 0 each; 0 is left out.
        ids: the true ids wanted.

    Returns:
        {true id: predicted id} of those that share a pixel.
    """
    pixels = total([count(p[t != 0], t[t != 0]) for p, t in zip(predictions, truths, strict=True)])
    rows, columns = pixels.predicted_ids != 0, np.isin(pixels.truth_ids, ids)
    iou = pixels.iou[rows][:, columns]
    found = zip(*linear_sum_assignment(-iou))
    predicted, true = pixels.predicted_ids[rows], pixels.truth_ids[columns]
    return {int(true[c]): int(predicted[r]) for r, c in found if iou[r, c] > 0}


# ---- overlaps


def _same_id(tables: Sequence[Table], truth_ids: np.ndarray) -> np.ndarray:
    """(C,) bool: true segments whose largest id is the same one in nearly all of their views."""
    largest: dict[int, list[int]] = {truth: [] for truth in truth_ids.tolist()}
    for table in tables:
        for column, truth in enumerate(table.truth_ids.tolist()):
            largest[truth].append(int(table.predicted_ids[table.counts[:, column].argmax()]))

    def is_same(ids: list[int]) -> bool:
        most = max((ids.count(i) for i in set(ids) - {0}), default=0)
        return most >= SAME_ID_SHARE * len(ids)

    return np.array([is_same(ids) for ids in largest.values()], bool)


def _boundary_overlaps(
    predictions: list[np.ndarray],
    truths: list[np.ndarray],
    known: list[np.ndarray],
    pixels: Table,
) -> np.ndarray:
    """Boundary IoU of each predicted id with each true id, (R, C) as in `pixels`."""
    shape = pixels.counts.shape
    shared, rows, columns = np.zeros(shape), np.zeros(shape[0]), np.zeros(shape[1])
    for prediction, truth, seen in zip(predictions, truths, known, strict=True):
        row = np.searchsorted(pixels.predicted_ids, prediction[seen])
        column = np.searchsorted(pixels.truth_ids, truth[seen])
        in_row, in_column = boundary_band(prediction)[seen], boundary_band(truth)[seen]
        rows += np.bincount(row[in_row], minlength=shape[0])
        columns += np.bincount(column[in_column], minlength=shape[1])
        both = in_row & in_column
        np.add.at(shared, (row[both], column[both]), 1)
    return share(shared, rows, columns)


def boundary_band(labels: np.ndarray) -> np.ndarray:
    """Pixels near the edge of their own segment: the band of boundary IoU.

    Args:
        labels: (H, W) int, >= 0.

    Returns:
        (H, W) bool: another label, or the image's outside, lies within 2 % of the diagonal
        (rows and columns counted, the larger of both).
    """
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*labels.shape))))
    size = 2 * width + 1
    lowest = ndimage.minimum_filter(labels, size, mode="constant", cval=-1)
    return lowest != ndimage.maximum_filter(labels, size, mode="constant", cval=-1)


# ---- scores of one protocol


def _score_segments(
    pixels: Table, bands: np.ndarray, columns: np.ndarray, sure: np.ndarray
) -> dict:
    rows = pixels.predicted_ids != 0
    areas, sure = pixels.counts[rows].sum(1), sure[rows]
    elsewhere = pixels.counts[rows][:, ~columns].sum(1)
    counted = elsewhere <= MATCH_IOU * areas
    iou = pixels.iou[rows][:, columns]
    matched, truth = linear_sum_assignment(-iou)
    num_truth = int(columns.sum())
    precisions = [average_precision(iou[counted], sure[counted], t) for t in AP_THRESHOLDS]
    return {
        **panoptic_quality(iou, counted),
        "mIoU": float(iou[matched, truth].sum() / num_truth),
        "mBIoU": float(bands[rows][:, columns][matched, truth].sum() / num_truth),
        "AP": float(np.mean(precisions)),
        "AP50": precisions[0],
        "AP75": precisions[5],
        "ARI": adjusted_rand_index(pixels.counts[:, columns]),
        "best_iou": float(iou.max(0, initial=0).mean()),
        "n_pred": len(iou),
        "n_gt": num_truth,
        "count_error": abs(int(counted.sum()) - num_truth) / num_truth,
    }


def panoptic_quality(iou: np.ndarray, counted: np.ndarray) -> dict:
    """PQ = sum of matched IoU / (TP + FP / 2 + FN / 2), with its parts SQ and RQ.

    Args:
        iou: (R, C) of predictions and ground truth, C >= 1.
        counted: (R,) bool: unmatched predictions that count as false.
    """
    hits = iou > MATCH_IOU
    true = int(hits.sum())
    false = int((counted & ~hits.any(1)).sum())
    return quality(float(iou[hits].sum()), true, false, iou.shape[1] - true)


def quality(total: float, true: int, false: int, missed: int) -> dict:
    """PQ, SQ, RQ, TP, FP, FN of `true` matches with a sum of IoU; all 0 where nothing counts."""
    denominator = max(true + (false + missed) / 2, 0.5)
    return {
        "PQ": total / denominator,
        "SQ": total / max(true, 1),
        "RQ": true / denominator,
        "TP": true,
        "FP": false,
        "FN": missed,
    }


def average_precision(iou: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """COCO's 101-point average precision of segments.

    Args:
        iou: (R, C) of predictions and ground truth, C >= 1.
        scores: (R,) higher ranks first; the earlier of equals.
        threshold: a prediction is right if it has this IoU with a segment not yet taken.
    """
    free = np.ones(iou.shape[1], bool)
    right = np.zeros(len(iou))
    for rank, row in enumerate(np.argsort(-scores, kind="stable")):
        best = int(np.where(free, iou[row], -1).argmax())
        if free[best] and iou[row, best] >= threshold - 1e-10:
            free[best] = False
            right[rank] = 1
    found = np.cumsum(right)
    precision = found / np.arange(1, len(iou) + 1)
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return float(precision[np.searchsorted(found / iou.shape[1], AP_RECALLS)].mean())


def adjusted_rand_index(counts: np.ndarray) -> float:
    """Adjusted Rand index (Hubert and Arabie) of a table of counts; 1 for equal partitions."""

    def pairs(n: np.ndarray) -> float:
        return float((n * (n - 1.0) / 2).sum())

    total = pairs(counts.sum(keepdims=True))
    if total == 0:
        return 1.0
    rows, columns = pairs(counts.sum(1)), pairs(counts.sum(0))
    expected, largest = rows * columns / total, (rows + columns) / 2
    return 1.0 if largest == expected else (pairs(counts) - expected) / (largest - expected)
