# SPDX-License-Identifier: GPL-3.0-or-later
"""Join and Separate for splats, on Blender's own keys; all else passes on to Blender's."""

import bpy
from bpy.types import KeyMap, KeyMapItem, Operator

from unified_lift.protocol import JobError

from ..scene import objects, schema

_keys: list[tuple[KeyMap, KeyMapItem]] = []


class UNIFIEDLIFT_OT_join(Operator):
    bl_idname = "unified_lift.join"
    bl_label = "Join"
    bl_description = "Join the selected splat objects into the active one, however they were turned"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        chosen = [obj for obj in context.view_layer.objects.selected if schema.is_splats(obj)]
        if context.mode != "OBJECT" or len(chosen) < 2 or context.active_object not in chosen:
            cls.poll_message_set("Select two or more splat objects in Object Mode first")
            return False
        return True

    def execute(self, context):
        try:
            objects.join(context)
        except JobError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class UNIFIEDLIFT_OT_separate(Operator):
    bl_idname = "unified_lift.separate"
    bl_label = "Separate"
    bl_description = "Make an object of the selected splats, in a collection of its own"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        if context.mode != "EDIT_POINTCLOUD" or not schema.is_splats(context.active_object):
            cls.poll_message_set("Select splats in Edit Mode first")
            return False
        return True

    def execute(self, context):
        if not objects.separate(context):
            self.report({"WARNING"}, "No splats are selected")
            return {"CANCELLED"}
        return {"FINISHED"}


_CLASSES = (UNIFIEDLIFT_OT_join, UNIFIEDLIFT_OT_separate)
_register_classes, _unregister_classes = bpy.utils.register_classes_factory(_CLASSES)


def register() -> None:
    """Register the operators and put them before Blender's own in the keymaps."""
    _register_classes()
    keyconfig = bpy.context.window_manager.keyconfigs.addon
    if keyconfig is None:  # background
        return
    for name, operator, key, modifiers in (
        ("Object Mode", UNIFIEDLIFT_OT_join, "J", {"ctrl": True}),
        ("Point Cloud", UNIFIEDLIFT_OT_separate, "P", {}),
    ):
        keymap = keyconfig.keymaps.new(name, space_type="EMPTY")
        item = keymap.keymap_items.new(operator.bl_idname, key, "PRESS", **modifiers)
        _keys.append((keymap, item))


def unregister() -> None:
    """Leave the keymaps as they were."""
    for keymap, item in _keys:
        keymap.keymap_items.remove(item)
    _keys.clear()
    _unregister_classes()
