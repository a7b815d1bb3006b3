# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may import whom: the floors of the building, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BACKEND = ROOT / "backend" / "unified_lift"
ADDON = ROOT / "blender_unified_lift"

CONTRACT = {"protocol", "config", "ply"}
READERS = {"__init__", "views", "transforms", "colmap", "cameras", "points", "image_size", "origin"}
# From the top down; a room may import what stands in a later line.
FLOORS = [
    {"__main__"},
    {"benchmark"},
    {"pipeline", "views"},
    {"previews"},
    {"preparation", "checkpoint", "edges"},
    {"masks", "lift", "geometry"},
    {"gaussians", "exposures", "digests"},
    {"metrics", "rendering", "capture"},
    CONTRACT,
]
HEAVY = {"torch", "gsplat", "scipy", "PIL", "skimage", "segment_anything", "bpy"}


def modules(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imported(path):
    """Absolute names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(path):
    return {name.split(".")[0] for name in imported(path)}


def room(path):
    return path.relative_to(BACKEND).with_suffix("").parts[0]


def rooms_used(path):
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("unified_lift.")}
    return {name for name in inside if (BACKEND / name).exists() or is_module(name)}


def is_module(name):
    return (BACKEND / f"{name}.py").exists()


def floor(name):
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", modules(BACKEND), ids=lambda path: path.stem)
def test_imports_run_down_the_floors(path):
    if path == BACKEND / "__init__.py":
        assert not rooms_used(path)
        return
    own = room(path)
    for other in rooms_used(path) - {own}:
        assert floor(other) >= floor(own), f"{own} imports {other}"
        assert floor(other) > floor(own) or own in CONTRACT, f"{own} imports its neighbour {other}"


def test_the_contract_needs_numpy_only():
    paths = [path for path in modules(BACKEND) if room(path) in CONTRACT]
    paths += [BACKEND / "capture" / f"{name}.py" for name in READERS]
    for path in paths:
        assert not packages(path) & HEAVY, path
        assert rooms_used(path) <= CONTRACT | {"capture"}, path


def test_gsplat_and_segment_anything_stay_in_their_rooms():
    for path in modules(BACKEND):
        if room(path) != "rendering":
            assert "gsplat" not in packages(path), path
        if room(path) != "masks":
            assert "segment_anything" not in packages(path), path


def test_bpy_never_reaches_the_backend_and_torch_never_the_add_on():
    for path in modules(BACKEND):
        assert "bpy" not in packages(path), path
    for path in modules(ADDON):
        assert not packages(path) & (HEAVY - {"bpy"}), path
        assert "blender_unified_lift" not in packages(path), f"{path}: imports must be relative"


def test_the_job_process_knows_nothing_of_blender():
    for name in ("process", "environment", "folders"):
        assert "bpy" not in packages(ADDON / "job" / f"{name}.py")


def test_every_file_states_its_licence_and_its_purpose():
    for path in [*modules(BACKEND), *modules(ADDON), ROOT / "build.py"]:
        text = path.read_text(encoding="utf-8")
        assert "SPDX-License-Identifier: GPL-3.0-or-later" in "".join(text.splitlines()[:2]), path
        body = ast.parse(text).body
        assert not body or ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
