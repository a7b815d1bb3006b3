# SPDX-License-Identifier: GPL-3.0-or-later
"""Clicks and boxes in the viewport select splats: Blender's own selection sees points without size.

All else is left to Blender: a click that hits no splat passes through to it, and a box selects
Blender's way, with splats besides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import bpy
import gpu
import numpy as np
from bpy.types import Context, KeyMap, KeyMapItem, Object, Operator, ViewLayer
from gpu_extras.batch import batch_for_shader
from mathutils import Vector

from . import viewport
from .clouds import SplatInstance, any_splats, shown_splats
from .hits import hit_at, inside
from .viewpoint import Viewpoint, make_viewpoint

MAX_LAYERS = 32  # objects that a click looks through, one behind the other
PICKING_TOOLS = (
    *("builtin.select", "builtin.select_box", "builtin.select_circle", "builtin.select_lasso"),
    *("builtin.move", "builtin.rotate", "builtin.scale", "builtin.scale_cage"),
    "builtin.transform",
)
BOX_KEYMAPS = ("3D View Tool: Select Box", "3D View Tool: Select Box (fallback)")
BOX_MODES = (  # modifier keys and what they do, as in Blender's keymap
    ({}, "SET"),
    ({"shift": True}, "ADD"),
    ({"ctrl": True}, "SUB"),
    ({"shift": True, "ctrl": True}, "AND"),
)

_keys: list[tuple[KeyMap, KeyMapItem]] = []


class UNIFIEDLIFT_OT_pick(Operator):
    bl_idname = "unified_lift.pick"
    bl_label = "Select Splats"
    bl_description = "Select the splat object under the mouse"
    bl_options = {"UNDO"}

    toggle: bpy.props.BoolProperty(
        name="Toggle", description="Keep the selection and toggle this object in it"
    )

    @classmethod
    def poll(cls, context):
        return _splats_can_be_seen(context) and _tool(context).idname in PICKING_TOOLS

    def invoke(self, context, event):
        seen = _look(context)
        x, y = event.mouse_region_x + 0.5, event.mouse_region_y + 0.5
        hit = hit_at(seen.instances, viewport.renderer().clouds, seen.viewpoint, x, y)
        if hit is None or _solid_depth(context, seen.viewpoint, x, y) < hit.depth:
            return {"PASS_THROUGH"}
        owner = seen.instances[hit.index].owner
        if owner.hide_select:
            return {"PASS_THROUGH"}
        select_one(context.view_layer, owner, self.toggle)
        return {"FINISHED"}


class UNIFIEDLIFT_OT_select_box(Operator):
    bl_idname = "unified_lift.select_box"
    bl_label = "Box Select"
    bl_description = "Select objects, splats among them, in a rectangle"
    bl_options = {"UNDO"}

    mode: bpy.props.EnumProperty(
        name="Mode",
        items=[(name, name.title(), "") for name in ("SET", "ADD", "SUB", "XOR", "AND")],
    )

    @classmethod
    def poll(cls, context):
        return _splats_can_be_seen(context)

    def invoke(self, context, event):
        region = context.region
        self._end = Vector((event.mouse_region_x, event.mouse_region_y))
        pressed = Vector((event.mouse_prev_press_x - region.x, event.mouse_prev_press_y - region.y))
        self._start = pressed if event.type == "LEFTMOUSE" else None  # else a key: press later
        self._handle = bpy.types.SpaceView3D.draw_handler_add(
            self._draw, (), "WINDOW", "POST_PIXEL"
        )
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context, event):
        self._end = Vector((event.mouse_region_x, event.mouse_region_y))
        context.region.tag_redraw()
        if event.type in {"ESC", "RIGHTMOUSE"}:
            return self._finish({"CANCELLED"})
        if event.type == "LEFTMOUSE" and event.value == "RELEASE" and self._start:
            result = self._finish({"FINISHED"})
            self._select(context)
            return result
        if event.type == "LEFTMOUSE" and not self._start:
            self._start = self._end
        return {"RUNNING_MODAL"}

    def cancel(self, context):
        """Blender ends it: the window is closed, say."""
        self._finish(set())

    def _finish(self, result: set[str]) -> set[str]:
        bpy.types.SpaceView3D.draw_handler_remove(self._handle, "WINDOW")
        return result

    def _select(self, context: Context) -> None:
        mode = self.mode
        if mode == "SET" and _tool(context).idname == "builtin.select_box":
            mode = _tool(context).operator_properties("view3d.select_box").mode  # of its header
        low, high = np.sort([self._start, self._end], axis=0)
        seen = _look(context)
        owners = {instance.owner for instance in seen.instances}
        before = {owner for owner in owners if owner.select_get()}
        rows = inside(seen.instances, viewport.renderer().clouds, seen.viewpoint, low, high)
        found = {seen.instances[row].owner for row in rows}
        corners = {"xmin": low[0], "ymin": low[1], "xmax": high[0], "ymax": high[1]}
        corners = {name: int(value) for name, value in corners.items()}
        bpy.ops.view3d.select_box(wait_for_input=False, mode=mode, **corners)
        for owner in owners:
            is_selected = owner in combine(before, found, mode) and not owner.hide_select
            owner.select_set(is_selected)

    def _draw(self) -> None:
        if self._start is None:
            return
        (x0, y0), (x1, y1) = self._start, self._end
        shader = gpu.shader.from_builtin("UNIFORM_COLOR")
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        shader.uniform_float("color", (1.0, 1.0, 1.0, 1.0))
        batch_for_shader(shader, "LINE_LOOP", {"pos": corners}).draw(shader)


class _Look(NamedTuple):
    instances: list[SplatInstance]
    viewpoint: Viewpoint


def _look(context: Context) -> _Look:
    """What the current region shows, with its values read."""
    view, region = context.region_data, context.region
    instances = shown_splats(context.evaluated_depsgraph_get(), context.space_data)
    viewport.renderer().read(instances)
    size = (region.width, region.height)
    return _Look(instances, make_viewpoint(view.view_matrix, view.window_matrix, size))


def _splats_can_be_seen(context: Context) -> bool:
    return (
        context.mode == "OBJECT"
        and context.region is not None
        and context.region.type == "WINDOW"
        and context.region_data is not None
        and context.scene.unified_lift_splats.show
        and any_splats()
    )


def _tool(context: Context) -> bpy.types.WorkSpaceTool:
    return context.workspace.tools.from_space_view3d_mode("OBJECT", create=True)


def _solid_depth(context: Context, viewpoint: Viewpoint, x: float, y: float) -> float:
    """Depth of the nearest solid surface at a pixel, infinite if there is none."""
    to_world = np.linalg.inv(viewpoint.world_to_view)
    slope = (np.array([x, y]) - viewpoint.center) / viewpoint.focal
    if viewpoint.perspective:
        start, direction = to_world[:3, 3], to_world[:3, :3] @ [*slope, 1]
    else:
        start = (to_world @ [*slope, viewpoint.near, 1])[:3]
        direction = to_world[:3, 2]
    start, direction = Vector(start), Vector(direction).normalized()
    depsgraph = context.evaluated_depsgraph_get()
    for _ in range(MAX_LAYERS):
        is_hit, place, _, _, obj, _ = context.scene.ray_cast(depsgraph, start, direction)
        if not is_hit:
            break
        shown = obj.original.visible_in_viewport_get(context.space_data)
        if shown and obj.display_type in {"SOLID", "TEXTURED"}:
            return float(viewpoint.world_to_view[2] @ [*place, 1])
        start = place + 1e-4 * direction
    return np.inf


def select_one(layer: ViewLayer, obj: Object, toggle: bool) -> None:
    """Select as a click does: alone, or with `toggle` as Blender's shift-click."""
    is_active = layer.objects.active == obj
    if toggle and obj.select_get(view_layer=layer) and is_active:
        obj.select_set(False, view_layer=layer)
        return
    if not toggle:
        for other in list(layer.objects.selected):
            other.select_set(False, view_layer=layer)
    obj.select_set(True, view_layer=layer)
    layer.objects.active = obj


