# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified-Lift as published: its losses on rendered features, and their training on frozen splats.

Literal in what is computed. Four things differ: the filter and the
association look at the sampled pixels, not at the whole image; their number is free, and the
contrastive sum is scaled to the published one; logarithms of sums are taken safely; and a view with
more masks than codes gives the masks left over their best code, where the reference cuts the list.
Unlabelled pixels, which the reference takes for an object, are left out unless the settings say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from unified_lift.capture.images import resize_labels
from unified_lift.config import Budget, PublishedConfig
from unified_lift.lift.association import associate, mask_scores
from unified_lift.lift.losses import sum_masks
from unified_lift.protocol import JobError, Report
from unified_lift.rendering.weights import BlendWeights

NORM_EPS = 1e-6  # reference code, added to the length of a feature
COLOR_RANGE = (1, 99)  # percentiles of the Gaussians that span a colour channel


class Learned(NamedTuple):
    """What the method learns: features (N, D) and codebook (K, D), float32, of any length."""

    features: Tensor
    codebook: Tensor


class Losses(NamedTuple):
    """The four losses of one step, scalars without their weights; what is switched off is 0."""

    contrast: Tensor
    norm: Tensor
    classes: Tensor
    concentration: Tensor

    def total(self, config: PublishedConfig) -> Tensor:
        """The weighted sum."""
        return (
            config.contrast_weight * self.contrast
            + config.norm_weight * self.norm
            + config.class_weight * self.classes
            + config.concentration_weight * self.concentration
        )


# ---- the training


def train_published(
    weights: list[BlendWeights],
    label_maps: list[np.ndarray | None],
    num_gaussians: int,
    config: PublishedConfig,
    seed: int,
    report: Report,
) -> Learned:
    """Learn features and codebook on frozen Gaussians, one view a step.

    Args:
        weights: one for each training view.
        label_maps: (H, W) int each, 0 = unlabelled, ids local to the view; None = no masks.
        num_gaussians: N.
        config: settings; without the codebook it stays as it starts.
        seed: makes the run repeatable.
        report: told of each step and its loss.

    Raises:
        JobError: no view has a mask, or a feature is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    learned = start(num_gaussians, config, generator)

    def loss(view: int, pixels: Tensor, mask_ids: Tensor) -> Tensor:
        rendered = weights[view].blend(learned.features, pixels)
        return published_losses(rendered, mask_ids, learned.codebook, config).total(config)

    descend(make_optimizer(learned, config), loss, label_maps, config, generator, report)
    return Learned(*(values.detach() for values in learned))


class Joint:
    """The published joint run: features and codebook learn while the splats train.

    Geometry gets no gradient from them, in the reference code neither; so what differs from
    `train_published` is that the features follow Gaussians that still move and divide.
    """

    def __init__(
        self, label_maps: list[np.ndarray | None], config: PublishedConfig, seed: int
    ) -> None:
        """Take the masks of the photos, (H, W) int each, of any size; None = no masks."""
        self.label_maps, self.config, self.rate = label_maps, config, config.feature_rate
        self.generator = torch.Generator().manual_seed(seed)
        self.features, self.codebook = start(0, config, self.generator)
        self.optimizer = torch.optim.Adam([self.codebook], lr=config.codebook_rate)

    def start(self, num_gaussians: int) -> Tensor:
        """Random features, (N, D)."""
        return start(num_gaussians, self.config, self.generator).features.detach()

    def loss(self, view: int, rendered: Tensor) -> Tensor:
        """The features' loss of one view, (H, W, D) rendered; the codebook takes a step itself."""
        labels = self.label_maps[view]
        if labels is None or not (labels > 0).any():
            return rendered.sum() * 0
        height, width, dim = rendered.shape
        labels = torch.from_numpy(resize_labels(labels, width, height).reshape(-1).astype(np.int64))
        pixels = torch.randint(len(labels), (self.config.pixels,), generator=self.generator)
        sampled = rendered.cpu().reshape(-1, dim).index_select(0, pixels)
        losses = published_losses(sampled, labels[pixels], self.codebook, self.config)
        only_codes = losses._replace(contrast=torch.zeros(()), norm=torch.zeros(()))
        self.optimizer.zero_grad()
        only_codes.total(self.config).backward()
        self.optimizer.step()
        only_features = losses._replace(classes=torch.zeros(()), concentration=torch.zeros(()))
        return only_features.total(self.config).to(rendered.device)

    @property
    def learned(self) -> Learned:
        """The result, when the training has ended."""
        return Learned(self.features, self.codebook.detach())


def start(num_gaussians: int, config: PublishedConfig, generator: torch.Generator) -> Learned:
    """Random features and codebook, as the reference draws them; both take gradients."""
    features = torch.rand(num_gaussians, config.dim, generator=generator) - 0.5
    codebook = 2 * torch.rand(config.num_codes, config.dim, generator=generator) - 1
    return Learned(
        (features / config.feature_scale).requires_grad_(),
        (codebook / math.sqrt(config.dim)).requires_grad_(),  # a 1 x 1 convolution's start
    )


