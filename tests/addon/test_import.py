# SPDX-License-Identifier: GPL-3.0-or-later
import json

import bpy
import numpy as np
import pytest
from conftest import SAMPLE
from mathutils import Matrix, Vector

from unified_lift.capture import read_cameras, read_capture
from unified_lift.ply import read_ply
from unified_lift.protocol import CAMERAS_FILE, OBJECTS_FILE, SCENE_FILE, JobError


def objects_by_name() -> dict[str, bpy.types.Object]:
    return {obj.name: obj for obj in bpy.context.scene.objects if obj.type == "POINTCLOUD"}


def test_each_object_has_its_own_collection(segmented):
    names = ["Object 001", "Object 002", "Surface 001", "Unassigned"]
    assert [child.name for child in segmented.children] == [*names, "Cameras"]
    for name in names:
        assert [obj.name for obj in segmented.children[name].objects] == [name]
    found = objects_by_name()
    assert {name: len(obj.data.points) for name, obj in found.items()} == dict(
        zip(names, (20, 30, 40, 10), strict=True)
    )
    assert [found[name]["object_id"] for name in names] == [1, 2, 3, 0]
    assert [found[name]["kind"] for name in names] == ["thing", "thing", "surface", "unassigned"]
    assert segmented.children["Object 001"].color_tag == "COLOR_01"
    assert segmented.children["Surface 001"].color_tag == "NONE"
    np.testing.assert_allclose(found["Object 001"].color, (1, 0, 0, 1), atol=1e-4)


def test_splats_stand_where_the_capture_says(segmented, finished_job):
    from blender_unified_lift.scene import schema

    bpy.context.view_layer.update()
    splats = read_ply(finished_job / SCENE_FILE)
    rotation = read_cameras(finished_job / CAMERAS_FILE).world_to_blender
    obj = objects_by_name()["Object 002"]
    matrix = np.array(obj.matrix_world)
    means = schema.read_splats(obj.data).means @ matrix[:3, :3].T + matrix[:3, 3]
    wanted = splats.means[splats.object_ids == 2] @ rotation[:3, :3].T
    np.testing.assert_allclose(means, wanted, atol=1e-5)
    spread = np.abs(means - np.array(obj.matrix_world.translation)).max()
    assert spread < 2.5, "the origin lies in the middle of the object, to turn it about"


def test_moving_the_empty_moves_objects_and_cameras(segmented):
    bpy.context.view_layer.update()
    obj, camera = objects_by_name()["Object 001"], segmented.children["Cameras"].objects[0]
    before = [obj.matrix_world.translation.copy(), camera.matrix_world.translation.copy()]
    bpy.data.objects["Capture"].location.z += 2
    bpy.context.view_layer.update()
    for item, old in zip((obj, camera), before, strict=True):
        assert (item.matrix_world.translation - old - Vector((0, 0, 2))).length < 1e-5


def test_cameras_see_points_where_the_photos_have_them(segmented, finished_job):
    rng = np.random.default_rng(0)
    capture = read_cameras(finished_job / CAMERAS_FILE)
    bpy.context.view_layer.update()
    depsgraph = bpy.context.evaluated_depsgraph_get()
    to_world = Matrix(capture.world_to_blender)
    for view in capture.views[:4]:
        camera = bpy.data.objects[view.name]
        assert tuple(camera[key] for key in ("photo_width", "photo_height")) == (
            view.width,
            view.height,
        )
        aspect = camera["pixel_aspect"]
        projection = camera.calc_matrix_camera(
            depsgraph,
            x=view.width,
            y=view.height,
            scale_x=max(1, 1 / aspect),
            scale_y=max(1, aspect),
        )
        for in_camera in rng.uniform((-1, -1, 3), (1, 1, 6), (20, 3)):
            world = to_world @ Vector((np.linalg.inv(view.viewmat) @ [*in_camera, 1])[:3])
            clip = projection @ camera.matrix_world.inverted() @ world.to_4d()
            x = (clip.x / clip.w + 1) / 2 * view.width
            y = (1 - clip.y / clip.w) / 2 * view.height
            pixel = view.K @ in_camera
            assert np.hypot(x - pixel[0] / pixel[2], y - pixel[1] / pixel[2]) < 0.05


