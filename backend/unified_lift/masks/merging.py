# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments of a picture merged by the model of Mumford and Shah."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unified_lift.masks.linkage import Contacts, touching
from unified_lift.masks.voxels import components

# The price of a border rises to its full height in these steps of 2 %. Within one step merges do
# not wait for each other; with steps of 25 % some chained on a kitchen table, with 7 % those of a
# blurred border.
PRICES = np.geomspace(1e-3, 1, 300)


def merge_alike(
    colors: np.ndarray,
    segments: np.ndarray,
    border_cost: float,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Merge neighbouring segments for as long as that simplifies the picture more than it blurs it.

    A merge adds to the squared distances of all pixels from the mean colours of their segments,
    and saves the length of a border (Mumford and Shah 1989), which becomes dearer and dearer
    (Koepfler, Lopez and Morel 1994). Unlike felzenszwalb's, such segments do not leak where a
    border is weak.

    Args:
        colors: (h, w, C) float.
        segments: (h, w) int from 0, without gaps.
        border_cost: of a border, for each of its pixels: squared colour difference times pixels.
        check: called again and again; what it raises ends the merging.

    Returns:
        (h, w) int from 0, without gaps.
    """
    areas = np.bincount(segments.ravel()).astype(np.float64)
    channels = colors.reshape(-1, colors.shape[2]).T
    sums = np.stack([np.bincount(segments.ravel(), channel) for channel in channels], 1)
    borders = _borders(segments)
    merged = np.arange(len(areas))
    for price in border_cost * PRICES:
        while True:
            check()
            a, b = borders.pairs.T
            means = sums / areas[:, None]
            blur = areas[a] * areas[b] / (areas[a] + areas[b])
            cost = blur * ((means[a] - means[b]) ** 2).sum(1) / borders.lengths
            cheapest = np.full(len(areas), price)
            np.minimum.at(cheapest, a, cost)
            np.minimum.at(cheapest, b, cost)
            joined = (cost < price) & ((cost == cheapest[a]) | (cost == cheapest[b]))
            if not joined.any():
                break
            groups = components(borders.pairs[joined], len(areas))
            areas = np.bincount(groups, areas)
            sums = np.stack([np.bincount(groups, channel) for channel in sums.T], 1)
            borders = borders.joined(groups)
            merged = groups[merged]
    return merged[segments]


def _borders(segments: np.ndarray) -> Contacts:
    """Which segments of a picture touch along the sides of how many pixels."""
    down = np.stack([segments[:-1], segments[1:]], -1).reshape(-1, 2)
    right = np.stack([segments[:, :-1], segments[:, 1:]], -1).reshape(-1, 2)
    pairs, lengths = touching(np.concatenate([down, right]))
    return Contacts(pairs, lengths.astype(np.float64), np.zeros(len(pairs)))
