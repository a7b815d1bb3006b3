# SPDX-License-Identifier: GPL-3.0-or-later
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bpy
import ewa
import numpy as np
import pytest

from blender_unified_lift.scene import schema
from blender_unified_lift.splats import clouds, drawing, viewpoint
from unified_lift.ply import Splats

ROOT = Path(__file__).resolve().parents[2]
SIZE = (120, 90)
K = np.array([[110.0, 0, 64], [0, 105, 41], [0, 0, 1]])
OPENCV = np.diag([1.0, -1, -1, 1])  # to Blender's camera axes


@pytest.fixture(autouse=True)
def gpu_ready():
    drawing.ensure_gpu()


@pytest.fixture
def add_splats(empty_scene):
    """A function that adds a splat object to the scene."""

    def add(splats, name="Object"):
        obj = schema.make_splat_object(name, splats)
        empty_scene.collection.objects.link(obj)
        return obj

    return add


def _look_at_origin(distance=3.0, azimuth=0.5, elevation=0.4):
    """World to OpenCV camera."""
    back = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    rows = np.stack([right, -np.cross(back, right), -back])
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rows, -rows @ (back * distance)
    return viewmat


def _window_matrix(K, size, near=0.01, far=100.0):
    width, height = size
    window = np.zeros((4, 4))
    window[0, 0], window[0, 2] = 2 * K[0, 0] / width, 1 - 2 * K[0, 2] / width
    window[1, 1], window[1, 2] = 2 * K[1, 1] / height, 2 * K[1, 2] / height - 1
    window[2] = 0, 0, -(far + near) / (far - near), -2 * far * near / (far - near)
    window[3, 2] = -1
    return window


def _draw(viewmat, **options):
    bpy.context.view_layer.update()
    depsgraph = bpy.context.evaluated_depsgraph_get()
    view = viewpoint.make_viewpoint(OPENCV @ viewmat, _window_matrix(K, SIZE), SIZE)
    target = drawing.Target(SIZE, precise=True)
    renderer = options.pop("renderer", None) or drawing.Renderer()
    renderer.draw(clouds.shown_splats(depsgraph), view, target, **options)
    colors, marks = target.read()
    return colors[::-1], marks[::-1]


def _psnr(image, reference):
    return -10 * np.log10(np.mean((image - reference) ** 2))


@pytest.mark.parametrize("num_sh", [0, 3, 8, 15])
def test_picture_agrees_with_float64(add_splats, make_splats, num_sh):
    splats = make_splats(300, num_sh)
    add_splats(splats)
    viewmat = _look_at_origin()
    colors, marks = _draw(viewmat)
    image, alpha, depth = ewa.render(splats, np.eye(4), viewmat, K, SIZE)
    assert _psnr(colors[..., :3], image) > 60
    assert _psnr(colors[..., 3], alpha) > 60
    np.testing.assert_allclose(marks[..., 0], depth, atol=0.02)


def test_object_transforms_move_turn_stretch_and_shear_splats(add_splats, make_splats):
    splats = make_splats(200)
    obj = add_splats(splats)
    obj.location, obj.rotation_euler, obj.scale = (0.2, 0, -0.1), (0.5, 1.0, 2.0), (1.3, 0.6, -0.8)
    obj.parent = bpy.data.objects.new("Capture", None)
    bpy.context.collection.objects.link(obj.parent)
    obj.parent.rotation_euler, obj.parent.scale = (0, 0.7, 0.2), (1, 0.5, 1.5)
    viewmat = _look_at_origin()
    colors, marks = _draw(viewmat)
    matrix = np.array(obj.matrix_world)
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    assert np.abs(axes.T @ axes - np.eye(3)).max() > 0.3  # a shear indeed
    image, _, depth = ewa.render(splats, matrix, viewmat, K, SIZE)
    assert _psnr(colors[..., :3], image) > 55
    np.testing.assert_allclose(marks[..., 0], depth, atol=0.02)


def test_all_objects_are_sorted_together(add_splats, make_splats):
    parts = [make_splats(100, seed=seed) for seed in (1, 2)]
    for part in parts:
        add_splats(part)
    whole = Splats(*(np.concatenate(pair) for pair in zip(*(vars(p).values() for p in parts))))
    viewmat = _look_at_origin()
    image, _, _ = ewa.render(whole, np.eye(4), viewmat, K, SIZE)
    assert _psnr(_draw(viewmat)[0][..., :3], image) > 55


