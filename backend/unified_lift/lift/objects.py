# SPDX-License-Identifier: GPL-3.0-or-later
"""From a split to objects: every Gaussian an id and a confidence, every object a record."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
from scipy.spatial import cKDTree

from unified_lift.config import LiftConfig
from unified_lift.gaussians import Gaussians
from unified_lift.lift.compaction import best_ious, masses, without_gaps
from unified_lift.lift.incidence import Incidence
from unified_lift.lift.outlines import Alone, Progress, shown_alone, within_outlines
from unified_lift.rendering import Camera, Engine
from unified_lift.rendering.weights import BlendWeights

THING, SURFACE = "thing", "surface"
GOLDEN_RATIO = 0.6180339887498949  # steps of this in hue never come close to an earlier one


@dataclass(frozen=True)
class ObjectRecord:
    """One object as objects.json lists it.

    Attributes:
        id: from 1; things first, each kind by falling mass.
        name: for the user.
        kind: "surface" if much of its mass lies on a large plane, else "thing".
        count: Gaussians.
        color: r, g, b in 0..1, display space, to tell the objects apart.
        score: 0..1, share of all views in which one mask shows it as it is.
        bounds: two corners (x, y, z), world frame, of the box around its Gaussians' means.
    """

    id: int
    name: str
    kind: str
    count: int
    color: tuple[float, float, float]
    score: float
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class SeenSplats:
    """N Gaussians, and how the views that lift see them.

    Attributes:
        means: (N, 3) float32, world frame.
        plane_of_gaussian: (N,) int, the large plane of which it is a part, 0 = none.
        weights: of each view.
        alone: blend weights of some of them (rows), without all others, in a view (its place).
    """

    means: np.ndarray
    plane_of_gaussian: np.ndarray
    weights: list[BlendWeights]
    alone: Alone

    @classmethod
    def of(
        cls,
        gaussians: Gaussians,
        find_planes: Callable[[np.ndarray], np.ndarray],
        weights: list[BlendWeights],
        cameras: list[Camera],
        engine: Engine,
    ) -> SeenSplats:
        """Of raw parameters, what finds the planes of means, and the views."""
        means = gaussians["means"].cpu().numpy()
        alone = shown_alone(engine, gaussians, cameras)
        return cls(means, find_planes(means), weights, alone)


def settle(
    incidence: Incidence,
    object_ids: np.ndarray,
    splats: SeenSplats,
    config: LiftConfig,
    progress: Progress = lambda step, total: None,
    may_drop: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Make of a split what a user takes into his hands.

    Pieces of the background are no objects, what no view shows goes to its neighbours, and things
    end at their outlines.

    Args:
        incidence: N Gaussians.
        object_ids: (N,) int from 0 without gaps, -1 = none.
        splats: these Gaussians.
        config: thresholds.
        progress: told of each view that is looked at; may raise Cancelled.
        may_drop: whether Gaussians that fray a thing, and would stain the surface below it, may be
            left out of the scene, which hides them; else they stay with the thing.

    Returns:
        (N,) int64, again from 0 without gaps, and which Gaussians are kept, (N,) bool; the others
        are of no object.
    """
    on_plane = splats.plane_of_gaussian
    object_ids = without_background(incidence, object_ids, on_plane, config)
    object_ids = fill_unseen(incidence, object_ids, splats.means, config)
    _, is_surface = _surfaces(incidence, object_ids, on_plane, config)
    scene = (splats.weights, splats.alone)
    object_ids, ghosts = within_outlines(*scene, object_ids, is_surface, config, progress)
    dropped = ghosts & may_drop
    return without_gaps(np.where(dropped, -1, object_ids)), ~dropped


def describe(
    incidence: Incidence, object_ids: np.ndarray, splats: SeenSplats, config: LiftConfig
) -> tuple[list[ObjectRecord], np.ndarray, np.ndarray]:
    """List the objects, things first, and give every Gaussian its final id and confidence.

    Args:
        incidence: N Gaussians.
        object_ids: (N,) int from 0 without gaps, -1 = none.
        splats: these Gaussians.
        config: thresholds.

    Returns:
        Records in the order of their ids, ids (N,) int32 with 0 = unassigned, and confidence
        (N,) float32 in 0..1.
    """
    total, is_surface = _surfaces(incidence, object_ids, splats.plane_of_gaussian, config)
    num_objects = len(total)
    order = np.lexsort((-total, is_surface))
    new_ids = np.empty(num_objects + 1, np.int32)
    new_ids[order] = np.arange(1, num_objects + 1)
    new_ids[-1] = 0  # of -1
    final = new_ids[object_ids]
    scores = object_trust(incidence, object_ids, num_objects, config)
    records = [
        _record(number, bool(is_surface[old]), float(scores[old]), splats.means[final == number])
        for number, old in enumerate(order, 1)
    ]
    return _numbered(records), final, confidence(incidence, object_ids, config)


