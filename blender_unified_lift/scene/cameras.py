# SPDX-License-Identifier: GPL-3.0-or-later
"""The cameras of a capture as Blender cameras, with their photos behind them."""

from __future__ import annotations

import os
from pathlib import Path

import bpy
import numpy as np
from bpy.types import Collection, Context, Object, Scene
from mathutils import Matrix

from unified_lift.capture import Capture, View

from .objects import printable

COLLECTION = "Cameras"
SIZE_KEYS = ("photo_width", "photo_height")  # custom properties: the render size is the scene's
_SENSOR_WIDTH = 36.0  # mm, full frame; only the ratio to the lens matters
_DISPLAY_SHARE = 0.04  # size of the drawn camera, as a share of the cameras' extent
_NEAR = 0.01  # where the backend's renderers clip, in the capture's units
_FAR_SHARE = 100.0  # times the cameras' extent: photos see far behind what they were taken of
_MAX_PIXELS = 65536  # of a side: Blender's largest render
_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV's camera axes in Blender's


def add_cameras(capture: Capture, parent: Object, folder: Collection) -> list[Object]:
    """Make a camera for each view of a capture.

    Args:
        capture: its cameras must be without distortion.
        parent: carries the world axes; the cameras are placed in the capture's own frame.
        folder: collection of the cameras.
    """
    centers = np.array([view.center for view in capture.views])
    extent = float(np.linalg.norm(np.ptp(centers, axis=0)))
    cameras = [make_camera(view) for view in capture.views]
    for camera in cameras:
        camera.parent = parent
        camera.data.display_size = _DISPLAY_SHARE * extent or 1.0
        camera.data.clip_start = _NEAR
        camera.data.clip_end = max(camera.data.clip_end, _FAR_SHARE * extent)
        folder.objects.link(camera)
    return cameras


def is_sound(view: View) -> bool:
    """Whether `make_camera` can make this camera: a file may say anything."""
    return (
        isinstance(view.name, str)
        and isinstance(view.split, str)
        and 0 < view.width <= _MAX_PIXELS
        and 0 < view.height <= _MAX_PIXELS
        and bool(np.isfinite(view.K).all() and np.isfinite(view.viewmat).all())
        and min(view.K[0, 0], view.K[1, 1]) > 0
        and np.linalg.matrix_rank(view.viewmat) == len(view.viewmat)
    )


def make_camera(view: View) -> Object:
    """Make the camera of a view, linked to no collection; its frame is the capture's."""
    name = printable(view.name)
    data = bpy.data.cameras.new(name)
    fx, fy, cx, cy = view.K[0, 0], view.K[1, 1], view.K[0, 2], view.K[1, 2]
    data.sensor_fit = "HORIZONTAL"
    data.sensor_width = _SENSOR_WIDTH
    data.lens = fx * _SENSOR_WIDTH / view.width
    data.shift_x = (view.width / 2 - cx) / view.width
    data.shift_y = (cy - view.height / 2) / view.width * (fx / fy)
    camera = bpy.data.objects.new(name, data)
    camera.matrix_local = Matrix(np.linalg.inv(view.viewmat) @ _OPENCV)
    for key, size in zip(SIZE_KEYS, (view.width, view.height), strict=True):
        camera[key] = size
    camera["pixel_aspect"] = fx / fy
    camera["split"] = view.split
    _add_photo(data, view.image_path)
    return camera


def _add_photo(data: bpy.types.Camera, path: Path) -> None:
    # another machine, or the photos have moved: the camera serves without
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        return
    data.show_background_images = False  # it would show what is hidden or isolated
    background = data.background_images.new()
    background.image = bpy.data.images.load(str(path), check_existing=True)
    background.frame_method = "STRETCH"
    background.display_depth = "BACK"


def is_capture_camera(obj: Object | None) -> bool:
    """Whether this camera came with a capture."""
    return obj is not None and obj.type == "CAMERA" and all(key in obj for key in SIZE_KEYS)


def capture_cameras(root: Collection) -> list[Object]:
    """The cameras of a capture, by name."""
    return sorted(filter(is_capture_camera, root.all_objects), key=lambda obj: obj.name)


def current_camera(context: Context, root: Collection) -> Object | None:
    """The camera that is meant: a selected one, else the scene's, if it belongs to the capture."""
    cameras = capture_cameras(root)
    active = context.view_layer.objects.active
    candidates = [active if active and active.select_get() else None, context.scene.camera]
    return next((camera for camera in candidates if camera in cameras), None)


def neighbour(root: Collection, camera: Object | None, step: int) -> Object | None:
    """The camera `step` places after this one, round and round; None if there are none."""
    cameras = capture_cameras(root)
    if not cameras:
        return None
    return cameras[(cameras.index(camera) + step) % len(cameras)] if camera else cameras[0]


def look_through(context: Context, camera: Object) -> None:
    """Make a capture camera the scene's camera, and the render as large as its photo.

    Where the context has a 3D viewport, it looks through the camera.
    """
    scene = context.scene
    if camera.hide_get():  # Blender shows the photo of a visible camera only
        if is_capture_camera(scene.camera):
            scene.camera.hide_set(True)
        camera.hide_set(False)
    scene.camera = camera
    _use_size(scene, camera)
    space = context.space_data
    if space and space.type == "VIEW_3D":
        space.region_3d.view_perspective = "CAMERA"


def _use_size(scene: Scene, camera: Object) -> None:
    render = scene.render
    render.resolution_x, render.resolution_y = (camera[key] for key in SIZE_KEYS)
    render.resolution_percentage = 100
    aspect = camera["pixel_aspect"]
    render.pixel_aspect_x, render.pixel_aspect_y = max(1.0, 1 / aspect), max(1.0, aspect)
