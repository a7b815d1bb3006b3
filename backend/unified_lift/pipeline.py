# SPDX-License-Identifier: GPL-3.0-or-later
"""The way of the data from a capture to objects: only this module knows the order."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unified_lift.capture import Capture, View, read_capture, write_cameras
from unified_lift.capture.images import load_photo, resize_labels, resized_view, scaled_view
from unified_lift.config import (
    AUTO_LIFT,
    JOINT,
    MASKS_AUTO,
    MASKS_SAM,
    PRESETS,
    GeometryConfig,
    LiftConfig,
    PipelineConfig,
    PublishedConfig,
    SamConfig,
    Settings,
    SurfaceMaskConfig,
)
from unified_lift.gaussians import GEOMETRY, Gaussians, from_splats, to_splats
from unified_lift.geometry import train, training_seconds
from unified_lift.lift.compaction import compact, without_gaps
from unified_lift.lift.default import learn_objects
from unified_lift.lift.features import nearest_codes
from unified_lift.lift.incidence import check_mask_count, mask_incidence
from unified_lift.lift.labels import label_map
from unified_lift.lift.objects import ObjectRecord, describe
from unified_lift.lift.published import Joint, train_published
from unified_lift.lift.votes import split_by_votes
from unified_lift.masks import Show
from unified_lift.masks.folder import folder_label_maps
from unified_lift.masks.sam import sam_label_maps
from unified_lift.masks.sam_model import build_sam, read_weights
from unified_lift.masks.surfaces import find_planes, surface_label_maps
from unified_lift.metrics import psnr
from unified_lift.ply import read_ply, write_ply
from unified_lift.preparation import (
    Photos,
    lift_size,
    read_photos,
    spread,
    to_camera,
    with_points,
)
from unified_lift.previews import Previews
from unified_lift.protocol import (
    CAMERAS_FILE,
    CHECKPOINT_DIR,
    FEATURES_FILE,
    MASKS_DIR,
    OBJECTS_FILE,
    SCENE_FILE,
    JobError,
    JobReport,
    JobRequest,
    write_json,
)
from unified_lift.rendering import Engine, load_engine
from unified_lift.rendering.weights import BlendWeights

CONFIG = PipelineConfig()
GEOMETRY_FILE = "geometry.ply"  # in the checkpoint folder
SAM_CACHE_DIR = "sam_cache"  # beside the jobs, which share it


def segment(job_dir: Path, request: JobRequest, report: JobReport) -> dict:
    """Split a capture into objects.

    Returns:
        What the event `done` tells: numbers of objects and splats, PSNR.

    Raises:
        JobError: something that the user can mend; no new result stands under its final name then.
        Cancelled: the user asked for a stop.
    """
    torch.set_num_threads(1)  # the native core has the threads; torch's would spin beside them
    settings = request.settings
    config = PRESETS[settings.preset]
    engine = load_engine(settings.device)
    report.stage("photos", "Reading photos")
    if engine.name == "reference" and settings.device == "auto":
        report.warning(
            "The native renderer does not work here (the log says why): training is many times "
            "slower. Install the backend again."
        )
    capture = read_capture(request.capture)
    capture, photos = read_photos(capture, job_dir, config.longest_side, CONFIG, report)
    given = _given_masks(photos, settings, report)
    write_cameras(job_dir / CAMERAS_FILE, capture)
    report.plan(**_plan(photos, len(capture.points), config, settings))
    previews = Previews(job_dir, engine, photos.cameras[0], CONFIG.preview_seconds, report)

    joint = Joint(given, PublishedConfig(), settings.seed) if settings.method == JOINT else None
    if settings.splat:
        report.stage("geometry", "Reading splats")
        gaussians = _read_splats(Path(settings.splat), capture)
    else:
        scene = (job_dir, photos, capture, config, engine)
        gaussians = _geometry(*scene, settings.seed, report, previews, joint)
    views = capture.test_views or capture.train_views
    quality, flat, opaque = _quality(views, gaussians, engine, config.longest_side)
    _judge_splats(settings.splat, quality, flat, opaque, report)
    previews.show(gaussians, None, "Splats")

    report.stage("masks", _masks_label(settings))
    lifting = _lifting(
        job_dir, capture, photos, given, gaussians, engine, settings, report, previews
    )
    _write_masks(job_dir / MASKS_DIR, lifting)

    report.stage("lift", "Finding objects")
    previews.camera = lifting.photos.cameras[0]
    split = _split(lifting, gaussians, settings, report, previews, joint)

    report.stage("export", "Writing the objects")
    _write_result(job_dir, gaussians, split)
    shutil.rmtree(job_dir / CHECKPOINT_DIR, ignore_errors=True)
    return {"objects": len(split.objects), "splats": len(split.object_ids), "psnr": quality}


# ---- stages


def _plan(
    photos: Photos, num_points: int, config: GeometryConfig, settings: Settings
) -> dict[str, float]:
    """Expected seconds of each stage on the machine that the constants were measured on."""
    side, number = lift_size(photos, CONFIG)
    pixels = sum(view.width * view.height for view in photos.views_at(side)[:number])
    masks = {
        MASKS_AUTO: CONFIG.surface_seconds * pixels,
        MASKS_SAM: CONFIG.sam_seconds * number + CONFIG.folder_seconds * pixels,
    }.get(settings.masks, CONFIG.folder_seconds * pixels)
    lift = CONFIG.vote_seconds * pixels
    if settings.method == "default":
        lift += CONFIG.feature_seconds + CONFIG.codebook_seconds * pixels
    plan = {"geometry": 0.0, "masks": masks, "lift": lift}
    if settings.splat:
        return plan
    if num_points >= config.min_points:
        return plan | {"geometry": training_seconds(config, photos.cameras, num_points)}
    # Points are found first, and how many is not known yet: as many as random ones will do.
    geometry = training_seconds(config, photos.cameras, config.random_points)
    points = CONFIG.point_seconds * sum(view.width * view.height for view in photos.views)
    return {"points": points} | plan | {"geometry": geometry}


def _read_splats(path: Path, capture: Capture) -> Gaussians:
    """The user's own splats, to the last bit where the capture was not moved."""
    splats = read_ply(path)
    if any(capture.origin):
        splats = replace(splats, means=(splats.means - np.array(capture.origin)).astype(np.float32))
    return from_splats(splats)


