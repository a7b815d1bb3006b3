# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lift works on: some of the photos, their blend weights and label maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unified_lift.capture import View
from unified_lift.capture.images import load_photo, resize_labels, resized_view, scaled_view
from unified_lift.config import (
    JOINT,
    MASKS_AUTO,
    MASKS_SAM,
    OURS,
    LiftConfig,
    SamConfig,
    Settings,
    SurfaceMaskConfig,
)
from unified_lift.gaussians import GEOMETRY, Gaussians
from unified_lift.lift.incidence import check_mask_count
from unified_lift.lift.refinement import shapes_of
from unified_lift.masks import Show
from unified_lift.masks.folder import folder_label_maps
from unified_lift.masks.planes import SurfacePlanes
from unified_lift.masks.sam import sam_label_maps
from unified_lift.masks.sam_model import build_sam, read_weights
from unified_lift.masks.surfaces import surface_label_maps
from unified_lift.pipeline.job import CONFIG, Job
from unified_lift.pipeline.splats import where_kept
from unified_lift.preparation import Photos, lift_size, spread
from unified_lift.protocol import MASKS_DIR, JobError, Report
from unified_lift.rendering import Camera
from unified_lift.rendering.weights import BlendWeights

SAM_CACHE_DIR = "sam_cache"  # beside the jobs, which share it
GivenMasks = list[np.ndarray | None] | None  # of each photo; None where no folder has them


@dataclass(frozen=True)
class Lifting:
    """What the lift works on: some training views, as large as the memory allows.

    Attributes:
        photos: V photos.
        weights: blend weights of each; they change with the Gaussians.
        label_maps: (H, W) int32 each, 0 = unlabelled.
        sure_maps: those that have the last vote; None where the label maps have it.
        shapes: (N,) int from 0, -1 = none, what geometry alone shows; None where nobody asks, or
            there is no surface.
        planes: the large ones of the scene.
    """

    photos: Photos
    weights: list[BlendWeights]
    label_maps: list[np.ndarray]
    sure_maps: list[np.ndarray] | None
    shapes: np.ndarray | None
    planes: SurfacePlanes


def given_masks(photos: Photos, settings: Settings, report: Report) -> GivenMasks:
    """Read the folder of masks before anything takes long; None where there is no folder."""
    if settings.masks == MASKS_SAM:
        checkpoint = Path(settings.sam_checkpoint)
        build_sam(read_weights(checkpoint), checkpoint)  # refused now, not after the training
    if settings.masks in (MASKS_AUTO, MASKS_SAM):
        if settings.method == JOINT:
            raise JobError(
                f"The method {JOINT} needs masks before there are splats. Name a folder of masks, "
                "or take the method unified-lift."
            )
        return None
    side, _ = lift_size(photos, CONFIG)
    # The views that lift were scaled in two steps: rounding in one would differ by a pixel.
    sources = [
        resized_view(source, view.width, view.height)
        for source, view in zip(photos.sources, photos.views_at(side), strict=True)
    ]
    given = folder_label_maps(Path(settings.masks), sources, report)
    chosen = [given[i] for i in _picked(photos, given)]
    shown = sum(bool(labels.any()) for labels in chosen)
    if shown < 2:
        raise JobError(
            f"{settings.masks} labels anything in only {shown} of {len(photos.views)} photos: an "
            "object is what the masks of several photos agree on. Label more photos."
        )
    check_mask_count(chosen, LiftConfig())
    return given


def _picked(photos: Photos, given: GivenMasks) -> list[int]:
    """The views that lift: as many of those with masks as fit the memory, evenly spread."""
    usable = [i for i in range(len(photos.views)) if given is None or given[i] is not None]
    return spread(usable, lift_size(photos, CONFIG)[1])


def is_judged_by_shape(settings: Settings) -> bool:
    """Whether geometry has a say where masks fuse things: not if it made them, nor as published."""
    return settings.masks != MASKS_AUTO and settings.method in OURS


def prepare_lifting(job: Job, given: GivenMasks, gaussians: Gaussians) -> Lifting:
    """Choose as many views as fit the memory; get their label maps and the scene's planes.

    Where masks come from elsewhere, those of the surface serve to judge them.
    """
    label, masks = "Finding surfaces", job.settings.masks
    job.report.stage("surfaces", label)
    picked = _picked(job.photos, given)
    chosen = job.photos.pick(picked).at(lift_size(job.photos, CONFIG)[0])
    weights = list(blend_weights(job, gaussians, chosen.cameras))

    def show(view: int, labels: np.ndarray | None) -> None:
        if job.previews.due:
            job.previews.camera = chosen.cameras[view]
            labels = given[picked[view]] if given else labels
            job.previews.show(gaussians, labels, label)

    scene = (chosen.images, chosen.cameras, gaussians, weights, SurfaceMaskConfig())
    sure_maps, shapes, planes = None, None, SurfacePlanes.none()
    try:
        label_maps, sure_maps, planes = surface_label_maps(*scene, job.report, show)
        if is_judged_by_shape(job.settings):
            shapes = shapes_of(weights, label_maps, job.report.check)
    except JobError as error:
        if masks == MASKS_AUTO:
            raise
        job.report.warning(
            "Floor and walls cannot be told from things, and things that masks fuse stay one. "
            f"{error}"
        )
    if given:
        label_maps = [given[i] for i in picked]
    elif masks == MASKS_SAM:
        label = "Segmenting photos (SAM)"
        job.report.stage("masks", label)
        found = _sam(job, [job.capture.train_views[i] for i in picked], show)
        label_maps = [
            resize_labels(labels, view.width, view.height)
            for labels, view in zip(found, chosen.views, strict=True)
        ]
    if not any(labels.any() for labels in label_maps):
        raise JobError(
            f"There is no mask in any of the {len(label_maps)} photos that objects are looked for "
            f"in. Choose other masks.{where_kept(job)}"
        )
    check_mask_count(label_maps, LiftConfig())
    sure_maps = sure_maps if masks == MASKS_AUTO else None
    lifting = Lifting(chosen, weights, label_maps, sure_maps, shapes, planes)
    _write_masks(job.folder / MASKS_DIR, lifting)
    return lifting


def blend_weights(job: Job, gaussians: Gaussians, cameras: list[Camera]) -> Iterator[BlendWeights]:
    """Of each camera's view; some tens of megabytes each."""
    for camera in cameras:
        job.report.check()
        yield job.engine.blend_weights(*(gaussians[name] for name in GEOMETRY), camera)


def _sam(job: Job, views: list[View], show: Show) -> list[np.ndarray]:
    """Masks of segment-anything, from the photos at the size that it works at."""
    config = SamConfig()
    photos = [load_photo(scaled_view(view, config.longest_side)) for view in views]
    device = "cuda" if job.settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    cache_dir = job.folder.absolute().parent / SAM_CACHE_DIR
    checkpoint = Path(job.settings.sam_checkpoint)
    return sam_label_maps(photos, checkpoint, config, cache_dir, job.report, device, show)


def _write_masks(folder: Path, lifting: Lifting) -> None:
    """The label maps as used, each view's ids from 1."""
    for view, labels in zip(lifting.photos.views, lifting.label_maps, strict=True):
        path = folder / f"{view.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ids, local = np.unique(labels, return_inverse=True)
        local = local.reshape(labels.shape) + (ids[0] != 0)
        Image.fromarray(local.astype(np.uint16)).save(path)
