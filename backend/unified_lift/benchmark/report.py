# SPDX-License-Identifier: GPL-3.0-or-later
"""From the benchmark's cells to one report: Markdown, and pictures beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import scipy

from unified_lift.benchmark.machine import machine_words, today, version_words
from unified_lift.benchmark.methods import ALL_METHODS, DROPPED, METHODS, ORACLE, STEPS
from unified_lift.benchmark.pictures import level_pictures, save_bars, save_curves, save_risks
from unified_lift.config import Budget
from unified_lift.lift.default import FEATURES

# Heading of each column, where its number lies in a cell, and its format.
COLUMNS: list[tuple[str, Callable[[dict], float | None], str]] = [
    ("found", lambda cell: cell["things"]["TP"], "{:.4g}"),
    ("false", lambda cell: cell["things"]["FP"], "{:.4g}"),
    ("PQ", lambda cell: cell["things"]["PQ"], "{:.3f}"),
    ("SQ", lambda cell: cell["things"]["SQ"], "{:.3f}"),
    ("RQ", lambda cell: cell["things"]["RQ"], "{:.3f}"),
    ("mIoU", lambda cell: cell["things"]["mIoU"], "{:.3f}"),
    ("mBIoU", lambda cell: cell["things"]["mBIoU"], "{:.3f}"),
    ("AP", lambda cell: cell["things"]["AP"], "{:.3f}"),
    ("AP50", lambda cell: cell["things"]["AP50"], "{:.3f}"),
    ("AP75", lambda cell: cell["things"]["AP75"], "{:.3f}"),
    ("ARI", lambda cell: cell["things"]["ARI"], "{:.3f}"),
    ("PQ all", lambda cell: cell["all"]["PQ"], "{:.3f}"),
    ("id kept", lambda cell: cell["things"]["id_consistency"], "{:.3f}"),
    ("count error", lambda cell: cell["things"]["count_error"], "{:.2f}"),
    ("Gaussians", lambda cell: cell["gaussians"].get("things", {}).get("accuracy"), "{:.3f}"),
    ("extraction", lambda cell: cell["extraction"]["iou"], "{:.3f}"),
    ("left out", lambda cell: cell["extraction"]["left_out"], "{:.3f}"),
    ("caught", lambda cell: cell["confidence"]["caught"], "{:.3f}"),
    ("dB", lambda cell: cell["scene"]["psnr"], "{:.2f}"),
    ("s", lambda cell: cell["seconds"], "{:.1f}"),
    ("MB", lambda cell: cell["megabytes"], "{:.0f}"),
]
READING = """\
For each seed splats are trained. All methods get these, frozen, with the same blend weights and
masks, and give one id to each Gaussian (ours then sharpens the edges of its own, where masks tell
them: `no-sharpening`). Ids are rendered as label maps of the test views (the largest blended share,
alpha at least one half). Scores take all test views as one picture: an id must hold through the
views.
Protocol *things* unless *all* is said: pieces of floor and walls do not count as false.

- *found*, *false*: objects that an id covers with an IoU above one half; counted ids of no object.
- *PQ* = *SQ* (mean IoU of what was found) x *RQ* (its F1 score). *mIoU*: each object with its best
  match, *mBIoU*: the same near its border. *AP*: mean over IoU thresholds, *AP50*, *AP75* at one;
  ids rank by the score that the add-on gives an object, from the masks alone.
- *ARI*: agreement of two partitions, 1 for the same, about 0 by chance. *PQ all*: with floor and
  walls.
- *oracle*: a vote of the true ids on the same splats, about what the geometry allows.
- *id kept*: share of the objects that keep their id in 95 % of the views.
- *count error*: by how much the number of counted objects is wrong, over the true number.
- *Gaussians*: share of them with the object of the nearest true surface; – without such a surface.
- *extraction*: IoU of an object rendered alone with its true mask, without pixels where another
  object lies before it (*left out* is their share).
- *caught*: share of all wrong labels of Gaussians that the least confident tenth of them holds, .1
  by chance; – where none is wrong. A label is wrong if the oracle gives most of its object another
  one; floor in walls does not count. The curves show the share of wrong labels among the most
  confident Gaussians, over how many are kept.
- *dB*: test PSNR of the splats as the method leaves them.
- *s*, *MB*: time of the method after the geometry, the most memory that the process held, what
  earlier methods left in it included.
