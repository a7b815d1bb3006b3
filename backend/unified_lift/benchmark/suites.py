# SPDX-License-Identifier: GPL-3.0-or-later
"""Scenes with ground truth, trained once and frozen: what all methods work on alike."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from unified_lift.benchmark.frozen import vote_labels
from unified_lift.capture import Capture, View, read_capture
from unified_lift.capture.images import load_photo, resize_labels, resized_view
from unified_lift.checkpoint import Stopped, keep_splats, kept_splats, splats_source
from unified_lift.config import (
    MASKS_AUTO,
    PRESETS,
    GeometryConfig,
    LiftConfig,
    PipelineConfig,
    SurfaceMaskConfig,
)
from unified_lift.digests import digest_folder, digest_photos
from unified_lift.edges import border_targets, sharpen_edges
from unified_lift.gaussians import GEOMETRY, Gaussians
from unified_lift.geometry import train
from unified_lift.lift.objects import SeenSplats
from unified_lift.masks.folder import folder_label_maps
from unified_lift.masks.planes import SurfacePlanes
from unified_lift.masks.surfaces import SurfaceMasks, surface_label_maps
from unified_lift.metrics import psnr, read_meta, read_truth, ssim
from unified_lift.preparation import (
    Photos,
    lift_size,
    read_photos,
    spread,
    to_camera,
    with_points,
)
from unified_lift.protocol import JobError, Report, SilentReport
from unified_lift.rendering import Engine, Render
from unified_lift.rendering.weights import BlendWeights

CONFIG = PipelineConfig()
GT_DIR = "gt"
SURFACE_FILE = "surface.npz"  # in gt, if at all
MASKS_DIR = "masks"
TRUE_MASKS = "gt"  # in place of a level: the ground truth of the training views


def suite_name(capture_dir: Path, num_views: int) -> str:
    """The folder's name, and how many training views are used of it, if not all (0)."""
    return capture_dir.name + (f"-{num_views}views" if num_views else "")


@dataclass(frozen=True)
class Suite:
    """A capture with ground truth and its frozen splats.

    Attributes:
        name: as `suite_name`.
        capture_dir: holds photos, cameras, masks/LEVEL/ and gt/.
        gaussians: raw parameters, N.
        trained_on: the V training photos, as the splats were trained on them.
        photos: those that the lift works on, at its size.
        test_views: at their full size.
        truths: (H, W) int32 of each test view, 0 = not annotated.
        things, stuff: ids in `truths`.
        preset: of the splats' training.
        seed: likewise.
        engine: what renders.
    """

    name: str
    capture_dir: Path
    gaussians: Gaussians
    trained_on: Photos
    photos: Photos
    test_views: list[View]
    truths: list[np.ndarray]
    things: list[int]
    stuff: list[int]
    preset: GeometryConfig
    seed: int
    engine: Engine

    @cached_property
    def weights(self) -> list[BlendWeights]:
        """Blend weights of each of `photos`."""
        return [self.blend_weights(view) for view in self.photos.views]

    @cached_property
    def test_weights(self) -> list[BlendWeights]:
        """Blend weights of the test views."""
        return [self.blend_weights(view) for view in self.test_views]

    @cached_property
    def test_photos(self) -> list[np.ndarray]:
        """(H, W, 3) uint8 of each test view."""
        return [load_photo(view) for view in self.test_views]

    @cached_property
    def _test_renders(self) -> list[Render]:
        with torch.no_grad():
            return [
                self.engine.render(**self.gaussians, camera=to_camera(view))
                for view in self.test_views
            ]

    @property
    def test_images(self) -> list[np.ndarray]:
        """(H, W, 3) float32 0..1, how each test view renders, display space."""
        return [render.channels.cpu().clamp(0, 1).numpy() for render in self._test_renders]

    @property
    def test_alphas(self) -> list[np.ndarray]:
        """(H, W) float32 0..1 of each test view."""
        return [render.alphas.cpu().numpy() for render in self._test_renders]

    @cached_property
    def description(self) -> dict:
        """Numbers of objects, views and splats, and how the test views render."""
        pairs = list(zip(self.test_images, self.test_photos, strict=True))
        return {
            "things": len(self.things),
            "train_views": len(self.photos.views),
            "test_views": len(self.test_views),
            "splats": len(self.gaussians["means"]),
            "psnr": float(np.mean([psnr(*pair) for pair in pairs])),
            "ssim": float(np.mean([ssim(*pair) for pair in pairs])),
        }

    @cached_property
    def true_ids(self) -> np.ndarray:
        """(N,) the true id that shows most of each Gaussian in the training views, 0 = none."""
        return vote_labels(self.weights, suite_masks(self, TRUE_MASKS, SilentReport()))

    def blend_weights(self, view: View) -> BlendWeights:
        """Blend weights of any view."""
        geometry = (self.gaussians[name] for name in GEOMETRY)
        return self.engine.blend_weights(*geometry, to_camera(view))

    def seen_splats(self, planes: SurfacePlanes) -> SeenSplats:
        """The splats as the training views see them, in a scene with these planes."""
        views = (self.weights, self.photos.cameras)
        return SeenSplats.of(self.gaussians, planes.plane_of_gaussian, *views, self.engine)

    def sharpened(
        self, label_maps: list[np.ndarray | None], object_ids: np.ndarray, report: Report
    ) -> Suite | None:
        """The scene with the edges of a split (N,), as the label maps of the photos show them.

        None where these do not show them well enough.
        """
        targets = border_targets(self.weights, label_maps, object_ids, LiftConfig())
        if targets is None:
            return None
        scene = (self.trained_on.images, self.trained_on.cameras, targets, self.photos.cameras)
        running = (self.preset, self.engine, self.seed, report)
        return self.with_gaussians(sharpen_edges(self.gaussians, object_ids, *scene, *running))

    def with_gaussians(self, gaussians: Gaussians | None) -> Suite:
        """The scene with splats that a method has changed, or the scene itself if none has."""
        if gaussians is None:
            return self
        device = self.engine.device
        return replace(self, gaussians={key: value.to(device) for key, value in gaussians.items()})

    def object_alphas(self, rows: np.ndarray) -> list[np.ndarray]:
        """Alpha (H, W) of some Gaussians rendered alone, in each test view."""
        some = {name: value[torch.from_numpy(rows)] for name, value in self.gaussians.items()}
        with torch.no_grad():
            return [
                self.engine.render(**some, camera=to_camera(view)).alphas.cpu().numpy()
                for view in self.test_views
            ]


