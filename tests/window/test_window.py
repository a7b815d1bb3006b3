# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Blender in a real window, used as a person would: see driver.py."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "window"
ZIP = ROOT / "build" / "blender_unified_lift-0.1.0.zip"
BACKEND = ROOT / "build" / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
SAMPLE = ROOT / "tests" / "data" / "messy8"
LIMIT_SECONDS = 600


@pytest.fixture(scope="module")
def result() -> dict:
    """What the driver saw; the screenshots stay in build/window."""
    blender = os.environ.get("BLENDER")
    if not blender:
        pytest.skip("BLENDER is not set: give it the path of a Blender that can open a window")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    window = ["-p", "0", "0", "1280", "800", "--gpu-backend", "opengl"]
    script = ["--enable-event-simulate", "--python", ROOT / "tests" / "window" / "driver.py"]
    options = {"zip": ZIP, "backend-python": BACKEND, "capture": SAMPLE, "out": OUT}
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [blender, "--factory-startup", *window, *script, "--", *arguments]
    # a cache of its own: Mesa maps its files, and dies when another version rewrites them
    own = {"BLENDER_USER_RESOURCES": str(OUT / "profile"), "XDG_CACHE_HOME": str(OUT / "cache")}
    profile = {**os.environ, **own}
    with open(OUT / "blender.txt", "w") as log:
        subprocess.run(
            list(map(str, command)), env=profile, stdout=log, stderr=log, timeout=LIMIT_SECONDS
        )
    path = OUT / "result.json"
    assert path.exists(), f"Blender ended early: {(OUT / 'blender.txt').read_text()[-2000:]}"
    return json.loads(path.read_text())


def test_a_user_segments_a_scene_and_works_on_its_objects(result):
    assert result.get("ok"), result.get("error")
    assert len(result["things"]) >= 6, result["parts"]
    assert result["rendered"] == [result["deleted"]]


def test_render_isolated_shows_one_object_on_a_transparent_ground(result):
    assert result.get("ok"), result.get("error")
    with Image.open(OUT / "rendered.png") as image:
        alpha = np.asarray(image)[..., 3]
    assert (alpha == 0).mean() > 0.2 and (alpha > 128).mean() > 0.01


def test_clicks_on_objects_select_them(result):
    hits = [name for name, selected in result["clicks"].items() if selected == [name]]
    assert len(hits) >= len(result["clicks"]) / 2, result["clicks"]


def test_no_step_left_an_error_in_the_console(result):
    text = (OUT / "blender.txt").read_text()
    assert "Traceback" not in text and "Error:" not in text, text[-3000:]
