# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark ran on: the machine, the versions, and the memory that it held."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from pathlib import Path

import torch

from unified_lift import __version__

MEMORY_FILE = Path("/proc/self/status")  # Linux; elsewhere memory is not measured


def held_megabytes(name: str) -> float:
    """What `MEMORY_FILE` tells: VmRSS, held now, or VmHWM, the most so far."""
    lines = MEMORY_FILE.read_text().splitlines()
    (held,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(held.split()[1]) / 1024


def machine_words() -> str:
    """The machine, in a few words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processor cores"


def version_words() -> str:
    """The versions of this program, Python and torch."""
    python = f"Python {platform.python_version()}"
    return f"unified-lift {__version__}, {python}, torch {torch.__version__}"


def today() -> str:
    """The date here."""
    return datetime.now().astimezone().date().isoformat()
