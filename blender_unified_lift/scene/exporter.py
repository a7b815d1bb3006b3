# SPDX-License-Identifier: GPL-3.0-or-later
"""Splats out of Blender: what the scene shows of them, as one PLY in the frame of the capture."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bpy.types import Context, Object

from unified_lift.ply import Splats, write_ply
from unified_lift.protocol import JobError, describe_os_error

from . import objects, schema
from .transform import transformed, with_whole_degree


class Part(NamedTuple):
    """One appearance of a splat object in the evaluated scene.

    Attributes:
        obj: the object, also where an instance of it is seen.
        splats: in the object's own frame.
        matrix: (4, 4) float64, object to world.
    """

    obj: Object
    splats: Splats
    matrix: np.ndarray


def export_splats(context: Context, path: Path, selected_only: bool) -> str:
    """Write the splats that are to be seen, with modifiers and instances, as one 3DGS PLY.

    They lie in the frame of their capture, as in its scene.ply; without a capture, in Blender's
    world. An existing file is replaced by a whole one, or not at all.

    Args:
        context: its scene is exported.
        path: of the file.
        selected_only: leave out what is not selected.

    Returns:
        What was written, for the user.

    Raises:
        JobError: there are no such splats, they have non-finite values, or the file cannot be
            written.
    """
    parts = _find_parts(context, selected_only)
    splats = _joined(parts, _world_to_capture(context, parts))
    _write(path, splats)
    what = "object" if len(parts) == 1 else "objects"
    return f"Exported {len(splats):,} splats of {len(parts)} {what} to {path.name}"


# ---- out of Blender


def _find_parts(context: Context, selected_only: bool) -> list[Part]:
    """What is to be exported, in the order of object ids and names."""
    layer = context.view_layer
    parts = []
    for instance, owner in objects.splat_instances(context.evaluated_depsgraph_get()):
        if selected_only and not owner.select_get(view_layer=layer):
            continue
        splats = schema.read_splats(instance.object.data)
        if not all(np.isfinite(values).all() for values in vars(splats).values()):
            name = instance.object.name
            raise JobError(f"{name} has NaN or infinite values. Undo, or mute, what made them.")
        if len(splats):
            matrix = np.array(instance.matrix_world, np.float64)
            parts.append(Part(instance.object.original, splats, matrix))
    if not parts:
        raise JobError(_why_nothing(context, selected_only))
    return sorted(parts, key=lambda part: (part.obj.get(schema.OBJECT_ID, np.inf), part.obj.name))


def _why_nothing(context: Context, selected_only: bool) -> str:
    if not selected_only:
        return "No splats are to be seen. Show the objects that you want to export."
    remedy = "Select objects that do, or turn Selected Only off."
    for obj in context.view_layer.objects.selected:
        lacking = schema.lacking(obj.data) if obj.type == "POINTCLOUD" else []
        if lacking:
            return f"{obj.name} holds no Gaussian splats (no {', '.join(lacking)}). {remedy}"
    return f"No selected object holds splats. {remedy}"


def _world_to_capture(context: Context, parts: Sequence[Part]) -> np.ndarray:
    """(4, 4) float64 into the frame of the capture; of several, that of the active object."""
    origin = _origin(context, [part.obj for part in parts])
    if origin is None:
        return np.eye(4)
    evaluated = origin.evaluated_get(context.evaluated_depsgraph_get())
    try:
        return np.linalg.inv(np.array(evaluated.matrix_world, np.float64))
    except np.linalg.LinAlgError as error:
        told = f"{origin.name}, which carries the capture, has a scale of 0. Give it another one."
        raise JobError(told) from error


def _origin(context: Context, exported: Sequence[Object]) -> Object | None:
    """The Empty above the exported objects; where they have none above them, of the capture."""
    active = context.view_layer.objects.active
    for obj in sorted(exported, key=lambda obj: obj != active):
        while obj := obj.parent:
            if objects.ORIGIN_KEY in obj:
                return obj
    capture = objects.root(context)
    inside = capture.all_objects if capture else ()
    return next((obj for obj in inside if objects.ORIGIN_KEY in obj), None)


# ---- into the file


def _joined(parts: Sequence[Part], world_to_capture: np.ndarray) -> Splats:
    """The splats of all parts in one frame, with one SH degree."""
    most = max(part.splats.shN.shape[1] for part in parts)
    done = []
    for part, number in zip(parts, _distinct_ids(parts), strict=True):
        ids = np.full(len(part.splats), number, np.int32)
        splats = replace(with_whole_degree(part.splats, most), object_ids=ids)
        done.append(vars(transformed(splats, world_to_capture @ part.matrix)))
    return Splats(**{name: np.concatenate([one[name] for one in done]) for name in done[0]})


def _distinct_ids(parts: Sequence[Part]) -> list[int]:
    """The objects' ids; a new one where another object has it, as after Separate or Duplicate."""
    known = [part.obj.get(schema.OBJECT_ID) for part in parts]
    new = count(1 + max((number for number in known if number is not None), default=0))
    return [
        next(new) if number is None or number in known[:place] else number
        for place, number in enumerate(known)
    ]


def _write(path: Path, splats: Splats) -> None:
    try:
        if path.is_dir():
            raise JobError(f"{path} is a folder. Choose the name of a file.")
        if path.exists() and not os.access(path, os.W_OK):  # renaming would not ask
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        write_ply(path, splats)
    except OSError as error:
        raise JobError(describe_os_error(error, path)) from error
