# SPDX-License-Identifier: GPL-3.0-or-later
"""From masks to the answer: which object each Gaussian belongs to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from unified_lift.config import AUTO_LIFT, MASKS_AUTO, OURS, LiftConfig, PublishedConfig, Settings
from unified_lift.edges import border_targets, sharpen_edges, vote_anew, vote_where_sure
from unified_lift.gaussians import Gaussians, to_splats
from unified_lift.lift.compaction import compact, without_gaps
from unified_lift.lift.default import learn_objects
from unified_lift.lift.features import nearest_codes
from unified_lift.lift.incidence import Incidence, mask_incidence
from unified_lift.lift.labels import label_map
from unified_lift.lift.objects import ObjectRecord, SeenSplats, describe, settle
from unified_lift.lift.published import Joint, train_published
from unified_lift.lift.refinement import refine
from unified_lift.lift.votes import split_by_votes
from unified_lift.pipeline.job import Job
from unified_lift.pipeline.lifting import Lifting, blend_weights, is_judged_by_shape
from unified_lift.pipeline.splats import where_kept
from unified_lift.ply import write_ply
from unified_lift.protocol import (
    FEATURES_FILE,
    OBJECTS_FILE,
    SCENE_FILE,
    JobError,
    write_json,
)


@dataclass(frozen=True)
class Split:
    """The answer: object_ids (N,) int32, confidence (N,) float32, and the learned features.

    The Gaussians are those that were split, or have sharper edges now, without those that `settle`
    drops.
    """

    gaussians: Gaussians
    objects: list[ObjectRecord]
    object_ids: np.ndarray
    confidence: np.ndarray
    features: np.ndarray
    codebook: np.ndarray


def split_scene(job: Job, lifting: Lifting, gaussians: Gaussians, joint: Joint | None) -> Split:
    """Find the objects, sharpen their edges where masks show these, and settle them."""
    settings, previews, report = job.settings, job.previews, job.report
    report.stage("lift", "Finding objects")
    previews.camera = lifting.photos.cameras[0]
    config = AUTO_LIFT if settings.masks == MASKS_AUTO else LiftConfig()
    incidence = mask_incidence(lifting.weights, lifting.label_maps)
    report.check()
    tracks = split_by_votes(incidence, config, report.check)
    report.check()
    if settings.method in OURS and (tracks < 0).all():  # nothing to learn
        _check_objects([], tracks, job)
    learned = _learn(job, lifting, gaussians, joint, incidence, tracks, config)
    object_ids, features, codebook = learned
    if lifting.sure_maps and settings.method in OURS:
        voters = (incidence, lifting.weights, lifting.sure_maps)
        object_ids = vote_where_sure(*voters, object_ids, config, report.check)
    if may_sharpen(settings):
        sharpened = _sharpened(job, lifting, gaussians, object_ids, config)
        if sharpened is not None:
            gaussians = sharpened
            del incidence  # of the Gaussians as they were: both would take twice the memory
            for view, blend in enumerate(blend_weights(job, gaussians, lifting.photos.cameras)):
                lifting.weights[view] = blend  # likewise
            voters = (lifting.weights, lifting.label_maps)
            incidence, object_ids = vote_anew(*voters, object_ids, config, report.check)
    report.stage("objects", "Settling objects")
    views = (lifting.weights, lifting.photos.cameras)
    splats = SeenSplats.of(gaussians, lifting.planes.plane_of_gaussian, *views, job.engine)
    settling = (incidence, object_ids, splats, config, report.progress)
    object_ids, kept = settle(*settling, may_drop=not settings.splat)
    objects, ids, confidence = describe(incidence, object_ids, splats, config)
    _check_objects(objects, tracks, job)
    previews.show(gaussians, label_map(lifting.weights[0], ids), "Objects")
    if not kept.all():
        gaussians = {name: value[torch.from_numpy(kept)] for name, value in gaussians.items()}
    features = features.numpy()[kept] if len(features) else features.numpy()
    return Split(gaussians, objects, ids[kept], confidence[kept], features, codebook.numpy())


def _learn(
    job: Job,
    lifting: Lifting,
    gaussians: Gaussians,
    joint: Joint | None,
    incidence: Incidence,
    tracks: np.ndarray,
    config: LiftConfig,
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Object ids (N,), features and codebook.

    Votes first, which is what the user sees while features and codebook are learned.
    """
    settings, previews, report = job.settings, job.previews, job.report
    object_ids = compact(incidence, tracks, config)
    previews.show(gaussians, label_map(lifting.weights[0], object_ids + 1), "First split")

    def show(*learned: torch.Tensor) -> None:
        if previews.due:
            codes = label_map(lifting.weights[0], nearest_codes(*learned) + 1)
            previews.show(gaussians, codes, "Learning features")

    scene = (lifting.weights, lifting.label_maps)
    if settings.method == "default":
        known = (incidence, tracks, object_ids, lifting.shapes)
        return learn_objects(*scene, *known, config, settings.seed, report, show)
    if settings.method == "votes":
        object_ids = refine(incidence, object_ids, config, lifting.shapes, report.check)
        return object_ids, torch.zeros(0, 0), torch.zeros(0, 0)
    training = (incidence.num_gaussians, PublishedConfig(), settings.seed, report)
    learned = joint.learned if joint else train_published(*scene, *training)
    return without_gaps(nearest_codes(*learned)), *learned


