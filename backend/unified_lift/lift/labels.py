# SPDX-License-Identifier: GPL-3.0-or-later
"""Label maps of object ids: which object a view shows in each pixel."""

from __future__ import annotations

import numpy as np
import torch

from unified_lift.rendering.weights import BlendWeights

MIN_ALPHA = 0.5  # a pixel that is less opaque shows no object


def label_map(
    weights: BlendWeights, object_ids: np.ndarray, alphas: np.ndarray | None = None
) -> np.ndarray:
    """Blend one-hot object ids and take the largest share of each pixel.

    Args:
        weights: of one view of N Gaussians.
        object_ids: (N,) int, 0 = unassigned.
        alphas: (H, W) of the rendered view; None for the sum of the weights, which lacks those
            below 1/255 and so shows less in places where many faint Gaussians lie.

    Returns:
        (H, W) int32; 0 where the unassigned prevail, or alpha is below 1/2.
    """
    ids, column = np.unique(np.append(object_ids, 0), return_inverse=True)
    one_hot = torch.zeros(len(object_ids), len(ids))
    one_hot[torch.arange(len(object_ids)), torch.from_numpy(column[:-1])] = 1
    shares = weights.blend(one_hot).numpy()  # (H * W, K)
    labels = ids[shares.argmax(1)]
    alphas = weights.alphas() if alphas is None else alphas.ravel()
    labels[alphas < MIN_ALPHA] = 0
    return labels.reshape(weights.height, weights.width).astype(np.int32)
