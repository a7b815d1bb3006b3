# SPDX-License-Identifier: GPL-3.0-or-later
"""Trained splats on disk, beside what they were trained on: they hold as long as that stays so."""

from __future__ import annotations

import os
from pathlib import Path

from unified_lift.config import GeometryConfig, RenderConfig, TriangulationConfig
from unified_lift.digests import digest_code, digest_file
from unified_lift.gaussians import Gaussians, from_splats, to_splats
from unified_lift.ply import read_ply, write_ply
from unified_lift.protocol import JobError, Report, read_json, write_json
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
    write_ply(folder / GEOMETRY_FILE, to_splats(gaussians))
    _note(folder, source, GEOMETRY_FILE)


def keep_result(folder: Path, result: Path) -> None:
    """Let a result with the kept splats take their place, so that they lie on the disk once."""
    _note(folder, read_json(folder / SOURCE_FILE), os.path.relpath(result, folder))
    (folder / GEOMETRY_FILE).unlink(missing_ok=True)


def _note(folder: Path, source: dict, file: str) -> None:
    known = {"file": file, "splats": digest_file(folder / file)}
    write_json(folder / SOURCE_FILE, source | known)


def holds_splats(folder: Path, source: dict) -> bool:
    """Whether splats of this source were kept in a folder; `kept_splats` sees if they are whole."""
    try:
        return not _differences(read_json(folder / SOURCE_FILE), source)
    except JobError:  # none were kept, or nothing tells what they are
        return False


def kept_splats(folder: Path, source: dict, report: Report) -> Gaussians | None:
    """The splats of an earlier run, if they are whole and of the same source; else told why not."""
    path = folder / SOURCE_FILE
    if not path.exists():
        return None
    try:
        known = read_json(path)
        other = _differences(known, source)
        if other:
            raise JobError(f"They were trained with another {' and '.join(other)}.")
        splats = folder / known.get("file", GEOMETRY_FILE)
        if known.get("splats") != digest_file(splats):
            raise JobError(f"{splats.resolve()} is damaged.")
        return from_splats(read_ply(splats))
    except (JobError, OSError) as error:
        report.warning(f"The splats of the last run cannot be used. {error} Training again.")
        return None


def _differences(known: dict, source: dict) -> list[str]:
    return [name for name in source if known.get(name) != source[name]]
