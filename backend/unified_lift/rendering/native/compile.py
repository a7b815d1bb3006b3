# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiles the native core for any platform: python -m unified_lift.rendering.native.compile."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from unified_lift.protocol import JobError
from unified_lift.rendering.native.targets import (
    LIBRARY_DIR,
    NATIVE_DIR,
    TARGETS,
    discard,
    host_targets,
    is_whole,
    library_path,
    sign,
)

MAIN_SOURCE = NATIVE_DIR / "core.cpp"
# No C++ standard library: zig would have to build it for each target, and the core needs none.
# No -ffast-math either: it can switch the whole process to flush-to-zero when it is loaded.
FLAGS = (
    *("-x", "c++", "-std=c++17", "-O3", "-Wall", "-Wextra", "-shared", "-s"),
    *("-fvisibility=hidden", "-nostdlib++", "-nostdinc++", "-fno-exceptions", "-fno-rtti"),
    *("-fno-math-errno", "-fno-trapping-math", "-falign-loops=64"),
)

log = logging.getLogger(__name__)


def compiler_options(name: str) -> list[str]:
    """What the compiler is told about a target, besides the source and the output."""
    target = TARGETS[name]
    position = [] if target.system == "win32" else ["-fPIC"]
    return ["-target", target.triple, f"-mcpu={target.cpu}", *FLAGS, *position]


def source_hash(name: str) -> str:
    """Hash of the sources and options of a target; its library carries it."""
    digest = hashlib.sha256(" ".join(compiler_options(name)).encode())
    for path in sorted([*NATIVE_DIR.glob("*.h"), *NATIVE_DIR.glob("*.cpp")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def is_current(name: str) -> bool:
    """Whether the library of a target is whole, and was built from the present sources."""
    path = library_path(name)
    return is_whole(path) and source_hash(name).encode() in path.read_bytes()


def compile_target(name: str) -> Path:
    """Build the library of one target and return its path.

    Raises:
        JobError: the `ziglang` package is missing, or the compiler failed.
    """
    if find_spec("ziglang") is None:
        raise JobError(
            f"The native core cannot be compiled: {sys.executable} has no package 'ziglang'. "
            "Install it with 'pip install ziglang'."
        )
    path = library_path(name)
    LIBRARY_DIR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LIBRARY_DIR) as build_dir:
        built = Path(build_dir) / path.name
        command = [sys.executable, "-m", "ziglang", "c++", *compiler_options(name)]
        command += [f"-DUL_SOURCE_HASH={source_hash(name)}", str(MAIN_SOURCE), "-o", str(built)]
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise JobError(f"Compiling the native core for {name} failed; see above.") from error
        os.replace(built, path)  # a running process keeps the library it has loaded
    sign(path)
    return path


def compile_targets(names: list[str], force: bool = False) -> None:
    """Build the libraries that are missing or built from other sources, and tell of these.

    Those of other targets are removed where they are of other sources: a wheel would pack them.
    """
    for name in names:
        if force or not is_current(name):
            log.info("Compiling the native core for %s", name)
            log.info("Wrote %s", compile_target(name))
    for name in TARGETS:
        if name not in names and library_path(name).is_file() and not is_current(name):
            discard(library_path(name))
            log.info("Removed %s, built from other sources", library_path(name))


def main() -> int:
    """Command line: targets by name, `all`, or none for the machine it runs on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, "all", []], default=[])
    parser.add_argument("--force", action="store_true", help="compile even if nothing changed")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = list(TARGETS) if "all" in arguments.targets else arguments.targets
    names = names or host_targets()[:1]
    if not names:
        log.warning("no target fits this machine; it will render with the reference engine")
    try:
        compile_targets(names, arguments.force)
    except JobError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