def _judge_splats(path: str, quality: float, flat: float, opaque: float, report: JobReport) -> None:
    """Tell where splats are not of these photos; refuse a user's own that no photo shows."""
    unlike = f"unlike the photos (PSNR {quality:.1f} dB, one flat colour has {flat:.1f} dB)"
    if not path:
        if quality < flat:
            remedy = "Check that the cameras belong to the photos."
            report.warning(f"The trained splats look {unlike}. {remedy}")
        return
    remedy = "Its splats have to lie in the world frame of the capture's cameras."
    if opaque < CONFIG.min_splat_alpha:
        raise JobError(f"{path} shows next to nothing in the views of the photos. {remedy}")
    if quality < flat + CONFIG.min_splat_gain:
        report.warning(f"{path} looks {unlike}. {remedy}")


def _geometry(
    job_dir: Path,
    photos: Photos,
    capture: Capture,
    config: GeometryConfig,
    engine: Engine,
    seed: int,
    report: JobReport,
    previews: Previews,
    joint: Joint | None,
) -> Gaussians:
    """Train the splats, or take those that a worker trained before it crashed."""
    path = job_dir / CHECKPOINT_DIR / GEOMETRY_FILE
    if path.exists() and not joint:
        report.stage("geometry", "Reading splats")
        try:
            gaussians = from_splats(read_ply(path))
            # Done already, it tells nothing of this machine's speed.
            report.plan(points=0.0, geometry=0.0)
            return gaussians
        except JobError as error:
            report.warning(f"The splats of the last run cannot be used. {error} Training again.")
    if len(capture.points) < config.min_points:
        report.stage("points", "Finding points")
        capture = with_points(capture, photos, config.min_points, report)
        seconds = training_seconds(config, photos.cameras, len(capture.points))
        report.plan(geometry=seconds)
    report.stage("geometry", f"Training splats ({engine.name})")
    gaussians = train(
        photos.images,
        photos.cameras,
        capture.points,
        capture.point_colors,
        config,
        engine,
        seed,
        report,
        previews.training,
        joint,
    )
    path.parent.mkdir(exist_ok=True)
    write_ply(path, to_splats(gaussians))
    return gaussians


