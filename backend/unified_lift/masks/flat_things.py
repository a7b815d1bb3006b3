# SPDX-License-Identifier: GPL-3.0-or-later
"""Flat things on planes: paper on a table has no height, but a colour of its own.

All photos of a plane make one picture of it, as seen from above. There a thing has one outline for
all photos, and what a single photo shows (noise, a reflection, the edge of a passer-by) fades.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import regionprops

from unified_lift.config import SurfaceMaskConfig
from unified_lift.masks.depth import DepthView, ray_directions
from unified_lift.masks.fusion import Surface
from unified_lift.masks.labelling import colour_segments
from unified_lift.masks.planes import Plane
from unified_lift.masks.regions import LAB_WEIGHTS


def flat_things(
    photos: list[np.ndarray],
    views: list[DepthView],
    surface: Surface,
    planes: list[Plane],
    plane_of_voxel: np.ndarray,
    cell: float,
    config: SurfaceMaskConfig,
) -> list[np.ndarray]:
    """Find the flat things on all planes.

    Args:
        photos: V photos (H, W, 3) uint8.
        views: their depth maps.
        surface: n voxels.
        planes: P planes.
        plane_of_voxel: (n,) int32, 1..P, 0 = on no plane.
        cell: size of a picture's pixel, world units: that of a pixel of the reference size.
        config: the constants `flat_*`.

    Returns:
        The thing of each pixel, V of (H, W) int32, 0 = none; a thing has one number in all views.
    """
    found = [np.zeros(view.depth.shape, np.int32) for view in views]
    reach = config.plane_max_distance * surface.size
    for number, plane in enumerate(planes, 1):
        on_plane = plane_of_voxel == number
        grid = PlaneGrid(plane, surface.positions[on_plane], cell, config.flat_max_cells)
        shown = [on_plane[voxels] & (voxels >= 0) for voxels in surface.pixel_voxels]
        things = find_things(*grid.picture(photos, views, shown, config), config)
        first = max(labels.max() for labels in found)
        for labels, view in zip(found, views, strict=True):
            height = np.abs((view.points() - plane.center) @ plane.normal)
            pixels = np.nonzero((view.depth > 0) & (height < reach))
            cells = grid.cells(view, pixels)
            thing = np.where(cells >= 0, things.ravel()[cells], 0)
            labels[pixels] = np.where(thing > 0, first + thing, labels[pixels])
    return found


class PlaneGrid:
    """Square cells that cover a part of a plane, row by row."""

    def __init__(self, plane: Plane, positions: np.ndarray, cell: float, max_cells: int) -> None:
        first = np.cross(plane.normal, np.eye(3)[np.abs(plane.normal).argmin()])
        first /= np.linalg.norm(first)
        self.plane = plane
        self.axes = np.stack([first, np.cross(plane.normal, first)])
        inside = (positions - plane.center) @ self.axes.T
        self.low, extent = inside.min(0), np.ptp(inside, 0)
        self.cell = max(cell, float(np.sqrt(extent.prod() / max_cells)))
        self.shape = tuple(np.ceil(extent / self.cell).astype(int) + 1)

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


def find_things(picture: np.ndarray, seen: np.ndarray, config: SurfaceMaskConfig) -> np.ndarray:
    """Number the compact colour segments of a plane's picture whose colour is not the plane's.

    Args:
        picture: (h, w, 3) uint8, its pixels as large as those of a photo of the reference size.
        seen: (h, w) bool, the part of it that belongs to the plane.
        config: the constants `flat_*`.

    Returns:
        (h, w) int32 from 1, 0 = no thing.
    """
    segments = colour_segments(
        picture, config.flat_scale, config.flat_sigma, config.flat_min_area, 1.0
    )
    share = np.bincount(segments.ravel(), seen.ravel()) / np.bincount(segments.ravel())
    colors = rgb2lab(picture).astype(np.float32) * LAB_WEIGHTS.astype(np.float32)
    things, total = np.zeros(segments.shape, np.int32), np.count_nonzero(seen)
    for segment in regionprops(np.where(seen, segments + 1, 0)):
        if share[segment.label - 1] < config.flat_min_inside:
            continue
        if not config.flat_min_area <= segment.area <= config.flat_max_share * total:
            continue
        if segment.solidity < config.flat_min_solidity:
            continue
        inside = tuple(segment.coords.T)
        around = seen & (segments != segment.label - 1)
        if not repeats(colors[inside], colors[around], config):
            things[inside] = things.max() + 1
    return things


def repeats(inside: np.ndarray, around: np.ndarray, config: SurfaceMaskConfig) -> bool:
    """Whether a segment's colour recurs in its plane: a tile or a printed rose, not a thing.

    Args:
        inside: (n, 3) colours of the segment.
        around: (m, 3) colours of the rest of its plane.
        config: `flat_same_color` and `flat_max_repeats`.
    """
    difference = np.linalg.norm(around - np.median(inside, 0), axis=1)
    alike = np.count_nonzero(difference < config.flat_same_color)
    return alike > config.flat_max_repeats * len(inside)
