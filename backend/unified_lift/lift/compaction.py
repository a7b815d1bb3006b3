# SPDX-License-Identifier: GPL-3.0-or-later
"""Compaction: from more labels than objects to objects. Votes, merging, dissolving."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse

from unified_lift.config import LiftConfig
from unified_lift.lift.incidence import Incidence, count_votes
from unified_lift.lift.votes import without_void


def compact(incidence: Incidence, object_ids: np.ndarray, config: LiftConfig) -> np.ndarray:
    """Turn surplus labels into few objects: re-vote, merge, dissolve.

    Args:
        incidence: N Gaussians.
        object_ids: (N,) int, -1 = none.

    Returns:
        (N,) int64 ids from 0 without gaps, -1 = none.
    """
    object_ids = without_gaps(object_ids)
    object_ids = revote(incidence, object_ids, config.vote_rounds, config)
    object_ids = merge(incidence, object_ids, config)
    return without_gaps(dissolve(incidence, object_ids, config))


def masses(
    incidence: Incidence, object_ids: np.ndarray, num_objects: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mass of each object inside each mask (M, K) and in each view's masks (V, K), float32."""
    (given,) = np.nonzero(object_ids >= 0)
    ones = np.ones(len(given), np.float32)
    shape = (incidence.num_gaussians, num_objects)
    one_hot = scipy.sparse.csr_matrix((ones, (given, object_ids[given])), shape)
    in_masks = (incidence.mass @ one_hot).toarray()
    return in_masks, incidence.onto_view @ in_masks


# ---- votes