def _masks_label(settings: Settings) -> str:
    return "Segmenting photos (SAM)" if settings.masks == MASKS_SAM else "Finding surfaces"


@dataclass(frozen=True)
class Lifting:
    """What the lift works on: some training views, as large as the memory allows.

    Attributes:
        photos: V photos.
        weights: blend weights of each.
        label_maps: (H, W) int32 each, 0 = unlabelled.
        plane_of_gaussian: (N,) int32, the large plane that a Gaussian lies on, 0 = none.
    """

    photos: Photos
    weights: list[BlendWeights]
    label_maps: list[np.ndarray]
    plane_of_gaussian: np.ndarray


def _given_masks(
    photos: Photos, settings: Settings, report: JobReport
) -> list[np.ndarray | None] | None:
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
    check_mask_count([given[i] for i in _picked(photos, given)], LiftConfig())
    return given


def _picked(photos: Photos, given: list[np.ndarray | None] | None) -> list[int]:
    """The views that lift: as many of those with masks as fit the memory, evenly spread."""
    usable = [i for i in range(len(photos.views)) if given is None or given[i] is not None]
    return spread(usable, lift_size(photos, CONFIG)[1])


def _lifting(
    job_dir: Path,
    capture: Capture,
    photos: Photos,
    given: list[np.ndarray | None] | None,
    gaussians: Gaussians,
    engine: Engine,
    settings: Settings,
    report: JobReport,
    previews: Previews,
) -> Lifting:
    """Choose as many views as fit the memory; get their label maps and the scene's planes."""
    picked = _picked(photos, given)
    chosen = photos.pick(picked).at(lift_size(photos, CONFIG)[0])
    weights = []
    for camera in chosen.cameras:
        report.check()
        weights.append(engine.blend_weights(*(gaussians[name] for name in GEOMETRY), camera))

    def show(view: int, labels: np.ndarray | None) -> None:
        if previews.due:
            previews.camera = chosen.cameras[view]
            labels = given[picked[view]] if given else labels
            previews.show(gaussians, labels, _masks_label(settings))

    scene = (chosen.images, chosen.cameras, gaussians, weights, SurfaceMaskConfig(), report, show)
    if settings.masks == MASKS_AUTO:
        label_maps, planes = surface_label_maps(*scene)
    else:
        planes = find_planes(*scene)
        label_maps = [given[i] for i in picked] if given else []
    if settings.masks == MASKS_SAM:
        views = [capture.train_views[i] for i in picked]
        label_maps = [
            resize_labels(labels, view.width, view.height)
            for labels, view in zip(
                _sam(views, job_dir, settings, report, show), chosen.views, strict=True
            )
        ]
    check_mask_count(label_maps, LiftConfig())
    on_plane = planes.plane_of_gaussian(gaussians["means"].numpy())
    return Lifting(chosen, weights, label_maps, on_plane)


def _sam(
    views: list[View], job_dir: Path, settings: Settings, report: JobReport, show: Show
) -> list[np.ndarray]:
    """Masks of segment-anything, from the photos at the size that it works at."""
    config = SamConfig()
    photos = [load_photo(scaled_view(view, config.longest_side)) for view in views]
    device = "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    cache_dir = job_dir.absolute().parent / SAM_CACHE_DIR
    checkpoint = Path(settings.sam_checkpoint)
    return sam_label_maps(photos, checkpoint, config, cache_dir, report, device, show)


@dataclass(frozen=True)
class Split:
    """The answer: object_ids (N,) int32, confidence (N,) float32, and the learned features."""

    objects: list[ObjectRecord]
    object_ids: np.ndarray
    confidence: np.ndarray
    features: np.ndarray
    codebook: np.ndarray


