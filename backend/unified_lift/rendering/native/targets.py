# SPDX-License-Identifier: GPL-3.0-or-later
"""The platforms that the native core is built for, and which of them this machine can run."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import sys
from pathlib import Path
from typing import NamedTuple

NATIVE_DIR = Path(__file__).parent
LIBRARY_DIR = NATIVE_DIR / "lib"

# What an x86 processor must have, by the names of Linux, macOS (sysctl hw.optional) and Windows
# (winnt.h, PF_*_INSTRUCTIONS_AVAILABLE); there one stands for the rest.
AVX2 = (("avx2", "fma"), "avx2_0", 40)
AVX512 = (("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"), "avx512vl", 41)


class Target(NamedTuple):
    """One library: what the compiler calls its platform, and what it asks of the machine."""

    system: str  # as sys.platform
    machine: str  # x86_64 or aarch64
    needs: tuple | None  # AVX2, AVX512 or nothing
    triple: str
    cpu: str
    suffix: str


# The best library for a machine stands before the ones that also fit.
TARGETS: dict[str, Target] = {
    "linux-x86_64-v4": Target(
        "linux", "x86_64", AVX512, "x86_64-linux-gnu.2.17", "x86_64_v4", ".so"
    ),
    "linux-x86_64-v3": Target("linux", "x86_64", AVX2, "x86_64-linux-gnu.2.17", "x86_64_v3", ".so"),
    "linux-x86_64-v2": Target("linux", "x86_64", None, "x86_64-linux-gnu.2.17", "x86_64_v2", ".so"),
    "linux-aarch64": Target("linux", "aarch64", None, "aarch64-linux-gnu.2.17", "generic", ".so"),
    "windows-x86_64-v4": Target(
        "win32", "x86_64", AVX512, "x86_64-windows-gnu", "x86_64_v4", ".dll"
    ),
    "windows-x86_64-v3": Target("win32", "x86_64", AVX2, "x86_64-windows-gnu", "x86_64_v3", ".dll"),
    "windows-x86_64-v2": Target("win32", "x86_64", None, "x86_64-windows-gnu", "x86_64_v2", ".dll"),
    "macos-arm64": Target("darwin", "aarch64", None, "aarch64-macos.11.0", "apple_m1", ".dylib"),
    "macos-x86_64-v3": Target("darwin", "x86_64", AVX2, "x86_64-macos.11.0", "x86_64_v3", ".dylib"),
    "macos-x86_64-v2": Target("darwin", "x86_64", None, "x86_64-macos.11.0", "x86_64_v2", ".dylib"),
}


def library_path(name: str) -> Path:
    """Where the library of a target lies."""
    return LIBRARY_DIR / f"{name}{TARGETS[name].suffix}"


def sign(library: Path) -> None:
    """Write the SHA-256 of a library beside it."""
    _checksum_path(library).write_text(_checksum(library), encoding="ascii")


def discard(library: Path) -> None:
    """Remove a library, if it is there, and its signature."""
    for path in (library, _checksum_path(library)):
        path.unlink(missing_ok=True)


def is_whole(library: Path) -> bool:
    """Whether a library is there, to the last byte as it was signed.

    Half of one, as an interrupted copy leaves it, may well load, and then crashes the process.
    """
    signed = _checksum_path(library)
    if not library.is_file() or not signed.is_file():
        return False
    return signed.read_bytes() == _checksum(library).encode()


def _checksum_path(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def host_targets() -> list[str]:
    """Names of the targets that run on this machine, the fastest first."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    return [
        name
        for name, target in TARGETS.items()
        if (target.system, target.machine) == (sys.platform, machine)
        and (target.needs is None or has(*target.needs))
    ]


def has(linux_flags: tuple[str, ...], macos_name: str, windows_feature: int) -> bool:
    """Whether this x86 processor has a set of instructions; see `AVX2`."""
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
        return bool(kernel.IsProcessorFeaturePresent(windows_feature))
    if sys.platform == "darwin":
        value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        libc = ctypes.CDLL(None)
        name = f"hw.optional.{macos_name}".encode()
        failed = libc.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
        return not failed and value.value == 1
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    return set(linux_flags) <= set(flags)
