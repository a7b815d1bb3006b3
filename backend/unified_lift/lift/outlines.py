# SPDX-License-Identifier: GPL-3.0-or-later
"""What belongs to a thing when it stands alone: no more than its outline in the photos allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch

from unified_lift.config import LiftConfig
from unified_lift.gaussians import GEOMETRY, Gaussians
from unified_lift.lift.labels import label_map
from unified_lift.rendering import Camera, Engine
from unified_lift.rendering.weights import BlendWeights

Progress = Callable[[int, int], None]  # step and number of steps
TINY = 1e-9  # no division by zero
Alone = Callable[[np.ndarray, int], BlendWeights]  # of Gaussians (rows), in a view (its place)


def shown_alone(engine: Engine, gaussians: Gaussians, cameras: list[Camera]) -> Alone:
    """What makes the blend weights of some Gaussians, without all others, in a camera's view."""

    def alone(rows: np.ndarray, view: int) -> BlendWeights:
        some = (gaussians[name][torch.from_numpy(rows)] for name in GEOMETRY)
        return engine.blend_weights(*some, cameras[view])

    return alone


def within_outlines(
    weights: list[BlendWeights],
    alone: Alone,
    object_ids: np.ndarray,
    is_surface: np.ndarray,
    config: LiftConfig,
    progress: Progress = lambda step, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Take from things what only shows once floor and walls are taken away.

    Below the table on which a thing stands, and behind the wall, there are Gaussians that masks
    count to it by the little that shines through. Nobody sees them until the thing is shown alone:
    then it has frayed feet. So things and the rest are looked at without each other. What the scene
    hides, and what shows of the things alone mostly where the scene shows none, goes to the surface
    that hides it; unless far more of it would show there, once the things are taken away: then the
    surface would keep a ghost of the thing, and neither should have it. What another thing hides
    stays: nothing tells whose it is.

    Args:
        weights: of each of V views, N Gaussians.
        alone: blend weights of a selection of them.
        object_ids: (N,) int from 0, -1 = none.
        is_surface: (K,) bool, of each object.
        config: thresholds.
        progress: told of each view that is looked at; may raise Cancelled.

    Returns:
        (N,) int64 ids as before; -1 where the scene shows no object. And (N,) bool, what neither
        should have; its ids are those of the things still.
    """
    ghosts = np.zeros(len(object_ids), bool)
    is_thing = np.append(~is_surface, False)[object_ids]
    (things,), (others,) = np.nonzero(is_thing), np.nonzero(~is_thing)
    if not len(things):
        return object_ids, ghosts
    surfaces = np.append(-1, np.flatnonzero(is_surface))
    layers = np.where(is_thing, len(surfaces), np.searchsorted(surfaces, object_ids))
    shape = len(surfaces) + 1, len(things)
    sums = np.zeros(len(things)), np.zeros(len(things))
    scene = _Scene([], *sums, np.zeros(shape, np.float32))
    total = 2 * len(weights)
    for view, blend in enumerate(weights):
        progress(view, total)
        scene.add(blend, layers, alone(things, view), things, config)
    hidden = scene.hidden(config)
    if not hidden.any():
        return object_ids, ghosts
    rows, beyond = things[hidden], scene.alone[:-1, hidden]
    without_things = np.append(others, rows)
    there = np.zeros(len(rows))
    for view, labels in enumerate(scene.labels):
        progress(len(weights) + view, total)
        shown = np.where(labels == len(surfaces), 0, -1)
        mass = alone(without_things, view).mask_mass(shown, 1)
        there += _total(mass)[len(others) :]
    moved = there < config.outline_ghost * beyond.sum(0)
    result = object_ids.copy()
    result[rows[moved]] = surfaces[beyond[:, moved].argmax(0)]
    ghosts[rows[~moved]] = True
    return result, ghosts


@dataclass
class _Scene:
    """What the views seen so far show of things, T Gaussians, in the scene and alone.

    Attributes:
        labels: (P,) int32 of each view: the surface in a pixel, 0 = no object, the last = a thing.
        squares: (T,) float64, of the share that the scene shows of what the things alone show,
            summed over the views.
        seen: (T,) float64, how many views show anything of it alone; a view that shows less than a
            pixel's weight counts less.
        alone: (L, T) float32, weight of the things alone on each label, of all views.
    """

    labels: list[np.ndarray]
    squares: np.ndarray
    seen: np.ndarray
    alone: np.ndarray

    def add(
        self,
        blend: BlendWeights,
        layers: np.ndarray,
        alone: BlendWeights,
        things: np.ndarray,
        config: LiftConfig,
    ) -> None:
        """One more view."""
        labels = label_map(blend, layers).ravel()
        everywhere = np.zeros(len(labels), np.int32)
        in_scene = _total(blend.mask_mass(everywhere, 1))[things]
        mass = alone.mask_mass(labels, len(self.alone)).toarray()
        self.labels.append(labels)
        self.alone += mass
        whole = mass.sum(0)
        seen = whole / (whole + config.outline_pixels)
        self.squares += seen * (in_scene / np.maximum(whole, TINY)) ** 2
        self.seen += seen

    def hidden(self, config: LiftConfig) -> np.ndarray:
        """Which Gaussians the scene hides, and which alone show mostly where no thing is, (T,)."""
        beyond = self.alone[:-1].sum(0) > self.alone[-1]
        shown = np.sqrt(self.squares / np.maximum(self.seen, TINY))
        return beyond & (shown < config.outline_visible)


def _total(mass: scipy.sparse.csr_matrix) -> np.ndarray:
    return np.asarray(mass.sum(0)).ravel()
