# SPDX-License-Identifier: GPL-3.0-or-later
"""Which splats are to be drawn, and their values as the shaders and the picking want them."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import bpy
import numpy as np

from ..scene import objects, schema
from ..scene.transform import rotation_matrices


class SplatInstance(NamedTuple):
    """One appearance of a splat object in the evaluated scene.

    Attributes:
        key: `session_uid` of the object: stable over undo, unlike names and references.
        cloud: evaluated point cloud.
        matrix: (4, 4) float64, object to world.
        owner: what a click on it selects: the object itself, or the one that instances it.
        color: the object's colour, RGB in display space.
        edited: it is in Edit Mode, where its points can be selected.
    """

    key: int
    cloud: bpy.types.PointCloud
    matrix: np.ndarray
    owner: bpy.types.Object
    color: tuple[float, float, float]
    edited: bool


class Cloud(NamedTuple):
    """The values of one point cloud, in its own frame.

    Attributes:
        stamp: checksum of what the values were made of, but for the harmonics, which take longest.
        means: (N, 3) float32.
        geometry: (N, 4, 4) float32: mean and opacity; covariance xx xy xz yy; yz zz, 1 if
            selected in Edit Mode, 0; raw f_dc.
        harmonics: (N, K, 3) float32.
        spreads: (N,) float32, square root of the covariance's trace: no axis is longer.
    """

    stamp: int
    means: np.ndarray
    geometry: np.ndarray
    harmonics: np.ndarray
    spreads: np.ndarray


def shown_splats(
    depsgraph: bpy.types.Depsgraph, space: bpy.types.SpaceView3D | None = None
) -> list[SplatInstance]:
    """Splats of the evaluated scene that Blender does not draw itself.

    Args:
        depsgraph: of the viewport or of a render.
        space: leave out what this viewport hides (local view, collections, object types).
    """
    if not any_splats():
        return []
    if space is not None and not space.show_object_viewport_pointcloud:
        return []
    found = []
    for instance, owner in objects.splat_instances(depsgraph):
        obj = instance.object
        if schema.is_native(obj.data):
            continue
        if space is not None and not owner.visible_in_viewport_get(space):
            continue
        matrix = np.array(instance.matrix_world, np.float64)
        color = tuple(linear_to_srgb(np.array(obj.color[:3])))
        key, edited = obj.original.session_uid, obj.original.mode == "EDIT"
        found.append(SplatInstance(key, obj.data, matrix, owner, color, edited))
    return found


def any_splats() -> bool:
    """Whether the file has splats that Blender does not draw: a quick look before a slow one."""
    clouds = bpy.data.pointclouds
    return any(schema.BASE in cloud.attributes and not schema.is_native(cloud) for cloud in clouds)


def content_stamp(instance: SplatInstance) -> int:
    """A checksum that tells whether splats have changed: undo reports all of them as updated."""
    stamp = 0
    for name in (schema.POSITION, schema.SCALE, schema.ROTATION, schema.BASE):
        stamp = zlib.crc32(schema.read_values(instance.cloud, name), stamp)
    if instance.edited:
        stamp = zlib.crc32(schema.read_selection(instance.cloud), stamp)
    return stamp


def read_cloud(instance: SplatInstance) -> Cloud:
    """Read the values of a point cloud."""
    cloud = instance.cloud
    means = schema.read_values(cloud, schema.POSITION)
    base = schema.read_values(cloud, schema.BASE)
    covariances = _covariances(
        schema.read_values(cloud, schema.SCALE), schema.read_values(cloud, schema.ROTATION)
    )
    geometry = np.zeros((len(means), 4, 4), np.float32)
    geometry[:, 0, :3] = means
    geometry[:, 0, 3] = base[:, 3]
    geometry[:, 1] = covariances[:, [0, 0, 0, 1], [0, 1, 2, 1]]
    geometry[:, 2, :2] = covariances[:, [1, 2], [2, 2]]
    if instance.edited:
        geometry[:, 2, 2] = schema.read_selection(cloud)
    geometry[:, 3, :3] = base[:, :3]
    harmonics = np.empty((len(means), schema.num_sh(cloud), 3), np.float32)
    for k in range(harmonics.shape[1]):
        harmonics[:, k] = schema.read_values(cloud, f"{schema.SH_PREFIX}{k}")
    spreads = np.sqrt(np.trace(covariances, axis1=1, axis2=2))
    return Cloud(content_stamp(instance), means, geometry, harmonics, spreads)


def living_keys() -> set[int]:
    """Keys of all splat objects of the file, shown or not."""
    return {obj.session_uid for obj in bpy.data.objects if obj.type == "POINTCLOUD"}


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    """Scene-linear to display values, by the piecewise sRGB curve."""
    values = np.maximum(values, 0)
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """Display to scene-linear values, by the piecewise sRGB curve."""
    values = np.maximum(values, 0)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _covariances(scales: np.ndarray, quats: np.ndarray) -> np.ndarray:
    """(N, 3, 3) float32 from linear scales and w x y z quaternions of any length."""
    stretched = rotation_matrices(quats) * scales[:, None, :]
    return stretched @ stretched.transpose(0, 2, 1)
