# SPDX-License-Identifier: GPL-3.0-or-later
import subprocess
import sys

import bpy
import pytest
from conftest import ROOT, SAMPLE

from unified_lift.config import PRESETS, Settings
from unified_lift.protocol import JobError


def request():
    from blender_unified_lift.ui.properties import make_request

    return make_request(bpy.context.scene.unified_lift)


def test_defaults_are_those_of_the_backend(addon):
    bpy.context.scene.unified_lift.capture_dir = str(SAMPLE)
    assert request().settings == Settings()
    assert request().capture == str(SAMPLE)


def test_every_preset_can_be_chosen(addon):
    settings = bpy.context.scene.unified_lift
    settings.capture_dir = str(SAMPLE)
    for name in PRESETS:
        settings.quality = name.upper()
        assert request().settings.preset == name


def test_masks_of_a_folder_and_of_sam(addon, tmp_path):
    settings = bpy.context.scene.unified_lift
    settings.capture_dir = str(SAMPLE)
    settings.masks, settings.masks_dir = "FOLDER", str(SAMPLE / "masks" / "paper")
    assert request().settings.masks == str(SAMPLE / "masks" / "paper")
    checkpoint = tmp_path / "sam_vit_b.pth"
    checkpoint.touch()
    settings.masks, settings.sam_checkpoint = "SAM", str(checkpoint)
    chosen = request().settings
    assert (chosen.masks, chosen.sam_checkpoint) == ("sam", str(checkpoint))


def test_splats_that_the_user_has(addon, tmp_path):
    settings = bpy.context.scene.unified_lift
    settings.capture_dir, settings.splat = str(SAMPLE), str(tmp_path / "scene.ply")
    with pytest.raises(JobError, match="no splat file"):
        request()
    (tmp_path / "scene.ply").touch()
    assert request().settings.splat == str(tmp_path / "scene.ply")


def test_paths_may_be_relative_to_the_blend_file(addon, tmp_path):
    (tmp_path / "photos").mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    bpy.context.scene.unified_lift.capture_dir = "//photos"
    assert request().capture == str(tmp_path / "photos")


def test_segment_says_why_it_cannot_run(addon):
    from blender_unified_lift.ui.job_operators import why_not_segment

    settings = bpy.context.scene.unified_lift
    assert "Backend Python" in why_not_segment(bpy.context)
    with pytest.raises(RuntimeError, match="Backend Python"):
        bpy.ops.unified_lift.segment()
    addon.backend_python = sys.executable
    assert "capture folder" in why_not_segment(bpy.context)
    settings.capture_dir = "//"
    assert why_not_segment(bpy.context) == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"capture_dir": "/nowhere/photos"}, "no capture folder /nowhere/photos"),
        ({"capture_dir": str(ROOT / "tests")}, "is no capture"),
        ({"masks": "FOLDER"}, "No mask folder is chosen"),
        ({"masks": "FOLDER", "masks_dir": "/nowhere"}, "no mask folder /nowhere"),
        ({"masks": "SAM", "sam_checkpoint": str(ROOT)}, "no checkpoint file"),
        ({}, "lacks torch"),  # the Python of these tests is no backend
    ],
)
def test_bad_input_is_told_before_a_job_is_made(addon, tmp_path, values, words):
    from blender_unified_lift.job import session

    addon.backend_python, addon.jobs_dir = sys.executable, str(tmp_path)
    settings = bpy.context.scene.unified_lift
    settings.capture_dir = str(SAMPLE)
    for name, value in values.items():
        setattr(settings, name, value)
    with pytest.raises(RuntimeError, match=words):
        bpy.ops.unified_lift.segment()
    assert not list(tmp_path.iterdir()) and session.watch_of(bpy.context.scene) is None


def test_operators_without_a_scene_say_why(addon):
    for name in ("delete", "isolate", "render_isolated"):
        with pytest.raises(RuntimeError, match="Select an object"):
            getattr(bpy.ops.unified_lift, name)()
    for name in ("show_all", "look_through_camera", "set_up_render"):
        with pytest.raises(RuntimeError, match="no segmented scene"):
            getattr(bpy.ops.unified_lift, name)()
    for name in ("cancel", "resume", "restart", "forget", "open_log", "leave_isolation"):
        assert not getattr(bpy.ops.unified_lift, name).poll()


def own_operators() -> list[type]:
    return [
        kind
        for kind in bpy.types.Operator.__subclasses__()
        if kind.__name__.startswith("UNIFIEDLIFT_OT_")
    ]


