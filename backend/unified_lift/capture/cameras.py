# SPDX-License-Identifier: GPL-3.0-or-later
"""cameras.json of a job: the views as used, for Blender and for rendering (numpy only)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unified_lift.capture.points import no_points
from unified_lift.capture.views import Capture, View
from unified_lift.protocol import JobError, read_json, write_json


def write_cameras(path: Path, capture: Capture) -> None:
    """Write the views of a capture; its points are not kept.

    Photos inside the job folder are named relative to it, photos of the capture relative to the
    capture, others absolutely.
    """
    job_dir = Path(path).parent.absolute()
    data = {
        "capture": str(capture.root),
        "world_to_blender": capture.world_to_blender.tolist(),
        "origin": list(capture.origin),
        "has_split": capture.has_split,
        "warnings": list(capture.warnings),
        "views": [_view_to_json(view, capture.root, job_dir) for view in capture.views],
    }
    write_json(Path(path), data)


def _view_to_json(view: View, root: Path, job_dir: Path) -> dict:
    image = {"image": str(view.image_path)}
    if view.image_path.is_relative_to(job_dir):
        image = {"job_image": view.image_path.relative_to(job_dir).as_posix()}
    elif view.image_path.is_relative_to(root):
        image = {"image": view.image_path.relative_to(root).as_posix()}
    return {
        "name": view.name,
        **image,
        "width": view.width,
        "height": view.height,
        "K": view.K.tolist(),
        "viewmat": view.viewmat.tolist(),
        "distortion": list(view.distortion),
        "split": view.split,
    }


def read_cameras(path: Path) -> Capture:
    """Read what `write_cameras` wrote: a capture without points.

    Raises:
        JobError: no such file, or damaged.
    """
    path = Path(path)
    data = read_json(path)
    try:
        root = Path(data["capture"])
        x, y, z = (float(value) for value in data.get("origin", Capture.origin))
        return Capture(
            root,
            tuple(_view_from_json(view, root, path.parent.absolute()) for view in data["views"]),
            *no_points(),
            world_to_blender=np.array(data["world_to_blender"], np.float64).reshape(4, 4),
            has_split=bool(data["has_split"]),
            warnings=tuple(data["warnings"]),
            origin=(x, y, z),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise JobError(f"{path} is damaged ({error}). Start the job again.") from error


def _view_from_json(data: dict, root: Path, job_dir: Path) -> View:
    image_path = job_dir / data["job_image"] if "job_image" in data else root / data["image"]
    k1, k2, p1, p2 = (float(value) for value in data["distortion"])
    return View(
        name=data["name"],
        image_path=image_path,
        width=int(data["width"]),
        height=int(data["height"]),
        K=np.array(data["K"], np.float64).reshape(3, 3),
        viewmat=np.array(data["viewmat"], np.float64).reshape(4, 4),
        distortion=(k1, k2, p1, p2),
        split=data["split"],
    )
