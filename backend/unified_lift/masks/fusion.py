# SPDX-License-Identifier: GPL-3.0-or-later
"""One surface from many depth maps: a truncated signed distance field on sparse voxels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.spatial import cKDTree

from unified_lift.config import SurfaceMaskConfig
from unified_lift.masks.depth import DepthView
from unified_lift.masks.voxels import (
    AXIS_STEPS,
    cell_centers,
    cell_keys,
    dilate,
    find_keys,
    neighbour_pairs,
    unique_keys,
    unit,
)
from unified_lift.protocol import JobError, Report

EVERY = 37  # pixels looked at for the voxel size
KEYS_AT_ONCE = 8_000_000  # of cells with points, before they are counted
VOXELS_AT_ONCE = 16_384  # twice as fast as all at once: they stay in a core's cache
COARSER = 1.26  # factor of the voxel size, at least, when there are too many


@dataclass(frozen=True)
class Surface:
    """The surface as n voxels with a position and a normal each.

    Attributes:
        size: voxel size, world units.
        positions: (n, 3) float32, on the surface, world frame.
        normals: (n, 3) float32, unit, towards the cameras.
        colors: (n, 3) float32, CIE Lab.
        neighbours: (m, 2) int32, pairs of voxels that touch, each once.
        pixel_voxels: for each view (H, W) int32, the voxel that the pixel shows, -1 = none.
        mass: (n,) float64, number of pixels that show the voxel.
    """

    size: float
    positions: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    neighbours: np.ndarray
    pixel_voxels: list[np.ndarray]
    mass: np.ndarray


@dataclass
class _Field:
    """Running sums of the n candidate voxels while the views are integrated."""

    keys: np.ndarray  # (n,) int64, sorted
    centers: np.ndarray  # (n, 3) float32
    distance: np.ndarray  # (n,) float32, weighted sum of signed distances
    weight: np.ndarray  # (n,) float32
    color: np.ndarray  # (n, 3) float32, weighted sum of Lab colours of near views
    color_weight: np.ndarray  # (n,) float32
    near_views: np.ndarray  # (n,) int32

    @classmethod
    def empty(cls, keys: np.ndarray, size: float) -> _Field:
        n = len(keys)
        scalars = np.zeros((3, n), np.float32)
        color = np.zeros((n, 3), np.float32)
        centers = cell_centers(keys, size)
        return cls(keys, centers, *scalars[:2], color, scalars[2], np.zeros(n, np.int32))

    def parts(self) -> Iterator[_Field]:
        """The same voxels, some at a time: few enough for a core's cache."""
        for start in range(0, len(self.keys), VOXELS_AT_ONCE):
            part = slice(start, start + VOXELS_AT_ONCE)
            yield _Field(*(values[part] for values in vars(self).values()))


