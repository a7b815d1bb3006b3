# SPDX-License-Identifier: GPL-3.0-or-later
"""How the algorithms tell how far they are, and how a worker writes that into its job folder."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from unified_lift.protocol.events import ENDS, end_broken_line, last_event
from unified_lift.protocol.files import CANCEL_FILE, EVENTS_FILE, STATUS_FILE, write_json

HEARTBEAT_SECONDS = 0.5
ESTIMATE_SECONDS = 2.0  # the time left is told when this much work was seen
PLAN_SECONDS = 5.0  # the plan counts as if it had held for so long before

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The user asked for a stop; raised inside the algorithms by `Report.check`."""


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
        end_broken_line(self.job_dir / EVENTS_FILE)
        if last_event(self.job_dir).get("event") in ENDS:  # an older cancel was for that run
            (self.job_dir / CANCEL_FILE).unlink(missing_ok=True)
        self._write_status()  # who has told of its start has a heartbeat, too
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def emit(self, event: str, **data: object) -> None:
        """Append one event, whole or not at all: the next one must not follow half a line."""
        record = {"t": round(time.time(), 3), "event": event, **data}
        path = self.job_dir / EVENTS_FILE
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "ab") as file:
                file.write((json.dumps(record) + "\n").encode())
        except OSError:  # the disk is full
            with suppress(OSError):  # the first error is the one to tell
                os.truncate(path, size)
            raise
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
