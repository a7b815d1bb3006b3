# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark's cells: a method on a suite's masks; its scores, time and memory, on disk."""

from __future__ import annotations

import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from unified_lift.benchmark.frozen import Frozen, Outcome
from unified_lift.benchmark.machine import MEMORY_FILE, held_megabytes
from unified_lift.benchmark.methods import ALL_METHODS, ORACLE
from unified_lift.benchmark.pictures import draw_level, has_pictures
from unified_lift.benchmark.scores import score_split
from unified_lift.benchmark.suites import (
    TRUE_MASKS,
    Inputs,
    Suite,
    check_suite,
    load_suite,
    suite_masks,
    suite_name,
    suite_surfaces,
)
from unified_lift.checkpoint import SPLATS_CODE
from unified_lift.config import AUTO_LIFT, MASKS_AUTO, Budget, LiftConfig
from unified_lift.digests import digest_code, digest_words
from unified_lift.gaussians import Gaussians
from unified_lift.lift.incidence import mask_incidence
from unified_lift.lift.objects import SeenSplats
from unified_lift.masks.planes import SurfacePlanes
from unified_lift.masks.surfaces import SurfaceMasks
from unified_lift.protocol import JobError, JobLock, Report, read_json, write_json
from unified_lift.rendering import Engine

CELLS_DIR = "cells"
SUITES_DIR = "suites"
SAMPLE_SECONDS = 0.05
ARRAYS = ".npz"
CHANGED = "gaussians_"  # before the names of the parameters that a method has changed
# What a cell hangs on: how splats, masks and objects are made, and how they are scored.
CODE = ("config.py", *SPLATS_CODE, "masks", "lift", "edges.py", "metrics")
CODE += tuple(
    f"benchmark/{name}.py" for name in ("frozen", "methods", "rivals", "scores", "suites")
)
LOSS = "loss "  # how the message of a training step begins


