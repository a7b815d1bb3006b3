# SPDX-License-Identifier: GPL-3.0-or-later
"""What the panel lets the user choose, and its translation into a job request."""

import os
from pathlib import Path

import bpy
from bpy.props import EnumProperty, IntProperty, PointerProperty, StringProperty
from bpy.types import Object, PropertyGroup, Scene

from unified_lift.config import MASKS_AUTO, MASKS_SAM, PRESETS, Settings
from unified_lift.protocol import JobError, JobRequest

from ..scene import objects

DEFAULTS = Settings()
AUTO, FOLDER, SAM = "AUTO", "FOLDER", "SAM"
_RELATIVE = {"PATH_SUPPORTS_BLEND_RELATIVE"}
_DEVICE_ITEMS = (
    ("AUTO", "Automatic", "CUDA where there is a usable card, else the processor"),
    ("CPU", "CPU", "The processor: works everywhere"),
    ("CUDA", "CUDA", "An NVIDIA card"),
)
_MASK_ITEMS = (
    (AUTO, "Automatic", "Find the objects from the photos and the trained splats alone"),
    (FOLDER, "Folder", "Take label images that you have: one for each photo, 0 is unlabelled"),
    (SAM, "Segment Anything", "Let segment-anything make masks, from a checkpoint that you have"),
)


def _quality_items() -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (
            name.upper(),
            name.title(),
            f"Photos at {preset.longest_side} pixels, {preset.iterations} steps, "
            f"at most {preset.max_gaussians} splats",
        )
        for name, preset in PRESETS.items()
    )


def _active_row(self: PropertyGroup) -> int:
    root = objects.root(bpy.context)
    active = bpy.context.view_layer.objects.active
    if root is None or active is None or (active.visible_get() and not active.select_get()):
        return -1
    return root.all_objects.find(active.name)


def _select_row(self: PropertyGroup, row: int) -> None:
    root = objects.root(bpy.context)
    if root and 0 <= row < len(root.all_objects):
        objects.focus(bpy.context, root.all_objects[row])


class UNIFIEDLIFT_PG_settings(PropertyGroup):
    capture_dir: StringProperty(
        name="Capture",
        description="Folder of the registered photos: with transforms.json, or COLMAP's model",
        subtype="DIR_PATH",
        options=_RELATIVE,
    )
    splat: StringProperty(
        name="Splat",
        description="Trained splats (.ply) of this capture, to be split as they are; empty: train",
        subtype="FILE_PATH",
        options=_RELATIVE,
    )
    masks: EnumProperty(
        name="Masks",
        description="Where the outlines of the objects come from",
        items=_MASK_ITEMS,
        default=AUTO,
    )
    masks_dir: StringProperty(
        name="Mask Folder",
        description="Label images (PNG, 8 or 16 bit) with the names of the photos",
        subtype="DIR_PATH",
        options=_RELATIVE,
    )
    sam_checkpoint: StringProperty(
        name="Checkpoint",
        description="A segment-anything checkpoint: vit_b, vit_l or vit_h (.pth)",
        subtype="FILE_PATH",
        options=_RELATIVE,
    )
    quality: EnumProperty(
        name="Quality",
        description="How fine the splats become, and how long it takes",
        items=_quality_items(),
        default=DEFAULTS.preset.upper(),
    )
    device: EnumProperty(
        name="Device",
        description="What computes",
        items=_DEVICE_ITEMS,
        default=DEFAULTS.device.upper(),
    )
    seed: IntProperty(
        name="Seed",
        description="The same seed gives the same result",
        min=0,
        default=DEFAULTS.seed,
    )
    active_row: IntProperty(
        name="Object",
        description="Click to select the object, double-click to rename it",
        get=_active_row,
        set=_select_row,
    )


def make_request(settings: UNIFIEDLIFT_PG_settings) -> JobRequest:
    """What the panel's values ask for.

    Raises:
        JobError: a folder or file that they name is not there.
    """
    capture = _existing(settings.capture_dir, "capture folder", os.path.isdir)
    masks, checkpoint = MASKS_AUTO, ""
    if settings.masks == FOLDER:
        masks = _existing(settings.masks_dir, "mask folder", os.path.isdir)
    elif settings.masks == SAM:
        masks = MASKS_SAM
        checkpoint = _existing(settings.sam_checkpoint, "checkpoint file", os.path.isfile)
    chosen = Settings(
        masks=masks,
        sam_checkpoint=checkpoint,
        preset=settings.quality.lower(),
        device=settings.device.lower(),
        seed=settings.seed,
        splat=_existing(settings.splat, "splat file", os.path.isfile) if settings.splat else "",
    )
    return JobRequest(capture, chosen)


def _existing(path: str, what: str, exists) -> str:
    if not path:
        raise JobError(f"No {what} is chosen. Choose one in the panel.")
    absolute = os.path.abspath(bpy.path.abspath(path))
    if not exists(absolute):
        raise JobError(f"There is no {what} {absolute}. Choose one in the panel.")
    return str(Path(absolute))


def _name(self: Object) -> str:
    return self.name


def _rename(self: Object, name: str) -> None:
    if name:
        objects.rename(self, name)


def register() -> None:
    bpy.utils.register_class(UNIFIEDLIFT_PG_settings)
    Scene.unified_lift = PointerProperty(type=UNIFIEDLIFT_PG_settings)
    Object.unified_lift_name = StringProperty(
        name="Name",
        description="Name of the object and of its collection",
        get=_name,
        set=_rename,
    )


def unregister() -> None:
    del Object.unified_lift_name
    del Scene.unified_lift
    bpy.utils.unregister_class(UNIFIEDLIFT_PG_settings)
