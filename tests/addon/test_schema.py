# SPDX-License-Identifier: GPL-3.0-or-later
import bpy
import numpy as np
import pytest

from blender_unified_lift.scene import schema

EXACT = ("means", "quats", "sh0", "shN", "confidence")


@pytest.mark.parametrize("num_sh", [0, 3, 8, 15])
def test_splats_come_back_from_a_point_cloud(empty_scene, make_splats, num_sh):
    splats = make_splats(500, num_sh)
    back = schema.read_splats(schema.make_splat_object("Object 001", splats).data)
    for name in EXACT:
        assert np.array_equal(getattr(back, name), getattr(splats, name)), name
    np.testing.assert_allclose(back.scales, splats.scales, atol=1e-6)
    np.testing.assert_allclose(back.opacities, splats.opacities, atol=2e-4)
    assert len(back) == 500 and back.shN.shape == (500, num_sh, 3)


def test_attributes_are_those_of_blender_5_3(empty_scene, make_splats):
    splats = make_splats(4, 3, opacities=np.zeros(4))
    cloud = schema.make_splat_object("Object 001", splats).data
    sh = [a.name for a in cloud.attributes if a.name.startswith("radiance:sh_")]
    assert sh == ["radiance:sh_0", "radiance:sh_1", "radiance:sh_2"]
    assert cloud.attributes["rotation"].data_type == "QUATERNION"
    assert cloud.attributes["radiance:base"].data_type in ("FLOAT4", "FLOAT_COLOR")
    base = schema.read_values(cloud, "radiance:base")
    assert np.array_equal(base[:, :3], splats.sh0[:, 0]) and np.all(base[:, 3] == 0.5)
    scale = schema.read_values(cloud, "scale")
    np.testing.assert_allclose(scale, np.exp(splats.scales), rtol=1e-6)


def test_extreme_values_stay_finite(empty_scene, make_splats):
    quats = [[0, 0, 0, 0], [3, 0, 0, 0], [0, 2, 0, 0]]
    splats = make_splats(3, 0, opacities=[-200, 0, 200], scales=np.full((3, 3), -200), quats=quats)
    back = schema.read_splats(schema.make_splat_object("Object 001", splats).data)
    assert np.isfinite(back.opacities).all() and np.isfinite(back.scales).all()
    assert np.all(np.diff(back.opacities) > 10)
    assert back.quats.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]


def test_making_an_object_leaves_nothing_else_behind(empty_scene, make_splats):
    def census():
        kinds = {p.identifier for p in bpy.data.bl_rna.properties if p.type == "COLLECTION"}
        kinds -= {"all_ids"}  # 5.2: all the others once more
        return {kind: sorted(getattr(bpy.data, kind).keys()) for kind in kinds}

    before = census()
    obj = schema.make_splat_object("Object 001", make_splats(10))
    after = census()
    assert after.pop("objects") == ["Object 001"] and after.pop("pointclouds") == ["Object 001"]
    assert after == {kind: names for kind, names in before.items() if kind in after}
    assert obj.users_collection == () and bpy.context.scene == empty_scene


def test_making_an_object_keeps_selection_and_mode(empty_scene, make_splats):
    mesh = bpy.data.objects.new("Cube", bpy.data.meshes.new("Cube"))
    empty_scene.collection.objects.link(mesh)
    mesh.select_set(True)
    bpy.context.view_layer.objects.active = mesh
    bpy.ops.object.mode_set(mode="EDIT")
    schema.make_splat_object("Object 001", make_splats(10))
    assert mesh.mode == "EDIT" and mesh.select_get()
    assert bpy.context.view_layer.objects.active == mesh


def test_an_empty_object_is_possible(empty_scene, make_splats):
    obj = schema.make_splat_object("Object 001", make_splats(0, 3))
    assert schema.is_splats(obj) and len(schema.read_splats(obj.data)) == 0


def test_only_splats_are_taken_for_splats(empty_scene, make_splats):
    splats = schema.make_splat_object("Object 001", make_splats(5))
    other = schema.make_splat_object("Points", make_splats(5))
    other.data.attributes.remove(other.data.attributes["radiance:base"])
    assert schema.is_splats(splats) and not schema.is_splats(other)
    assert not schema.is_splats(bpy.data.objects.new("Empty", None))


def test_splats_survive_saving(empty_scene, make_splats, tmp_path):
    splats = make_splats(50)
    obj = schema.make_splat_object("Object 001", splats)
    empty_scene.collection.objects.link(obj)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "scene.blend"))
    back = schema.read_splats(bpy.data.objects["Object 001"].data)
    assert all(np.array_equal(getattr(back, name), getattr(splats, name)) for name in EXACT)
