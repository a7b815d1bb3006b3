# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators on the objects of a segmented scene: gather, call, report."""

import bpy
from bpy.props import BoolProperty, IntProperty, StringProperty
from bpy.types import Operator, Scene

from ..scene import cameras, objects, schema


class _OnSelected:
    """Poll of an operator that works on the selected objects of a capture."""

    @classmethod
    def poll(cls, context):
        if context.mode != "OBJECT":
            cls.poll_message_set("Switch to Object Mode first")
            return False
        if not objects.selected(context):
            cls.poll_message_set("Select an object of a segmented scene first")
            return False
        return True


class _OnScene:
    """Poll of an operator that works on a whole capture."""

    @classmethod
    def poll(cls, context):
        if objects.root(context) is None:
            cls.poll_message_set("There is no segmented scene here yet: run Segment Scene")
            return False
        return True


class UNIFIEDLIFT_OT_select(_OnScene, Operator):
    bl_idname = "unified_lift.select"
    bl_label = "Select"
    bl_description = "Select this object. Shift-click to add it to the selection, or take it out"
    bl_options = {"REGISTER", "UNDO"}

    name: StringProperty(name="Object", description="Name of the object")
    extend: BoolProperty(name="Extend", description="Keep what is selected")

    def invoke(self, context, event):
        self.extend = event.shift or event.ctrl
        return self.execute(context)

    def execute(self, context):
        obj = context.view_layer.objects.get(self.name)
        if obj is None or not objects.is_part(obj):
            self.report({"ERROR"}, f"There is no object {self.name} in this view layer")
            return {"CANCELLED"}
        if self.extend and obj.select_get():
            obj.select_set(False)
        elif self.extend:
            objects.select(context, [obj], extend=True)
        else:
            objects.focus(context, obj)
        return {"FINISHED"}


class UNIFIEDLIFT_OT_toggle_visible(_OnScene, Operator):
    bl_idname = "unified_lift.toggle_visible"
    bl_label = "Hide in Viewport"
    bl_description = "Hide or show this object in the viewport"
    bl_options = {"REGISTER", "UNDO"}

    name: StringProperty(name="Object", description="Name of the object")

    def execute(self, context):
        obj = context.scene.objects.get(self.name)
        if obj is None or not objects.is_part(obj):
            self.report({"ERROR"}, f"There is no object {self.name} in this scene")
            return {"CANCELLED"}
        layer = context.view_layer
        objects.set_visible(obj, layer, not objects.is_visible(obj, layer))
        return {"FINISHED"}


class UNIFIEDLIFT_OT_delete(_OnSelected, Operator):
    bl_idname = "unified_lift.delete"
    bl_label = "Delete"
    bl_description = "Delete the selected objects with their splats and collections"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        count = objects.delete(context, objects.selected(context))
        self.report({"INFO"}, f"Deleted {count} object{'s' if count > 1 else ''}")
        return {"FINISHED"}


class UNIFIEDLIFT_OT_isolate(_OnSelected, Operator):
    bl_idname = "unified_lift.isolate"
    bl_label = "Isolate"
    bl_description = "Hide all objects of the capture but the selected ones, in viewport and render"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        objects.isolate(context, objects.selected(context))
        return {"FINISHED"}


class UNIFIEDLIFT_OT_leave_isolation(Operator):
    bl_idname = "unified_lift.leave_isolation"
    bl_label = "Leave Isolation"
    bl_description = "Show again what Isolate has hidden; what was hidden before it stays hidden"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        if not objects.is_isolated(context.scene):
            cls.poll_message_set("No object is isolated")
            return False
        return True

    def execute(self, context):
        objects.leave_isolation(context)
        return {"FINISHED"}


class UNIFIEDLIFT_OT_show_all(_OnScene, Operator):
    bl_idname = "unified_lift.show_all"
    bl_label = "Show All"
    bl_description = "Show every object of the capture, in viewport and render"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        objects.show_all(context)
        return {"FINISHED"}


class UNIFIEDLIFT_OT_look_through_camera(_OnScene, Operator):
    bl_idname = "unified_lift.look_through_camera"
    bl_label = "Look Through Camera"
    bl_description = (
        "Make a camera of the capture the scene's camera, look through it, "
        "and render at the size of its photo"
    )
    bl_options = {"REGISTER", "UNDO"}

    step: IntProperty(
        name="Step",
        description="Cameras to go on from the selected one or the scene's; 0 takes this one",
    )

    def execute(self, context):
        root = objects.root(context)
        current = cameras.current_camera(context, root)
        camera = cameras.neighbour(root, current, self.step)
        if camera is None:
            self.report({"ERROR"}, f"{root.name} has no cameras left. Import the job again")
            return {"CANCELLED"}
        cameras.look_through(context, camera)
        return {"FINISHED"}


class UNIFIEDLIFT_OT_set_up_render(_OnScene, Operator):
    bl_idname = "unified_lift.set_up_render"
    bl_label = "Set Up Splat Render"
    bl_description = "Render with the splat engine, in the colours of the photos"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context):
        set_up_render(context.scene)
        return {"FINISHED"}


class UNIFIEDLIFT_OT_render_isolated(_OnSelected, Operator):
    bl_idname = "unified_lift.render_isolated"
    bl_label = "Render Isolated"
    bl_description = "Render the selected objects alone, on a transparent ground; none stays hidden"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        if bpy.app.is_job_running("RENDER"):
            cls.poll_message_set("Wait for the end of the render that is running")
            return False
        return super().poll(context)

    def invoke(self, context, event):
        result = self.execute(context)
        if result == {"FINISHED"}:
            bpy.ops.render.view_show("INVOKE_DEFAULT")
        return result

    def execute(self, context):
        scene = context.scene
        if scene.camera is None:
            self.report({"ERROR"}, "The scene has no camera. Run Look Through Camera first")
            return {"CANCELLED"}
        set_up_render(scene)
        try:
            with objects.alone_in_render(scene, objects.selected(context)):
                bpy.ops.render.render()  # waits for its end: what it needs is put back then
        except RuntimeError as error:  # how Blender's operators fail
            self.report({"ERROR"}, str(error).strip().removeprefix("Error: "))
            return {"CANCELLED"}
        return {"FINISHED"}


def renders_splats(scene: Scene) -> bool:
    """Whether the scene's engine draws splats: ours, or any where Blender knows them itself."""
    native = any(schema.is_native(obj.data) for obj in objects.parts(scene))
    return native or scene.render.engine == objects.SPLAT_ENGINE


def set_up_render(scene: Scene) -> None:
    """Let F12 give the objects with the colours that they were trained with."""
    if not renders_splats(scene):
        scene.render.engine = objects.SPLAT_ENGINE
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"


_CLASSES = (
    UNIFIEDLIFT_OT_select,
    UNIFIEDLIFT_OT_toggle_visible,
    UNIFIEDLIFT_OT_delete,
    UNIFIEDLIFT_OT_isolate,
    UNIFIEDLIFT_OT_leave_isolation,
    UNIFIEDLIFT_OT_show_all,
    UNIFIEDLIFT_OT_look_through_camera,
    UNIFIEDLIFT_OT_set_up_render,
    UNIFIEDLIFT_OT_render_isolated,
)
register, unregister = bpy.utils.register_classes_factory(_CLASSES)
