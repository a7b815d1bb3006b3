# SPDX-License-Identifier: GPL-3.0-or-later
"""The tab "Unified Lift" of the 3D viewport's sidebar. Draws only: nothing is changed here."""

from pathlib import Path

import bpy
import bpy.utils.previews
from bpy.types import Context, Panel, UILayout, UIList

from .. import preferences
from ..job import environment, session
from ..job.session import Watch
from ..scene import cameras, objects
from .job_operators import why_not_segment
from .operators import renders_splats
from .properties import FOLDER, SAM
from .text import draw_text

KIND_ICONS = {"thing": "MESH_CUBE", "surface": "MESH_PLANE", "unassigned": "QUESTION"}
PREVIEW_SCALE = 5.5
MAX_PREVIEWS = 8  # pictures kept in memory
_END_ICONS = {
    session.FINISHED: "TIME",
    session.IMPORTED: "CHECKMARK",
    session.CANCELLED: "CANCEL",
}
_previews = None  # bpy.utils.previews collection while registered


class _Tab:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Unified Lift"


# ---- the job


class UNIFIEDLIFT_PT_segment(_Tab, Panel):
    bl_label = "Segment Scene"

    def draw(self, context):
        layout = self.layout
        watch = session.watch_of(context.scene)
        if watch and watch.state in session.ALIVE:
            _draw_progress(layout, context, watch)
            return
        _draw_settings(layout, context)
        reason = why_not_segment(context)
        row = layout.row()
        row.scale_y = 1.6
        row.operator("unified_lift.segment", icon="OUTLINER_OB_POINTCLOUD")
        if reason:
            draw_text(layout, context, reason, "INFO")
        if not preferences.get(context).backend_python:
            layout.operator("unified_lift.open_preferences", icon="PREFERENCES")
        if watch:
            _draw_end(layout, context, watch)


def _draw_settings(layout: UILayout, context: Context) -> None:
    settings = context.scene.unified_lift
    column = layout.column()
    column.use_property_split = True
    column.use_property_decorate = False
    column.prop(settings, "capture_dir")
    column.prop(settings, "splat")
    column.prop(settings, "masks")
    if settings.masks == FOLDER:
        column.prop(settings, "masks_dir", text="Folder")
    elif settings.masks == SAM:
        column.prop(settings, "sam_checkpoint")
    column.prop(settings, "quality")
    column.prop(settings, "device")


def _draw_progress(layout: UILayout, context: Context, watch: Watch) -> None:
    column = layout.column()
    left = "" if watch.seconds_left is None else f"{time_left(watch.seconds_left)} left"
    row = column.row()
    row.label(text=watch.stage)
    side = row.row()
    side.alignment = "RIGHT"
    side.label(text=left)
    row = column.row(align=True)
    row.progress(factor=watch.fraction, text=f"{watch.fraction:.0%}")
    button = row.row(align=True)
    button.enabled = not watch.stopping
    button.operator("unified_lift.cancel", text="", icon="X")
    if watch.state == session.HUNG:
        text = "No sign of life for a minute: cancel, then look at the log"
        draw_text(layout, context, text, "ERROR")
    if watch.trouble:
        draw_text(layout, context, watch.trouble, "ERROR")
    _draw_preview(layout, watch)
    _draw_warnings(layout, context, watch)
    row = layout.row(align=True)
    row.operator("unified_lift.open_job_dir", text="Job Folder", icon="FILE_FOLDER")
    row.operator("unified_lift.open_log", text="Log", icon="TEXT")


def time_left(seconds: float) -> str:
    """Seconds as a person would say them.

    >>> time_left(8), time_left(52), time_left(130)
    ('a few seconds', '50 s', '2 min')
    """
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"{round(seconds, -1):.0f} s"
    return f"{seconds / 60:.0f} min"


