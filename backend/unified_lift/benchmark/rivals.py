# SPDX-License-Identifier: GPL-3.0-or-later
"""Rivals of Unified-Lift, from their papers' descriptions, on frozen Gaussians and shared masks.

All see the same sampled pixels and take as many steps. Common deviations: they were made for fields
and images of their own, with semantic classes, confidences or overlapping masks of several scales;
here each learns a vector for each frozen Gaussian, directly, from flat label maps. Unlabelled
pixels are left out. Learning rates are ours, constant.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import HDBSCAN
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from unified_lift.benchmark.frozen import Frozen, Outcome
from unified_lift.config import Budget, PublishedConfig, RivalConfig
from unified_lift.lift.association import associate
from unified_lift.lift.losses import sum_masks
from unified_lift.lift.published import check_finite, descend, train_published
from unified_lift.protocol import Report
from unified_lift.rendering.weights import BlendWeights

SETTINGS = RivalConfig()


def panoptic_lifting(
    frozen: Frozen, budget: Budget, seed: int, report: Report, config: RivalConfig = SETTINGS
) -> Outcome:
    """Panoptic Lifting (Siddiqui 2023): scores of surrogate ids, matched to the masks of each view.

    Its number of ids is set by hand; here it follows the masks. Its semantic and segment losses
    need classes and are left out.

    Args:
        frozen: N Gaussians and their masks.
        budget: steps and pixels.
        seed: makes the run repeatable.
        report: told of each step and its loss.
        config: settings.

    Returns:
        object_ids (N,) int64 from 0, with gaps.

    Raises:
        JobError: no view has a mask.
    """
    generator = torch.Generator().manual_seed(seed)
    most = max(
        (len(np.unique(labels)) for labels in frozen.label_maps if labels is not None), default=1
    )
    num_ids = math.ceil(config.ids_per_mask * most)
    logits = _random(frozen.num_gaussians, num_ids, config.start_scale, generator)

    def loss(view: int, pixels: Tensor, mask_ids: Tensor) -> Tensor:
        pixels, masks = _labelled(pixels, mask_ids)
        return assignment_loss(frozen.weights[view].blend(logits, pixels), masks)

    optimizer = torch.optim.Adam([logits], lr=config.assignment_rate, fused=True)
    descend(optimizer, loss, frozen.label_maps, budget, generator, report)
    check_finite(logits)
    return Outcome(logits.detach().argmax(1).numpy())


def contrastive_lift(
    frozen: Frozen, budget: Budget, seed: int, report: Report, config: RivalConfig = SETTINGS
) -> Outcome:
    """Contrastive Lift (Bhalgat 2023): fast features against their slow running mean, clustered.

    Losses as in its code, whose features are smooth in space; those of single Gaussians are not.

    Args, returns and errors are those of `panoptic_lifting`.
    """
    generator = torch.Generator().manual_seed(seed)
    fast = _random(frozen.num_gaussians, config.slow_fast_dim, config.start_scale, generator)
    slow = fast.detach().clone()

    def loss(view: int, pixels: Tensor, mask_ids: Tensor) -> Tensor:
        slow.lerp_(fast.detach(), 1 - config.slow_momentum)
        pixels, masks = _for_pairs(*_labelled(pixels, mask_ids), config)
        mine = frozen.weights[view].blend(fast, pixels[::2])
        other = frozen.weights[view].blend(slow, pixels[1::2])
        return slow_fast_loss(mine, masks[::2], other, masks[1::2])

    optimizer = torch.optim.Adam([fast], lr=config.slow_fast_rate, fused=True)
    descend(optimizer, loss, frozen.label_maps, budget, generator, report)
    masks = (frozen.weights, frozen.label_maps)
    return Outcome(cluster(fast.detach(), *masks, config, seed, directions=False))


def saga(
    frozen: Frozen, budget: Budget, seed: int, report: Report, config: RivalConfig = SETTINGS
) -> Outcome:
    """SAGA-style (Cen 2023): cosines of pixel pairs follow whether one mask holds both, clustered.

    Flat masks have one scale, so the gate by scale is left out; so is smoothing over neighbours.

    Args, returns and errors are those of `panoptic_lifting`.
    """
    generator = torch.Generator().manual_seed(seed)
    features = _random(frozen.num_gaussians, config.pair_dim, 1.0, generator)

    def loss(view: int, pixels: Tensor, mask_ids: Tensor) -> Tensor:
        pixels, masks = _for_pairs(*_labelled(pixels, mask_ids), config)
        rendered = frozen.weights[view].blend(normalize(features, dim=1), pixels)
        return pair_loss(rendered, masks, config.pair_norm_weight)

    optimizer = torch.optim.Adam([features], lr=config.pair_rate, fused=True)
    descend(optimizer, loss, frozen.label_maps, budget, generator, report)
    masks = (frozen.weights, frozen.label_maps)
    return Outcome(cluster(normalize(features.detach(), dim=1), *masks, config, seed))


def omniseg3d(
    frozen: Frozen, budget: Budget, seed: int, report: Report, config: RivalConfig = SETTINGS
) -> Outcome:
    """OmniSeg3D-style (Ying 2024): contrast of pixels with the means of masks, clustered.

    Its hierarchy comes from overlapping masks. Flat label maps have one level, and there its loss
    is the one that Unified-Lift took over: this is Unified-Lift's contrast without a codebook.

    Args, returns and errors are those of `panoptic_lifting`.
    """
    contrast = PublishedConfig(budget.steps, budget.pixels, codebook=False)
    features = train_published(*frozen.scene, contrast, seed, report).features
    return Outcome(cluster(features, frozen.weights, frozen.label_maps, config, seed))


# ---- losses of S sampled pixels of one view; `masks` (S,) int64


def assignment_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy to the ids that masks are given, one to one, by their mean probability.

    Args:
        logits: (S, L) rendered scores.
        masks: from 0 without gaps.
    """
    sizes = torch.bincount(masks)
    probabilities = logits.detach().softmax(1)
    ids = associate(sum_masks(probabilities, masks, len(sizes)) / sizes[:, None])[masks]
    return cross_entropy(logits, ids, reduction="sum") / max(len(ids), 1)


