# SPDX-License-Identifier: GPL-3.0-or-later
"""The splats of a job: trained, or the user's own; and how well they show the photos."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unified_lift.capture import Capture
from unified_lift.capture.images import load_photo, scaled_view
from unified_lift.checkpoint import (
    SOURCE_FILE,
    Stopped,
    keep_splats,
    kept_splats,
    read_kept,
    splats_source,
)
from unified_lift.digests import digest_photos
from unified_lift.gaussians import Gaussians, from_splats
from unified_lift.geometry import train, training_seconds
from unified_lift.lift.published import Joint
from unified_lift.metrics import psnr
from unified_lift.pipeline.job import CONFIG, Job
from unified_lift.ply import read_ply
from unified_lift.preparation import spread, to_camera, with_points
from unified_lift.protocol import CHECKPOINT_DIR, JobError, describe_os_error
from unified_lift.rendering import Camera


def job_splats(job: Job, joint: Joint | None) -> Gaussians:
    """The user's splats, those that this or another job has trained, or newly trained ones."""
    if job.settings.splat:
        job.report.stage("geometry", "Reading splats")
        return _read_splats(Path(job.settings.splat), job.capture)
    if joint:  # learns while the splats train
        return _train(job, joint, None)
    photos = digest_photos(job.capture, job.report.check)
    source = splats_source(photos, job.config, job.engine, job.settings.seed)
    own = _checkpoint(job)
    kept, folder = _kept(job, own, source)
    if kept is not None:
        whose = "" if folder == own else f" of {folder.parent.name}"
        job.report.stage("geometry", f"Reading splats{whose}")
        # Done already, it tells nothing of this machine's speed.
        job.report.plan(points=0.0, geometry=0.0)
    stopped = Stopped(own, source, CONFIG.keep_seconds, job.report)
    gaussians = _train(job, None, stopped) if kept is None else kept
    stopped.remove()  # before splats are written, which may need the room
    if kept is None or folder != own:
        try:
            keep_splats(own, source, gaussians)
        except OSError as error:  # they are at hand, and the work goes on
            told = describe_os_error(error, own)
            job.report.warning(f"The trained splats are not kept for another run. {told}")
    return gaussians


def _kept(job: Job, own: Path, source: dict) -> tuple[Gaussians | None, Path]:
    """What this job or one beside it has trained, and where it lies; None if no one has."""
    jobs_dir = own.parents[1]
    try:
        names = sorted(set(os.listdir(jobs_dir)) - {own.parent.name})
    except OSError:  # a folder may be written that cannot be listed
        names = []
    for folder in [own, *(jobs_dir / name / CHECKPOINT_DIR for name in names)]:
        try:
            kept = read_kept(folder, source)
        except (JobError, OSError):  # of no use here; those of this job are told below
            continue
        if kept is not None:
            return kept, folder
    return kept_splats(own, source, job.report), own


def _checkpoint(job: Job) -> Path:
    return Path(os.path.abspath(job.folder)) / CHECKPOINT_DIR


def where_kept(job: Job) -> str:
    """A sentence on trained splats that outlive a failure; "" if there are none."""
    folder = _checkpoint(job)
    if not (folder / SOURCE_FILE).is_file():
        return ""
    return (
        " The trained splats are kept: this job goes on from them, and so does another one in "
        f"{folder.parents[1]} with the same photos and quality."
    )


def _read_splats(path: Path, capture: Capture) -> Gaussians:
    """The user's own splats, to the last bit where the capture was not moved."""
    splats = read_ply(path)
    if any(capture.origin):
        splats = replace(splats, means=(splats.means - np.array(capture.origin)).astype(np.float32))
    return from_splats(splats)


def _train(job: Job, joint: Joint | None, stopped: Stopped | None) -> Gaussians:
    """Train, or go on with a training that was stopped; a joint one always starts anew."""
    photos, config, capture = job.photos, job.config, job.capture
    unfinished = stopped.read() if stopped else None
    if unfinished:
        job.report.plan(points=0.0)
        label = f"Training from step {unfinished['step']}"
    else:
        capture = with_points(capture, photos, config.min_points, job.report)
        label = f"Training splats ({job.engine.name})"
    left = training_seconds(config, photos.cameras, len(capture.points), unfinished)
    job.report.plan(geometry=left)
    job.report.stage("geometry", label)
    scene = (photos.images, photos.cameras, capture.points, capture.point_colors)
    running = (config, job.engine, job.settings.seed, job.report, job.previews.training)
    with stopped or nullcontext():
        keep = stopped.keep if stopped else None
        return train(*scene, *running, joint, unfinished, keep)


class Quality(NamedTuple):
    """Means over views at the size of the training photos."""

    psnr: float  # dB
    flat_psnr: float  # dB, of a picture of the photo's mean colour
    alpha: float


def judge_splats(job: Job, gaussians: Gaussians) -> Quality:
    """Tell where splats are not of these photos.

    Raises:
        JobError: the splats are the user's own, and no photo shows them.
    """
    quality = splat_quality(job, gaussians)
    path = job.settings.splat
    unlike = f"unlike the photos (PSNR {quality.psnr:.1f} dB, "
    unlike += f"one flat colour has {quality.flat_psnr:.1f} dB)"
    if not path:
        if quality.psnr < quality.flat_psnr:
            remedy = "Check that the cameras belong to the photos."
            job.report.warning(f"The trained splats look {unlike}. {remedy}")
        return quality
    remedy = "Its splats have to lie in the world frame of the capture's cameras."
    if quality.alpha < CONFIG.min_splat_alpha:
        raise JobError(f"{path} shows next to nothing in the views of the photos. {remedy}")
    if quality.psnr < quality.flat_psnr + CONFIG.min_splat_gain:
        job.report.warning(f"{path} looks {unlike}. {remedy}")
    return quality


def splat_quality(job: Job, gaussians: Gaussians) -> Quality:
    """Of the test views; of some training views where there are no others."""
    values = []
    for camera, photo in _judging_photos(job):
        job.report.check()
        with torch.no_grad():
            render = job.engine.render(**gaussians, camera=camera)
        flat = np.broadcast_to(photo.mean((0, 1)) / 255, photo.shape)
        image = render.channels.cpu().numpy()
        values.append((psnr(image, photo), psnr(flat, photo), float(render.alphas.mean())))
    return Quality(*np.mean(values, 0).tolist())


def _judging_photos(job: Job) -> Iterator[tuple[Camera, np.ndarray]]:
    """Test photos, read one by one; without any, some training photos, which are at hand."""
    if not job.capture.test_views:
        some = job.photos.pick(spread(range(len(job.photos.views)), CONFIG.judged_photos))
        yield from zip(some.cameras, some.images, strict=True)
    for full in job.capture.test_views:
        view = scaled_view(full, job.config.longest_side)
        yield to_camera(view), load_photo(view)
