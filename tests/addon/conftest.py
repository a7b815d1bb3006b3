# SPDX-License-Identifier: GPL-3.0-or-later
"""Add-on tests run inside the bpy module; each starts from an empty scene."""

import sys
from pathlib import Path

import bpy
import numpy as np
import pytest

from unified_lift.ply import Splats

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture
def empty_scene():
    """The factory settings' scene with nothing in it."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    return bpy.context.scene


@pytest.fixture
def make_splats():
    """A function that makes random splats around the origin, seeded."""

    def make(num_points: int, num_sh: int = 15, seed: int = 0, **values) -> Splats:
        rng = np.random.default_rng(seed)
        random = {
            "means": rng.normal(0, 0.5, (num_points, 3)),
            "quats": _unit(rng.normal(size=(num_points, 4))),
            "scales": rng.uniform(-4, -1.5, (num_points, 3)),
            "opacities": rng.normal(0, 2, num_points),
            "sh0": rng.normal(0, 1, (num_points, 1, 3)),
            "shN": rng.normal(0, 0.15, (num_points, num_sh, 3)),
            "confidence": rng.uniform(0, 1, num_points),
        }
        floats = {name: np.float32(values.get(name, value)) for name, value in random.items()}
        return Splats(object_ids=np.zeros(num_points, np.int32), **floats)

    return make


def _unit(quats: np.ndarray) -> np.ndarray:
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)
