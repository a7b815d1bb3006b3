# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside a Blender with a window: does what a user does, with real clicks, and tells.

blender --factory-startup --enable-event-simulate --python driver.py -- OPTIONS
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import bpy
from bpy_extras.view3d_utils import location_3d_to_region_2d
from mathutils import Vector

PACKAGE = "bl_ext.user_default.blender_unified_lift"
TICK_SECONDS = 0.2
# Pixels from the top of the sidebar to the middle of a button, at interface scale 1
SEGMENT_BUTTON = 169
# with eight rows of objects and the one line that a finished job leaves
FIRST_ROW, ISOLATE_BUTTON, DELETE_BUTTON, RENDER_BUTTON = 307, 495, 517, 517
ROW_HEIGHT = 21
LEFT_COLUMN, RIGHT_COLUMN = 0.25, 0.75  # of the buttons' width

Wait = float | Callable[[], bool]


def main() -> None:
    """Run the steps on Blender's clock; leave result.json; end Blender."""
    parser = argparse.ArgumentParser()
    for name in ("--zip", "--backend-python", "--capture", "--out"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])
    bpy.context.preferences.view.show_splash = False
    result: dict[str, object] = {}
    script = steps(arguments, result)
    pending: list[Callable[[], bool]] = []

    def tick() -> float:
        try:
            if pending and not pending[0]():
                return TICK_SECONDS
            pending.clear()
            wait = next(script)
            if callable(wait):
                pending.append(wait)
                return TICK_SECONDS
            return wait
        except StopIteration:
            result["ok"] = True
        except BaseException:  # a timer's exception would leave Blender running
            result["error"] = traceback.format_exc()
            screenshot(arguments.out, "error")
            for job_dir in (arguments.out / "jobs").glob("*"):
                (job_dir / "cancel").touch()  # a job outlives Blender
        (arguments.out / "result.json").write_text(json.dumps(result, indent=1))
        os._exit(0)

    bpy.app.timers.register(tick, first_interval=1.0, persistent=True)


# ---- what a user does


def steps(arguments: argparse.Namespace, result: dict) -> Iterator[Wait]:
    """The way of a user: install, segment, click, delete, undo, isolate, render."""
    out = arguments.out
    yield from open_tab(arguments)
    session = importlib.import_module(f"{PACKAGE}.job.session")
    objects = importlib.import_module(f"{PACKAGE}.scene.objects")
    screenshot(out, "1-ready")

    yield from click_sidebar(SEGMENT_BUTTON)
    yield from until(lambda: watch(session) is not None, 20, "the click started no job")
    yield from until(lambda: watch(session).preview or ended(session), 120, "no preview came")
    yield 1.5
    screenshot(out, "2-running")
    yield from until(lambda: has_labels(session) or ended(session), 420, "no label map came")
    yield 1.5
    screenshot(out, "2-split")
    yield from until(lambda: ended(session), 420, "the job did not end")
    assert watch(session).state == "imported", watch(session).message
    root = objects.root(bpy.context)
    parts = [obj.name for _, obj in objects.rows(root)]
    result["parts"] = parts
    result["things"] = [name for name in parts if bpy.data.objects[name]["kind"] == "thing"]
    yield 2.0
    screenshot(out, "3-objects")

    with view_context():
        bpy.ops.unified_lift.look_through_camera()
    yield 2.0
    screenshot(out, "4-camera")
    yield from click_objects(objects, result)
    screenshot(out, "5-clicked")

    name = bpy.context.view_layer.objects.active.name
    result["deleted"] = name
    yield from click_sidebar(DELETE_BUTTON, RIGHT_COLUMN)
    yield from until(lambda: name not in bpy.data.objects, 10, f"Delete left {name}")
    assert name not in bpy.data.collections, f"the collection {name} is still there"
    yield 1.0
    screenshot(out, "6-deleted")
    press_undo()
    yield from until(lambda: name in bpy.data.objects, 10, f"undo did not bring {name} back")
    yield 1.0
    screenshot(out, "7-undone")

    objects.focus(bpy.context, bpy.data.objects[name])
    yield 1.0
    yield from click_sidebar(ISOLATE_BUTTON, LEFT_COLUMN)
    yield from until(lambda: visible(parts) == [name], 10, f"not {name} alone is to be seen")
    result["rendered"] = [part for part in parts if not bpy.data.objects[part].hide_render]
    yield 1.0
    screenshot(out, "8-isolated")
    yield from click_sidebar(ISOLATE_BUTTON, LEFT_COLUMN)
    yield from until(lambda: visible(parts) == parts, 10, "isolation has no way back")

    # the third row: the first may be the floor, which would fill the rendering
    yield from click_sidebar(FIRST_ROW + 2 * ROW_HEIGHT, 0.4)
    yield from until(lambda: selected(objects) == parts[2:3], 10, "the row selects nothing")
    yield from render_isolated(out)
    assert visible(parts) == parts, "the rendering has left something hidden"
    yield 1.0
    screenshot(out, "9-rendered")


def render_isolated(out: Path) -> Iterator[Wait]:
    """Press Render Isolated, wait for the render, save it as rendered.png."""
    bpy.context.preferences.view.render_display_type = "NONE"  # no second window
    ends = []
    bpy.app.handlers.render_complete.append(lambda *_: ends.append("complete"))
    bpy.app.handlers.render_cancel.append(lambda *_: ends.append("cancelled"))
    yield from click_sidebar(RENDER_BUTTON, LEFT_COLUMN)
    yield from until(lambda: ends, 60, "no render ended")
    assert ends == ["complete"], ends
    yield 1.0
    bpy.data.images["Render Result"].save_render(str(out / "rendered.png"))


