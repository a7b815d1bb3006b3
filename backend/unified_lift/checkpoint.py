# SPDX-License-Identifier: GPL-3.0-or-later
"""Trained splats on disk, beside what they were trained on: they hold as long as that stays so."""

from __future__ import annotations

from pathlib import Path

from unified_lift.config import GeometryConfig, RenderConfig, TriangulationConfig
from unified_lift.digests import digest_arrays, digest_code
from unified_lift.gaussians import PARAMETERS, Gaussians, from_splats, to_splats
from unified_lift.ply import Splats, read_ply, write_ply
from unified_lift.protocol import JobError, Report, describe_os_error, read_json, write_json
from unified_lift.rendering import Engine

GEOMETRY_FILE = "geometry.ply"
SOURCE_FILE = "source.json"
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
