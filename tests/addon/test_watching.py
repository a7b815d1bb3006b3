# SPDX-License-Identifier: GPL-3.0-or-later
"""What Blender sees of job folders that come and go, break, and run again."""

import subprocess
import sys
import time

import bpy
import pytest

from unified_lift import protocol
from unified_lift.protocol import JobLock, JobReport


@pytest.fixture
def watched(addon, finished_job):
    """The watch of a job that lives as long as the test, and what tells its events."""
    from blender_unified_lift.job import session

    with JobLock(finished_job), JobReport(finished_job) as report:
        yield session.attach(bpy.context.scene, finished_job), report


def poll() -> bool:
    from blender_unified_lift.job import session

    return session.poll()


def test_a_heartbeat_that_cannot_be_read_for_a_moment_ends_no_watching(addon, finished_job):
    from blender_unified_lift.job import session

    with JobLock(finished_job), JobReport(finished_job) as report:
        report.stage("training", "Training")
    status = finished_job / "status.json"
    status.unlink()
    status.mkdir()  # cannot be read as a file
    with JobLock(finished_job):
        watch = session.attach(bpy.context.scene, finished_job)
        assert poll() and watch.state == "running" and str(status) in watch.trouble
        status.rmdir()
        assert poll() and watch.state == "running" and not watch.trouble


def test_a_folder_that_comes_back_is_watched_again(watched, finished_job):
    from blender_unified_lift.job import session

    watch, _ = watched
    aside = finished_job.with_name("aside")
    finished_job.rename(aside)
    assert not poll() and watch.state == "missing"
    assert session._tick() == session.AWAY_SECONDS, "it is looked for"
    aside.rename(finished_job)
    assert session._tick() == session.POLL_SECONDS and watch.state == "running"


def test_a_new_run_forgets_what_an_earlier_one_told(watched):
    watch, report = watched
    report.warning("A photo is missing.")
    report.emit("failed", message="The disk is full.")
    assert poll() and (watch.warnings, watch.message) == (
        ["A photo is missing."],
        "The disk is full.",
    )
    report.emit("start", pid=1, version="")
    assert poll() and (watch.warnings, watch.message) == ([], "")


def test_an_old_result_is_not_imported_while_a_new_worker_begins(addon, finished_job):
    """As after a damaged result and Resume."""
    from blender_unified_lift.job import session

    with JobLock(finished_job), JobReport(finished_job) as report:
        report.emit("done", objects=3, seconds={})
    watch = session.attach(bpy.context.scene, finished_job)
    watch.started = time.time() + 1
    watch.worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert poll() and watch.state == "running" and not bpy.context.scene.objects
    watch.worker.communicate(b"\n")
    assert not poll() and watch.state == "imported"


def test_a_broken_line_is_mended_before_a_worker_starts_again(addon, finished_job):
    from blender_unified_lift.job import session

    with JobLock(finished_job), JobReport(finished_job) as report:
        report.stage("training", "Training")
    with open(finished_job / protocol.EVENTS_FILE, "a") as events:
        events.write('{"t": 1, "event": "prog{"t": 2, "event": "failed"}\n')
    session.attach(bpy.context.scene, finished_job)
    assert not poll() and session.watch_of(bpy.context.scene).state == "failed"
    watch = session._run(bpy.context.scene, finished_job, sys.executable)
    watch.worker.kill()
    watch.worker.wait()
    assert watch.offset == (finished_job / protocol.EVENTS_FILE).stat().st_size > 0


def test_a_result_that_waits_is_not_replaced_by_another_job(segmented, addon, finished_job):
    from blender_unified_lift.job import session
    from blender_unified_lift.ui.job_operators import why_not_segment

    with JobLock(finished_job), JobReport(finished_job) as report:
        report.emit("done", objects=3, seconds={})
    bpy.context.view_layer.objects.active = bpy.data.objects["Object 001"]
    bpy.ops.object.mode_set(mode="EDIT")
    watch = session.attach(bpy.context.scene, finished_job)
    assert poll() and watch.state == "finished"
    assert "switch to Object Mode" in why_not_segment(bpy.context)
    bpy.ops.object.mode_set(mode="OBJECT")
    assert not poll() and watch.state == "imported"


def test_the_job_of_a_deleted_scene_keeps_nothing_awake(watched):
    other = bpy.data.scenes.new("Other")
    assert poll()
    bpy.data.scenes.remove(bpy.context.scene)
    assert bpy.context.scene == other and not poll()


def test_objects_come_into_the_view_layer_that_the_user_sees(addon, finished_job):
    from blender_unified_lift.job import session

    with JobLock(finished_job), JobReport(finished_job) as report:
        report.emit("done", objects=3, seconds={})
    layer = bpy.context.scene.view_layers.new("Second")
    bpy.context.window.view_layer = layer
    session.attach(bpy.context.scene, finished_job)
    poll()
    cameras = [obj for obj in bpy.context.scene.objects if obj.type == "CAMERA"]
    assert cameras and all(camera.hide_get(view_layer=layer) for camera in cameras)


def test_a_second_result_takes_the_place_of_the_first(segmented, finished_job):
    from blender_unified_lift.job import session
    from blender_unified_lift.scene import objects

    with JobLock(finished_job), JobReport(finished_job) as report:
        report.emit("done", objects=3, seconds={})
    objects.focus(bpy.context, bpy.data.objects["Object 001"])
    bpy.ops.unified_lift.isolate()
    watch = session.attach(bpy.context.scene, finished_job)
    poll()
    assert not objects.is_isolated(bpy.context.scene)
    assert "The earlier result is switched off in the Outliner" in watch.message
    latest = objects.root(bpy.context)
    assert latest != segmented
    bpy.ops.unified_lift.show_all()
    shown = {obj for obj in objects.parts(bpy.context.scene) if obj.visible_get()}
    assert shown == {obj for _, obj in objects.rows(latest)}
    objects.select(bpy.context, [objects.rows(latest)[0][1]])
    bpy.ops.unified_lift.isolate()
    bpy.ops.unified_lift.leave_isolation()
    shown = {obj for obj in objects.parts(bpy.context.scene) if obj.visible_get()}
    assert shown == {obj for _, obj in objects.rows(latest)}


def test_a_linked_capture_finds_its_job_beside_its_own_file(segmented, finished_job, tmp_path):
    from blender_unified_lift.job import session
    from blender_unified_lift.scene.objects import JOB_KEY

    library = tmp_path / "room.blend"  # beside the job, which it names by a relative path
    bpy.ops.wm.save_as_mainfile(filepath=str(library))
    bpy.ops.wm.read_homefile(use_empty=True)
    (tmp_path / "shots").mkdir()
    with bpy.data.libraries.load(str(library), link=True) as (there, here):
        here.collections = [name for name in there.collections if name == "messy8"]
    bpy.context.scene.collection.children.link(here.collections[0])
    assert session.stored_path(here.collections[0]) == finished_job
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shots" / "shot.blend"))
    assert here.collections[0][JOB_KEY].startswith("//")
    assert session.stored_path(here.collections[0]) == finished_job
