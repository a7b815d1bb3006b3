# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified-Lift's features and codebook, learned on frozen Gaussians from cached blend weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.config import FeatureConfig, LiftConfig
from unified_lift.lift.association import (
    associate,
    follow,
    join_fragments,
    mask_scores,
    repelled_codes,
)
from unified_lift.lift.incidence import Incidence
from unified_lift.lift.losses import (
    codebook_loss,
    contrastive_loss,
    purity_loss,
    reliability,
    sum_masks,
)
from unified_lift.protocol import Report
from unified_lift.rendering.weights import BlendWeights

Show = Callable[[Tensor, Tensor], None]  # features (N, D), codebook (K, D)


def train_features(
    weights: list[BlendWeights],
    label_maps: list[np.ndarray | None],
    num_gaussians: int,
    num_codes: int,
    config: FeatureConfig,
    seed: int,
    report: Report,
    show: Show = lambda features, codebook: None,
) -> tuple[Tensor, Tensor]:
    """Learn a feature for each Gaussian and a code for each object from masks without common ids.

    Geometry gets no gradient in the published joint training either, so this is the same job.

    Args:
        weights: one for each training view.
        label_maps: (H, W) int each, 0 = unlabelled, ids local to the view; None = no masks.
        num_gaussians: N.
        num_codes: K.
        config: settings.
        seed: makes the run repeatable.
        report: told of each step, with its loss as the message.
        show: called after each step with what is learned so far, to make a preview.

    Returns:
        features (N, D) and codebook (K, D), float32, unit length.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps are too small for more, and sums keep their order
    try:
        return _train(weights, label_maps, num_gaussians, num_codes, config, seed, report, show)
    finally:
        torch.set_num_threads(threads)


def _train(
    weights: list[BlendWeights],
    label_maps: list[np.ndarray | None],
    num_gaussians: int,
    num_codes: int,
    config: FeatureConfig,
    seed: int,
    report: Report,
    show: Show,
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = _start(num_gaussians, num_codes, config, generator, report)
    views = [i for i, labels in enumerate(label_maps) if labels is not None and labels.any()]
    order: list[int] = []
    for step in range(config.steps):
        order = order or torch.randperm(len(views), generator=generator).tolist()
        view = views[order.pop()]
        pixels, masks, num_masks = _sample(label_maps[view], config.pixels, generator)
        state, loss = _train_step(state, weights[view], pixels, masks, num_masks, step, config)
        report.progress(step + 1, config.total_steps, f"loss {loss:.4g}")
        show(*_learned(state))
    return _learned(state)


def _learned(state: _State) -> tuple[Tensor, Tensor]:
    return state.features.detach(), normalize(state.code_sums, dim=1)


def count_codes(tracks: np.ndarray, incidence: Incidence, config: LiftConfig) -> int:
    """How many codes the masks suggest: one for each track, and some to spare.

    Args:
        tracks: (N,) int from `split_by_votes`, before compaction; -1 = none.
        incidence: N Gaussians; a view with more masks than that needs as many codes.
        config: how many to spare. Too many split walls, too few fuse what is far apart.
    """
    suggested = int(tracks.max(initial=-1)) + 1
    spare = max(config.spare_codes, int(config.spare_share * suggested))
    return max(suggested + spare, int(np.bincount(incidence.mask_views).max(initial=0)))


def nearest_codes(features: Tensor, codebook: Tensor) -> np.ndarray:
    """The code of each Gaussian: argmax of the cosine similarity, (N,) int64."""
    return (features @ codebook.T).argmax(1).numpy()


class _State(NamedTuple):
    features: Tensor
    code_sums: Tensor
    optimizer: torch.optim.Adam


def _start(
    num_gaussians: int,
    num_codes: int,
    config: FeatureConfig,
    generator: torch.Generator,
    report: Report,
) -> _State:
    codes = repelled_codes(
        num_codes,
        config.dim,
        generator,
        config.repel_steps,
        config.repel_rate,
        config.repel_strength,
        report.check,
    )
    features = normalize(torch.randn(num_gaussians, config.dim, generator=generator), dim=1)
    features.requires_grad_()
    return _State(features, codes, torch.optim.Adam([features], lr=config.rate, fused=True))


def _sample(
    labels: np.ndarray, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, int]:
    """Draw pixels; those without a label are dropped.

    Returns:
        (S,) int64 row-major indices in ascending order, (S,) int64 mask of each from 0, and M.
    """
    pixels = torch.randint(labels.size, (count,), generator=generator).sort()[0]
    drawn = torch.from_numpy(labels.reshape(-1)[pixels.numpy()].astype(np.int64))
    pixels, drawn = pixels[drawn > 0], drawn[drawn > 0]
    ids, masks = torch.unique(drawn, return_inverse=True)
    return pixels, masks, len(ids)


def _train_step(
    state: _State,
    weights: BlendWeights,
    pixels: Tensor,
    masks: Tensor,
    num_masks: int,
    step: int,
    config: FeatureConfig,
) -> tuple[_State, float]:
    """One view: features by contrast and codebook, the codebook by following the features."""
    blended = weights.blend(state.features, pixels)
    lengths = blended.norm(dim=1)
    x = blended / lengths.clamp_min(1e-4)[:, None]
    codebook = normalize(state.code_sums, dim=1)
    still = x.detach()
    trust = reliability(
        still, masks, num_masks, config.trust_temperature, config.trust_low, config.trust_high
    )
    scores = mask_scores(still, codebook, masks, trust, num_masks, config.logit_scale)
    means = normalize(sum_masks(still, masks, num_masks), dim=1)
    codes = join_fragments(associate(scores), scores, means, config.fragment_cosine)[masks]
    sums = follow(state.code_sums, still, codes, trust, config.follow_rate)
    contrast = contrastive_loss(x, masks, num_masks, config.temperature, config.min_pixels)
    agreement = codebook_loss(x, normalize(sums, dim=1), codes, trust, config.logit_scale)
    loss = (
        contrast
        + config.codebook_weight * _ramp(step, config) * agreement
        + config.purity_weight * purity_loss(lengths)
    )
    state.optimizer.param_groups[0]["lr"] = _rate(step, config)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    with torch.no_grad():
        state.features.copy_(normalize(state.features, dim=1))
    return state._replace(code_sums=sums), float(loss.detach())


def _ramp(step: int, config: FeatureConfig) -> float:
    """Weight of the codebook's pull on the features: 0 until it has found its place, then 1."""
    share = step / config.steps
    return min(1.0, max(0.0, (share - config.pull_from) / (config.pull_full - config.pull_from)))


def _rate(step: int, config: FeatureConfig) -> float:
    """Cosine decay of the learning rate."""
    wave = (1 + math.cos(math.pi * step / config.steps)) / 2
    return config.final_rate + (config.rate - config.final_rate) * wave
