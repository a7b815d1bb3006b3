# SPDX-License-Identifier: GPL-3.0-or-later
"""What belongs to a thing when it stands alone: no more than its outline in the photos allows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch

from unified_lift.config import LiftConfig
from unified_lift.gaussians import GEOMETRY, Gaussians
from unified_lift.lift.labels import label_map
from unified_lift.rendering import Camera, Engine
from unified_lift.rendering.weights import BlendWeights

Alone = Callable[[np.ndarray, int], BlendWeights]  # of Gaussians (rows), in a view


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
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Take from things what only shows once floor and walls are taken away.

    Below the table on which a thing stands, and behind the wall, there are Gaussians that masks
    count to it by the little that shines through. Nobody sees them until the thing is shown alone:
    then it has frayed feet. So things and the rest are looked at without each other. A Gaussian of
    a thing that now shows more in one view, where the scene shows no thing, than the scene shows of
    it in any view, goes to the surface that hides it, unless it would show even more there once the
    things are taken away. What another thing hides stays: nothing tells whose it is.

    Args:
        weights: of each of V views, N Gaussians.
        alone: blend weights of a selection of them.
        object_ids: (N,) int from 0, -1 = none.
        is_surface: (K,) bool, of each object.
        config: how many views are looked at.
        check: called for each view; may raise Cancelled.

    Returns:
        (N,) int64 ids as before; -1 where the scene shows no object.
    """
    is_thing = np.append(~is_surface, False)[object_ids]
    (things,), (others,) = np.nonzero(is_thing), np.nonzero(~is_thing)
    if not len(things):
        return object_ids
    surfaces = np.append(-1, np.flatnonzero(is_surface))
    thing = len(surfaces)
    layers = np.where(is_thing, thing, np.searchsorted(surfaces, object_ids))
    seen, maps = _scene(weights, layers, config, check)
    behind = {view: np.where(labels == thing, -1, labels) for view, labels in maps.items()}
    mass, harm = _shown(alone, things, behind, thing, check)
    hidden = harm > seen[things]
    rows, harm = things[hidden], harm[hidden]
    below = {view: np.where(labels == thing, 0, -1) for view, labels in maps.items()}
    _, other_harm = _shown(alone, np.append(others, rows), below, 1, check)
    moved = other_harm[len(others) :] < harm
    result = object_ids.copy()
    result[rows[moved]] = surfaces[np.asarray(mass.argmax(0)).ravel()[hidden][moved]]
    return result


def _scene(
    weights: list[BlendWeights], layers: np.ndarray, config: LiftConfig, check: Callable[[], None]
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The most that any view shows of each Gaussian (N,), and (P,) layers that some views show."""
    seen = np.zeros(len(layers), np.float32)
    maps, stride = {}, max(1, len(weights) // config.outline_views)
    for view, blend in enumerate(weights):
        check()
        everywhere = np.zeros(blend.width * blend.height, np.int32)
        seen = np.maximum(seen, _total(blend.mask_mass(everywhere, 1)))
        if view % stride == 0:
            maps[view] = label_map(blend, layers).ravel()
    return seen, maps


def _shown(
    alone: Alone,
    rows: np.ndarray,
    maps: dict[int, np.ndarray],
    num_labels: int,
    check: Callable[[], None],
) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """Weight of Gaussians, without all others, on each label of all maps, and the most of a view.

    Returns:
        (num_labels, R) csr and (R,) float32.
    """
    total = scipy.sparse.csr_matrix((num_labels, len(rows)), dtype=np.float32)
    most = np.zeros(len(rows), np.float32)
    for view, labels in maps.items():
        check()
        mass = alone(rows, view).mask_mass(labels, num_labels)
        total += mass
        most = np.maximum(most, _total(mass))
    return total, most


def _total(mass: scipy.sparse.csr_matrix) -> np.ndarray:
    return np.asarray(mass.sum(0)).ravel()
