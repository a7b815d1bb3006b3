# SPDX-License-Identifier: GPL-3.0-or-later
"""Flat things on planes: paper on a table has no height, but a colour of its own.

All photos of a plane make one picture of it, as seen from above. There a thing has one outline for
all photos, and what a single photo shows (noise, a reflection, the edge of a passer-by) fades.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import regionprops

from unified_lift.config import SurfaceMaskConfig
from unified_lift.masks.depth import DepthView, ray_directions
from unified_lift.masks.labelling import colour_segments
from unified_lift.masks.merging import merge_alike
from unified_lift.masks.planes import Plane, SurfacePlanes
from unified_lift.masks.regions import LAB_WEIGHTS
from unified_lift.protocol import Report


def flat_things(
    photos: list[np.ndarray],
    views: list[DepthView],
    pixel_voxels: list[np.ndarray],
    surface: SurfacePlanes,
    cell: float,
    config: SurfaceMaskConfig,
    report: Report,
) -> list[np.ndarray]:
    """Find the flat things on all planes.

    Args:
        photos: V photos (H, W, 3) uint8.
        views: their depth maps.
        pixel_voxels: (H, W) int32 of each, the voxel of a pixel, -1 = none.
        surface: the voxels and their planes.
        cell: size of a picture's pixel, world units: that of a photo's pixel at the reference size.
        config: the constants `flat_*` and `snap_*`.
        report: asked again and again whether to stop.

    Returns:
        The thing of each pixel, V of (H, W) int32, 0 = none; a thing has one number in all views.
    """
    planes_shown = [_plane_of_pixels(voxels, surface) for voxels in pixel_voxels]
    found, first = [], 0
    for number, plane in enumerate(surface.planes, 1):
        report.check()
        positions = surface.positions[surface.plane_of_voxel == number]
        grid = PlaneGrid.covering(plane, positions, cell, config.flat_max_cells)
        shown = [planes == number for planes in planes_shown]
        picture = grid.picture(photos, views, shown, config)
        things = find_things(*picture, config, report.check)
        found.append((grid, np.where(things > 0, first + things, 0)))
        first += things.max()
    result = []
    for view, planes in zip(views, planes_shown, strict=True):
        report.check()
        result.append(_thing_of_pixels(view, planes, found, surface.reach))
    return result


def without_things(
    surface: SurfacePlanes, pixel_voxels: list[np.ndarray], things: list[np.ndarray]
) -> SurfacePlanes:
    """The same planes without the voxels that mostly show flat things: these are no floor.

    Args:
        surface: the voxels and their planes.
        pixel_voxels: (H, W) int32 of each view, the voxel of a pixel, -1 = none.
        things: (H, W) int32 of each view, as `flat_things`.

    Returns:
        the same but for `plane_of_voxel`; voxels that no pixel shows keep their plane.
    """
    num = len(surface.plane_of_voxel)
    shown, covered = np.zeros(num, np.int64), np.zeros(num, np.int64)
    for voxels, thing in zip(pixel_voxels, things, strict=True):
        shown += np.bincount(voxels[voxels >= 0], minlength=num)
        covered += np.bincount(voxels[(voxels >= 0) & (thing > 0)], minlength=num)
    free = np.where(covered > shown / 2, 0, surface.plane_of_voxel)
    return replace(surface, plane_of_voxel=free)


def _plane_of_pixels(pixel_voxels: np.ndarray, surface: SurfacePlanes) -> np.ndarray:
    return np.where(pixel_voxels >= 0, surface.plane_of_voxel[pixel_voxels], 0)


def _thing_of_pixels(
    view: DepthView,
    planes: np.ndarray,
    found: list[tuple[PlaneGrid, np.ndarray]],
    reach: float,
) -> np.ndarray:
    """The thing (H, W) of each pixel: on the plane that it shows, or on any if it shows none."""
    result = np.zeros(view.depth.shape, np.int32)
    points = view.points()
    for number, (grid, things) in enumerate(found, 1):
        height = np.abs((points - grid.plane.center) @ grid.plane.normal)
        near = (view.depth > 0) & (height < reach) & ((planes == 0) | (planes == number))
        pixels = np.nonzero(near)
        cells = grid.cells(view, pixels)
        thing = np.where(cells >= 0, things.ravel()[cells], 0)
        result[pixels] = np.where(thing > 0, thing, result[pixels])
    return result


@dataclass(frozen=True)
class PlaneGrid:
    """Square cells that cover a part of a plane, row by row.

    Attributes:
        plane: world frame.
        axes: (2, 3) unit vectors in the plane, along the rows' numbers and the columns'.
        low: (2,) first corner along these, from the plane's centre, world units.
        cell: size of a cell, world units.
        shape: rows, columns.
    """

    plane: Plane
    axes: np.ndarray
    low: np.ndarray
    cell: float
    shape: tuple[int, int]

    @classmethod
    def covering(
        cls, plane: Plane, positions: np.ndarray, cell: float, max_cells: int
    ) -> PlaneGrid:
        """A grid over positions (n, 3) on the plane; cells are larger if there were too many."""
        first = np.cross(plane.normal, np.eye(3)[np.abs(plane.normal).argmin()])
        first /= np.linalg.norm(first)
        axes = np.stack([first, np.cross(plane.normal, first)])
        inside = (positions - plane.center) @ axes.T
        low, extent = inside.min(0), np.ptp(inside, 0)
        cell = max(cell, float(np.sqrt(extent.prod() / max_cells)), extent.max() / max_cells)
        rows, columns = np.ceil(extent / cell).astype(int) + 1
        return cls(plane, axes, low, cell, (int(rows), int(columns)))

    def cells(self, view: DepthView, pixels: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Where the rays of pixels (rows, columns) meet the plane: (n,) int64, -1 = outside."""
        height, width = view.depth.shape
        rays = ray_directions(view.focal, view.center, width, height)[pixels] @ view.rotation
        camera = -view.translation @ view.rotation
        normal, center = self.plane.normal, self.plane.center
        with np.errstate(divide="ignore", invalid="ignore"):
            along = ((center - camera) @ normal) / (rays @ normal)
            points = camera + along[:, None] * rays - center
            places = np.floor((points @ self.axes.T - self.low) / self.cell)
        inside = (along > 0) & ((places >= 0) & (places < self.shape)).all(1)
        rows, columns = np.where(inside[:, None], places, 0).astype(np.int64).T
        return np.where(inside, rows * self.shape[1] + columns, -1)

    def picture(
        self,
        photos: list[np.ndarray],
        views: list[DepthView],
        shown: list[np.ndarray],
        config: SurfaceMaskConfig,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The mean colours of the pixels that show the plane.

        Args:
            photos: V photos (H, W, 3) uint8.
            views: their cameras.
            shown: (H, W) bool of each, the pixels that show the plane.
            config: `flat_min_samples` and `flat_closing`.

        Returns:
            (h, w, 3) uint8, filled where nothing is seen, and where enough is, (h, w) bool.
        """
        num = self.shape[0] * self.shape[1]
        sums, counts = np.zeros((num, 3)), np.zeros(num)
        for photo, view, pixels in zip(photos, views, map(np.nonzero, shown), strict=True):
            cells = self.cells(view, pixels)
            inside = cells >= 0
            colors = photo[pixels][inside]
            counts += np.bincount(cells[inside], minlength=num)
            for channel in range(3):
                sums[:, channel] += np.bincount(cells[inside], colors[:, channel], num)
        means = (sums / np.maximum(counts, 1)[:, None]).reshape(*self.shape, 3)
        counts = counts.reshape(self.shape)
        nearest = ndimage.distance_transform_edt(
            counts == 0, return_distances=False, return_indices=True
        )
        colors = ndimage.median_filter(means[tuple(nearest)], size=(3, 3, 1))
        enough = counts >= config.flat_min_samples
        closed = ndimage.binary_closing(enough, iterations=config.flat_closing)
        return colors.round().astype(np.uint8), enough | closed


def find_things(
    picture: np.ndarray,
    seen: np.ndarray,
    config: SurfaceMaskConfig,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Number the compact colour segments of a plane's picture whose colour is not the plane's.

    Segments of several sizes are nested: the larger one is the thing, if it can be one.

    Args:
        picture: (h, w, 3) uint8.
        seen: (h, w) bool, the part of it that belongs to the plane.
        config: the constants `flat_*`; the first segments are those of `snap_*`.
        check: called again and again; what it raises ends the search.

    Returns:
        (h, w) int32 from 1, 0 = no thing.
    """
    colors = rgb2lab(picture).astype(np.float32) * LAB_WEIGHTS.astype(np.float32)
    of_plane = colors[seen]
    segments = colour_segments(
        picture, config.snap_scale, config.snap_sigma, config.snap_min_area, 1.0
    )
    things, num = np.zeros(segments.shape, np.int32), 0
    nested = []
    for border_cost in config.flat_border_costs:
        segments = merge_alike(colors, segments, border_cost, check)
        nested.append(segments)
    for segments in reversed(nested):
        share = np.bincount(segments.ravel(), seen.ravel()) / np.bincount(segments.ravel())
        for segment in regionprops(np.where(seen, segments + 1, 0)):
            check()
            if share[segment.label - 1] < config.flat_min_inside:
                continue
            if not config.flat_min_area <= segment.area <= config.flat_max_share * len(of_plane):
                continue
            inside = tuple(segment.coords.T)
            if things[inside].any() or segment.solidity < config.flat_min_solidity:
                continue
            if not repeats(colors[inside], of_plane, config):
                num += 1
                things[inside] = num
    return things


def repeats(inside: np.ndarray, of_plane: np.ndarray, config: SurfaceMaskConfig) -> bool:
    """Whether a segment's colour recurs in its plane: a tile or a printed rose, not a thing.

    Args:
        inside: (n, 3) colours of the segment.
        of_plane: (m, 3) colours of its whole plane.
        config: `flat_same_color`, `flat_color_samples` and `flat_max_repeats`.
    """
    color = np.median(inside, 0)
    step = -(-len(of_plane) // config.flat_color_samples)
    own, all_alike = (
        np.count_nonzero(np.linalg.norm(colors - color, axis=1) < config.flat_same_color)
        for colors in (inside, of_plane[::step])
    )
    return step * all_alike - own > config.flat_max_repeats * len(inside)
