# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of `build.py test`: which are tests, which are options."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build", ROOT / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_folder_that_is_an_options_value_is_no_test(build, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert build.split_words(["-k", "backend"]) == ([], ["-k", "backend"])
    words = ["tests/backend/test_ply.py", "-k", "nan", f"{ROOT}/tests/addon/test_ui.py::test_a"]
    tests = ["tests/backend/test_ply.py", "tests/addon/test_ui.py::test_a"]
    assert build.split_words(words) == (tests, ["-k", "nan"])


def test_a_test_that_does_not_exist_is_told(build, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(build.BuildError, match=r"There is no test tests/backend/test_nothing\.py"):
        build.split_words(["tests/backend/test_nothing.py"])


def test_a_blender_module_without_its_python_is_left_out(build, monkeypatch, capsys):
    monkeypatch.setattr(build, "BPY_VERSIONS", {(3, 2): ["2.5"], sys.version_info[:2]: []})
    assert list(build.bpy_envs()) == []
    assert "Blender 2.5 left out: Python 3.2 is needed" in capsys.readouterr().out
    monkeypatch.setattr(build, "BPY_VERSIONS", {(3, 2): ["2.5"]})
    with pytest.raises(build.BuildError, match=r"Blender 2\.5 left out"):
        list(build.bpy_envs())
