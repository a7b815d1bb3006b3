# SPDX-License-Identifier: GPL-3.0-or-later
"""The public benchmarks: a scene read, handed to the pipeline, and a finished job scored."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from unified_lift import __version__
from unified_lift.benchmark.layouts import MARKS, READERS, PublicScene
from unified_lift.benchmark.protocols import (
    Panoptic,
    best_codes,
    class_agnostic_iou,
    mask_ious,
    scene_panoptic_quality,
    segment_codes,
)
from unified_lift.capture import Capture, View
from unified_lift.capture.images import UNREADABLE, resize_labels
from unified_lift.digests import digest_folder
from unified_lift.metrics import count, read_labels, score, total
from unified_lift.protocol import JobError, read_json, write_json

SOURCE_FILE = "source.json"  # what a scene's folder was made from
PQ_SIZE = 512  # both sides, before PQ^scene is taken (Panoptic Lifting's code)
PROMPT_LEVEL = 128  # a prompt's mask is what is brighter (Gaussian Grouping's code)
_OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def find_scenes(kind: str, root: Path) -> list[Path]:
    """The scenes of a benchmark: the folder itself if it is one, else those below it, by name.

    Raises:
        JobError: neither.
    """
    root = Path(root).absolute()
    for folders in ([root], sorted(path for path in root.glob("*") if path.is_dir())):
        scenes = [path for path in folders if any((path / mark).exists() for mark in MARKS[kind])]
        if scenes:
            return scenes
    raise JobError(
        f"{root} is no scene of {kind} and holds none: a scene has {' or '.join(MARKS[kind])}."
    )


def read_public(kind: str, scene_dir: Path) -> PublicScene:
    """Read one scene of a public benchmark.

    Args:
        kind: one of `PUBLIC_BENCHMARKS`.
        scene_dir: the scene's folder, in the benchmark's own layout.

    Raises:
        JobError: no such layout, or files that are missing or damaged.
    """
    scene_dir = Path(scene_dir).absolute()
    if not scene_dir.is_dir():
        raise JobError(f"There is no folder {scene_dir}. Choose a scene of {kind}.")
    return READERS[kind](scene_dir)


def start_scene(scene_dir: Path, folder: Path, settings: dict) -> None:
    """Make the folder of a scene ready: what other files or settings left there goes.

    Args:
        scene_dir: the scene's folder, in the benchmark's own layout.
        folder: gets capture/, job/ and views/ of that scene, and what they were made from.
        settings: of the job.

    Raises:
        JobError: the folder holds something else.
    """
    path = folder / SOURCE_FILE
    source = {"version": __version__, "files": digest_folder(scene_dir), **settings}
    if path.exists():
        if read_json(path) == source:
            return
        for name in ("capture", "job", "views"):
            if (folder / name).exists():  # what cannot be removed must not pass for the new
                shutil.rmtree(folder / name)
    elif folder.exists() and any(folder.iterdir()):
        raise JobError(f"{folder} is not of this benchmark. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, source)


def check_truth(scene: PublicScene) -> None:
    """Read all ground truth and class maps, before a job of minutes is done for nothing.

    Raises:
        JobError: one is missing or damaged.
    """
    _masks_of_prompts(scene)
    for files in (*scene.truth.values(), *scene.given.values()):
        for path in files:
            if path is not None:
                read_labels(path)


def write_public(scene: PublicScene, out_dir: Path) -> Path:
    """Write a scene as `segment` reads it: a capture with transforms.json, and its masks/.

    Photos are copied. Views keep their names, so that what `render` writes can be scored.

    Returns:
        The capture's folder; it has masks/ where the benchmark gives masks.

    Raises:
        JobError: a mask cannot be read.
    """
    out_dir = Path(out_dir).absolute()
    (out_dir / "images").mkdir(parents=True, exist_ok=True)
    capture = scene.capture
    frames = [_write_frame(view, out_dir) for view in capture.views]
    points = {"ply_file_path": _write_points(capture, out_dir)} if len(capture.points) else {}
    write_json(out_dir / "transforms.json", {**points, "frames": frames})
    label_maps = scene.label_maps() if scene.given else [None] * len(capture.train_views)
    for view, labels in zip(capture.train_views, label_maps, strict=True):
        if labels is not None:
            path = out_dir / "masks" / f"{view.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            _, local = np.unique(np.append(0, labels), return_inverse=True)
            Image.fromarray(local[1:].reshape(labels.shape).astype(np.uint16)).save(path)
    return out_dir


def score_public(scene: PublicScene, ids_dir: Path) -> dict:
    """Score the rendered ids of a finished job by the benchmark's own protocol.

    LERF-Mask: `mIoU` and `mBIoU`, the mean over the prompts of the mean over their views. Our
    objects have no names, so each prompt's ids are chosen by *oracle grounding*: those whose union
    fits its true mask best in the first test view that shows it; the other views are scored. The
    numbers are named so, and do not compare with those of a text detector. If `ids_dir` holds
    VIEW NUMBER/PROMPT.png, masks that some grounding chose, these are scored, and a missing one
    counts as empty.

    Replica and Messy Rooms: `pq_scene` where the benchmark has classes, `class_agnostic` (Gaga's
    mIoU and F-score) of the instances, and `segments`, the scores of `metrics.score`. An object's
    class is that which the given masks of the training views show most often where its id is
    rendered, so PQ^scene needs label maps of training views in `ids_dir` too. Class 0 is that of
    pixels without an object and of objects that no training view shows.

    Args:
        scene: from `read_public`.
        ids_dir: NAME.png of all test views at the photos' size, as `render` writes.

    Raises:
        JobError: a label map is missing, unreadable, of another size, or all truth is void.
    """
    ids_dir = Path(ids_dir)
    head = {"benchmark": scene.kind, "views": len(scene.capture.test_views)}
    if scene.prompts:
        return {**head, **_score_prompts(scene, ids_dir)}
    return {**head, **_score_segments(scene, ids_dir)}


# ---- LERF-Mask


def _score_prompts(scene: PublicScene, ids_dir: Path) -> dict:
    is_given = any((ids_dir / folder.name).is_dir() for folder in scene.prompts.values())
    choose = _given_masks if is_given else _oracle_masks
    scores, unscored = {}, []
    for prompt, masks in _masks_of_prompts(scene).items():
        found = [mask_ious(*pair) for pair in choose(scene, ids_dir, prompt, masks)]
        pairs = [pair for pair in found if pair is not None]
        if pairs:
            iou, boundary = np.mean(pairs, axis=0).tolist()
            scores[prompt] = {"mIoU": iou, "mBIoU": boundary, "views": len(pairs)}
        else:
            unscored.append(prompt)
    if not scores:
        raise JobError(
            f"No prompt of {scene.capture.root} can be scored: none has a mask in two test views."
        )
    end = "" if is_given else "_oracle_grounding"
    return {
        **{
            f"{key}{end}": float(np.mean([entry[key] for entry in scores.values()]))
            for key in ("mIoU", "mBIoU")
        },
        "prompts": scores,
        "unscored": unscored,
    }


def _masks_of_prompts(scene: PublicScene) -> dict[str, dict[str, np.ndarray]]:
    """(H, W) bool masks by prompt and view's name, views in order."""
    masks: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, folder in scene.prompts.items():
        for path in sorted(folder.glob("*.png")):
            masks[path.stem][name] = _read_mask(path)
    return masks


