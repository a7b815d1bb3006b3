# SPDX-License-Identifier: GPL-3.0-or-later
"""The weights with which one view blends its Gaussians, as a sparse matrix of six-byte entries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from unified_lift.rendering.native import Core

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
        core: multiplies; without it scipy does, several times slower.
    """

    indptr: np.ndarray
    gaussian_ids: np.ndarray
    weights: np.ndarray
    width: int
    height: int
    num_gaussians: int
    core: Core | None = field(default=None, repr=False, compare=False)

    def blend(self, values: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Blend values as the rasterizer would, differentiable in `values`.

        Args:
            values: (N, D) float32, on the CPU.
            pixels: (S,) int, row-major indices of the pixels wanted; None for all.

        Returns:
            (S or P, D) float32.
        """
        assert values.shape[0] == self.num_gaussians, values.shape
        if pixels is not None:
            pixels = pixels.to(torch.int64).contiguous()
            assert _all_below(pixels, len(self.indptr) - 1), pixels.max()
        return _Blend.apply(values, self, pixels)

    def mask_mass(self, labels: np.ndarray, num_labels: int) -> scipy.sparse.csr_matrix:
        """Sum the weights of each Gaussian over the pixels of each label.

        Args:
            labels: (P,) int label of each pixel; below 0 it is ignored.
            num_labels: all labels are below this.

        Returns:
            (num_labels, N) float32 csr matrix.
        """
        assert labels.shape == (self.width * self.height,), labels.shape
        assert labels.max(initial=-1) < num_labels, (labels.max(), num_labels)
        labels = np.ascontiguousarray(labels, np.int32)
        if self.core is None:
            return _indicator(labels, num_labels) @ self.matrix()
        indptr = np.zeros(num_labels + 1, np.int64)
        head = (*self._rows(), len(labels), labels, num_labels, self.num_gaussians)
        head += (self.core.num_threads, indptr[1:])
        self.core.call("weights_mask_mass", *head, None, None, None)
        np.cumsum(indptr, out=indptr)
        ids, masses = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        counts = np.empty(num_labels, np.int64)
        self.core.call("weights_mask_mass", *head[:-1], counts, indptr, ids, masses)
        return scipy.sparse.csr_matrix((masses, ids, indptr), (num_labels, self.num_gaussians))

    def alphas(self) -> np.ndarray:
        """Sum of the kept weights of each pixel, (P,) float32: no more than its alpha."""
        total = np.concatenate([[0], np.cumsum(self.weights, dtype=np.int64)])
        return (np.diff(total[self.indptr]) / FIXED_POINT).astype(np.float32)

    def matrix(self) -> scipy.sparse.csr_matrix:
        """The same as a (P, N) float32 matrix; it takes more memory."""
        weights = self.weights.astype(np.float32) / FIXED_POINT
        shape = (self.width * self.height, self.num_gaussians)
        return scipy.sparse.csr_matrix((weights, self.gaussian_ids, self.indptr), shape)

    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.indptr, self.gaussian_ids, self.weights


def _all_below(indices: Tensor, size: int) -> bool:
    return not len(indices) or (int(indices.min()) >= 0 and int(indices.max()) < size)


def _indicator(labels: np.ndarray, num_labels: int) -> scipy.sparse.csr_matrix:
    (pixels,) = np.nonzero(labels >= 0)
    ones = np.ones(len(pixels), np.float32)
    shape = (num_labels, len(labels))
    return scipy.sparse.csr_matrix((ones, (labels[pixels], pixels)), shape)


class _Blend(torch.autograd.Function):
    """Rows of W times the values; its gradient is the same rows, transposed, times the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: BlendWeights, pixels: Tensor | None) -> Tensor:
        ctx.weights, ctx.pixels = weights, pixels
        core, values = weights.core, values.contiguous()
        if core is None:
            return torch.from_numpy(_rows_of(weights, pixels) @ values.numpy())
        num_rows = len(weights.indptr) - 1 if pixels is None else len(pixels)
        out = values.new_empty(num_rows, values.shape[1])
        head = (*weights._rows(), num_rows, pixels, values.shape[1], values)
        core.call("weights_blend", *head, core.num_threads, out)
        return out

    @staticmethod
    def backward(ctx: Any, v_out: Tensor) -> tuple:
        weights, v_out = ctx.weights, v_out.contiguous()
        core = weights.core
        if core is None:
            rows = _rows_of(weights, ctx.pixels)
            return torch.from_numpy(rows.T @ v_out.numpy()), None, None
        v_values = v_out.new_empty(weights.num_gaussians, v_out.shape[1])
        head = (*weights._rows(), len(v_out), ctx.pixels, v_out.shape[1], v_out)
        sizes = (weights.num_gaussians, core.num_threads)
        core.call("weights_blend_backward", *head, *sizes, v_values)
        return v_values, None, None


def _rows_of(weights: BlendWeights, pixels: Tensor | None) -> scipy.sparse.csr_matrix:
    return weights.matrix() if pixels is None else weights.matrix()[pixels.numpy()]