def slow_fast_loss(fast: Tensor, masks: Tensor, slow: Tensor, slow_masks: Tensor) -> Tensor:
    """Contrast between fast and slow features, and concentration at the slow means of masks.

    Contrast is a softmax over the kernel exp(-distance) to all slow pixels, summed over those of
    the same mask. Concentration is -exp(-distance^2), its mean over masks.

    Args:
        fast: (S, D).
        masks: of `fast`.
        slow: (T, D) of other pixels, without gradient.
        slow_masks: of `slow`.
    """
    same = masks[:, None] == slow_masks
    (met,) = torch.nonzero(same.any(1), as_tuple=True)
    if not len(met):
        return fast.sum() * 0
    fast, masks, same = fast.index_select(0, met), masks[met], same[met]
    kernel = (-torch.cdist(fast, slow)).exp()
    own = kernel.masked_fill(~same, -torch.inf)
    contrast = (kernel.logsumexp(1) - own.logsumexp(1)).mean()
    means = same.to(slow.dtype) @ slow / same.sum(1, keepdim=True)
    closeness = (-(fast - means).square().sum(1)).exp()
    sizes = torch.bincount(masks)
    weights = 1 / (sizes[masks] * (sizes > 0).sum())
    return contrast - (weights * closeness).sum()


def pair_loss(rendered: Tensor, masks: Tensor, norm_weight: float) -> Tensor:
    """Cosines of pairs, those of one mask up, others down to 0; both kinds weigh the same.

    Args:
        rendered: (S, D) blended unit features.
        masks: of each pixel.
        norm_weight: of 1 - length, which rises where a ray meets features that differ.
    """
    x = normalize(rendered, dim=1)
    cosines = (x @ x.T).relu()
    same = masks[:, None] == masks
    num_same = same.sum()
    num_other = (same.numel() - num_same).clamp_min(1)
    pairs = torch.where(same, -cosines / num_same.clamp_min(1), cosines / num_other).sum()
    return pairs + norm_weight * (1 - rendered.norm(dim=1)).sum() / max(len(x), 1)


