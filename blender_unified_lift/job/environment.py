# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend's Python: found, tried, compared with the add-on's contract. No bpy here."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from unified_lift import __version__ as CONTRACT_VERSION
from unified_lift.protocol import JobError

CHECK_SECONDS = 60.0  # a cold disk takes several seconds
_IN_ENVIRONMENT = ("bin/python", "bin/python3", "Scripts/python.exe", "python.exe")
_NEEDED = ("torch", "scipy", "PIL", "skimage")
_HINT = "Choose the Python of the backend's environment in the add-on's preferences."
_PROBE = f"""
import importlib.util, json
version = ""
if importlib.util.find_spec("unified_lift"):
    from unified_lift import __version__ as version
missing = [name for name in {_NEEDED!r} if importlib.util.find_spec(name) is None]
print(json.dumps({{"version": version, "missing": missing}}))
"""


@dataclass(frozen=True)
class Backend:
    """A backend that was found to be usable."""

    python: Path
    version: str


_last_checks: dict[str, Backend | str] = {}  # by preference: the backend, or what is wrong


def last_check(preference: str) -> Backend | str | None:
    """What the last `check` of this preference found; None before it. Cheap: for drawing."""
    return _last_checks.get(preference)


def check(preference: str) -> Backend:
    """Find the backend and try it. Takes a fraction of a second.

    Args:
        preference: path of a Python, or of the folder of its environment.

    Raises:
        JobError: what is wrong with it and what to do.
    """
    try:
        backend = _try(find_python(preference))
    except JobError as error:
        _last_checks[preference] = str(error)
        raise
    _last_checks[preference] = backend
    return backend


def find_python(preference: str) -> Path:
    """The interpreter that a preference means; links are kept: they make the environment.

    Raises:
        JobError: none there.
    """
    if not preference.strip():
        raise JobError(f"No Backend Python is set. {_HINT}")
    path = Path(os.path.abspath(os.path.expanduser(preference.strip())))
    if path.is_dir():
        inside = [path / name for name in _IN_ENVIRONMENT if (path / name).is_file()]
        if not inside:
            raise JobError(f"There is no Python in the folder {path}. {_HINT}")
        return inside[0]
    if not path.is_file():
        raise JobError(f"There is no Backend Python at {path}. {_HINT}")
    return path


def _try(python: Path) -> Backend:
    found = _probe(python)
    if not found["version"]:
        raise JobError(f"The backend (unified-lift) is not installed in {python}. {_HINT}")
    if found["version"] != CONTRACT_VERSION:
        raise JobError(
            f"The backend in {python} has version {found['version']}, this add-on needs "
            f"{CONTRACT_VERSION}. Install the matching backend there, or choose another Python."
        )
    if found["missing"]:
        raise JobError(
            f"The backend in {python} lacks {', '.join(found['missing'])}. "
            "Install unified-lift[run] there, or choose another Python."
        )
    return Backend(python, found["version"])


def _probe(python: Path) -> dict:
    try:
        done = subprocess.run(
            [str(python), "-I", "-X", "utf8", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=CHECK_SECONDS,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            check=True,
        )
        return json.loads(done.stdout)
    except OSError as error:
        raise JobError(f"{python} does not start: {error.strerror}. {_HINT}") from error
    except subprocess.TimeoutExpired as error:
        raise JobError(f"{python} gave no answer for {CHECK_SECONDS:.0f} s. {_HINT}") from error
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout).strip().splitlines()[-1:] or ["no message"]
        raise JobError(f"{python} does not work as a Python ({words[0]}). {_HINT}") from error
    except ValueError as error:
        raise JobError(f"{python} is no Python 3. {_HINT}") from error
