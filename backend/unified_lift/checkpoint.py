# SPDX-License-Identifier: GPL-3.0-or-later
"""Trained splats on disk, beside what they were trained on: they hold as long as that stays so."""

from __future__ import annotations

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
    write_json(folder / SOURCE_FILE, source | {"splats": digest_file(folder / GEOMETRY_FILE)})


def kept_splats(folder: Path, source: dict, report: Report) -> Gaussians | None:
    """The splats of an earlier run, if they are whole and of the same source; else told why not."""
    path, geometry = folder / SOURCE_FILE, folder / GEOMETRY_FILE
    if not path.exists():
        return None
    try:
        known = read_json(path)
        other = [name for name in source if known.get(name) != source[name]]
        if other:
            raise JobError(f"They were trained with another {' and '.join(other)}.")
        if known.get("splats") != digest_file(geometry):
            raise JobError(f"{geometry} is damaged.")
        return from_splats(read_ply(geometry))
    except (JobError, OSError) as error:
        report.warning(f"The splats of the last run cannot be used. {error} Training again.")
        return None