def test_objects_of_several_degrees_keep_their_colours(add_splats, make_splats):
    plain, shiny = make_splats(60, 0, seed=1), make_splats(60, 15, seed=2)
    add_splats(plain)
    add_splats(shiny)
    padded = replace(plain, shN=np.zeros((60, 15, 3), np.float32))
    both = Splats(
        *(np.concatenate(pair) for pair in zip(vars(padded).values(), vars(shiny).values()))
    )
    viewmat = _look_at_origin()
    image, _, _ = ewa.render(both, np.eye(4), viewmat, K, SIZE)
    assert _psnr(_draw(viewmat)[0][..., :3], image) > 55


def test_hidden_and_deleted_objects_are_not_drawn(add_splats, make_splats):
    shown, hidden = add_splats(make_splats(80, seed=1)), add_splats(make_splats(80, seed=2))
    viewmat, renderer = _look_at_origin(), drawing.Renderer()
    alone = ewa.render(make_splats(80, seed=1), np.eye(4), viewmat, K, SIZE)[0]
    _draw(viewmat, renderer=renderer)
    hidden.hide_viewport = True
    assert _psnr(_draw(viewmat, renderer=renderer)[0][..., :3], alone) > 55
    bpy.data.objects.remove(hidden)
    renderer.forget_deleted()
    assert list(renderer.clouds) == [shown.session_uid]
    assert _psnr(_draw(viewmat, renderer=renderer)[0][..., :3], alone) > 55
    bpy.data.objects.remove(shown)
    renderer.forget_deleted()
    assert not _draw(viewmat, renderer=renderer)[0].any()


def test_changed_contents_are_drawn_after_a_mark(add_splats, make_splats):
    obj = add_splats(make_splats(80, 0, seed=1))
    viewmat, renderer = _look_at_origin(), drawing.Renderer()
    _draw(viewmat, renderer=renderer)
    changed = make_splats(80, 0, seed=2)
    source = schema.make_splat_object("Source", changed)
    obj.data = source.data
    renderer.mark_changed({obj.session_uid})
    image = ewa.render(changed, np.eye(4), viewmat, K, SIZE)[0]
    assert _psnr(_draw(viewmat, renderer=renderer)[0][..., :3], image) > 55


def test_unchanged_contents_are_not_read_again(add_splats, make_splats):
    obj = add_splats(make_splats(80, 0))
    viewmat, renderer = _look_at_origin(), drawing.Renderer()
    _draw(viewmat, renderer=renderer)
    before = renderer.clouds[obj.session_uid]
    renderer.mark_changed({obj.session_uid})
    _draw(viewmat, renderer=renderer)
    assert renderer.clouds[obj.session_uid] is before


def test_instances_of_a_collection_are_drawn(empty_scene, make_splats):
    splats = make_splats(80)
    collection = bpy.data.collections.new("Object")
    collection.objects.link(schema.make_splat_object("Object", splats))
    empty = bpy.data.objects.new("Instance", None)
    empty.instance_type, empty.instance_collection = "COLLECTION", collection
    empty.location, empty.rotation_euler = (0.3, 0, 0), (0, 0, 1)
    empty_scene.collection.objects.link(empty)
    viewmat = _look_at_origin()
    colors, _ = _draw(viewmat)
    image, _, _ = ewa.render(splats, np.array(empty.matrix_world), viewmat, K, SIZE)
    assert _psnr(colors[..., :3], image) > 55


def test_marks_tell_which_object_is_seen(add_splats, make_splats):
    opaque = {"opacities": np.full(200, 9.0), "scales": np.full((200, 3), -2.5)}
    add_splats(make_splats(200, 0, seed=1, **opaque))
    add_splats(make_splats(200, 0, seed=2, **opaque)).location.x = 0.8
    colors, marks = _draw(_look_at_origin(), marks=[(1, 0), (1, 1)])
    seen = colors[..., 3] > 0.98
    assert np.allclose(marks[seen, 1], marks[seen, 3], atol=1e-5)
    share = marks[seen, 2] / marks[seen, 3]
    assert (share < 0.01).any() and (share > 0.99).any() and seen.mean() > 0.1


def test_object_colours_replace_those_of_the_splats(add_splats, make_splats):
    add_splats(make_splats(200, 0)).color = (1, 0, 0, 1)
    colors, _ = _draw(_look_at_origin(), tint=1.0)
    assert colors[..., 0].max() > 0.2 and not colors[..., 1:3].any()