- ±: mean over the seeds, trainings of the splats included, and half of their range. Pictures and
  curves show the first seed.
- Pictures: an id has the colour of the true object that it fits best, grey if none (a piece of the
  floor is grey, too, and not counted), black where there is none. *similarity*: of a pixel's
  feature to its nearest code, *uncertainty*: of its mask's label; 0 is dark, 1 bright. Curves: the
  loss over the steps.
- A scene named *-8views* was trained and split with 8 of its training views, evenly spread; its
  sparse points, where it has any, stay, which come from all of them."""


def write_report(
    path: Path, cells: Sequence[dict], command: str, budget: Budget, engine: str
) -> None:
    """Write the report.

    Args:
        path: the Markdown file; beside it lies the folder of the run, named like it, with pictures.
        cells: of `run_benchmark`.
        command: that made it.
        budget: of the learned methods.
        engine: name of the engine that rendered.
    """
    folder = path.with_suffix("")
    blocks = ["# Benchmark of Unified-Lift and its rivals", _setup(cells, command, budget, engine)]
    blocks += [READING, "## Scenes", _suites_table(cells)]
    for suite, masks in _levels(cells):
        rows = [c for c in cells if c["suite"] == suite and c["masks"] == masks]
        rows += [c for c in cells if c["suite"] == suite and c["method"] == ORACLE]
        blocks += [f"## {suite}, masks `{masks}`", _method_table(rows)]
        blocks += [f"Warning: {text}" for text in dict.fromkeys(_warnings(rows))]
        for shown, picture in level_pictures(folder, suite, masks).items():
            blocks.append(_image(f"{suite}, masks {masks}: {shown}", picture))
        blocks += _curves(folder, suite, masks, rows)
        blocks += _risks(folder, suite, masks, rows)
    blocks += ["## All together", _bars(folder, cells)]
    blocks += _steps(cells)
    blocks += ["## The methods", _descriptions(cells)]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _setup(cells: Sequence[dict], command: str, budget: Budget, engine: str) -> str:
    versions = f"{version_words()}, NumPy {np.__version__}, SciPy {scipy.__version__}"
    steps = f"{budget.steps} steps of {budget.pixels} pixels for each learned rival, whose rates "
    steps += f"were chosen on the scene messy25 with `paper` masks, {FEATURES.steps} of "
    steps += f"{FEATURES.pixels} for ours"
    preset = next(cell["key"]["preset"] for cell in cells)
    seeds = ", ".join(str(seed) for seed in sorted({cell["seed"] for cell in cells}))
    run = f"{today()}; preset `{preset}`; seeds {seeds}"
    return f"`{command}`\n\n{run}; {machine_words()}; {versions}; engine `{engine}`; {steps}."


def _levels(cells: Sequence[dict]) -> list[tuple[str, str]]:
    """Pairs of suite and masks, in order, without the oracle's."""
    return list(dict.fromkeys((c["suite"], c["masks"]) for c in cells if c["method"] != ORACLE))


def _suites_table(cells: Sequence[dict]) -> str:
    rows = []
    for suite in dict.fromkeys(cell["suite"] for cell in cells):
        same = [c["scene"] for c in cells if c["suite"] == suite and c["method"] == ORACLE]
        forms = {"splats": "{:,.0f}", "psnr": "{:.2f}", "ssim": "{:.3f}"}
        values = [_spread([scene[key] for scene in same], form) for key, form in forms.items()]
        views = f"{same[0]['train_views']} + {same[0]['test_views']}"
        rows.append(f"| {suite} | {same[0]['things']} | {views} | {' | '.join(values)} |")
    head = "| scene | objects | views | splats | test PSNR, dB | test SSIM |\n"
    return head + "| --- " * 6 + "|\n" + "\n".join(rows)


