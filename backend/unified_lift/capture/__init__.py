# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures in: photos with cameras of any format as one `Capture`. Readers need numpy only."""

from __future__ import annotations

import os
from pathlib import Path

from unified_lift.capture.cameras import read_cameras, write_cameras
from unified_lift.capture.colmap import find_model, read_colmap
from unified_lift.capture.origin import near_origin
from unified_lift.capture.transforms import find_transforms, read_transforms
from unified_lift.capture.views import Capture, View
from unified_lift.protocol import JobError

__all__ = ["Capture", "View", "read_cameras", "read_capture", "write_cameras"]


def read_capture(path: Path | str, with_points: bool = True) -> Capture:
    """Read a capture folder, or one named by its transforms.json; the format is found out.

    Where a folder has both, transforms.json gives cameras and split, COLMAP's model the points.
    A capture far from its origin (map coordinates) is moved near it, see `Capture.origin`.

    Args:
        path: of the folder or the file.
        with_points: False leaves the points out, whatever their files hold: many take seconds.

    Raises:
        JobError: no capture, or one that cannot be used; the message says what to do.
    """
    return near_origin(_read(Path(os.path.abspath(path)), with_points))


def _read(path: Path, with_points: bool) -> Capture:
    if path.is_file() and path.suffix == ".json":
        return read_transforms(path, with_points)
    if not path.is_dir():
        raise JobError(f"There is no folder {path}. Choose the folder of a capture.")
    transforms_path = find_transforms(path)
    if transforms_path is not None:
        return read_transforms(transforms_path, with_points)
    if find_model(path) is not None:
        return read_colmap(path, with_points)
    raise JobError(
        f"{path} is no capture: neither transforms.json or transforms_train.json, nor COLMAP's "
        "cameras and images (.bin or .txt) there, in sparse or in sparse/0. Choose the folder "
        "that holds them and the photos."
    )
