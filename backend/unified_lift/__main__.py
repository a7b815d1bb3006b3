# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: what Blender starts, and what a shell can do without Blender."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from unified_lift import __version__
from unified_lift.config import (
    DEVICES,
    MASKS_AUTO,
    MASKS_SAM,
    METHODS,
    PRESETS,
    PUBLIC_BENCHMARKS,
    Settings,
)
from unified_lift.protocol import (
    EXIT_CANCELLED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_LOCKED,
    REQUEST_FILE,
    SCENE_FILE,
    Cancelled,
    JobError,
    JobLock,
    JobReport,
    JobRequest,
    Locked,
    SilentReport,
    describe_os_error,
    read_job,
    write_job,
    write_json,
)

log = logging.getLogger("unified_lift")

PRINT_SECONDS = 5.0  # between two lines of progress
REPORT_HEAD = "# Benchmark of "  # how every report begins
CAPTURE_PARTS = ("transforms.json", "transforms_train.json", "sparse", "gt", "masks")
ENGINE_COMMAND = "benchmark engine"  # two words of the shell, one command here
SAMPLE = Path(__file__).parents[2] / "tests" / "data" / "messy8"  # beside the sources only
SOURCE_HELP = "capture, trained with the draft preset, or trained PLY (the sample)"


def run_job(job_dir: Path, show: Callable[[dict], None] = lambda event: None) -> int:
    """Do the job of a folder, tell it through its events, and return the exit code.

    Args:
        job_dir: folder with job.json.
        show: called with each event too; the command line prints it.
    """
    try:
        request = read_job(job_dir)
        with JobLock(job_dir), JobReport(job_dir, show) as report:
            return _work(job_dir, request, report)
    except Locked as error:
        log.error("%s Wait for it, or cancel it.", error)
        return EXIT_LOCKED


def _work(job_dir: Path, request: JobRequest, report: JobReport) -> int:
    """Run the pipeline; the one place where an unexpected error ends."""
    try:
        report.emit("start", pid=os.getpid(), version=__version__)
        from unified_lift import pipeline  # torch takes seconds to import: the start is told before

        summary = pipeline.segment(Path(job_dir), request, report)
        report.end_stage()
        report.emit("done", **summary, seconds=report.seconds)
        return EXIT_DONE
    except (Cancelled, KeyboardInterrupt):
        report.emit("cancelled")
        return EXIT_CANCELLED
    except JobError as error:
        message = str(error)
    except OSError as error:
        message = describe_os_error(error, job_dir)
    except Exception as error:
        if _is_out_of_memory(error):
            message = "Out of memory. Choose a lower quality preset, or close other programs."
        else:
            traceback.print_exc()
            told = f"{type(error).__name__}: {error}"
            message = f"Unexpected error ({told}). The log has the details."
    report.emit("failed", message=message)
    return EXIT_FAILED


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or PyTorch got no memory; PyTorch has a type for it on a GPU only."""
    gpu = type(error).__name__ == "OutOfMemoryError"  # nothing here imports torch
    return isinstance(error, MemoryError) or gpu or "DefaultCPUAllocator" in str(error)


def print_event(event: dict) -> None:
    """Show an event to the user of a shell."""
    kind = event["event"]
    if kind == "stage":
        log.info("%s", event["label"])
    elif kind == "progress":
        left = event["seconds_left"]
        time_left = "" if left is None else f", {left:.0f} s left"
        log.info("  %3.0f %%%s  %s", 100 * event["fraction"], time_left, event["message"])
    elif kind in ("warning", "failed"):
        log.warning("%s: %s", {"warning": "Warning", "failed": "Error"}[kind], event["message"])
    elif kind == "done":
        log.info("%d objects, seconds: %s", event["objects"], event["seconds"])
    elif kind == "cancelled":
        log.info("Cancelled")


def print_end(event: dict) -> None:
    """Show what went wrong; Blender reads the rest from the events."""
    if event["event"] in ("warning", "failed"):
        print_event(event)


def segment(arguments: argparse.Namespace) -> int:
    """Make a job of the command line's arguments and do it."""
    automatic = arguments.masks in (MASKS_AUTO, MASKS_SAM)
    folder = "" if automatic else str(Path(arguments.masks).resolve())
    checkpoint, splat = (
        str(path.resolve()) if path else "" for path in (arguments.sam_checkpoint, arguments.splat)
    )
    masks = folder or arguments.masks
    settings = chosen_settings(arguments, masks=masks, sam_checkpoint=checkpoint, splat=splat)
    request = JobRequest(str(arguments.capture.resolve()), settings)
    # A slip of the pen shall not use up the job folder.
    is_file = arguments.capture.is_file() and arguments.capture.suffix == ".json"
    if not is_file and not arguments.capture.is_dir():
        raise JobError(f"There is no folder {request.capture}. Choose the folder of a capture.")
    for option, path in ("masks", folder), ("splat", splat), ("sam-checkpoint", checkpoint):
        if path and not Path(path).exists():
            raise JobError(f"There is no {path}. Name another one with --{option}.")
    if (arguments.out / REQUEST_FILE).exists() and read_job(arguments.out) == request:
        log.info("%s holds this very job: going on with it", arguments.out)
    else:
        write_job(arguments.out, request)
    return run_job(arguments.out, print_event)