def _split(
    lifting: Lifting,
    gaussians: Gaussians,
    settings: Settings,
    report: JobReport,
    previews: Previews,
    joint: Joint | None,
) -> Split:
    """Votes first, which is what the user sees while features and codebook are learned."""
    config = AUTO_LIFT if settings.masks == MASKS_AUTO else LiftConfig()
    incidence = mask_incidence(lifting.weights, lifting.label_maps)
    report.check()
    tracks = split_by_votes(incidence, config, report.check)
    report.check()
    object_ids = compact(incidence, tracks, config)
    previews.show(gaussians, label_map(lifting.weights[0], object_ids + 1), "First split")
    features = codebook = torch.zeros(0, 0)

    def show(*learned: torch.Tensor) -> None:
        if previews.due:
            codes = label_map(lifting.weights[0], nearest_codes(*learned) + 1)
            previews.show(gaussians, codes, "Learning features")

    scene = (lifting.weights, lifting.label_maps)
    if settings.method == "default":
        learning = (incidence, tracks, object_ids, config, settings.seed, report, show)
        object_ids, features, codebook = learn_objects(*scene, *learning)
    elif settings.method != "votes":
        training = (incidence.num_gaussians, PublishedConfig(), settings.seed, report)
        learned = joint.learned if joint else train_published(*scene, *training)
        object_ids, features, codebook = without_gaps(nearest_codes(*learned)), *learned
    means = gaussians["means"].numpy()
    objects, ids, confidence = describe(
        incidence, object_ids, means, lifting.plane_of_gaussian, config
    )
    if not objects:
        alike = "show the same splats" if (tracks < 0).all() else "divide them alike"
        raise JobError(
            f"No object was found: no two photos' masks {alike}. Take more photos that overlap, or "
            "choose other masks."
        )
    if not any(entry.score for entry in objects):  # codes fall anywhere, whatever masks show
        report.warning(
            "No mask shows any of the objects as it is: this split means little. Take more photos "
            "that overlap, or choose other masks."
        )
    if len(objects) == 1:
        report.warning("Only one object was found: the masks tell no others apart.")
    previews.show(gaussians, label_map(lifting.weights[0], ids), "Objects")
    return Split(objects, ids, confidence, features.numpy(), codebook.numpy())


def _write_result(job_dir: Path, gaussians: Gaussians, split: Split) -> None:
    np.savez_compressed(
        job_dir / FEATURES_FILE,
        features=split.features.astype(np.float16),
        codebook=split.codebook,
    )
    write_json(job_dir / OBJECTS_FILE, {"objects": [asdict(entry) for entry in split.objects]})
    splats = replace(to_splats(gaussians), object_ids=split.object_ids, confidence=split.confidence)
    write_ply(job_dir / SCENE_FILE, splats)


def _write_masks(folder: Path, lifting: Lifting) -> None:
    """The label maps as used, each view's ids from 1."""
    for view, labels in zip(lifting.photos.views, lifting.label_maps, strict=True):
        path = folder / f"{view.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ids, local = np.unique(labels, return_inverse=True)
        local = local.reshape(labels.shape) + (ids[0] != 0)
        Image.fromarray(local.astype(np.uint16)).save(path)


def _quality(
    views: Sequence[View], gaussians: Gaussians, engine: Engine, side: int
) -> tuple[float, float, float]:
    """Means over views at the size of the training photos: PSNR, that of flat colour, and alpha.

    The flat picture has the mean colour of the photo; PSNR is in dB.
    """
    values = []
    for view in (scaled_view(view, side) for view in views):
        with torch.no_grad():
            render = engine.render(**gaussians, camera=to_camera(view))
        photo = load_photo(view)
        flat = np.broadcast_to(photo.mean((0, 1)) / 255, photo.shape)
        image = render.channels.cpu().numpy()
        values.append((psnr(image, photo), psnr(flat, photo), float(render.alphas.mean())))
    quality, flat, opaque = np.mean(values, 0).tolist()
    return quality, flat, opaque
