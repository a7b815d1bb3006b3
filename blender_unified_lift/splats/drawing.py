# SPDX-License-Identifier: GPL-3.0-or-later
"""The splat renderer: sorted Gaussians, blended in display space into textures of its own.

The viewport and the render engine are its users; what they do with the textures is theirs. There
are no storage buffers in Blender's `gpu` module, so all data lies in float textures.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import bpy
import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader

from unified_lift.protocol import JobError

from .clouds import Cloud, SplatInstance, content_stamp, living_keys, read_cloud
from .viewpoint import ALPHA_MAX, ALPHA_MIN, EPS2D, Viewpoint, eye, front_to_back

SHADERS_DIR = Path(__file__).parent / "shaders"
GEOMETRY_TEXELS = 4  # of one splat
SLOT_TEXELS = 6  # of one instance: three rows of the matrix, eye, tint, marks
MAX_SPLATS = 1 << 24  # float32 holds every index below
CORNERS = ((-1, -1), (1, -1), (-1, 1), (1, 1))


def ensure_gpu() -> None:
    """Make drawing possible where Blender has no window. Call it before a render in background.

    Raises:
        JobError: this machine offers no OpenGL.
    """
    if not bpy.app.background:
        return
    if sys.platform == "linux" and not _has_opengl():
        raise JobError(
            "Blender cannot draw splats: this machine has no OpenGL. "
            "Install libEGL and libGL; Mesa's serve without a graphics card."
        )
    if hasattr(gpu, "init"):  # 5.2
        gpu.init()
        return
    try:
        gpu.state.blend_get()
    except SystemError:
        _start_gpu_by_rendering()


def _has_opengl() -> bool:
    """Whether EGL has a driver: without one Blender does not fail, it aborts (4.5 to 5.2)."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetDisplay.argtypes, egl.eglGetDisplay.restype = [ctypes.c_void_p], ctypes.c_void_p
    return egl.eglGetDisplay(None) is not None


def _start_gpu_by_rendering() -> None:
    """Before 5.2, background Blender gets its GPU context from the first render that needs one."""
    scene = bpy.data.scenes.new("GPU")
    camera = bpy.data.cameras.new("GPU")
    scene.camera = bpy.data.objects.new("GPU", camera)
    scene.render.engine = "BLENDER_WORKBENCH"
    scene.render.resolution_x = scene.render.resolution_y = 8
    scene.display.render_aa = "OFF"
    bpy.ops.render.render(scene=scene.name)
    bpy.data.cameras.remove(camera)
    bpy.data.scenes.remove(scene)


