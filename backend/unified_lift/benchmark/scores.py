# SPDX-License-Identifier: GPL-3.0-or-later
"""All scores of one split of a suite's splats, on its test views."""

from __future__ import annotations

import numpy as np

from unified_lift.benchmark.suites import Suite, read_surface
from unified_lift.lift.labels import label_map
from unified_lift.metrics import extraction_iou, gaussian_accuracy, match, score


def predict(suite: Suite, object_ids: np.ndarray) -> list[np.ndarray]:
    """Label maps of the test views, (H, W) int32 each, 0 = unassigned.

    Args:
        suite: N Gaussians.
        object_ids: (N,) int from 0, -1 = none.
    """
    return [
        label_map(weights, object_ids + 1, alphas)
        for weights, alphas in zip(suite.test_weights, suite.test_alphas, strict=True)
    ]


def score_split(suite: Suite, object_ids: np.ndarray) -> dict:
    """Score a split.

    Args:
        suite: N Gaussians.
        object_ids: (N,) int from 0, -1 = none.

    Returns:
        {"things", "all": see `metrics.score`, "gaussians": see `gaussian_accuracy`, {} without
        surface points, "extraction": {"iou", "left_out"}: means over the true things, "scene":
        what the suite is}.
    """
    predictions = predict(suite, object_ids)
    scores = score(predictions, suite.truths, suite.things, suite.stuff)
    scores["extraction"] = _extraction(suite, object_ids, predictions)
    scores["gaussians"] = {}
    surface = read_surface(suite.capture_dir)
    if surface:
        means = suite.gaussians["means"].cpu().numpy()
        scores["gaussians"] = gaussian_accuracy(means, object_ids + 1, *surface, suite.things)
    return {**scores, "scene": suite.description}


def _extraction(suite: Suite, object_ids: np.ndarray, predictions: list[np.ndarray]) -> dict:
    """Mean over the true things that the test views show; one without a prediction counts 0."""
    pairs = match(predictions, suite.truths, suite.things)
    shown = set(np.unique(np.concatenate([truth.ravel() for truth in suite.truths])).tolist())
    ious, left_out = [], []
    for thing in sorted(shown & set(suite.things)):
        if thing not in pairs:
            ious.append(0.0)
            continue
        alphas = suite.object_alphas(object_ids + 1 == pairs[thing])
        found = extraction_iou(alphas, predictions, suite.truths, pairs[thing], thing, suite.things)
        ious.append(found.iou)
        left_out.append(found.left_out)
    return {"iou": float(np.mean(ious)), "left_out": float(np.mean(left_out or [0.0]))}
