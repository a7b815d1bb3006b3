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
    then it has frayed feet. So all things are looked at without the surfaces. A Gaussian that now
    shows more in one view, where the scene shows no thing, than the scene shows of it in any view,
    goes to the surface that hides it. What another thing hides stays: nothing tells whose it is.

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
    (rows,) = np.nonzero(is_thing)
    if not len(rows):
        return object_ids
    surfaces = np.append(-1, np.flatnonzero(is_surface))
    layers = np.where(is_thing, len(surfaces), np.searchsorted(surfaces, object_ids))
    seen, most_beyond = np.zeros((2, len(rows)), np.float32)
    beyond = scipy.sparse.csr_matrix((len(surfaces), len(rows)), dtype=np.float32)
    stride = max(1, len(weights) // config.outline_views)
    for view, blend in enumerate(weights):
        check()
        everywhere = np.zeros(blend.width * blend.height, np.int32)
        seen = np.maximum(seen, _total(blend.mask_mass(everywhere, 1))[rows])
        if view % stride:
            continue
        labels = label_map(blend, layers)
        labels[labels == len(surfaces)] = -1
        mass = alone(rows, view).mask_mass(labels.ravel(), len(surfaces))
        most_beyond = np.maximum(most_beyond, _total(mass))
        beyond += mass
    hidden = most_beyond > seen
    result = object_ids.copy()
    result[rows[hidden]] = surfaces[np.asarray(beyond.argmax(0)).ravel()[hidden]]
    return result


def _total(mass: scipy.sparse.csr_matrix) -> np.ndarray:
    return np.asarray(mass.sum(0)).ravel()
