# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's part inside Blender: install the zip, press Segment Scene, import, isolate, render."""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import bpy

PACKAGE = "bl_ext.user_default.blender_unified_lift"
NUM_ISOLATED = 3


def main() -> None:
    """Do all of it, and leave `result.json` with what was done and how long it took."""
    parser = argparse.ArgumentParser()
    for name in ("--zip", "--backend-python", "--capture", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--masks", type=Path)
    arguments = parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])
    install(arguments.zip, arguments.backend_python, arguments.out / "jobs")
    settings = bpy.context.scene.unified_lift
    settings.capture_dir = str(arguments.capture)
    if arguments.masks:
        settings.masks, settings.masks_dir = "FOLDER", str(arguments.masks)
    start = time.monotonic()
    assert bpy.ops.unified_lift.segment() == {"FINISHED"}
    watch = wait_for_job()
    seconds = time.monotonic() - start
    result = {"job_seconds": seconds, "job_dir": str(watch.job_dir)}
    result |= render_pictures(arguments.out)
    bpy.ops.wm.save_as_mainfile(filepath=str(arguments.out / "scene.blend"), check_existing=False)
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1))


def install(package: Path, backend_python: Path, jobs_dir: Path) -> None:
    """Install and enable the extension as a user does, and tell it where the backend is."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.extensions.package_install_files(
        filepath=str(package), repo="user_default", enable_on_install=True
    )
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.backend_python = str(backend_python)
    preferences.jobs_dir = str(jobs_dir)


def wait_for_job():
    """Poll as Blender's timer does, and print what the panel would show."""
    session = importlib.import_module(f"{PACKAGE}.job.session")
    shown = ("", 0.0)
    while session.poll():
        watch = session.watch_of(bpy.context.scene)
        if watch.stage != shown[0] or time.monotonic() - shown[1] > 10:
            shown = (watch.stage, time.monotonic())
            left = "" if watch.seconds_left is None else f", {watch.seconds_left:.0f} s left"
            print(f"  {100 * watch.fraction:3.0f} % {watch.stage}{left}", flush=True)
        time.sleep(0.25)
    watch = session.watch_of(bpy.context.scene)
    if watch.state != "imported":
        sys.exit(f"The job ended as {watch.state}: {watch.message} See {watch.job_dir}/log.txt.")
    return watch


def render_pictures(out: Path) -> dict:
    """Render the scene from a test camera with F12's engine, then three objects alone."""
    objects = importlib.import_module(f"{PACKAGE}.scene.objects")
    root = objects.root(bpy.context)
    view = show_test_view(root)
    bpy.ops.unified_lift.set_up_render()
    render(out / "scene.png")
    parts = [obj for _, obj in objects.rows(root) if obj["kind"] == "thing"]
    parts.sort(key=lambda obj: -len(obj.data.points))
    names = []
    for obj in parts[:NUM_ISOLATED]:
        objects.select(bpy.context, [obj])
        bpy.context.scene.render.filepath = str(out / f"{obj.name}.png")
        assert bpy.ops.unified_lift.render_isolated() == {"FINISHED"}
        bpy.data.images["Render Result"].save_render(str(out / f"{obj.name}.png"))
        names.append(obj.name)
    kinds = [obj["kind"] for _, obj in objects.rows(root)]
    return {"view": view, "isolated": names, "kinds": kinds}


def show_test_view(root: bpy.types.Collection) -> str:
    """Look through the capture's first test camera; returns its name, which is the view's."""
    cameras = [obj for obj in root.all_objects if obj.type == "CAMERA"]
    cameras.sort(key=lambda obj: (obj["split"] != "test", obj.name))
    bpy.context.view_layer.objects.active = None
    bpy.context.scene.camera = cameras[0]
    assert bpy.ops.unified_lift.look_through_camera(step=0) == {"FINISHED"}
    return cameras[0].name


def render(path: Path) -> None:
    """Render to a PNG."""
    scene = bpy.context.scene
    scene.render.image_settings.file_format = "PNG"
    scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)


main()
