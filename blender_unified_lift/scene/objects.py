# SPDX-License-Identifier: GPL-3.0-or-later
"""The objects of segmented scenes. Blender's collections are the list: nothing is stored twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import bpy
import numpy as np
from bpy.types import (
    Collection,
    Context,
    Depsgraph,
    DepsgraphObjectInstance,
    LayerCollection,
    Object,
    Scene,
    ViewLayer,
)
from mathutils import Matrix

from unified_lift.protocol import JobError

from .schema import OBJECT_ID, is_splats, read_splats, write_splats
from .transform import only_shifts, transformed, with_whole_degree

JOB_KEY = "unified_lift_job"  # custom property of a root collection: the job folder
CAPTURE_KEY = "unified_lift_capture"  # likewise: the folder of its photos
ORIGIN_KEY = "unified_lift_origin"  # of the Empty whose frame is the capture's
ISOLATED_KEY = "unified_lift_isolated"  # of an object that `isolate` hid: what was visible of it
THING, SURFACE, UNASSIGNED = "thing", "surface", "unassigned"  # custom property "kind"
SPLAT_ENGINE = "UNIFIEDLIFT_SPLATS"  # the render engine
_IN_VIEWPORT, _IN_RENDER = 1, 2


def roots(scene: Scene) -> list[Collection]:
    """The collections of the imported captures, in the order of the scene."""
    return [item for item in scene.collection.children_recursive if JOB_KEY in item]


def root(context: Context) -> Collection | None:
    """The capture at work: that of the active object, else the last one that has objects."""
    found = roots(context.scene)
    active = context.view_layer.objects.active
    for candidate in found:
        if active and candidate.all_objects.get(active.name) == active:
            return candidate
    full = [candidate for candidate in found if rows(candidate)]
    return next(reversed(full or found), None)


def rows(root: Collection) -> list[tuple[Collection, Object]]:
    """The objects of a capture, each with its collection."""
    folders = (root, *root.children_recursive)
    return [(folder, obj) for folder in folders for obj in folder.objects if is_part(obj)]


def summary(root: Collection) -> str:
    """How many objects and surfaces a capture has, for the user."""
    kinds = [obj["kind"] for _, obj in rows(root)]
    words = {THING: "object", SURFACE: "surface"}
    counts = {word: kinds.count(kind) for kind, word in words.items()}
    told = (f"{count} {word}{'s' * (count != 1)}" for word, count in counts.items())
    return f"{', '.join(told)} found"


def is_part(obj: Object) -> bool:
    """Whether this is an object of a segmented scene."""
    return obj.type == "POINTCLOUD" and OBJECT_ID in obj


def parts(scene: Scene) -> list[Object]:
    """The objects of all captures of a scene."""
    return [obj for root in roots(scene) for _, obj in rows(root)]


def selected(context: Context) -> list[Object]:
    """The selected objects that belong to a capture."""
    return [obj for obj in context.view_layer.objects.selected if is_part(obj)]


def select(context: Context, objects: Iterable[Object], extend: bool = False) -> None:
    """Select objects, and nothing else unless `extend`; the last one becomes the active one.

    Ends Edit Mode: another object cannot become active in it.
    """
    layer = context.view_layer
    if context.mode != "OBJECT":
        bpy.ops.object.mode_set(mode="OBJECT")
    if not extend:
        for obj in list(layer.objects.selected):
            obj.select_set(False, view_layer=layer)
    for obj in objects:
        if layer.objects.get(obj.name) == obj:
            obj.select_set(True, view_layer=layer)  # does nothing where it is hidden
            layer.objects.active = obj


def delete(context: Context, objects: Iterable[Object]) -> int:
    """Delete objects, with their points and the collections that they leave empty.

    If nothing is to be seen any more, the isolation of what was deleted ends.

    Returns:
        How many there were.
    """
    doomed = list(objects)
    folders = {folder for obj in doomed for folder in _folders(obj)}
    clouds = {obj.data for obj in doomed}
    bpy.data.batch_remove(doomed)
    # By who is left, not by `users`: Separate counts one too many (4.5 to 5.2).
    clouds = {cloud for cloud in clouds if not cloud.use_fake_user}
    bpy.data.batch_remove(clouds - {obj.data for obj in bpy.data.objects})
    _remove_empty(folders)
    if not any(is_visible(obj, context.view_layer) for obj in parts(context.scene)):
        leave_isolation(context)
    return len(doomed)


def _folders(obj: Object) -> list[Collection]:
    """The collections of a capture that hold an object, not those that the user put it into."""
    inside = [item for item in _captures(obj) if JOB_KEY not in item]
    return [folder for folder in obj.users_collection if folder in inside]


def _captures(obj: Object) -> list[Collection]:
    """All collections of the captures in the object's scenes, each root before what it holds."""
    found = [root for scene in obj.users_scene for root in roots(scene)]
    return [item for root in found for item in (root, *root.children_recursive)]