@dataclass(frozen=True)
class Inputs:
    """Digests of a suite's files: what was made of them holds as long as they stay the same.

    Attributes:
        photos: of the photos, cameras and points.
        truth: of the ground truth.
        masks: of each level.
    """

    photos: str
    truth: str
    masks: dict[str, str]


def check_suite(
    capture_dir: Path, levels: Sequence[str], report: Report, num_views: int = 0
) -> Inputs:
    """Read all of a suite that can be wrong, before hours go into it.

    Args:
        capture_dir: as `Suite`.
        levels: of masks, as `suite_masks`.
        report: gets the warnings about masks.
        num_views: as `load_suite`.

    Raises:
        JobError: no ground truth, no test views, masks that cannot be used, or what
            `read_capture` refuses.
    """
    capture = _read_views(capture_dir, num_views)
    _read_truths(capture_dir, capture)
    read_surface(capture_dir)
    for view in capture.test_views:  # a training photo more or less would do
        load_photo(view)
    for view in capture.train_views:  # the oracle votes with these
        _read_truth(capture_dir, view)
    truth = digest_folder(capture_dir / GT_DIR)
    masks = {MASKS_AUTO: "", TRUE_MASKS: truth}
    for level in set(levels) - set(masks):
        folder = _level_dir(capture_dir, level)
        folder_label_maps(folder, capture.train_views, report)
        masks[level] = digest_folder(folder)
    return Inputs(digest_photos(capture), truth, masks)


def _read_views(capture_dir: Path, num_views: int) -> Capture:
    """The capture with so many of its training views, evenly spread; 0 = all of them."""
    capture = read_capture(capture_dir)
    if not num_views:
        return capture
    training = capture.train_views
    if not 2 <= num_views <= len(training):
        raise JobError(
            f"{capture_dir} has {len(training)} training views, {num_views} cannot be taken. "
            f"Choose from 2 to {len(training)}."
        )
    chosen = [training[i] for i in spread(range(len(training)), num_views)]
    return replace(capture, views=(*chosen, *capture.test_views))


def load_suite(
    capture_dir: Path,
    cache_dir: Path,
    preset: str,
    seed: int,
    digest: str,
    engine: Engine,
    report: Report,
    num_views: int = 0,
) -> Suite:
    """Read a capture with ground truth and train its splats, or take those of an earlier run.

    Args:
        capture_dir: as `Suite`.
        cache_dir: keeps the trained splats.
        preset: a key of `PRESETS`.
        seed: of the training.
        digest: `Inputs.photos`; with another one the splats are trained again.
        engine: what renders.
        report: told of the training.
        num_views: how many training views are used, evenly spread; 0 = all. The capture's points
            stay: they may come from more views.

    Raises:
        JobError: as `check_suite`.
    """
    config = PRESETS[preset]
    name = suite_name(capture_dir, num_views)
    report.stage("photos", f"{name}: reading photos")
    cache_dir.mkdir(parents=True, exist_ok=True)
    capture, photos = read_photos(
        _read_views(capture_dir, num_views), cache_dir, config.longest_side, CONFIG, report
    )
    truths = _read_truths(capture_dir, capture)
    training = (cache_dir, config, seed, digest, engine, report)
    gaussians = trained_splats(capture, photos, *training)
    gaussians = {name: value.to(engine.device) for name, value in gaussians.items()}
    side, _ = lift_size(photos, CONFIG)
    trained_on, photos = photos, photos.at(side)
    meta = read_meta(capture_dir / GT_DIR)
    views = list(capture.test_views)
    scene = (gaussians, trained_on, photos)
    return Suite(name, capture_dir, *scene, views, truths, *meta, config, seed, engine)


