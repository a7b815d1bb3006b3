#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up, test, show and package Blender Unified Lift; needs nothing but Python."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
ENV = BUILD / "env"
SAMPLE = ROOT / "tests" / "data" / "messy8"
WINDOWS = os.name == "nt"

# One pin for each package that we import; what they need in turn, pip finds.
TORCH = "torch==2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PACKAGES = [
    "numpy==2.4.6",
    "scipy==1.17.1",
    "pillow==13.0.0",
    "scikit-image==0.26.0",
    "scikit-learn==1.9.1",
    "matplotlib==3.11.2",
    "segment-anything==1.0",
    "setuptools==84.2.1",
    "ziglang==0.17.1",
    "pytest==9.2.0",
    "ruff==0.17.6",
]
# What the tests compare our metrics with; the first asks for an old NumPy that it does not need.
ORACLES = ["--no-deps", "panopticapi-lite==0.2.0", "pycocotools==2.0.11"]
# Blender as a Python module, for machines without Blender and for the tests.
BPY_VERSIONS = {(3, 11): ["4.5.15", "5.0.1"], (3, 13): ["5.2.0"]}
NO_TESTS = 5  # pytest's exit code: the options chose none of a folder's tests
BPY_PACKAGES = ["numpy", "pytest==9.2.0"]


class BuildError(Exception):
    """The message says what is wrong and what to do."""


def say(text: str) -> None:
    """Tell the user what happens next."""
    print(f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text, flush=True)


def run(command: list[object], **options: object) -> subprocess.CompletedProcess:
    """Run a command; its failure ends the build."""
    return subprocess.run([str(word) for word in command], check=True, **options)


# ---- environments


def find_python(*wanted: tuple[int, int]) -> str:
    """The first Python of the wanted versions on this machine."""
    if sys.version_info[:2] == wanted[0]:
        return str(Path(sys._base_executable).resolve())  # of a virtual environment, its origin
    for version in wanted:
        name = ".".join(map(str, version))
        words = ["py", f"-{name}"] if WINDOWS else [f"python{name}"]
        if not shutil.which(words[0]):
            continue
        probe = subprocess.run(
            [*words, "-c", "import sys; print(sys._base_executable)"],
            capture_output=True,
            text=True,
        )
        if probe.returncode == 0:
            return str(Path(probe.stdout.strip()).resolve())
    names = " or ".join(".".join(map(str, version)) for version in wanted)
    raise BuildError(f"Python {names} is needed and none was found. Install it from python.org.")


def python_of(env: Path) -> Path:
    """The interpreter of a virtual environment."""
    return env / ("Scripts/python.exe" if WINDOWS else "bin/python")


def make_env(env: Path, python: str, packages: list[list[str]]) -> bool:
    """Make a virtual environment with these packages, one pip call a list; False if it stood."""
    stamp = env / "stamp.json"
    content = json.dumps([python, packages])
    if stamp.exists() and stamp.read_text() == content and python_of(env).exists():
        return False
    say(f"Setting up {env.relative_to(ROOT)} ({python})")
    run([python, "-m", "venv", "--clear", env])
    for group in packages:
        install(env, group)
    stamp.write_text(content)
    return True