def _method_table(cells: Sequence[dict]) -> str:
    titles = [title for title, _, _ in COLUMNS]
    lines = ["| method | " + " | ".join(titles) + " |", "| --- " * (len(titles) + 1) + "|"]
    for method in dict.fromkeys(cell["method"] for cell in cells):
        same = [cell for cell in cells if cell["method"] == method]
        values = [_spread([get(cell) for cell in same], form) for _, get, form in COLUMNS]
        lines.append(f"| {method} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float | None], form: str) -> str:
    """Mean, and half of the range where there are several."""
    if any(value is None for value in values):
        return "–"
    mean = form.format(np.mean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {form.format((max(values) - min(values)) / 2)}"


def _warnings(cells: Sequence[dict]) -> list[str]:
    return [text for cell in cells for text in cell["warnings"]]


def _curves(folder: Path, suite: str, masks: str, cells: Sequence[dict]) -> list[str]:
    first = min(cell["seed"] for cell in cells)
    same = [cell for cell in cells if cell["seed"] == first and cell["losses"]]
    curves = {cell["method"]: cell["losses"] for cell in same}
    if not curves:
        return []
    picture = folder / f"{suite}-{masks}_losses.png"
    save_curves(picture, curves)
    return [_image(f"{suite}, masks {masks}: training losses", picture)]


def _risks(folder: Path, suite: str, masks: str, cells: Sequence[dict]) -> list[str]:
    """How the share of wrong labels falls when the least confident Gaussians are left out."""
    first = min(cell["seed"] for cell in cells)
    same = [c for c in cells if c["seed"] == first and c["confidence"]["curve"]]
    if not same:
        return []
    picture = folder / f"{suite}-{masks}_risk.png"
    save_risks(picture, {cell["method"]: cell["confidence"]["curve"] for cell in same})
    return [_image(f"{suite}, masks {masks}: wrong labels among the most confident", picture)]


def _steps(cells: Sequence[dict]) -> list[str]:
    """What our method loses without each of its steps, in PQ; and what was tried in vain."""
    names = list(dict.fromkeys(cell["method"] for cell in cells))
    steps = [name for name in STEPS if name in names]
    if "default" not in steps or not set(steps) - set(METHODS):
        return []
    levels = _levels(cells)
    head = ["| PQ | " + " | ".join(f"{suite} {masks}" for suite, masks in levels) + " | mean |"]
    head.append("| --- " * (len(levels) + 2) + "|")
    rows = []
    for name in steps:
        found = {
            level: [
                cell["things"]["PQ"]
                for cell in cells
                if cell["method"] == name and (cell["suite"], cell["masks"]) == level
            ]
            for level in levels
        }
        values = [_spread(found[level], "{:.3f}") for level in levels]
        mean = np.mean([np.mean(found[level]) for level in levels])
        rows.append(f"| {ALL_METHODS[name].about} | " + " | ".join(values) + f" | {mean:.3f} |")
    dropped = ["| tried and dropped | measured |", "| --- | --- |"]
    dropped += [f"| {what} | {effect} |" for what, effect in DROPPED]
    table = "\n".join([*head, *rows])
    return ["## What each step of ours is worth", table, "\n".join(dropped)]


def _image(words: str, picture: Path) -> str:
    """A link to a picture in the run's folder, whatever its name."""
    return f"![{words}]({quote(f'{picture.parent.name}/{picture.name}')})"


def _bars(folder: Path, cells: Sequence[dict]) -> str:
    levels = _levels(cells)
    bars = {}
    for method in dict.fromkeys(cell["method"] for cell in cells):
        means = []
        for suite, masks in levels:
            values = [
                cell["things"]["PQ"]
                for cell in cells
                if cell["suite"] == suite
                and cell["method"] == method
                and (cell["masks"] == masks or method == ORACLE)
            ]
            means.append(float(np.mean(values)) if values else float("nan"))
        bars[method] = means
    groups = [f"{suite}\n{masks}" for suite, masks in levels]
    picture = folder / "pq.png"
    save_bars(picture, groups, bars, "PQ", "PQ of all methods (things, test views)")
    return _image("PQ of all methods, for each scene and level of masks", picture)


def _descriptions(cells: Sequence[dict]) -> str:
    """What each method is, and in what it deviates from its paper, from the code's own words."""
    lines = []
    for name in dict.fromkeys(cell["method"] for cell in cells):
        row = ALL_METHODS[name]
        words = inspect.getdoc(row.source) or "" if row.source else ""
        own = words.split("\n\nArgs")[0].split("\n\n", 1)  # the first line says what the code is
        details = " ".join(own[1].split()) if len(own) > 1 else ""
        lines.append(f"- **{name}**: {row.about}. {details}".rstrip())
    return "\n".join(lines)