def trained_splats(
    capture: Capture,
    photos: Photos,
    cache_dir: Path,
    config: GeometryConfig,
    seed: int,
    digest: str,
    engine: Engine,
    report: Report,
) -> Gaussians:
    """Train a capture's splats, or take those of an earlier run; arguments as `load_suite`."""
    source = splats_source(digest, config, engine, seed)
    gaussians = kept_splats(cache_dir, source, report)
    if gaussians is None:
        stopped = Stopped(cache_dir, source, CONFIG.keep_seconds, report)
        unfinished = stopped.read()
        if not unfinished:
            capture = with_points(capture, photos, config.min_points, report)
        report.stage("geometry", f"{capture.root.name}: training splats")
        scene = (photos.images, photos.cameras, capture.points, capture.point_colors)
        running = (config, engine, seed, report)
        with stopped:
            gaussians = train(*scene, *running, unfinished=unfinished, keep=stopped.keep)
        stopped.remove()
        keep_splats(cache_dir, source, gaussians)
    return gaussians


def _read_truths(capture_dir: Path, capture: Capture) -> list[np.ndarray]:
    """The true ids of each test view."""
    gt_dir = capture_dir / GT_DIR
    if not gt_dir.is_dir():
        raise JobError(
            f"{capture_dir} has no folder {GT_DIR} with ids/ and meta.json. A benchmark needs the "
            "ground truth."
        )
    if not capture.test_views:
        raise JobError(
            f"{capture_dir} names no test views to score. Give some frames of its transforms.json "
            '"split": "test".'
        )
    things, _ = read_meta(gt_dir)
    truths = [_read_truth(capture_dir, view) for view in capture.test_views]
    if not any(np.isin(truth, things).any() for truth in truths):
        raise JobError(f"{gt_dir} shows none of its things in the test views.")
    return truths


def suite_masks(suite: Suite, level: str, report: Report) -> list[np.ndarray | None]:
    """Label maps of the training photos.

    Args:
        suite: a suite.
        level: "gt", or the name of a folder in the capture's masks/.
        report: told of the progress.
    """
    report.stage("masks", f"{suite.name}: {level} masks")
    if level == TRUE_MASKS:
        return [
            resize_labels(_read_truth(suite.capture_dir, source), view.width, view.height)
            for source, view in zip(suite.photos.sources, suite.photos.views, strict=True)
        ]
    folder = _level_dir(suite.capture_dir, level)
    sources = [
        resized_view(source, view.width, view.height)
        for source, view in zip(suite.photos.sources, suite.photos.views, strict=True)
    ]
    return folder_label_maps(folder, sources, report)


def suite_surfaces(suite: Suite, report: Report) -> SurfaceMasks:
    """Label maps of the training photos from geometry alone, and the scene's large planes.

    Raises:
        JobError: as `surface_label_maps`.
    """
    report.stage("masks", f"{suite.name}: {MASKS_AUTO} masks")
    scene = (suite.photos.images, suite.photos.cameras, suite.gaussians, suite.weights)
    return surface_label_maps(*scene, SurfaceMaskConfig(), report)


def _level_dir(capture_dir: Path, level: str) -> Path:
    folder = capture_dir / MASKS_DIR / level
    if not folder.is_dir() or folder.name != level:
        parent = folder.parent
        levels = sorted(path.name for path in parent.iterdir()) if parent.is_dir() else []
        raise JobError(
            f"{capture_dir} has no masks '{level}': {folder} does not exist. Choose from "
            f"{', '.join([MASKS_AUTO, *levels])}."
        )
    return folder


def read_surface(capture_dir: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Points (P, 3) of the true surface and the true id of each (P,); None where there are none.

    Raises:
        JobError: the file is damaged or holds something else.
    """
    path = capture_dir / GT_DIR / SURFACE_FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as surface:
            xyz, label = surface["xyz"], surface["label"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise JobError(f"{path} holds no xyz and label ({error}). Copy it again.") from error
    if xyz.shape != (len(label), 3):
        raise JobError(f"{path} has {len(label)} labels for {len(xyz)} points. Copy it again.")
    return xyz, label


def _read_truth(capture_dir: Path, view: View) -> np.ndarray:
    truth = read_truth(capture_dir / GT_DIR, view.name)
    if truth.shape != (view.height, view.width):
        raise JobError(
            f"The ground truth of {view.name} in {capture_dir} is {truth.shape[1]} x "
            f"{truth.shape[0]} pixels, its photo {view.width} x {view.height}. Make them equal."
        )
    return truth
