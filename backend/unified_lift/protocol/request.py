# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job computes: job.json."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from unified_lift.config import DEVICES, JOINT, MASKS_SAM, METHODS, PRESETS, Settings
from unified_lift.protocol.events import last_event
from unified_lift.protocol.files import (
    CAMERAS_FILE,
    CANCEL_FILE,
    EVENTS_FILE,
    LOCK_FILE,
    LOG_FILE,
    REQUEST_FILE,
    STATUS_FILE,
    JobError,
    describe_os_error,
    read_json,
    write_json,
)
from unified_lift.protocol.lock import is_locked

SCHEMA_VERSION = 1
MAX_SEED = 2**31  # as Blender's integers


@dataclass(frozen=True)
class JobRequest:
    """What a job computes: the content of job.json, immutable once written.

    Attributes:
        capture: absolute path of the capture folder.
        settings: everything that the result depends on, besides the capture.
    """

    capture: str
    settings: Settings = field(default_factory=Settings)


def write_job(job_dir: Path, request: JobRequest) -> None:
    """Make the job folder and its job.json; where that fails, no empty folder stays behind.

    A job that failed before it made anything gives way: what it was asked for was a slip.

    Raises:
        JobError: the folder holds a job or anything else, or cannot be written.
    """
    path = Path(job_dir) / REQUEST_FILE
    try:
        check_settings(request.settings)
        own = {EVENTS_FILE, STATUS_FILE, LOCK_FILE, CANCEL_FILE, LOG_FILE, f"{REQUEST_FILE}.part"}
        made = path.parent.is_dir() and {child.name for child in path.parent.iterdir()} - own
        has_failed = last_event(path.parent).get("event") == "failed"
        nothing = made and made <= {REQUEST_FILE, CAMERAS_FILE}  # no splats, no undistorted photos
        if nothing and has_failed and not is_locked(path.parent):
            for name in (EVENTS_FILE, CANCEL_FILE, LOG_FILE, *made):
                (path.parent / name).unlink(missing_ok=True)
        elif path.exists():
            raise JobError(
                f"{job_dir} already holds a job. Choose another folder for the new one, or delete "
                "that one."
            )
        elif made:
            raise JobError(
                f"{job_dir} holds other files, which a job would overwrite. Choose a new folder."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema": SCHEMA_VERSION, **asdict(request)})
    except OSError as error:
        raise JobError(describe_os_error(error, path.parent)) from error
    finally:
        if not path.exists():
            with suppress(OSError):  # what is not empty cannot be removed, and stays
                path.parent.rmdir()


def read_job(job_dir: Path) -> JobRequest:
    """Read job.json.

    Raises:
        JobError: there is none, it is not JSON, or another version wrote it.
    """
    path = Path(job_dir) / REQUEST_FILE
    data = read_json(path)
    if data.get("schema") != SCHEMA_VERSION:
        raise JobError(
            f"{path} has schema {data.get('schema')}, this version reads {SCHEMA_VERSION}. "
            "Run the job with the version that wrote it, or start a new one."
        )
    settings = data.get("settings", {})
    if not isinstance(data.get("capture"), str) or not isinstance(settings, dict):
        raise JobError(f"{path} is no valid request (capture missing, or settings no table).")
    known = {entry.name: type(entry.default) for entry in fields(Settings)}
    wrong = [name for name in settings if type(settings[name]) is not known.get(name)]
    if wrong:
        raise JobError(f"{path} is no valid request: setting '{wrong[0]}' is not understood.")
    request = JobRequest(data["capture"], Settings(**settings))
    check_settings(request.settings)
    return request


def check_settings(settings: Settings) -> None:
    """Raise JobError for a value that no job can have."""
    if settings.method not in METHODS or settings.device not in DEVICES:
        raise JobError(
            f"There is no method '{settings.method}' or no device '{settings.device}'. Choose one "
            f"of {', '.join(METHODS)} and one of {', '.join(DEVICES)}."
        )
    if settings.preset not in PRESETS:
        raise JobError(
            f"There is no preset '{settings.preset}'. Choose one of {', '.join(PRESETS)}."
        )
    if not 0 <= settings.seed < MAX_SEED:
        raise JobError(f"The seed {settings.seed} is out of range. Choose 0 to {MAX_SEED - 1}.")
    if settings.method == JOINT and settings.splat:
        raise JobError(
            f"The method {JOINT} trains splats. Leave out --splat, or take unified-lift."
        )
    if not settings.masks or (settings.masks == MASKS_SAM and not settings.sam_checkpoint):
        raise JobError(
            "The masks need more: name a folder, or with 'sam' a checkpoint (--sam-checkpoint)."
        )
