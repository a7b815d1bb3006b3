# SPDX-License-Identifier: GPL-3.0-or-later
import bpy
import numpy as np
import pytest

from blender_unified_lift.scene import schema
from blender_unified_lift.splats import clouds, drawing, viewport


@pytest.fixture
def shown(addon, make_splats):
    """A splat object that the viewports' renderer has drawn."""
    drawing.ensure_gpu()
    obj = schema.make_splat_object("Object", make_splats(50, 0))
    bpy.context.scene.collection.objects.link(obj)
    _draw()
    return obj


def _instances():
    bpy.context.view_layer.update()
    return clouds.shown_splats(bpy.context.evaluated_depsgraph_get())


def _draw():
    view = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -4], [0, 0, 0, 1]])
    window = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, -1.01, -0.2], [0, 0, -1, 0]])
    target = drawing.Target((16, 16))
    viewpoint = viewport.make_viewpoint(view, window, target.size)
    viewport.renderer().draw(_instances(), viewpoint, target)


def test_moving_an_object_reads_nothing_again(shown):
    known = viewport.renderer().clouds[shown.session_uid]
    shown.location.x = 1
    _draw()
    assert viewport.renderer().clouds[shown.session_uid] is known


def test_changed_points_are_noticed(shown):
    stamp = viewport.renderer().clouds[shown.session_uid].stamp
    schema.write_values(shown.data, schema.POSITION, "FLOAT_VECTOR", np.ones((50, 3)))
    shown.data.update_tag()
    _draw()
    known = viewport.renderer().clouds[shown.session_uid]
    assert np.all(known.means == 1) and known.stamp != stamp


def test_undo_reads_nothing_again(shown):
    bpy.ops.ed.undo_push(message="Start")
    key = shown.session_uid
    known = viewport.renderer().clouds[key]
    shown.location.x = 1
    bpy.ops.ed.undo_push(message="Move")
    bpy.ops.ed.undo()
    assert bpy.data.objects["Object"].session_uid == key
    _draw()
    assert viewport.renderer().clouds[key] is known


def test_deleting_an_object_frees_its_values(shown):
    bpy.data.objects.remove(shown)
    bpy.context.view_layer.update()
    assert not viewport.renderer().clouds and not _instances()


def test_a_new_file_frees_everything(shown):
    before = viewport.renderer()
    bpy.ops.wm.read_homefile(use_empty=True)
    assert viewport.renderer() is not before and not viewport.renderer().clouds


def test_disabling_the_addon_leaves_nothing_running(shown):
    bpy.ops.preferences.addon_disable(module="blender_unified_lift")
    handlers = [*bpy.app.handlers.depsgraph_update_post, *bpy.app.handlers.load_post]
    assert not [h for h in handlers if h.__module__ == viewport.__name__]
    assert not hasattr(bpy.types.Scene, "unified_lift_splats")
    assert viewport._renderer is None and not viewport._frames
    bpy.ops.preferences.addon_enable(module="blender_unified_lift")