def may_sharpen(settings: Settings) -> bool:
    """Whether splats may learn from the masks where objects end.

    A user's own splats stay as they are, a published method as it was published, and what geometry
    alone shows tells it nothing new.
    """
    return not settings.splat and is_judged_by_shape(settings)


def _sharpened(
    job: Job, lifting: Lifting, gaussians: Gaussians, object_ids: np.ndarray, config: LiftConfig
) -> Gaussians | None:
    """The Gaussians with sharper edges; None where masks do not show these, or it failed."""
    shown = (lifting.weights, lifting.label_maps, object_ids, config)
    targets = border_targets(*shown, job.report.check)
    if targets is None:
        job.report.plan(edges=0.0)
        return None
    label = "Sharpening edges"
    job.report.stage("edges", label)

    def show(changed: Gaussians) -> None:
        if job.previews.due:
            job.previews.show(changed, None, label)

    photos, views = job.photos, lifting.photos.cameras
    scene = (photos.images, photos.cameras, targets, views, job.config)
    running = (job.engine, job.settings.seed, job.report, show)
    try:
        return sharpen_edges(gaussians, object_ids, *scene, *running)
    except JobError as error:
        job.report.warning(f"The objects' edges stay as they are. {error}")
        return None


def _check_objects(objects: list[ObjectRecord], tracks: np.ndarray, job: Job) -> None:
    """Refuse a split without objects, and tell where it means little."""
    if not objects:
        alike = "show the same splats" if (tracks < 0).all() else "divide them alike"
        raise JobError(
            f"No object was found: no two photos' masks {alike}. Take more photos that overlap, or "
            f"choose other masks.{where_kept(job)}"
        )
    if not any(entry.score for entry in objects):  # codes fall anywhere, whatever masks show
        job.report.warning(
            "No mask shows any of the objects as it is: this split means little. Take more photos "
            "that overlap, or choose other masks."
        )
    if len(objects) == 1:
        job.report.warning("Only one object was found: the masks tell no others apart.")


def write_result(job_dir: Path, split: Split) -> None:
    """Write what Blender reads, and the learned features."""
    np.savez_compressed(
        job_dir / FEATURES_FILE,
        features=split.features.astype(np.float16),
        codebook=split.codebook,
    )
    write_json(job_dir / OBJECTS_FILE, {"objects": [asdict(entry) for entry in split.objects]})
    splats = to_splats(split.gaussians)
    splats = replace(splats, object_ids=split.object_ids, confidence=split.confidence)
    write_ply(job_dir / SCENE_FILE, splats)
