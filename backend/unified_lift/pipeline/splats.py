# SPDX-License-Identifier: GPL-3.0-or-later
"""The splats of a job: trained, or the user's own; and how well they show the photos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unified_lift.capture import Capture
from unified_lift.capture.images import load_photo, scaled_view
from unified_lift.checkpoint import (
    SOURCE_FILE,
    holds_splats,
    keep_result,
    keep_splats,
    kept_splats,
    splats_source,
)
from unified_lift.digests import digest_photos
from unified_lift.gaussians import Gaussians, from_splats
from unified_lift.geometry import train, training_seconds
from unified_lift.lift.published import Joint
from unified_lift.metrics import psnr
from unified_lift.pipeline.job import CONFIG, Job
from unified_lift.ply import read_ply
from unified_lift.preparation import to_camera, with_points
from unified_lift.protocol import CHECKPOINT_DIR, SCENE_FILE, JobError, describe_os_error


def job_splats(job: Job, joint: Joint | None) -> Gaussians:
    """The user's splats, those that this or another job has trained, or newly trained ones."""
    if job.settings.splat:
        job.report.stage("geometry", "Reading splats")
        return _read_splats(Path(job.settings.splat), job.capture)
    if joint:  # learns while the splats train
        return _train(job, joint)
    photos = digest_photos(job.capture, job.report.check)
    source = splats_source(photos, job.config, job.engine, job.settings.seed)
    own = _checkpoint(job)
    beside = sorted(job.folder.absolute().parent.glob(f"*/{CHECKPOINT_DIR}"))
    folder = next((place for place in [own, *beside] if holds_splats(place, source)), own)
    kept = kept_splats(folder, source, job.report)
    if kept is not None:
        whose = "" if folder == own else f" of {folder.parent.name}"
        job.report.stage("geometry", f"Reading splats{whose}")
        # Done already, it tells nothing of this machine's speed.
        job.report.plan(points=0.0, geometry=0.0)
    gaussians = _train(job, joint) if kept is None else kept
    if kept is None or folder != own:
        with _telling_what_is_not_kept(job):
            keep_splats(own, source, gaussians)
    return gaussians


def end_checkpoint(job: Job) -> None:
    """Keep the trained splats as what the result holds, for other jobs on the same photos."""
    if (_checkpoint(job) / SOURCE_FILE).exists():
        with _telling_what_is_not_kept(job):
            keep_result(_checkpoint(job), job.folder.absolute() / SCENE_FILE)


def _checkpoint(job: Job) -> Path:
    return job.folder.absolute() / CHECKPOINT_DIR


@contextmanager
def _telling_what_is_not_kept(job: Job) -> Iterator[None]:
    """The splats are at hand, and the work goes on."""
    try:
        yield
    except OSError as error:
        told = describe_os_error(error, _checkpoint(job))
        job.report.warning(f"The trained splats are not kept for another run. {told}")


def where_kept(job: Job) -> str:
    """A sentence on trained splats that outlive a failure; "" if there are none."""
    if not (_checkpoint(job) / SOURCE_FILE).exists():
        return ""
    jobs_dir = job.folder.absolute().parent
    return f" The trained splats are kept: this job, or another in {jobs_dir}, goes on from them."


def _read_splats(path: Path, capture: Capture) -> Gaussians:
    """The user's own splats, to the last bit where the capture was not moved."""
    splats = read_ply(path)
    if any(capture.origin):
        splats = replace(splats, means=(splats.means - np.array(capture.origin)).astype(np.float32))
    return from_splats(splats)


def _train(job: Job, joint: Joint | None) -> Gaussians:
    capture, photos, config = job.capture, job.photos, job.config
    if len(capture.points) < config.min_points:
        job.report.stage("points", "Finding points")
        capture = with_points(capture, photos, config.min_points, job.report)
        seconds = training_seconds(config, photos.cameras, len(capture.points))
        job.report.plan(geometry=seconds)
    job.report.stage("geometry", f"Training splats ({job.engine.name})")
    return train(
        photos.images,
        photos.cameras,
        capture.points,
        capture.point_colors,
        config,
        job.engine,
        job.settings.seed,
        job.report,
        job.previews.training,
        joint,
    )


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
    quality = _quality(job, gaussians)
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


def _quality(job: Job, gaussians: Gaussians) -> Quality:
    """Of the test views; of the training views where there are no others."""
    values = []
    for full in job.capture.test_views or job.capture.train_views:
        view = scaled_view(full, job.config.longest_side)
        with torch.no_grad():
            render = job.engine.render(**gaussians, camera=to_camera(view))
        photo = load_photo(view)
        flat = np.broadcast_to(photo.mean((0, 1)) / 255, photo.shape)
        image = render.channels.cpu().numpy()
        values.append((psnr(image, photo), psnr(flat, photo), float(render.alphas.mean())))
    return Quality(*np.mean(values, 0).tolist())
