# SPDX-License-Identifier: GPL-3.0-or-later
"""What the methods of the benchmark are given, and what they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from unified_lift.config import LiftConfig
from unified_lift.edges import vote_anew, vote_where_sure
from unified_lift.gaussians import Gaussians
from unified_lift.lift.compaction import compact
from unified_lift.lift.incidence import Incidence, mask_incidence
from unified_lift.lift.objects import SeenSplats, settle
from unified_lift.lift.refinement import shapes_of
from unified_lift.lift.votes import split_by_votes
from unified_lift.rendering.weights import BlendWeights


@dataclass(frozen=True)
class Outcome:
    """What a method gives: object_ids (N,) from 0, -1 = none, and what it learned, if anything.

    Gaussians are None where they are as they were given.
    """

    object_ids: np.ndarray
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    codebook: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    gaussians: Gaussians | None = None


@dataclass(frozen=True)
class Frozen:
    """What a method is given: N frozen Gaussians as V training views see them, and their masks.

    Attributes:
        weights: blend weights of each view.
        label_maps: (H, W) int each, 0 = unlabelled, ids local to the view; None = no masks.
        lift: thresholds for this kind of masks.
        shape_maps: likewise, what geometry alone shows; None where it made the masks.
        splats: the Gaussians; None where a split is not settled.
        sharpen: gives them the edges of a split (N,), raw parameters and how they are seen, or
            None where the masks do not show these; None where no job would.
        sure_maps: what has the last vote; None where it is `label_maps`.
    """

    weights: list[BlendWeights]
    label_maps: list[np.ndarray | None]
    lift: LiftConfig
    shape_maps: list[np.ndarray] | None = None
    splats: SeenSplats | None = None
    sharpen: Callable[[np.ndarray], tuple[Gaussians, SeenSplats] | None] | None = None
    sure_maps: list[np.ndarray] | None = None

    @property
    def num_gaussians(self) -> int:
        """N."""
        return self.weights[0].num_gaussians

    @cached_property
    def incidence(self) -> Incidence:
        """Of the masks."""
        return mask_incidence(self.weights, self.label_maps)

    @cached_property
    def tracks(self) -> np.ndarray:
        """Of the mask graph, (N,)."""
        return split_by_votes(self.incidence, self.lift)

    @cached_property
    def by_votes(self) -> np.ndarray:
        """Objects of the tracks, compacted, (N,)."""
        return compact(self.incidence, self.tracks, self.lift)

    @cached_property
    def shapes(self) -> np.ndarray | None:
        """Objects of the shape maps, (N,)."""
        return None if self.shape_maps is None else shapes_of(self.weights, self.shape_maps)

    def handed_over(self, outcome: Outcome) -> Outcome:
        """As a job hands it over: its edges sharp, voted on anew, settled.

        What a job leaves out of the scene is here of no object.
        """
        incidence, object_ids = self.incidence, outcome.object_ids
        if self.sure_maps:
            voters = (incidence, self.weights, self.sure_maps)
            object_ids = vote_where_sure(*voters, object_ids, self.lift)
        if self.splats is None:
            return replace(outcome, object_ids=object_ids)
        sharp = self.sharpen and self.sharpen(object_ids)
        gaussians, splats = sharp or (None, self.splats)
        if sharp:
            voters = (splats.weights, self.label_maps)
            incidence, object_ids = vote_anew(*voters, object_ids, self.lift)
        object_ids, _ = settle(incidence, object_ids, splats, self.lift)
        return replace(outcome, object_ids=object_ids, gaussians=gaussians)

    @property
    def scene(self) -> tuple[list[BlendWeights], list[np.ndarray | None], int]:
        """The head of what training functions take."""
        return self.weights, self.label_maps, self.num_gaussians


def vote_labels(weights: list[BlendWeights], label_maps: list[np.ndarray | None]) -> np.ndarray:
    """The label that shows most of each Gaussian, (N,) int; 0 where none does.

    Args:
        weights: blend weights of each view.
        label_maps: (H, W) int each, the same ids in all views, 0 = unlabelled.
    """
    ids = np.unique([i for labels in label_maps for i in np.unique(labels)])
    mass = np.zeros((len(ids), weights[0].num_gaussians), np.float32)
    for blend, labels in zip(weights, label_maps, strict=True):
        mass += blend.mask_mass(np.searchsorted(ids, labels).ravel(), len(ids)).toarray()
    mass[ids == 0] = 0
    return np.where(mass.max(0) > 0, ids[mass.argmax(0)], 0)
