# SPDX-License-Identifier: GPL-3.0-or-later
"""The job folder, shared by Blender and the backend: request, events, heartbeat, lock, cancel."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Protocol

from unified_lift.config import DEVICES, JOINT, MASKS_SAM, METHODS, PRESETS, Settings

SCHEMA_VERSION = 1
MAX_SEED = 2**31  # as Blender's integers

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

HEARTBEAT_SECONDS = 0.5
TAIL_BYTES = 1 << 16  # of the events: longer than any one of them
ESTIMATE_SECONDS = 2.0  # the time left is told when this much work was seen
PLAN_SECONDS = 10.0  # the plan counts as if it had held for so long before
HUNG_SECONDS = 60.0  # a worker that holds the lock and is silent for longer counts as hung

EXIT_DONE, EXIT_FAILED, EXIT_LOCKED, EXIT_CANCELLED = 0, 1, 75, 130
TERMINAL_EVENTS = frozenset({"done", "failed", "cancelled"})

log = logging.getLogger(__name__)


class JobError(Exception):
    """What a user can mend: the message says what is wrong, with the value, and what to do."""


class Cancelled(Exception):
    """The user asked for a stop; raised inside the algorithms by `Report.check`."""


class Locked(Exception):
    """Another worker is at work in this job folder."""


@dataclass(frozen=True)
class JobRequest:
    """What a job computes: the content of job.json, immutable once written.

    Attributes:
        capture: absolute path of the capture folder.
        settings: everything that the result depends on, besides the capture.
    """

    capture: str
    settings: Settings = field(default_factory=Settings)


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


class Report(Protocol):
    """What the algorithms are given to tell how far they are. They know nothing of jobs."""

    def stage(self, name: str, label: str) -> None:
        """Begin a stage; `label` is shown to the user."""

    def progress(self, step: int, total: int, message: str = "") -> None:
        """Tell that `step` of `total` is done. Raises Cancelled like `check`."""

    def preview(self, image: str, labels: str, caption: str) -> None:
        """Show two pictures, paths relative to the job folder ('' = none)."""

    def warning(self, text: str) -> None:
        """Tell the user something that did not stop the work."""

    def check(self) -> None:
        """Raise Cancelled if the user asked for a stop."""


class SilentReport:
    """A report that nobody reads: library use and tests."""

    def stage(self, name: str, label: str) -> None:
        """Ignore."""

    def progress(self, step: int, total: int, message: str = "") -> None:
        """Ignore."""

    def preview(self, image: str, labels: str, caption: str) -> None:
        """Ignore."""

    def warning(self, text: str) -> None:
        """Log."""
        log.warning(text)

    def check(self) -> None:
        """Never cancelled."""


# ---- request


def write_job(job_dir: Path, request: JobRequest) -> None:
    """Make the job folder and its job.json; where that fails, no empty folder stays behind.

    Raises:
        JobError: the folder holds a job or anything else, or cannot be written.
    """
    path = Path(job_dir) / REQUEST_FILE
    try:
        check_settings(request.settings)
        if path.exists():
            raise JobError(
                f"{job_dir} already holds a job. Choose another folder for the new one, or delete "
                "that one."
            )
        own = {EVENTS_FILE, STATUS_FILE, LOCK_FILE, CANCEL_FILE, LOG_FILE, f"{REQUEST_FILE}.part"}
        if path.parent.is_dir() and {child.name for child in path.parent.iterdir()} - own:
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


# ---- events


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


def _last_event(job_dir: Path) -> dict:
    """The last whole event, {} without one; a poll must not read hours of events each time."""
    path = job_dir / EVENTS_FILE
    if not path.exists():
        return {}
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        data = file.read(TAIL_BYTES)
    lines = data[: data.rfind(b"\n") + 1].splitlines()
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
    last = _last_event(job_dir)
    status = _read_status(job_dir)
    age = max(0.0, time.time() - status.get("t", 0.0)) if status else float("inf")
    return JobState(_state_name(job_dir, last, age), last, status.get("pid", 0), age)


def _state_name(job_dir: Path, last: dict, age: float) -> str:
    if is_locked(job_dir):
        return "hung" if HUNG_SECONDS < age < float("inf") else "running"
    finished = {"done": "finished", "failed": "failed", "cancelled": "cancelled"}
    return finished.get(last.get("event", ""), "crashed" if last else "new")


def _read_status(job_dir: Path) -> dict:
    path = job_dir / STATUS_FILE
    status = read_json(path) if path.exists() else {}
    return status if isinstance(status.get("t"), float) else {}


def request_cancel(job_dir: Path) -> None:
    """Ask the worker for a stop; it obeys within a step."""
    (Path(job_dir) / CANCEL_FILE).touch()


# ---- the worker's side


class JobReport:
    """Report into a job folder: events, heartbeat and the estimate of the time left.

    Use it as a context manager: the heartbeat thread lives as long as the block. The estimate
    needs the expected seconds of each stage (`plan`), refined by what the stages really take.
    """

    def __init__(self, job_dir: Path, show: Callable[[dict], None] = lambda event: None) -> None:
        self.job_dir = Path(job_dir)
        self.seconds: dict[str, float] = {}  # finished stages
        self._show = show  # called with each event
        self._plan: dict[str, float] = {}
        self._stage = ""
        self._stage_start = time.monotonic()
        self._step = (0, 1)
        self._last_progress = 0.0
        self._fraction = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> JobReport:
        _end_broken_line(self.job_dir / EVENTS_FILE)
        if _last_event(self.job_dir).get("event") == "cancelled":  # that cancel has been obeyed
            (self.job_dir / CANCEL_FILE).unlink(missing_ok=True)
        self._write_status()  # who has told of its start has a heartbeat, too
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def emit(self, event: str, **data: object) -> None:
        """Append one event."""
        record = {"t": round(time.time(), 3), "event": event, **data}
        with open(self.job_dir / EVENTS_FILE, "ab") as file:
            file.write((json.dumps(record) + "\n").encode())
        self._show(record)

    def plan(self, **seconds: float) -> None:
        """Set or correct the expected seconds of stages, in the order in which they will run."""
        self._plan.update(seconds)

    def stage(self, name: str, label: str) -> None:
        """Begin a stage; the one before it ends."""
        self.check()
        self.end_stage()
        self._stage, self._stage_start, self._step = name, time.monotonic(), (0, 1)
        self._last_progress = 0.0
        self.emit("stage", stage=name, label=label)

    def end_stage(self) -> None:
        """Note the seconds of the stage that ends."""
        if self._stage:
            self.seconds[self._stage] = round(time.monotonic() - self._stage_start, 2)
            self._stage = ""

    def progress(self, step: int, total: int, message: str = "") -> None:
        """Tell that `step` of `total` is done; an event at most every half second."""
        self.check()
        self._step = (step, max(total, 1))
        now = time.monotonic()
        if now - self._last_progress < HEARTBEAT_SECONDS and step < total:
            return
        self._last_progress = now
        fraction, left = self.estimate()
        self._fraction = max(self._fraction, fraction)  # a bar that runs back irritates
        self.emit(
            "progress",
            stage=self._stage,
            step=step,
            total=total,
            fraction=round(self._fraction, 4),
            seconds_left=None if left is None else round(left, 1),
            message=message,
        )

    def estimate(self) -> tuple[float, float | None]:
        """Overall fraction done, and seconds left (None before anything is known).

        The plan was made on another machine: how long the work so far took, compared to its
        plan, tells how long the rest will take on this one. Stages without a plan tell nothing.
        """
        done = sum(self.seconds.values())
        elapsed = time.monotonic() - self._stage_start if self._stage else 0.0
        share = self._step[0] / self._step[1]
        if not self._plan or (share == 0 and done < ESTIMATE_SECONDS):
            return 0.0, None
        expected = self._plan.get(self._stage, 0.0)
        later = sum(self._plan[name] for name in self._plan if name not in self.seconds)
        later -= expected if self._stage not in self.seconds else 0.0
        known = [name for name in self.seconds if name in self._plan]
        took = sum(self.seconds[name] for name in known) + elapsed
        planned = sum(self._plan[name] for name in known) + share * expected
        speed = (took + PLAN_SECONDS) / (planned + PLAN_SECONDS)
        # What the stage itself shows counts for more than the plan as it goes on.
        shown = elapsed / share if share > 0 else expected * speed
        trust = share**2
        rest = (1 - share) * ((1 - trust) * expected * speed + trust * shown)
        left = rest + later * speed
        return min(1.0, (done + elapsed) / max(done + elapsed + left, 1e-6)), left

    def preview(self, image: str, labels: str, caption: str) -> None:
        """Announce two pictures that were written into the job folder."""
        self.emit("preview", image=image, labels=labels, caption=caption)

    def warning(self, text: str) -> None:
        """Tell the user something that did not stop the work."""
        self.emit("warning", message=text)

    def check(self) -> None:
        """Raise Cancelled if the cancel file is there."""
        if (self.job_dir / CANCEL_FILE).exists():
            raise Cancelled

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            self._write_status()

    def _write_status(self) -> None:
        step, total = self._step
        status = {"pid": os.getpid(), "t": time.time(), "stage": self._stage}
        try:
            write_json(self.job_dir / STATUS_FILE, {**status, "step": step, "total": total})
        except OSError as error:  # a full disk must not kill the work that frees it
            log.warning("no heartbeat: %s", error)


def _end_broken_line(path: Path) -> None:
    """Cut off the half line that a killed worker left, so that the next event has its own."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                break
            end -= 1
        if end < size:
            file.truncate(end)


