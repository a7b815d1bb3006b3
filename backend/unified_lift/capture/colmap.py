# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures described by a COLMAP sparse model, binary or text (numpy only)."""

from __future__ import annotations

import mmap
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_lift.capture.points import clean_points, no_points
from unified_lift.capture.views import (
    Capture,
    View,
    checked_views,
    find_image,
    intrinsics,
    upright_rotation,
)
from unified_lift.protocol import JobError

_FOLDERS = ("sparse/0", "sparse", ".", "0", "colmap/sparse/0")
# Number of parameters by model, in the order of COLMAP's model ids.
_NUM_PARAMS = {
    "SIMPLE_PINHOLE": 3,
    "PINHOLE": 4,
    "SIMPLE_RADIAL": 4,
    "RADIAL": 5,
    "OPENCV": 8,
}
_OTHER_MODELS = (
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
)
_MODEL_NAMES = (*_NUM_PARAMS, *_OTHER_MODELS)
_POINT = struct.Struct("<Q3d3BdQ")  # id, x y z, r g b, error, length of the track
_TRACK_ENTRY = 8  # bytes
_IMAGE = struct.Struct("<I7dI")  # id, qw qx qy qz, tx ty tz, camera id
_OBSERVATION = 24  # bytes


class _Camera(NamedTuple):
    width: int
    height: int
    K: np.ndarray
    distortion: tuple[float, float, float, float]


class _Image(NamedTuple):
    name: str
    viewmat: np.ndarray
    camera_id: int


def find_model(folder: Path) -> Path | None:
    """The folder of the COLMAP model in or below a capture folder, None if there is none."""
    for name in _FOLDERS:
        model = Path(os.path.normpath(folder / name))
        if _find_file(model, "cameras") and _find_file(model, "images"):
            return model
    return None


def _find_file(model: Path, stem: str) -> Path | None:
    """Binary before text, as COLMAP reads them."""
    candidates = (model / f"{stem}{ending}" for ending in (".bin", ".txt"))
    return next((path for path in candidates if path.is_file()), None)


def read_colmap(folder: Path, with_points: bool = True) -> Capture:
    """Read the COLMAP model of a capture folder (or of its `sparse`); every photo trains.

    World: COLMAP's own; `world_to_blender` brings the mean up-vector of the cameras to +Z.

    Raises:
        JobError: with a sentence on what cannot be read and what to do.
    """
    model = find_model(folder)
    assert model is not None, folder
    source = _find_file(model, "images")
    cameras = _read_cameras(_find_file(model, "cameras"))
    images = _read_images(source)
    root, images_dir = _find_images_dir(folder, images)
    listed = [_make_view(image, cameras, images_dir, source) for image in images]
    views, left_out = checked_views(listed, root, source)
    points, colors, no_cloud = *no_points(), []
    try:
        if with_points:
            points, colors = read_points(model)
    except JobError as error:  # they can be found from the photos
        no_cloud = [f"The model's points are not used: {error}"]
    return Capture(
        root=root,
        views=views,
        points=points,
        point_colors=colors,
        world_to_blender=upright_rotation(views),
        has_split=False,
        warnings=(*_other_models(model), *left_out, *no_cloud),
    )


def _other_models(model: Path) -> list[str]:
    """COLMAP writes one numbered folder for each part of a scene that it could not join."""
    others = [other.name for other in model.parent.glob("[0-9]*") if other != model]
    if model.parent.name != "sparse" or not others:
        return []
    return [f"{model.parent} holds {len(others) + 1} models; only {model.name} is used."]


def _make_view(image: _Image, cameras: dict[int, _Camera], images_dir: Path, source: Path) -> View:
    if image.camera_id not in cameras:
        raise JobError(
            f"{image.name} in {source} has camera {image.camera_id}, which the model lacks. "
            "Export the model again."
        )
    camera = cameras[image.camera_id]
    return View(
        name=image.name,
        image_path=find_image(images_dir, image.name),
        width=camera.width,
        height=camera.height,
        K=camera.K,
        viewmat=image.viewmat,
        distortion=camera.distortion,
    )


def _find_images_dir(folder: Path, images: list[_Image]) -> tuple[Path, Path]:
    """The capture's root and the folder that image names start from: where most photos are."""
    root = folder
    if "sparse" in (folder.name, folder.parent.name):  # the model itself was chosen
        root = folder.parent if folder.name == "sparse" else folder.parent.parent

    def count(images_dir: Path) -> int:
        return sum(find_image(images_dir, image.name).is_file() for image in images)

    return root, max((root / "images", root), key=count)


def read_centers(folder: Path, model: Path) -> dict[Path, np.ndarray]:
    """Camera centres, (3,) float64 each, by the path of the photo."""
    images = _read_images(_find_file(model, "images"))
    _, images_dir = _find_images_dir(folder, images)
    return {
        find_image(images_dir, image.name): -image.viewmat[:3, :3].T @ image.viewmat[:3, 3]
        for image in images
    }


# ---- cameras


def _read_cameras(path: Path) -> dict[int, _Camera]:
    reader = _cameras_bin if path.suffix == ".bin" else _cameras_txt
    try:
        return dict(reader(path))
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise _damaged(path, error) from error


