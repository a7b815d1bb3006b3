# SPDX-License-Identifier: GPL-3.0-or-later
"""Trained splats on disk, beside what they were trained on: they hold as long as that stays so.

And what a training needs to go on that was stopped.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unified_lift.config import GeometryConfig, RenderConfig, TriangulationConfig
from unified_lift.digests import digest_arrays, digest_code
from unified_lift.gaussians import PARAMETERS, Gaussians, from_splats, to_splats
from unified_lift.geometry import State
from unified_lift.ply import Splats, read_ply, write_ply
from unified_lift.protocol import (
    JobError,
    Report,
    describe_os_error,
    read_json,
    write_json,
    write_whole,
)
from unified_lift.rendering import Engine

GEOMETRY_FILE = "geometry.ply"
SOURCE_FILE = "source.json"
TRAINING_FILE = "training.pt"
UNREADABLE = (RuntimeError, ValueError, TypeError, EOFError, KeyError, pickle.UnpicklingError)
# How splats are made.
SPLATS_CODE = (
    "geometry.py",
    "gaussians.py",
    "exposures.py",
    "preparation.py",
    "capture",
    "rendering",
)


def splats_source(photos: str, config: GeometryConfig, engine: Engine, seed: int) -> dict:
    """What trained splats hang on; `photos` is `digest_photos` of the capture."""
    return {
        "code": digest_code(*SPLATS_CODE),
        "engine": engine.name,
        "capture": photos,
        "preset": repr(config),
        "triangulation": repr(TriangulationConfig()),
        "rules": repr(RenderConfig()),
        "seed": seed,
    }


def keep_splats(folder: Path, source: dict, gaussians: Gaussians) -> None:
    """Write trained splats into a folder, and then what they were made from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOURCE_FILE).unlink(missing_ok=True)
    splats = to_splats(gaussians)
    write_ply(folder / GEOMETRY_FILE, splats)
    write_json(folder / SOURCE_FILE, source | {"splats": _digest(splats)})
    (folder / TRAINING_FILE).unlink(missing_ok=True)


def read_kept(folder: Path, source: dict) -> Gaussians | None:
    """The splats of this source that an earlier run kept in a folder; None if it kept none.

    Raises:
        JobError: they are of another source, damaged or lost.
        OSError: the folder cannot be read.
    """
    path = folder / SOURCE_FILE
    if not path.is_file():
        return None
    known = read_json(path)
    other = [name for name in source if known.get(name) != source[name]]
    if other:
        raise JobError(f"They were trained with another {' and '.join(other)}.")
    splats = read_ply(folder / GEOMETRY_FILE)
    if known.get("splats") != _digest(splats):
        raise JobError(f"{folder / GEOMETRY_FILE} was changed or is damaged.")
    return from_splats(splats)


def kept_splats(folder: Path, source: dict, report: Report) -> Gaussians | None:
    """As `read_kept`, but what cannot be used is told and trained again."""
    try:
        return read_kept(folder, source)
    except JobError as error:
        why = str(error)
    except OSError as error:
        why = describe_os_error(error, folder)
    report.warning(f"The splats of the last run cannot be used. {why} Training again.")
    return None


def _digest(splats: Splats) -> str:
    """Of what was trained."""
    return digest_arrays(getattr(splats, name) for name in PARAMETERS)


class Stopped:
    """A training's state on disk, so that a stop costs a minute of it at most.

    Written now and then, and when the user cancels.
    """

    def __init__(self, folder: Path, source: dict, seconds: float, report: Report) -> None:
        self._path, self._source, self._report = folder / TRAINING_FILE, source, report
        self._seconds = seconds  # between two states
        self._written = time.monotonic()
        self._state: Callable[[], State] | None = None

    def read(self) -> State | None:
        """The state of an earlier run; None if there is none that can be used."""
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
            if state["source"] == self._source:
                return state
            why = "Photos, quality or program have changed."
        except FileNotFoundError:
            return None
        except OSError as error:
            why = describe_os_error(error, self._path)
        except UNREADABLE:
            why = f"{self._path} is damaged."
        self._report.warning(f"The training that was stopped cannot go on. {why} Training anew.")
        return None

    def keep(self, state: Callable[[], State]) -> None:
        """Be told of a state; written if the last one is old enough."""
        self._state = state
        if time.monotonic() - self._written >= self._seconds:
            self.write()

    def write(self) -> None:
        """Write the state that was told of last, whole or not at all. Told if that fails."""
        if self._state is None:
            return
        buffer = io.BytesIO()
        torch.save({**self._state(), "source": self._source}, buffer)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, buffer.getbuffer())
        except OSError as error:
            told = describe_os_error(error, self._path)
            self._report.warning(f"If the training stops it starts anew. {told}")
            self._seconds = float("inf")  # told once
        self._written = time.monotonic()