def _remove_empty(folders: Iterable[Collection]) -> None:
    bpy.data.batch_remove([item for item in folders if not item.objects and not item.children])


def join(context: Context) -> None:
    """Let the active object take in the other selected splats, with their collections.

    Blender's own Join moves points but turns no splat: so first each piece gets the axes of the
    object that takes it in, and its splats are turned and scaled instead.

    Raises:
        JobError: the active object has a scale of 0, so that it has no axes.
    """
    layer = context.view_layer
    whole = layer.objects.active
    axes = np.array(whole.matrix_world.to_3x3())
    if not np.linalg.det(axes):
        raise JobError(f"{whole.name} has a scale of 0. Give it another one, then join.")
    pieces = [obj for obj in layer.objects.selected if is_splats(obj) and obj != whole]
    select(context, [*pieces, whole])  # Join would take in clouds that are no splats
    folders = {folder for obj in pieces for folder in _folders(obj)}
    for obj in pieces:
        linear = np.eye(4)
        linear[:3, :3] = np.linalg.inv(axes) @ np.array(obj.matrix_world.to_3x3())
        if only_shifts(linear[:3, :3]):  # its splats keep their bits
            continue
        if obj.data.users > 1:
            obj.data = obj.data.copy()
        write_splats(obj.data, transformed(with_whole_degree(read_splats(obj.data)), linear))
        place = Matrix.Translation(obj.matrix_world.translation)
        obj.matrix_world = place @ whole.matrix_world.to_3x3().to_4x4()
    bpy.ops.object.join()
    _remove_empty(folders)


def separate(context: Context) -> list[Object]:
    """Make an object of the splats selected in Edit Mode, in a collection of its own.

    Returns:
        The new objects; none where nothing is selected.
    """
    before = set(context.view_layer.objects)
    bpy.ops.pointcloud.separate()
    made = [obj for obj in context.view_layer.objects if obj not in before]
    for obj in made:
        for folder in _folders(obj):
            above = next(item for item in _captures(obj) if folder.name in item.children)
            own = bpy.data.collections.new(obj.name)
            own.color_tag = folder.color_tag
            above.children.link(own)
            own.objects.link(obj)
            folder.objects.unlink(obj)
    return made


def printable(name: str) -> str:
    """A name as Blender takes it: without control characters and undecodable bytes of files."""
    return "".join(filter(str.isprintable, name))


def rename(obj: Object, name: str) -> None:
    """Give an object a name, and the collection of its capture that holds nothing else the same."""
    obj.name = name
    for folder in _folders(obj):
        if len(folder.objects) == 1:
            folder.name = obj.name


# ---- what is seen


def is_visible(obj: Object, layer: ViewLayer) -> bool:
    """Whether an object is to be seen in the viewport of a view layer."""
    return layer.objects.get(obj.name) == obj and obj.visible_get(view_layer=layer)


