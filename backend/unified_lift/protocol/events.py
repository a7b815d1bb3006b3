# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job tells while it runs: its events, and the state that they and the lock show."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from unified_lift.protocol.files import (
    CANCEL_FILE,
    EVENTS_FILE,
    REQUEST_FILE,
    STATUS_FILE,
    JobError,
    parse_json,
)
from unified_lift.protocol.lock import is_locked

TAIL_BYTES = 1 << 16  # of the events: longer than any one of them
HUNG_SECONDS = 60.0  # a worker that holds the lock and is silent for longer counts as hung
ENDS = {"done": "finished", "failed": "failed", "cancelled": "cancelled"}  # event: state
EXIT_DONE, EXIT_FAILED, EXIT_LOCKED, EXIT_CANCELLED = 0, 1, 75, 130  # of a worker


@dataclass(frozen=True)
class JobState:
    """What can be told of a job from its folder.

    Attributes:
        name: new, running, hung, finished, failed, cancelled or crashed.
        event: the last event, {} before the first.
        pid: process id of the worker that wrote the last heartbeat, 0 if none did.
        age: seconds since that heartbeat, infinite if there was none.
    """

    name: str
    event: dict
    pid: int
    age: float


def read_events(job_dir: Path, offset: int = 0) -> tuple[list[dict], int]:
    """Read the whole lines of events.jsonl that follow byte `offset`.

    Returns:
        The events in their order, and the offset for the next call.

    Raises:
        JobError: a whole line is not a JSON object.
    """
    path = Path(job_dir) / EVENTS_FILE
    if not path.exists():
        return [], offset
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(max(0, os.fstat(file.fileno()).st_size - offset))
    whole = data[: data.rfind(b"\n") + 1]
    events = [_parse_event(line, path) for line in whole.splitlines() if line.strip()]
    return events, offset + len(whole)


def last_event(job_dir: Path) -> dict:
    """The last whole event, {} without one; a poll must not read hours of events each time."""
    path = job_dir / EVENTS_FILE
    if not path.exists():
        return {}
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        data = file.read(TAIL_BYTES)
    lines = [line for line in data[: data.rfind(b"\n") + 1].splitlines() if line.strip()]
    return _parse_event(lines[-1], path) if lines else {}


def _parse_event(line: bytes, path: Path) -> dict:
    try:
        event = json.loads(line)
        if not isinstance(event, dict) or "event" not in event:
            raise ValueError("a line is no event")
    except ValueError as error:
        raise JobError(f"{path} is damaged ({error}). Start the job again.") from error
    return event


def job_state(job_dir: Path) -> JobState:
    """Derive the state of a job: the lock says whether a worker lives, the last event the rest.

    Raises:
        JobError: the folder holds no job.
    """
    job_dir = Path(job_dir)
    if not (job_dir / REQUEST_FILE).is_file():
        raise JobError(f"{job_dir} holds no job (no {REQUEST_FILE}). It may have been moved.")
    last = last_event(job_dir)
    status = _read_status(job_dir)
    age = max(0.0, time.time() - status.get("t", 0.0)) if status else float("inf")
    return JobState(_state_name(job_dir, last, age), last, status.get("pid", 0), age)


def _state_name(job_dir: Path, last: dict, age: float) -> str:
    if is_locked(job_dir):
        return "hung" if HUNG_SECONDS < age < float("inf") else "running"
    return ENDS.get(last.get("event", ""), "crashed" if last else "new")


def _read_status(job_dir: Path) -> dict:
    path = job_dir / STATUS_FILE
    try:
        data = path.read_bytes()  # an OSError passes: it may be over when the next poll comes
    except FileNotFoundError:
        return {}
    status = parse_json(data, path)
    return status if isinstance(status.get("t"), float) else {}


def request_cancel(job_dir: Path) -> None:
    """Ask the worker for a stop; it obeys within a step."""
    (Path(job_dir) / CANCEL_FILE).touch()


def end_broken_line(path: Path) -> None:
    """Cut off what a killed worker, or a full disk, left at the end and what is no whole event."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        data = file.read(os.fstat(file.fileno()).st_size)
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    while lines and not _is_event(lines[-1], path):
        lines.pop()
    size = sum(map(len, lines))
    if size < len(data):
        os.truncate(path, size)


def _is_event(line: bytes, path: Path) -> bool:
    try:
        _parse_event(line, path)
    except JobError:
        return False
    return True
