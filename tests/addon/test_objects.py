# SPDX-License-Identifier: GPL-3.0-or-later
import bpy
import numpy as np
import pytest

from blender_unified_lift.scene import schema
from blender_unified_lift.scene.transform import rotation_matrices
from unified_lift.ply import read_ply

THINGS = ["Object 001", "Object 002"]
ALL = [*THINGS, "Surface 001", "Unassigned"]


def select(*names: str) -> None:
    from blender_unified_lift.scene import objects

    objects.select(bpy.context, [bpy.data.objects[name] for name in names])


def selected() -> list[str]:
    return sorted(obj.name for obj in bpy.context.selected_objects)


def shown() -> list[str]:
    return [name for name in ALL if bpy.data.objects[name].visible_get()]


def rendered() -> list[str]:
    return [name for name in ALL if not bpy.data.objects[name].hide_render]


def row_of(root: bpy.types.Collection, name: str) -> int:
    return root.all_objects.find(name)


def test_clicking_a_row_selects_its_object(segmented):
    settings = bpy.context.scene.unified_lift
    settings.active_row = row_of(segmented, "Object 002")
    assert selected() == ["Object 002"]
    assert bpy.context.view_layer.objects.active.name == "Object 002"


def test_the_active_row_follows_the_selection(segmented):
    settings = bpy.context.scene.unified_lift
    assert settings.active_row == -1
    select("Object 001")
    assert settings.active_row == row_of(segmented, "Object 001")
    bpy.data.objects["Object 001"].select_set(False)
    assert settings.active_row == -1


def test_blenders_join_makes_one_object_of_pieces(segmented):
    from blender_unified_lift.scene import objects

    def in_world(name: str) -> dict:
        obj = bpy.data.objects[name]
        splats = vars(schema.read_splats(obj.data))
        matrix = np.array(obj.matrix_world)
        return {**splats, "means": splats["means"] @ matrix[:3, :3].T + matrix[:3, 3]}

    before = [in_world(name) for name in reversed(THINGS)]
    select(*THINGS)  # the last one is the active one, which stays
    assert bpy.ops.object.join() == {"FINISHED"}
    assert "Object 001" not in [obj.name for _, obj in objects.rows(segmented)]
    for name, values in in_world("Object 002").items():
        expected = np.concatenate([splats[name] for splats in before])
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shared", [False, True])
def test_join_keeps_the_look_of_turned_and_stretched_pieces(segmented, tmp_path, shared):
    from blender_unified_lift.scene import objects

    whole, piece = (bpy.data.objects[name] for name in ("Object 002", "Object 001"))
    whole.rotation_euler, whole.scale = (0.3, -0.2, 1), (1.5, 1.5, 1.5)
    piece.rotation_euler, piece.location.x = (1, 0.5, -2), 2.0
    piece.scale = (0.5, 0.5, 0.5)
    copy = piece.copy() if shared else None
    before = None if copy is None else vars(schema.read_splats(piece.data))
    select("Object 001", "Object 002")
    expected = exported(tmp_path)
    assert bpy.ops.unified_lift.join() == {"FINISHED"}
    assert [obj.name for _, obj in objects.rows(segmented)].count("Object 002") == 1
    assert "Object 001" not in bpy.data.collections, "an empty collection is left"
    for name, values in exported(tmp_path).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=2e-4, err_msg=name)
    if copy:  # keeps its splats as they were
        for name, values in vars(schema.read_splats(copy.data)).items():
            np.testing.assert_array_equal(values, before[name], err_msg=name)


def exported(tmp_path) -> dict:
    """What leaves Blender of the selected objects, in the order of the means."""
    bpy.ops.unified_lift.export_splats(filepath=str(tmp_path / "out.ply"), selected_only=True)
    splats = read_ply(tmp_path / "out.ply")
    order = np.argsort(splats.means[:, 0])
    stretched = rotation_matrices(splats.quats) * np.exp(splats.scales)[:, None]
    values = {"covariances": stretched @ stretched.transpose(0, 2, 1)}
    values |= {name: getattr(splats, name) for name in ("means", "opacities", "sh0", "shN")}
    return {name: array[order] for name, array in values.items()}