def _random(num: int, dim: int, scale: float, generator: torch.Generator) -> Tensor:
    return (scale * torch.randn(num, dim, generator=generator)).requires_grad_()


def _labelled(pixels: Tensor, mask_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The labelled pixels and the mask of each, from 0 without gaps."""
    inside = mask_ids > 0
    return pixels[inside], torch.unique(mask_ids[inside], return_inverse=True)[1]


def _for_pairs(pixels: Tensor, masks: Tensor, config: RivalConfig) -> tuple[Tensor, Tensor]:
    """Every n-th pixel, so that there are no more than `pair_pixels`."""
    stride = max(1, math.ceil(len(pixels) / config.pair_pixels))
    return pixels[::stride], masks[::stride]


# ---- from features to objects


def cluster(
    features: Tensor,
    weights: list[BlendWeights],
    label_maps: list[np.ndarray | None],
    config: RivalConfig = SETTINGS,
    seed: int = 0,
    directions: bool = True,
) -> np.ndarray:
    """Objects by HDBSCAN on rendered features of labelled pixels, as the papers do.

    HDBSCAN leaves a part of the sample as noise, and most pixels were not drawn: all of them join
    the nearest centroid, which is kind. Gaussians take the cluster of most of their pixels.

    Args:
        features: (N, D).
        weights: one for each training view.
        label_maps: (H, W) int each, 0 = unlabelled; None = no masks.
        config: size of the sample and of the smallest cluster.
        seed: of the sample.
        directions: compare rendered features at unit length, else as they are.

    Returns:
        (N,) int64 objects from 0; -1 where no pixel shows the Gaussian. All are one object where
        no two clusters are found.

    Raises:
        JobError: a feature is not finite.
    """
    check_finite(features)

    def render(view: BlendWeights, pixels: Tensor | None = None) -> np.ndarray:
        rendered = view.blend(features, pixels)
        return (normalize(rendered, dim=1) if directions else rendered).numpy()

    drawn = _draw_labelled(label_maps, config.cluster_pixels, np.random.default_rng(seed))
    sample = np.concatenate([render(weights[view], pixels) for view, pixels in drawn.items()])
    means = _centroids(sample, config.min_cluster_size)
    mass = sum(view.mask_mass(cdist(render(view), means).argmin(1), len(means)) for view in weights)
    seen = np.asarray(mass.sum(0)).ravel() > 0
    return np.where(seen, np.asarray(mass.argmax(0)).ravel(), -1)


def _draw_labelled(
    label_maps: list[np.ndarray | None], count: int, rng: np.random.Generator
) -> dict[int, Tensor]:
    """About as many labelled pixels from each view that has some, in ascending order."""
    inside = {
        view: np.flatnonzero(labels > 0)
        for view, labels in enumerate(label_maps)
        if labels is not None and (labels > 0).any()
    }
    each = math.ceil(count / len(inside))
    return {
        view: torch.from_numpy(np.sort(rng.choice(pixels, min(each, len(pixels)), replace=False)))
        for view, pixels in inside.items()
    }


def _centroids(sample: np.ndarray, min_cluster_size: int) -> np.ndarray:
    """Means of HDBSCAN's clusters, (C, D), C >= 1: the mean of all where there are not two."""
    if len(sample) >= min_cluster_size:
        clusters = HDBSCAN(min_cluster_size=min_cluster_size, copy=True).fit_predict(sample)
        if clusters.max() > 0:
            return np.stack([sample[clusters == k].mean(0) for k in range(clusters.max() + 1)])
    return sample.mean(0, keepdims=True)
