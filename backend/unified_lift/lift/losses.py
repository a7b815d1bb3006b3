# SPDX-License-Identifier: GPL-3.0-or-later
"""What features learn from: contrast between masks, agreement with the codebook, purity of rays.

S sampled pixels of one view, M masks of that view, D dimensions, K codes. `x` (S, D) are rendered
features of unit length, `masks` (S,) int64 says which mask (0..M-1) a pixel lies in. Rows are
gathered with `index_select`, whose backward pass adds in a fixed order: runs repeat exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def sum_masks(values: Tensor, masks: Tensor, num_masks: int) -> Tensor:
    """Sum rows (S, D) over the pixels of each mask, (M, D)."""
    return values.new_zeros(num_masks, values.shape[1]).index_add(0, masks, values)


def contrastive_loss(
    x: Tensor, masks: Tensor, num_masks: int, temperature: float, min_pixels: int
) -> Tensor:
    """InfoNCE between pixels and the mean features of masks (the paper's contrastive loss).

    A pixel is drawn to the mean of the other pixels of its mask and pushed from the means of the
    other masks. Left-out self-similarity keeps small masks from being satisfied with themselves.
    Each mask of n pixels weighs n^(1/2) in total, so large ones do not drown the small.

    Args:
        x: (S, D) unit length.
        masks: (S,) int64.
        num_masks: M.
        temperature: of the softmax.
        min_pixels: masks of fewer sampled pixels are left out, also as negatives.
    """
    sums = sum_masks(x, masks, num_masks)
    sizes = torch.bincount(masks, minlength=num_masks)
    others = normalize(sums.index_select(0, masks) - x, dim=1)
    own = (x * others).sum(1, keepdim=True)
    scores = (x @ normalize(sums, dim=1).T).scatter(1, masks[:, None], own) / temperature
    large = sizes >= min_pixels
    scores = scores.masked_fill(~large, -torch.inf)
    counted = large[masks]
    if not counted.any():
        return x.sum() * 0
    errors = (scores.logsumexp(1) - own[:, 0] / temperature)[counted]
    weights = sizes[masks[counted]].rsqrt()
    return (weights * errors).sum() / weights.sum()


@torch.no_grad()
def reliability(
    x: Tensor, masks: Tensor, num_masks: int, temperature: float, low: float, high: float
) -> Tensor:
    """How far to trust the mask of each pixel (the paper's noisy-label filter).

    The paper's uncertainty is 1 - softmax similarity of a pixel's feature to the mean feature of
    its own mask; it drops pixels beyond a threshold. Here the weight rises between two thresholds.

    Args:
        x: (S, D) unit length.
        masks: (S,) int64.
        num_masks: M.
        temperature: of the softmax over masks.
        low: similarity at and below which the weight is 0.
        high: similarity at and above which it is 1.

    Returns:
        (S,) in 0..1.
    """
    means = normalize(sum_masks(x, masks, num_masks), dim=1)
    similarity = (x @ means.T / temperature).softmax(1).gather(1, masks[:, None])[:, 0]
    return ((similarity - low) / (high - low)).clamp(0, 1)


def codebook_loss(
    x: Tensor, codebook: Tensor, codes: Tensor, weights: Tensor, scale: float
) -> Tensor:
    """Weighted cross-entropy of the softmax similarity to the codebook (the paper's class loss).

    The factor 1 - p in place of the paper's rule "never reinforce correct labels".

    Args:
        x: (S, D) unit length.
        codebook: (K, D) unit length, without gradient.
        codes: (S,) int64, the code of each pixel by association.
        weights: (S,) reliability.
        scale: of the cosine logits.
    """
    logs = (scale * x @ codebook.T).log_softmax(1).gather(1, codes[:, None])[:, 0]
    return -(weights * (1 - logs.detach().exp()) * logs).mean()


def purity_loss(lengths: Tensor) -> Tensor:
    """Spread of the features along each ray, 1 - length^2: 0 if all that a pixel sees agrees.

    Args:
        lengths: (S,) length of blended unit features divided by the blended weight, 0..1.
    """
    return (1 - lengths**2).mean()
