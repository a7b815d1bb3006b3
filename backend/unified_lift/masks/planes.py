# SPDX-License-Identifier: GPL-3.0-or-later
"""The large planes of a surface: floor, walls, table tops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from unified_lift.config import SurfaceMaskConfig
from unified_lift.masks.fusion import Surface
from unified_lift.masks.linkage import touching
from unified_lift.masks.voxels import components

MIN_INLIERS = 10  # to fit a plane
BOX_FACES = 3  # planes that meet at convex edges are a box
FACES_COS = 0.5  # faces of a box are turned to each other by more than this


@dataclass(frozen=True)
class Plane:
    """All x with |(x - center) . normal| <= distance, where the surface faces along `normal`."""

    normal: np.ndarray  # (3,) unit
    center: np.ndarray  # (3,)
    distance: float


@dataclass(frozen=True)
class SurfacePlanes:
    """The planes of a scene, numbered from 1, and the surface of which they are parts.

    Attributes:
        planes: P planes, the heaviest first.
        positions: (n, 3) float32, voxels of the whole surface, world frame.
        plane_of_voxel: (n,) int32, 1..P, 0 = on no plane, or part of a flat thing there.
        reach: how far a Gaussian may lie from its voxel, world units.
    """

    planes: tuple[Plane, ...]
    positions: np.ndarray
    plane_of_voxel: np.ndarray
    reach: float

    @classmethod
    def none(cls) -> SurfacePlanes:
        """Of a scene without a surface."""
        return cls((), np.empty((0, 3), np.float32), np.empty(0, np.int32), 0.0)

    def plane_of_gaussian(self, means: np.ndarray) -> np.ndarray:
        """The plane on which each Gaussian lies.

        Args:
            means: (N, 3) float32, world frame.

        Returns:
            (N,) int32, 1..P, 0 = none.
        """
        result = np.zeros(len(means), np.int32)
        if not self.planes:
            return result
        tree = cKDTree(self.positions)
        _, nearest = tree.query(means, distance_upper_bound=self.reach)
        (found,) = np.nonzero(nearest < len(self.positions))
        result[found] = self.plane_of_voxel[nearest[found]]
        return result


def find_surface_planes(surface: Surface, config: SurfaceMaskConfig) -> tuple[list, np.ndarray]:
    """Find the planes that many pixels show: RANSAC, refit with an adaptive distance.

    Votes are weighted by mass (pixels), not by voxels: walls have more voxels than the table on
    which things stand, but fewer pixels look at them.

    Args:
        surface: n voxels.
        config: the constants `plane_*`.

    Returns:
        list of P `Plane`s, the heaviest first, and the plane of each voxel (n,) int32, 0 = none.
    """
    rng = np.random.default_rng(config.seed)
    minimum = config.plane_min_mass * surface.mass.sum()
    free = np.ones(len(surface.positions), bool)
    ids = np.zeros(len(free), np.int32)
    planes: list[Plane] = []
    for _ in range(2 * config.max_planes):
        if len(planes) == config.max_planes or surface.mass[free].sum() <= minimum:
            break
        plane = _best_plane(surface, free, rng, config)
        if plane is None:
            break
        on_plane = free & _lies_on(plane, surface.positions, surface.normals, config.plane_cos)
        if surface.mass[on_plane].sum() < minimum:
            break
        free &= ~on_plane
        patches = _patches(surface, on_plane, minimum, config)
        if patches is not None:
            planes.append(plane)
            ids[patches] = len(planes)
    return _without_boxes(surface, planes, ids, config)


def _without_boxes(
    surface: Surface, planes: list[Plane], ids: np.ndarray, config: SurfaceMaskConfig
) -> tuple[list[Plane], np.ndarray]:
    """Leave out planes that are faces of one box: a thing that fills the photos has large faces.

    Two planes that meet at a convex edge may be a table top and its front; three are a box.
    """
    pairs, lengths = touching(ids[surface.neighbours])
    long = (lengths >= config.box_edge) & (pairs[:, 0] > 0)
    convex = [pair - 1 for pair in pairs[long] if _meet_convex(surface, planes, ids, *pair)]
    box = components(np.reshape(convex, (-1, 2)).astype(int), len(planes))
    is_face = np.bincount(box, minlength=1)[box] >= BOX_FACES
    numbers = np.concatenate([[0], np.where(is_face, 0, np.cumsum(~is_face))]).astype(np.int32)
    return [plane for plane, face in zip(planes, is_face) if not face], numbers[ids]


def _meet_convex(
    surface: Surface, planes: list[Plane], ids: np.ndarray, first: int, second: int
) -> bool:
    """Whether each of two planes that face different ways lies behind the other."""
    one, other = planes[first - 1], planes[second - 1]
    if one.normal @ other.normal > FACES_COS:
        return False
    behind = (surface.positions[ids == second].mean(0) - one.center) @ one.normal < 0
    return bool(
        behind and (surface.positions[ids == first].mean(0) - other.center) @ other.normal < 0
    )


def _best_plane(
    surface: Surface, free: np.ndarray, rng: np.random.Generator, config: SurfaceMaskConfig
) -> Plane | None:
    chance = surface.mass * free
    sample = rng.choice(len(free), config.plane_samples, p=chance / chance.sum())
    positions = surface.positions[sample].astype(np.float64)
    normals = surface.normals[sample].astype(np.float64)
    distance = config.plane_distance * surface.size
    best, most = None, 0
    for i in rng.choice(len(sample), config.plane_trials, replace=False):
        trial = Plane(normals[i], positions[i], distance)
        inliers = _lies_on(trial, positions, normals, config.plane_trial_cos)
        if inliers.sum() > most:
            best, most = inliers, inliers.sum()
    return None if best is None else _refit(positions, normals, best, surface.size, config)


def _refit(
    positions: np.ndarray,
    normals: np.ndarray,
    inliers: np.ndarray,
    size: float,
    config: SurfaceMaskConfig,
) -> Plane | None:
    """Fit by principal components; the second half of the rounds adapts the inlier distance."""
    low, high = config.plane_distance * size, config.plane_max_distance * size
    for refit in range(config.plane_refits):
        if inliers.sum() < MIN_INLIERS:
            return None
        center = positions[inliers].mean(0)
        normal = np.linalg.eigh(np.cov((positions[inliers] - center).T))[1][:, 0]
        normal = normal * np.sign((normals[inliers] @ normal).sum())
        band = Plane(normal, center, config.plane_refit_band * size)
        around = _lies_on(band, positions, normals, config.plane_cos)
        if around.sum() < MIN_INLIERS:
            return None
        adapt = refit >= config.plane_refits // 2
        spread = config.plane_sigmas * _robust_sigma((positions[around] - center) @ normal)
        plane = Plane(normal, center, float(np.clip(spread, low, high)) if adapt else low)
        inliers = _lies_on(plane, positions, normals, config.plane_cos)
    return plane


def _robust_sigma(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _lies_on(
    plane: Plane, positions: np.ndarray, normals: np.ndarray, min_cos: float
) -> np.ndarray:
    near = np.abs((positions - plane.center) @ plane.normal) < plane.distance
    return near & (normals @ plane.normal > min_cos)


def _patches(
    surface: Surface, on_plane: np.ndarray, minimum: float, config: SurfaceMaskConfig
) -> np.ndarray | None:
    """The voxels on the plane without its crumbs, or None if no connected patch is large."""
    inside = on_plane[surface.neighbours].all(1)
    patch = components(surface.neighbours[inside], len(on_plane))
    mass = np.bincount(patch, surface.mass * on_plane)
    if mass.max() < config.plane_patch_share * minimum:
        return None
    return on_plane & (mass[patch] > config.plane_crumb_share * minimum)
