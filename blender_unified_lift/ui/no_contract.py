# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tab shows when the extension came without its wheel; needs nothing but bpy."""

import bpy
from bpy.types import Panel

EXPLANATION = (
    "Part of the add-on is missing:",
    "the Python package unified_lift.",
    "Install the extension's .zip again,",
    "then restart Blender.",
)


class UNIFIEDLIFT_PT_no_contract(Panel):
    bl_label = "Unified Lift"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Unified Lift"

    def draw(self, context):
        column = self.layout.column(align=True)
        for number, line in enumerate(EXPLANATION):
            column.label(text=line, icon="BLANK1" if number else "ERROR")


def register() -> None:
    bpy.utils.register_class(UNIFIEDLIFT_PT_no_contract)


def unregister() -> None:
    bpy.utils.unregister_class(UNIFIEDLIFT_PT_no_contract)