def without_background(
    incidence: Incidence, object_ids: np.ndarray, plane_of_gaussian: np.ndarray, config: LiftConfig
) -> np.ndarray:
    """Leave out things that few views show, and hardly any of them whole.

    They are pieces of what lies behind the scene: the photos' borders cut them out, not an outline.

    Returns:
        (N,) int64 ids from 0 without gaps, -1 = none.
    """
    total, is_surface = _surfaces(incidence, object_ids, plane_of_gaussian, config)
    best, weights = best_ious(incidence, object_ids, len(total), ~incidence.mask_cut)
    whole = (best > config.support_iou).sum(0)
    few = weights.sum(0) < config.few_views * len(np.unique(incidence.mask_views))
    kept = is_surface | ~few | (whole >= config.whole_views)
    return without_gaps(np.where(np.append(kept, False)[object_ids], object_ids, -1))


def fill_unseen(
    incidence: Incidence, object_ids: np.ndarray, means: np.ndarray, config: LiftConfig
) -> np.ndarray:
    """Give Gaussians that no photo shows (inside, behind, faint) the id of their neighbour.

    Those that photos do show, outside of all masks, stay without an object.
    """
    hidden = (object_ids < 0) & (_mass(incidence) < config.min_visible)
    labelled = object_ids >= 0
    if not hidden.any() or labelled.sum() < 2:  # one alone has no spacing
        return object_ids
    tree = cKDTree(means[labelled])
    spacing = np.median(tree.query(means[labelled][:: config.spacing_stride], 2)[0][:, 1])
    distances, nearest = tree.query(means[hidden])
    found = object_ids[labelled][nearest]
    filled = object_ids.copy()
    filled[hidden] = np.where(distances < config.fill_distance * spacing, found, -1)
    return filled


def object_trust(
    incidence: Incidence, object_ids: np.ndarray, num_objects: int, config: LiftConfig
) -> np.ndarray:
    """How sure the split is of each object, (K,) in 0..1: true ones rank above false ones.

    The share of all views in which one mask shows it as it is. Of the views that show it alone
    would not do: what few views show is often a piece, however well their masks fit it.
    """
    best, _ = best_ious(incidence, object_ids, num_objects)
    num_views = max(1, len(np.unique(incidence.mask_views)))
    return (best > config.support_iou).sum(0) / num_views


def confidence(incidence: Incidence, object_ids: np.ndarray, config: LiftConfig) -> np.ndarray:
    """By how much a Gaussian's own object leads the second, (N,) float32 in 0..1.

    The share of its weight in masks of its own object, less that in masks of the one other that
    most of it lies in. Less where it is hardly seen: what has little weight had little to say.
    """
    num_objects = max(1, int(object_ids.max(initial=-1)) + 1)
    in_masks, _ = masses(incidence, object_ids, num_objects)
    entries = incidence.mass.tocoo()
    shown = in_masks.argmax(1)[entries.row]
    own = shown == object_ids[entries.col]
    agreeing = np.bincount(entries.col[own], entries.data[own], incidence.num_gaussians)
    others = (entries.data[~own], (entries.col[~own], shown[~own]))
    others = scipy.sparse.csr_matrix(others, (incidence.num_gaussians, num_objects))
    lead = agreeing - others.max(1).toarray().ravel()
    share = lead / (_mass(incidence) + config.confident_mass)
    return np.where(object_ids >= 0, share, 0).clip(0, 1).astype(np.float32)


def _surfaces(
    incidence: Incidence, object_ids: np.ndarray, plane_of_gaussian: np.ndarray, config: LiftConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Mass (K,) of each object, and whether it is a surface (K,) bool."""
    mass, num_objects = _mass(incidence), int(object_ids.max(initial=-1)) + 1
    inside = object_ids >= 0
    total = np.bincount(object_ids[inside], mass[inside], num_objects)
    planar = inside & (plane_of_gaussian > 0)
    on_plane = np.bincount(object_ids[planar], mass[planar], num_objects)
    return total, on_plane > config.surface_share * total


def _mass(incidence: Incidence) -> np.ndarray:
    """All weight of each Gaussian in all views, (N,)."""
    return incidence.mass_of_gaussian + incidence.void.sum(0)


def _record(number: int, is_surface: bool, score: float, means: np.ndarray) -> ObjectRecord:
    low, high = (tuple(corner.tolist()) for corner in (means.min(0), means.max(0)))
    kind = SURFACE if is_surface else THING
    return ObjectRecord(number, "", kind, len(means), label_color(number), score, (low, high))


def _numbered(records: list[ObjectRecord]) -> list[ObjectRecord]:
    """Names "Object 001", … and "Surface 001", …, each kind with numbers of its own."""
    counts = {THING: 0, SURFACE: 0}
    named = []
    for record in records:
        counts[record.kind] += 1
        word = {THING: "Object", SURFACE: "Surface"}[record.kind]
        named.append(replace(record, name=f"{word} {counts[record.kind]:03d}"))
    return named


def label_color(number: int) -> tuple[float, float, float]:
    """A colour (r, g, b) in 0..1 for an id from 1, unlike those of the ids around it."""
    hue = number * GOLDEN_RATIO % 1
    saturation, value = ((0.65, 0.95), (0.85, 0.75), (0.45, 0.9))[number % 3]
    return tuple(round(part, 4) for part in colorsys.hsv_to_rgb(hue, saturation, value))