def test_every_operator_has_a_label_and_a_tooltip(addon):
    assert len(own_operators()) > 15
    for kind in own_operators():
        words = [word for word in kind.bl_label.split() if word != "in"]
        assert all(word[0].isupper() for word in words), kind
        assert kind.bl_description and not kind.bl_description.endswith("."), kind


@pytest.fixture
def rendered(segmented):
    """What each render showed: names of the splat objects, and whether its ground was transparent.

    The scene is small, its second object selected and its first one hidden in every way.
    """
    shown = []

    def look(scene, depsgraph=None):
        parts = [obj for obj in scene.objects if obj.type == "POINTCLOUD" and not obj.hide_render]
        shown.append(([obj.name for obj in parts], scene.render.film_transparent))

    bpy.ops.unified_lift.look_through_camera()
    bpy.context.scene.render.resolution_percentage = 25
    bpy.data.objects["Object 001"].hide_set(True)
    bpy.data.objects["Object 001"].hide_render = True
    bpy.ops.unified_lift.select(name="Object 002")
    bpy.app.handlers.render_pre.append(look)
    yield shown
    bpy.app.handlers.render_pre.remove(look)


def hidings() -> dict[str, tuple]:
    """All that tells what is seen, rendered and selected."""
    layer = bpy.context.view_layer
    states = {obj.name: (obj.hide_get(), obj.hide_render) for obj in bpy.context.scene.objects}
    states |= {folder.name: (folder.hide_render,) for folder in bpy.data.collections}
    selected = sorted(obj.name for obj in layer.objects.selected)
    return {**states, "": (selected, bpy.context.scene.render.film_transparent)}


def test_render_isolated_shows_the_selected_objects_alone_and_hides_nothing(rendered):
    bpy.data.collections["Object 002"].hide_render = True
    bpy.ops.ed.undo_push(message="Hide")
    before, scene = hidings(), bpy.context.scene
    assert bpy.ops.unified_lift.render_isolated("EXEC_DEFAULT", True) == {"FINISHED"}
    assert rendered == [(["Object 002"], True)]
    assert hidings() == before
    assert scene.render.engine == "UNIFIEDLIFT_SPLATS"
    assert scene.view_settings.view_transform == "Standard"
    bpy.ops.ed.undo()
    bpy.context.view_layer.update()
    assert hidings() == before


def test_render_isolated_keeps_an_isolation(rendered):
    bpy.ops.unified_lift.isolate()
    bpy.ops.unified_lift.select(name="Surface 001")
    before = hidings()
    bpy.ops.unified_lift.render_isolated()
    assert hidings() == before and bpy.ops.unified_lift.leave_isolation.poll()


def test_a_render_that_fails_is_told_and_hides_nothing(rendered):
    scene, before = bpy.context.scene, hidings()
    scene.render.use_border = True
    scene.render.border_max_x = scene.render.border_min_x = 0.5  # nothing to render
    with pytest.raises(RuntimeError, match="too small"):
        bpy.ops.unified_lift.render_isolated()
    assert hidings() == before


def test_render_isolated_wants_a_camera(rendered):
    bpy.context.scene.camera = None
    before = hidings()
    with pytest.raises(RuntimeError, match="no camera"):
        bpy.ops.unified_lift.render_isolated()
    assert hidings() == before and rendered == []


def test_without_the_wheel_a_panel_says_what_is_missing(tmp_path):
    """A Blender whose Python lacks the contract, as after a broken installation."""
    script = f"""
import importlib.abc, sys
sys.path.insert(0, {str(ROOT)!r})
import bpy
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f)]
sys.path_importer_cache.clear()
sys.path[:] = [p for p in sys.path if "backend" not in p]
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.preferences.addon_enable(module="blender_unified_lift")
from importlib.util import find_spec
assert find_spec("unified_lift") is None, find_spec("unified_lift")
assert hasattr(bpy.types, "UNIFIEDLIFT_PT_no_contract")
assert not hasattr(bpy.types, "UNIFIEDLIFT_PT_segment")
bpy.ops.preferences.addon_disable(module="blender_unified_lift")
assert not hasattr(bpy.types, "UNIFIEDLIFT_PT_no_contract")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_long_texts_are_wrapped():
    from blender_unified_lift.ui.panels import time_left
    from blender_unified_lift.ui.text import wrapped

    assert wrapped("one two three", 8) == ["one two", "three"]
    path = "No /home/me/photos/of_a_very_long_name"
    assert wrapped(path, 12) == ["No /home/me", "/photos/of_a", "_very_long_n", "ame"]
    assert wrapped(r"No C:\Users\me\photos", 12) == [r"No C:\Users", r"\me\photos"]
    assert [time_left(seconds) for seconds in (4, 52, 130)] == ["a few seconds", "50 s", "2 min"]
