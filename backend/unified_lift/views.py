# SPDX-License-Identifier: GPL-3.0-or-later
"""Views of a finished job, rendered as pictures and label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unified_lift.capture import read_cameras
from unified_lift.config import PipelineConfig
from unified_lift.gaussians import GEOMETRY, Gaussians, from_splats
from unified_lift.lift.labels import MIN_ALPHA, label_map
from unified_lift.ply import read_ply
from unified_lift.preparation import to_camera
from unified_lift.previews import save_image
from unified_lift.protocol import (
    CAMERAS_FILE,
    OBJECTS_FILE,
    SCENE_FILE,
    JobError,
    job_state,
    write_json,
)
from unified_lift.rendering import Camera, Engine, load_engine

CONFIG = PipelineConfig()
RGB_DIR, IDS_DIR = "rgb", "ids"
OWN_FILE = "rendered_job.json"  # beside them: they are ours and may be written anew


def render_views(job_dir: Path, out_dir: Path, split: str, objects: list[int], device: str) -> int:
    """Render views of a finished job at their photos' size.

    Writes out_dir/rgb/NAME.png and out_dir/ids/NAME.png (uint16, 0 = unassigned or alpha < .5);
    with `objects` only rgb, as RGBA with these objects alone.

    Args:
        job_dir: a finished job.
        out_dir: is made if needed.
        split: train, test or all.
        objects: ids of objects.json, empty for the whole scene.
        device: as `load_engine`.

    Returns:
        How many views were rendered.

    Raises:
        JobError: the job has no result, no such views, or no such object.
    """
    job_dir, out_dir = Path(job_dir), Path(out_dir)
    if not (job_dir / SCENE_FILE).is_file():
        state = job_state(job_dir).name
        raise JobError(f"{job_dir} has no result, the job is {state}. Let it end, or run it again.")
    _check_out(out_dir)
    capture = read_cameras(job_dir / CAMERAS_FILE)
    views = {"train": capture.train_views, "test": capture.test_views, "all": capture.views}[split]
    if not views:
        raise JobError(
            f"The capture of {job_dir} names no {split} views. Use --split train or --split all."
        )
    splats = read_ply(job_dir / SCENE_FILE)
    unknown = sorted(set(objects) - set(splats.object_ids.tolist()))
    if unknown:
        raise JobError(f"{job_dir} has no object {unknown[0]}. {OBJECTS_FILE} lists them.")
    if objects:
        splats = splats.select(np.isin(splats.object_ids, objects))
    engine = load_engine(device)
    gaussians = {name: value.to(engine.device) for name, value in from_splats(splats).items()}
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / OWN_FILE, {"job": str(job_dir)})
    for view in views:
        camera = to_camera(view)
        with torch.no_grad():
            render = engine.render(**gaussians, camera=camera)
        alphas = render.alphas if objects else None
        save_image(out_dir / RGB_DIR / f"{view.name}.png", render.channels, alphas)
        if not objects:
            path = out_dir / IDS_DIR / f"{view.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            labels = _label_view(engine, gaussians, camera, splats.object_ids, render.alphas)
            Image.fromarray(labels.astype(np.uint16)).save(path)
    return len(views)


def _check_out(out_dir: Path) -> None:
    """Refuse a folder whose pictures may be somebody's photos or true labels."""
    if (out_dir / OWN_FILE).exists():
        return
    for folder in (out_dir / RGB_DIR, out_dir / IDS_DIR):
        if folder.is_dir() and any(folder.iterdir()):
            raise JobError(f"{folder} holds files of others. Choose a new folder for --out.")


def _label_view(
    engine: Engine, gaussians: Gaussians, camera: Camera, object_ids: np.ndarray, alphas: Tensor
) -> np.ndarray:
    """The label map of a view; of a large one object by object, for its weights take gigabytes.

    Args:
        engine: what renders.
        gaussians: N raw parameters.
        camera: of the view.
        object_ids: (N,) int, 0 = unassigned.
        alphas: (H, W) of the rendered view.
    """
    geometry = [gaussians[name] for name in GEOMETRY]
    shown = alphas.cpu().numpy()
    if camera.width * camera.height <= CONFIG.max_lift_pixels:
        return label_map(engine.blend_weights(*geometry, camera), object_ids, shown)
    labels, most = np.zeros(shown.shape, np.int32), np.zeros(shown.shape, np.float32)
    for number in np.unique(object_ids):
        own = torch.from_numpy((object_ids == number).astype(np.float32))[:, None]
        with torch.no_grad():
            share = engine.rasterize(*geometry, own.to(engine.device), camera).channels
        share = share[..., 0].cpu().numpy()
        labels[share > most] = number
        most = np.maximum(most, share)
    labels[shown < MIN_ALPHA] = 0
    return labels
