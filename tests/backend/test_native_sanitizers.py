# SPDX-License-Identifier: GPL-3.0-or-later
"""The native core under the compilers' sanitizers: no access out of bounds, nothing undefined."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import unified_lift
from unified_lift.rendering.native import ABI_VERSION
from unified_lift.rendering.native.compile import FLAGS, MAIN_SOURCE, compiler_options
from unified_lift.rendering.native.targets import host_targets, library_path, sign

TESTS = Path(__file__).with_name("test_rendering.py")
# All tests that call the core; not those of how it is built and chosen.
CASES = "engine or cpu or reference or nothing or finite or native_blending or mass or threads"
OTHERS = "device or built or compiled or without or gsplat"
PROBE = "unified_lift_sanitizer_probe"
EXPORT = 'extern "C" __attribute__((visibility("default")))'


def with_zig() -> tuple[list[str], dict[str, str]]:
    """Zig has a runtime for undefined behaviour, and none for addresses."""
    if find_spec("ziglang") is None:
        pytest.skip("needs the package ziglang")
    options = [*compiler_options(host_targets()[0]), "-fsanitize=undefined"]
    return [sys.executable, "-m", "ziglang", "c++", *options], {}


def with_gcc() -> tuple[list[str], dict[str, str]]:
    """GCC's runtime must be in the process before the core is loaded."""
    if sys.platform != "linux" or not shutil.which("g++"):
        pytest.skip("needs g++ on Linux")
    libraries = [Path(_answer("g++", f"-print-file-name=lib{n}.so")) for n in ("asan", "ubsan")]
    if not all(path.is_absolute() for path in libraries):
        pytest.skip("g++ has no sanitizer libraries here")
    options = [flag for flag in FLAGS if not flag.startswith(("-nostd", "-s"))]
    command = ["g++", *options, "-shared", "-std=c++17", "-fPIC", "-O1", "-g", "-march=native"]
    preload = " ".join(str(path.resolve()) for path in libraries)
    # Python and torch keep what they hold until they end.
    return [*command, "-fsanitize=address,undefined"], {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def build(tmp_path, tools, source=MAIN_SOURCE) -> dict[str, str]:
    """A copy of the package with a core that reports; the environment to run it in."""
    command, environment = tools()
    package = tmp_path / "unified_lift"
    shutil.copytree(
        Path(unified_lift.__file__).parent, package, ignore=shutil.ignore_patterns("lib")
    )
    library = package / library_path(host_targets()[0]).relative_to(
        Path(unified_lift.__file__).parent
    )
    library.parent.mkdir()
    output = ["-fno-sanitize-recover=all", "-DUL_SOURCE_HASH=0", str(source), "-o", str(library)]
    subprocess.run([*command, *output], check=True)
    sign(library)
    return os.environ | environment | {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("tools", [with_zig, with_gcc])
def test_the_core_does_nothing_undefined(tmp_path, tools):
    environment = build(tmp_path, tools)
    where = "import unified_lift; print(unified_lift.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(tmp_path)), found
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider"]
    command += ["-k", f"({CASES}) and not ({OTHERS})", str(TESTS)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    assert "runtime error" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("tools", "result", "report"),
    [
        (with_zig, "1 << n", "shift"),
        (with_gcc, "1 << n", "shift"),
        (with_gcc, "((volatile int*)calloc(n, 4))[n]", "heap-buffer-overflow"),
    ],
)
def test_what_is_undefined_would_be_reported(tmp_path, tools, result, report):
    """A core that is built the same way and errs on purpose ends its process."""
    source = tmp_path / "core.cpp"
    functions = {"abi_version()": str(ABI_VERSION), f"{PROBE}(int n)": result}
    source.write_text(
        "#include <stdlib.h>\n"
        + "".join(f"{EXPORT} int {f} {{ return {value}; }}\n" for f, value in functions.items())
    )
    program = "from unified_lift.rendering.native import load_core\n"
    program += f"load_core().call('{PROBE}', 40)"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=build(tmp_path, tools, source),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert report in run.stderr