def revote(
    incidence: Incidence,
    object_ids: np.ndarray,
    rounds: int,
    config: LiftConfig,
    alive: np.ndarray | None = None,
    by_trust: bool = False,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Let masks name their objects, and Gaussians take the object that most masks name for them.

    Several masks of a view may name one object (the view over-segments it), and a mask may stand
    for several objects (it under-segments): then it votes for each Gaussian's own object, with
    less weight. It ends early when nothing changes.

    Args:
        incidence: N Gaussians.
        object_ids: (N,) int from 0, -1 = none.
        rounds: of naming and voting.
        config: thresholds.
        alive: (K,) bool, objects that masks may name; None for all.
        by_trust: masks count by `_trust`, too.
        check: called in each round; may raise Cancelled.

    Returns:
        (N,) int64.
    """
    num_objects = int(object_ids.max(initial=0)) + 1 if alive is None else len(alive)
    mass = incidence.by_gaussian
    gaussian = np.repeat(np.arange(incidence.num_gaussians, dtype=np.int32), np.diff(mass.indptr))
    for _ in range(rounds):
        check()
        in_masks, in_views = masses(incidence, object_ids, num_objects)
        if alive is not None:
            in_masks[:, ~alive] = 0
        best = in_masks.argmax(1)
        large, objects = np.nonzero(in_masks >= config.name_pixels)
        whole = np.maximum(in_views[incidence.mask_views[large], objects], 1e-6)
        named = np.zeros(in_masks.shape, bool)
        named[large, objects] = in_masks[large, objects] / whole >= config.name_share
        named[np.arange(len(best)), best] = True
        several = named.sum(1) > 1
        mask_weight = np.where(several, config.ambiguous_weight, 1.0)
        if by_trust:
            mask_weight *= _trust(incidence, best, in_masks, in_views)
        mask_weight[in_masks.max(1, initial=0) <= 0] = 0
        votes = best[mass.indices]
        (open_entries,) = np.nonzero(several[mass.indices])
        own = object_ids[gaussian[open_entries]]
        own_named = (own >= 0) & named[mass.indices[open_entries], np.maximum(own, 0)]
        votes[open_entries[own_named]] = own[own_named]
        weights = mass.data * mask_weight[mass.indices]
        winners, won = count_votes(incidence, votes, weights, num_objects)
        before, object_ids = object_ids, without_void(incidence, winners, won, config)
        if np.array_equal(before, object_ids):
            break
    return object_ids


def _trust(
    incidence: Incidence, best: np.ndarray, in_masks: np.ndarray, in_views: np.ndarray
) -> np.ndarray:
    """How far each mask (M,) agrees with what the others say of its object, 0..1.

    Its IoU with the object that it names, over the median of all masks that name it (weighted by
    mass), at most 1: a view that disagrees with the rest counts less, and an object that no view
    shows well loses nothing to its neighbours.

    Args:
        incidence: M masks.
        best: (M,) the object that each mask names.
        in_masks: (M, K) mass of each object in it.
        in_views: (V, K) and in its view.
    """
    rows = np.arange(len(best))
    shared, iou = in_masks[rows, best], _ious(incidence, in_masks, in_views)[rows, best]
    order = np.lexsort((iou, best))
    totals = np.bincount(best, shared, in_masks.shape[1])
    middles = np.cumsum(totals) - totals / 2
    reached = np.cumsum(shared[order], dtype=np.float64)
    places = np.searchsorted(reached, middles).clip(max=len(best) - 1)
    return np.minimum(1, iou / np.maximum(iou[order][places][best], 1e-6))


# ---- merging


def merge(incidence: Incidence, object_ids: np.ndarray, config: LiftConfig) -> np.ndarray:
    """Join objects whose Gaussians lie in the same masks wherever both are seen, best pairs first.

    Returns:
        (N,) int64 ids from 0, -1 = none.
    """
    if not (object_ids >= 0).any():
        return object_ids
    in_masks, _ = masses(incidence, object_ids, int(object_ids.max()) + 1)
    merged = merge_profiles(incidence, in_masks.T, config)
    return np.where(object_ids >= 0, merged[np.maximum(object_ids, 0)], -1)


def merge_profiles(incidence: Incidence, in_masks: np.ndarray, config: LiftConfig) -> np.ndarray:
    """Agglomerate objects by `agreement` of their mass in masks.

    Args:
        incidence: M masks.
        in_masks: (K, M) mass of each object in each mask.

    Returns:
        (K,) int64: the new object of each object, from 0 without gaps.
    """
    in_masks = in_masks.copy()
    owner = np.arange(len(in_masks))
    shares, weights = _profiles(incidence, in_masks)
    agree = _agreement(shares, weights, shares, weights, config)
    np.fill_diagonal(agree, -1)
    while agree.max() >= config.merge_agreement:
        keep, gone = np.unravel_index(agree.argmax(), agree.shape)
        owner[owner == gone] = keep
        in_masks[keep] += in_masks[gone]
        shares[keep], weights[keep] = _profiles(incidence, in_masks[keep, None])
        shares[gone] = weights[gone] = 0
        row = _agreement(shares[keep, None], weights[keep, None], shares, weights, config)[0]
        row[keep] = -1
        agree[keep] = agree[:, keep] = row
        agree[gone] = agree[:, gone] = -1
    return np.unique(owner, return_inverse=True)[1]


def agreement(
    incidence: Incidence, object_ids: np.ndarray, num_objects: int, config: LiftConfig
) -> np.ndarray:
    """Chance (K, K) that a pixel of one object and one of another lie in the same mask.

    Averaged over the views that see both; -1 for pairs that too few views see.
    """
    in_masks, _ = masses(incidence, object_ids, num_objects)
    profiles = _profiles(incidence, in_masks.T)
    return _agreement(*profiles, *profiles, config)


def _profiles(incidence: Incidence, in_masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted share of each mask in its view's mass (K, M), and the views' weights (K, V)."""
    in_views = (incidence.onto_view @ in_masks.T).T
    weights = view_weights(in_views)
    views = incidence.mask_views
    return in_masks / np.maximum(in_views[:, views], 1e-9) * weights[:, views], weights


def view_weights(in_views: np.ndarray) -> np.ndarray:
    """How well views see objects (K, V): 1 from half of the best view's mass on, less below."""
    return np.minimum(1, in_views / np.maximum(0.5 * in_views.max(1, keepdims=True), 1e-9))


def _agreement(
    shares: np.ndarray,
    weights: np.ndarray,
    other_shares: np.ndarray,
    other_weights: np.ndarray,
    config: LiftConfig,
) -> np.ndarray:
    seen = weights @ other_weights.T
    agree = (shares @ other_shares.T) / np.maximum(seen, 1e-9)
    return np.where(seen > config.merge_min_views, agree, -1)


# ---- dissolving


def support(
    incidence: Incidence, object_ids: np.ndarray, num_objects: int, config: LiftConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Share of views (K,), weighted by `view_weights`, in which one mask shows the object as it is.

    Returns:
        That share, 0..1, and the number of such views (K,) int.
    """
    best, weights = best_ious(incidence, object_ids, num_objects)
    shown = best > config.support_iou
    share = (weights * shown).sum(0) / np.maximum(weights.sum(0), 1e-6)
    return share, shown.sum(0)


def best_ious(
    incidence: Incidence,
    object_ids: np.ndarray,
    num_objects: int,
    usable: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """IoU (V, K) of each object with the mask that shows it best, and `view_weights` (V, K).

    Only `usable` masks, (M,) bool, are looked at; all by default.
    """
    in_masks, in_views = masses(incidence, object_ids, num_objects)
    iou = _ious(incidence, in_masks, in_views)
    if usable is not None:
        iou[~usable] = 0
    return incidence.best_of_views(iou), view_weights(in_views.T).T


def _ious(incidence: Incidence, in_masks: np.ndarray, in_views: np.ndarray) -> np.ndarray:
    """IoU (M, K) of each mask with each object, of their masses; both as `masses` gives them."""
    area = in_masks.sum(1, keepdims=True)
    return in_masks / np.maximum(area + in_views[incidence.mask_views] - in_masks, 1e-6)


def dissolve(incidence: Incidence, object_ids: np.ndarray, config: LiftConfig) -> np.ndarray:
    """Remove fragments that hardly any mask supports; their Gaussians are re-voted among the rest.

    A fragment is what masks join to another object now and then. What they never show whole, nor
    join to anything, is an object that all views split. The threshold rises in steps, so that the
    weakest go first and the others can grow.

    Returns:
        (N,) int64, ids as before, with gaps; -1 = none.
    """
    num_objects = int(object_ids.max(initial=0)) + 1
    steps = round(config.dissolve_support / config.dissolve_step)
    for step in range(1, steps + 1):
        share, views = support(incidence, object_ids, num_objects, config)
        joined = agreement(incidence, object_ids, num_objects, config)
        np.fill_diagonal(joined, -1)
        alive = (share >= step * config.dissolve_step) | (joined.max(1) < config.dissolve_joined)
        alive &= views >= config.min_track_views
        kept = (object_ids >= 0) & alive[np.maximum(object_ids, 0)]
        object_ids = np.where(kept, object_ids, -1)
        object_ids = revote(incidence, object_ids, config.dissolve_rounds, config, alive)
    return object_ids


def without_gaps(object_ids: np.ndarray) -> np.ndarray:
    """Number the ids in use from 0; -1 stays."""
    used = np.unique(object_ids[object_ids >= 0])
    return np.where(object_ids >= 0, np.searchsorted(used, object_ids), -1)
