# SPDX-License-Identifier: GPL-3.0-or-later
"""The default method: features with codes to spare, compacted, where masks prefer it to votes.

Where codes end hangs on where they started, so each codebook loses objects that another one finds.
Features are learned once; codebooks are cheap, and several are tried.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from unified_lift.config import FeatureConfig, LiftConfig
from unified_lift.lift.association import fit_codebook
from unified_lift.lift.choice import take_better
from unified_lift.lift.compaction import compact
from unified_lift.lift.features import Show, count_codes, nearest_codes, train_features
from unified_lift.lift.incidence import Incidence
from unified_lift.lift.refinement import refine
from unified_lift.protocol import Report
from unified_lift.rendering.weights import BlendWeights

FEATURES = FeatureConfig()


def learn_objects(
    weights: list[BlendWeights],
    label_maps: list[np.ndarray | None],
    incidence: Incidence,
    tracks: np.ndarray,
    by_votes: np.ndarray,
    shapes: np.ndarray | None,
    config: LiftConfig,
    seed: int,
    report: Report,
    show: Show = lambda features, codebook: None,
    learning: FeatureConfig = FEATURES,
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Split Gaussians into objects by votes, and by features and codebooks where these are better.

    Args:
        weights: one for each training view.
        label_maps: (H, W) int each, 0 = unlabelled, ids local to the view; None = no masks.
        incidence: of these two; N Gaussians.
        tracks: (N,) int, of `split_by_votes`.
        by_votes: (N,) int, these compacted.
        shapes: as `refine`.
        config: thresholds.
        seed: makes the run repeatable.
        report: told of each step.
        show: as `train_features`.
        learning: settings.

    Returns:
        (N,) int64 ids from 0 without gaps, -1 = none; features (N, D) and codebook (K, D).
    """
    num_codes = count_codes(tracks, incidence, config)
    scene = (weights, label_maps, incidence.num_gaussians)
    features, learned = train_features(*scene, num_codes, learning, seed, report, show)
    rng = np.random.default_rng(seed)
    object_ids = by_votes
    for attempt in range(learning.codebooks):
        told = learning.steps + attempt * learning.codebook_steps
        report.progress(told, learning.total_steps, f"codebook {attempt + 1}")
        codebook = (
            fit_codebook(features, incidence.mass_of_gaussian, num_codes, learning, rng)
            if attempt
            else learned
        )
        by_codes = compact(incidence, nearest_codes(features, codebook), config)
        object_ids = take_better(incidence, object_ids, by_codes, config)
    return refine(incidence, object_ids, config, shapes, report.check), features, learned
