# SPDX-License-Identifier: GPL-3.0-or-later
"""The choice between two splits of a scene, made where they differ by what the masks show."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from unified_lift.config import LiftConfig
from unified_lift.lift.compaction import agreement, best_ious, revote, without_gaps
from unified_lift.lift.incidence import Incidence, shared_mass


def take_better(
    incidence: Incidence, split: np.ndarray, other: np.ndarray, config: LiftConfig
) -> np.ndarray:
    """Put objects of another split in the place of a split's where masks explain them better.

    Objects that overlap form groups. A group that both splits see as one object stays, to the last
    Gaussian, and so does one that the other split does not explain better. No ground truth is
    needed, and the score of a whole split would not do: large surfaces drown the rest.

    Args:
        incidence: N Gaussians.
        split: (N,) int from 0 without gaps, -1 = none; it stays where in doubt.
        other: (N,) int, likewise.
        config: thresholds.

    Returns:
        (N,) int64 ids from 0 without gaps, -1 = none.
    """
    if not (split >= 0).any() or not (other >= 0).any():
        return without_gaps(split)
    scores, other_scores = (object_scores(incidence, ids) for ids in (split, other))
    joined = agreement(incidence, split, len(scores), config)
    # Where masks show hardly any object well, one is worth less: no gain to have fewer of them.
    worth = min(config.object_worth, float(scores.mean()))
    result, num = split.copy(), len(scores)
    alive = np.arange(num + len(other_scores)) < num
    open_again = np.zeros(len(split), bool)
    for olds, news in _groups(incidence, split, other, config):
        between = joined[np.ix_(olds, olds)]
        if not _is_better(scores[olds], other_scores[news], between, worth, config):
            continue
        alive[olds], alive[num + news] = False, True
        free = np.isin(split, olds)
        taken = (free | (split < 0)) & np.isin(other, news)
        result[free] = -1
        result[taken] = num + other[taken]
        open_again |= free | taken
    voted = revote(incidence, result, config.dissolve_rounds, config, alive)
    return without_gaps(np.where(open_again, voted, result))


def object_scores(incidence: Incidence, object_ids: np.ndarray) -> np.ndarray:
    """Mean IoU (K,) of each object with the mask that shows it best, over the views that see it."""
    best, weights = best_ious(incidence, object_ids, int(object_ids.max()) + 1)
    return (weights * best).sum(0) / np.maximum(weights.sum(0), 1e-6)


def _is_better(
    old: np.ndarray, new: np.ndarray, joined: np.ndarray, worth: float, config: LiftConfig
) -> bool:
    """Whether the new objects of a group explain the masks better than the old ones.

    The sum of scores beyond `worth` has to rise: it counts well shown objects and charges
    for fragments. Where old objects become fewer, their mean score has to rise as well, and masks
    must join each with another now and then: fragments of one object are, neighbours are not.

    Args:
        old: (A,) scores, A >= 1.
        new: (B,) scores, B >= 1.
        joined: (A, A) agreement of the old objects.
        worth: what an object has to score to count for more than none.
        config: thresholds.
    """
    if (new - worth).sum() <= (old - worth).sum():
        return False
    if len(new) >= len(old):
        return True
    others = np.where(np.eye(len(old), dtype=bool), -1, joined)
    return new.mean() > old.mean() and bool(others.max(1).min() >= config.join_agreement)


def _groups(
    incidence: Incidence, split: np.ndarray, other: np.ndarray, config: LiftConfig
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Groups of overlapping objects (A,), (B,) of both splits; A, B >= 1, not both 1."""
    shared, total, other_total = shared_mass(incidence, split, other)
    num = len(total)
    overlap = shared >= config.group_overlap * np.minimum(total[:, None], other_total)
    links = scipy.sparse.csr_matrix(overlap)
    graph = scipy.sparse.bmat([[None, links], [links.T, None]])
    count, group = scipy.sparse.csgraph.connected_components(graph, directed=False)
    members = (
        (np.nonzero(group[:num] == i)[0], np.nonzero(group[num:] == i)[0]) for i in range(count)
    )
    return [(a, b) for a, b in members if len(a) and len(b) and len(a) + len(b) > 2]
