# SPDX-License-Identifier: GPL-3.0-or-later
"""A surface divided into regions: what is convex belongs together, creases divide."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy.spatial import cKDTree

from unified_lift.config import SurfaceMaskConfig
from unified_lift.masks.fusion import Surface
from unified_lift.masks.linkage import Contacts, average_linkage, touching
from unified_lift.masks.planes import Plane
from unified_lift.masks.solids import find_exits, opposite_sides
from unified_lift.masks.voxels import cell_keys, components, group_means, unit
from unified_lift.protocol import JobError

# Bins of a Lab histogram: number, first edge and width for L, a and b.
BINS = np.array([4, 15, 15])
BIN_START = np.array([0.0, -60.0, -60.0])
BIN_WIDTH = np.array([25.0, 8.0, 8.0])
LAB_WEIGHTS = np.array([0.5, 1.0, 1.0])  # lightness changes with the light, not with the thing


def segment(
    surface: Surface, planes: list[Plane], plane_of_voxel: np.ndarray, config: SurfaceMaskConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a surface into regions.

    Args:
        surface: n voxels.
        planes: its planes; each becomes one region, together with the bumps that rejoin it.
        plane_of_voxel: (n,) int32, from 1, 0 = none.
        config: the constants of supervoxels, creases and wholes, and `standing_*`.

    Returns:
        the region of each voxel (n,) int32, from 1, the heaviest first, 0 = none; and the regions
        that are planes, (P,) int32.

    Raises:
        JobError: too few pixels show the surface.
    """
    positions, normals = flatten(surface, planes, plane_of_voxel)
    nodes = all_supervoxels(surface, positions, normals, plane_of_voxel, config)
    used = nodes >= 0
    if not used.any():
        raise JobError(
            "The photos hardly overlap: no piece of surface has two pixels. Take more photos, or "
            "use larger ones."
        )
    means = [group_means(nodes[used], x[used]) for x in (positions, normals, surface.colors)]
    contacts = crease_contacts(nodes, surface.neighbours, *means, config)
    plane_of_node = np.zeros(nodes.max() + 1, np.int32)
    plane_of_node[nodes[used]] = plane_of_voxel[used]
    on_planes = (surface, planes, plane_of_voxel)
    stands_on = planes_below(*on_planes, nodes, means[0], contacts, config)
    region_of_node = grow_alike(surface, nodes, contacts, plane_of_node, stands_on, config)
    regions = np.where(used, region_of_node[nodes], -1)
    rays = find_exits(surface, np.nonzero(used & (plane_of_voxel == 0))[0], config)
    for _ in range(config.whole_rounds):
        plane_regions = np.unique(region_of_node[plane_of_node > 0])
        touching = contacts.joined(region_of_node)
        wholes = join_parts(surface, regions, touching, rays, plane_regions, config)
        region_of_node, regions = wholes[region_of_node], np.where(used, wholes[regions], -1)
    plane_regions = np.unique(region_of_node[plane_of_node > 0])
    return number_by_mass(surface.mass, regions, plane_regions, config.region_min_mass)


