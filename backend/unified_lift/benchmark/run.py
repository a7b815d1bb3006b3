# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark's cells: a method on a suite's masks; its scores, time and memory, on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unified_lift import __version__
from unified_lift.benchmark.frozen import Frozen, Outcome
from unified_lift.benchmark.methods import ALL_METHODS, ORACLE
from unified_lift.benchmark.pictures import draw_level
from unified_lift.benchmark.scores import score_split
from unified_lift.benchmark.suites import TRUE_MASKS, Suite, load_suite, suite_masks
from unified_lift.config import AUTO_LIFT, MASKS_AUTO, Budget, LiftConfig
from unified_lift.protocol import JobError, Report, read_json, write_json
from unified_lift.rendering import Engine

CELLS_DIR = "cells"
SUITES_DIR = "suites"
MEMORY_FILE = Path("/proc/self/status")  # Linux; elsewhere memory is not measured
SAMPLE_SECONDS = 0.05
ARRAYS = ".npz"
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
    """Every method on every level of masks of every suite, for each seed; and the oracle."""

    suites: Sequence[Path]
    masks: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    preset: str

    def cells(self, suite: str) -> list[Cell]:
        """The cells of one suite, those of one level of masks together."""
        oracle = [Cell(suite, TRUE_MASKS, ORACLE, 0)]
        return oracle + [
            Cell(suite, masks, method, seed)
            for masks in self.masks
            for seed in self.seeds
            for method in self.methods
        ]


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
        JobError: an unknown method, or a suite or masks that cannot be read.
    """
    unknown = sorted(set(plan.methods) - set(ALL_METHODS))
    if unknown:
        raise JobError(f"There is no method '{unknown[0]}'. Choose from {', '.join(ALL_METHODS)}.")
    names = [Path(path).absolute().name for path in plan.suites]
    if len(set(names)) < len(names):
        raise JobError(f"Two captures have one name: {', '.join(names)}. Rename one's folder.")
    results = []
    for capture_dir in (Path(path).absolute() for path in plan.suites):
        key = {"version": __version__, "capture": str(capture_dir), "preset": plan.preset}
        key |= asdict(budget)
        cells = plan.cells(capture_dir.name)
        paths = [work_dir / CELLS_DIR / f"{cell.name}.json" for cell in cells]
        if not all(_is_done(path, key) for path in paths):
            cache_dir = work_dir / SUITES_DIR / f"{capture_dir.name}-{plan.preset}"
            suite = load_suite(capture_dir, cache_dir, plan.preset, engine, report)
            for masks in dict.fromkeys(cell.masks for cell in cells):
                level = [pair for pair in zip(cells, paths, strict=True) if pair[0].masks == masks]
                if all(_is_done(path, key) for _, path in level):
                    continue
                label_maps = suite_masks(suite, masks, report)
                _run_level(suite, label_maps, level, key, budget, report)
                if masks != TRUE_MASKS:
                    shown = [pair for pair in level if pair[0].seed == level[0][0].seed]
                    named = {cell.method: path for cell, path in [(cells[0], paths[0]), *shown]}
                    outcomes = {name: _load_arrays(path) for name, path in named.items()}
                    draw_level(suite, masks, label_maps, outcomes, work_dir)
        results += [read_json(path) for path in paths]
    return results


def _is_done(path: Path, key: dict) -> bool:
    return path.exists() and read_json(path).get("key") == key


def _run_level(
    suite: Suite,
    label_maps: list[np.ndarray | None],
    cells: list[tuple[Cell, Path]],
    key: dict,
    budget: Budget,
    report: Report,
) -> None:
    lift = AUTO_LIFT if cells[0][0].masks == MASKS_AUTO else LiftConfig()
    for cell, path in cells:
        if _is_done(path, key):
            continue
        # A new one for each cell: what one method derives, another shall not get for nothing.
        frozen = Frozen(suite.weights, label_maps, lift)
        report.stage("method", cell.name)
        losses = LossCurve(report)
        with Meter() as meter:
            outcome = ALL_METHODS[cell.method].run(frozen, budget, cell.seed, losses)
        path.parent.mkdir(parents=True, exist_ok=True)
        _save_arrays(path.with_suffix(ARRAYS), outcome)
        measured = {"seconds": meter.seconds, "megabytes": meter.megabytes, "losses": losses.values}
        scores = score_split(suite, outcome.object_ids)
        write_json(path, {**asdict(cell), "key": key, **measured, **scores})


def _save_arrays(path: Path, outcome: Outcome) -> None:
    np.savez_compressed(
        path,
        object_ids=outcome.object_ids.astype(np.int32),
        features=np.asarray(outcome.features, np.float16),
        codebook=np.asarray(outcome.codebook, np.float32),
    )


def _load_arrays(path: Path) -> Outcome:
    with np.load(path.with_suffix(ARRAYS)) as arrays:
        return Outcome(**arrays)


class LossCurve:
    """A report that hands all on to another one, and keeps the losses that steps tell."""

    def __init__(self, report: Report) -> None:
        self.values: list[float] = []
        self.stage, self.preview = report.stage, report.preview
        self.warning, self.check = report.warning, report.check
        self._progress = report.progress

    def progress(self, step: int, total: int, message: str = "") -> None:
        """Keep the loss."""
        if message.startswith(LOSS):
            self.values.append(float(message.removeprefix(LOSS)))
        self._progress(step, total, message)


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
            held = _resident_megabytes()
            self.megabytes = max(self.megabytes or 0.0, held)
            if self._stop.wait(SAMPLE_SECONDS):
                return


def _resident_megabytes() -> float:
    lines = MEMORY_FILE.read_text().splitlines()
    (held,) = [line for line in lines if line.startswith("VmRSS:")]
    return int(held.split()[1]) / 1024