def _draw_preview(layout: UILayout, watch: Watch) -> None:
    if not watch.preview:
        return
    box = layout.box()
    row = box.row()
    for key in ("image", "labels"):
        path = watch.job_dir / watch.preview[key]
        if watch.preview[key] and path.is_file():
            row.template_icon(icon_value=_icon(path), scale=PREVIEW_SCALE)
    if watch.preview["caption"]:
        box.label(text=watch.preview["caption"])


def _icon(path: Path) -> int:
    """Icon of a picture, loaded again when the file has changed; only the last few are kept."""
    name = f"{path}:{path.stat().st_mtime_ns}"
    if name not in _previews:
        if len(_previews) > MAX_PREVIEWS:
            _previews.clear()
        _previews.load(name, str(path), "IMAGE")
    return _previews[name].icon_id


def _draw_warnings(layout: UILayout, context: Context, watch: Watch) -> None:
    if watch.warnings:
        box = layout.box()
        for text in watch.warnings:
            draw_text(box, context, text, "INFO")


def _draw_end(layout: UILayout, context: Context, watch: Watch) -> None:
    """How the last job ended, and what can be done about it."""
    box = layout.box()
    row = box.row()
    icon = _END_ICONS.get(watch.state, "ERROR")
    draw_text(row.column(), context, watch.message, icon, taken=20)
    if watch.state != session.FINISHED:
        row.operator("unified_lift.forget", text="", icon="X", emboss=False)
    _draw_warnings(box, context, watch)
    if watch.state in (session.CRASHED, session.FAILED, session.CANCELLED):
        buttons = box.row(align=True)
        buttons.operator("unified_lift.resume", icon="PLAY")
        buttons.operator("unified_lift.restart", icon="FILE_REFRESH")
        buttons.operator("unified_lift.open_log", text="Log", icon="TEXT")
    filled = [root for root in objects.roots(context.scene) if objects.rows(root)]
    gone = all(session.stored_path(root) != watch.job_dir for root in filled)
    if watch.state == session.IMPORTED and gone:
        buttons = box.row()
        buttons.operator_context = "EXEC_DEFAULT"
        again = buttons.operator("unified_lift.import_job", text="Import Again", icon="IMPORT")
        again.directory = str(watch.job_dir)


class UNIFIEDLIFT_PT_advanced(_Tab, Panel):
    bl_label = "Advanced"
    bl_parent_id = "UNIFIEDLIFT_PT_segment"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context):
        watch = session.watch_of(context.scene)
        return watch is None or watch.state not in session.ALIVE

    def draw(self, context):
        layout = self.layout
        column = layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(context.scene.unified_lift, "seed")
        layout.operator("unified_lift.import_job", icon="IMPORT")
        row = layout.row(align=True)
        row.operator("unified_lift.open_job_dir", text="Job Folder", icon="FILE_FOLDER")
        row.operator("unified_lift.open_log", text="Log", icon="TEXT")
        state = environment.last_check(preferences.get(context).backend_python)
        if isinstance(state, str):
            draw_text(layout, context, state, "ERROR")


# ---- the objects


class UNIFIEDLIFT_UL_objects(UIList):
    def draw_item(self, context, layout, data, obj, icon, active_data, active_property, index=0):
        visible = objects.is_visible(obj, context.view_layer)
        row = layout.row(align=True)
        kind = KIND_ICONS.get(obj.get("kind"), "OBJECT_DATA")
        row.operator(
            "unified_lift.select", text="", icon=kind, emboss=obj.select_get(), depress=True
        ).name = obj.name
        swatch = row.row()
        swatch.ui_units_x = 0.9
        swatch.prop(obj, "color", text="")
        name = row.row()
        name.active = visible
        # A name field takes the click that should select its row: only the active row has one.
        if obj == context.view_layer.objects.active and obj.select_get():
            name.prop(obj, "unified_lift_name", text="", emboss=False)
        else:
            name.label(text=obj.name)
        count = row.row()
        count.alignment = "RIGHT"
        count.label(text=f"{len(obj.data.points):,}")
        eye = "HIDE_OFF" if visible else "HIDE_ON"
        row.operator("unified_lift.toggle_visible", text="", icon=eye, emboss=False).name = obj.name
        row.prop(obj, "hide_render", text="", emboss=False)

    def filter_items(self, context, data, property):
        items = getattr(data, property)
        shown = [self.bitflag_filter_item * objects.is_part(obj) for obj in items]
        if self.filter_name:
            named = bpy.types.UI_UL_list.filter_items_by_name(
                self.filter_name, self.bitflag_filter_item, items, reverse=False
            )
            shown = [a & b for a, b in zip(shown, named, strict=True)]
        return shown, []


