# SPDX-License-Identifier: GPL-3.0-or-later
import os
from dataclasses import replace

import bpy
import ewa
import numpy as np
import pytest
from mathutils import Matrix

from blender_unified_lift.scene import schema
from unified_lift.ply import Splats, read_ply
from unified_lift.protocol import SCENE_FILE

SAME_BITS = ("quats", "sh0", "shN", "object_ids", "confidence")
UP = np.float32([0, 1, 0])  # of the capture, and Blender's z axis
TURN = np.array(Matrix.Rotation(1.1, 3, (0.3, -0.8, 0.5)), float)
STRETCH = np.diag([2.0, 0.7, 1.3])
SHEAR = np.array([[1, 0.4, 0], [0, 1, 0], [-0.3, 0, 1]])


@pytest.fixture
def export(tmp_path):
    """A function that exports and reads back what was written."""

    def run(**options) -> Splats:
        path = str(tmp_path / "export.ply")
        done = bpy.ops.unified_lift.export_splats(filepath=path, **options)
        assert done == {"FINISHED"} and os.listdir(tmp_path).count("export.ply.part") == 0
        return read_ply(path)

    return run


@pytest.fixture
def source(finished_job):
    """The splats of the job, in the order of their objects."""
    splats = read_ply(finished_job / SCENE_FILE)
    return splats.select(np.argsort(splats.object_ids, kind="stable"))


def of(splats: Splats, number: int) -> Splats:
    return splats.select(splats.object_ids == number)


