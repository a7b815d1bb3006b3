# SPDX-License-Identifier: GPL-3.0-or-later
"""Label maps from nothing but photos and trained splats: regions of the surface they show.

Depth of the splats, fused to one surface; its large planes; flat things on them, by colour; the
rest divided at creases. That with voxels of several sizes: where a division hangs by a thread, they
differ, and what comes after decides. Everything is seeded: equal input, equal labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from skimage.color import rgb2lab

from unified_lift.config import SurfaceMaskConfig
from unified_lift.gaussians import Gaussians
from unified_lift.masks import Show
from unified_lift.masks.depth import DepthView, depth_view
from unified_lift.masks.flat_things import flat_things, without_things
from unified_lift.masks.fusion import fuse, voxel_size
from unified_lift.masks.labelling import label_photo
from unified_lift.masks.planes import SurfacePlanes, find_surface_planes
from unified_lift.masks.regions import segment
from unified_lift.protocol import Report
from unified_lift.rendering import Camera
from unified_lift.rendering.weights import BlendWeights

STEPS = 1000  # of a stage
MAX_THREADS = 4  # NumPy lets them run side by side; each holds the entries of one view's weights
Result = TypeVar("Result")


class SurfaceMasks(NamedTuple):
    """What a surface and its colours tell.

    Attributes:
        label_maps: (H, W) int32 of each photo, 0 = unlabelled.
        sure_maps: the same where both agree, else 0.
        planes: of the scene, without the flat things on them.
    """

    label_maps: list[np.ndarray]
    sure_maps: list[np.ndarray]
    planes: SurfacePlanes


def surface_label_maps(
    photos: list[np.ndarray],
    cameras: list[Camera],
    gaussians: Gaussians,
    weights: list[BlendWeights],
    config: SurfaceMaskConfig,
    report: Report,
    show: Show = lambda view, labels: None,
) -> SurfaceMasks:
    """Make a label map for each photo, with the voxel sizes in turn.

    Args:
        photos: V photos (H, W, 3) uint8.
        cameras: V cameras, each as large as its photo.
        gaussians: trained, raw parameters, world frame.
        weights: blend weights of each view.
        config: all constants.
        report: told of each view, twice (depth, labels); its stage is the caller's.
        show: called as often, with the view's label map or None, to make a preview.

    Raises:
        JobError: nothing is opaque, or no surface is seen by several photos.
    """
    views = _depth_views(cameras, gaussians, weights, config, report, show)
    lab_photos = [rgb2lab(photo).astype(np.float32) for photo in photos]
    divide = partial(_divide, lab_photos, views, config=config, report=report)
    sizes = config.voxel_pixels[: len(photos)]
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    all_planes: list[SurfacePlanes] = []
    flat: list[np.ndarray] = []
    for divided in _in_threads(divide, sizes):
        pixel_voxels, regions, plane_regions, planes = divided
        if not all_planes:
            cell = voxel_size(views, 1.0, config)
            flat = flat_things(photos, views, pixel_voxels, planes, cell, config, report)
            planes = without_things(planes, pixel_voxels, flat)
        turn = range(len(all_planes), len(photos), len(sizes))
        label = partial(label_photo, regions=regions, plane_regions=plane_regions, config=config)
        some = ([images[view] for view in turn] for images in (photos, pixel_voxels, flat))
        for view, (labels, sure) in zip(turn, _in_threads(label, *some), strict=True):
            found[view] = labels, sure
            left = 1 - len(found) / len(photos)
            report.progress(round(STEPS * (1 - config.label_time * left)), STEPS, "labels")
            show(view, labels)
        all_planes.append(planes)
    label_maps, sure_maps = zip(*(found[view] for view in range(len(photos))), strict=True)
    return SurfaceMasks(list(label_maps), list(sure_maps), all_planes[0])


def _divide(
    lab_photos: list[np.ndarray],
    views: list[DepthView],
    pixels: float,
    config: SurfaceMaskConfig,
    report: Report,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, SurfacePlanes]:
    """The voxel of each pixel, the region of each voxel, the regions that are planes, and these."""
    surface = fuse(lab_photos, views, pixels, config, report)
    planes, plane_of_voxel = find_surface_planes(surface, config)
    report.check()
    regions, plane_regions = segment(surface, planes, plane_of_voxel, config)
    reach = config.plane_max_distance * surface.size
    surface_planes = SurfacePlanes(tuple(planes), surface.positions, plane_of_voxel, reach)
    return surface.pixel_voxels, regions, plane_regions, surface_planes


def _depth_views(
    cameras: list[Camera],
    gaussians: Gaussians,
    weights: list[BlendWeights],
    config: SurfaceMaskConfig,
    report: Report,
    show: Show,
) -> list[DepthView]:
    views: list[DepthView] = []
    find_depth = partial(depth_view, gaussians, config=config)
    for view, depth in enumerate(_in_threads(find_depth, weights, cameras)):
        views.append(depth)
        done = len(views) / len(cameras)
        report.progress(round(STEPS * config.depth_time * done), STEPS, "depth")
        show(view, None)
    return views


def _in_threads(function: Callable[..., Result], *arguments: Iterable) -> Iterator[Result]:
    """Call a function for each view, or size, a few at a time; results come in order."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda each: function(*each), zip(*arguments, strict=True))
