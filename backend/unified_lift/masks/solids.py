# SPDX-License-Identifier: GPL-3.0-or-later
"""Sides of one solid: where a ray into a thing comes out again, it is still the same thing.

Photos seldom show how the front of a thing goes over into its back, so the surface has gaps there.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy.spatial import cKDTree

from unified_lift.config import SurfaceMaskConfig
from unified_lift.masks.fusion import Surface

BLOCKED = -2  # the ray met a surface from its front: it was outside


def find_exits(
    surface: Surface, voxels: np.ndarray, config: SurfaceMaskConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Follow a ray from voxels inwards, to the first surface that it meets.

    Args:
        surface: n voxels.
        voxels: (m,) int, where rays start.
        config: the constants `solid_*`.

    Returns:
        (k,) int of the voxels where rays start, all or evenly chosen ones, and the voxels (k,)
        int64 where they leave the solid, below 0 where they do not.
    """
    starts = voxels[:: max(1, -(-len(voxels) // config.solid_rays))]
    positions, normals = surface.positions[starts], surface.normals[starts]
    exits = np.full(len(starts), -1)
    tree = cKDTree(surface.positions)
    step, last = config.solid_step, config.solid_reach
    for depth in np.arange(config.solid_start, last, step) * surface.size:
        (going,) = np.nonzero(exits == -1)
        points = positions[going] - depth * normals[going]
        _, nearest = tree.query(points, distance_upper_bound=step * surface.size)
        met = nearest < len(surface.positions)
        going, nearest = going[met], nearest[met]
        facing = np.einsum("ij,ij->i", surface.normals[nearest], normals[going])
        exits[going[facing > config.solid_cos]] = BLOCKED
        leaves = facing < -config.solid_cos
        exits[going[leaves]] = nearest[leaves]
    return starts, exits


def opposite_sides(
    starts: np.ndarray, exits: np.ndarray, regions: np.ndarray, num: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of regions with rays from one to the other, in whichever direction there are more.

    Args:
        starts, exits: (k,) voxels, of `find_exits`.
        regions: (n,) region of each voxel, -1 = none.
        num: number of regions.

    Returns:
        (p, 2) int32 pairs, the smaller number first, each once; and their rays (p,) over those
        that start in the smaller region: 1 where it is nothing but the other side.
    """
    begun = np.bincount(regions[starts][regions[starts] >= 0], minlength=num)
    ends = np.stack([regions[starts], np.where(exits >= 0, regions[exits], -1)])
    ends = ends[:, (ends >= 0).all(0)]
    rays = scipy.sparse.csr_matrix((np.ones(ends.shape[1]), ends), (num, num))
    rays = scipy.sparse.triu(rays.maximum(rays.T), 1).tocoo()
    pairs = np.stack([rays.row, rays.col], 1)
    return pairs, rays.data / np.maximum(begun[pairs].min(1), 1)
