# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's preferences: where the backend is, where jobs go."""

import bpy
from bpy.props import StringProperty
from bpy.types import AddonPreferences, Context, Operator, UILayout

from unified_lift.protocol import JobError

from .job import environment
from .ui.text import draw_text


class UNIFIEDLIFT_Preferences(AddonPreferences):
    bl_idname = __package__

    backend_python: StringProperty(
        name="Backend Python",
        description="Python of the environment that holds the backend, or the environment's folder",
        subtype="FILE_PATH",
    )
    jobs_dir: StringProperty(
        name="Job Folder",
        description="Where results are kept. Empty: beside the saved .blend file, "
        "else in your user data folder",
        subtype="DIR_PATH",
    )

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        row = layout.row(align=True)
        row.prop(self, "backend_python")
        row.operator("unified_lift.check_backend", text="", icon="FILE_REFRESH")
        draw_backend_state(layout, context, self.backend_python)
        layout.prop(self, "jobs_dir")


class UNIFIEDLIFT_OT_check_backend(Operator):
    bl_idname = "unified_lift.check_backend"
    bl_label = "Check Backend"
    bl_description = "Start the Backend Python and see whether it can run the segmentation"

    def execute(self, context):
        try:
            backend = environment.check(get(context).backend_python)
        except JobError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self.report({"INFO"}, f"Backend {backend.version} is ready")
        return {"FINISHED"}


def draw_backend_state(layout: UILayout, context: Context, preference: str) -> None:
    """What the last check of the backend found."""
    state = environment.last_check(preference)
    if isinstance(state, environment.Backend):
        layout.label(text=f"Backend {state.version} is ready", icon="CHECKMARK")
    elif state is not None:
        draw_text(layout, context, state, "ERROR")
    elif preference:
        layout.label(text="Not checked yet: press the button beside the path", icon="QUESTION")
    else:
        layout.label(text="The README says how to set up the backend", icon="INFO")


def get(context: Context) -> UNIFIEDLIFT_Preferences:
    """The preferences of this add-on, which must be enabled."""
    return context.preferences.addons[__package__].preferences


def register() -> None:
    bpy.utils.register_class(UNIFIEDLIFT_OT_check_backend)
    bpy.utils.register_class(UNIFIEDLIFT_Preferences)


def unregister() -> None:
    bpy.utils.unregister_class(UNIFIEDLIFT_Preferences)
    bpy.utils.unregister_class(UNIFIEDLIFT_OT_check_backend)
