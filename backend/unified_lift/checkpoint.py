# SPDX-License-Identifier: GPL-3.0-or-later
"""Trained splats on disk, beside what they were trained on: they hold as long as that stays so.

And what a training needs to go on that was stopped.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from unified_lift.config import GeometryConfig, RenderConfig, TriangulationConfig
from unified_lift.digests import digest_arrays, digest_code
from unified_lift.gaussians import PARAMETERS, Gaussians, from_splats, to_splats
from unified_lift.geometry import State
from unified_lift.ply import Splats, read_ply, write_ply
from unified_lift.protocol import (
    Cancelled,
    JobError,
    Report,
    describe_os_error,
    partial_path,
    read_json,
    write_json,
    write_whole,
)
from unified_lift.rendering import Engine

GEOMETRY_FILE = "geometry.ply"
SOURCE_FILE = "source.json"
TRAINING_FILE = "training.pt"
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
    if other := _differences(known, source):
        raise JobError(f"They were trained with another {other}.")
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


def _differences(known: dict, source: dict) -> str:
    """What differs between two sources, in words; "" if nothing does."""
    return " and ".join(name for name in source if known.get(name) != source[name])


def _digest(splats: Splats) -> str:
    """Of what was trained."""
    return digest_arrays(getattr(splats, name) for name in PARAMETERS)


class Stopped:
    """A training's state on disk, beside its splats to be: what a stop leaves, and a crash, too.

    Used as a context manager around a training whose `keep` is this one's: it writes the state now
    and then and when the user cancels, and takes it away where the training fails by itself.
    """

    def __init__(self, folder: Path, source: dict, seconds: float, report: Report) -> None:
        self._path, self._source, self._report = folder / TRAINING_FILE, source, report
        self._seconds = seconds  # between two states
        self._written = time.monotonic()
        self._state: Callable[[], State] | None = None
        self._told = False

    def __enter__(self) -> Stopped:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if isinstance(error, Cancelled):
            self.write()
        elif isinstance(error, JobError):
            self.remove()  # it would fail again

    def read(self) -> State | None:
        """The state of an earlier run; None if there is none that can be used, which is told."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            why = describe_os_error(error, self._path)
        else:
            state = _unpacked(data)
            if state is None:
                why = f"{self._path} is damaged."
            elif other := _differences(state.pop("source"), self._source):
                why = f"It had another {other}."
            else:
                return state
        self._report.warning(f"The training that was stopped cannot go on. {why} Training anew.")
        self.remove()
        return None

    def keep(self, state: Callable[[], State]) -> None:
        """Remember how to make the state of now, and write it if the last one is old enough."""
        self._state = state
        if time.monotonic() - self._written >= self._seconds:
            self.write()

    def write(self) -> None:
        """Write the state of now, whole or not at all; the first time that this fails is told."""
        if self._state is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, *_packed({**self._state(), "source": self._source}))
        except OSError as error:
            if not self._told:
                told = describe_os_error(error, self._path)
                lost = "A stop loses more than a minute of the training, whose state cannot be kept"
                self._report.warning(f"{lost}. {told}")
            self._told = True
        self._written = time.monotonic()

    def remove(self) -> None:
        """Take the state away, and what a kill has left of one."""
        for path in (self._path, partial_path(self._path)):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _packed(state: dict) -> tuple[bytes, memoryview]:
    """A state as bytes, with their digest before them: PyTorch does not see damage."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return hashlib.sha256(buffer.getbuffer()).digest(), buffer.getbuffer()


def _unpacked(data: bytes) -> dict | None:
    """The state again; None if the bytes are damaged."""
    size = hashlib.sha256().digest_size
    if hashlib.sha256(memoryview(data)[size:]).digest() != data[:size]:
        return None
    return torch.load(io.BytesIO(data[size:]), map_location="cpu", weights_only=True)