def install(env: Path, arguments: list[str]) -> None:
    """Run pip, and show of its words the lines that tell how far it is."""
    command = [python_of(env), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    words = ("Collecting", "Downloading", "Processing", "Installing", "ERROR")
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if line.strip().startswith(words):
                print("  " + line.strip()[:100], flush=True)
    if process.returncode:
        raise BuildError("".join(lines[-15:]) + "pip failed. Check the network and run again.")


def torch_source() -> list[str]:
    """Where the CPU build of PyTorch is offered; without it Linux would get CUDA's gigabytes."""
    if platform.system() == "Darwin":
        return []
    try:
        socket.create_connection((TORCH_CPU_INDEX.split("/")[2], 443), timeout=3).close()
    except OSError:
        print("  PyTorch's CPU index does not answer: taking what pip finds", flush=True)
        return []
    return ["--extra-index-url", TORCH_CPU_INDEX]


def backend_env() -> Path:
    """The backend's environment, with the native core compiled: returns its Python."""
    if platform.machine().lower() == "x86_64" and platform.system() == "Darwin":
        raise BuildError("PyTorch has no build for Macs with Intel processors any more.")
    python = find_python((3, 11), (3, 12), (3, 13))
    if not (ENV / "stamp.json").exists():
        say("First run: about 1 GB is downloaded and installed once")
        source = torch_source()
    else:
        source = json.loads((ENV / "stamp.json").read_text())[1][0][1:]
    editable = ["--no-deps", "--no-build-isolation", "-e", str(ROOT / "backend")]
    make_env(ENV, python, [[TORCH, *source], PACKAGES, ORACLES, editable])
    run([python_of(ENV), "-I", "-m", "unified_lift.rendering.native.compile"])
    return python_of(ENV)


def bpy_envs() -> Iterator[Path]:
    """Environments with Blender as a module, of each version whose Python is on this machine."""
    lost = []
    for version, names in BPY_VERSIONS.items():
        try:
            python = find_python(version)
        except BuildError as error:
            lost.append(f"Blender {' and '.join(names)} left out: {error}")
            say(lost[-1])
            continue
        for bpy in names:
            env = BUILD / f"bpy-{bpy}"
            editable = ["--no-deps", "--no-build-isolation", "-e", str(ROOT / "backend")]
            packages = [[f"bpy=={bpy}", *BPY_PACKAGES, "setuptools==84.2.1"], editable]
            make_env(env, python, packages)
            yield env
    if len(lost) == len(BPY_VERSIONS):
        raise BuildError(lost[0])


# ---- the extension


def make_zip(targets: str) -> Path:
    """Write the extension: add-on, manifest and backend wheel, the same bytes for the same input.

    Args:
        targets: platforms whose native core goes into the wheel, 'host' or 'all'.
    """
    import tomllib  # Python 3.11: `main` has not told yet that an older one cannot work

    python = backend_env()
    if targets == "all":
        say("Compiling the native core for every platform (some minutes the first time)")
        run([python, "-I", "-m", "unified_lift.rendering.native.compile", "all"])
    manifest = tomllib.loads((ROOT / "blender_manifest.toml").read_text(encoding="utf-8"))
    wheel = make_wheel(python)
    listed = [Path(path).name for path in manifest["wheels"]]
    if listed != [wheel.name]:
        raise BuildError(f"The manifest lists {listed}, the backend's wheel is {wheel.name}.")
    files = {"blender_manifest.toml": ROOT / "blender_manifest.toml", "LICENSE": ROOT / "LICENSE"}
    files[f"wheels/{wheel.name}"] = wheel
    package = ROOT / "blender_unified_lift"
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[path.relative_to(package).as_posix()] = path
    target = BUILD / f"{manifest['id']}-{manifest['version']}.zip"
    write_zip(target, files)
    say(f"Wrote {target.relative_to(ROOT)} ({target.stat().st_size / 1e6:.1f} MB)")
    return target


def make_wheel(python: Path) -> Path:
    """Build the backend's wheel into wheels/."""
    for old in (ROOT / "wheels").glob("unified_lift-*.whl"):
        old.unlink()
    shutil.rmtree(ROOT / "backend" / "build", ignore_errors=True)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [python, "-m", "pip", "wheel", *options, "-w", ROOT / "wheels", ROOT / "backend"]
    run(command, env=environment)
    shutil.rmtree(ROOT / "backend" / "build", ignore_errors=True)
    return next((ROOT / "wheels").glob("unified_lift-*.whl"))


def write_zip(target: Path, files: dict[str, Path]) -> None:
    """Write a zip whose bytes depend on nothing but names and contents."""
    partial = target.with_suffix(".part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name].read_bytes())
    os.replace(partial, target)


# ---- commands


def demo(masks: str) -> None:
    """Segment the sample capture in a real Blender and leave the results in build/demo."""
    start = time.monotonic()
    package = make_zip("host")
    python = python_of(ENV)
    blender = os.environ.get("BLENDER")
    if blender:
        script_runner = [blender, "--background", "--factory-startup", "--python"]
    else:
        script_runner = [python_of(next(bpy_envs()))]  # the others need no download here
    set_up = time.monotonic() - start
    out = BUILD / "demo"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    arguments = ["--zip", package, "--backend-python", python, "--capture", SAMPLE, "--out", out]
    if masks == "sample":
        arguments += ["--masks", SAMPLE / "masks" / "paper"]
    profile = {**os.environ, "BLENDER_USER_RESOURCES": str(out / "profile")}
    run([*script_runner, ROOT / "tests" / "demo" / "in_blender.py", "--", *arguments], env=profile)
    run([python, "-I", ROOT / "tests" / "demo" / "report.py", SAMPLE, out, f"{set_up:.0f}"])


def test(arguments: list[str]) -> None:
    """Run the tests: backend, add-on in each Blender module, a real window, and the demo."""
    python = backend_env()
    make_zip("host")
    failed, codes = [], []
    given, options = split_words(arguments)

    def pytest(folder: str, interpreter: Path) -> None:
        chosen = [word for word in given if Path(word).parts[:2] == ("tests", folder)]
        if not given or "tests" in given:
            chosen = [f"tests/{folder}"]
        if not chosen:
            return
        say(f"tests/{folder} with {interpreter.parent.parent.name}")
        command = [interpreter, "-m", "pytest", *options, *chosen]
        codes.append(subprocess.run([str(word) for word in command], cwd=ROOT).returncode)
        if codes[-1] not in (0, NO_TESTS):
            failed.append(f"tests/{folder} with {interpreter.parent.parent.name}")

    pytest("backend", python)
    for env in bpy_envs():
        pytest("addon", python_of(env))
    pytest("window", python)
    if not arguments:  # nothing else goes the whole way of a user
        try:
            demo("sample")
        except subprocess.CalledProcessError:
            failed.append("demo")
    if all(code == NO_TESTS for code in codes):
        raise BuildError(f"No test is meant by {' '.join(arguments)}.")
    if failed:
        raise BuildError("Failed: " + ", ".join(failed))


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Tests, as paths from the root, and pytest's options; a folder may be named as a value."""
    given = [word for word in words if "::" in word or _is_below_tests(word)]
    lost = [word for word in given if not Path(word.split("::")[0]).exists()]
    if lost:
        raise BuildError(f"There is no test {lost[0]}.")
    tests = [os.path.relpath(Path(word).absolute(), ROOT) for word in given]
    return tests, [word for word in words if word not in given]


def _is_below_tests(word: str) -> bool:
    return (ROOT / "tests") in (path := Path(word).absolute().resolve(), *path.parents)


def backend(arguments: list[str]) -> int:
    """Run the backend's command line."""
    command = [backend_env(), "-I", "-X", "utf8", "-m", "unified_lift", *arguments]
    return subprocess.run([str(word) for word in command]).returncode


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("demo", help="segment the sample capture in a real Blender")
    command.add_argument("--masks", choices=["auto", "sample"], default="auto")
    command = commands.add_parser("test", help="run the tests", prefix_chars="\0")
    command.add_argument("arguments", nargs="*", help="test files and options of pytest")
    command = commands.add_parser("backend", help="run the backend", prefix_chars="\0")
    command.add_argument("arguments", nargs="*", help="arguments of unified-lift")
    command = commands.add_parser("zip", help="write the extension")
    command.add_argument("--targets", choices=["host", "all"], default="host")
    arguments = parser.parse_args()
    if arguments.command == "demo":
        demo(arguments.masks)
    elif arguments.command == "test":
        test(arguments.arguments)
    elif arguments.command == "backend":
        return backend(arguments.arguments)
    else:
        make_zip(arguments.targets)
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - the user may start this with any Python
        sys.exit(f"Python 3.11 or newer is needed, this is {platform.python_version()}.")
    try:
        sys.exit(main())
    except BuildError as error:
        sys.exit(f"build.py: {error}")
    except KeyboardInterrupt:  # what it had started has had the signal too, and said so
        sys.exit(130)
    except FileNotFoundError as error:
        sys.exit(f"build.py: there is no {error.filename}. Check the path, and $BLENDER.")
    except subprocess.CalledProcessError as error:
        sys.exit(f"build.py: failed: {' '.join(map(str, error.cmd))[:300]}")