class Target:
    """Two textures to draw into, of the same size. Raises JobError where the GPU has no room.

    Attributes:
        size: (width, height).
        colors: premultiplied display RGB, alpha.
        marks: depth, selected and active, each weighted by alpha like the colours; alpha.
    """

    def __init__(self, size: tuple[int, int], precise: bool = False) -> None:
        self.size = size
        self.colors = _new_texture(size, "RGBA32F" if precise else "RGBA16F")
        self.marks = _new_texture(size, "RGBA32F")
        self.framebuffer = gpu.types.GPUFrameBuffer(color_slots=(self.colors, self.marks))

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Colours and marks as (H, W, 4) float32, the lowest row first."""
        return self._read(0), self._read(1)

    def _read(self, slot: int) -> np.ndarray:
        width, height = self.size
        with self.framebuffer.bind():
            pixels = self.framebuffer.read_color(0, 0, width, height, 4, slot, "FLOAT")
        pixels.dimensions = width * height * 4
        return np.frombuffer(pixels, np.float32).reshape(height, width, 4)


class Renderer:
    """Draws splats, and keeps them on the GPU between draws.

    Attributes:
        clouds: values of all known splat objects, by their keys.
    """

    def __init__(self) -> None:
        self.clouds: dict[int, Cloud] = {}
        self._starts: dict[int, int] = {}  # of what is on the GPU: first index
        self._stale: set[int] = set()
        self._num_sh = 0
        self._textures: dict[str, gpu.types.GPUTexture] = {}

    def mark_changed(self, keys: set[int]) -> None:
        """Look at the contents of these objects again before the next draw."""
        self._stale |= keys

    def forget_deleted(self) -> None:
        """Free the values of deleted objects, and the textures if no object is left."""
        living = living_keys()
        self.clouds = {key: cloud for key, cloud in self.clouds.items() if key in living}
        self._starts = {key: start for key, start in self._starts.items() if key in living}
        if not self.clouds:
            self._textures.clear()

    def draw(
        self,
        instances: Sequence[SplatInstance],
        viewpoint: Viewpoint,
        target: Target,
        marks: Sequence[tuple[float, float]] | None = None,
        tint: float = 0.0,
        exact_order: bool = False,
        selection: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    ) -> None:
        """Draw splats into `target`, over nothing.

        Args:
            instances: what to draw.
            viewpoint: of the size of `target`.
            target: cleared before.
            marks: selected and active of each instance, 0 or 1.
            tint: 0 for the splats' colours, 1 for those of the objects.
            exact_order: sort by the exact depth, which takes longer.
            selection: display RGB of what is selected in Edit Mode, and how much of it is seen.

        Raises:
            JobError: more splats than textures can hold.
        """
        self.read(instances)
        if any(instance.key not in self._starts for instance in instances):
            self._upload()
        order = self._sort(instances, viewpoint, exact_order)
        slots = self._slots(instances, viewpoint, marks or [(0.0, 0.0)] * len(instances), tint)
        with target.framebuffer.bind():
            target.framebuffer.clear(color=(0.0, 0.0, 0.0, 0.0))
            if len(order):
                self._draw_sorted(order, slots, viewpoint, selection)

    def read(self, instances: Sequence[SplatInstance]) -> None:
        """Bring `clouds` up to what these instances show now."""
        for instance in instances:
            known = self.clouds.get(instance.key)
            if known is not None and instance.key in self._stale:
                known = known if known.stamp == content_stamp(instance) else None
            self._stale.discard(instance.key)
            if known is None:
                self.clouds[instance.key] = read_cloud(instance)
                self._starts.pop(instance.key, None)

    def _upload(self) -> None:
        clouds = list(self.clouds.values())
        starts = np.cumsum([0] + [len(cloud.means) for cloud in clouds])
        self._num_sh = max(cloud.harmonics.shape[1] for cloud in clouds)
        total = int(starts[-1])
        _check_capacity(total, self._num_sh)
        self._starts = dict(zip(self.clouds, starts.tolist()))
        geometry = _empty_texels(total * GEOMETRY_TEXELS)
        harmonics = _empty_texels(total * self._num_sh)
        all_geometry = geometry[: total * GEOMETRY_TEXELS].reshape(total, GEOMETRY_TEXELS, 4)
        all_harmonics = harmonics[: total * self._num_sh].reshape(total, self._num_sh, 4)
        for cloud, start in zip(clouds, starts):
            rows = slice(start, start + len(cloud.means))
            all_geometry[rows] = cloud.geometry
            all_harmonics[rows, : cloud.harmonics.shape[1], :3] = cloud.harmonics
        self._textures = {
            "geometry": _texture(geometry, "RGBA32F"),
            "harmonics": _texture(harmonics, "RGBA16F"),
        }

    def _sort(
        self, instances: Sequence[SplatInstance], viewpoint: Viewpoint, exact: bool
    ) -> np.ndarray:
        """(M, 2) float32 index and slot of the splats in the view's depth range, farthest first."""
        entries, all_depths = [], []
        for slot, instance in enumerate(instances):
            row = (viewpoint.world_to_view @ instance.matrix)[2].astype(np.float32)
            depths = self.clouds[instance.key].means @ row[:3] + row[3]
            (shown,) = np.nonzero((depths > viewpoint.near) & (depths < viewpoint.far))
            entry = np.empty((len(shown), 2), np.float32)
            entry[:, 0] = shown + self._starts[instance.key]
            entry[:, 1] = slot
            entries.append(entry)
            all_depths.append(depths[shown])
        if not entries:
            return np.empty((0, 2), np.float32)
        order = front_to_back(np.concatenate(all_depths), viewpoint.perspective, exact)
        return np.concatenate(entries)[order[::-1]]

    def _slots(
        self,
        instances: Sequence[SplatInstance],
        viewpoint: Viewpoint,
        marks: Sequence[tuple[float, float]],
        tint: float,
    ) -> np.ndarray:
        slots = np.zeros((len(instances), SLOT_TEXELS, 4), np.float32)
        for slot, instance, mark in zip(slots, instances, marks):
            to_view = viewpoint.world_to_view @ instance.matrix
            slot[:3] = to_view[:3]
            slot[3] = eye(to_view, viewpoint.perspective)
            slot[4] = *instance.color, tint
            slot[5, :2] = mark
        return slots

    def _draw_sorted(
        self,
        order: np.ndarray,
        slots: np.ndarray,
        viewpoint: Viewpoint,
        selection: tuple[float, float, float, float],
    ) -> None:
        shader = _splat_shader()
        quad = batch_for_shader(shader, "TRI_STRIP", {"corner": CORNERS})
        textures = self._textures | {
            "order": _data_texture(order, "RG32F"),
            "slots": _data_texture(slots, "RGBA32F"),
        }
        set_state("ALPHA_PREMULT", depth_test="NONE")
        for name, texture in textures.items():
            shader.uniform_sampler(name, texture)
        shader.uniform_float("focal", viewpoint.focal)
        shader.uniform_float("center", viewpoint.center)
        shader.uniform_float("size", viewpoint.size)
        shader.uniform_float("limits", viewpoint.limits)
        shader.uniform_float("selection", selection)
        shader.uniform_int("num_sh", self._num_sh)
        quad.draw_instanced(shader, instance_count=len(order))
        set_state("NONE", depth_test="NONE")


