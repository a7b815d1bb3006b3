# SPDX-License-Identifier: GPL-3.0-or-later
"""Refining: what is left of errors once the objects are known. Last votes, pieces, fused things."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unified_lift.config import AUTO_LIFT, LiftConfig
from unified_lift.lift.compaction import agreement, compact, revote, support, without_gaps
from unified_lift.lift.incidence import Incidence, mask_incidence, shared_mass
from unified_lift.lift.votes import split_by_votes
from unified_lift.rendering.weights import BlendWeights


def refine(
    incidence: Incidence,
    object_ids: np.ndarray,
    config: LiftConfig,
    shapes: np.ndarray | None = None,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Vote once more, each mask as far as it fits its object; join pieces; divide fused things.

    And vote again: a mask of what was joined or divided is of one object now.

    Args:
        incidence: N Gaussians.
        object_ids: (N,) int from 0, -1 = none.
        config: thresholds.
        shapes: (N,) int from 0, -1 = none, the objects that geometry alone shows; None where the
            masks were made from it.
        check: called again and again; may raise Cancelled.

    Returns:
        (N,) int64 ids from 0 without gaps, -1 = none.
    """
    if not incidence.num_masks:
        return object_ids
    voted = _vote(incidence, object_ids, config, check)
    object_ids = join_pieces(incidence, voted, config)
    if shapes is not None:
        object_ids = cut_fused(incidence, object_ids, shapes, config)
    return object_ids if object_ids is voted else _vote(incidence, object_ids, config, check)


def _vote(
    incidence: Incidence, object_ids: np.ndarray, config: LiftConfig, check: Callable[[], None]
) -> np.ndarray:
    rounds = config.refine_rounds
    voted = revote(incidence, object_ids, rounds, config, by_trust=True, check=check)
    return without_gaps(voted)


# ---- pieces


def join_pieces(incidence: Incidence, object_ids: np.ndarray, config: LiftConfig) -> np.ndarray:
    """Join objects that masks join as often as they show one of the two alone, best pairs first.

    Of two objects that many views fuse by mistake, other views show each as it is.

    Args:
        incidence: N Gaussians.
        object_ids: (N,) int from 0 without gaps, -1 = none.
        config: `piece_agreement`.

    Returns:
        (N,) int64, likewise.
    """
    while (object_ids >= 0).any():
        num_objects = int(object_ids.max()) + 1
        joined = agreement(incidence, object_ids, num_objects, config)
        np.fill_diagonal(joined, -1)
        alone, _ = support(incidence, object_ids, num_objects, config)
        lead = joined - np.clip(np.minimum(alone[:, None], alone), *config.piece_agreement)
        owner = _best_pairs(lead)
        if np.array_equal(owner, np.arange(num_objects)):
            break
        object_ids = without_gaps(np.where(object_ids >= 0, owner[object_ids], -1))
    return object_ids


def _best_pairs(lead: np.ndarray) -> np.ndarray:
    """The object (K,) that each of K joins: pairs from a lead (K, K) of 0 on, each object once."""
    owner = np.arange(len(lead))
    rows, columns = np.nonzero(np.triu(lead >= 0, 1))
    free = np.ones(len(lead), bool)
    for i in np.argsort(-lead[rows, columns], kind="stable"):
        keep, gone = rows[i], columns[i]
        if free[keep] and free[gone]:
            owner[gone] = keep
            free[[keep, gone]] = False
    return owner


# ---- fused things


def cut_fused(
    incidence: Incidence, object_ids: np.ndarray, shapes: np.ndarray, config: LiftConfig
) -> np.ndarray:
    """Divide objects where geometry shows several things and the masks are undecided.

    What masks fuse now and then, votes keep apart. Where masks join two things about half of the
    time and show each alone in the other views, geometry has the casting vote.

    Args:
        incidence: N Gaussians.
        object_ids: (N,) int from 0 without gaps, -1 = none.
        shapes: (N,) int from 0, -1 = none, the objects that geometry alone shows.
        config: the constants `cut_*`.

    Returns:
        (N,) int64, likewise.
    """
    num_objects = int(object_ids.max(initial=-1)) + 1
    parts, parents = _parts(incidence, object_ids, shapes, config)
    if len(parents) == num_objects:
        return object_ids
    joined = agreement(incidence, parts, len(parents), config)
    alone, _ = support(incidence, parts, len(parents), config)
    mass = incidence.mass_of_labels(parts, len(parents))
    whole = incidence.mass_of_labels(object_ids, num_objects)[parents]
    # What hardly a mask shows by itself, or is a crumb, is no thing.
    sound = (alone >= config.cut_support) & (mass >= config.cut_share * whole)
    apart = (joined >= 0) & (joined < config.cut_agreement) & sound & sound[:, None]
    owner = np.arange(len(parents))
    in_parts = np.unique(parents[num_objects:])
    for parent in in_parts:
        (members,) = np.nonzero((parents == parent) & (mass > 0))
        first, *others = members[np.argsort(-mass[members], kind="stable")]
        kept = [first]
        for part in others:
            if apart[part, kept].all():
                kept.append(part)
            else:
                close = np.where(apart[part, kept], -np.inf, joined[part, kept])
                owner[part] = kept[close.argmax()]
    cut = without_gaps(np.where(parts >= 0, owner[parts], -1))
    return object_ids if cut.max(initial=-1) + 1 == num_objects else cut


def shapes_of(
    weights: list[BlendWeights],
    label_maps: list[np.ndarray],
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The objects that geometry alone shows, (N,) int64 from 0, -1 = none: its masks' votes.

    Args:
        weights: one for each training view, N Gaussians.
        label_maps: of `surface_label_maps`.
        check: called again and again; may raise Cancelled.

    Raises:
        JobError: as `split_by_votes`.
    """
    incidence = mask_incidence(weights, label_maps)
    return compact(incidence, split_by_votes(incidence, AUTO_LIFT, check), AUTO_LIFT)


def _parts(
    incidence: Incidence, object_ids: np.ndarray, shapes: np.ndarray, config: LiftConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Parts (N,) of the objects, one for each shape that lies in one, and each part's object.

    The first parts are what is left of the K objects; a shape has a part in one if it has a fair
    share of the object's mass and lies there for the most part.
    """
    shared, whole, of_shapes = shared_mass(incidence, object_ids, shapes)
    inside = shared >= config.cut_inside * of_shapes
    inside &= (shared >= config.cut_share * whole[:, None]) & (shared > 0)
    parents = np.append(np.arange(len(whole)), np.nonzero(inside)[0])
    # With a last row and column for Gaussians of no object or shape, -1.
    numbers = np.full((len(whole) + 1, len(of_shapes) + 1), -1)
    numbers[:-1, :-1][inside] = np.arange(len(whole), len(parents))
    of_gaussian = numbers[object_ids, shapes]
    return np.where(of_gaussian >= 0, of_gaussian, object_ids), parents