def flatten(
    surface: Surface, planes: list[Plane], plane_of_voxel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and normals, (n, 3) each, with the voxels of planes moved onto them."""
    positions, normals = surface.positions.astype(np.float64), surface.normals.astype(np.float64)
    for number, plane in enumerate(planes, 1):
        inside = plane_of_voxel == number
        height = (positions[inside] - plane.center) @ plane.normal
        positions[inside] -= height[:, None] * plane.normal
        normals[inside] = plane.normal
    return positions, normals


def all_supervoxels(
    surface: Surface,
    positions: np.ndarray,
    normals: np.ndarray,
    plane_of_voxel: np.ndarray,
    config: SurfaceMaskConfig,
) -> np.ndarray:
    """Supervoxel of each voxel (n,) int64, -1 = none; those of planes are tiles of equal size."""
    spacing = config.supervoxel_spacing * surface.size
    features = [
        positions / spacing,
        config.supervoxel_normal * normals,
        config.supervoxel_color * surface.colors,
    ]
    (solid,) = np.nonzero((plane_of_voxel == 0) & (surface.mass >= config.supervoxel_min_mass))
    (flat,) = np.nonzero(plane_of_voxel > 0)
    nodes = np.full(len(positions), -1)
    nodes[solid] = supervoxels(np.concatenate(features, 1)[solid], config)
    nodes[flat] = supervoxels(features[0][flat], config) + nodes.max() + 1
    return nodes


def supervoxels(features: np.ndarray, config: SurfaceMaskConfig) -> np.ndarray:
    """Cluster points about a grid of centres, like SLIC.

    Args:
        features: (n, 3 + D); the first three are positions in units of the grid.
        config: rounds and candidates.

    Returns:
        (n,) int64, numbered from 0 without gaps.
    """
    if not len(features):
        return np.empty(0, np.int64)
    # Where nothing but the position counts, the nearest centre is the best one.
    candidates = config.supervoxel_candidates if features.shape[1] > 3 else 1
    _, nodes = np.unique(cell_keys(features[:, :3], 1.0), return_inverse=True)
    for _ in range(config.supervoxel_rounds):
        centers = group_means(nodes, features)
        count = min(candidates, len(centers))
        _, near = cKDTree(centers[:, :3]).query(features[:, :3], list(range(1, count + 1)))
        distance = [((features - centers[column]) ** 2).sum(1) for column in near.T]
        nodes = near[np.arange(len(near)), np.argmin(distance, 0)]
        _, nodes = np.unique(nodes, return_inverse=True)
    return nodes


def crease_contacts(
    nodes: np.ndarray,
    neighbours: np.ndarray,
    positions: np.ndarray,
    normals: np.ndarray,
    colors: np.ndarray,
    config: SurfaceMaskConfig,
) -> Contacts:
    """Which supervoxels touch, and whether they belong together.

    Affinity = 1 - concave angle / crease - colour difference / contrast. Convex angles count 0:
    objects bulge, and where two of them meet there is a crease.

    Args:
        nodes: (n,) supervoxel of each voxel, -1 = none.
        neighbours: (m, 2) touching voxels.
        positions, normals, colors: (S, 3) means of the supervoxels.
        config: crease and contrast.
    """
    pairs = nodes[neighbours]
    pairs, lengths = touching(pairs[(pairs >= 0).all(1)])
    a, b = pairs.T
    normals = unit(normals)
    angle = np.degrees(np.arccos(np.clip(np.einsum("ij,ij->i", normals[a], normals[b]), -1, 1)))
    facing = np.einsum("ij,ij->i", normals[a] - normals[b], positions[a] - positions[b])
    concave = np.where(facing < 0, angle, 0)
    contrast = np.linalg.norm((colors[a] - colors[b]) * LAB_WEIGHTS, axis=1)
    affinity = 1 - concave / config.crease_degrees - contrast / config.contrast
    return Contacts(pairs, lengths.astype(np.float64), affinity)


def planes_below(
    surface: Surface,
    planes: list[Plane],
    plane_of_voxel: np.ndarray,
    nodes: np.ndarray,
    positions: np.ndarray,
    contacts: Contacts,
    config: SurfaceMaskConfig,
) -> np.ndarray:
    """The large planes that a supervoxel stands on, and is thus no part of.

    Splats blur the crease at the foot of what stands on a plane, so that it passes into it. A
    small plane may be a face of a thing instead, and a few voxels above one are noise.

    Args:
        surface: n voxels.
        planes: P planes.
        plane_of_voxel: (n,) int32, from 1, 0 = none.
        nodes: (n,) supervoxel of each voxel, -1 = none.
        positions: (S, 3) of the supervoxels.
        contacts: between them.
        config: the constants `standing_*`.

    Returns:
        (S,) int64, bit p - 1 for plane p.
    """
    result = np.zeros(len(positions), np.int64)
    voxels = np.bincount(nodes[nodes >= 0])
    alike = contacts.pairs[contacts.affinity > 0]
    for number, plane in enumerate(planes, 1):
        on_plane = plane_of_voxel == number
        if surface.mass[on_plane].sum() < config.standing_min_mass * surface.mass.sum():
            continue
        height = (positions - plane.center) @ plane.normal
        above = height > config.standing_height * surface.size
        piece = components(alike[above[alike].all(1)], len(above))
        large = np.bincount(piece, voxels)[piece] >= config.standing_min_voxels
        result |= (above & large).astype(np.int64) << (number - 1)
    return result


def grow_alike(
    surface: Surface,
    nodes: np.ndarray,
    contacts: Contacts,
    plane_of_node: np.ndarray,
    stands_on: np.ndarray,
    config: SurfaceMaskConfig,
) -> np.ndarray:
    """Join supervoxels (S,) into regions: first what surely belongs together, then the rest.

    By then the regions are large enough to compare their colours. Where these differ, a contact
    has to be as smooth as in the first round: two things that touch seldom look alike.

    Args:
        surface: n voxels.
        nodes: (n,) supervoxel of each voxel, -1 = none.
        contacts: between supervoxels.
        plane_of_node: (S,) int32, 0 = none.
        stands_on: (S,) int64, as `planes_below`.
        config: `sure_affinity` and `whole_intersection`.

    Returns:
        (S,) int64, from 0.
    """
    sure = grow(contacts.less(config.sure_affinity), plane_of_node, stands_on)
    num = sure.max() + 1
    plane_of_sure, sure_stands_on = np.zeros(num, np.int32), np.zeros(num, np.int64)
    np.maximum.at(plane_of_sure, sure, plane_of_node)
    np.bitwise_or.at(sure_stands_on, sure, stands_on)
    regions = np.where(nodes >= 0, sure[nodes], -1)
    histograms = color_histograms(surface, regions, num)
    between = contacts.joined(sure)
    unlike = 1 - similarity(histograms, between.pairs) / config.whole_intersection
    doubt = config.sure_affinity * np.maximum(unlike, 0)
    return grow(between.less(doubt), plane_of_sure, sure_stands_on)[sure]


def grow(contacts: Contacts, plane_of_node: np.ndarray, stands_on: np.ndarray) -> np.ndarray:
    """Join nodes while affinities are above 0.

    Args:
        contacts: between the nodes.
        plane_of_node: (S,) int32, from 1, 0 = none; the nodes of a plane are one from the start,
            and two planes are never joined.
        stands_on: (S,) int64, as `planes_below`: never joined to these planes.

    Returns:
        (S,) int64, from 0.
    """
    alone = np.arange(len(plane_of_node)) + plane_of_node.max() + 1
    _, first, groups = np.unique(
        np.where(plane_of_node > 0, plane_of_node, alone), return_index=True, return_inverse=True
    )
    number = plane_of_node[first].astype(np.int64)
    planes = np.where(number > 0, 1 << np.maximum(number - 1, 0), 0)
    cannot_link = np.where(number > 0, ~planes, stands_on[first])
    return average_linkage(len(first), contacts.joined(groups), planes, cannot_link)[groups]


def join_parts(
    surface: Surface,
    regions: np.ndarray,
    contacts: Contacts,
    rays: tuple[np.ndarray, np.ndarray],
    plane_regions: np.ndarray,
    config: SurfaceMaskConfig,
) -> np.ndarray:
    """Join regions that look alike and touch broadly, or are two sides of one solid.

    Args:
        surface: n voxels.
        regions: (n,) region of each voxel, -1 = none.
        contacts: between regions.
        rays: of `find_exits`.
        plane_regions: regions left as they are.
        config: the constants `whole_*` and `solid_*`.

    Returns:
        (R,) int32, the new region of each region, from 0.
    """
    num = regions.max() + 1
    voxels = np.bincount(regions[regions >= 0], minlength=num)
    histograms = color_histograms(surface, regions, num)
    may = voxels > config.whole_min_voxels
    may[plane_regions] = False
    smaller = np.sqrt(voxels[contacts.pairs].min(1))
    broad = contacts.pairs[contacts.lengths > config.whole_contact * smaller]
    sides, share = opposite_sides(*rays, regions, num)
    sides = sides[share > config.solid_share]
    alike = np.concatenate(
        [
            similarity(histograms, broad) > config.whole_intersection,
            similarity(histograms, sides) > config.solid_intersection,
        ]
    )
    pairs = np.concatenate([broad, sides])
    return components(pairs[alike & may[pairs].all(1)], num)


def similarity(histograms: scipy.sparse.csr_matrix, pairs: np.ndarray) -> np.ndarray:
    """Intersection (p,) of the histograms of pairs of regions (p, 2)."""
    a, b = pairs.T
    return np.ravel(histograms[a].minimum(histograms[b]).sum(1))


def color_histograms(surface: Surface, regions: np.ndarray, num: int) -> scipy.sparse.csr_matrix:
    """Lab histogram of each region, weighted by mass, (num, bins) csr; each row sums to 1."""
    (used,) = np.nonzero(regions >= 0)
    bins = ((surface.colors[used] - BIN_START) // BIN_WIDTH).astype(int)
    flat = np.ravel_multi_index(tuple(bins.T), BINS, mode="clip")
    entries = (surface.mass[used], (regions[used], flat))
    counts = scipy.sparse.csr_matrix(entries, (num, int(np.prod(BINS))))
    total = np.maximum(np.ravel(counts.sum(1)), 1e-9)
    return scipy.sparse.diags_array(1 / total).tocsr() @ counts


def number_by_mass(
    mass: np.ndarray, regions: np.ndarray, plane_regions: np.ndarray, min_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Number regions from 1 by falling mass; those with too small a share become 0.

    Args:
        mass: (n,) of each voxel.
        regions: (n,) from 0, -1 = none.
        plane_regions: to be renumbered, too.
        min_share: of all mass.

    Returns:
        (n,) int32 regions, and the plane regions, int32.
    """
    totals = np.bincount(regions[regions >= 0], mass[regions >= 0])
    order = np.argsort(-totals, kind="stable")
    order = order[totals[order] > min_share * mass.sum()]
    numbers = np.zeros(len(totals) + 1, np.int32)  # the last one stands for -1
    numbers[order] = np.arange(1, len(order) + 1)
    planes = numbers[plane_regions]
    return numbers[regions], planes[planes > 0]
