# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussian splats as point clouds: the one mapping between PLY values and Blender's attributes.

The names are those that Blender 5.3 reads natively; every version stores them.

| attribute       | stored as                | PLY value                                      |
| --------------- | ------------------------ | ---------------------------------------------- |
| position        | FLOAT_VECTOR             | the same bits                                  |
| scale           | FLOAT_VECTOR, linear     | log; 1 ulp of rounding each way                |
| rotation        | QUATERNION, w x y z      | the same bits, if unit length; else normalised |
| radiance:base   | FLOAT4 or FLOAT_COLOR    | raw f_dc: the same bits; alpha 0..1: logit     |
| radiance:sh_k   | FLOAT_VECTOR, raw        | the same bits                                  |
| confidence      | FLOAT                    | the same bits                                  |
| radius          | FLOAT, 0 before 5.3      | none: keeps native points out of every picture |
"""

from __future__ import annotations

import bpy
import numpy as np

from unified_lift.ply import Splats

POSITION, SCALE, ROTATION = "position", "scale", "rotation"
BASE, CONFIDENCE, RADIUS = "radiance:base", "confidence", "radius"
SH_PREFIX = "radiance:sh_"
SELECTION = ".selection"  # Blender's, in Edit Mode; without it all points are selected
OBJECT_ID = "object_id"  # custom property of the object, not of its points

_NATIVE_TYPE = "GAUSSIAN_SPLAT"
_VALUE_NAMES = {"FLOAT_VECTOR": "vector", "FLOAT4": "vector", "FLOAT_COLOR": "color"}
_WIDTHS = {"FLOAT": 1, "FLOAT_VECTOR": 3, "FLOAT4": 4, "FLOAT_COLOR": 4, "QUATERNION": 4}
_NEEDED = {BASE: 4, SCALE: 3, ROTATION: 4, POSITION: 3}  # splats are what has these
_UNIT_TOLERANCE = 1e-6  # quaternions this close to unit length keep their bits
_ALPHA_MIN = float(np.finfo(np.float32).tiny)  # these two keep logits finite
_ALPHA_MAX = 1 - 2.0**-25  # half a float32 step below 1


def make_splat_object(name: str, splats: Splats) -> bpy.types.Object:
    """Make a point cloud object of splats, linked to no collection.

    Args:
        name: of the object and of its data.
        splats: any number of Gaussians; `object_ids` is not stored, it belongs on the object.
    """
    obj = _new_pointcloud_object(name, len(splats))
    write_splats(obj.data, splats)
    if "type" in bpy.types.PointCloud.bl_rna.properties:
        obj.data.type = _NATIVE_TYPE
    else:
        write_values(obj.data, RADIUS, "FLOAT", np.zeros(len(splats), np.float32))
    return obj


def write_splats(cloud: bpy.types.PointCloud, splats: Splats) -> None:
    """Write all but the ids into a point cloud of as many points."""
    write_values(cloud, POSITION, "FLOAT_VECTOR", splats.means)
    write_values(cloud, SCALE, "FLOAT_VECTOR", np.exp(splats.scales))
    write_values(cloud, ROTATION, "QUATERNION", _unit_quats(splats.quats))
    base = np.concatenate([splats.sh0[:, 0], _sigmoid(splats.opacities)[:, None]], 1)
    write_values(cloud, BASE, _base_type(), base)
    for k in range(splats.shN.shape[1]):
        write_values(cloud, f"{SH_PREFIX}{k}", "FLOAT_VECTOR", splats.shN[:, k])
    write_values(cloud, CONFIDENCE, "FLOAT", splats.confidence)


def read_splats(cloud: bpy.types.PointCloud) -> Splats:
    """Read the splats of a point cloud, in its own frame; the ids are 0."""
    base = read_values(cloud, BASE)
    num_points = len(base)
    shN = np.empty((num_points, num_sh(cloud), 3), np.float32)
    for k in range(shN.shape[1]):
        shN[:, k] = read_values(cloud, f"{SH_PREFIX}{k}")
    has_confidence = CONFIDENCE in cloud.attributes
    return Splats(
        means=read_values(cloud, POSITION),
        quats=read_values(cloud, ROTATION),
        scales=np.log(np.maximum(read_values(cloud, SCALE), np.finfo(np.float32).tiny)),
        opacities=_logit(base[:, 3]),
        sh0=np.ascontiguousarray(base[:, None, :3]),
        shN=shN,
        object_ids=np.zeros(num_points, np.int32),
        confidence=(
            read_values(cloud, CONFIDENCE)[:, 0]
            if has_confidence
            else np.zeros(num_points, np.float32)
        ),
    )


def is_splats(obj: bpy.types.Object) -> bool:
    """Whether an object is a point cloud with the attributes of Gaussian splats."""
    return obj.type == "POINTCLOUD" and not lacking(obj.data)


def lacking(cloud: bpy.types.PointCloud) -> list[str]:
    """The attributes of splats that a point cloud has not, or not of that width."""
    kinds = {name: getattr(cloud.attributes.get(name), "data_type", None) for name in _NEEDED}
    return [name for name, width in _NEEDED.items() if _WIDTHS.get(kinds[name]) != width]


def is_native(cloud: bpy.types.PointCloud) -> bool:
    """Whether Blender itself draws and renders this point cloud as splats (from 5.3 on)."""
    return getattr(cloud, "type", "") == _NATIVE_TYPE


def num_sh(cloud: bpy.types.PointCloud) -> int:
    """Number of stored SH coefficients above the constant one."""
    count = 0
    while f"{SH_PREFIX}{count}" in cloud.attributes:
        count += 1
    return count


def read_values(cloud: bpy.types.PointCloud, name: str) -> np.ndarray:
    """(N, C) float32 values of a point attribute that exists."""
    attribute = cloud.attributes[name]
    width = _WIDTHS[attribute.data_type]
    values = np.empty((len(attribute.data), width), np.float32)
    attribute.data.foreach_get(_VALUE_NAMES.get(attribute.data_type, "value"), values.reshape(-1))
    return values


def read_selection(cloud: bpy.types.PointCloud) -> np.ndarray:
    """(N,) bool, the points that are selected in Edit Mode."""
    selection = np.ones(len(cloud.points), bool)
    if SELECTION in cloud.attributes:
        cloud.attributes[SELECTION].data.foreach_get("value", selection)
    return selection


def write_values(cloud: bpy.types.PointCloud, name: str, kind: str, values: np.ndarray) -> None:
    """Write (N, C) values into a point attribute, made where it is missing."""
    attribute = cloud.attributes.get(name) or cloud.attributes.new(name, kind, "POINT")
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    attribute.data.foreach_set(_VALUE_NAMES.get(kind, "value"), flat)


def _base_type() -> str:
    kinds = bpy.types.Attribute.bl_rna.properties["data_type"].enum_items
    return "FLOAT4" if "FLOAT4" in kinds else "FLOAT_COLOR"  # FLOAT4: 5.2 and later


def _new_pointcloud_object(name: str, num_points: int) -> bpy.types.Object:
    if not hasattr(bpy.types.PointCloud, "resize"):
        return _converted_mesh(name, num_points)
    cloud = bpy.data.pointclouds.new(name)
    cloud.resize(num_points)
    return bpy.data.objects.new(name, cloud)


def _converted_mesh(name: str, num_points: int) -> bpy.types.Object:
    """Point cloud objects before 5.2: only the convert operator makes points.

    It runs in a scene of its own, which needs no window and leaves the user's selection alone.
    """
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(num_points)
    obj = bpy.data.objects.new(name, mesh)
    scene = bpy.data.scenes.new(name)
    scene.collection.objects.link(obj)
    layer = scene.view_layers[0]
    layer.objects.active = obj
    obj.select_set(True, view_layer=layer)
    context = {"active_object": obj, "object": obj, "selected_editable_objects": [obj]}
    with bpy.context.temp_override(scene=scene, view_layer=layer, **context):
        bpy.ops.object.convert(target="POINTCLOUD")
    bpy.data.scenes.remove(scene)
    bpy.data.meshes.remove(mesh)
    obj.data.name = name
    for left_over in [a.name for a in obj.data.attributes if a.name.startswith(".")]:
        obj.data.attributes.remove(obj.data.attributes[left_over])
    return obj


def _unit_quats(quats: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(quats, axis=1, keepdims=True)
    identity = np.array([1, 0, 0, 0], np.float32)
    unit = np.where(norms > 0, quats / np.where(norms > 0, norms, 1), identity)
    return np.where(np.abs(norms - 1) < _UNIT_TOLERANCE, quats, unit)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return (0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))).astype(np.float32)


def _logit(alphas: np.ndarray) -> np.ndarray:
    """Logits of 0..1; 0 and 1 themselves become about -87 and 17."""
    alphas = np.clip(alphas.astype(np.float64), _ALPHA_MIN, _ALPHA_MAX)
    return (np.log(alphas) - np.log1p(-alphas)).astype(np.float32)
