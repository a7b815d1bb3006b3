# SPDX-License-Identifier: GPL-3.0-or-later
"""Sparse voxel grids: cells as sorted integer keys, their neighbours, sums over groups."""

from __future__ import annotations

import itertools

import numpy as np
import scipy.sparse

FIELD_BITS = 20  # a cell index lies in +-2^19
_HALF = 1 << (FIELD_BITS - 1)
_STEPS = np.array([1 << (2 * FIELD_BITS), 1 << FIELD_BITS, 1], np.int64)  # key of one step in x y z

# Half of the 26 neighbours: each pair of neighbours is met once.
HALF_NEIGHBOURS = [
    int(np.dot(offset, _STEPS))
    for offset in itertools.product((-1, 0, 1), repeat=3)
    if np.dot(offset, _STEPS) > 0
]
AXIS_STEPS = [int(step) for step in _STEPS]


def cell_keys(positions: np.ndarray, size: float) -> np.ndarray:
    """Keys of the cells of (n, 3) positions in a grid of cell size `size`, (n,) int64.

    Keys sort by x, then y, then z; a neighbour's key differs by a constant.
    """
    cells = np.floor(positions / size).astype(np.int64) + _HALF
    np.clip(cells, 1, 2 * _HALF - 2, out=cells)
    return cells @ _STEPS


def cell_centers(keys: np.ndarray, size: float) -> np.ndarray:
    """(n, 3) float32 centres of cells."""
    mask = (1 << FIELD_BITS) - 1
    fields = [(keys >> shift) & mask for shift in (2 * FIELD_BITS, FIELD_BITS, 0)]
    return ((np.stack(fields, 1) - _HALF + 0.5) * size).astype(np.float32)


def find_keys(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted key stands in the sorted `keys`, -1 where it does not; (n,) int64."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, places, -1)


def unique_keys(keys: np.ndarray) -> np.ndarray:
    """The keys, sorted, each once: as np.unique, whose hashes of such keys collide (NumPy 2.3)."""
    keys = np.sort(keys, kind="stable")  # merges parts that are sorted
    first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return keys[first]


def dilate(keys: np.ndarray) -> np.ndarray:
    """The cells and their 26 neighbours, sorted."""
    for step in AXIS_STEPS:
        keys = unique_keys(np.concatenate([keys - step, keys, keys + step]))
    return keys


def neighbour_pairs(keys: np.ndarray) -> np.ndarray:
    """Pairs of indices (n, 2) int32 of cells that touch, each pair once; `keys` is sorted."""
    pairs = []
    for step in HALF_NEIGHBOURS:
        other = find_keys(keys, keys + step)
        (this,) = np.nonzero(other >= 0)
        pairs.append(np.stack([this, other[this]], 1).astype(np.int32))
    return np.concatenate(pairs)


def components(pairs: np.ndarray, num: int) -> np.ndarray:
    """Connected component (num,) int32 of each of `num` nodes."""
    graph = scipy.sparse.coo_matrix((np.ones(len(pairs), np.int8), pairs.T), (num, num))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]


def group_means(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means (G, D) of the rows of values (n, D) in groups 0..G-1, none of them empty."""
    sums = [np.bincount(groups, column) for column in values.T]
    return np.stack(sums, 1) / np.bincount(groups)[:, None]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale the rows of (n, D) to length 1; zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, 1e-9).astype(vectors.dtype)
