# SPDX-License-Identifier: GPL-3.0-or-later
"""All scores of one split of a suite's splats, on its test views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unified_lift.benchmark.suites import Suite, read_surface
from unified_lift.config import LiftConfig
from unified_lift.lift.incidence import Incidence
from unified_lift.lift.labels import label_map
from unified_lift.lift.objects import confidence, object_trust
from unified_lift.metrics import count, extraction_iou, gaussian_accuracy, match, score

COVERAGES = np.linspace(0.05, 1, 20)  # shares of the Gaussians, most confident first
LEAST_SURE = 0.1  # of them
NO_RISK = {"wrong": 0.0, "curve": None, "caught": None}


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


def score_split(
    suite: Suite, object_ids: np.ndarray, incidence: Incidence, lift: LiftConfig
) -> dict:
    """Score a split.

    Args:
        suite: N Gaussians.
        object_ids: (N,) int from 0, -1 = none.
        incidence: of the masks that it was made from; they say how sure it is.
        lift: thresholds for this kind of masks.

    Returns:
        {"things", "all": see `metrics.score`, "gaussians": see `gaussian_accuracy`, {} without
        surface points, "extraction": {"iou", "left_out"}: means over the true things,
        "confidence": see `risk`, "scene": what the suite is}.
    """
    predictions = predict(suite, object_ids)
    num_objects = int(object_ids.max(initial=-1)) + 1
    ranks = np.append(0, object_trust(incidence, object_ids, num_objects, lift))
    scores = score(predictions, suite.truths, suite.things, suite.stuff, ranks)
    sure = confidence(incidence, object_ids, lift)
    scores["confidence"] = risk(sure, object_ids, suite.true_ids, suite.things)
    scores["extraction"] = _extraction(suite, object_ids, predictions)
    scores["gaussians"] = {}
    surface = read_surface(suite.capture_dir)
    if surface:
        means = suite.gaussians["means"].cpu().numpy()
        scores["gaussians"] = gaussian_accuracy(means, object_ids + 1, *surface, suite.things)
    return {**scores, "scene": suite.description}


def risk(
    sure: np.ndarray, object_ids: np.ndarray, true_ids: np.ndarray, things: Sequence[int]
) -> dict:
    """Whether the labels of the least confident Gaussians are the wrong ones.

    A label is wrong if its object shows another true id on most of its Gaussians. Those of stuff
    in stuff do not count: where the floor ends is no question of objects.

    Args:
        sure: (N,) confidence.
        object_ids: (N,) int from 0, -1 = none.
        true_ids: (N,) int, 0 = unknown.
        things: true ids that are objects.

    Returns:
        {"wrong": share of wrong labels, "curve": the same among the most confident, for each of
        `COVERAGES`, "caught": share of all wrong labels that the least sure tenth holds}; the two
        last are None where no label is wrong.
    """
    known = (object_ids >= 0) & (true_ids > 0)
    if not known.any():
        return NO_RISK
    table = count(object_ids[known], true_ids[known])
    shown = table.truth_ids[table.counts.argmax(1)][
        np.searchsorted(table.predicted_ids, object_ids[known])
    ]
    counted = np.isin(true_ids[known], things) | np.isin(shown, things)
    wrong = (shown != true_ids[known])[counted]
    if not wrong.any():
        return NO_RISK
    order = np.argsort(-sure[known][counted], kind="stable")
    errors = np.append(0, np.cumsum(wrong[order]))
    kept = (COVERAGES * len(wrong)).round().astype(int)
    return {
        "wrong": float(wrong.mean()),
        "curve": (errors[kept] / np.maximum(kept, 1)).tolist(),
        "caught": float(1 - errors[round((1 - LEAST_SURE) * len(wrong))] / errors[-1]),
    }


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
