# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a job folder: whether a worker lives in it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import IO

from unified_lift.protocol.files import LOCK_FILE


class Locked(Exception):
    """Another worker is at work in this job folder."""


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