def redraw_views() -> None:
    """Draw every 3D viewport of all windows again."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                area.tag_redraw()


def splat_instances(depsgraph: Depsgraph) -> Iterator[tuple[DepsgraphObjectInstance, Object]]:
    """What an evaluated scene shows of splats, valid until the next one is asked for.

    Each comes with its owner, which a click selects: the object itself, or what instances it.
    """
    for instance in depsgraph.object_instances:
        if instance.show_self and is_splats(instance.object):
            yield instance, (instance.parent if instance.is_instance else instance.object).original


def set_visible(obj: Object, layer: ViewLayer, visible: bool) -> None:
    """Open or close the eye of an object, and what hides it besides."""
    if visible:
        obj.hide_viewport = False
        for folder in obj.users_collection:
            folder.hide_viewport = False
            for item in layer_path(layer.layer_collection, folder):
                item.exclude = False
                item.hide_viewport = False
    if layer.objects.get(obj.name) == obj:
        obj.hide_set(not visible, view_layer=layer)


def isolate(context: Context, kept: Iterable[Object]) -> None:
    """Hide all parts but these in viewport and render; `leave_isolation` is the way back."""
    kept = set(kept)
    layer = context.view_layer
    for obj in _parts_switched_on(context):
        if obj in kept:
            obj.pop(ISOLATED_KEY, None)
            set_visible(obj, layer, True)
            obj.hide_render = False
        elif ISOLATED_KEY not in obj:
            seen = _IN_VIEWPORT * is_visible(obj, layer) + _IN_RENDER * (not obj.hide_render)
            obj[ISOLATED_KEY] = seen
            set_visible(obj, layer, False)
            obj.hide_render = True


def focus(context: Context, obj: Object) -> None:
    """Select one object; if isolation hides it, isolate it instead of the others."""
    if ISOLATED_KEY in obj:
        isolate(context, [obj])
    select(context, [obj])


def is_isolated(scene: Scene) -> bool:
    """Whether some objects are hidden because others are isolated."""
    return any(ISOLATED_KEY in obj for obj in parts(scene))


def leave_isolation(context: Context) -> None:
    """Show again what `isolate` hid; what was hidden before it stays hidden."""
    for obj in parts(context.scene):
        seen = obj.pop(ISOLATED_KEY, 0)
        if seen & _IN_VIEWPORT:
            set_visible(obj, context.view_layer, True)
        if seen & _IN_RENDER:
            obj.hide_render = False


def show_all(context: Context) -> None:
    """Show every part, in viewport and render; but of no capture that is switched off whole."""
    layer = context.view_layer
    for obj in _parts_switched_on(context):
        obj.pop(ISOLATED_KEY, None)
        set_visible(obj, layer, True)
        obj.hide_render = False
        for folder in obj.users_collection:
            folder.hide_render = False


@contextmanager
def alone_in_render(scene: Scene, kept: Iterable[Object]) -> Iterator[None]:
    """Render these parts and no others, on a transparent ground, as long as the block."""
    kept = set(kept)
    others = set(parts(scene)) - kept
    folders = {folder for obj in kept for folder in obj.users_collection}
    before = {item: item.hide_render for item in (*kept, *others, *folders)}
    was_transparent = scene.render.film_transparent
    for item in before:
        item.hide_render = item in others
    scene.render.film_transparent = True
    try:
        yield
    finally:
        for item, was_hidden in before.items():
            item.hide_render = was_hidden
        scene.render.film_transparent = was_transparent


def _parts_switched_on(context: Context) -> list[Object]:
    """The objects of all captures that are not excluded whole from the view layer."""
    top = context.view_layer.layer_collection
    shown = [root for root in roots(context.scene) if not layer_path(top, root)[-1].exclude]
    return [obj for root in shown for _, obj in rows(root)]


def switch_off_earlier(context: Context, latest: Collection) -> bool:
    """Exclude other results of a capture from the view layer: they would lie in the same place.

    Returns:
        Whether there were any.
    """
    top = context.view_layer.layer_collection
    leave_isolation(context)
    earlier = [
        layer_path(top, root)[-1]
        for root in roots(context.scene)
        if root != latest and root.get(CAPTURE_KEY) == latest[CAPTURE_KEY]
    ]
    for item in earlier:
        item.exclude = True
    return bool(earlier)


def layer_path(top: LayerCollection, folder: Collection) -> list[LayerCollection]:
    """The way from a view layer's top (left out) down to a collection, [] if it is not there."""
    for child in top.children:
        below = layer_path(child, folder)
        if below or child.collection == folder:
            return [child, *below]
    return []
