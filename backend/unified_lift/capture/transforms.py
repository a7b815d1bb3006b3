# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures described by transforms.json: instant-ngp, nerfstudio and Blender-synthetic (numpy)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from unified_lift.capture import colmap
from unified_lift.capture.image_size import image_size
from unified_lift.capture.points import no_points, read_points_ply
from unified_lift.capture.views import (
    TEST,
    TRAIN,
    VALIDATION,
    Capture,
    View,
    checked_views,
    find_image,
    intrinsics,
    named_split,
)
from unified_lift.config import CaptureConfig
from unified_lift.protocol import JobError, read_json

WHOLE = "transforms.json"
PARTS = {f"transforms_{split}.json": split for split in (TRAIN, TEST, VALIDATION)}
_OPENGL_TO_OPENCV = (1.0, -1.0, -1.0)  # signs of the camera's axes
_MODELS = ("", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE")
_REFUSED = ("k3", "k4", "k5", "k6", "is_fisheye")
_UNDISTORT = "Undistort the photos (colmap image_undistorter) and choose the result."


def find_transforms(folder: Path) -> Path | None:
    """The transforms file of a folder, None if it has none."""
    candidates = (folder / name for name in (WHOLE, *PARTS))
    return next((path for path in candidates if path.is_file()), None)


def read_transforms(path: Path, with_points: bool = True) -> Capture:
    """Read transforms.json, or transforms_train.json with its test and val siblings.

    World: as in the file, right-handed, z up; `transform_matrix` is camera to world in OpenGL
    axes. Points come from `ply_file_path`, else from a COLMAP model beside the file whose camera
    centres agree. Validation photos count as test photos where the capture has no other ones.

    Raises:
        JobError: with a sentence on what cannot be read and what to do.
    """
    root = path.parent
    files: dict[Path, str | None] = {path: None}
    if path.name in PARTS:
        files = {root / name: split for name, split in PARTS.items() if (root / name).is_file()}
    listed: list[View] = []
    warnings: list[str] = []
    ply = None
    for file, split in files.items():
        data = read_json(file)
        ply = ply or data.get("ply_file_path")
        views, unlisted = _read_frames(data, file, split)
        listed += views
        warnings += unlisted
    views, left_out = checked_views(listed, root, path)
    points, colors, no_cloud = *no_points(), []
    if with_points:
        points, colors, no_cloud = _read_points(root, ply, listed)
    return Capture(
        root=root,
        views=views,
        points=points,
        point_colors=colors,
        world_to_blender=np.eye(4),
        has_split=any(view.split == TEST for view in views),
        warnings=(*warnings, *left_out, *no_cloud),
    )


def _read_frames(data: dict, path: Path, split: str | None) -> tuple[list[View], list[str]]:
    """The views of one file as it states them, and a warning if no list names some of them."""
    frames = data.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise JobError(f"{path} has no list of frames. Choose a capture's {WHOLE}.")
    splits = {}
    for word in (TRAIN, TEST, VALIDATION):
        names = data.get(f"{word}_filenames") or []
        if not isinstance(names, list):
            raise JobError(f"{path} has no list of names in {word}_filenames. Correct the file.")
        splits |= {find_image(path.parent, str(name)): word for name in names}
    # Nerfstudio trains with what train_filenames names, and leaves the rest alone.
    default = split or (None if data.get(f"{TRAIN}_filenames") else TRAIN)
    views: list[View] = []
    unlisted = 0
    for number, frame in enumerate(frames):
        if not isinstance(frame.get("file_path"), str):
            raise JobError(f"Frame {number} of {path} has no file_path. Correct the file.")
        image_path = find_image(path.parent, frame["file_path"])
        word = frame.get("split") or splits.get(image_path, default)
        if word is None:
            unlisted += 1
            continue
        views.append(_read_frame(data | frame, image_path, named_split(word, path), path))
    if not unlisted:
        return views, []
    return views, [f"Left out {unlisted} photos of {path.name}: no list of filenames names them."]


def _read_frame(values: dict, image_path: Path, split: str, path: Path) -> View:
    """One view; `values` are the frame's over the file's."""
    _check_model(values, path)
    width, height = _size(values, image_path, path)
    return View(
        name="",
        image_path=image_path,
        width=width,
        height=height,
        K=_intrinsics(values, width, height, path),
        viewmat=_viewmat(values.get("transform_matrix")),
        distortion=tuple(_number(values, key, 0.0, path) for key in ("k1", "k2", "p1", "p2")),
        split=split,
    )


def _check_model(values: dict, path: Path) -> None:
    model = values.get("camera_model") or ""
    refused = [key for key in _REFUSED if values.get(key)]
    if model not in _MODELS or refused:
        raise JobError(
            f"{path} has a camera of model {model or refused} that cannot be undone. {_UNDISTORT}"
        )


def _size(values: dict, image_path: Path, path: Path) -> tuple[int, int]:
    stated = [round(_number(values, key, 0.0, path)) for key in ("w", "h")]
    if min(stated) > 0:
        return stated[0], stated[1]
    return image_size(image_path) or (0, 0)


def _intrinsics(values: dict, width: int, height: int, path: Path) -> np.ndarray:
    focal_x = _focal(values, "x", width, path)
    focal_y = _focal(values, "y", height, path)
    if focal_x is None and focal_y is None:
        raise JobError(f"{path} states no focal length. Add fl_x (pixels) or camera_angle_x.")
    return intrinsics(
        focal_y if focal_x is None else focal_x,
        focal_x if focal_y is None else focal_y,
        _number(values, "cx", width / 2, path),
        _number(values, "cy", height / 2, path),
    )


def _focal(values: dict, axis: str, size: int, path: Path) -> float | None:
    if values.get(f"fl_{axis}") is not None:
        return _number(values, f"fl_{axis}", 0.0, path)
    if values.get(f"camera_angle_{axis}") is not None:
        angle = _number(values, f"camera_angle_{axis}", 0.0, path)
        if not 0 < angle < math.pi:
            raise JobError(f"{path} has camera_angle_{axis} = {angle:g}. It must be in radians.")
        return size / 2 / math.tan(angle / 2)
    return None


def _number(values: dict, key: str, default: float, path: Path) -> float:
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise JobError(f"{path} has {key} = {value!r}, which is no number. Correct the file.")
    return float(value)


def _viewmat(matrix: object) -> np.ndarray:
    """Invert a pose in OpenGL axes, taking out rounding and uniform scale of its rotation.

    Returns:
        (4, 4) float64 world to camera in OpenCV axes; NaN where `matrix` is no pose.
    """
    no_pose = np.full((4, 4), np.nan)
    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError):  # words, or rows of unequal length
        return no_pose
    if pose.shape not in ((3, 4), (4, 4)) or not np.isfinite(pose).all():
        return no_pose
    u, sizes, vt = np.linalg.svd(pose[:3, :3] * _OPENGL_TO_OPENCV)
    rotation = u @ vt
    uniform = 0 < sizes[0] <= sizes[2] * (1 + CaptureConfig.pose_tolerance)
    if not uniform or np.linalg.det(rotation) < 0:
        return no_pose
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ pose[:3, 3]
    return viewmat