class UNIFIEDLIFT_PT_objects(_Tab, Panel):
    bl_label = "Objects"

    def draw(self, context):
        layout = self.layout
        root = objects.root(context)
        if root is None:
            draw_text(layout, context, "No segmented scene here yet", "INFO")
            return
        if not objects.rows(root):
            draw_text(layout, context, f"{root.name} has no objects left", "INFO")
            return
        settings = context.scene.unified_lift
        identifier = UNIFIEDLIFT_UL_objects.__name__
        layout.template_list(identifier, "", root, "all_objects", settings, "active_row", rows=8)
        _draw_object_buttons(layout, context)
        job_dir = session.stored_path(root)
        if not job_dir.is_dir():
            text = f"The job folder {job_dir} is not on this machine. The objects work without it"
            draw_text(layout, context, text, "INFO")


def _draw_object_buttons(layout: UILayout, context: Context) -> None:
    if context.mode == "EDIT_POINTCLOUD":  # what is selected now are splats
        text = "Separate Selected Splats"
        layout.operator("unified_lift.separate", text=text, icon="UV_ISLANDSEL")
        return
    grid = layout.grid_flow(columns=2, even_columns=True, row_major=True, align=True)
    if objects.is_isolated(context.scene):
        grid.operator("unified_lift.leave_isolation", icon="LOOP_BACK")
    else:
        grid.operator("unified_lift.isolate", icon="ZOOM_SELECTED")
    grid.operator("unified_lift.show_all", icon="HIDE_OFF")
    grid.operator("unified_lift.render_isolated", icon="RENDER_STILL")
    grid.operator("unified_lift.delete", icon="TRASH")
    grid.operator("unified_lift.join", icon="AUTOMERGE_ON")
    grid.operator("unified_lift.export_splats", icon="EXPORT")


class UNIFIEDLIFT_PT_render(_Tab, Panel):
    bl_label = "Cameras and Render"

    @classmethod
    def poll(cls, context):
        return objects.root(context) is not None

    def draw(self, context):
        layout = self.layout
        camera = cameras.current_camera(context, objects.root(context))
        row = layout.row(align=True)
        row.operator("unified_lift.look_through_camera", text="", icon="TRIA_LEFT").step = -1
        name = f"Look Through {camera.name}" if camera else "Look Through Camera"
        row.operator("unified_lift.look_through_camera", text=name, icon="CAMERA_DATA").step = 0
        row.operator("unified_lift.look_through_camera", text="", icon="TRIA_RIGHT").step = 1
        if camera:
            row.prop(camera.data, "show_background_images", text="", icon="IMAGE_BACKGROUND")
        if not renders_splats(context.scene):
            column = layout.column()
            draw_text(column, context, "The render engine of this scene draws no splats", "INFO")
            column.operator("unified_lift.set_up_render", icon="RENDER_STILL")


_CLASSES = (
    UNIFIEDLIFT_UL_objects,
    UNIFIEDLIFT_PT_segment,
    UNIFIEDLIFT_PT_advanced,
    UNIFIEDLIFT_PT_objects,
    UNIFIEDLIFT_PT_render,
)
_register_classes, _unregister_classes = bpy.utils.register_classes_factory(_CLASSES)


def register() -> None:
    global _previews
    _previews = bpy.utils.previews.new()
    _register_classes()


def unregister() -> None:
    global _previews
    _unregister_classes()
    bpy.utils.previews.remove(_previews)
    _previews = None