@dataclass(frozen=True)
class Cell:
    """Names of a suite, a level of masks and a method, and a seed."""

    suite: str
    masks: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.suite}-{self.masks}-{self.method}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Every method on every level of masks of every suite, and the oracle; seeds train anew."""

    suites: Sequence[Path]
    masks: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    preset: str
    num_views: int = 0  # training views that are used, evenly spread; 0 = all

    def cells(self, suite: str) -> list[Cell]:
        """The cells of one suite, those of one seed together, and in these of one level."""
        rows = [(TRUE_MASKS, ORACLE)]
        rows += [(masks, method) for masks in self.masks for method in self.methods]
        return [Cell(suite, *row, seed) for seed in self.seeds for row in rows]


def run_benchmark(
    plan: Plan, work_dir: Path, budget: Budget, engine: Engine, report: Report
) -> list[dict]:
    """Run the cells that are not there yet: an interrupted run goes on where it stopped.

    Args:
        plan: what to run.
        work_dir: keeps the trained splats, the cells and the pictures.
        budget: of the learned methods.
        engine: what renders.
        report: told of the progress.

    Returns:
        What each cell's file holds, in the order of the plan.

    Raises:
        JobError: an unknown method, or what `check_suite` refuses; before anything is trained.
        Locked: another process runs a benchmark in this folder.
    """
    methods = [name for name in ALL_METHODS if name != ORACLE]
    unknown = sorted(set(plan.methods) - set(methods))
    if unknown or not plan.methods:
        wrong = f"There is no method '{unknown[0]}'." if unknown else f"{ORACLE} is always run."
        raise JobError(f"{wrong} Choose from {', '.join(methods)}.")
    if TRUE_MASKS in plan.masks:
        raise JobError(f"The row {ORACLE} shows what true masks give. Name other masks.")
    suites = [Path(path).resolve() for path in plan.suites]
    names = [suite_name(path, plan.num_views) for path in suites]
    if len(set(names)) < len(names):
        raise JobError(f"Two captures have one name: {', '.join(names)}. Rename one's folder.")
    report.stage("photos", "Checking photos, masks and ground truth")
    inputs = [check_suite(path, plan.masks, report, plan.num_views) for path in suites]
    key = {"code": digest_code(*CODE), "engine": engine.name, "preset": plan.preset}
    key |= asdict(budget)
    tasks = _all_tasks(plan, names, inputs, work_dir / CELLS_DIR, key)
    work_dir.mkdir(parents=True, exist_ok=True)
    with JobLock(work_dir):
        for path, name, digests in zip(suites, names, inputs, strict=True):
            for seed in plan.seeds:
                own = [t for t in tasks if (t.cell.suite, t.cell.seed) == (name, seed)]
                _run_suite(path, digests.photos, own, seed, plan, work_dir, budget, engine, report)
        return [read_json(task.path) for task in tasks]


@dataclass(frozen=True)
class Task:
    """A cell, its place among all, its file, and what it is made from.

    With another `key` it is run again.
    """

    cell: Cell
    place: str
    path: Path
    key: dict

    def is_done(self, report: Report) -> bool:
        """Whether an earlier run left it, whole; told where it left something damaged."""
        if not self.path.exists():
            return False
        try:
            if read_json(self.path).get("key") != self.key:
                return False
            _load_arrays(self.path)
        except JobError as error:
            report.warning(f"{error} Running this cell again.")
            return False
        return True


def _all_tasks(
    plan: Plan, names: Sequence[str], inputs: Sequence[Inputs], folder: Path, common: dict
) -> list[Task]:
    pairs = [
        (cell, digests)
        for name, digests in zip(names, inputs, strict=True)
        for cell in plan.cells(name)
    ]
    tasks = []
    for number, (cell, digests) in enumerate(pairs, 1):
        key = {**common, "photos": digests.photos, "truth": digests.truth}
        key |= {"masks": digests.masks[cell.masks]}
        place = f"{number} of {len(pairs)}"
        tasks.append(Task(cell, place, folder / f"{cell.name}.json", key))
    return tasks


def _run_suite(
    capture_dir: Path,
    digest: str,
    tasks: Sequence[Task],
    seed: int,
    plan: Plan,
    work_dir: Path,
    budget: Budget,
    engine: Engine,
    report: Report,
) -> None:
    """Run the tasks of one suite and seed that are not done; draw what the first seed's give."""
    levels: dict[str, list[Task]] = {}
    for task in tasks:
        levels.setdefault(task.cell.masks, []).append(task)
    suite, name = None, suite_name(capture_dir, plan.num_views)
    scene = Recorder(report)
    surfaces = cache(lambda: _surfaces(suite, scene))
    for masks, same in levels.items():
        waiting = [task for task in same if not task.is_done(report)]
        shown = [*levels[TRUE_MASKS], *same]
        # A picture says in itself what it was made from.
        stamp = digest_words([[task.cell.method, task.key] for task in shown])
        to_draw = masks != TRUE_MASKS and seed == plan.seeds[0]
        to_draw = to_draw and not has_pictures(work_dir, name, masks, stamp)
        if not (to_draw or waiting):
            continue
        if suite is None:
            cache_dir = work_dir / SUITES_DIR / f"{name}-{plan.preset}-{seed}"
            source = (capture_dir, cache_dir, plan.preset, seed, digest, engine, scene)
            suite = load_suite(*source, plan.num_views)
        level = Recorder(report)
        frozen = _frozen(suite, masks, surfaces, level)
        for task in waiting:
            # A copy for each: what one method derives, another shall not get for nothing.
            told = scene.warnings + level.warnings
            _run_task(task, suite, replace(frozen), budget, report, told)
        if to_draw:
            outcomes = {task.cell.method: _load_arrays(task.path) for task in shown}
            draw_level(suite, masks, frozen.label_maps, outcomes, work_dir, stamp)


def _surfaces(suite: Suite, report: Report) -> SurfaceMasks | None:
    """Masks from geometry alone, and the scene's planes; None where no surface is seen.

    Told once, for a cache keeps what this returns.
    """
    try:
        return suite_surfaces(suite, report)
    except JobError as error:
        report.warning(f"Things that masks fuse stay one, and all surfaces are things. {error}")
        return None