def test_cameras_carry_their_photos_and_stay_out_of_the_way(segmented):
    folder = segmented.children["Cameras"]
    capture = read_capture(SAMPLE)
    assert len(folder.objects) == len(capture.views)
    backgrounds = [camera.data.background_images[0] for camera in folder.objects]
    assert {bpy.path.basename(item.image.filepath) for item in backgrounds} == {
        view.image_path.name for view in capture.views
    }
    assert all(item.frame_method == "STRETCH" for item in backgrounds)
    assert folder.hide_render
    assert all(camera.hide_get() for camera in folder.objects), "so many would cover the scene"


def test_look_through_camera_takes_over_size_and_shape(segmented):
    folder = segmented.children["Cameras"]
    names = sorted(camera.name for camera in folder.objects)
    bpy.ops.unified_lift.look_through_camera()
    scene = bpy.context.scene
    assert scene.camera.name == names[0]
    view = read_capture(SAMPLE).views[0]
    assert (scene.render.resolution_x, scene.render.resolution_y) == (view.width, view.height)
    bpy.ops.unified_lift.look_through_camera(step=1)
    assert scene.camera.name == names[1]
    bpy.ops.unified_lift.look_through_camera(step=-2)
    assert scene.camera.name == names[-1]
    seen = [camera.name for camera in folder.objects if not camera.hide_get()]
    assert seen == [names[-1]], "the photo shows only with its camera"


def test_an_import_is_one_undo_step(segmented):
    bpy.ops.ed.undo()
    scene = bpy.context.scene
    assert not scene.objects and not scene.collection.children
    bpy.ops.ed.redo()
    assert len(objects_by_name()) == 4


def test_a_second_import_leaves_the_first_alone(segmented, finished_job):
    first = set(objects_by_name())
    bpy.ops.unified_lift.delete.poll()
    bpy.ops.unified_lift.import_job(directory=str(finished_job))
    assert [child.name for child in bpy.context.scene.collection.children] == [
        "messy8",
        "messy8.001",
    ]
    assert first < set(objects_by_name()) and len(objects_by_name()) == 2 * len(first)


def test_photos_that_are_gone_cost_only_the_background(addon, finished_job):
    path = finished_job / CAMERAS_FILE
    path.write_text(path.read_text().replace(json.dumps(str(SAMPLE)), '"/nowhere/messy8"'))
    bpy.ops.unified_lift.import_job(directory=str(finished_job))
    folder = bpy.context.scene.collection.children["messy8"].children["Cameras"]
    assert folder.objects and not any(camera.data.background_images for camera in folder.objects)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def unlist(path):
    path.write_text(json.dumps({"objects": json.loads(path.read_text())["objects"][:-1]}))


def setting(table: str, **values):
    """A damage: other values in the last entry of a table."""

    def damage(path):
        data = json.loads(path.read_text())
        data[table][-1].update(values)
        path.write_text(json.dumps(data))

    return damage


def without(key: str):
    """A damage: the last object lacks a key."""

    def damage(path):
        data = json.loads(path.read_text())
        del data["objects"][-1][key]
        path.write_text(json.dumps(data))

    return damage


def replacing(key: str, value):
    """A damage: another value on the top level."""
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


