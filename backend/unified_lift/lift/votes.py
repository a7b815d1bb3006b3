# SPDX-License-Identifier: GPL-3.0-or-later
"""The training-free split: a graph of masks that show the same Gaussians, cut into tracks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse

from unified_lift.config import LiftConfig
from unified_lift.lift.incidence import Incidence, count_votes
from unified_lift.protocol import JobError

Pairs = set[tuple[int, int]]


class MaskGraph(NamedTuple):
    """How masks of different views cover one another.

    Attributes:
        contained: (M, M) csr float32; row a, column b: share of mask a's Gaussians that mask b
            shows, among those that have a label in the view of b.
        shared: (M, V) float32: share of mask a's Gaussians that have a label in view v.
    """

    contained: scipy.sparse.csr_matrix
    shared: np.ndarray


def split_by_votes(
    incidence: Incidence, config: LiftConfig, check: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Split Gaussians into the tracks of the mask graph: no random numbers, no training.

    Args:
        incidence: N Gaussians, at most `config.max_masks` masks.
        config: thresholds.
        check: called again and again; may raise Cancelled.

    Returns:
        (N,) int64 track of each Gaussian from 0; -1 where no track's mask shows it.

    Raises:
        JobError: more tracks than the memory holds beside all masks.
    """
    graph = mask_graph(incidence, config)
    check()
    tracks = link_masks(graph, incidence.mask_views, config, check)
    tracks = _drop_weak(tracks, incidence, config)
    mass = incidence.by_gaussian
    votes = tracks[mass.indices]
    num_tracks = max(1, int(tracks.max(initial=-1)) + 1)
    if num_tracks * incidence.num_masks > config.max_cells:
        raise JobError(
            f"The {incidence.num_masks:,} masks of all photos show {num_tracks:,} different "
            "things, more than the memory holds. Leave small regions 0, or take fewer photos."
        )
    weights = np.where(votes >= 0, mass.data, 0)
    object_ids, masses = count_votes(incidence, np.maximum(votes, 0), weights, num_tracks)
    return without_void(incidence, object_ids, masses, config)


def without_void(
    incidence: Incidence, object_ids: np.ndarray, masses: np.ndarray, config: LiftConfig
) -> np.ndarray:
    """Take the id (set -1) from Gaussians that unlabelled pixels show far more than their mass."""
    void = incidence.void.sum(0) > config.void_ratio * masses
    return np.where(void, -1, object_ids)


def mask_graph(incidence: Incidence, config: LiftConfig) -> MaskGraph:
    """Compare all masks by the Gaussians that they own, with regard to what each view sees."""
    mass, views = incidence.mass, incidence.mask_views
    labelled = (incidence.onto_view @ mass).toarray()
    visible = labelled + incidence.void
    row = _rows(mass)
    in_view = visible[views[row], mass.indices]
    owned = (mass.data >= config.own_share * in_view) & (in_view >= config.min_visible)
    cells = (row[owned], mass.indices[owned])
    weight = scipy.sparse.csr_matrix((np.minimum(mass.data[owned], 1), cells), mass.shape)
    owns = scipy.sparse.csr_matrix((np.ones(owned.sum(), np.float32), cells), mass.shape)
    seen = scipy.sparse.csr_matrix((labelled >= config.min_visible).astype(np.float32))
    in_common = (weight @ seen.T).toarray()
    contained = weight @ owns.T
    contained.sort_indices()
    seen_mass = in_common[_rows(contained), views[contained.indices]]
    contained.data /= np.maximum(seen_mass, 1e-6)
    total = np.asarray(weight.sum(1))
    return MaskGraph(contained, in_common / np.maximum(total, 1e-6))


def _rows(matrix: scipy.sparse.csr_matrix) -> np.ndarray:
    """The row of each entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def link_masks(
    graph: MaskGraph,
    mask_views: np.ndarray,
    config: LiftConfig,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Join masks that contain each other, best pairs first.

    Two masks of one view keep their clusters apart, unless one mask covers both of them in a fair
    share of the views that see both: then the view split one object.

    Returns:
        (M,) int64 cluster of each mask, from 0 without gaps.
    """
    joined = _often_joined(graph, mask_views, config)
    check()
    cluster = list(range(len(mask_views)))
    members = [{int(view): [mask]} for mask, view in enumerate(mask_views)]
    for a, b in _edges(graph, mask_views, config).tolist():
        keep, gone = cluster[a], cluster[b]
        if keep == gone or _conflict(members[keep], members[gone], joined):
            continue
        check()
        if len(members[keep]) < len(members[gone]):
            keep, gone = gone, keep
        for view, masks in members[gone].items():
            members[keep].setdefault(view, []).extend(masks)
            for mask in masks:
                cluster[mask] = keep
        members[gone] = {}
    return np.unique(cluster, return_inverse=True)[1]


def _edges(graph: MaskGraph, mask_views: np.ndarray, config: LiftConfig) -> np.ndarray:
    """Pairs of masks that contain each other, (E, 2), strongest first."""
    mutual = scipy.sparse.triu(graph.contained.minimum(graph.contained.T), 1).tocsr()
    mutual.sort_indices()
    a, b, strength = _rows(mutual), mutual.indices, mutual.data
    seen = graph.shared > config.min_shared
    linked = (strength >= config.edge_containment) & (mask_views[a] != mask_views[b])
    linked &= seen[a, mask_views[b]] & seen[b, mask_views[a]]
    order = np.argsort(-strength[linked], kind="stable")
    return np.stack([a[linked], b[linked]], 1)[order]


def _often_joined(graph: MaskGraph, mask_views: np.ndarray, config: LiftConfig) -> Pairs:
    """Pairs of masks of one view that one mask covers in enough of the views that see both."""
    seen = graph.shared > config.min_shared
    a, b = _rows(graph.contained), graph.contained.indices
    covers = (graph.contained.data >= config.cover_containment) & seen[a, mask_views[b]]
    ones = np.ones(covers.sum(), np.float32)
    covered = scipy.sparse.csr_matrix((ones, (a[covers], b[covers])), graph.contained.shape)
    seen = seen.astype(np.float32)
    joined = set()
    for view in np.unique(mask_views):
        (masks,) = np.nonzero(mask_views == view)
        times = (covered[masks] @ covered[masks].T).toarray()
        seen_both = np.maximum(seen[masks] @ seen[masks].T, 1)
        a, b = np.nonzero(times >= config.joined_share * seen_both)
        joined.update(zip(masks[a].tolist(), masks[b].tolist()))
    return joined


def _conflict(some: dict[int, list[int]], others: dict[int, list[int]], joined: Pairs) -> bool:
    return any(
        (a, b) not in joined
        for view, masks in others.items()
        if view in some
        for a in some[view]
        for b in masks
    )


def _drop_weak(tracks: np.ndarray, incidence: Incidence, config: LiftConfig) -> np.ndarray:
    """Number the tracks of enough views and mass from 0, and set the masks of others to -1."""
    mass = np.bincount(tracks, np.asarray(incidence.mass.sum(1)).ravel())
    pairs = np.unique(np.stack([tracks, incidence.mask_views]), axis=1)
    strong = np.bincount(pairs[0]) >= config.min_track_views
    strong &= mass >= config.min_track_mass * mass.sum()
    return np.where(strong, np.cumsum(strong) - 1, -1)[tracks]
