# SPDX-License-Identifier: GPL-3.0-or-later
"""Add-on tests run inside the bpy module; each starts from an empty scene."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import bpy
import numpy as np
import pytest

from unified_lift.capture import read_capture, write_cameras
from unified_lift.ply import Splats, write_ply
from unified_lift.protocol import (
    CAMERAS_FILE,
    OBJECTS_FILE,
    SCENE_FILE,
    JobRequest,
    write_job,
    write_json,
)

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "data" / "messy8"
sys.path.insert(0, str(ROOT))


def pytest_sessionfinish(session, exitstatus):
    session.config.exitstatus = int(exitstatus)


def pytest_unconfigure(config):
    """End here: after loading a .blend the bpy module 4.5 hangs in its own clean-up at exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(getattr(config, "exitstatus", 1))


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


@pytest.fixture
def addon(empty_scene):
    """The add-on enabled in an empty scene; its preferences."""
    bpy.ops.preferences.addon_enable(module="blender_unified_lift")
    yield bpy.context.preferences.addons["blender_unified_lift"].preferences
    bpy.ops.preferences.addon_disable(module="blender_unified_lift")


@pytest.fixture
def finished_job(tmp_path, make_splats):
    """A job folder with two things, a surface and ten unassigned splats.

    Its cameras are the sample's, in a world whose y axis points up.
    """
    job_dir = tmp_path / "messy8_001"
    write_job(job_dir, JobRequest(str(SAMPLE)))
    ids = np.repeat(np.int32([0, 1, 2, 3]), [10, 20, 30, 40])
    splats = replace(make_splats(len(ids)), object_ids=ids)
    splats.means[ids == 2] += np.float32([3, 0, 0])
    write_ply(job_dir / SCENE_FILE, splats)
    y_up = np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    capture = replace(read_capture(SAMPLE), world_to_blender=y_up)
    write_cameras(job_dir / CAMERAS_FILE, capture)
    kinds = {1: "thing", 2: "thing", 3: "surface"}
    names = {1: "Object 001", 2: "Object 002", 3: "Surface 001"}
    colors = {1: (1, 0, 0), 2: (0, 0.5, 1), 3: (0.4, 0.4, 0.4)}
    listed = [
        {
            "id": number,
            "name": names[number],
            "kind": kinds[number],
            "count": int((ids == number).sum()),
            "score": 0.9,
            "color": colors[number],
            "bounds": [[-1, -1, -1], [1, 1, 1]],
        }
        for number in kinds
    ]
    write_json(job_dir / OBJECTS_FILE, {"objects": listed})
    return job_dir


@pytest.fixture
def segmented(addon, finished_job):
    """The root collection of the finished job, imported."""
    bpy.ops.ed.undo_push(message="Before")
    bpy.ops.unified_lift.import_job("EXEC_DEFAULT", True, directory=str(finished_job))
    return bpy.context.scene.collection.children["messy8"]