def move(name: str, linear: np.ndarray, shift=(0, 0, 0)) -> np.ndarray:
    """Map an object in the capture's frame, also in ways that have no location and scale."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, shift
    bpy.data.objects[name].matrix_parent_inverse = Matrix(matrix)
    return matrix


def select(*names: str) -> None:
    from blender_unified_lift.scene import objects

    objects.select(bpy.context, [bpy.data.objects[name] for name in names])


def assert_same(found: Splats, expected: Splats, atol: float = 2e-6) -> None:
    for name in SAME_BITS:
        np.testing.assert_array_equal(vars(found)[name], vars(expected)[name], err_msg=name)
    np.testing.assert_allclose(found.means, expected.means, atol=atol)
    np.testing.assert_allclose(found.scales, expected.scales, atol=2e-6)
    np.testing.assert_allclose(found.opacities, expected.opacities, atol=2e-4)


def covariances(splats: Splats, linear: np.ndarray) -> np.ndarray:
    return np.array([ewa._covariance(splats, i, linear) for i in range(len(splats))])


def on_the_sphere(count: int) -> np.ndarray:
    directions = np.random.default_rng(1).normal(size=(count, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def colors(splats: Splats, direction: np.ndarray) -> np.ndarray:
    return ewa.evaluate_sh(splats, np.broadcast_to(direction, splats.means.shape))


@pytest.mark.parametrize("moved", [False, True])
def test_untouched_objects_come_out_as_the_rows_of_scene_ply(segmented, source, export, moved):
    """Wherever the Empty above the capture goes: its own frame is what the photos know."""
    if moved:
        empty = bpy.data.objects["Capture"]
        empty.location, empty.rotation_euler, empty.scale = (1, 2, 3), (0.4, 1, -2), (0.5,) * 3
    assert_same(export(), source)


def test_only_what_is_selected_is_exported(segmented, source, export):
    select("Object 002", "Surface 001")
    found = export(selected_only=True)
    assert_same(found, source.select(source.object_ids >= 2))


def test_hidden_objects_stay_at_home(segmented, export):
    bpy.data.objects["Object 002"].hide_set(True)
    bpy.context.view_layer.layer_collection.children["messy8"].children["Unassigned"].exclude = True
    assert set(export().object_ids) == {1, 3}
    select("Object 001")
    bpy.ops.unified_lift.isolate()
    assert set(export().object_ids) == {1}


@pytest.mark.parametrize(
    "linear",
    [TURN, 2.5 * TURN, -TURN, np.diag([-1.0, 1, 1]) @ TURN, np.diag([3.0, 3, -3])],
    ids=["turned", "scaled", "inverted", "mirrored", "mirrored and scaled"],
)
def test_turned_and_scaled_objects_keep_shape_and_colours(segmented, source, export, linear):
    before = of(source, 2)
    shift = (5, -1, 2)
    move("Object 002", linear, shift)
    found = export()
    assert_same(of(found, 1), of(source, 1))
    after = of(found, 2)
    np.testing.assert_allclose(after.means, before.means @ linear.T + shift, atol=1e-5)
    size = abs(np.linalg.det(linear)) ** (1 / 3)
    np.testing.assert_allclose(after.scales, before.scales + np.log(size), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(after.quats, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(covariances(after, np.eye(3)), covariances(before, linear), 1e-4)
    for direction in on_the_sphere(20):
        seen = colors(before, np.linalg.solve(linear, direction))
        np.testing.assert_allclose(colors(after, direction), seen, atol=2e-6)


@pytest.mark.parametrize(
    "linear",
    [STRETCH, TURN @ STRETCH @ np.diag([1, -1, 1]), SHEAR, np.diag([1.0, 1, 0])],
    ids=["stretched", "turned and mirrored, too", "sheared", "flat"],
)
def test_stretched_objects_have_gaussians_of_their_shape(segmented, source, export, linear):
    before = of(source, 2)
    move("Object 002", linear)
    after = of(export(), 2)
    np.testing.assert_allclose(after.means, before.means @ linear.T, atol=1e-5)
    wanted = covariances(before, linear)
    np.testing.assert_allclose(covariances(after, np.eye(3)), wanted, atol=1e-6 * wanted.max())
    assert np.isfinite(after.scales).all()


@pytest.mark.parametrize("linear", [STRETCH, SHEAR])
def test_colours_of_stretched_objects_are_the_nearest_ones(segmented, source, export, linear):
    """What is amiss, seen from everywhere, has no share that the harmonics could hold."""
    before = of(source, 2)
    move("Object 002", linear)
    after = of(export(), 2)
    heights, weights = np.polynomial.legendre.leggauss(24)
    z, angle = (grid.ravel() for grid in np.meshgrid(heights, np.arange(48) * np.pi / 24))
    radius = np.sqrt(1 - z * z)
    directions = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1)
    seen = np.array([colors(before, np.linalg.solve(linear, d)) for d in directions])
    miss = np.array([colors(after, d) for d in directions]) - seen  # (D, N, 3)
    unit = np.eye(16, dtype=np.float32)[:, :, None].repeat(3, 2)
    one_each = replace(before.select(np.arange(16)), sh0=unit[:, :1], shN=unit[:, 1:])
    harmonics = np.array([colors(one_each, d)[:, 0] for d in directions])  # (D, 16)
    area = np.tile(weights, 48) * np.pi / 24
    assert abs(area.sum() - 4 * np.pi) < 1e-9
    shares = np.einsum("d,dk,dnc->knc", area, harmonics, miss)
    assert np.abs(shares).max() < 5e-3 and np.abs(miss).max() > 0.05


def test_a_picture_of_the_export_is_the_picture_of_the_scene(segmented, source, export):
    before = of(source, 2)
    matrix = move("Object 002", 1.5 * np.diag([1, 1, -1]) @ TURN, (0.3, 0, 4))
    after = of(export(), 2)
    K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    viewmat = np.eye(4)
    viewmat[:3, 3] = -(matrix @ [3, 0, 0, 1])[:3] + [0, 0, 6]
    wanted, alpha, _ = ewa.render(before, matrix, viewmat, K, (64, 48))
    image, _, _ = ewa.render(after, np.eye(4), viewmat, K, (64, 48))
    assert alpha.max() > 0.5
    np.testing.assert_allclose(image, wanted, atol=1e-4)


def test_joined_objects_come_out_where_they_stood(segmented, source, export):
    bpy.data.objects["Object 001"].location.x += 2
    select("Object 001", "Object 002")  # the last one is the active one, which stays
    bpy.ops.object.join()
    found = export(selected_only=True)
    assert set(found.object_ids) == {2} and len(found) == 50
    first = of(source, 1)
    means = [first.means + np.float32([2, 0, 0]), of(source, 2).means]
    order = np.argsort(found.confidence)
    wanted = np.concatenate([first.confidence, of(source, 2).confidence])
    np.testing.assert_allclose(
        found.means[order], np.concatenate(means)[np.argsort(wanted)], atol=1e-5
    )


def test_separated_objects_come_out_with_ids_of_their_own(segmented, source, export):
    before = of(source, 2)
    taken = before.means[:, 0] > np.median(before.means[:, 0])
    select("Object 002")
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.pointcloud.select_all(action="DESELECT")
    cloud = bpy.data.objects["Object 002"].data
    cloud.attributes[schema.SELECTION].data.foreach_set("value", taken)
    bpy.ops.pointcloud.separate()
    bpy.ops.object.mode_set(mode="OBJECT")
    found = export()
    assert set(found.object_ids) == {0, 1, 2, 3, 4}
    assert_same(of(found, 2), before.select(~taken))
    new = replace(before, object_ids=np.full(len(before), 4, np.int32))
    assert_same(of(found, 4), new.select(taken))


def test_splats_deleted_in_edit_mode_are_gone_at_once(segmented, source, export):
    before = of(source, 2)
    select("Object 002")
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.pointcloud.select_all(action="DESELECT")
    cloud = bpy.data.objects["Object 002"].data
    cloud.attributes[schema.SELECTION].data.foreach_set("value", before.means[:, 2] > 0)
    bpy.ops.pointcloud.delete()
    assert_same(of(export(), 2), before.select(before.means[:, 2] <= 0))
    bpy.ops.object.mode_set(mode="OBJECT")


def test_instances_come_out_as_objects(segmented, source, export):
    instancer = bpy.data.objects.new("Copy", None)
    instancer.instance_type = "COLLECTION"
    instancer.instance_collection = bpy.data.collections["Object 001"]
    instancer.location = (0, 0, 7)
    bpy.context.scene.collection.objects.link(instancer)
    found = export()
    assert_same(of(found, 1), of(source, 1))
    np.testing.assert_allclose(of(found, 4).means, of(source, 1).means + UP * 7, atol=1e-5)


def test_one_file_has_the_frame_of_one_capture(segmented, finished_job, source, export):
    bpy.ops.unified_lift.import_job(directory=str(finished_job))
    bpy.data.objects["Capture.001"].location = (0, 0, 9)
    select("Object 001.001")
    assert_same(export(selected_only=True), of(source, 1))
    select("Object 001.001", "Object 001")
    first, second = of(found := export(selected_only=True), 1), of(found, 2)
    assert_same(first, of(source, 1))
    np.testing.assert_allclose(second.means, of(source, 1).means + UP * 9, atol=1e-5)


def test_an_object_without_its_parent_is_still_in_the_frame_of_its_capture(
    segmented, source, export
):
    select("Object 001")
    bpy.ops.object.parent_clear(type="CLEAR_KEEP_TRANSFORM")
    found = export(selected_only=True)
    np.testing.assert_allclose(found.means, of(source, 1).means, atol=1e-5)
    np.testing.assert_allclose(
        covariances(found, np.eye(3)), covariances(of(source, 1), np.eye(3)), atol=1e-5
    )


def test_a_capture_that_is_scaled_to_nothing_is_told(segmented, tmp_path):
    bpy.data.objects["Capture"].scale.x = 0
    with pytest.raises(RuntimeError, match="Capture, which carries the capture, has a scale of 0"):
        bpy.ops.unified_lift.export_splats(filepath=str(tmp_path / "export.ply"))


@pytest.mark.parametrize("num_sh", [0, 3, 8])
def test_splats_without_a_capture_come_out_in_the_world(addon, make_splats, export, num_sh):
    splats = make_splats(50, num_sh)
    obj = schema.make_splat_object("Vase", splats)
    obj.location = (0, 0, 2)
    bpy.context.scene.collection.objects.link(obj)
    found = export()
    assert found.shN.shape == (50, num_sh, 3)
    ids = np.ones(50, np.int32)
    assert_same(found, replace(splats, means=splats.means + np.float32([0, 0, 2]), object_ids=ids))


def test_degrees_that_differ_or_are_not_whole_are_filled_up(addon, make_splats, export):
    for name, num_sh in (("A", 3), ("B", 15)):
        obj = schema.make_splat_object(name, make_splats(5, num_sh))
        bpy.context.scene.collection.objects.link(obj)
    cloud = bpy.data.objects["B"].data
    cloud.attributes.remove(cloud.attributes["radiance:sh_14"])
    found = export()
    assert found.shN.shape == (10, 15, 3)
    assert np.array_equal(of(found, 2).shN[:, :14], make_splats(5, 15).shN[:, :14])
    assert not of(found, 2).shN[:, 14].any() and not of(found, 1).shN[:, 3:].any()
