# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts and stops the other program, which outlives this one. No bpy here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
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
        state: of this job. `state.pid` may be stale, its number another program's by now: only
            a process that is a worker of this job is ended.
    """
    try:
        waited = time.time() - (job_dir / CANCEL_FILE).stat().st_mtime
    except FileNotFoundError:
        return
    if waited > TERMINATE_SECONDS and is_worker(state.pid, job_dir):
        _end(state.pid, force=waited > KILL_SECONDS)


def is_worker(pid: int, job_dir: Path) -> bool:
    """Whether a process of this machine was started by `start` for this job: numbers are reused."""
    command = _command_line(pid) if pid > 0 else ""
    return "-m unified_lift run" in command and command.rstrip('" \n').endswith(str(job_dir))


def _command_line(pid: int) -> str:
    """The command that a process was started with, '' if there is none."""
    if sys.platform == "linux":  # where `ps` may be missing
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    if os.name == "nt":
        query = f"(Get-CimInstance Win32_Process -Filter 'ProcessId={pid}').CommandLine"
        utf8 = "[Console]::OutputEncoding = [Text.Encoding]::UTF8"
        command = ["powershell", "-NoProfile", "-Command", f"{utf8}; {query}"]
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        check=False,  # there is no such process
    ).stdout


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


def last_log_line(job_dir: Path) -> str:
    """The last line that a worker printed, '' if there is nothing that can be read."""
    try:
        text = (job_dir / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