def render(arguments: argparse.Namespace) -> int:
    """Render a finished job's views."""
    from unified_lift.views import render_views

    count = render_views(
        arguments.job, arguments.out, arguments.split, arguments.object, arguments.device
    )
    log.info("%d views in %s", count, arguments.out)
    return EXIT_DONE


def evaluate(arguments: argparse.Namespace) -> int:
    """Score rendered label maps against ground truth."""
    from unified_lift.metrics import evaluate as score

    sys.stdout.write(json.dumps(score(arguments.ids, arguments.ground_truth), indent=1) + "\n")
    return EXIT_DONE


def benchmark(arguments: argparse.Namespace) -> int:
    """Run methods side by side on scenes with ground truth, and write a report."""
    from unified_lift.benchmark.methods import ABLATION, METHODS, ORACLE, STEPS
    from unified_lift.benchmark.report import write_report
    from unified_lift.benchmark.run import Plan, run_benchmark
    from unified_lift.config import Budget
    from unified_lift.rendering import load_engine

    if arguments.seeds < 1:
        raise JobError(f"{arguments.seeds} seeds run nothing. Choose 1 or more.")
    check_report(arguments.out)
    rows = [*ABLATION, *STEPS] if arguments.ablation else METHODS
    methods = arguments.methods or rows
    methods = [name for name in dict.fromkeys(methods) if name != ORACLE]  # which is always run
    masks = list(dict.fromkeys(level.rstrip("/\\") for level in arguments.masks))
    seeds = range(arguments.seeds)
    plan = Plan(arguments.suites, masks, methods, seeds, arguments.preset, arguments.views)
    engine = load_engine(arguments.device)
    work_dir = arguments.out.with_suffix("")
    cells = run_benchmark(plan, work_dir, Budget(), engine, PrintReport())
    command = shlex.join(["unified-lift", *sys.argv[1:]])
    write_report(arguments.out, cells, command, Budget(), engine.name)
    log.info("%d cells in %s", len(cells), arguments.out)
    return EXIT_DONE