def _frozen(
    suite: Suite,
    masks: str,
    surfaces: Callable[[], SurfaceMasks | None],
    report: Report,
) -> Frozen:
    """What the methods are given of a level of masks."""
    if masks == TRUE_MASKS:
        return Frozen(suite.weights, suite_masks(suite, masks, report), LiftConfig())
    seen = surfaces()
    planes = seen.planes if seen else SurfacePlanes.none()
    splats = suite.seen_splats(planes)
    if masks == MASKS_AUTO:
        seen = seen or suite_surfaces(suite, report)  # says why there are none
        scene = (suite.weights, seen.label_maps, AUTO_LIFT)
        return Frozen(*scene, splats=splats, sure_maps=seen.sure_maps)
    label_maps = suite_masks(suite, masks, report)

    def sharpen(object_ids: np.ndarray) -> tuple[Gaussians, SeenSplats] | None:
        sharp = suite.sharpened(label_maps, object_ids, report)
        return sharp and (sharp.gaussians, sharp.seen_splats(planes))

    shape_maps = seen and seen.label_maps
    return Frozen(suite.weights, label_maps, LiftConfig(), shape_maps, splats, sharpen)


def _run_task(
    task: Task,
    suite: Suite,
    frozen: Frozen,
    budget: Budget,
    report: Report,
    warnings: Sequence[str],
) -> None:
    cell = task.cell
    report.stage("method", f"{cell.name} ({task.place})")
    recorder = Recorder(report)
    with Meter() as meter:
        outcome = ALL_METHODS[cell.method].run(frozen, budget, cell.seed, recorder)
    task.path.parent.mkdir(parents=True, exist_ok=True)
    _save_arrays(task.path.with_suffix(ARRAYS), outcome)
    measured = {"seconds": meter.seconds, "megabytes": meter.megabytes, "losses": recorder.losses}
    told = {"warnings": [*warnings, *recorder.warnings]}
    if outcome.gaussians is None:
        incidence = frozen.incidence
    else:
        suite = suite.with_gaussians(outcome.gaussians)
        incidence = mask_incidence(suite.weights, frozen.label_maps)
    scores = score_split(suite, outcome.object_ids, incidence, frozen.lift)
    write_json(task.path, {**asdict(cell), "key": task.key, **measured, **told, **scores})


def _save_arrays(path: Path, outcome: Outcome) -> None:
    gaussians = outcome.gaussians or {}
    np.savez_compressed(
        path,
        object_ids=outcome.object_ids.astype(np.int32),
        features=np.asarray(outcome.features, np.float16),
        codebook=np.asarray(outcome.codebook, np.float32),
        **{f"{CHANGED}{name}": value.cpu().numpy() for name, value in gaussians.items()},
    )


def _load_arrays(path: Path) -> Outcome:
    path = path.with_suffix(ARRAYS)
    try:
        with np.load(path) as arrays:
            changed = {
                name.removeprefix(CHANGED): torch.from_numpy(arrays[name])
                for name in arrays
                if name.startswith(CHANGED)
            }
            given = {name: arrays[name] for name in arrays if not name.startswith(CHANGED)}
            return Outcome(**given, gaussians=changed or None)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise JobError(f"{path} is damaged ({error}).") from error


class Recorder:
    """A report that hands all on to another one, and keeps warnings and the losses of steps."""

    def __init__(self, report: Report) -> None:
        self.losses: list[float] = []
        self.warnings: list[str] = []
        self.stage, self.preview, self.check = report.stage, report.preview, report.check
        self._report = report

    def progress(self, step: int, total: int, message: str = "") -> None:
        """Keep the loss."""
        if message.startswith(LOSS):
            self.losses.append(float(message.removeprefix(LOSS)))
        self._report.progress(step, total, message)

    def warning(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)
        self._report.warning(text)


class Meter:
    """Wall time of a block, and the most memory that the process held meanwhile (None: unknown)."""

    def __enter__(self) -> Meter:
        self.megabytes: float | None = None
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._watcher.join()

    def _watch(self) -> None:
        while MEMORY_FILE.exists():
            held = held_megabytes("VmRSS")
            self.megabytes = max(self.megabytes or 0.0, held)
            if self._stop.wait(SAMPLE_SECONDS):
                return
