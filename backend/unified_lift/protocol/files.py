# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a job folder, and reading and writing JSON so that nothing is ever half there."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

REQUEST_FILE = "job.json"
EVENTS_FILE = "events.jsonl"
STATUS_FILE = "status.json"
LOCK_FILE = "lock"
CANCEL_FILE = "cancel"
LOG_FILE = "log.txt"
CAMERAS_FILE = "cameras.json"
SCENE_FILE = "scene.ply"
OBJECTS_FILE = "objects.json"
FEATURES_FILE = "features.npz"
MASKS_DIR = "masks"
IMAGES_DIR = "images"
CHECKPOINT_DIR = "checkpoint"
PREVIEW_DIR = "preview"


class JobError(Exception):
    """What a user can mend: the message says what is wrong, with the value, and what to do."""


def write_json(path: Path, data: object) -> None:
    """Write JSON as `write_whole` does."""
    write_whole(path, json.dumps(data, indent=1, allow_nan=False).encode())


def write_whole(path: Path, *parts: bytes) -> None:
    """Write under a temporary name, then rename: readers see the old file or the new one."""
    partial = partial_path(path)
    try:
        with open(partial, "wb") as file:
            file.writelines(parts)
        _replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # on a full disk others need the room
        raise


def partial_path(path: Path) -> Path:
    """The temporary name, which only a kill leaves behind."""
    return path.with_name(path.name + ".part")


def _replace(source: Path, target: Path) -> None:
    """Rename over an existing file, trying again while a reader holds it open (Windows)."""
    for _ in range(20):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(0.05)
    os.replace(source, target)


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        JobError: no such file, or not a JSON object.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        name, folder = Path(path).name, Path(path).parent
        raise JobError(f"No {name} in {folder}. Choose the folder that holds it.") from error
    except OSError as error:
        raise JobError(describe_os_error(error, Path(path))) from error
    return parse_json(data, path)


def parse_json(text: bytes, path: Path) -> dict:
    """A JSON object from the bytes of a file; JobError where they are none."""
    try:
        data = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path} is damaged: {error}. Copy or write it again.") from error
    if not isinstance(data, dict):
        raise JobError(f"{path} is damaged: it holds no JSON object.")
    return data


def describe_os_error(error: OSError, path: Path) -> str:
    """Say what an operating system error means for the user and what to do."""
    where = error.filename or path
    if error.errno == errno.ENOSPC:
        return f"The disk is full, {where} could not be written. Free some space and run again."
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"No permission for {where}. Choose a folder that you may read and write."
    if error.errno == errno.EISDIR:
        return f"{where} is a folder. Name a file."
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{where} cannot be a folder: there is a file of that name. Choose another one."
    if error.errno == errno.ENOENT:
        return f"There is no {where}. It was moved or deleted, or is named otherwise."
    return f"{where}: {error.strerror or error}."