def benchmark_engine(arguments: argparse.Namespace) -> int:
    """Measure the engines side by side on the same splats and view, and write a report."""
    from unified_lift.benchmark.engine_report import write_engine_report
    from unified_lift.benchmark.engines import Plan, load_scene, run_engines

    check_report(arguments.out)
    if not arguments.source.exists():
        raise JobError(
            f"There is no {arguments.source}. Give a capture or a trained PLY: only a copy of the "
            "sources has the sample in tests/data."
        )
    plan, report = Plan(), PrintReport()
    inputs = (arguments.source.resolve(), arguments.splat, arguments.out.with_suffix(""))
    scene = load_scene(*inputs, plan.side, report)
    results = run_engines(scene, plan, report)
    command = shlex.join(["unified-lift", *sys.argv[1:]])
    write_engine_report(arguments.out, scene, results, plan, command)
    log.info("%s", arguments.out)
    return EXIT_DONE


def check_report(path: Path) -> None:
    """Refuse a report that is no Markdown file, or would take the place of other files.

    Beside report.md, the folder `report` keeps what the next run goes on from.
    """
    if path.suffix != ".md" or path.is_dir():
        raise JobError(f"--out {path} is no report. Give the name of a file, ending in .md.")
    if path.exists() and not path.read_bytes().startswith(REPORT_HEAD.encode()):
        raise JobError(f"{path} is no report of a benchmark. Give --out another name.")
    folder = path.with_suffix("")
    if any((folder / name).exists() for name in CAPTURE_PARTS):
        raise JobError(f"The report's folder {folder} is a capture. Give --out another name.")


def public(arguments: argparse.Namespace) -> int:
    """Run a public benchmark on the user's copy, and write its scores scene by scene."""
    from unified_lift.benchmark.public import (
        check_truth,
        find_scenes,
        read_public,
        score_public,
        start_scene,
        write_public,
    )
    from unified_lift.views import render_views

    scores = {}
    for scene_dir in find_scenes(arguments.kind, arguments.root):
        folder = arguments.out / scene_dir.name
        scene = read_public(arguments.kind, scene_dir)
        log.info("%s", scene_dir.name)
        check_truth(scene)
        with_given = bool(scene.given) and not arguments.auto
        masks = str((folder / "capture" / "masks").absolute()) if with_given else MASKS_AUTO
        settings = chosen_settings(arguments, masks=masks)
        start_scene(scene_dir, folder, asdict(settings))
        job, ids = folder / "job", folder / "views"
        if not (job / SCENE_FILE).exists():
            request = JobRequest(str(write_public(scene, folder / "capture")), settings)
            if not (job / REQUEST_FILE).exists():
                write_job(job, request)
            if code := run_job(job, print_event):
                return code
        render_views(job, ids, "all", [], arguments.device)
        scores[scene_dir.name] = score_public(scene, ids / "ids")
        write_json(arguments.out / "scores.json", scores)
    sys.stdout.write(json.dumps(scores, indent=1) + "\n")
    return EXIT_DONE


class PrintReport(SilentReport):
    """Shows the stages and the progress of a command that is no job."""

    def __init__(self) -> None:
        self._shown = 0.0

    def stage(self, name: str, label: str) -> None:
        """Show."""
        self._shown = time.monotonic()
        log.info("%s", label)

    def progress(self, step: int, total: int, message: str = "") -> None:
        """Show every few seconds."""
        if time.monotonic() - self._shown >= PRINT_SECONDS:
            self._shown = time.monotonic()
            log.info("  %3.0f %%  %s", 100 * step / total, message)


def chosen_settings(arguments: argparse.Namespace, **others: str) -> Settings:
    """The settings of `add_common`, and others."""
    common = {name: getattr(arguments, name) for name in ("method", "preset", "device", "seed")}
    return Settings(**common, **others)