INFINITE = float("inf")
NAN = float("nan")
SINGULAR = [[0, 0, 0, 0]] * 4


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (SCENE_FILE, cut, "cut short"),
        (SCENE_FILE, lambda path: path.unlink(), "holds no finished result"),
        (OBJECTS_FILE, cut, "damaged"),
        (OBJECTS_FILE, unlist, "do not belong together"),
        (OBJECTS_FILE, lambda path: path.write_text('{"objects": [{"id": 1}]}'), "damaged"),
        (OBJECTS_FILE, replacing("objects", 3), "damaged"),
        (OBJECTS_FILE, replacing("objects", ["Object 001"]), "damaged"),
        *((OBJECTS_FILE, without(key), key) for key in ("id", "name", "kind", "score", "color")),
        (OBJECTS_FILE, setting("objects", name=7), "'name': 7"),
        (OBJECTS_FILE, setting("objects", kind=["thing"]), "damaged"),
        (OBJECTS_FILE, setting("objects", score=NAN), "nan"),
        (OBJECTS_FILE, setting("objects", score="high"), "damaged"),
        (OBJECTS_FILE, setting("objects", color=[1, 0]), "damaged"),
        (OBJECTS_FILE, setting("objects", color=[1, 0, 0, 1]), "damaged"),
        (OBJECTS_FILE, setting("objects", color=[1, NAN, 0]), "damaged"),
        (OBJECTS_FILE, setting("objects", id=2), "object 2 "),
        (OBJECTS_FILE, setting("objects", id=9), "object 3 "),
        (OBJECTS_FILE, setting("objects", id=3.5), "damaged"),
        (CAMERAS_FILE, cut, "damaged"),
        (CAMERAS_FILE, replacing("views", []), "no views"),
        (CAMERAS_FILE, replacing("views", 3), "damaged"),
        (CAMERAS_FILE, replacing("world_to_blender", [[NAN] * 4] * 4), "damaged"),
        (CAMERAS_FILE, setting("views", name=7), "view 7"),
        (CAMERAS_FILE, setting("views", split=7), "damaged"),
        (CAMERAS_FILE, setting("views", width=0), "damaged"),
        (CAMERAS_FILE, setting("views", height=INFINITE), "damaged"),
        (CAMERAS_FILE, setting("views", width=10**12), "damaged"),
        (CAMERAS_FILE, setting("views", K=[[NAN] * 3] * 3), "damaged"),
        (CAMERAS_FILE, setting("views", viewmat=SINGULAR), "damaged"),
        (CAMERAS_FILE, setting("views", viewmat=[[1]]), "damaged"),
    ],
)
def test_a_damaged_result_is_told_and_leaves_nothing(addon, finished_job, name, damage, words):
    from blender_unified_lift.scene import importer

    damage(finished_job / name)
    with pytest.raises(JobError, match=words) as caught:
        importer.import_job(bpy.context, finished_job)
    assert str(finished_job) in str(caught.value)
    with pytest.raises(RuntimeError, match=words):
        bpy.ops.unified_lift.import_job(directory=str(finished_job))
    kinds = ("objects", "collections", "pointclouds", "meshes", "cameras", "images")
    assert [kind for kind in kinds if len(getattr(bpy.data, kind))] == []
    assert len(bpy.data.scenes) == 1


def test_odd_names_are_made_printable(addon, finished_job):
    """Control characters, undecodable bytes of a file name, more letters than Blender keeps."""
    for name in ("Va\nse", "Va\0se", "\udcffVase"):
        setting("objects", name=name)(finished_job / OBJECTS_FILE)
        setting("views", name=name)(finished_job / CAMERAS_FILE)
        bpy.ops.unified_lift.import_job(directory=str(finished_job))
        obj = next(obj for obj in bpy.context.scene.objects if obj.get("object_id") == 3)
        assert obj.name == obj.users_collection[0].name == "Vase"
        for part in list(bpy.data.objects):
            bpy.data.objects.remove(part)
        for folder in list(bpy.data.collections):
            bpy.data.collections.remove(folder)


def test_long_names_that_are_the_same_stay_apart(addon, finished_job):
    data = json.loads((finished_job / OBJECTS_FILE).read_text())
    for item in data["objects"]:
        item["name"] = "é" * 300
    (finished_job / OBJECTS_FILE).write_text(json.dumps(data))
    bpy.ops.unified_lift.import_job(directory=str(finished_job))
    found = [obj for obj in bpy.context.scene.objects if obj.get("kind") in ("thing", "surface")]
    assert sorted(obj["object_id"] for obj in found) == [1, 2, 3]
    assert all(len(obj.users_collection[0].objects) == 1 for obj in found)