def test_join_keeps_the_bits_of_pieces_that_were_only_moved(segmented):
    whole, piece = (bpy.data.objects[name] for name in ("Object 002", "Object 001"))
    piece.location.x += 2.0
    scales = schema.read_values(piece.data, schema.SCALE)
    scales[0] = 0.0  # which no logarithm gives back
    schema.write_values(piece.data, schema.SCALE, "FLOAT_VECTOR", scales)
    count = len(whole.data.points)
    select("Object 001", "Object 002")
    assert bpy.ops.unified_lift.join() == {"FINISHED"}
    joined = schema.read_values(bpy.data.objects["Object 002"].data, schema.SCALE)
    np.testing.assert_array_equal(joined[count:], scales)


def test_join_of_an_object_without_axes_is_refused(segmented):
    bpy.data.objects["Object 002"].scale.x = 0
    select("Object 001", "Object 002")
    with pytest.raises(RuntimeError, match="Object 002 has a scale of 0"):
        bpy.ops.unified_lift.join()
    assert "Object 001" in bpy.data.objects


def test_join_is_undone(segmented):
    select(*THINGS)
    bpy.ops.unified_lift.join("EXEC_DEFAULT", True)
    assert "Object 001" not in bpy.data.objects
    bpy.ops.ed.undo()
    assert {"Object 001", "Object 002"} <= {obj.name for obj in bpy.context.scene.objects}
    assert len(bpy.data.objects["Object 001"].data.points) == 20


def test_separate_makes_a_collection_of_the_same_colour(segmented):
    obj = bpy.data.objects["Object 002"]
    select(obj.name)
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.pointcloud.select_all(action="DESELECT")
    obj.data.attributes[schema.SELECTION].data.foreach_set("value", np.arange(30) < 12)
    assert bpy.ops.unified_lift.separate() == {"FINISHED"}
    bpy.ops.object.mode_set(mode="OBJECT")
    new = bpy.data.objects["Object 002.001"]
    assert [folder.name for folder in new.users_collection] == ["Object 002.001"]
    own, old = (bpy.data.collections[name] for name in ("Object 002.001", "Object 002"))
    assert own.name in segmented.children and own.color_tag == old.color_tag
    assert (len(new.data.points), len(obj.data.points)) == (12, 18)


def test_blenders_separate_makes_an_object_of_selected_splats(segmented):
    from blender_unified_lift.scene import objects

    obj = bpy.data.objects["Object 002"]
    before = vars(schema.read_splats(obj.data))
    taken = before["means"][:, 0] > np.median(before["means"][:, 0])
    select(obj.name)
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.pointcloud.select_all(action="DESELECT")
    obj.data.attributes[schema.SELECTION].data.foreach_set("value", taken)
    assert bpy.ops.pointcloud.separate() == {"FINISHED"}
    bpy.ops.object.mode_set(mode="OBJECT")
    new = bpy.data.objects["Object 002.001"]
    assert new in [part for _, part in objects.rows(segmented)]
    for part, kept in ((obj, ~taken), (new, taken)):
        for name, values in vars(schema.read_splats(part.data)).items():
            np.testing.assert_array_equal(values, before[name][kept], err_msg=name)
    select(obj.name, new.name)
    bpy.ops.unified_lift.delete()
    assert "Object 002" not in bpy.data.collections
    assert sorted(cloud.name for cloud in bpy.data.pointclouds) == [
        "Object 001",
        "Surface 001",
        "Unassigned",
    ]


def test_an_import_leaves_the_selection_to_the_user(segmented):
    assert selected() == []


def test_select_adds_and_takes_away(segmented):
    bpy.ops.unified_lift.select(name="Object 001")
    bpy.ops.unified_lift.select(name="Surface 001", extend=True)
    assert selected() == ["Object 001", "Surface 001"]
    bpy.ops.unified_lift.select(name="Object 001", extend=True)
    assert selected() == ["Surface 001"]
    with pytest.raises(RuntimeError, match="There is no object Nothing"):
        bpy.ops.unified_lift.select(name="Nothing")


def test_delete_takes_object_collection_and_points(segmented):
    select(*THINGS)
    assert bpy.ops.unified_lift.delete() == {"FINISHED"}
    assert [child.name for child in segmented.children] == ["Surface 001", "Unassigned", "Cameras"]
    assert sorted(cloud.name for cloud in bpy.data.pointclouds) == ["Surface 001", "Unassigned"]
    assert not bpy.ops.unified_lift.delete.poll(), "nothing is selected any more"