def add_common(command: argparse.ArgumentParser) -> None:
    """The settings of a job that have a default everywhere."""
    command.add_argument("--method", choices=METHODS, default=Settings.method)
    command.add_argument("--preset", choices=list(PRESETS), default=Settings.preset)
    command.add_argument("--device", choices=DEVICES, default=Settings.device)
    command.add_argument("--seed", type=int, default=Settings.seed)


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    root = argparse.ArgumentParser(prog="unified-lift", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True)

    command = commands.add_parser("segment", help="split a capture into objects")
    command.add_argument("capture", type=Path, help="folder with photos and cameras")
    command.add_argument("--out", type=Path, required=True, help="job folder to make")
    command.add_argument("--masks", default=MASKS_AUTO, help="auto, sam or a folder (auto)")
    command.add_argument("--sam-checkpoint", type=Path, help="segment-anything checkpoint")
    command.add_argument("--splat", type=Path, help="trained 3DGS PLY to split, as it is")
    command.set_defaults(function=segment)
    add_common(command)

    command = commands.add_parser("render", help="render a finished job's views")
    command.add_argument("job", type=Path)
    command.add_argument("--out", type=Path, required=True, help="rgb/ and ids/ go there")
    command.add_argument("--split", choices=["test", "train", "all"], default="test")
    command.add_argument("--object", type=int, nargs="+", default=[], help="only these, as RGBA")
    command.add_argument("--device", choices=DEVICES, default=Settings.device)
    command.set_defaults(function=render)

    command = commands.add_parser("evaluate", help="score rendered label maps")
    command.add_argument("ids", type=Path, help="folder of rendered label maps")
    command.add_argument("ground_truth", type=Path, help="folder with ids/ and meta.json")
    command.set_defaults(function=evaluate)

    command = commands.add_parser(ENGINE_COMMAND, help="engines side by side, in one report")
    command.add_argument("source", type=Path, nargs="?", default=SAMPLE, help=SOURCE_HELP)
    command.add_argument("--splat", type=Path, help="trained PLY of the capture")
    command.add_argument("--out", type=Path, required=True, help="report.md to write")
    command.set_defaults(function=benchmark_engine)

    command = commands.add_parser("benchmark", help="methods side by side, in one report")
    command.add_argument("suites", type=Path, nargs="+", help="captures with gt/ and masks/")
    command.add_argument("--out", type=Path, required=True, help="report.md to write")
    command.add_argument("--masks", nargs="+", default=["paper"], help="folders of masks/, or auto")
    rows = command.add_mutually_exclusive_group()
    rows.add_argument("--methods", nargs="+", help="rows of the report")
    rows.add_argument("--ablation", action="store_true", help="the rows of the ablation")
    command.add_argument("--seeds", type=int, default=1, help="runs, each with splats of its own")
    command.add_argument("--views", type=int, default=0, help="train on so many (all)")
    command.add_argument("--preset", choices=list(PRESETS), default=Settings.preset)
    command.add_argument("--device", choices=DEVICES, default=Settings.device)
    command.set_defaults(function=benchmark)

    command = commands.add_parser("public", help="a public benchmark, by its own protocol")
    command.add_argument("kind", choices=PUBLIC_BENCHMARKS)
    command.add_argument("root", type=Path, help="one scene, or the folder of all")
    command.add_argument("--out", type=Path, required=True, help="folder of jobs and scores.json")
    command.add_argument("--auto", action="store_true", help="without the benchmark's own masks")
    command.set_defaults(function=public)
    add_common(command)

    command = commands.add_parser("run", help="do the job of a folder (what Blender starts)")
    command.add_argument("job", type=Path)
    command.set_defaults(function=lambda arguments: run_job(arguments.job, print_end))
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    words = sys.argv[1:] if arguments is None else [str(word) for word in arguments]
    if " ".join(words[:2]) == ENGINE_COMMAND:  # a capture of that name is ./engine
        words[:2] = [ENGINE_COMMAND]
    parsed = parser().parse_args(words)
    try:
        return parsed.function(parsed)
    except KeyboardInterrupt:
        log.info("Cancelled")
        return EXIT_CANCELLED
    except Locked as error:
        log.error("Error: %s Wait for it, or stop it.", error)
        return EXIT_LOCKED
    except JobError as error:
        log.error("Error: %s", error)
    except OSError as error:
        log.error("Error: %s", describe_os_error(error, getattr(parsed, "out", Path())))
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