class JobLock:
    """The OS lock of a job folder, held as long as the block: it dies with the process."""

    def __init__(self, job_dir: Path) -> None:
        self.path = Path(job_dir) / LOCK_FILE
        self._file: IO[bytes] | None = None

    def __enter__(self) -> JobLock:
        self._file = open(self.path, "ab")
        # A probe (`is_locked`) holds the lock for a moment: try a few times before refusing.
        for attempt in range(6):
            if _try_lock(self._file):
                return self
            if attempt < 5:
                time.sleep(0.1)
        self._file.close()
        raise Locked(f"Another process is at work in {self.path.parent}.")

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()


def is_locked(job_dir: Path) -> bool:
    """Whether a worker lives in this job folder."""
    path = Path(job_dir) / LOCK_FILE
    if not path.exists():
        return False
    # Reading is enough to probe, but for Windows and network drives, which want to write.
    mode = "rb+" if os.access(path, os.W_OK) else "rb"
    with open(path, mode) as file:
        return not _try_lock(file)


if os.name == "nt":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        return True
else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


# ---- files


def write_json(path: Path, data: object) -> None:
    """Write JSON under a temporary name, then rename: readers see the old file or the new one."""
    partial = path.with_name(path.name + ".part")
    text = json.dumps(data, indent=1, allow_nan=False)
    try:
        partial.write_text(text, encoding="utf-8")
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    replace(partial, path)


def replace(source: Path, target: Path) -> None:
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
        data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        name, folder = Path(path).name, Path(path).parent
        raise JobError(f"No {name} in {folder}. Choose the folder that holds it.") from error
    except OSError as error:
        raise JobError(describe_os_error(error, Path(path))) from error
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
    if error.errno == errno.ENOENT:
        return f"There is no {where}. It was moved or deleted, or is named otherwise."
    return f"{where}: {error.strerror or error}."
