# SPDX-License-Identifier: GPL-3.0-or-later
"""Photos with their cameras, and the checks that every capture format shares (numpy only)."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np

from unified_lift.config import CaptureConfig
from unified_lift.protocol import JobError

TRAIN, TEST, VALIDATION = "train", "test", "val"
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
NO_DISTORTION = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class View:
    """One photo and its camera. Pixel (x, y) has its centre at (x + .5, y + .5).

    Attributes:
        name: image path without ending, less the folder common to all images, '/' between parts.
        image_path: absolute path of the photo.
        width: pixels.
        height: pixels.
        K: (3, 3) float64, intrinsics in pixels.
        viewmat: (4, 4) float64, world to camera, OpenCV axes (x right, y down, z forward).
        distortion: k1, k2, p1, p2 of OpenCV's model; zeros for a pinhole camera.
        split: "train" or "test".
    """

    name: str
    image_path: Path
    width: int
    height: int
    K: np.ndarray
    viewmat: np.ndarray
    distortion: tuple[float, float, float, float] = NO_DISTORTION
    split: str = TRAIN

    @property
    def center(self) -> np.ndarray:
        """(3,) position of the camera in the world."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]


@dataclass(frozen=True, eq=False)
class Capture:
    """Registered photos of one scene.

    Attributes:
        root: the capture folder, absolute.
        views: at least one, in the order of the file.
        points: (P, 3), world; P may be 0; float64 as read, float32 once `near_origin`.
        point_colors: (P, 3) uint8.
        world_to_blender: (4, 4) float64, the rotation that puts the scene upright, z up.
        has_split: whether the capture names test views.
        warnings: sentences for the user about what was left out.
        origin: where the world's origin lies in the capture's own coordinates; not 0 where these
            are too large for float32.
    """

    root: Path
    views: tuple[View, ...]
    points: np.ndarray
    point_colors: np.ndarray
    world_to_blender: np.ndarray
    has_split: bool
    warnings: tuple[str, ...] = ()
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def train_views(self) -> tuple[View, ...]:
        """The views to train with."""
        return tuple(view for view in self.views if view.split == TRAIN)

    @property
    def test_views(self) -> tuple[View, ...]:
        """The views held back for evaluation."""
        return tuple(view for view in self.views if view.split == TEST)


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """(3, 3) float64 matrix of focal lengths and principal point, in pixels."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def find_image(folder: Path, listed: str) -> Path:
    """The file that a capture means by `listed`; where there is none, the path it would have.

    The ending may be left out, and accents may be composed or decomposed (macOS).
    """
    path = Path(os.path.normpath(folder / listed.replace("\\", "/")))
    return next((candidate for candidate in _spellings(path) if candidate.is_file()), path)


def _spellings(path: Path) -> Iterator[Path]:
    yield path
    endings = () if path.suffix.lower() in IMAGE_ENDINGS else IMAGE_ENDINGS
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, str(path))
        yield Path(text)
        for ending in endings:
            yield Path(text + ending)
            yield Path(text + ending.upper())


def checked_views(
    listed: Sequence[View], root: Path, source: Path
) -> tuple[tuple[View, ...], tuple[str, ...]]:
    """Name the views of a file and leave out those that cannot be used.

    Args:
        listed: views as the file states them: `image_path` may be missing, `viewmat` NaN,
            the size 0 (unknown), `split` also "val", `name` anything.
        root: the capture folder; every image must be inside.
        source: the file, for messages.

    Returns:
        The views that can be used, and warnings about the others.

    Raises:
        JobError: no view is left, an image is outside of `root`, two images share a name, a
            camera has no positive focal length, or all views are test views.
    """
    if not listed:
        raise JobError(f"{source} lists no photos. Choose a capture with registered photos.")
    warnings: list[str] = []
    views = _named(_without_validation(listed), root, source)
    for wrong, why in (
        (_repeats(views), "listed before"),
        ({view for view in views if not view.image_path.is_file()}, "no such file"),
        ({view for view in views if not np.isfinite(view.viewmat).all()}, "pose is no rotation"),
        ({view for view in views if not view.width}, "size neither stated nor readable"),
    ):
        views = _leave_out(views, wrong, why, source, warnings)
    _check_names_differ(views, source)
    _check_cameras(views, source)
    if all(view.split == TEST for view in views):
        raise JobError(
            f"All {len(views)} photos of {source} are test views. Give some to training."
        )
    return tuple(views), tuple(warnings)


def _without_validation(listed: Sequence[View]) -> list[View]:
    """Validation photos serve as test views where there are none, else nobody uses them."""
    if any(view.split == TEST for view in listed):
        return [view for view in listed if view.split != VALIDATION]
    return [replace(view, split=TRAIN if view.split == TRAIN else TEST) for view in listed]


def _named(views: Sequence[View], root: Path, source: Path) -> list[View]:
    paths: list[PurePath] = []
    for view in views:
        if not view.image_path.is_relative_to(root):
            raise JobError(
                f"{source} names the photo {view.image_path}, outside of {root}. "
                "Put the photos into the capture folder and correct their paths."
            )
        paths.append(view.image_path.relative_to(root))
    shared = _shared_depth(paths)
    return [replace(view, name=_name(path, shared)) for view, path in zip(views, paths)]


def _shared_depth(paths: Sequence[PurePath]) -> int:
    """How many leading folders are common to all paths."""
    depth = 0
    for folders in zip(*(path.parts[:-1] for path in paths)):
        if len(set(folders)) > 1:
            break
        depth += 1
    return depth


def _name(path: PurePath, shared: int) -> str:
    bare = path.with_suffix("") if path.suffix.lower() in IMAGE_ENDINGS else path
    return "/".join(bare.parts[shared:])


def _repeats(views: Sequence[View]) -> set[View]:
    first: dict[Path, View] = {}
    return {view for view in views if first.setdefault(view.image_path, view) is not view}


def _leave_out(
    views: list[View], wrong: set[View], why: str, source: Path, warnings: list[str]
) -> list[View]:
    if not wrong:
        return views
    first = next(view for view in views if view in wrong).image_path
    if len(wrong) == len(views):
        raise JobError(
            f"None of the {len(views)} photos of {source} can be used: {why} ({first}). "
            "Correct the file, or choose the folder that holds both cameras and photos."
        )
    warnings.append(
        f"Left out {len(wrong)} of {len(views)} photos of {source.name}: {why} ({first})."
    )
    return [view for view in views if view not in wrong]


def _check_names_differ(views: Sequence[View], source: Path) -> None:
    first: dict[str, View] = {}
    for view in views:
        other = first.setdefault(view.name, view)
        if other is not view:
            raise JobError(
                f"{other.image_path} and {view.image_path} of {source} differ in their ending "
                "only. Rename one of them."
            )


def _check_cameras(views: Sequence[View], source: Path) -> None:
    for view in views:
        numbers = (*view.K.ravel(), *view.distortion)
        if not np.isfinite(numbers).all() or view.K[0, 0] <= 0 or view.K[1, 1] <= 0:
            raise JobError(
                f"The camera of {view.name} in {source} has focal lengths {view.K[0, 0]:g}, "
                f"{view.K[1, 1]:g} and distortion {view.distortion}. Correct the file."
            )
        size = np.array([view.width, view.height])
        far = np.abs(view.K[:2, 2] - size / 2) > size * CaptureConfig.max_shift
        narrow = size < CaptureConfig.min_field * view.K[[0, 1], [0, 1]]
        if far.any() or narrow.any():
            raise JobError(
                f"The camera of {view.name} in {source} has focal lengths {view.K[0, 0]:g}, "
                f"{view.K[1, 1]:g} and its centre at {view.K[0, 2]:g}, {view.K[1, 2]:g}: no photo "
                f"of {view.width} x {view.height} pixels is taken so. Correct the file."
            )


def nearest_cameras(viewmats: np.ndarray, number: int) -> np.ndarray:
    """The cameras that stand nearest to each and look in the most alike direction.

    Args:
        viewmats: (V, 4, 4), world to camera.
        number: how many of them, if there are as many others.

    Returns:
        (V, number) int64 rows, the nearest first; no camera is among its own.
    """
    rotations = viewmats[:, :3, :3]
    centers = -np.einsum("vij,vi->vj", rotations, viewmats[:, :3, 3])
    apart = np.linalg.norm(centers[:, None] - centers, axis=2)
    apart = apart / max(apart.max(), 1e-12) + (1 - rotations[:, 2] @ rotations[:, 2].T)
    np.fill_diagonal(apart, -np.inf)
    return np.argsort(apart, axis=1, kind="stable")[:, 1 : number + 1]


def upright_rotation(views: Sequence[View]) -> np.ndarray:
    """(4, 4) rotation that brings the mean up-vector of the cameras to +Z."""
    up = -np.mean([view.viewmat[1, :3] for view in views], axis=0)
    length = np.linalg.norm(up)
    rotation = np.eye(4)
    if length < CaptureConfig.pose_tolerance:  # cameras on all sides: no side is up
        return rotation
    x, y, z = up / length
    if z < CaptureConfig.pose_tolerance - 1:  # upside down: half a turn about x
        return np.diag([1.0, -1.0, -1.0, 1.0])
    cross = np.array([[0.0, 0.0, -x], [0.0, 0.0, -y], [x, y, 0.0]])  # of up × z
    rotation[:3, :3] += cross + cross @ cross / (1 + z)
    return rotation


def named_split(split: object, source: Path) -> str:
    """One of train, test and val.

    Raises:
        JobError: another word.
    """
    if split not in (TRAIN, TEST, VALIDATION):
        raise JobError(f"{source} has a frame of split {split!r}. It must be train, test or val.")
    return str(split)