def set_state(blend: str, depth_test: str) -> None:
    """Set every part of the GPU state that drawing depends on: Blender leaves any behind."""
    gpu.state.blend_set(blend)
    gpu.state.depth_test_set(depth_test)
    gpu.state.depth_mask_set(False)
    gpu.state.face_culling_set("NONE")
    gpu.state.color_mask_set(True, True, True, True)


def make_shader(
    vertex: str, fragment: str, info: gpu.types.GPUShaderCreateInfo
) -> gpu.types.GPUShader:
    """Compile two files of `shaders/` with the interface in `info` and the common constants."""
    info.define("ALPHA_MIN", repr(ALPHA_MIN))
    info.define("ALPHA_MAX", repr(ALPHA_MAX))
    info.define("EPS2D", repr(EPS2D))
    info.define("SLOT_TEXELS", str(SLOT_TEXELS))
    info.vertex_in(0, "VEC2", "corner")
    info.vertex_source((SHADERS_DIR / vertex).read_text("utf-8"))
    info.fragment_source((SHADERS_DIR / fragment).read_text("utf-8"))
    return gpu.shader.create_from_info(info)


@cache
def _splat_shader() -> gpu.types.GPUShader:
    info = gpu.types.GPUShaderCreateInfo()
    for i, name in enumerate(("geometry", "harmonics", "order", "slots")):
        info.sampler(i, "FLOAT_2D", name)
    for kind, name in (
        ("VEC4", "limits"),
        ("VEC4", "selection"),
        ("VEC2", "focal"),
        ("VEC2", "center"),
        ("VEC2", "size"),
        ("INT", "num_sh"),
    ):
        info.push_constant(kind, name)
    interface = gpu.types.GPUStageInterfaceInfo("unified_lift_splat")
    interface.flat("VEC4", "splat_color")
    interface.flat("VEC3", "splat_conic")
    interface.flat("VEC3", "splat_marks")
    interface.smooth("VEC2", "splat_offset")
    info.vertex_out(interface)
    info.fragment_out(0, "VEC4", "blended_color")
    info.fragment_out(1, "VEC4", "blended_marks")
    return make_shader("splat_vert.glsl", "splat_frag.glsl", info)


def free_shaders() -> None:
    """Forget compiled shaders, when the add-on is disabled."""
    _splat_shader.cache_clear()


def _check_capacity(num_splats: int, num_sh: int) -> None:
    side = gpu.capabilities.max_texture_size_get()
    capacity = min(side * side // max(GEOMETRY_TEXELS, num_sh), MAX_SPLATS)
    if num_splats > capacity:
        raise JobError(
            f"This GPU can draw {capacity} splats, the file has {num_splats}. "
            "Delete objects, or import with less detail."
        )


def _empty_texels(num_texels: int, channels: int = 4) -> np.ndarray:
    """(M, channels) zeros that fill whole rows of a texture, M at least `num_texels`."""
    width = min(gpu.capabilities.max_texture_size_get(), max(num_texels, 1))
    height = max(-(-num_texels // width), 1)
    return np.zeros((width * height, channels), np.float32)


def _texture(texels: np.ndarray, format: str) -> gpu.types.GPUTexture:
    """A texture of rows of texels."""
    width = min(gpu.capabilities.max_texture_size_get(), len(texels))
    buffer = gpu.types.Buffer("FLOAT", texels.size, texels.reshape(-1))
    return _new_texture((width, len(texels) // width), format, data=buffer)


def _new_texture(size: tuple[int, int], format: str, **data: object) -> gpu.types.GPUTexture:
    try:
        return gpu.types.GPUTexture(size, format=format, **data)
    except RuntimeError as error:
        raise JobError(
            f"The GPU has no room for {size[0]} x {size[1]} pixels ({error}). "
            "Choose a smaller picture, or delete objects."
        ) from error


def _data_texture(values: np.ndarray, format: str) -> gpu.types.GPUTexture:
    """A texture from an array whose last axis is one texel."""
    values = values.reshape(-1, values.shape[-1])
    texels = _empty_texels(*values.shape)
    texels[: len(values)] = values
    return _texture(texels, format)
