# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator that exports: what it refuses, what it keeps, where it is found."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_unified_lift.scene import schema
from unified_lift.ply import read_ply, write_ply


def select(*names: str) -> None:
    from blender_unified_lift.scene import objects

    objects.select(bpy.context, [bpy.data.objects[name] for name in names])


@pytest.fixture
def plain_points(addon, make_splats):
    """A point cloud of the user's own."""
    obj = schema.make_splat_object("Points", make_splats(3, 0))
    for name in ("radiance:base", "rotation"):
        obj.data.attributes.remove(obj.data.attributes[name])
    bpy.context.scene.collection.objects.link(obj)
    obj.select_set(False)
    return obj


def test_a_scene_without_splats_says_so(plain_points):
    with pytest.raises(RuntimeError, match="There are no splats in this scene"):
        bpy.ops.unified_lift.export_splats(filepath="/nowhere/export.ply")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Points"], r"Points holds no Gaussian splats \(no radiance:base, rotation\)"),
        (["Capture"], "No selected object holds splats"),
        ([], "No selected object holds splats"),
    ],
)
def test_a_selection_without_splats_says_so(segmented, plain_points, tmp_path, names, words):
    bpy.data.objects["Capture"].hide_set(False)
    select(*names)
    with pytest.raises(RuntimeError, match=words):
        bpy.ops.unified_lift.export_splats(filepath=str(tmp_path / "a.ply"), selected_only=True)
    assert not (tmp_path / "a.ply").exists()


def test_attributes_of_another_kind_are_no_splats(addon, make_splats):
    cloud = schema.make_splat_object("Vase", make_splats(5)).data
    cloud.attributes.remove(cloud.attributes["scale"])
    cloud.attributes.new("scale", "FLOAT", "POINT")
    assert schema.lacking(cloud) == ["scale"]


def test_values_that_no_reader_takes_are_told(segmented, tmp_path):
    cloud = bpy.data.objects["Object 001"].data
    cloud.attributes["scale"].data[3].vector = (1, np.nan, 1)
    with pytest.raises(RuntimeError, match="Object 001 has NaN or infinite values"):
        bpy.ops.unified_lift.export_splats(filepath=str(tmp_path / "export.ply"))
    assert not (tmp_path / "export.ply").exists()


def test_a_scene_that_shows_no_splats_says_so(segmented, tmp_path):
    bpy.context.view_layer.layer_collection.children["messy8"].exclude = True
    with pytest.raises(RuntimeError, match="No splats are to be seen"):
        bpy.ops.unified_lift.export_splats(filepath=str(tmp_path / "export.ply"))


@pytest.fixture
def old_file(segmented, tmp_path, make_splats):
    """An export of former times, in a folder of its own."""
    path = tmp_path / "exports" / "export.ply"
    path.parent.mkdir()
    write_ply(path, make_splats(2, 0))
    return path


def assert_kept(path: Path, old: bytes) -> None:
    assert path.read_bytes() == old
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_keeps_the_old_file(old_file):
    old = old_file.read_bytes()
    old_file.with_name("export.ply.part").symlink_to("/dev/full")
    with pytest.raises(RuntimeError, match="disk is full"):
        bpy.ops.unified_lift.export_splats(filepath=str(old_file))
    assert_kept(old_file, old)


@contextmanager
def without_privileges(folder: Path) -> Iterator[None]:
    """As a user whom permissions stop, which they do not stop root; may enter the folder."""
    if os.geteuid() != 0:
        yield
        return
    for outer in folder.parents:
        if not outer.stat().st_mode & 0o001:
            outer.chmod(outer.stat().st_mode | 0o001)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_what_is_read_only_keeps_the_old_file(old_file, locked):
    old = old_file.read_bytes()
    old_file.chmod(0o444 if locked == "file" else 0o666)
    old_file.parent.chmod(0o777 if locked == "file" else 0o555)
    with without_privileges(old_file.parent), pytest.raises(RuntimeError, match="No permission"):
        bpy.ops.unified_lift.export_splats(filepath=str(old_file))
    old_file.parent.chmod(0o755)
    assert_kept(old_file, old)


def test_paths_that_no_file_can_have_are_told(segmented, tmp_path):
    gone = tmp_path / "gone" / "export.ply"
    for path, words in (
        (str(tmp_path), "is a folder"),
        ("", "is a folder"),
        (str(gone), f"There is no {gone}"),
    ):
        with pytest.raises(RuntimeError, match=words):
            bpy.ops.unified_lift.export_splats(filepath=path)
    assert not gone.parent.exists()


@pytest.mark.filterwarnings("ignore:.*blend relative")  # Blender's file browser gives no such path
def test_paths_may_be_relative_to_the_blend_file(segmented, tmp_path):
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    bpy.ops.unified_lift.export_splats(filepath="//export.ply")
    assert len(read_ply(tmp_path / "export.ply")) == 100


def test_an_export_changes_nothing_and_is_no_undo_step(segmented, tmp_path):
    select("Object 001")
    obj = bpy.data.objects["Object 001"]
    bpy.ops.ed.undo_push(message="Select")
    bpy.ops.transform.translate("EXEC_DEFAULT", True, value=(0, 0, 3))
    before = obj.matrix_world.copy()
    kinds = ("objects", "pointclouds", "meshes", "collections", "scenes")
    census = {kind: sorted(getattr(bpy.data, kind).keys()) for kind in kinds}
    path = str(tmp_path / "export.ply")
    bpy.ops.unified_lift.export_splats("EXEC_DEFAULT", True, filepath=path)
    assert obj.matrix_world == before and bpy.context.selected_objects == [obj]
    assert census == {kind: sorted(getattr(bpy.data, kind).keys()) for kind in kinds}
    bpy.ops.ed.undo()
    bpy.context.view_layer.update()
    moved = before.translation - bpy.data.objects["Object 001"].matrix_world.translation
    assert abs(moved.z - 3) < 1e-5, "the undo step was the move"


def entries() -> list[str]:
    """Functions that add-ons have put into File › Export."""
    functions = getattr(bpy.types.TOPBAR_MT_file_export.draw, "_draw_funcs", [])
    return [f"{function.__module__}.{function.__name__}" for function in functions]


def test_the_menu_entry_goes_with_the_add_on(empty_scene):
    entry = "blender_unified_lift.ui.export._draw_entry"
    before = entries()
    for _ in range(2):
        bpy.ops.preferences.addon_enable(module="blender_unified_lift")
        assert entries().count(entry) == 1
        bpy.ops.preferences.addon_disable(module="blender_unified_lift")
        assert entries().count(entry) == 0 and not hasattr(
            bpy.types, "UNIFIEDLIFT_OT_export_splats"
        )
    assert [name for name in entries() if name != entry] == before