def test_splats_that_are_selected_in_edit_mode_are_seen(add_splats, make_splats):
    splats, viewmat, renderer = make_splats(200, 0), _look_at_origin(), drawing.Renderer()
    obj = add_splats(splats)
    red = {"renderer": renderer, "selection": (1.0, 0.0, 0.0, 1.0)}
    plain = _draw(viewmat, **red)[0]
    assert _psnr(plain[..., :3], ewa.render(splats, np.eye(4), viewmat, K, SIZE)[0]) > 60
    bpy.context.view_layer.objects.active = obj
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.pointcloud.select_all(action="DESELECT")
    left = splats.means[:, 0] < 0
    obj.data.attributes[schema.SELECTION].data.foreach_set("value", left)
    obj.data.update_tag()
    renderer.mark_changed({obj.session_uid})
    colors = _draw(viewmat, **red)[0]
    base = schema.read_values(obj.data, schema.BASE)[:, :3] * 0.2820948 + 0.5
    shade = 0.35 + 0.65 * base.clip(0) @ (0.2126, 0.7152, 0.0722)
    painted = np.where(left[:, None], shade[:, None] * (1, 0, 0), base)
    expected = replace(splats, sh0=np.float32((painted - 0.5) / 0.2820948)[:, None])
    assert _psnr(colors[..., :3], ewa.render(expected, np.eye(4), viewmat, K, SIZE)[0]) > 60
    renderer.mark_changed({obj.session_uid})
    assert np.array_equal(_draw(viewmat, renderer=renderer)[0], plain), "a render shows none"
    bpy.ops.object.mode_set(mode="OBJECT")
    renderer.mark_changed({obj.session_uid})
    assert np.array_equal(_draw(viewmat, **red)[0], plain)


def test_quick_order_is_close_to_the_exact_one():
    depths = np.float32(np.random.default_rng(0).uniform(0.5, 50, 100_000))
    exact = depths[viewpoint.front_to_back(depths, True, exact=True)]
    assert np.array_equal(exact, np.sort(depths))
    quick = depths[viewpoint.front_to_back(depths, True)]
    assert np.abs(quick / exact - 1).max() < 1 / 4000
    quick = depths[viewpoint.front_to_back(depths - np.float32(20), False)]
    assert np.abs(quick - exact).max() < 50 / 2**15
    assert len(viewpoint.front_to_back(np.empty(0, np.float32), True)) == 0


def test_orthographic_views_agree_with_a_far_camera(add_splats, make_splats):
    splats = make_splats(200)
    add_splats(splats)
    distance = 1000.0
    viewmat = _look_at_origin(distance)
    far_K = np.array([[110.0 * distance / 3, 0, 64], [0, 105 * distance / 3, 41], [0, 0, 1]])
    image, _, _ = ewa.render(splats, np.eye(4), viewmat, far_K, SIZE)
    window = np.diag([2 * 110 / 3 / SIZE[0], 2 * 105 / 3 / SIZE[1], -1 / 2000, 1])
    window[:2, 3] = 2 * 64 / SIZE[0] - 1, 1 - 2 * 41 / SIZE[1]
    view = viewpoint.make_viewpoint(OPENCV @ viewmat, window, SIZE)
    bpy.context.view_layer.update()
    target = drawing.Target(SIZE, precise=True)
    depsgraph = bpy.context.evaluated_depsgraph_get()
    drawing.Renderer().draw(clouds.shown_splats(depsgraph), view, target)
    assert not view.perspective and view.near == pytest.approx(-2000)
    assert _psnr(target.read()[0][::-1, :, :3], image) > 45


def test_a_crop_shows_the_same_pixels(add_splats, make_splats):
    add_splats(make_splats(200))
    view = viewpoint.make_viewpoint(OPENCV @ _look_at_origin(), _window_matrix(K, SIZE), SIZE)
    bpy.context.view_layer.update()
    instances = clouds.shown_splats(bpy.context.evaluated_depsgraph_get())
    whole, part = drawing.Target(SIZE, precise=True), drawing.Target((50, 40), precise=True)
    drawing.Renderer().draw(instances, view, whole)
    drawing.Renderer().draw(instances, viewpoint.crop(view, 30, 20, (50, 40)), part)
    np.testing.assert_allclose(part.read()[0], whole.read()[0][20:60, 30:80], atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux may lack OpenGL")
def test_a_machine_without_opengl_is_told_so():
    code = "import bpy; from blender_unified_lift.splats import drawing; drawing.ensure_gpu()"
    hidden = {**os.environ, "__EGL_VENDOR_LIBRARY_FILENAMES": os.devnull}
    run = subprocess.run(  # a process of its own: Blender itself would abort
        [sys.executable, "-c", code], cwd=ROOT, env=hidden, capture_output=True, timeout=60
    )
    assert run.returncode == 1 and b"JobError: Blender cannot draw splats" in run.stderr
