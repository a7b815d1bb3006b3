# SPDX-License-Identifier: GPL-3.0-or-later
"""A finished job as Blender data: all is read and checked first, then all is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np
from bpy.types import Collection, Context, Object
from mathutils import Color, Matrix

from unified_lift.capture import Capture, read_cameras
from unified_lift.ply import Splats, read_ply
from unified_lift.protocol import (
    CAMERAS_FILE,
    OBJECTS_FILE,
    SCENE_FILE,
    JobError,
    describe_os_error,
    read_json,
)

from . import cameras, schema
from .objects import CAPTURE_KEY, JOB_KEY, ORIGIN_KEY, SURFACE, THING, UNASSIGNED, printable

ORIGIN = "Capture"
MANY_CAMERAS = 24  # more than this are hidden at first: they would cover the scene
_GREY = (0.5, 0.5, 0.5)
_TAG_HUES = (0.0, 0.08, 0.15, 0.33, 0.6, 0.75, 0.88)  # of the theme's COLOR_01 … COLOR_07
_MIN_SATURATION = 0.15  # below, an object gets no colour tag


@dataclass(frozen=True)
class Entry:
    """One object of objects.json.

    Attributes:
        id: its number, as in the PLY's object_id.
        name: shown to the user.
        kind: thing, surface or unassigned.
        score: 0..1, how sure the split is of it.
        color: r, g, b in 0..1, display space.
    """

    id: int
    name: str
    kind: str
    score: float
    color: tuple[float, float, float]


@dataclass(frozen=True)
class Result:
    """The files of a finished job, read and found to agree."""

    job_dir: Path
    capture: Capture
    splats: Splats
    entries: tuple[Entry, ...]


def read_result(job_dir: Path) -> Result:
    """Read the result of a job.

    Raises:
        JobError: a file is missing, damaged, or contradicts another.
    """
    job_dir = Path(job_dir)
    for name in (SCENE_FILE, OBJECTS_FILE, CAMERAS_FILE):
        if not (job_dir / name).is_file():
            raise JobError(f"{job_dir} holds no finished result (no {name}). Choose another job.")
    try:
        splats = read_ply(job_dir / SCENE_FILE)
    except OSError as error:
        raise JobError(describe_os_error(error, job_dir / SCENE_FILE)) from error
    entries = _read_entries(job_dir / OBJECTS_FILE)
    _check_ids(job_dir, splats, entries)
    capture = _read_capture(job_dir / CAMERAS_FILE)
    if (splats.object_ids == 0).any():
        entries = (*entries, Entry(0, "Unassigned", UNASSIGNED, 0.0, _GREY))
    return Result(job_dir, capture, splats, entries)


def _read_entries(path: Path) -> tuple[Entry, ...]:
    try:
        return tuple(_read_entry(item) for item in read_json(path)["objects"])
    except (KeyError, TypeError, ValueError) as error:
        raise JobError(f"{path} is damaged ({error!r}). Run the job again.") from error


def _read_entry(item: dict) -> Entry:
    color = tuple(item["color"])
    entry = Entry(item["id"], item["name"], item["kind"], item["score"], color)
    is_sound = (
        isinstance(entry.id, int)
        and entry.id > 0
        and isinstance(entry.name, str)
        and entry.kind in (THING, SURFACE)
        and all(0 <= value <= 1 for value in (entry.score, *color))
        and len(color) == len(_GREY)
    )
    if not is_sound:
        raise ValueError(f"object {item}")
    return entry


def _check_ids(job_dir: Path, splats: Splats, entries: tuple[Entry, ...]) -> None:
    listed = [entry.id for entry in entries]
    found = set(np.unique(splats.object_ids).tolist()) - {0}
    everything = found.union(listed)
    odd = {number for number in everything if number not in found or listed.count(number) != 1}
    if odd:
        raise JobError(
            f"{SCENE_FILE} and {OBJECTS_FILE} of {job_dir} do not belong together "
            f"(object {min(odd)} is not once in each). Run the job again."
        )


def _read_capture(path: Path) -> Capture:
    try:
        capture = read_cameras(path)
    except OverflowError as error:  # a size of Infinity
        raise JobError(f"{path} is damaged ({error}). Run the job again.") from error
    wrong = [view.name for view in capture.views if not cameras.is_sound(view)]
    if wrong or not capture.views or not np.isfinite(capture.world_to_blender).all():
        what = f"view {wrong[0]}" if wrong else "no views, or no world"
        raise JobError(f"{path} is damaged ({what}). Run the job again.")
    return capture


# ---- Blender data


def import_job(context: Context, job_dir: Path) -> Collection:
    """Import a finished job into the context's scene and push no undo step.

    An import never touches an earlier one of the same job: names get Blender's suffixes.

    Returns:
        The root collection, named after the capture.

    Raises:
        JobError: as `read_result`; nothing was imported then.
    """
    result = read_result(job_dir)
    root = bpy.data.collections.new(printable(result.capture.root.name))
    root[JOB_KEY] = str(result.job_dir.absolute())
    root[CAPTURE_KEY] = str(result.capture.root)
    context.scene.collection.children.link(root)
    origin = _make_origin(result, root)
    for entry in result.entries:
        _add_object(entry, result.splats, origin, root)
    folder = _child(root, cameras.COLLECTION)
    folder.hide_render = True
    views = cameras.add_cameras(result.capture, origin, folder)
    for camera in views if len(views) > MANY_CAMERAS else ():
        camera.hide_set(True)
    origin.hide_set(True)  # else Blender draws a line from it to every object
    for obj in root.all_objects:
        obj.select_set(False)  # how new objects come differs between Blender's versions
    return root


def _make_origin(result: Result, root: Collection) -> Object:
    """The Empty above all: it turns the capture's axes into Blender's."""
    origin = bpy.data.objects.new(ORIGIN, None)
    origin.matrix_world = Matrix(result.capture.world_to_blender)
    origin[ORIGIN_KEY] = True
    root.objects.link(origin)
    return origin


def _add_object(entry: Entry, splats: Splats, origin: Object, root: Collection) -> Object:
    """Make one object in a collection of its own; its origin is the median of its splats."""
    own = splats.select(splats.object_ids == entry.id)
    center = np.median(own.means, axis=0)
    name = printable(entry.name)
    obj = schema.make_splat_object(name, _moved(own, -center))
    obj.parent = origin
    obj.location = center
    linear = Color(entry.color).from_srgb_to_scene_linear()
    obj.color = (*linear, 1.0)
    obj[schema.OBJECT_ID] = entry.id
    obj["kind"] = entry.kind
    obj["score"] = entry.score
    folder = _child(root, name)
    folder.color_tag = color_tag(entry.color)
    folder.objects.link(obj)
    return obj


def _moved(splats: Splats, offset: np.ndarray) -> Splats:
    values = {**vars(splats), "means": splats.means + offset.astype(np.float32)}
    return Splats(**values)


def _child(root: Collection, name: str) -> Collection:
    folder = bpy.data.collections.new(name)
    root.children.link(folder)
    return folder


def color_tag(color: tuple[float, float, float]) -> str:
    """The Outliner's colour tag that is nearest in hue, 'NONE' for greys."""
    hue, saturation, _ = Color(color).hsv
    if saturation < _MIN_SATURATION:
        return "NONE"
    distances = [min(abs(hue - tag), 1 - abs(hue - tag)) for tag in _TAG_HUES]
    return f"COLOR_{distances.index(min(distances)) + 1:02d}"
