# SPDX-License-Identifier: GPL-3.0-or-later
"""Scene-level instance segmentation metrics: label maps of many views against ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from unified_lift.protocol import JobError, describe_os_error, read_json

MATCH_IOU = 0.5  # panoptic quality: above this a match is unique
AP_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO
AP_RECALLS = np.linspace(0, 1, 101)  # COCO
BOUNDARY_SHARE = 0.02  # boundary IoU: width of the band, of the image diagonal


def evaluate(ids_dir: Path, gt_dir: Path) -> dict:
    """Score predicted label maps; the views are one long image, so ids must agree between them.

    Scored are the predictions whose ground truth exists. Ground-truth id 0 (not annotated) is left
    out; pixels without a predicted id cost IoU. Protocol `things`: the ground truth is the things
    alone, and predictions that lie mostly on something else are ignored. `all`: things and stuff.

    Args:
        ids_dir: NAME.png, single channel, 0 = unlabelled; sub-folders allowed.
        gt_dir: holds ids/NAME.png and meta.json with the lists of ids `things` and `stuff`.

    Returns:
        {"views": int, "things": scores, "all": scores}; scores has PQ SQ RQ TP FP FN mIoU mBIoU AP
        AP50 AP75 ARI best_iou n_pred n_gt. A protocol without ground truth is left out.

    Raises:
        JobError: no scored view, an unreadable or odd file, or sizes that differ.
    """
    things, stuff = _read_meta(Path(gt_dir))
    predictions, truths = _read_views(Path(ids_dir), Path(gt_dir) / "ids")
    return {"views": len(predictions), **score(predictions, truths, things, stuff)}


def score(
    predictions: list[np.ndarray], truths: list[np.ndarray], things: list[int], stuff: list[int]
) -> dict:
    """Score label maps in memory, as `evaluate` does.

    Args:
        predictions: (H, W) int each.
        truths: (H, W) int each, of the same sizes.
        things: ids of the objects in `truths`.
        stuff: ids of floor, walls and the like.
    """
    known = [truth != 0 for truth in truths]
    pixels = _count_overlaps(predictions, truths, known)
    bands = _boundary_overlaps(predictions, truths, known, pixels)
    scores = {}
    for protocol, ids in (("things", things), ("all", [*things, *stuff])):
        columns = np.isin(pixels.truth_ids, ids)
        if columns.any():
            scores[protocol] = _score_segments(pixels, bands, columns)
    return scores


# ---- overlaps


class Overlaps(NamedTuple):
    """Pixels that each predicted id shares with each true id.

    Attributes:
        predicted_ids: (R,) sorted ids.
        truth_ids: (C,) sorted ids.
        counts: (R, C) int64.
        iou: (R, C) float64, of the counted pixels.
    """

    predicted_ids: np.ndarray
    truth_ids: np.ndarray
    counts: np.ndarray
    iou: np.ndarray


def _iou(shared: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return shared / np.maximum(rows[:, None] + columns - shared, 1)


def _count_overlaps(
    predictions: list[np.ndarray], truths: list[np.ndarray], known: list[np.ndarray]
) -> Overlaps:
    predicted = np.concatenate([p[k] for p, k in zip(predictions, known, strict=True)])
    truth = np.concatenate([t[k] for t, k in zip(truths, known, strict=True)])
    predicted_ids, row = np.unique(predicted, return_inverse=True)
    truth_ids, column = np.unique(truth, return_inverse=True)
    shape = (len(predicted_ids), len(truth_ids))
    flat = np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1])
    counts = flat.reshape(shape)
    return Overlaps(predicted_ids, truth_ids, counts, _iou(counts, counts.sum(1), counts.sum(0)))


def _boundary_overlaps(
    predictions: list[np.ndarray],
    truths: list[np.ndarray],
    known: list[np.ndarray],
    pixels: Overlaps,
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
    return _iou(shared, rows, columns)


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


def _score_segments(pixels: Overlaps, bands: np.ndarray, columns: np.ndarray) -> dict:
    rows = pixels.predicted_ids != 0
    areas = pixels.counts[rows].sum(1)
    elsewhere = pixels.counts[rows][:, ~columns].sum(1)
    counted = elsewhere <= MATCH_IOU * areas
    iou = pixels.iou[rows][:, columns]
    matched, truth = linear_sum_assignment(-iou)
    num_truth = int(columns.sum())
    precisions = [average_precision(iou[counted], areas[counted], t) for t in AP_THRESHOLDS]
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
    missed = iou.shape[1] - true
    total = float(iou[hits].sum())
    denominator = true + 0.5 * false + 0.5 * missed
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


# ---- files


def _read_meta(gt_dir: Path) -> tuple[list[int], list[int]]:
    path = gt_dir / "meta.json"
    meta = read_json(path)
    for key in ("things", "stuff"):
        ids = meta.get(key)
        if not isinstance(ids, list) or not all(isinstance(entry, int) for entry in ids):
            raise JobError(f"{path} has no list of ids '{key}'. It does not describe ids/.")
    return meta["things"], meta["stuff"]


def _read_views(ids_dir: Path, gt_dir: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    if not ids_dir.is_dir():
        raise JobError(f"No folder {ids_dir}. Choose the ids folder that render wrote.")
    names = sorted(path.relative_to(ids_dir) for path in ids_dir.rglob("*.png"))
    names = [name for name in names if (gt_dir / name).is_file()]
    if not names:
        raise JobError(
            f"No label map in {ids_dir} has a ground truth of the same name in {gt_dir}. "
            "Choose the ids folder that render wrote, and the gt folder of the same capture."
        )
    predictions = [_read_ids(ids_dir / name) for name in names]
    truths = [_read_ids(gt_dir / name) for name in names]
    for name, prediction, truth in zip(names, predictions, truths, strict=True):
        if prediction.shape != truth.shape:
            raise JobError(
                f"{ids_dir / name} has {_size(prediction)} pixels, its ground truth "
                f"{_size(truth)}. Render at the size of the photos."
            )
    return predictions, truths


def _size(labels: np.ndarray) -> str:
    return f"{labels.shape[1]} x {labels.shape[0]}"


def _read_ids(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except OSError as error:  # Pillow's own errors are among them
        raise JobError(describe_os_error(error, path)) from error
    if labels.ndim != 2:
        raise JobError(f"{path} has several channels. A label map is one 8 or 16 bit channel.")
    return labels.astype(np.int32)
