# SPDX-License-Identifier: GPL-3.0-or-later
"""The public benchmarks as they lie on the disk: LERF-Mask, Replica, Messy Rooms."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_lift.benchmark.protocols import Panoptic, segment_codes
from unified_lift.capture import Capture, View
from unified_lift.capture.colmap import find_model, read_centers, read_colmap
from unified_lift.capture.image_size import image_size
from unified_lift.capture.images import resize_labels
from unified_lift.capture.origin import near_origin
from unified_lift.capture.points import no_points
from unified_lift.capture.views import (
    IMAGE_ENDINGS,
    TEST,
    TRAIN,
    checked_views,
    intrinsics,
    upright_rotation,
)
from unified_lift.config import LERF_MASK, MESSY_ROOMS, REPLICA, CaptureConfig
from unified_lift.metrics import read_labels
from unified_lift.protocol import JobError, read_json

# Panoptic Lifting's 21 classes (ScanNet, reduced); the others, 0 = void among them, are stuff.
REPLICA_CLASSES = range(22)
REPLICA_THINGS = frozenset((4, 5, 6, 14, 15, 16, 17, 18, 20))
REPLICA_STEP, REPLICA_TRAIN, REPLICA_TEST = 5, 0, 2  # frames i % 5: DM-NeRF's split, and Gaga's
LIFTING_TEST_STEP = 4  # every 4th frame, where there is no splits.json
MESSY_TRAIN_SHARE = 0.8  # the last 20 % of the frames are the test (Contrastive Lift)
_HALF_PIXEL = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])

Intrinsics = Callable[[int, int], np.ndarray]  # of width and height
Frame = tuple[Path, np.ndarray, str]  # photo, camera-to-world (OpenCV), split


class LabelFiles(NamedTuple):
    """Label maps of one view, .png or .npy; `classes` is None where the benchmark has none."""

    instances: Path
    classes: Path | None = None


@dataclass(frozen=True)
class PublicScene:
    """A scene of a public benchmark.

    Attributes:
        kind: a key of `READERS`.
        capture: training and test views.
        given: the benchmark's own masks of training views, by the view's name; may be empty.
        truth: ground truth of test views, by the view's name; empty for LERF-Mask.
        prompts: of LERF-Mask: folders with one mask for each prompt, by the view's name.
        things: classes whose instances are told apart; empty where there are no classes.
        stuff: the other classes.
        void: true class that is not scored, None if there is none.
    """

    kind: str
    capture: Capture
    given: dict[str, LabelFiles]
    truth: dict[str, LabelFiles]
    prompts: dict[str, Path] = field(default_factory=dict)
    things: frozenset[int] = frozenset()
    stuff: frozenset[int] = frozenset()
    void: int | None = None

    def label_maps(self) -> list[np.ndarray | None]:
        """The given masks of each training view, to be lifted.

        Returns:
            (H, W) int32 at the photo's size, 0 = unlabelled, or None. With classes, each class of
            stuff is one segment; Messy Rooms' background is unlabelled.

        Raises:
            JobError: a label map cannot be read.
        """
        views = self.capture.train_views
        return [self._label_map(view) if view.name in self.given else None for view in views]

    def _label_map(self, view: View) -> np.ndarray:
        files = self.given[view.name]
        labels = read_labels(files.instances)
        if files.classes and self.void is not None:
            view_labels = Panoptic(read_labels(files.classes), labels)
            codes = segment_codes(view_labels, self.stuff)
            codes[view_labels.classes == self.void] = 0
            labels = np.searchsorted(np.unique(np.append(0, codes)), codes)
        return resize_labels(labels, view.width, view.height).astype(np.int32)


def read_lerf_mask(root: Path) -> PublicScene:
    """Gaussian Grouping's LERF-Mask: a COLMAP scene, images_train/, object_mask/, test_mask/.

    Training views are those named in images_train, the others in order of their names are the
    test views: test_mask/3/PROMPT.png belongs to the fourth.
    """
    model = find_model(root)
    train_dir = root / "images_train"
    train = {_stem(path) for path in _photos(train_dir)}
    folders = [path for path in (root / "test_mask").glob("*") if path.name.isdigit()]
    if model is None or not train or not folders:
        raise JobError(
            f"{root} is no scene of LERF-Mask: it needs sparse/0, images_train with photos and "
            "test_mask with one numbered folder for each test view."
        )
    read = near_origin(read_colmap(root))
    paths = sorted(read_centers(root, model), key=_stem)
    test = [path for path in paths if _stem(path) not in train]
    views = [
        replace(view, split=TRAIN if _stem(view.image_path) in train else TEST)
        for view in read.views
    ]
    by_path = {view.image_path: view for view in views}
    prompts = {}
    for folder in sorted(folders, key=lambda path: int(path.name)):
        number = int(folder.name)
        if number >= len(test) or test[number] not in by_path:
            raise JobError(
                f"{folder} has no photo: {root} has {len(test)} test views, which are those that "
                "images_train does not name. Complete images and images_train."
            )
        prompts[by_path[test[number]].name] = folder
    masks = {v.name: root / "object_mask" / f"{_stem(v.image_path)}.png" for v in views}
    return PublicScene(
        LERF_MASK,
        replace(read, views=tuple(views), has_split=True),
        given={
            view.name: LabelFiles(masks[view.name])
            for view in views
            if view.split == TRAIN and masks[view.name].is_file()
        },
        truth={},
        prompts=prompts,
    )


def read_replica(root: Path) -> PublicScene:
    """Replica in Panoptic Lifting's layout (color/, pose/) or Semantic-NeRF's (traj_w_c.txt).

    Their pixel centres are whole numbers, ours lie at .5: the principal point moves by .5.
    """
    if (root / "pose").is_dir():
        return _read_lifting(root)
    base = root / "Sequence_1"
    if not (base / "traj_w_c.txt").is_file():
        base = root
    trajectory = base / "traj_w_c.txt"
    if not trajectory.is_file():
        raise JobError(
            f"{root} is no scene of Replica: it has neither pose/ (Panoptic Lifting's layout) nor "
            "traj_w_c.txt (Semantic-NeRF's)."
        )
    poses = _read_numbers(trajectory)
    if poses.shape[1] != 16:
        raise JobError(f"{trajectory} has {poses.shape[1]} numbers a line. A pose has 16.")
    splits = {REPLICA_TRAIN: TRAIN, REPLICA_TEST: TEST}
    frames, labels = [], {}
    folders = [folder / "semantic_instance" for folder in (base, root)]
    truth_dir = next((folder for folder in folders if folder.is_dir()), folders[0])
    for path in _photos(base / "rgb"):
        number = int(re.sub(r"\D", "", path.stem) or 0)
        split = splits.get(number % REPLICA_STEP)
        if number >= len(poses):
            raise JobError(f"{path} has no pose: {trajectory} has {len(poses)} lines.")
        if split:
            frames.append((path, poses[number].reshape(4, 4), split))
            labels[path.stem] = LabelFiles(truth_dir / f"semantic_instance_{number}.png")

    def camera(width: int, height: int) -> np.ndarray:
        return intrinsics(width / 2, width / 2, width / 2, height / 2)  # 90 degrees across

    capture = _capture(root, trajectory, frames, camera)
    truth = {view.name: labels[view.image_path.stem] for view in capture.test_views}
    return PublicScene(REPLICA, capture, given={}, truth=truth)


def _read_lifting(root: Path) -> PublicScene:
    photos = _photos(root / "color")
    splits = _read_splits(root / "splits.json", [path.stem for path in photos])
    source = root / "intrinsic" / "intrinsic_color.txt"
    numbers = _read_numbers(source)
    if numbers.shape[0] < 3 or numbers.shape[1] < 3:
        raise JobError(f"{source} is no matrix of 3 or 4 rows. Take the benchmark's own file.")
    K = numbers[:3, :3] + _HALF_PIXEL
    frames = [
        (path, _read_numbers(root / "pose" / f"{path.stem}.txt"), splits[path.stem])
        for path in photos
        if path.stem in splits
    ]
    capture = _capture(root, source, frames, lambda width, height: K)

    given = root / "m2f_instance", root / "m2f_semantics"
    return PublicScene(
        REPLICA,
        capture,
        given=_label_files(capture.train_views, *given) if given[0].is_dir() else {},
        truth=_label_files(capture.test_views, root / "rs_instance", root / "rs_semantics"),
        things=REPLICA_THINGS,
        stuff=frozenset(REPLICA_CLASSES) - REPLICA_THINGS,
        void=0,
    )


def _read_splits(path: Path, stems: list[str]) -> dict[str, str]:
    if not path.is_file():
        return {stem: TRAIN if i % LIFTING_TEST_STEP else TEST for i, stem in enumerate(stems)}
    lists = read_json(path)
    return {
        str(stem): split
        for split, names in ((TRAIN, lists.get("train")), (TEST, lists.get("test")))
        for stem in names or ()
    }


def read_messy_rooms(root: Path) -> PublicScene:
    """Contrastive Lift's Messy Rooms: metadata.json, color/*.png, label maps as .npy.

    Intrinsics are shares of the photo's size and may be negative; poses are Blender's.
    """
    source = root / "metadata.json"
    try:
        camera = read_json(source)["camera"]
        K = np.array(camera["K"], np.float64).reshape(3, 3)
        positions = np.array(camera["positions"], np.float64).reshape(-1, 3)
        quaternions = np.array(camera["quaternions"], np.float64).reshape(-1, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise JobError(
            f"{source} has no camera with K, positions and quaternions ({error}). Take the file of "
            "Messy Rooms."
        ) from error
    photos = _photos(root / "color")
    if not len(photos) == len(positions) == len(quaternions):
        raise JobError(
            f"{source} has {len(positions)} positions and {len(quaternions)} quaternions, but "
            f"{root / 'color'} {len(photos)} photos. Complete the scene."
        )
    first_test = int(len(photos) * MESSY_TRAIN_SHARE)
    frames = [
        (path, _blender_pose(position, quaternion), TRAIN if i < first_test else TEST)
        for i, (path, position, quaternion) in enumerate(zip(photos, positions, quaternions))
    ]
    capture = _capture(
        root, source, frames, lambda width, height: np.abs(K * [[width], [height], [1]])
    )

    given = root / "detic_instance", root / "detic_semantic"
    truth = root / "instance", root / "semantic"
    return PublicScene(
        MESSY_ROOMS,
        replace(capture, world_to_blender=np.eye(4)),
        given=_label_files(capture.train_views, *given, ".npy") if given[0].is_dir() else {},
        truth=_label_files(capture.test_views, *truth, ".npy"),
        things=frozenset({1}),
        stuff=frozenset({0}),
    )


READERS: dict[str, Callable[[Path], PublicScene]] = {
    LERF_MASK: read_lerf_mask,
    REPLICA: read_replica,
    MESSY_ROOMS: read_messy_rooms,
}
MARKS = {  # what a scene's folder holds, any of them
    LERF_MASK: ("test_mask",),
    REPLICA: ("pose", "traj_w_c.txt", "Sequence_1/traj_w_c.txt"),
    MESSY_ROOMS: ("metadata.json",),
}


# ---- what the readers share


def _capture(root: Path, source: Path, frames: list[Frame], camera: Intrinsics) -> Capture:
    listed = []
    for path, pose, split in frames:
        width, height = image_size(path) or (0, 0)
        listed.append(
            View("", path, width, height, camera(width, height), _viewmat(pose), split=split)
        )
    views, warnings = checked_views(listed, root, source)
    if all(view.split == TRAIN for view in views):
        raise JobError(f"{source} leaves no test views of {len(views)} photos. Complete the scene.")
    return near_origin(Capture(root, views, *no_points(), upright_rotation(views), True, warnings))


def _label_files(
    views: Iterable[View], instances: Path, classes: Path, ending: str = ".png"
) -> dict[str, LabelFiles]:
    """The label maps of views by name, in two folders."""
    return {
        view.name: LabelFiles(
            *(f / f"{view.image_path.stem}{ending}" for f in (instances, classes))
        )
        for view in views
    }


def _viewmat(pose: np.ndarray) -> np.ndarray:
    """(4, 4) world to camera of a camera-to-world matrix; NaN where that is no pose."""
    if pose.shape == (4, 4) and np.isfinite(pose).all():
        rotation = pose[:3, :3]
        off = np.abs(rotation @ rotation.T - np.eye(3)).max()
        if off < CaptureConfig.pose_tolerance and np.linalg.det(rotation) > 0:
            return np.linalg.inv(pose)
    return np.full((4, 4), np.nan)


def _blender_pose(position: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """(4, 4) camera to world, OpenCV axes, of Blender's position and quaternion (w, x, y, z)."""
    w, x, y, z = quaternion / max(np.linalg.norm(quaternion), np.finfo(float).tiny)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    pose = np.eye(4)
    pose[:3, :3] += 2 * w * cross + 2 * cross @ cross
    pose[:3, 3] = position if quaternion.any() else np.nan
    return pose @ _OPENGL_TO_OPENCV


def _photos(folder: Path) -> list[Path]:
    """The photos of a folder in the order of their numbers, [] without a folder."""
    found = (path for path in folder.glob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", path.stem)]


def _stem(path: Path) -> str:
    return os.path.basename(path).split(".")[0]


def _read_numbers(path: Path) -> np.ndarray:
    try:
        return np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise JobError(f"{path} is no table of numbers ({error}).") from error