def open_tab(arguments: argparse.Namespace) -> Iterator[Wait]:
    """Install the zip, empty the scene, open the tab and choose the capture."""
    bpy.ops.extensions.package_install_files(
        filepath=str(arguments.zip), repo="user_default", enable_on_install=True
    )
    for obj in list(bpy.data.objects):
        bpy.data.objects.remove(obj)
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.backend_python = str(arguments.backend_python)
    preferences.jobs_dir = str(arguments.out / "jobs")
    settings = bpy.context.scene.unified_lift
    settings.capture_dir, settings.quality = str(arguments.capture), "DRAFT"
    view().spaces.active.show_region_ui = True
    yield 1.0
    region("UI").active_panel_category = "Unified Lift"
    region("UI").tag_redraw()
    yield 1.0


def click_objects(objects, result: dict) -> Iterator[Wait]:
    """Click on the middle of each thing, then again on one whose click has selected it."""
    hits = result["clicks"] = {}
    for name in result["things"]:
        place = place_of(name)
        if place is None or not is_free(place):
            continue
        yield from click_view(place)
        hits[name] = selected(objects)
    right = [name for name, names in hits.items() if names == [name]]
    assert right, f"no click selected its object: {hits}"
    objects.select(bpy.context, [])
    yield from click_view(place_of(right[0]))
    complaint = f"the second click on {right[0]} missed"
    yield from until(lambda: selected(objects) == right[:1], 10, complaint)
    yield 1.0


# ---- Blender's window


def view() -> bpy.types.Area:
    """The 3D viewport."""
    areas = bpy.context.window_manager.windows[0].screen.areas
    return next(area for area in areas if area.type == "VIEW_3D")


def region(kind: str) -> bpy.types.Region:
    """A region of the 3D viewport."""
    return next(item for item in view().regions if item.type == kind)


def view_context():
    """A context as an operator has it whose button is in the viewport."""
    window = bpy.context.window_manager.windows[0]
    return bpy.context.temp_override(window=window, area=view(), region=region("WINDOW"))


def place_of(name: str) -> Vector | None:
    """Where the origin of an object is in the viewport, pixels; None behind the viewer."""
    point = bpy.data.objects[name].matrix_world.translation
    return location_3d_to_region_2d(region("WINDOW"), view().spaces.active.region_3d, point)


def is_free(place: Vector) -> bool:
    """Whether a place of the viewport is covered by no toolbar, header or sidebar."""
    sidebar, tools, window = region("UI"), region("TOOLS"), region("WINDOW")
    left = tools.x + tools.width - window.x
    right = sidebar.x - window.x
    return left < place.x < right - 60 and 20 < place.y < window.height - 80


def click_sidebar(from_top: int, across: float = 0.5) -> Iterator[Wait]:
    """Click a button of the sidebar; the tabs at its right edge are no part of the width."""
    sidebar = region("UI")
    width = sidebar.width - 24
    yield from click(sidebar.x + width * across, sidebar.y + sidebar.height - from_top)


def click_view(place: Vector) -> Iterator[Wait]:
    """Click into the viewport, at pixels from its lower left."""
    yield from click(region("WINDOW").x + place.x, region("WINDOW").y + place.y)


def click(x: float, y: float) -> Iterator[Wait]:
    """Move the mouse to a place of the window (pixels, from its lower left) and click."""
    window = bpy.context.window_manager.windows[0]
    place = {"x": round(x), "y": round(y)}
    window.event_simulate("MOUSEMOVE", "NOTHING", x=place["x"] - 3, y=place["y"])
    window.event_simulate("MOUSEMOVE", "NOTHING", **place)  # a mouse never jumps onto a button
    yield 0.3
    window.event_simulate("LEFTMOUSE", "PRESS", **place)
    window.event_simulate("LEFTMOUSE", "RELEASE", **place)
    yield 1.5  # a click is lost while software OpenGL still draws what the last one did


def press_undo() -> None:
    """Ctrl Z over the viewport."""
    window, area = bpy.context.window_manager.windows[0], region("WINDOW")
    place = {"x": area.x + area.width // 3, "y": area.y + area.height // 2}
    window.event_simulate("MOUSEMOVE", "NOTHING", **place)
    for value in ("PRESS", "RELEASE"):
        window.event_simulate("Z", value, ctrl=True, **place)


def screenshot(out: Path, name: str) -> None:
    """Keep what is on the screen, for a person to look at."""
    subprocess.run(["import", "-window", "root", str(out / f"{name}.png")], check=True)


# ---- conditions


def watch(session):
    """The job of the scene, None if there is none."""
    return session.watch_of(bpy.context.scene)


def ended(session) -> bool:
    """Whether the job has ended and is imported."""
    return watch(session).state not in ("running", "hung", "finished")


def has_labels(session) -> bool:
    """Whether the panel shows a label map."""
    return bool(watch(session).preview.get("labels"))


def selected(objects) -> list[str]:
    """The selected objects of the segmented scene."""
    return [obj.name for obj in objects.selected(bpy.context)]


def visible(names: list[str]) -> list[str]:
    """Those of these objects that can be seen."""
    layer = bpy.context.view_layer
    return [name for name in names if name in layer.objects and layer.objects[name].visible_get()]


def until(condition: Callable[[], bool], seconds: float, complaint: str) -> Iterator[Wait]:
    """Wait for a condition; the complaint is what went wrong when it does not come true."""
    deadline = time.monotonic() + seconds

    def check() -> bool:
        assert time.monotonic() < deadline, complaint
        return bool(condition())

    yield check


main()