def make_optimizer(learned: Learned, config: PublishedConfig) -> torch.optim.Adam:
    """Adam with constant rates."""
    groups = [
        {"params": [learned.features], "lr": config.feature_rate, "eps": config.feature_eps},
        {"params": [learned.codebook], "lr": config.codebook_rate},
    ]
    return torch.optim.Adam(groups, fused=True)


def descend(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int, Tensor, Tensor], Tensor],
    label_maps: list[np.ndarray | None],
    budget: Budget,
    generator: torch.Generator,
    report: Report,
) -> None:
    """Take the steps of a method: views in random order, pixels drawn uniformly, with repeats.

    Args:
        optimizer: of the method's parameters.
        loss: of the number of a view, (S,) int64 pixels in row-major, ascending order, and the
            (S,) int64 mask of each, 0 = unlabelled.
        label_maps: of all views; those without a mask are passed over.
        budget: number of steps and pixels.
        generator: draws views and pixels.
        report: told of each step, with its loss as the message.

    Raises:
        JobError: no view has a mask.
    """
    views = [i for i, labels in enumerate(label_maps) if labels is not None and (labels > 0).any()]
    if not views:
        raise JobError("No view has a mask. Give at least one label image that is not all 0.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps are too small for more, and sums keep their order
    order: list[int] = []
    try:
        for step in range(budget.steps):
            order = order or torch.randperm(len(views), generator=generator).tolist()
            view = views[order.pop()]
            labels = label_maps[view].reshape(-1)
            pixels = torch.randint(labels.size, (budget.pixels,), generator=generator).sort()[0]
            value = loss(view, pixels, torch.from_numpy(labels[pixels.numpy()].astype(np.int64)))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            report.progress(step + 1, budget.steps, f"loss {float(value.detach()):.4g}")
    finally:
        torch.set_num_threads(threads)


# ---- the losses


def published_losses(
    features: Tensor, mask_ids: Tensor, codebook: Tensor, config: PublishedConfig
) -> Losses:
    """The losses of sampled pixels of one view, for frozen and for joint training.

    Contrast and norm reach the features, class loss and concentration the codebook alone.

    Args:
        features: (S, D) rendered, as blended: neither unit length nor divided by alpha.
        mask_ids: (S,) int, local to the view; 0 = unlabelled.
        codebook: (K, D).
        config: settings.

    Raises:
        JobError: a feature is not finite.
    """
    check_finite(features)
    norm = (features.norm(dim=1) - 1).square().mean()
    num_sampled = len(features)
    if not config.void_is_object:
        (inside,) = torch.nonzero(mask_ids > 0, as_tuple=True)
        features, mask_ids = features.index_select(0, inside), mask_ids[inside]
    ids, masks = torch.unique(mask_ids, return_inverse=True)
    x = _almost_unit(features)
    scale = config.reference_pixels / num_sampled
    contrast = scale * contrast_loss(x, masks, len(ids), config.min_pixels / scale, config)
    zero = codebook.sum() * 0
    if not config.codebook:
        return Losses(contrast, norm, zero, zero)
    features, x = features.detach(), x.detach()
    kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if config.filter:
        kept = uncertainty(x, masks, len(ids), config) < config.max_uncertainty
    codes = virtual_labels(features, codebook.detach(), masks, len(ids), config.area_aware)
    classes = class_loss(features, codebook, codes, kept)
    if config.concentration:
        zero = concentration_loss(x, codebook, codes, kept, config.concentration)
    return Losses(contrast, norm, classes, zero)


def contrast_loss(
    x: Tensor, masks: Tensor, num_masks: int, min_pixels: float, config: PublishedConfig
) -> Tensor:
    """InfoNCE between pixels and the means of masks, each with a temperature of its own.

    The means are not of unit length and take gradients; the temperatures, by the spread of a mask,
    take none. It is a sum over pixels, divided by the number of masks.

    Args:
        x: (S, D) unit length.
        masks: (S,) int64.
        num_masks: M.
        min_pixels: masks of no more sampled pixels are left out, also as negatives.
        config: of the temperatures.
    """
    sizes = torch.bincount(masks, minlength=num_masks)
    large = sizes > min_pixels
    (counted,) = torch.nonzero(large[masks], as_tuple=True)
    if not len(counted):
        return x.sum() * 0
    x, masks = x.index_select(0, counted), (large.cumsum(0) - 1)[masks[counted]]
    sizes = sizes[large]
    means = sum_masks(x, masks, len(sizes)) / sizes[:, None]  # (M', D)
    with torch.no_grad():
        distances = (x - means[masks]).norm(dim=1, keepdim=True)
        spread = sum_masks(distances, masks, len(sizes))[:, 0] / (sizes * (sizes + 10).log())
        temperatures = (config.spread_factor * spread).clamp(
            config.min_temperature, config.max_temperature
        )
    return cross_entropy(x @ means.T / temperatures, masks, reduction="sum") / len(sizes)


@torch.no_grad()
def uncertainty(x: Tensor, masks: Tensor, num_masks: int, config: PublishedConfig) -> Tensor:
    """How little a pixel looks like its own mask among all: 1 - softmax similarity, (S,) in 0..1.

    Args:
        x: (S, D) unit length.
        masks: (S,) int64.
        num_masks: M.
        config: of the temperature.
    """
    sizes = torch.bincount(masks, minlength=num_masks)
    means = sum_masks(x, masks, num_masks) / sizes.clamp_min(1)[:, None]
    similarity = (x @ means.T / config.filter_temperature).softmax(1)
    return 1 - similarity.gather(1, masks[:, None])[:, 0]


@torch.no_grad()
def virtual_labels(
    features: Tensor, codebook: Tensor, masks: Tensor, num_masks: int, area_aware: bool
) -> Tensor:
    """The code of each pixel: masks are matched to codes one to one, (S,) int64.

    Args:
        features: (S, D) as rendered.
        codebook: (K, D).
        masks: (S,) int64.
        num_masks: M; masks beyond K take their best code.
        area_aware: sum the similarities over the pixels of a mask; else take their mean.
    """
    equal = features.new_ones(len(features))
    scores = mask_scores(features, codebook, masks, equal, num_masks, 1.0)
    if not area_aware:
        scores = scores / torch.bincount(masks, minlength=num_masks).clamp_min(1)[:, None]
    return associate(scores.cpu()).to(masks.device)[masks]


def class_loss(features: Tensor, codebook: Tensor, codes: Tensor, kept: Tensor) -> Tensor:
    """Cross-entropy of the raw logits over ln K; 0 where all pixels already show their code.

    Args:
        features: (S, D) as rendered, without gradient.
        codebook: (K, D).
        codes: (S,) int64.
        kept: (S,) bool, pixels that count.
    """
    logits = features @ codebook.T
    if not (logits.argmax(1) != codes).any():
        return codebook.sum() * 0
    return _mean(cross_entropy(logits, codes, reduction="none"), kept) / math.log(len(codebook))


def concentration_loss(
    x: Tensor, codebook: Tensor, codes: Tensor, kept: Tensor, kind: str
) -> Tensor:
    """Mean distance of the features from their codes.

    Args:
        x: (S, D) unit length, without gradient.
        codebook: (K, D).
        codes: (S,) int64.
        kept: (S,) bool, pixels that count.
        kind: "l2", Euclidean from the raw code; "l1", sum of differences from its direction.
    """
    if kind == "l1":
        distances = (x - normalize(codebook, dim=1).index_select(0, codes)).abs().sum(1)
    else:
        distances = (x - codebook.index_select(0, codes)).norm(dim=1)
    return _mean(distances, kept)


def check_finite(features: Tensor) -> None:
    """Raise JobError if a feature is not a finite number."""
    if not torch.isfinite(features).all():
        raise JobError("A feature is not a finite number. Train the splats again.")


def _almost_unit(features: Tensor) -> Tensor:
    """Directions (S, D); their lengths take no gradient."""
    return features / (features.detach().norm(dim=1, keepdim=True) + NORM_EPS)


def _mean(values: Tensor, kept: Tensor) -> Tensor:
    """Mean of the kept values; 0 where none is."""
    return (values * kept).sum() / kept.sum().clamp_min(1)


# ---- pictures of one view


def uncertainty_map(
    learned: Learned, weights: BlendWeights, labels: np.ndarray, config: PublishedConfig
) -> np.ndarray:
    """The noisy-label filter's uncertainty, (H, W) float32 in 0..1; 0 where unlabelled."""
    flat = torch.from_numpy(labels.reshape(-1).astype(np.int64))
    (inside,) = torch.nonzero(flat > 0, as_tuple=True)
    ids, masks = torch.unique(flat[inside], return_inverse=True)
    x = _almost_unit(weights.blend(learned.features, inside))
    shown = torch.zeros(len(flat))
    shown[inside] = uncertainty(x, masks, len(ids), config)
    return shown.reshape(labels.shape).numpy()


def similarity_map(learned: Learned, weights: BlendWeights, code: int | None = None) -> np.ndarray:
    """Softmax similarity to one code, or to the best of each pixel, (H, W) float32 in 0..1."""
    similarity = (weights.blend(learned.features) @ learned.codebook.T).softmax(1)
    shown = similarity.amax(1) if code is None else similarity[:, code]
    return shown.reshape(weights.height, weights.width).numpy()


def feature_image(learned: Learned, weights: BlendWeights) -> np.ndarray:
    """The features' first three principal components as colours, the same in all views.

    Returns:
        (H, W, 3) uint8.
    """
    gaussians = _almost_unit(learned.features)
    mean = gaussians.mean(0)
    axes = torch.linalg.eigh((gaussians - mean).T @ (gaussians - mean))[1][:, -3:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    low, high = np.percentile(((gaussians - mean) @ axes).numpy(), COLOR_RANGE, axis=0)
    shown = ((_almost_unit(weights.blend(learned.features)) - mean) @ axes).numpy()
    colors = (255 * (shown - low) / np.maximum(high - low, NORM_EPS)).clip(0, 255)
    return colors.round().astype(np.uint8).reshape(weights.height, weights.width, 3)
