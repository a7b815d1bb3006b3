# SPDX-License-Identifier: GPL-3.0-or-later
"""Digests of what a result was made from: it holds as long as they stay the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np

import unified_lift
from unified_lift.capture import Capture

PACKAGE = Path(unified_lift.__file__).parent
CODE_ENDINGS = (".py", ".h", ".cpp")


def digest_photos(capture: Capture, check: Callable[[], None] = lambda: None) -> str:
    """Of a capture's photos, cameras and points, wherever it lies; `check` may raise Cancelled."""

    def parts() -> Iterable[bytes]:
        for view in capture.views:
            check()
            yield repr(astuple(replace(view, image_path=Path(view.image_path.name)))).encode()
            if view.image_path.is_file():
                yield view.image_path.read_bytes()
        yield capture.points.tobytes()
        yield capture.point_colors.tobytes()

    return _digest(parts())


def digest_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Of the values of some arrays."""
    return _digest(array.tobytes() for array in arrays)


def digest_folder(folder: Path) -> str:
    """Of all files in a folder and below, with their names."""
    return _digest(_contents(folder, (path for path in folder.rglob("*") if path.is_file())))


def digest_code(*parts: str) -> str:
    """Of some modules and packages of this program, such as "lift" or "config.py"."""
    paths = [PACKAGE / part for part in parts]
    files = [path for path in paths if path.is_file()]
    folders = [path for path in paths if path.is_dir()]
    files += [file for folder in folders for file in folder.rglob("*")]
    return _digest(_contents(PACKAGE, (file for file in files if file.suffix in CODE_ENDINGS)))


def digest_words(value: object) -> str:
    """Of anything that JSON can write."""
    return _digest([json.dumps(value).encode()])


def _contents(root: Path, files: Iterable[Path]) -> Iterable[bytes]:
    for path in sorted(files):
        yield path.relative_to(root).as_posix().encode()
        yield path.read_bytes()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]
