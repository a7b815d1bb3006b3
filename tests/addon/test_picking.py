# SPDX-License-Identifier: GPL-3.0-or-later
import bpy
import numpy as np
import pytest

from blender_unified_lift.scene import schema
from blender_unified_lift.splats import clouds, drawing, hits, picking
from blender_unified_lift.splats.viewpoint import make_viewpoint

SIZE = (120, 90)
VIEW = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, -4], [0, 0, 0, 1.0]])  # along +y
WINDOW = np.array([[2, 0, 0.1, 0], [0, 2.4, -0.05, 0], [0, 0, -1.01, -0.2], [0, 0, -1, 0]])
ORTHOGRAPHIC = np.diag([0.5, 0.6, -0.02, 1])


@pytest.fixture
def balls(empty_scene, make_splats):
    """Two overlapping balls of opaque splats, the second one nearer, bigger and to the right."""
    opaque = {"opacities": np.full(300, 4.0), "scales": np.full((300, 3), -2.5)}
    for number, x in enumerate((-0.4, 0.5)):
        splats = make_splats(300, 0, seed=number, **opaque)
        obj = schema.make_splat_object(f"Ball {number}", splats)
        obj.location = (x, -x, 0)
        obj.scale = (0.6, 0.6, 0.6 + 0.3 * number)
        empty_scene.collection.objects.link(obj)
    bpy.context.view_layer.update()
    return clouds.shown_splats(bpy.context.evaluated_depsgraph_get())


def _read(instances):
    renderer = drawing.Renderer()
    renderer.read(instances)
    return renderer.clouds


@pytest.mark.parametrize("window", [WINDOW, ORTHOGRAPHIC], ids=["perspective", "orthographic"])
def test_a_click_hits_what_is_drawn(balls, window):
    drawing.ensure_gpu()
    viewpoint = make_viewpoint(VIEW, window, SIZE)
    renderer, target = drawing.Renderer(), drawing.Target(SIZE, precise=True)
    renderer.draw(balls, viewpoint, target, marks=[(1, 0), (0, 1)])
    _, marks = target.read()
    seen = set()
    for y in range(5, 85, 4):
        for x in range(5, 115, 4):
            around = marks[y - 2 : y + 3, x - 2 : x + 3]
            hit = hits.hit_at(balls, renderer.clouds, viewpoint, x + 0.5, y + 0.5)
            first, second = around[..., 1].sum(), around[..., 2].sum()
            if hit is None:
                assert around[..., 1:3].max() < 0.26
            elif abs(first - second) > 0.1:
                assert hit.index == int(second > first)
            seen.add(hit and hit.index)
    assert seen == {None, 0, 1}


def test_a_hit_tells_its_depth(balls):
    viewpoint = make_viewpoint(VIEW, WINDOW, SIZE)
    hit = hits.hit_at(balls, _read(balls), viewpoint, 54 + 0.45 / 3.5 * 120, 46)
    assert hit.index == 1 and 2.6 < hit.depth < 3.6


def test_haze_is_not_hit(empty_scene, make_splats):
    haze = make_splats(20, 0, opacities=np.full(20, -4.5), scales=np.full((20, 3), -1.0))
    empty_scene.collection.objects.link(schema.make_splat_object("Haze", haze))
    bpy.context.view_layer.update()
    instances = clouds.shown_splats(bpy.context.evaluated_depsgraph_get())
    viewpoint = make_viewpoint(VIEW, WINDOW, SIZE)
    assert hits.hit_at(instances, _read(instances), viewpoint, 54, 46) is None
    assert hits.hit_at([], {}, viewpoint, 54, 46) is None


def test_a_box_holds_objects_by_their_centres(balls):
    viewpoint, values = make_viewpoint(VIEW, WINDOW, SIZE), _read(balls)
    assert hits.inside(balls, values, viewpoint, (0, 0), SIZE) == [0, 1]
    assert hits.inside(balls, values, viewpoint, (0, 0), (30, 90)) == [0]
    assert hits.inside(balls, values, viewpoint, (85, 0), (120, 90)) == [1]
    assert hits.inside(balls, values, viewpoint, (0, 0), (5, 5)) == []


def test_a_click_selects_one_and_shift_toggles(balls):
    layer = bpy.context.view_layer
    first, second = (instance.owner for instance in balls)

    def state():
        return {obj.name for obj in layer.objects.selected}, layer.objects.active.name

    picking.select_one(layer, first, toggle=False)
    assert state() == ({"Ball 0"}, "Ball 0")
    picking.select_one(layer, second, toggle=True)
    assert state() == ({"Ball 0", "Ball 1"}, "Ball 1")
    picking.select_one(layer, first, toggle=True)  # selected, not active: becomes active
    assert state() == ({"Ball 0", "Ball 1"}, "Ball 0")
    picking.select_one(layer, first, toggle=True)
    assert state() == ({"Ball 1"}, "Ball 0")
    picking.select_one(layer, first, toggle=False)
    assert state() == ({"Ball 0"}, "Ball 0")


def test_box_modes_combine_selections():
    modes = ("SET", "ADD", "SUB", "XOR", "AND")
    results = ["".join(sorted(picking.combine({"a", "b"}, {"b", "c"}, mode))) for mode in modes]
    assert results == ["bc", "abc", "a", "ac", "b"]
