# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Gaussians lie in which masks, and counting votes over them: what all lifting rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse

from unified_lift.config import LiftConfig
from unified_lift.protocol import JobError
from unified_lift.rendering.weights import BlendWeights

MAX_CELLS = 1_000_000  # Gaussians times labels counted at once: they fit the cache
CUT_SHARE = 0.25  # border pixels over the root of a mask's area; one that is just touched has less


@dataclass(frozen=True)
class Incidence:
    """Blend weights summed over masks; M masks of V views, N Gaussians.

    Attributes:
        mass: (M, N) csr float32, weight of a Gaussian over the pixels of a mask, in pixels.
        void: (V, N) float32, the same over the unlabelled pixels of each view that has masks.
        mask_views: (M,) int64, the view of each mask, not descending.
        mask_cut: (M,) bool, the picture's border cuts the mask.
    """

    mass: scipy.sparse.csr_matrix
    void: np.ndarray
    mask_views: np.ndarray
    mask_cut: np.ndarray

    @property
    def num_masks(self) -> int:
        """M."""
        return self.mass.shape[0]

    @property
    def num_gaussians(self) -> int:
        """N."""
        return self.mass.shape[1]

    @property
    def num_views(self) -> int:
        """V, views without masks included."""
        return len(self.void)

    @cached_property
    def by_gaussian(self) -> scipy.sparse.csc_matrix:
        """`mass` with the entries of each Gaussian together."""
        return self.mass.tocsc()

    @cached_property
    def mass_of_gaussian(self) -> np.ndarray:
        """Weight of each Gaussian in all masks, (N,) float32."""
        return np.asarray(self.mass.sum(0)).ravel()

    def mass_of_labels(self, labels: np.ndarray, num_labels: int) -> np.ndarray:
        """Weight in all masks (num_labels,) of the Gaussians of each label (N,); -1 = none."""
        given = labels >= 0
        return np.bincount(labels[given], self.mass_of_gaussian[given], num_labels)

    @cached_property
    def onto_view(self) -> scipy.sparse.csr_matrix:
        """(V, M) float32 of 0 and 1: sums rows of masks to rows of views."""
        ones, masks = np.ones(self.num_masks, np.float32), np.arange(self.num_masks)
        shape = (self.num_views, self.num_masks)
        return scipy.sparse.csr_matrix((ones, (self.mask_views, masks)), shape)

    def best_of_views(self, values: np.ndarray) -> np.ndarray:
        """Largest row of each view's masks: (M, D) >= 0 to (V, D), 0 for a view without masks."""
        best = np.zeros((self.num_views, values.shape[1]), values.dtype)
        with_masks, first = np.unique(self.mask_views, return_index=True)
        if len(first):
            best[with_masks] = np.maximum.reduceat(values, first)
        return best


def shared_mass(
    incidence: Incidence, split: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight in all masks that objects of two splits have in common, and that each has.

    Args:
        incidence: N Gaussians.
        split: (N,) int from 0, -1 = none, A objects.
        other: (N,) int likewise, B objects.

    Returns:
        (A, B), (A,) and (B,) float64.
    """
    num, num_other = (int(ids.max(initial=-1)) + 1 for ids in (split, other))
    both = np.where((split >= 0) & (other >= 0), split * num_other + other, -1)
    shared = incidence.mass_of_labels(both, num * num_other).reshape(num, num_other)
    totals = incidence.mass_of_labels(split, num), incidence.mass_of_labels(other, num_other)
    return shared, *totals


def check_mask_count(label_maps: Sequence[np.ndarray | None], config: LiftConfig) -> None:
    """Refuse more masks than can be compared, all with all, in memory.

    The limit is also below the 65535 masks that the 16 bits of a written label map hold.

    Args:
        label_maps: (H, W) int each, 0 = unlabelled; None for a view without masks.
        config: has the limit.

    Raises:
        JobError: there are more.
    """
    maps = [labels for labels in label_maps if labels is not None]
    count = sum(len(np.unique(labels[labels > 0])) for labels in maps)
    if count > config.max_masks:
        raise JobError(
            f"The label maps of {len(maps)} photos have {count:,} masks together, only "
            f"{config.max_masks:,} can be compared. Give each object of a photo one number, leave "
            "small regions 0, or take fewer photos."
        )


def mask_incidence(weights: list[BlendWeights], label_maps: list[np.ndarray | None]) -> Incidence:
    """Sum blend weights over masks.

    Args:
        weights: one for each training view.
        label_maps: (H, W) int each, 0 = unlabelled, ids local to the view; None, or a map without
            any label, for a view without masks.
    """
    rows, voids, views, cuts = [], [], [], []
    for view, (blend, labels) in enumerate(zip(weights, label_maps, strict=True)):
        if labels is None or not labels.any():
            voids.append(np.zeros(blend.num_gaussians, np.float32))
            continue
        ids, local, counts = np.unique(labels, return_inverse=True, return_counts=True)
        mass = blend.mask_mass(local.ravel(), len(ids))
        labelled = ids != 0
        rows.append(mass[np.nonzero(labelled)[0]])
        voids.append(np.asarray(mass[np.nonzero(~labelled)[0]].sum(0), np.float32).ravel())
        views.append(np.full(labelled.sum(), view))
        border = np.bincount(_border(local.reshape(labels.shape)), minlength=len(ids))
        cuts.append((border > CUT_SHARE * np.sqrt(counts))[labelled])
    empty = scipy.sparse.csr_matrix((0, weights[0].num_gaussians), dtype=np.float32)
    return Incidence(
        mass=scipy.sparse.vstack(rows or [empty], format="csr"),
        void=np.stack(voids),
        mask_views=np.concatenate([np.empty(0, np.int64), *views]),
        mask_cut=np.concatenate([np.empty(0, bool), *cuts]),
    )


def _border(pixels: np.ndarray) -> np.ndarray:
    """The values along the border of an image (H, W), each pixel once or, in corners, twice."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def count_votes(
    incidence: Incidence, votes: np.ndarray, weights: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Let each entry of the incidence vote for a label of its Gaussian.

    Args:
        incidence: N Gaussians, E entries.
        votes: (E,) int label below `num_labels`, in the order of `incidence.by_gaussian`.
        weights: (E,) float >= 0.
        num_labels: K >= 1.

    Returns:
        winners (N,) int64, the label with the largest sum, -1 without votes; and that sum (N,).
    """
    starts = incidence.by_gaussian.indptr
    winners = np.full(incidence.num_gaussians, -1)
    masses = np.zeros(incidence.num_gaussians)
    step = max(1, MAX_CELLS // num_labels)
    for first in range(0, incidence.num_gaussians, step):
        last = min(first + step, incidence.num_gaussians)
        entries = slice(starts[first], starts[last])
        gaussian = np.repeat(np.arange(last - first), np.diff(starts[first : last + 1]))
        cells = gaussian * num_labels + votes[entries]
        sums = np.bincount(cells, weights[entries], (last - first) * num_labels)
        sums = sums.reshape(-1, num_labels)
        winners[first:last] = sums.argmax(1)
        masses[first:last] = sums[np.arange(len(sums)), winners[first:last]]
    winners[masses <= 0] = -1
    return winners, masses