def test_delete_is_undone_with_every_splat(segmented):
    from blender_unified_lift.scene import schema

    before = schema.read_splats(bpy.data.objects["Object 001"].data)
    select("Object 001")
    bpy.ops.unified_lift.delete("EXEC_DEFAULT", True)
    assert "Object 001" not in bpy.data.objects
    bpy.ops.ed.undo()
    obj = bpy.data.objects["Object 001"]
    after = schema.read_splats(obj.data)
    assert all(np.array_equal(vars(before)[name], vars(after)[name]) for name in vars(before))
    assert obj["object_id"] == 1 and obj.users_collection[0].name == "Object 001"
    bpy.ops.ed.redo()
    assert "Object 001" not in bpy.data.objects


def test_delete_keeps_points_with_a_fake_user(segmented):
    bpy.data.objects["Object 001"].data.use_fake_user = True
    select("Object 001")
    bpy.ops.unified_lift.delete()
    assert "Object 001" in bpy.data.pointclouds


def test_delete_keeps_a_collection_that_holds_more(segmented):
    lamp = bpy.data.objects.new("Lamp", bpy.data.lights.new("Lamp", "POINT"))
    segmented.children["Object 001"].objects.link(lamp)
    select("Object 001")
    bpy.ops.unified_lift.delete()
    assert [obj.name for obj in segmented.children["Object 001"].objects] == ["Lamp"]


def test_delete_keeps_points_that_a_copy_uses(segmented):
    copy = bpy.data.objects["Object 001"].copy()
    bpy.context.scene.collection.objects.link(copy)
    bpy.context.view_layer.update()
    select("Object 001")
    bpy.ops.unified_lift.delete()
    assert len(copy.data.points) == 20


def test_deleting_what_is_isolated_shows_the_rest_again(segmented):
    bpy.data.objects["Unassigned"].hide_set(True)
    select(*THINGS)
    bpy.ops.unified_lift.isolate()
    select("Object 001")
    bpy.ops.unified_lift.delete()
    assert shown_of("Object 002", "Surface 001") == ["Object 002"], (
        "there is still something to see"
    )
    select("Object 002")
    bpy.ops.ed.undo_push(message="Select")
    bpy.ops.unified_lift.delete("EXEC_DEFAULT", True)
    assert shown_of("Surface 001", "Unassigned") == ["Surface 001"]
    assert not bpy.data.objects["Surface 001"].hide_render
    bpy.ops.ed.undo()
    bpy.context.view_layer.update()
    assert shown_of("Object 002", "Surface 001", "Unassigned") == ["Object 002"]
    assert bpy.ops.unified_lift.leave_isolation.poll()


def shown_of(*names: str) -> list[str]:
    return [name for name in names if bpy.data.objects[name].visible_get()]


def test_what_blender_deletes_leaves_the_list_and_comes_back(segmented):
    """The empty collection that X leaves is the user's: it holds no row, undo needs it."""
    from blender_unified_lift.scene import objects

    select("Object 001")
    bpy.ops.ed.undo_push(message="Select")
    bpy.ops.object.delete("EXEC_DEFAULT", True)
    bpy.data.collections.remove(bpy.data.collections["Surface 001"])  # as in the Outliner
    root = objects.root(bpy.context)
    assert [obj.name for _, obj in objects.rows(root)] == ["Object 002", "Unassigned"]
    bpy.ops.ed.undo()
    assert [obj.name for _, obj in objects.rows(objects.root(bpy.context))] == ALL


def test_a_capture_without_objects_gives_way_to_one_with_some(segmented, finished_job):
    from blender_unified_lift.scene import objects

    bpy.ops.unified_lift.import_job(directory=str(finished_job))
    last = objects.root(bpy.context)
    assert last.name == "messy8.001"
    objects.select(bpy.context, [obj for _, obj in objects.rows(last)])
    bpy.ops.object.delete()
    assert objects.root(bpy.context).name == "messy8"


