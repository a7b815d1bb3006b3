# SPDX-License-Identifier: GPL-3.0-or-later
"""The codebook: its start, which masks get which codes, and how it follows the features."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.config import FeatureConfig


def repelled_codes(
    num_codes: int,
    dim: int,
    generator: torch.Generator,
    steps: int,
    rate: float,
    strength: float,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Unit vectors (K, D) that keep apart: minimise sum exp(strength * cosine) over all pairs.

    `check` is called in each step and may raise Cancelled: thousands of codes take minutes.
    """
    codes = torch.randn(num_codes, dim, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=rate)
    others = ~torch.eye(num_codes, dtype=torch.bool)
    for _ in range(steps):
        check()
        unit = normalize(codes, dim=1)
        energy = (torch.exp(strength * unit @ unit.T) * others).sum()
        optimizer.zero_grad()
        energy.backward()
        optimizer.step()
    return normalize(codes.detach(), dim=1)


@torch.no_grad()
def mask_scores(
    x: Tensor, codebook: Tensor, masks: Tensor, weights: Tensor, num_masks: int, scale: float
) -> Tensor:
    """How much each mask looks like each code (the paper's area-aware mapping).

    Softmax similarities are summed, not averaged, over the pixels of a mask: large masks choose
    first, small and doubtful ones take what is left.

    Args:
        x: (S, D) unit length.
        codebook: (K, D) unit length.
        masks: (S,) int64.
        weights: (S,) reliability.
        num_masks: M.
        scale: of the cosine logits.

    Returns:
        (M, K).
    """
    similarity = (scale * x @ codebook.T).softmax(1) * weights[:, None]
    return similarity.new_zeros(num_masks, len(codebook)).index_add(0, masks, similarity)


def associate(scores: Tensor) -> Tensor:
    """Match the masks of a view to codes, one to one, with the largest total (Hungarian).

    Args:
        scores: (M, K).

    Returns:
        (M,) int64; masks beyond K take their best code.
    """
    codes = scores.argmax(1)
    rows, columns = linear_sum_assignment(scores.numpy(), maximize=True)
    codes[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return codes


def join_fragments(codes: Tensor, scores: Tensor, means: Tensor, min_cosine: float) -> Tensor:
    """Give a mask the code that it likes best, although another has it, if both look alike.

    One to one association forces the parts of an object that a view splits onto different codes.

    Args:
        codes: (M,) int64 from `associate`.
        scores: (M, K).
        means: (M, D) mean features of the masks, unit length.
        min_cosine: of the means of two masks that look alike.

    Returns:
        (M,) int64.
    """
    wanted = scores.argmax(1)
    alike = means @ means.T > min_cosine
    has_wanted = codes[None, :] == wanted[:, None]
    return torch.where((alike & has_wanted).any(1), wanted, codes)


def follow(sums: Tensor, x: Tensor, codes: Tensor, weights: Tensor, rate: float) -> Tensor:
    """Move the codes towards the features that chose them (the paper's concentration loss).

    The minimiser of the squared concentration loss is the mean; here a running one.

    Args:
        sums: (K, D) running sums; the codebook is these at unit length.
        x: (S, D) unit length, without gradient.
        codes: (S,) int64.
        weights: (S,) reliability.
        rate: share of the old that one step replaces.

    Returns:
        (K, D) the new running sums.
    """
    return ((1 - rate) * sums).index_add(0, codes, rate * weights[:, None] * x)


def fit_codebook(
    features: Tensor,
    mass: np.ndarray,
    num_codes: int,
    config: FeatureConfig,
    rng: np.random.Generator,
) -> Tensor:
    """Another codebook for learned features: k-means of some Gaussians, drawn by their mass.

    Args:
        features: (N, D) unit length.
        mass: (N,) >= 0, blend weight of each Gaussian in masks, not 0 for all.
        num_codes: K.
        config: how many are drawn, and what one counts for at most.
        rng: makes each codebook another one.

    Returns:
        (K, D) unit length; fewer where fewer Gaussians differ.
    """
    chance = np.minimum(mass, config.fit_mass)
    drawn = features.numpy()[rng.choice(len(mass), config.fit_count, p=chance / chance.sum())]
    num_codes = min(num_codes, len(np.unique(drawn, axis=0)))
    start = _spread_start(drawn, num_codes, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a code that nothing takes does no harm
        codes, _ = kmeans2(drawn, start, iter=config.fit_rounds, minit="matrix")
    return normalize(torch.from_numpy(codes), dim=1)


def _spread_start(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007): far rows are likely to be the next start.

    SciPy's own measures all distances anew for each start: minutes for hundreds of them.
    """
    chosen = [int(rng.integers(len(rows)))]
    distances = np.full(len(rows), np.inf)
    while len(chosen) < count:
        latest = rows[chosen[-1], None]
        distances = np.minimum(distances, cdist(latest, rows, "sqeuclidean")[0])
        chance = (distances / distances.sum()).cumsum()
        chosen.append(int(np.searchsorted(chance, rng.uniform())))
    return rows[chosen].astype(np.float64)