def _cameras_bin(path: Path) -> Iterator[tuple[int, _Camera]]:
    data = path.read_bytes()
    (count,) = struct.unpack_from("<Q", data)
    position = 8
    for _ in range(count):
        camera_id, model_id, width, height = struct.unpack_from("<IiQQ", data, position)
        known = 0 <= model_id < len(_MODEL_NAMES)
        model = _MODEL_NAMES[model_id] if known else f"number {model_id}"
        num_params = _num_params(model, path)
        params = struct.unpack_from(f"<{num_params}d", data, position + 24)
        position += 24 + 8 * num_params
        yield camera_id, _camera(model, width, height, params)


def _cameras_txt(path: Path) -> Iterator[tuple[int, _Camera]]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        words = line.split()
        if not words or line.startswith("#"):
            continue
        params = [float(word) for word in words[4:]]
        if len(params) != _num_params(words[1], path):
            raise ValueError(f"{words[1]} with {len(params)} parameters")
        yield int(words[0]), _camera(words[1], int(words[2]), int(words[3]), params)


def _num_params(model: str, path: Path) -> int:
    if model not in _NUM_PARAMS:
        raise JobError(
            f"{path} has a camera of model {model}, which cannot be undone. Run colmap "
            "image_undistorter on the photos and choose the folder that it writes."
        )
    return _NUM_PARAMS[model]


def _camera(model: str, width: int, height: int, params: tuple | list) -> _Camera:
    if model in ("PINHOLE", "OPENCV"):
        (fx, fy, cx, cy), distortion = params[:4], params[4:]
    else:
        (fx, cx, cy), distortion = params[:3], params[3:]
        fy = fx
    k1, k2, p1, p2 = (*distortion, 0.0, 0.0, 0.0, 0.0)[:4]
    return _Camera(width, height, intrinsics(fx, fy, cx, cy), (k1, k2, p1, p2))


# ---- images


def _read_images(path: Path) -> list[_Image]:
    """The registered images, sorted by name: the order of the file is arbitrary."""
    reader = _images_bin if path.suffix == ".bin" else _images_txt
    try:
        return sorted(reader(path), key=lambda image: image.name)
    except UnicodeDecodeError as error:
        raise JobError(
            f"{path} has an image name that is not UTF-8 ({error.object[:80]!r}). Rename the "
            "photo with plain letters and export the model again."
        ) from error
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise _damaged(path, error) from error


def _images_bin(path: Path) -> Iterator[_Image]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        (count,) = struct.unpack_from("<Q", data)
        position = 8
        for _ in range(count):
            _, *pose, camera_id = _IMAGE.unpack_from(data, position)
            start = position + _IMAGE.size
            end = data.find(b"\0", start)
            if end < 0:
                raise ValueError("a name has no end")
            (num_observations,) = struct.unpack_from("<Q", data, end + 1)
            position = end + 9 + _OBSERVATION * num_observations
            if position > len(data):
                raise ValueError("observations are missing")
            yield _Image(data[start:end].decode("utf-8"), _pose_viewmat(pose), camera_id)


def _images_txt(path: Path) -> Iterator[_Image]:
    with open(path, encoding="utf-8-sig") as file:
        for line in file:
            if not line.strip() or line.startswith("#"):
                continue
            _, *pose, camera_id, name = line.strip().split(maxsplit=9)
            yield _Image(name, _pose_viewmat([float(word) for word in pose]), int(camera_id))
            next(file, "")  # the observations of this image, perhaps an empty line


def _pose_viewmat(pose: list[float]) -> np.ndarray:
    """(4, 4) world to camera of a quaternion w x y z and a translation; NaN if not finite."""
    quat = np.array(pose[:4])
    length = np.linalg.norm(quat)
    if not np.isfinite(pose).all() or length == 0:
        return np.full((4, 4), np.nan)
    w, x, y, z = quat / length
    viewmat = np.eye(4)
    viewmat[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    viewmat[:3, 3] = pose[4:7]
    return viewmat


# ---- points


def read_points(model: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points of a model: (P, 3) float64 positions, (P, 3) uint8 colours; none without a file.

    Raises:
        JobError: the file is damaged.
    """
    path = _find_file(model, "points3D")
    if path is None:
        return no_points()
    reader = _points_bin if path.suffix == ".bin" else _points_txt
    try:
        table = reader(path)
    except (OSError, ValueError, struct.error) as error:
        raise _damaged(path, error) from error
    return clean_points(table[:, :3], table[:, 3:])


def _points_bin(path: Path) -> np.ndarray:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        (count,) = struct.unpack_from("<Q", data)
        if count * _POINT.size > len(data):
            raise ValueError(f"{count} points announced")
        table = np.zeros((count, 6))
        position = 8
        for row in range(count):
            _, *table[row], _, length = _POINT.unpack_from(data, position)
            position += _POINT.size + _TRACK_ENTRY * length
        if position > len(data):
            raise ValueError("the last track is not whole")
    return table


def _points_txt(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "loadtxt: input contained no data")
        columns = range(1, 7)
        return np.loadtxt(path, usecols=columns, ndmin=2, encoding="utf-8").reshape(-1, 6)


def _damaged(path: Path, error: Exception) -> JobError:
    return JobError(f"{path} is damaged or cut short ({error}). Export the model again.")
