# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of the benchmark: every method under its name, from frozen splats and masks to ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from unified_lift.benchmark import rivals
from unified_lift.benchmark.frozen import Frozen, Outcome, vote_labels
from unified_lift.config import Budget, FeatureConfig, PublishedConfig
from unified_lift.lift import published as lift_published
from unified_lift.lift.choice import take_better
from unified_lift.lift.compaction import compact
from unified_lift.lift.default import FEATURES, learn_objects
from unified_lift.lift.features import count_codes, nearest_codes, train_features
from unified_lift.lift.published import train_published
from unified_lift.lift.refinement import refine
from unified_lift.protocol import Report

Method = Callable[[Frozen, Budget, int, Report], Outcome]


def _learned(object_ids: np.ndarray, features: Tensor, codebook: Tensor) -> Outcome:
    return Outcome(object_ids, features.numpy(), codebook.numpy())


# ---- without training


def oracle(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Perfect votes: the masks are the true ids, so only the geometry limits the result."""
    return Outcome(vote_labels(frozen.weights, frozen.label_maps) - 1)


def votes(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Ours without training: mask graph, votes, compaction."""
    refined = refine(frozen.incidence, frozen.by_votes, frozen.lift, frozen.shapes)
    return frozen.handed_over(Outcome(refined))


# ---- ours, whole and in parts


def default(
    frozen: Frozen, budget: Budget, seed: int, report: Report, learning: FeatureConfig = FEATURES
) -> Outcome:
    """Ours: features, codebooks with codes to spare, compaction, the best of these and votes."""
    scene = (frozen.weights, frozen.label_maps, frozen.incidence)
    split = (frozen.tracks, frozen.by_votes, frozen.shapes, frozen.lift)
    object_ids, *learned = learn_objects(*scene, *split, seed, report, learning=learning)
    return frozen.handed_over(_learned(object_ids, *learned))


def changed(frozen: Frozen, budget: Budget, seed: int, report: Report, **lift: object) -> Outcome:
    """Ours with other thresholds; `lift` are fields of `LiftConfig`."""
    other = replace(frozen, lift=replace(frozen.lift, **lift))
    return default(other, budget, seed, report)


def unsettled(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Ours as learned: with background, holes where no view looks, and frayed feet."""
    return default(replace(frozen, splats=None), budget, seed, report)


def unsharpened(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Ours on the Gaussians as they are, which reach over the objects' borders."""
    return default(replace(frozen, sharpen=None), budget, seed, report)


def unsure(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Ours with no vote after that by which objects were found: colours move borders."""
    return default(replace(frozen, sure_maps=None), budget, seed, report)


def codes_alone(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Ours without votes beside it: one codebook, compacted, nothing to choose from."""
    num_codes = count_codes(frozen.tracks, frozen.incidence, frozen.lift)
    learned = train_features(*frozen.scene, num_codes, FEATURES, seed, report)
    object_ids = compact(frozen.incidence, nearest_codes(*learned), frozen.lift)
    return frozen.handed_over(_learned(object_ids, *learned))


def our_losses(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Our losses and codebook alone, with the published number of codes; no compaction."""
    num_codes = PublishedConfig.num_codes
    learned = train_features(*frozen.scene, num_codes, FeatureConfig(), seed, report)
    return _learned(nearest_codes(*learned), *learned)


# ---- Unified-Lift as published, whole and in parts


def published(
    frozen: Frozen, budget: Budget, seed: int, report: Report, **changes: object
) -> Outcome:
    """Unified-Lift as published, on frozen splats; `changes` are fields of `PublishedConfig`.

    A job settles what it found as it does ours; here it stays as it is.
    """
    config = PublishedConfig(**asdict(budget) | changes)
    learned = train_published(*frozen.scene, config, seed, report)
    return _learned(nearest_codes(*learned), *learned)


def with_suggested_codes(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Published, with as many codes as the masks suggest."""
    num_codes = count_codes(frozen.tracks, frozen.incidence, frozen.lift)
    return published(frozen, budget, seed, report, num_codes=num_codes)


def with_compaction(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Published, and our compaction of its codes."""
    outcome = published(frozen, budget, seed, report)
    return Outcome(compact(frozen.incidence, outcome.object_ids, frozen.lift))


def with_choice(frozen: Frozen, budget: Budget, seed: int, report: Report) -> Outcome:
    """Published, taken where masks support it better than votes."""
    outcome = published(frozen, budget, seed, report)
    split = (frozen.by_votes, outcome.object_ids)
    return Outcome(take_better(frozen.incidence, *split, frozen.lift))


# ---- the rows


class Row(NamedTuple):
    """A row of the report: what runs, what it is, and where its deviations are written down."""

    run: Method
    about: str
    source: object = None


def _rival_row(method: Method, about: str) -> Row:
    return Row(method, about, method)


ORACLE = "oracle"
PUBLISHED = "unified-lift"
METHODS = {
    "default": Row(
        default, "ours: features and codebooks, compacted; votes where masks prefer them"
    ),
    "votes": Row(votes, "ours without training: mask graph, votes, compaction"),
    PUBLISHED: Row(published, "Unified-Lift (Zhu et al., CVPR 2025)", lift_published),
    "panoptic-lifting": _rival_row(
        rivals.panoptic_lifting, "the association of Panoptic Lifting (Siddiqui et al., CVPR 2023)"
    ),
    "contrastive-lift": _rival_row(
        rivals.contrastive_lift, "Contrastive Lift (Bhalgat et al., NeurIPS 2023)"
    ),
    "saga": _rival_row(rivals.saga, "after SAGA (Cen et al., 2023)"),
    "omniseg3d": _rival_row(rivals.omniseg3d, "after OmniSeg3D (Ying et al., CVPR 2024)"),
}
# Rows that add one component each, then rows that add one part of ours to the published method.
ABLATION = {
    "contrast": Row(rivals.omniseg3d, "the contrastive loss alone, clustered"),
    "contrast+codebook": Row(
        partial(published, area_aware=False, concentration="", filter=False),
        "codes instead of clusters",
    ),
    "contrast+codebook+area": Row(
        partial(published, concentration="", filter=False), "and the area-aware mapping"
    ),
    "contrast+codebook+area+concentration": Row(
        partial(published, filter=False), "and the concentration constraint"
    ),
    PUBLISHED: METHODS[PUBLISHED],
    "unified-lift+codes": Row(with_suggested_codes, "published, as many codes as masks suggest"),
    "unified-lift+losses": Row(our_losses, "published, our losses and codebook in its place"),
    "unified-lift+compaction": Row(with_compaction, "published, its codes compacted"),
    "unified-lift+choice": Row(with_choice, "published, where masks prefer it to votes"),
    "default": METHODS["default"],
}
# Rows that take one step from ours, by values that switch it off.
STEPS = {
    "default": METHODS["default"],
    "votes": METHODS["votes"],
    "codes-alone": Row(codes_alone, "ours without votes, further codebooks and choice"),
    "one-codebook": Row(
        partial(default, learning=replace(FEATURES, codebooks=1)), "ours with one codebook"
    ),
    "no-spare-codes": Row(
        partial(changed, spare_codes=0, spare_share=0.0), "ours, as many codes as tracks"
    ),
    "no-fragments": Row(
        partial(default, learning=replace(FEATURES, fragment_cosine=2.0)),
        "ours, masks of a view always to different codes",
    ),
    "no-filter": Row(
        partial(default, learning=replace(FEATURES, trust_low=-1.0, trust_high=0.0)),
        "ours without the noisy-label filter",
    ),
    "no-pull": Row(
        partial(default, learning=replace(FEATURES, codebook_weight=0.0)),
        "ours, the codebook does not pull the features",
    ),
    "no-purity": Row(
        partial(default, learning=replace(FEATURES, purity_weight=0.0)),
        "ours, features of a ray need not agree",
    ),
    "no-void": Row(
        partial(changed, void_ratio=math.inf), "ours, unlabelled pixels take no Gaussian away"
    ),
    "no-joined": Row(
        partial(changed, joined_share=math.inf),
        "ours, masks of one view always keep their tracks apart",
    ),
    "no-naming": Row(partial(changed, name_share=2.0), "ours, a mask names one object only"),
    "no-doubt": Row(
        partial(changed, ambiguous_weight=1.0), "ours, masks that name several count fully"
    ),
    "no-merge": Row(
        partial(changed, merge_agreement=2.0, piece_agreement=(2.0, 2.0)), "ours without merging"
    ),
    "no-pieces": Row(
        partial(changed, piece_agreement=(2.0, 2.0)), "ours, no joining of pieces at the end"
    ),
    "no-cut": Row(partial(changed, cut_agreement=0.0), "ours, geometry divides nothing"),
    "no-dissolve": Row(partial(changed, dissolve_support=0.0), "ours without dissolving"),
    "no-refine": Row(partial(changed, refine_rounds=0), "ours, no votes after the compaction"),
    "no-settling": Row(unsettled, "ours, not settled: background, holes, frayed feet"),
    "no-sure-vote": Row(unsure, "ours, and *Automatic* without the vote of what is sure alone"),
    "no-sharpening": Row(unsharpened, "ours, on the same splats as all others"),
    "dissolve-all": Row(
        partial(changed, dissolve_joined=-1.0), "ours, dissolves also what masks never join"
    ),
}
DROPPED = (
    ("HDBSCAN of the features as another start", "as good as k-means; 6 to 9 s, one more package"),
    (
        "twice or four times the codes for the further codebooks",
        "no better, once worse: messy8 severe .829",
    ),
    (
        "voting anew only for Gaussians of dissolved objects",
        "PQ +.016 on redkitchen paper, -.009 on messy25 severe",
    ),
    ("dissolving from a support of .1 with given masks", "worse"),
    (
        "splitting Gaussians that straddle two objects, without training again",
        "PSNR -1 dB, the oracle's PQ -.002",
    ),
    (
        "votes anew on sharper splats by how masks fit, not all alike",
        "messy8 paper .963 to .962, messy25 .924 to .923, redkitchen .861 to .864; extraction "
        ".951 to .947, .941 to .939, .856 to .843",
    ),
    (
        "votes anew on sharper splats by what their edges were drawn to",
        "messy8 paper .963 to .960 at best, messy25 .924 to .923",
    ),
    (
        "sharper edges where masks speak for one side of a border alone, too",
        "messy50 paper .925 to .926, but messy8 paper .960 to .959, severe .945 to .940",
    ),
    (
        "sharper edges without masks that reach far beyond their object",
        "messy50 paper .925 to .924, messy8 paper .960 to .959",
    ),
    (
        "sharper edges by the mean of the last half of the steps",
        "messy8 and messy50 paper: PQ equal, PSNR +.005 dB",
    ),
    (
        "sharper edges by the target's share itself, which grows as much by any of its steps",
        "messy8 paper .957 to .956, messy50 .925 to .923; PSNR -.05 and -.1 dB",
    ),
    (
        "sharper edges with the split itself for a target",
        "messy8 paper: extraction .942 to .947, but PQ .958 to .957, PSNR -.1 dB",
    ),
    (
        "sharper edges by the distance of shares, not its square",
        "messy8 clean, at the same PSNR: PQ .966 to .971, by the square .975",
    ),
    (
        "borders of label maps moved to the colours of the photo (mean field)",
        "wrong pixels near borders, messy25 paper: .072 to .071 at best, .090 at worst",
    ),
    (
        "shares of labels for each Gaussian by EM of a mixture, in place of one vote",
        "the oracle's PQ +.002 on messy25; 3 s a round",
    ),
    (
        "densifying by the screen gradient, or by opacity times its root",
        "30.19 and 30.06 dB on messy25; by opacity 30.30 dB",
    ),
    (
        "spherical harmonics degree by degree, each .15 of the steps after the one before",
        "messy8 33.41 to 33.40 dB, messy25 32.52 to 32.49 dB; the oracle's PQ equal",
    ),
    (
        "automatic masks: joining pieces across gaps by colour",
        "histograms of one thing's pieces agree by .51, of two things' by .38: too close",
    ),
    (
        "automatic masks: a logistic regression for which regions are one thing",
        "12 features of contact, colour, solid and size; no better than two thresholds",
    ),
    (
        "automatic masks: voxels of 1.9, 1.6 and 2.2 pixels, not 1.6, 1.3 and 1.9",
        "messy100 .711 to .653, new25 .915 to .896, redkitchen .671 to .646; messy25 .817 to .831",
    ),
    (
        "automatic masks: voxels of 1.3, 1.0 and 1.6 pixels",
        "messy100 .711 to .746, but new25 .915 to .829: things in pieces; messy25 .817 to .806",
    ),
    (
        "automatic masks: no snapping to colour segments",
        "SQ +.01, extraction +.02, but fragments: messy8 .93 to .84 and .88",
    ),
    (
        "automatic masks: edges sharpened by what surface and colours agree about",
        "messy50 .841 to .839, extraction .818 to .816, PSNR -.03 dB; by all masks the same",
    ),
    (
        "automatic masks: histograms of finer colours, or without lightness",
        "of 117 right joins in messy scenes, 7 to 12 wrong ones with them, 8 now",
    ),
    (
        "automatic masks: flat things photo by photo, not in one picture of their plane",
        "redkitchen .617 to .593: a magazine less; new50 .847 to .838, others within .006",
    ),
    (
        "automatic masks: flat things by the weakest spot of their border (felzenszwalb)",
        "redkitchen in three trainings .629 .574 .591 to .617 .452 .426; messy equal",
    ),
    (
        "automatic masks: flat things of one size of segments (border cost 2500 alone)",
        "redkitchen in three trainings .640 .590 .697 to .640 .590 .641; cards and pens are lost",
    ),
    (
        "automatic masks: a plane may take in what rises high above it",
        "redkitchen in three trainings .640 .590 .641 to .629 .574 .591; messy equal",
    ),
    (
        "joining pieces at the end from .35 on, however often masks show them alone",
        "messy25 severe .923 to .864: two things that touch become one",
    ),
    (
        "the same from .3 on",
        "a new scene of 25 objects, severe .896 to .931, but redkitchen felz .501 to .444",
    ),
    (
        "joining pieces at the end with automatic masks, too",
        "redkitchen .617 to .576: a chair goes to the table",
    ),
    (
        "automatic masks: each photo with all three voxel sizes, not in turn",
        "within .01 as good; the lift takes three times as long",
    ),
    (
        "given masks and those of geometry alone as one set of masks",
        "messy25 severe .864 to .916, redkitchen felz .501 to .599, but paper .825 to .662",
    ),
    (
        "the split by geometry alone as one more to choose from",
        "no object more: given masks explain their own mistakes better",
    ),
    (
        "dividing fused objects by regions of one voxel size, without label maps",
        "half of the time; redkitchen felz .545 to .495, where three sizes agree on another border",
    ),
    (
        "joining from .3 on, but not what geometry shows apart",
        "the same objects as from .35 on, in 9 pairs of scene and masks",
    ),
    (
        "snapping the objects' label maps to small colour segments of the photo",
        "mean IoU .957 to .79 ... .92 in the training views of messy25 paper",
    ),
    (
        "training 250 steps on, with the masks of the objects found as a hinge loss",
        "messy25: true masks PQ .956 to .965 (-.11 dB), paper +.001, severe -.006",
    ),
    (
        "masks by how they fit their object in all votes, not in the last ones alone",
        "one object less: messy25 paper .950 to .933",
    ),
    (
        "the same by the square of their IoU, over the mean instead of the median",
        "messy25 severe .902 to .923, but redkitchen severe .756 to .629",
    ),
    (
        "automatic masks: no joining of what two of three voxel sizes divide",
        "messy100 .669 to .676, but messy25 .883 to .848, messy50 .839 to .831",
    ),
    (
        "an object's crumbs, by connectedness of its Gaussians' centres, to their neighbours",
        "PQ .956 to .146 on messy8 paper: flat splats lie far apart",
    ),
)
ALL_METHODS = {
    ORACLE: Row(oracle, "votes of the true ids: what the geometry allows"),
    **ABLATION,
    **STEPS,
    **METHODS,
}
