# SPDX-License-Identifier: GPL-3.0-or-later
"""The weights with which one view blends its Gaussians, as a sparse matrix of six-byte entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

FIXED_POINT = 65535  # a weight of 1


@dataclass(frozen=True)
class BlendWeights:
    """One view's sparse matrix of P = height * width pixels by N Gaussians.

    Entries of a pixel stand in front-to-back order; those below 1/255 are left out.

    Attributes:
        indptr: (P + 1,) int64, where the entries of each pixel begin.
        gaussian_ids: (entries,) int32.
        weights: (entries,) uint16, the weight times 65535, rounded.
        width: of the view, pixels.
        height: of the view, pixels.
        num_gaussians: N.
    """

    indptr: np.ndarray
    gaussian_ids: np.ndarray
    weights: np.ndarray
    width: int
    height: int
    num_gaussians: int

    def blend(self, values: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Blend values as the rasterizer would, differentiable in `values`.

        Args:
            values: (N, D) float32.
            pixels: (S,) int, row-major indices of the pixels wanted; None for all.

        Returns:
            (S or P, D) float32.
        """
        assert values.shape[0] == self.num_gaussians, values.shape
        return _Blend.apply(values, self, None if pixels is None else pixels.numpy())

    def mask_mass(self, labels: np.ndarray, num_labels: int) -> scipy.sparse.csr_matrix:
        """Sum the weights of each Gaussian over the pixels of each label.

        Args:
            labels: (P,) int label of each pixel; below 0 it is ignored.
            num_labels: labels are below this.

        Returns:
            (num_labels, N) float32 csr matrix.
        """
        assert labels.shape == (self.width * self.height,), labels.shape
        (pixels,) = np.nonzero(labels >= 0)
        ones = np.ones(len(pixels), np.float32)
        shape = (num_labels, self.width * self.height)
        indicator = scipy.sparse.csr_matrix((ones, (labels[pixels], pixels)), shape)
        return indicator @ self.matrix()

    def alphas(self) -> np.ndarray:
        """Sum of the kept weights of each pixel, (P,) float32."""
        total = np.concatenate([[0], np.cumsum(self.weights, dtype=np.int64)])
        return (np.diff(total[self.indptr]) / FIXED_POINT).astype(np.float32)

    def matrix(self) -> scipy.sparse.csr_matrix:
        """The same as a (P, N) float32 matrix; it takes more memory."""
        weights = self.weights.astype(np.float32) / FIXED_POINT
        shape = (self.width * self.height, self.num_gaussians)
        return scipy.sparse.csr_matrix((weights, self.gaussian_ids, self.indptr), shape)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: BlendWeights, pixels: Any) -> Tensor:
        matrix = weights.matrix()
        ctx.matrix = matrix if pixels is None else matrix[pixels]
        return torch.from_numpy(ctx.matrix @ values.numpy())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return torch.from_numpy(ctx.matrix.T @ grad.numpy()), None, None
