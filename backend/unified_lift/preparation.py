# SPDX-License-Identifier: GPL-3.0-or-later
"""From a capture's photos to what an engine can use: pinhole cameras, pixels, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unified_lift.capture import Capture, View
from unified_lift.capture.images import (
    load_photo,
    readable_views,
    resize_photo,
    scaled_view,
    undistort,
    undistort_view,
)
from unified_lift.capture.origin import camera_spread
from unified_lift.capture.triangulation import triangulate
from unified_lift.config import CaptureConfig, PipelineConfig, RenderConfig, TriangulationConfig
from unified_lift.digests import digest_arrays
from unified_lift.protocol import IMAGES_DIR, JobError, Report
from unified_lift.rendering import Camera


@dataclass(frozen=True)
class Photos:
    """Photos of training views at one size.

    Attributes:
        sources: the views as the capture has them, with their distortion.
        views: the same views as pinhole cameras, at the size of the images.
        images: (H, W, 3) uint8 each, display space.
    """

    sources: list[View]
    views: list[View]
    images: list[np.ndarray]

    @property
    def cameras(self) -> list[Camera]:
        """The views as engines take them."""
        return [to_camera(view) for view in self.views]

    def views_at(self, longest_side: int) -> list[View]:
        """The views of `at`, without scaling a photo."""
        return [scaled_view(view, longest_side) for view in self.views]

    def at(self, longest_side: int) -> Photos:
        """The same photos, scaled down."""
        views = self.views_at(longest_side)
        images = [
            resize_photo(image, view.width, view.height)
            for image, view in zip(self.images, views, strict=True)
        ]
        return Photos(self.sources, views, images)

    def pick(self, indices: Sequence[int]) -> Photos:
        """Some of the photos."""
        return Photos(*([values[i] for i in indices] for values in vars(self).values()))


def to_camera(view: View) -> Camera:
    """The view as engines take it."""
    return Camera(
        torch.tensor(view.viewmat, dtype=torch.float32),
        torch.tensor(view.K, dtype=torch.float32),
        view.width,
        view.height,
    )


def read_photos(
    capture: Capture, job_dir: Path, longest_side: int, config: PipelineConfig, report: Report
) -> tuple[Capture, Photos]:
    """Read all photos, undistort those that need it, keep the training ones at training size.

    Undistorted photos are written to the job's images/, at full size; so Blender and `render`
    have a pinhole camera for every photo.

    Returns:
        The capture with pinhole views only, and its training photos.

    Raises:
        JobError: fewer than two training photos, all from one place or of one picture, or none
            can be read.
    """
    for text in capture.warnings:
        report.warning(text)
    sources = readable_views(capture.views, report)
    pinholes, training, images = [], [], []
    for i, source in enumerate(sources):
        report.progress(i, len(sources), f"photo {i + 1} of {len(sources)}")
        view, photo = _pinhole(source, job_dir, config)
        pinholes.append(view)
        if view.split == "train":
            scaled = scaled_view(view, longest_side)
            training.append((source, scaled))
            images.append(resize_photo(photo, scaled.width, scaled.height))
    if len(training) < 2:
        others = len(sources) - len(training)
        held_back = f" beside {others} held back for tests" if others else ""
        raise JobError(
            f"{capture.root} has {len(training)} photo to train with{held_back}. A scene needs at "
            "least 2 photos from different places, and some dozens to look good."
        )
    _check_pictures(images, [view.name for view, _ in training], capture.root, report)
    apart = camera_spread([source for source, _ in training])
    if apart < CaptureConfig.min_spread:
        raise JobError(
            f"All {len(training)} training cameras of {capture.root} stand at one place, "
            f"{apart:.2g} units apart: turning a camera shows no depth. Take photos from different "
            "places. If these were, export the capture in a smaller unit: nothing is drawn that "
            f"is nearer than {RenderConfig.near} units."
        )
    photos = Photos([s for s, _ in training], [v for _, v in training], images)
    return replace(capture, views=tuple(pinholes)), photos


def _check_pictures(
    images: Sequence[np.ndarray], names: Sequence[str], root: Path, report: Report
) -> None:
    """Refuse photos that show nothing; tell of those that are copies of each other."""
    if all(np.ptp(image) < CaptureConfig.min_contrast for image in images):
        raise JobError(
            f"All {len(images)} training photos of {root} are of one colour each. Look at the "
            "files: they may have been exported wrongly."
        )
    first: dict[str, str] = {}
    copies = []
    for image, name in zip(images, names, strict=True):
        like = first.setdefault(digest_arrays([image]), name)
        if like != name:
            copies.append(f"{name} as {like}")
    if len(first) < 2:
        raise JobError(f"All {len(images)} training photos of {root} are one and the same picture.")
    if copies:
        report.warning(
            f"{len(copies)} of {len(images)} training photos show the same picture as another one "
            f"({copies[0]}). Copies tell wrong depths: take them out."
        )


def _pinhole(source: View, job_dir: Path, config: PipelineConfig) -> tuple[View, np.ndarray]:
    photo = load_photo(source)
    view, remap = undistort_view(source)
    if not any(source.distortion):
        return view, photo
    photo = undistort(photo, remap)
    path = Path(job_dir).absolute() / IMAGES_DIR / f"{source.name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path, quality=config.jpeg_quality)
    return replace(view, image_path=path), photo


def with_points(capture: Capture, photos: Photos, min_points: int, report: Report) -> Capture:
    """The capture itself if it has enough points, else with points that its photos show alike."""
    if len(capture.points) >= min_points:
        return capture
    report.stage("points", "Finding points")
    config = TriangulationConfig()
    small = photos.at(config.longest_side)
    points, colors = triangulate(small.images, small.views, config, report)
    if len(points) < min_points:
        report.warning(
            f"The photos share too few features to start from ({len(points)} points): training "
            "starts from random ones, and looks worse. Sharper photos, or more of them that "
            "overlap, would help."
        )
        return capture
    return replace(capture, points=points, point_colors=colors)


def lift_size(photos: Photos, config: PipelineConfig) -> tuple[int, int]:
    """How large, and how many, photos can be for their blend weights to fit the memory.

    Returns:
        The longest side in pixels, and the number of views.
    """
    pixels = sum(view.width * view.height for view in photos.views)
    side = max(max(view.width, view.height) for view in photos.views)
    fitting = side * min(1.0, math.sqrt(config.max_lift_pixels / pixels))
    fitting = min(side, max(int(fitting), config.min_lift_side))
    each = pixels / len(photos.views) * (fitting / side) ** 2
    return fitting, min(len(photos.views), max(2, int(config.max_lift_pixels / each)))


def spread(indices: Sequence[int], number: int) -> list[int]:
    """That many of the indices, evenly spread."""
    places = np.linspace(0, len(indices) - 1, min(number, len(indices))).round().astype(int)
    return [indices[place] for place in places]
