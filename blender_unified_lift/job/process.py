# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts and stops the other program, which outlives this one. No bpy here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from unified_lift.protocol import (
    CANCEL_FILE,
    LOG_FILE,
    JobError,
    JobState,
    describe_os_error,
)

TERMINATE_SECONDS = 15.0  # a worker that has not obeyed the cancel file by then is told to end
KILL_SECONDS = 20.0  # and by then it is ended
_DROPPED = ("PYTHON", "PIP_", "UV_", "VIRTUAL_ENV", "CONDA", "LD_PRELOAD", "OCIO", "SYCL_UR_")


def start(python: Path, job_dir: Path) -> subprocess.Popen:
    """Start the worker of a job in a session of its own: quitting Blender does not end it.

    Raises:
        JobError: the Python does not start, or the job folder cannot be written.
    """
    command = [str(python), "-I", "-u", "-X", "utf8", "-m", "unified_lift", "run", str(job_dir)]
    try:
        with open(job_dir / LOG_FILE, "ab") as log:
            return subprocess.Popen(
                command,
                cwd=job_dir,
                env=clean_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **_detached(),
            )
    except OSError as error:
        raise JobError(describe_os_error(error, job_dir)) from error


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what belongs to Blender's Python or to the user's shell."""
    kept = {name: value for name, value in environ.items() if not name.upper().startswith(_DROPPED)}
    threads = str(max(1, (os.cpu_count() or 1) - 1))  # one core is Blender's
    return {**kept, "PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}


def _detached() -> dict[str, object]:
    if os.name != "nt":
        return {"start_new_session": True}
    flags = (
        subprocess.CREATE_NO_WINDOW
        | subprocess.CREATE_NEW_PROCESS_GROUP
        | subprocess.BELOW_NORMAL_PRIORITY_CLASS
    )
    return {"creationflags": flags}


def insist_on_cancel(job_dir: Path, state: JobState) -> None:
    """End a worker that has ignored the cancel file for too long; call it again and again.

    Args:
        job_dir: the job folder.
        state: of this job, with its lock held: `state.pid` lives and is the worker.
    """
    try:
        waited = time.time() - (job_dir / CANCEL_FILE).stat().st_mtime
    except FileNotFoundError:
        return
    if waited > TERMINATE_SECONDS and state.pid:
        _end(state.pid, force=waited > KILL_SECONDS)


def _end(pid: int, force: bool) -> None:
    if os.name == "nt":
        subprocess.run(["taskkill", "/PID", str(pid), "/T", "/F"], capture_output=True, check=False)
        return
    number = signal.SIGKILL if force else signal.SIGTERM
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in this moment
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def last_log_lines(job_dir: Path, count: int = 20) -> list[str]:
    """The end of what a worker printed, [] if nothing."""
    try:
        text = (job_dir / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
