# SPDX-License-Identifier: GPL-3.0-or-later
"""The render engine "Gaussian Splats": F12 with the viewport's own renderer.

It draws splats and nothing else. To render meshes with them, render a second scene with this
engine and the Depth pass, and join both in the compositor with a Z Combine node.
"""

from __future__ import annotations

import bpy
import gpu
import numpy as np
from bpy.types import Depsgraph, Object, RenderEngine, Scene

from unified_lift.protocol import JobError

from ..scene.objects import SPLAT_ENGINE
from . import viewport
from .clouds import linear_to_srgb, shown_splats, srgb_to_linear
from .drawing import Renderer, Target
from .viewpoint import ALPHA_MIN, Viewpoint, crop, make_viewpoint

NOTHING_DEPTH = 1e10  # what Cycles writes where there is nothing
# Parts of the names of panels whose settings this engine has not.
_FOREIGN = (
    *("opengl_sampling", "opengl_lighting", "opengl_color", "opengl_options", "eevee"),
    *("freestyle", "gpencil", "grease_pencil", "camera_dof", "stereoscopy", "output_views"),
)


class UNIFIEDLIFT_RE_splats(RenderEngine):
    bl_idname = SPLAT_ENGINE
    bl_label = "Gaussian Splats"
    bl_use_gpu_context = True
    bl_use_preview = False
    bl_use_eevee_viewport = True  # Material Preview

    def update_render_passes(self, scene=None, renderlayer=None):
        self.register_pass(scene, renderlayer, "Combined", 4, "RGBA", "COLOR")
        if renderlayer.use_pass_z:
            self.register_pass(scene, renderlayer, "Depth", 1, "Z", "VALUE")

    def render(self, depsgraph):
        scene = depsgraph.scene
        frame, (left, bottom, width, height) = render_size(scene)
        camera = self.camera_override or scene.camera
        instances = shown_splats(depsgraph)
        if not instances:
            self.report({"WARNING"}, "No splats to render. Check that objects are not disabled")
        try:
            viewpoint = camera_viewpoint(camera, depsgraph, frame)
            part = crop(viewpoint, left, bottom, (width, height))
            target = Target((width, height), precise=True)
            Renderer().draw(instances, part, target, exact_order=True)
            colors, marks = target.read()
        except (JobError, SystemError) as error:
            self.report({"ERROR"}, f"Splats cannot be drawn: {error}")
            self.end_result(self.begin_result(0, 0, width, height))  # Blender would crash on none
            return
        self._write(depsgraph, finish_colors(colors, scene), finish_depth(marks))

    def view_update(self, context, depsgraph):
        """Nothing to keep: `view_draw` looks at the scene itself."""

    def view_draw(self, context, depsgraph):
        background = (*world_color(context.scene), 1.0)
        gpu.state.active_framebuffer_get().clear(color=background)
        viewport.draw_view(context, depsgraph, viewport.SRGB_CURVE, "NONE")

    def _write(self, depsgraph: Depsgraph, colors: np.ndarray, depth: np.ndarray) -> None:
        height, width = depth.shape
        layer = depsgraph.view_layer_eval
        if layer.use_pass_z:
            self.add_pass("Depth", 1, "Z", layer=layer.name)
        result = self.begin_result(0, 0, width, height, layer=layer.name)
        passes = result.layers[0].passes
        passes["Combined"].rect.foreach_set(np.ascontiguousarray(colors, np.float32).reshape(-1))
        if layer.use_pass_z:
            passes["Depth"].rect.foreach_set(depth.reshape(-1))
        self.end_result(result)


def render_size(scene: Scene) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Size of the whole frame, and left, bottom, width, height of the part to be rendered."""
    render = scene.render
    width = render.resolution_x * render.resolution_percentage // 100
    height = render.resolution_y * render.resolution_percentage // 100
    if not render.use_border:
        return (width, height), (0, 0, width, height)
    left, right = int(render.border_min_x * width), int(render.border_max_x * width)
    bottom, top = int(render.border_min_y * height), int(render.border_max_y * height)
    return (width, height), (left, bottom, right - left, top - bottom)


def camera_viewpoint(camera: Object, depsgraph: Depsgraph, size: tuple[int, int]) -> Viewpoint:
    """The view of a camera, at any size; pixels are of the aspect that the scene sets.

    Raises:
        JobError: the camera is panoramic.
    """
    if camera.data.type == "PANO":
        raise JobError(f"{camera.name} is panoramic. Choose a perspective or orthographic camera.")
    render = depsgraph.scene.render
    window = camera.calc_matrix_camera(
        depsgraph,
        x=size[0],
        y=size[1],
        scale_x=render.pixel_aspect_x,
        scale_y=render.pixel_aspect_y,
    )
    view = camera.evaluated_get(depsgraph).matrix_world.normalized().inverted()
    return make_viewpoint(view, window, size)


def finish_colors(colors: np.ndarray, scene: Scene) -> np.ndarray:
    """Display to scene-linear, premultiplied, over the world's colour unless film is transparent.

    With the view transform Standard the picture shows the trained colours again.
    """
    rgb, alpha = colors[..., :3], colors[..., 3:]
    if not scene.render.film_transparent:
        rgb = rgb + (1 - alpha) * linear_to_srgb(np.array(world_color(scene)))
        alpha = np.ones_like(alpha)
    straight = rgb / np.maximum(alpha, ALPHA_MIN)
    return np.concatenate([srgb_to_linear(straight) * alpha, alpha], -1)


def finish_depth(marks: np.ndarray) -> np.ndarray:
    """(H, W) expected depth along the line of sight; far away where nothing is seen."""
    alpha = marks[..., 3]
    depth = marks[..., 0] / np.maximum(alpha, ALPHA_MIN)
    return np.where(alpha < ALPHA_MIN, np.float32(NOTHING_DEPTH), depth)


def world_color(scene: Scene) -> tuple[float, float, float]:
    """Colour of the world's Viewport Display, scene-linear; black without a world."""
    return tuple(scene.world.color) if scene.world else (0.0, 0.0, 0.0)


def _panels() -> list[type[bpy.types.Panel]]:
    """Blender's own panels that make sense here: Workbench's, but for settings it has alone."""
    return [
        panel
        for panel in bpy.types.Panel.__subclasses__()
        if "BLENDER_WORKBENCH" in getattr(panel, "COMPAT_ENGINES", ())
        and not any(part in panel.__name__ for part in _FOREIGN)
    ]


def register() -> None:
    """Offer the engine, and the panels of Blender that go with it."""
    bpy.utils.register_class(UNIFIEDLIFT_RE_splats)
    for panel in _panels():
        panel.COMPAT_ENGINES.add(UNIFIEDLIFT_RE_splats.bl_idname)


def unregister() -> None:
    """Take the engine away, and its name from the panels."""
    for panel in _panels():
        panel.COMPAT_ENGINES.discard(UNIFIEDLIFT_RE_splats.bl_idname)
    bpy.utils.unregister_class(UNIFIEDLIFT_RE_splats)