def _read_mask(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L")) > PROMPT_LEVEL
    except UNREADABLE as error:
        raise JobError(f"The mask {path} cannot be read ({error}). Save it again.") from error


def _given_masks(
    scene: PublicScene, ids_dir: Path, prompt: str, masks: dict[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for name, truth in masks.items():
        path = ids_dir / scene.prompts[name].name / f"{prompt}.png"
        mask = _read_mask(path) if path.is_file() else np.zeros((1, 1), bool)
        yield resize_labels(mask, truth.shape[1], truth.shape[0]), truth


def _oracle_masks(
    scene: PublicScene, ids_dir: Path, prompt: str, masks: dict[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    codes = None
    views = {view.name: view for view in scene.capture.test_views}
    for name, truth in masks.items():
        labels = _predicted(ids_dir, views[name])
        labels = resize_labels(labels, truth.shape[1], truth.shape[0])
        if codes is not None:
            yield np.isin(labels, codes), truth
        elif truth.any():
            codes = best_codes(labels, truth)


# ---- Replica, Messy Rooms


def _score_segments(scene: PublicScene, ids_dir: Path) -> dict:
    ids_and_instances = ((ids, truth.instances) for ids, truth in _pairs(scene, ids_dir))
    scores = {"class_agnostic": class_agnostic_iou(ids_and_instances)}
    if scene.things:
        scores["pq_scene"] = _pq_scene(scene, ids_dir)
    predictions, segments = [], []
    things: set[int] = set()
    for ids, truth in _pairs(scene, ids_dir):
        labels = _segments(scene, truth)
        is_thing = np.isin(truth.classes, list(scene.things or {0}))  # all, without classes
        things |= set(np.unique(labels[is_thing]).tolist())
        predictions.append(ids)
        segments.append(labels)
    stuff = {code for labels in segments for code in np.unique(labels).tolist()} - things
    ids = (sorted(things - {0}), sorted(stuff - {0}))
    if not any(ids):
        raise JobError(f"The ground truth of {scene.capture.root} is void in all test views.")
    return {**scores, "segments": score(predictions, segments, *ids)}


def _pairs(scene: PublicScene, ids_dir: Path) -> Iterator[tuple[np.ndarray, Panoptic]]:
    """Predicted ids and ground truth of each test view, at the size of the latter."""
    for view in scene.capture.test_views:
        files = scene.truth[view.name]
        instances = read_labels(files.instances)
        classes = read_labels(files.classes) if files.classes else np.zeros_like(instances)
        if classes.shape != instances.shape:
            raise JobError(f"{files.classes} is not of the size of {files.instances}.")
        ids = resize_labels(_predicted(ids_dir, view), instances.shape[1], instances.shape[0])
        yield ids, Panoptic(classes, instances)


def _segments(scene: PublicScene, truth: Panoptic) -> np.ndarray:
    """(H, W) int: one id for each thing and each class of stuff, 0 where nothing is annotated."""
    if not scene.things:
        return truth.instances
    codes = segment_codes(truth, scene.stuff) + 1  # class 0 may be stuff: 0 stays free for void
    return codes if scene.void is None else np.where(truth.classes == scene.void, 0, codes)


def _pq_scene(scene: PublicScene, ids_dir: Path) -> dict:
    class_of = _classes_of_ids(scene, ids_dir)

    def resized(view: Panoptic) -> Panoptic:
        return Panoptic(*(resize_labels(labels, PQ_SIZE, PQ_SIZE) for labels in view))

    def views() -> Iterator[tuple[Panoptic, Panoptic]]:
        for ids, truth in _pairs(scene, ids_dir):
            present, inverse = np.unique(ids, return_inverse=True)
            classes = np.array([class_of.get(label, 0) for label in present.tolist()])
            yield resized(Panoptic(classes[inverse].reshape(ids.shape), ids)), resized(truth)

    return scene_panoptic_quality(views(), scene.things, scene.stuff, scene.void)


def _classes_of_ids(scene: PublicScene, ids_dir: Path) -> dict[int, int]:
    """The class that the given masks of the training views show most where an id is rendered."""
    tables = []
    for view in scene.capture.train_views:
        files = scene.given.get(view.name)
        if files and files.classes and (ids_dir / f"{view.name}.png").is_file():
            classes = resize_labels(read_labels(files.classes), view.width, view.height)
            tables.append(count(_predicted(ids_dir, view), classes))
    if not tables:
        raise JobError(
            f"{ids_dir} has no label map of a training view with given classes: PQ^scene takes an "
            "object's class from them. Render all views (--split all) of a scene that has them."
        )
    table = total(tables)
    counted = table.truth_ids != scene.void if scene.void is not None else table.truth_ids >= 0
    counts = np.where(counted, table.counts, 0)
    best = table.truth_ids[counts.argmax(1)]
    found = zip(table.predicted_ids.tolist(), best.tolist(), counts.any(1).tolist())
    return {label: name for label, name, seen in found if seen and label != 0}


def _predicted(ids_dir: Path, view: View) -> np.ndarray:
    path = ids_dir / f"{view.name}.png"
    if not path.is_file():
        raise JobError(f"There is no label map {path}. Render all test views of the scene.")
    labels = read_labels(path)
    if labels.shape != (view.height, view.width):
        raise JobError(
            f"{path} has {labels.shape[1]} x {labels.shape[0]} pixels, the photo {view.width} x "
            f"{view.height}. Render at the size of the photos."
        )
    return labels


# ---- writing a scene


def _write_frame(view: View, out_dir: Path) -> dict:
    """Copy a photo; the view's entry of transforms.json."""
    path = out_dir / "images" / f"{view.name}{view.image_path.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(view.image_path, path)
    return {
        "file_path": path.relative_to(out_dir).as_posix(),
        "split": view.split,
        "transform_matrix": (np.linalg.inv(view.viewmat) @ _OPENCV_TO_OPENGL).tolist(),
        "w": view.width,
        "h": view.height,
        "fl_x": view.K[0, 0],
        "fl_y": view.K[1, 1],
        "cx": view.K[0, 2],
        "cy": view.K[1, 2],
        **dict(zip(("k1", "k2", "p1", "p2"), view.distortion, strict=True)),
    }


def _write_points(capture: Capture, out_dir: Path) -> str:
    names = ("x", "y", "z", "red", "green", "blue")
    dtype = [(name, "<f4" if len(name) == 1 else "u1") for name in names]
    table = np.empty(len(capture.points), dtype)
    for name, column in zip(names, (*capture.points.T, *capture.point_colors.T), strict=True):
        table[name] = column
    kinds = "\n".join(f"property {'float' if len(n) == 1 else 'uchar'} {n}" for n in names)
    head = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{kinds}\nend_header\n"
    )
    (out_dir / "points.ply").write_bytes(head.encode() + table.tobytes())
    return "points.ply"
