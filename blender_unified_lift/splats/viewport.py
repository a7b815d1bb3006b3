# SPDX-License-Identifier: GPL-3.0-or-later
"""Splats in the 3D viewport: drawn into every view, behind and before meshes, selection outlined.

From Blender 5.3 on, point clouds of the splat type are Blender's own business and are left alone.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import bpy
import gpu
import numpy as np
from bpy.app.handlers import persistent
from bpy.types import Context, Depsgraph, PropertyGroup
from gpu_extras.batch import batch_for_shader

from unified_lift.protocol import JobError

from ..scene.objects import SPLAT_ENGINE, redraw_views
from . import clouds, drawing
from .viewpoint import make_viewpoint

log = logging.getLogger(__name__)

VIEWPORT_GAMMA = 2.2  # viewports encode what handlers draw with x ^ (1 / 2.2) (5.2, measured)
SRGB_CURVE = 0.0  # instead of a gamma: what engines draw is scene-linear
OUTLINE_OPACITY = 0.9
SELECTION_OPACITY = 0.7  # of the theme's colour on splats that are selected in Edit Mode


def _on_setting(settings, context) -> None:
    redraw_views()


class UNIFIEDLIFT_PG_splat_view(PropertyGroup):
    show: bpy.props.BoolProperty(
        name="Splats",
        description="Draw Gaussian splats in the 3D viewports of this scene",
        default=True,
        update=_on_setting,
    )
    color: bpy.props.EnumProperty(
        name="Splat Color",
        description="What gives splats their color in the 3D viewports of this scene",
        items=[
            ("CAPTURE", "Capture", "The colors of the photos"),
            ("OBJECT", "Object", "The color of each object, to see what belongs together"),
        ],
        default="CAPTURE",
        update=_on_setting,
    )


class Frame(NamedTuple):
    """What was last drawn into a region, and what it depended on."""

    key: tuple
    target: drawing.Target


_renderer: drawing.Renderer | None = None
_frames: dict[int, Frame] = {}  # by the pointer of the region
_draw_handle: object | None = None


def renderer() -> drawing.Renderer:
    """The renderer that all viewports share."""
    global _renderer
    if _renderer is None:
        _renderer = drawing.Renderer()
    return _renderer


def draw_frame(context: Context, depsgraph: Depsgraph) -> drawing.Target | None:
    """Draw the splats of the current region, or reuse what was drawn; None if there are none."""
    instances = clouds.shown_splats(depsgraph, context.space_data)
    region, view = context.region, context.region_data
    if not instances:
        _frames.pop(region.as_pointer(), None)
        return None
    renderer().read(instances)
    size = (region.width, region.height)
    marks = selection_marks(context, instances)
    tint = float(context.scene.unified_lift_splats.color == "OBJECT")
    selection = selection_color(context)
    key = (_frame_key(context, instances), tuple(marks), tint, selection, size)
    known = _frames.get(region.as_pointer())
    if known is not None and known.key == key:
        return known.target
    target = known.target if known and known.target.size == size else drawing.Target(size)
    viewpoint = make_viewpoint(view.view_matrix, view.window_matrix, size)
    renderer().draw(instances, viewpoint, target, marks, tint, selection=selection)
    _forget_closed_regions(context)
    _frames[region.as_pointer()] = Frame(key, target)
    return target


def _frame_key(context: Context, instances: list[clouds.SplatInstance]) -> tuple:
    """What the picture depends on: the view, and the contents, place and colour of each object."""
    view, known = context.region_data, renderer().clouds
    matrices = np.array(view.view_matrix).tobytes() + np.array(view.window_matrix).tobytes()
    return matrices, tuple(
        (i.key, known[i.key].stamp, i.matrix.tobytes(), i.color) for i in instances
    )


def _forget_closed_regions(context: Context) -> None:
    screens = [window.screen for window in context.window_manager.windows]
    regions = [r for screen in screens for area in screen.areas for r in area.regions]
    for pointer in _frames.keys() - {region.as_pointer() for region in regions}:
        del _frames[pointer]


def selection_marks(
    context: Context, instances: list[clouds.SplatInstance]
) -> list[tuple[float, float]]:
    """Selected and active of each instance, as they are to be outlined."""
    overlay = context.space_data.overlay
    if not (overlay.show_overlays and overlay.show_outline_selected and context.mode == "OBJECT"):
        return [(0.0, 0.0)] * len(instances)
    active = context.view_layer.objects.active
    selected = [float(instance.owner.select_get()) for instance in instances]
    return [(mark, mark * (i.owner == active)) for i, mark in zip(instances, selected)]


def selection_color(context: Context) -> tuple[float, float, float, float]:
    """Colour and opacity of what is selected in Edit Mode; invisible like all overlays."""
    opacity = SELECTION_OPACITY if context.space_data.overlay.show_overlays else 0.0
    return (*context.preferences.themes[0].view_3d.vertex_select, opacity)


def composite(context: Context, target: drawing.Target, gamma: float, depth_test: str) -> None:
    """Put drawn splats into the current region.

    Args:
        context: of the region.
        target: what `draw_frame` gave.
        gamma: that the region will be encoded with, or `SRGB_CURVE`.
        depth_test: "LESS_EQUAL" behind and before what is there, "NONE" over it.
    """
    theme = context.preferences.themes[0].view_3d
    window = np.array(context.region_data.window_matrix)
    shader = _composite_shader()
    quad = batch_for_shader(shader, "TRI_STRIP", {"corner": drawing.CORNERS})
    shader.uniform_sampler("colors", target.colors)
    shader.uniform_sampler("marks", target.marks)
    shader.uniform_float("depth_row", window[[2, 2, 3, 3], [2, 3, 2, 3]])
    shader.uniform_float("selected_color", (*theme.object_selected, OUTLINE_OPACITY))
    shader.uniform_float("active_color", (*theme.object_active, OUTLINE_OPACITY))
    shader.uniform_float("gamma", gamma)
    shader.uniform_int("line_width", max(1, round(context.preferences.system.pixel_size)))
    drawing.set_state("ALPHA_PREMULT", depth_test)
    quad.draw(shader)
    drawing.set_state("NONE", "NONE")


@cache
def _composite_shader() -> gpu.types.GPUShader:
    info = gpu.types.GPUShaderCreateInfo()
    info.sampler(0, "FLOAT_2D", "colors")
    info.sampler(1, "FLOAT_2D", "marks")
    for name in ("depth_row", "selected_color", "active_color"):
        info.push_constant("VEC4", name)
    info.push_constant("FLOAT", "gamma")
    info.push_constant("INT", "line_width")
    interface = gpu.types.GPUStageInterfaceInfo("unified_lift_composite")
    interface.smooth("VEC2", "uv")
    info.vertex_out(interface)
    info.fragment_out(0, "VEC4", "fragment")
    info.depth_write("ANY")
    return drawing.make_shader("composite_vert.glsl", "composite_frag.glsl", info)


def draw_view(context: Context, depsgraph: Depsgraph, gamma: float, depth_test: str) -> None:
    """Draw the splats into the current region, see `composite`; say once why it cannot be done."""
    try:
        target = draw_frame(context, depsgraph)
    except JobError as error:
        _log_once(str(error))
        return
    if target is not None:
        composite(context, target, gamma, depth_test)


def _draw_view() -> None:
    """POST_VIEW handler."""
    context = bpy.context
    if not context.scene.unified_lift_splats.show or _is_drawn_by_engine(context):
        return
    draw_view(context, context.evaluated_depsgraph_get(), VIEWPORT_GAMMA, "LESS_EQUAL")


def _is_drawn_by_engine(context: Context) -> bool:
    return (
        context.space_data.shading.type == "RENDERED"
        and context.scene.render.engine == SPLAT_ENGINE
    )


@cache
def _log_once(message: str) -> None:
    log.error(message)


@persistent
def _on_update(scene, depsgraph) -> None:
    if _renderer is None or not _renderer.clouds:
        return
    changed = {
        update.id.original.session_uid
        for update in depsgraph.updates
        if update.is_updated_geometry and isinstance(update.id, bpy.types.Object)
    }
    _renderer.mark_changed(changed & _renderer.clouds.keys())
    if not _renderer.clouds.keys() <= clouds.living_keys():
        _renderer.forget_deleted()


@persistent
def _on_load(*_) -> None:
    """Nothing of the last file is worth keeping."""
    global _renderer
    _renderer = None
    _frames.clear()


def _draw_overlay_settings(panel, context) -> None:
    settings = context.scene.unified_lift_splats
    row = panel.layout.row(align=True, heading="Splats")
    row.prop(settings, "show", text="")
    sub = row.row(align=True)
    sub.active = settings.show
    sub.prop(settings, "color", expand=True)


def register() -> None:
    """Start drawing."""
    global _draw_handle
    bpy.utils.register_class(UNIFIEDLIFT_PG_splat_view)
    bpy.types.Scene.unified_lift_splats = bpy.props.PointerProperty(type=UNIFIEDLIFT_PG_splat_view)
    bpy.types.VIEW3D_PT_overlay.append(_draw_overlay_settings)
    bpy.app.handlers.depsgraph_update_post.append(_on_update)
    bpy.app.handlers.load_post.append(_on_load)
    _draw_handle = bpy.types.SpaceView3D.draw_handler_add(_draw_view, (), "WINDOW", "POST_VIEW")


def unregister() -> None:
    """Stop drawing and free all that was kept for it."""
    bpy.types.SpaceView3D.draw_handler_remove(_draw_handle, "WINDOW")
    bpy.app.handlers.load_post.remove(_on_load)
    bpy.app.handlers.depsgraph_update_post.remove(_on_update)
    bpy.types.VIEW3D_PT_overlay.remove(_draw_overlay_settings)
    del bpy.types.Scene.unified_lift_splats
    bpy.utils.unregister_class(UNIFIEDLIFT_PG_splat_view)
    _on_load()
    _composite_shader.cache_clear()
    drawing.free_shaders()