def combine(before: set, found: Iterable, mode: str) -> set:
    """The selection after a box, from the one before and what the box holds."""
    found = set(found)
    return {
        "SET": found,
        "ADD": before | found,
        "SUB": before - found,
        "XOR": before ^ found,
        "AND": before & found,
    }[mode]


def register() -> None:
    """Register the operators and put them before Blender's own in the keymaps."""
    bpy.utils.register_class(UNIFIEDLIFT_OT_pick)
    bpy.utils.register_class(UNIFIEDLIFT_OT_select_box)
    keyconfig = bpy.context.window_manager.keyconfigs.addon
    if keyconfig is None:  # background
        return
    keymap = keyconfig.keymaps.new("Object Mode", space_type="EMPTY")
    for toggle in (False, True):
        pick = UNIFIEDLIFT_OT_pick.bl_idname
        item = keymap.keymap_items.new(pick, *_selecting_click(), shift=toggle)
        item.properties.toggle = toggle
        _keys.append((keymap, item))
    box = UNIFIEDLIFT_OT_select_box.bl_idname
    _keys.append((keymap, keymap.keymap_items.new(box, "B", "PRESS")))
    for name in BOX_KEYMAPS:
        keymap = keyconfig.keymaps.new(name, space_type="VIEW_3D", region_type="WINDOW")
        for modifiers, mode in BOX_MODES:
            item = keymap.keymap_items.new(box, "LEFTMOUSE", "CLICK_DRAG", **modifiers)
            item.properties.mode = mode
            _keys.append((keymap, item))


def _selecting_click() -> tuple[str, str]:
    """Mouse button and event that select, as the user has chosen in Blender's preferences."""
    chosen = bpy.context.window_manager.keyconfigs.active.preferences  # None: another keymap
    if getattr(chosen, "select_mouse", "LEFT") == "RIGHT":
        return "RIGHTMOUSE", "PRESS"
    return "LEFTMOUSE", "CLICK"


def unregister() -> None:
    """Leave the keymaps as they were."""
    for keymap, item in _keys:
        keymap.keymap_items.remove(item)
    _keys.clear()
    bpy.utils.unregister_class(UNIFIEDLIFT_OT_select_box)
    bpy.utils.unregister_class(UNIFIEDLIFT_OT_pick)
