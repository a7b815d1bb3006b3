# SPDX-License-Identifier: GPL-3.0-or-later
"""Contingency tables of label maps: what all metrics of segments are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    """Pixels that each predicted id shares with each true id.

    Attributes:
        predicted_ids: (R,) sorted ids.
        truth_ids: (C,) sorted ids.
        counts: (R, C) int64.
    """

    predicted_ids: np.ndarray
    truth_ids: np.ndarray
    counts: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(R, C) float64 of the counted pixels."""
        return share(self.counts, self.counts.sum(1), self.counts.sum(0))


def share(shared: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Intersections (R, C) over unions, from the sizes (R,) and (C,) of both sides."""
    return shared / np.maximum(rows[:, None] + columns - shared, 1)


def count(predicted: np.ndarray, truth: np.ndarray) -> Table:
    """The table of one view.

    Args:
        predicted: integers.
        truth: integers, of the same shape.
    """
    assert predicted.shape == truth.shape, (predicted.shape, truth.shape)
    assert predicted.dtype.kind in "iu" and truth.dtype.kind in "iu", (predicted.dtype, truth.dtype)
    predicted_ids, row = np.unique(predicted, return_inverse=True)
    truth_ids, column = np.unique(truth, return_inverse=True)
    shape = (len(predicted_ids), len(truth_ids))
    flat = np.bincount((row * shape[1] + column).ravel(), minlength=shape[0] * shape[1])
    return Table(predicted_ids, truth_ids, flat.reshape(shape))


def total(tables: Sequence[Table]) -> Table:
    """The table of all views as one long image."""
    predicted_ids = np.unique(np.concatenate([table.predicted_ids for table in tables]))
    truth_ids = np.unique(np.concatenate([table.truth_ids for table in tables]))
    counts = np.zeros((len(predicted_ids), len(truth_ids)), np.int64)
    for table in tables:
        rows = np.searchsorted(predicted_ids, table.predicted_ids)
        columns = np.searchsorted(truth_ids, table.truth_ids)
        counts[np.ix_(rows, columns)] += table.counts
    return Table(predicted_ids, truth_ids, counts)