def _read_points(
    root: Path, ply: object, views: list[View]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Points and colours of the PLY that the file names, else of an agreeing COLMAP model."""
    try:
        if isinstance(ply, str):
            return *read_points_ply(root / ply), []
        model = colmap.find_model(root)
        if model is None:
            return *no_points(), []
        centers = colmap.read_centers(root, model)
        same = [view for view in views if view.image_path in centers]
        if not _centers_agree(same, centers):
            why = "disagree about the cameras" if same else "name no photo alike"
            return *no_points(), [f"{model} and {WHOLE} {why}: the former's points are not used."]
        return *colmap.read_points(model), []
    except JobError as error:
        return *no_points(), [f"The capture's points are not used: {error}"]


def _centers_agree(views: list[View], centers: dict[Path, np.ndarray]) -> bool:
    """Whether the camera centres of two descriptions of one capture are the same places."""
    pairs = [
        (view.center, centers[view.image_path]) for view in views if np.isfinite(view.viewmat).all()
    ]
    if not pairs:
        return False
    ours, theirs = np.moveaxis(np.array(pairs), 1, 0)
    size = np.linalg.norm(np.ptp(ours, axis=0))
    errors = np.linalg.norm(ours - theirs, axis=1)
    return bool(np.median(errors) <= CaptureConfig.center_tolerance * size)
