# SPDX-License-Identifier: GPL-3.0-or-later
"""The way of the data from a capture to objects: only this package knows the order."""

from __future__ import annotations

from pathlib import Path

from unified_lift.capture import read_capture, write_cameras
from unified_lift.config import JOINT, MASKS_SAM, PRESETS, PublishedConfig
from unified_lift.edges import sharpening_seconds
from unified_lift.geometry import training_seconds
from unified_lift.lift.published import Joint
from unified_lift.pipeline.job import CONFIG, Job
from unified_lift.pipeline.lifting import given_masks, is_judged_by_shape, prepare_lifting
from unified_lift.pipeline.splats import job_splats, judge_splats, splat_quality
from unified_lift.pipeline.split import may_sharpen, split_scene, write_result
from unified_lift.preparation import lift_size, read_photos
from unified_lift.previews import Previews
from unified_lift.protocol import CAMERAS_FILE, JobReport, JobRequest
from unified_lift.rendering import load_engine


def segment(job_dir: Path, request: JobRequest, report: JobReport) -> dict:
    """Split a capture into objects.

    Returns:
        What the event `done` tells: numbers of objects and splats, PSNR.

    Raises:
        JobError: something that the user can mend; no new result stands under its final name then.
        Cancelled: the user asked for a stop.
    """
    settings = request.settings
    engine = load_engine(settings.device)
    report.stage("photos", "Reading photos")
    if engine.name == "reference" and settings.device == "auto":
        report.warning(
            "The native renderer does not work here (the log says why): training is many times "
            "slower. Install the backend again."
        )
    capture = read_capture(request.capture)
    side = PRESETS[settings.preset].longest_side
    capture, photos = read_photos(capture, job_dir, side, CONFIG, report)
    given = given_masks(photos, settings, report)
    write_cameras(job_dir / CAMERAS_FILE, capture)
    previews = Previews(job_dir, engine, photos.cameras[0], CONFIG.preview_seconds, report)
    job = Job(job_dir, settings, capture, photos, engine, report, previews)
    report.plan(**_plan(job))

    joint = Joint(given, PublishedConfig(), settings.seed) if settings.method == JOINT else None
    gaussians = job_splats(job, joint)
    quality = judge_splats(job, gaussians)
    previews.show(gaussians, None, "Splats")
    lifting = prepare_lifting(job, given, gaussians)
    split = split_scene(job, lifting, gaussians, joint)

    report.stage("export", "Writing the objects")
    if split.gaussians is not gaussians:
        quality = splat_quality(job, split.gaussians)
    write_result(job_dir, split)
    counts = {"objects": len(split.objects), "splats": len(split.object_ids)}
    return counts | {"psnr": quality.psnr}


def _plan(job: Job) -> dict[str, float]:
    """Expected seconds of each stage on the machine that the constants were measured on."""
    photos, settings, config = job.photos, job.settings, job.config
    num_points = len(job.capture.points)
    side, number = lift_size(photos, CONFIG)
    pixels = sum(view.width * view.height for view in photos.views_at(side)[:number])
    lift = votes = CONFIG.vote_seconds * pixels
    surfaces = CONFIG.surface_seconds * pixels
    if is_judged_by_shape(settings):
        surfaces += votes
    if settings.method == "default":
        lift += CONFIG.feature_seconds + CONFIG.codebook_seconds * pixels
    masks = CONFIG.sam_seconds * number if settings.masks == MASKS_SAM else 0.0
    objects = CONFIG.outline_seconds * pixels
    edges = sharpening_seconds(config, photos.cameras) + votes if may_sharpen(settings) else 0.0
    plan = {"surfaces": surfaces, "masks": masks, "lift": lift, "edges": edges, "objects": objects}
    if settings.splat:
        return {"geometry": 0.0} | plan
    if num_points >= config.min_points:
        return {"geometry": training_seconds(config, photos.cameras, num_points)} | plan
    # Points are found first, and how many is not known yet: as many as random ones will do.
    geometry = training_seconds(config, photos.cameras, config.random_points)
    points = CONFIG.point_seconds * sum(view.width * view.height for view in photos.views)
    return {"points": points, "geometry": geometry} | plan
