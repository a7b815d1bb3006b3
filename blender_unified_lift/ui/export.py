# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator that writes splats out, and its entry in File › Export."""

from pathlib import Path

import bpy
from bpy.props import BoolProperty, StringProperty
from bpy.types import Context, Menu, Operator
from bpy_extras.io_utils import ExportHelper

from unified_lift.protocol import JobError

from ..scene import exporter, schema


class UNIFIEDLIFT_OT_export_splats(ExportHelper, Operator):
    bl_idname = "unified_lift.export_splats"
    bl_label = "Export Splats"
    bl_description = (
        "Write splats into one .ply for any splat viewer, as they were moved, turned, scaled "
        "and edited here, in the frame of their capture"
    )

    filename_ext = ".ply"
    filter_glob: StringProperty(default="*.ply", options={"HIDDEN"})
    selected_only: BoolProperty(
        name="Selected Only",
        description="Leave out what is not selected. Off: export all splats that are to be seen",
    )

    @classmethod
    def poll(cls, context):
        if not any(map(schema.is_splats, context.scene.objects)):
            cls.poll_message_set("There are no splats in this scene")
            return False
        return True

    def invoke(self, context, event):
        self.selected_only = any(map(schema.is_splats, context.view_layer.objects.selected))
        return super().invoke(context, event)

    def execute(self, context):
        path = Path(bpy.path.abspath(self.filepath))
        try:
            told = exporter.export_splats(context, path, self.selected_only)
        except JobError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self.report({"INFO"}, told)
        return {"FINISHED"}


def _draw_entry(menu: Menu, context: Context) -> None:
    name = UNIFIEDLIFT_OT_export_splats.bl_idname
    menu.layout.operator(name, text="Gaussian Splats (.ply)")


def register() -> None:
    """Register the operator and add it to the menu."""
    bpy.utils.register_class(UNIFIEDLIFT_OT_export_splats)
    bpy.types.TOPBAR_MT_file_export.append(_draw_entry)


def unregister() -> None:
    """Leave the menu as it was."""
    bpy.types.TOPBAR_MT_file_export.remove(_draw_entry)
    bpy.utils.unregister_class(UNIFIEDLIFT_OT_export_splats)