def test_isolate_hides_the_others_and_gives_back_what_was_seen(segmented):
    bpy.data.objects["Unassigned"].hide_set(True)
    bpy.data.objects["Surface 001"].hide_render = True
    select("Object 001")
    bpy.ops.unified_lift.isolate()
    assert shown() == rendered() == ["Object 001"]
    bpy.ops.unified_lift.leave_isolation()
    assert shown() == ["Object 001", "Object 002", "Surface 001"]
    assert rendered() == ["Object 001", "Object 002", "Unassigned"]
    assert not bpy.ops.unified_lift.leave_isolation.poll()


def test_isolating_another_object_goes_by_its_row_and_keeps_the_way_back(segmented):
    for name in THINGS:
        bpy.context.scene.unified_lift.active_row = row_of(segmented, name)
        bpy.ops.unified_lift.isolate()
        assert shown() == rendered() == selected() == [name]
    bpy.ops.unified_lift.leave_isolation()
    assert shown() == rendered() == ALL


def test_isolate_leaves_other_things_of_the_scene_alone(segmented):
    lamp = bpy.data.objects.new("Lamp", bpy.data.lights.new("Lamp", "POINT"))
    bpy.context.scene.collection.objects.link(lamp)
    select("Object 001")
    bpy.ops.unified_lift.isolate()
    assert lamp.visible_get() and not lamp.hide_render


def test_isolate_is_undone(segmented):
    select("Object 001")
    bpy.ops.ed.undo_push(message="Select")
    bpy.ops.unified_lift.isolate("EXEC_DEFAULT", True)
    bpy.ops.ed.undo()
    bpy.context.view_layer.update()
    assert shown() == rendered() == ALL


def test_show_all_opens_every_way_of_hiding(segmented):
    bpy.data.objects["Object 001"].hide_viewport = True
    bpy.data.objects["Object 002"].hide_set(True)
    layer = bpy.context.view_layer.layer_collection.children["messy8"]
    layer.children["Surface 001"].exclude = True
    segmented.children["Unassigned"].hide_viewport = True
    segmented.children["Unassigned"].hide_render = True
    assert shown() == []
    bpy.ops.unified_lift.show_all()
    bpy.context.view_layer.update()
    assert shown() == rendered() == ALL
    assert not segmented.children["Unassigned"].hide_render


def test_the_eye_of_a_row_closes_and_opens(segmented):
    for wanted in ([name for name in ALL if name != "Object 002"], ALL):
        bpy.ops.unified_lift.toggle_visible(name="Object 002")
        assert shown() == wanted


def test_renaming_a_row_renames_object_and_collection(segmented):
    obj = bpy.data.objects["Object 001"]
    obj.unified_lift_name = "Vase"
    assert (obj.name, obj.unified_lift_name) == ("Vase", "Vase")
    assert "Vase" in segmented.children and "Object 001" not in segmented.children


def test_renaming_leaves_collections_of_the_user_alone(segmented):
    from blender_unified_lift.scene import objects

    obj, scene = bpy.data.objects["Object 001"], bpy.context.scene
    props = bpy.data.collections.new("Props")
    scene.collection.children.link(props)
    props.objects.link(obj)
    obj.unified_lift_name = "Vase"
    assert props.name == "Props" and "Vase" in bpy.data.collections
    for folder in obj.users_collection:
        folder.objects.unlink(obj)
    scene.collection.objects.link(obj)  # whose name cannot be changed
    objects.rename(obj, "Jug")
    assert obj.name == "Jug"


def test_clicking_a_row_in_edit_mode_ends_it(segmented):
    select("Object 001")
    bpy.ops.object.mode_set(mode="EDIT")
    assert not bpy.ops.unified_lift.delete.poll(), "what is selected are splats"
    bpy.context.scene.unified_lift.active_row = row_of(segmented, "Object 002")
    assert bpy.context.mode == "OBJECT" and bpy.data.objects["Object 001"].mode == "OBJECT"
    assert selected() == ["Object 002"]


def test_the_capture_at_work_is_the_one_of_the_active_object(segmented, finished_job):
    from blender_unified_lift.scene import objects

    bpy.ops.unified_lift.import_job(directory=str(finished_job))
    assert objects.root(bpy.context).name == "messy8.001"
    select("Object 001")
    assert objects.root(bpy.context) == segmented
    assert [obj.name for _, obj in objects.rows(segmented)] == ALL
