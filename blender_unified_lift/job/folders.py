# SPDX-License-Identifier: GPL-3.0-or-later
"""Where jobs lie. No bpy here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from unified_lift import protocol
from unified_lift.protocol import JobError


def new_job_dir(jobs_dir: Path, name: str) -> Path:
    """Make a folder with the first free number.

    Raises:
        JobError: it cannot be made.
    """
    try:
        jobs_dir.mkdir(parents=True, exist_ok=True)
        number = 1
        while (jobs_dir / f"{name}_{number:03d}").exists():
            number += 1
        job_dir = jobs_dir / f"{name}_{number:03d}"
        job_dir.mkdir()
    except OSError as error:
        raise JobError(protocol.describe_os_error(error, jobs_dir)) from error
    return job_dir


def jobs_dir_of(preference: str, blend_path: str) -> Path:
    """Where jobs go: the preference, else beside the saved .blend, else the user's data."""
    if preference:
        return Path(os.path.abspath(os.path.expanduser(preference)))
    if blend_path:
        blend = Path(blend_path)
        return blend.with_name(f"{blend.stem}_unified_lift")
    return _user_data_dir() / "ulift" / "jobs"


def _user_data_dir() -> Path:
    if os.name == "nt":
        return Path(os.environ["LOCALAPPDATA"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
