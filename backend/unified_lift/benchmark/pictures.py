# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures of a report: label maps side by side, bars, training curves, what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from unified_lift.benchmark.frozen import Outcome
from unified_lift.benchmark.methods import PUBLISHED
from unified_lift.benchmark.scores import COVERAGES, predict
from unified_lift.benchmark.suites import Suite
from unified_lift.capture.images import UNREADABLE
from unified_lift.config import PublishedConfig
from unified_lift.lift.published import Learned, feature_image, similarity_map, uncertainty_map
from unified_lift.metrics import match
from unified_lift.previews import label_colors

INCH = 2.0  # width of one picture in a grid
DPI = 110
GREYS = (90, 200)
SHOWN_VIEWS = (0.25, 0.75)  # by their place among all
STAMP = "Source"  # the text of a PNG that says what it was made from
SMOOTHING = 25  # steps of a running mean


def level_pictures(folder: Path, suite: str, masks: str) -> dict[str, Path]:
    """The pictures of a level of masks: what each shows, and its file."""
    return {
        "label maps of test views": folder / f"{suite}-{masks}_ids.png",
        "given masks and what was learned": folder / f"{suite}-{masks}_training.png",
    }


def has_pictures(folder: Path, suite: str, masks: str, stamp: str) -> bool:
    """Whether all of them are there, whole, and made from what the stamp stands for."""
    return all(_has_stamp(path, stamp) for path in level_pictures(folder, suite, masks).values())


def _has_stamp(path: Path, stamp: str) -> bool:
    if not path.exists():
        return False
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.info.get(STAMP) == stamp
    except UNREADABLE:
        return False


def draw_level(
    suite: Suite,
    masks: str,
    label_maps: list[np.ndarray | None],
    outcomes: dict[str, Outcome],
    folder: Path,
    stamp: str,
) -> None:
    """Draw what all methods made of one level of masks, the masks, and what was learned.

    Args:
        suite: the scene.
        masks: name of the level.
        label_maps: of the training photos.
        outcomes: of each method.
        folder: gets the pictures that `level_pictures` names.
        stamp: for `has_pictures`.
    """
    ids_path, training_path = level_pictures(folder, suite.name, masks).values()
    columns = {"photo": suite.test_photos, "rendering": suite.test_images}
    columns["truth"] = like_truth(suite.truths, suite.truths)
    for name, outcome in outcomes.items():
        columns[name] = like_truth(
            predict(suite.with_gaussians(outcome.gaussians), outcome.object_ids), suite.truths
        )
    rows = {
        suite.test_views[i].name: [pictures[i] for pictures in columns.values()]
        for i in _shown(range(len(suite.test_views)))
    }
    title = f"{suite.name}, masks {masks}"
    save_grid(ids_path, list(columns), rows, f"{title}: test views", stamp)
    columns, rows = _training_columns(suite, label_maps, outcomes.get(PUBLISHED))
    save_grid(training_path, columns, rows, f"{title}: training views", stamp)


def _training_columns(
    suite: Suite, label_maps: list[np.ndarray | None], published: Outcome | None
) -> tuple[list[str], dict[str, list[np.ndarray]]]:
    """Given masks, and features, codebook similarity and uncertainty of the published method."""
    columns = ["training photo", "its masks"]
    if published is not None:
        columns += [f"{PUBLISHED}: features (PCA)", "similarity", "uncertainty"]
        features = torch.from_numpy(published.features.astype(np.float32))
        learned = Learned(features, torch.from_numpy(published.codebook))
    given = [view for view, labels in enumerate(label_maps) if labels is not None and labels.any()]
    rows = {}
    for view in _shown(given):
        weights, labels = suite.weights[view], label_maps[view]
        ids = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
        row = [suite.photos.images[view], label_colors(ids if (labels == 0).any() else ids + 1)]
        if published is not None:
            row += [
                feature_image(learned, weights),
                similarity_map(learned, weights),
                uncertainty_map(learned, weights, labels, PublishedConfig()),
            ]
        rows[suite.photos.views[view].name] = row
    return columns, rows


def _shown(views: Sequence[int]) -> list[int]:
    return sorted({views[round(share * (len(views) - 1))] for share in SHOWN_VIEWS})


def save_grid(
    path: Path,
    columns: Sequence[str],
    rows: dict[str, Sequence[np.ndarray]],
    title: str,
    stamp: str,
) -> None:
    """Write pictures (H, W, 3) uint8 or (H, W) float as a grid, columns and rows with captions."""
    height, width = next(iter(rows.values()))[0].shape[:2]
    size = (INCH * len(columns), INCH * height / width * len(rows) + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for across, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(across, pictures, strict=True):
            axis.imshow(picture, vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        across[0].set_ylabel(name, fontsize=6)
    for axis, caption in zip(axes[0], columns, strict=True):
        axis.set_title(caption, fontsize=7)
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, metadata={STAMP: stamp})


def like_truth(predictions: list[np.ndarray], truths: list[np.ndarray]) -> list[np.ndarray]:
    """Label maps as pictures, each id in the colour of the true object that it matches best.

    Ids without a match are grey, each in a shade of its own: false pieces stand out.

    Args:
        predictions: (H, W) int of each view, 0 = unlabelled.
        truths: likewise; 0 = not annotated.
    """
    true_ids = np.unique(np.concatenate([labels.ravel() for labels in truths]))
    pairs = match(predictions, truths, true_ids.tolist())
    ids = np.unique(np.concatenate([labels.ravel() for labels in predictions]))
    colors = np.repeat(np.linspace(*GREYS, len(ids))[:, None], 3, 1)
    for true, predicted in pairs.items():
        colors[np.searchsorted(ids, predicted)] = label_colors(np.array(true))
    colors[ids == 0] = 0
    return [colors[np.searchsorted(ids, labels)].astype(np.uint8) for labels in predictions]


def save_bars(
    path: Path, groups: Sequence[str], bars: dict[str, list[float]], label: str, title: str
) -> None:
    """Write a bar chart: for each group one bar of each name; NaN leaves a bar out."""
    figure = Figure(figsize=(max(6.0, 1.6 * len(groups) + 2), 3.2), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        axis.bar(np.arange(len(groups)) + (i + 0.5) * width - 0.4, values, width, label=name)
    axis.set_xticks(np.arange(len(groups)), groups, fontsize=7)
    axis.set_ylabel(label)
    axis.set_title(title, fontsize=8)
    axis.set_ylim(0, 1)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=6, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path)


def save_risks(path: Path, curves: dict[str, list[float]]) -> None:
    """Write shares of wrong labels over the share of Gaussians kept, most confident first."""
    figure = Figure(figsize=(5.0, 2.6), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    for name, shares in curves.items():
        axis.plot(COVERAGES, shares, label=name, linewidth=1)
    axis.set_xlabel("Gaussians kept, most confident first", fontsize=7)
    axis.set_ylabel("wrong labels", fontsize=7)
    axis.set_ylim(0)
    axis.tick_params(labelsize=6)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path)


def save_curves(path: Path, curves: dict[str, list[float]]) -> None:
    """Write the losses of training, each in a picture of its own: their scales do not compare."""
    figure = Figure(figsize=(2.4 * len(curves), 2.0), dpi=DPI, layout="constrained")
    for axis, (name, losses) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items()
    ):
        window = min(SMOOTHING, len(losses))
        axis.plot(np.convolve(losses, np.ones(window) / window, "valid"), linewidth=1)
        axis.set_title(name, fontsize=7)
        axis.tick_params(labelsize=6)
    figure.savefig(path)