def fuse(
    lab_photos: list[np.ndarray],
    views: list[DepthView],
    pixels: float,
    config: SurfaceMaskConfig,
    report: Report,
) -> Surface:
    """Fuse depth maps into one surface.

    Args:
        lab_photos: (H, W, 3) float32 each, CIE Lab, the size of their depth maps.
        views: depth maps with their cameras.
        pixels: one of `config.voxel_pixels`.
        config: voxels, truncation and what makes a voxel part of the surface.
        report: asked again and again whether to stop.

    Raises:
        JobError: no surface is seen by two views.
    """
    size, keys = candidate_voxels(views, voxel_size(views, pixels, config), config)
    field = _Field.empty(keys, size)
    for part in field.parts():
        report.check()
        for lab, view in zip(lab_photos, views, strict=True):
            _integrate(part, lab, view, size, config)
    min_near = min(config.min_near_views, max(2, len(views) // 2))
    return _extract(field, views, size, min_near, config)


def voxel_size(views: list[DepthView], pixels: float, config: SurfaceMaskConfig) -> float:
    """Voxel size in world units: a few pixels of the photos, seen on the nearer surfaces.

    Raises:
        JobError: no pixel of any view has a depth.
    """
    footprints = [view.depth.ravel()[::EVERY] / pixel_focal(view, config) for view in views]
    seen = np.concatenate(footprints)
    seen = seen[seen > 0]
    if not len(seen):
        raise JobError(
            f"The trained scene is nowhere opaque in any of its {len(views)} photos, so it has no "
            "surfaces to divide. Check the cameras, or train longer (preset high)."
        )
    return pixels * float(np.percentile(seen, config.voxel_depth_percentile))


def pixel_focal(view: DepthView, config: SurfaceMaskConfig) -> float:
    """Focal length of the view in pixels of a photo of the reference size."""
    return float(view.focal[0]) * config.reference_side / max(view.depth.shape)


def candidate_voxels(
    views: list[DepthView], size: float, config: SurfaceMaskConfig
) -> tuple[float, np.ndarray]:
    """Voxels near points of two views or more.

    Args:
        views: depth maps.
        size: voxel size wished.
        config: `max_voxels`.

    Returns:
        The voxel size, larger than wished where that gives too many, and the sorted keys.

    Raises:
        JobError: no voxel holds points of two views.
    """
    while True:
        keys, counts = _count_views(views, size)
        keys = keys[counts >= 2]
        if not len(keys):
            raise JobError(
                f"No surface is seen by two of the {len(views)} photos. Take photos that overlap, "
                "or check the cameras."
            )
        if len(keys) <= config.max_voxels:
            return size, dilate(keys)
        # Surfaces: the number of voxels falls with the square of their size.
        size *= max(COARSER, float(np.sqrt(len(keys) / config.max_voxels)))


def _count_views(views: list[DepthView], size: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted keys of the cells with points, and from how many views."""
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    waiting: list[np.ndarray] = []
    for view in views:
        waiting.append(unique_keys(cell_keys(view.points()[view.depth > 0], size)))
        if view is views[-1] or sum(map(len, waiting)) > KEYS_AT_ONCE:
            ones = np.ones(sum(map(len, waiting)), np.int64)
            keys, inverse = np.unique(np.concatenate([keys, *waiting]), return_inverse=True)
            counts = np.bincount(inverse, np.concatenate([counts, ones])).astype(np.int64)
            waiting = []
    return keys, counts


def _integrate(
    field: _Field, lab: np.ndarray, view: DepthView, size: float, config: SurfaceMaskConfig
) -> None:
    """Add one view to the field."""
    indices, pixels, z = view.project(field.centers)
    depth = view.depth.ravel()[pixels]
    truncation = config.truncation * size
    seen = (depth > 0) & (depth - z > -truncation)
    indices, pixels, z = indices[seen], pixels[seen], z[seen]
    distance = depth[seen] - z
    weight = np.where(distance > truncation, config.free_space_weight, 1) / z
    field.distance[indices] += weight * np.minimum(distance, truncation)
    field.weight[indices] += weight

    near = np.abs(distance) < config.near * size
    indices, weight = indices[near], weight[near]
    field.color[indices] += weight[:, None] * lab.reshape(-1, 3)[pixels[near]]
    field.color_weight[indices] += weight
    field.near_views[indices] += 1


def _extract(
    field: _Field, views: list[DepthView], size: float, min_near: int, config: SurfaceMaskConfig
) -> Surface:
    """The voxels at the zero crossing, moved onto it."""
    truncation = config.truncation * size
    known = field.weight > 0
    distance = np.where(known, field.distance / np.where(known, field.weight, 1), truncation)
    kept = (field.near_views >= min_near) & (np.abs(distance) < config.surface_band * size)
    if not kept.any():
        raise JobError(
            f"No surface is seen by {min_near} of the {len(views)} photos. Take photos that "
            "overlap more, or check the cameras."
        )
    gradient = _gradient(field.keys, np.where(known, distance, np.nan), kept)
    positions = field.centers[kept] - gradient * distance[kept, None]
    neighbours = neighbour_pairs(field.keys[kept])
    normals = smooth_normals(gradient, neighbours, config)
    pixel_voxels = _nearest_voxels(views, positions, config.pixel_reach * size)
    mass = sum(np.bincount(v[v >= 0], minlength=len(positions)) for v in pixel_voxels)
    colors = field.color[kept] / np.maximum(field.color_weight[kept, None], 1e-9)
    return Surface(
        size, positions, normals, colors, neighbours, pixel_voxels, np.asarray(mass, np.float64)
    )


def _gradient(keys: np.ndarray, distance: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Unit gradients (m, 3) float32 of the field at the kept voxels; NaN distances are unknown."""
    gradient = np.zeros((int(kept.sum()), 3), np.float32)
    here = distance[kept]
    for axis, step in enumerate(AXIS_STEPS):
        for sign in (1, -1):
            other = find_keys(keys, keys[kept] + sign * step)
            there = np.where(other >= 0, distance[other], np.nan)
            gradient[:, axis] += sign * np.where(np.isnan(there), here, there)
    return unit(gradient)


def smooth_normals(
    normals: np.ndarray, neighbours: np.ndarray, config: SurfaceMaskConfig
) -> np.ndarray:
    """Average (n, 3) normals over neighbours that face alike, a few rounds."""
    a, b = neighbours.T
    num = len(normals)
    for _ in range(config.normal_rounds):
        alike = np.einsum("ij,ij->i", normals[a], normals[b]) > config.normal_cos
        ones = np.ones(int(alike.sum()), np.float32)
        half = scipy.sparse.csr_matrix((ones, (a[alike], b[alike])), (num, num))
        normals = unit(normals + half @ normals + half.T @ normals)
    return normals


def _nearest_voxels(
    views: list[DepthView], positions: np.ndarray, reach: float
) -> list[np.ndarray]:
    """For each view (H, W) int32: the voxel nearest to each pixel's point, -1 = none in reach."""
    tree = cKDTree(positions)
    result = []
    for view in views:
        opaque = view.depth > 0
        _, nearest = tree.query(view.points()[opaque], distance_upper_bound=reach, eps=0.3)
        voxels = np.full(opaque.shape, -1, np.int32)
        voxels[opaque] = np.where(nearest < len(positions), nearest, -1)
        result.append(voxels)
    return result
