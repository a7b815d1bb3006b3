# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs as a user meets them: real operators, the real backend, real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import bpy
import pytest
from conftest import ROOT, SAMPLE

import unified_lift
from unified_lift import protocol
from unified_lift.protocol import JobError, JobLock, JobRequest, write_job

BACKEND = ROOT / "build" / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def wait(until, seconds: float = 60.0):
    """Poll as Blender's timer does until a watch of the scene fulfils a condition."""
    from blender_unified_lift.job import session

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        session.poll()
        watch = session.watch_of(bpy.context.scene)
        if until(watch):
            return watch
        time.sleep(0.1)
    raise AssertionError(f"still {watch} after {seconds} s")


def ended(watch) -> bool:
    return watch.state not in ("running", "hung", "finished")


@pytest.fixture
def ready(addon, tmp_path):
    """A scene that is ready for Segment Scene: backend, capture, job folder."""
    if not BACKEND.is_file():
        pytest.skip(f"no backend at {BACKEND}: run python build.py test")
    addon.backend_python, addon.jobs_dir = str(BACKEND), str(tmp_path / "jobs")
    settings = bpy.context.scene.unified_lift
    settings.capture_dir, settings.quality = str(SAMPLE), "DRAFT"
    return settings


@pytest.fixture
def running(ready):
    """A job that trains; it is ended with the test."""
    bpy.ops.unified_lift.segment()
    watch = wait(lambda watch: watch.fraction > 0 or ended(watch))
    assert watch.state == "running", watch.message
    yield watch
    request_end(watch)


def request_end(watch) -> None:
    if watch.worker and watch.worker.poll() is None:
        os.killpg(watch.worker.pid, signal.SIGKILL)
        watch.worker.wait()


# ---- the backend's Python


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """A real Python environment with nothing in it."""
    env = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    return env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(python: Path, version: str) -> None:
    """Put a backend of this version into an environment, as far as its version goes."""
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    package = Path(site) / "unified_lift"
    package.mkdir()
    (package / "__init__.py").write_text(f'__version__ = "{version}"')


def check(path: object):
    from blender_unified_lift.job import environment

    return environment.check(str(path))


def test_the_backend_is_found_by_its_python_or_its_folder(ready):
    from blender_unified_lift.job import environment

    assert environment.last_check(str(BACKEND)) is None
    assert check(BACKEND).version == unified_lift.__version__
    assert check(BACKEND.parent.parent).python == BACKEND
    assert environment.last_check(str(BACKEND)).python == BACKEND
    assert bpy.ops.unified_lift.check_backend() == {"FINISHED"}


def test_a_python_that_is_no_backend_is_told(addon, bare_python, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho broken here >&2\nexit 3\n")
    with pytest.raises(JobError, match=r"does not start: Permission denied"):
        check(script)
    script.chmod(0o755)
    for path, words in (
        ("", "No Backend Python is set"),
        (tmp_path / "none", "no Backend Python at .*none"),
        (tmp_path, "no Python in the folder"),
        (script, "broken here"),
        (bare_python, "is not installed"),
    ):
        with pytest.raises(JobError, match=words):
            check(path)
    install(bare_python, "9.9.9")
    with pytest.raises(JobError, match=r"has version 9\.9\.9, this add-on needs"):
        check(bare_python)
    addon.backend_python = str(bare_python)
    with pytest.raises(RuntimeError, match=r"has version 9\.9\.9"):
        bpy.ops.unified_lift.check_backend()


def test_the_worker_gets_a_clean_environment(addon):
    from blender_unified_lift.job import process

    poison = {"PYTHONHOME": "/x", "pythonpath": "/x", "VIRTUAL_ENV": "/x", "OCIO": "/x"}
    clean = process.clean_environment({**poison, "HOME": "/home/me", "CUDA_VISIBLE_DEVICES": "1"})
    assert not set(poison) & set(clean)
    assert clean["HOME"] == "/home/me" and clean["CUDA_VISIBLE_DEVICES"] == "1"
    assert int(clean["OMP_NUM_THREADS"]) >= 1


# ---- folders


def test_a_job_never_takes_the_folder_of_another(tmp_path):
    from blender_unified_lift.job import folders

    names = [folders.new_job_dir(tmp_path / "jobs", "room").name for _ in range(3)]
    assert names == ["room_001", "room_002", "room_003"]
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="file"):
        folders.new_job_dir(tmp_path / "file", "room")


def test_jobs_lie_beside_a_saved_file_or_where_the_user_says(tmp_path, monkeypatch):
    from blender_unified_lift.job import folders

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    blend = str(tmp_path / "room.blend")
    assert folders.jobs_dir_of("", blend) == tmp_path / "room_unified_lift"
    assert folders.jobs_dir_of(str(tmp_path / "here"), blend) == tmp_path / "here"
    if sys.platform == "linux":
        assert folders.jobs_dir_of("", "") == tmp_path / "ulift" / "jobs"


# ---- the life of a job


def test_a_job_shows_its_progress_and_can_be_cancelled(running):
    assert running.stage and 0 < running.fraction < 1 and running.seconds_left > 0
    assert not bpy.ops.unified_lift.segment.poll(), "one job at a time"
    request = protocol.read_job(running.job_dir)
    assert request.capture == str(SAMPLE) and request.settings.preset == "draft"
    bpy.ops.unified_lift.cancel()
    assert running.stage == "Stopping"
    watch = wait(ended)
    assert (watch.state, watch.message) == ("cancelled", "Cancelled")
    assert running.worker.wait(10) == protocol.EXIT_CANCELLED
    assert (watch.job_dir / "job.json").exists() and not bpy.context.scene.objects
    bpy.ops.unified_lift.resume()
    watch = wait(lambda watch: "from step" in watch.stage or ended(watch))
    assert watch.state == "running" and watch.job_dir == running.job_dir
    bpy.ops.unified_lift.cancel()
    assert wait(ended).state == "cancelled"
    bpy.ops.unified_lift.forget()
    assert bpy.ops.unified_lift.segment.poll()


def test_cancel_in_the_first_moment_is_not_lost(ready):
    bpy.ops.unified_lift.segment()
    bpy.ops.unified_lift.cancel()
    assert wait(ended).state == "cancelled"


def test_a_worker_that_does_not_listen_is_ended(tmp_path, addon):
    """A process that holds the lock and never looks at the cancel file."""
    from blender_unified_lift.job import process

    job_dir = tmp_path / "deaf"
    write_job(job_dir, JobRequest(str(SAMPLE)))
    script = (
        "import sys, time; from unified_lift.protocol import JobLock, JobReport\n"
        "with JobLock(sys.argv[1]), JobReport(sys.argv[1]): time.sleep(60)"
    )
    command = [sys.executable, "-c", script, job_dir, "-m", "unified_lift", "run", job_dir]
    worker = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 20
    while protocol.job_state(job_dir).pid != worker.pid and time.monotonic() < deadline:
        time.sleep(0.05)
    protocol.request_cancel(job_dir)
    process.insist_on_cancel(job_dir, protocol.job_state(job_dir))
    assert worker.poll() is None, "the worker has time to obey"
    long_ago = time.time() - process.TERMINATE_SECONDS - 1
    os.utime(job_dir / protocol.CANCEL_FILE, (long_ago, long_ago))
    process.insist_on_cancel(job_dir, protocol.job_state(job_dir))
    assert worker.wait(10) == -signal.SIGTERM


def test_a_program_that_got_the_number_of_a_dead_worker_is_left_alone(addon, tmp_path):
    """A worker that starts again has not yet replaced the heartbeat of the one before it."""
    from blender_unified_lift.job import process

    job_dir = tmp_path / "stale"
    write_job(job_dir, JobRequest(str(SAMPLE)))
    strangers = [
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words])
        for words in ([], [job_dir], ["-m", "unified_lift", "run", tmp_path / "other"])
    ]
    (job_dir / protocol.CANCEL_FILE).touch()
    os.utime(job_dir / protocol.CANCEL_FILE, (0, 0))
    for stranger in strangers:
        status = {"pid": stranger.pid, "t": time.time()}
        protocol.write_json(job_dir / protocol.STATUS_FILE, status)
        with JobLock(job_dir):
            process.insist_on_cancel(job_dir, protocol.job_state(job_dir))
        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(0.3)
        stranger.kill()
        stranger.wait()
    process.insist_on_cancel(job_dir, protocol.job_state(job_dir))  # nor is it missed


def test_a_failed_job_tells_its_message(ready, tmp_path):
    capture = tmp_path / "capture"
    shutil.copytree(SAMPLE, capture, ignore=shutil.ignore_patterns("gt", "masks"))
    ready.capture_dir = str(capture)
    for photo in (capture / "images").iterdir():
        photo.write_bytes(b"no picture")
    bpy.ops.unified_lift.segment()
    watch = wait(ended)
    assert watch.state == "failed" and str(capture) in watch.message
    assert watch.worker.wait(10) == protocol.EXIT_FAILED
    assert bpy.ops.unified_lift.restart.poll() and bpy.ops.unified_lift.resume.poll()


def test_a_killed_worker_is_offered_to_resume(running):
    os.killpg(running.worker.pid, signal.SIGKILL)
    running.worker.wait()
    watch = wait(ended)
    assert watch.state == "crashed" and "ended from outside" in watch.message
    assert bpy.ops.unified_lift.resume() == {"FINISHED"}
    again = wait(lambda watch: watch.fraction > 0 or ended(watch))
    assert again.state == "running" and again.job_dir == running.job_dir
    request_end(again)
    wait(ended)
    assert bpy.ops.unified_lift.restart() == {"FINISHED"}
    fresh = wait(lambda watch: watch.fraction > 0 or ended(watch))
    assert fresh.state == "running" and fresh.job_dir != running.job_dir
    assert protocol.read_job(fresh.job_dir) == protocol.read_job(running.job_dir)
    request_end(fresh)


def test_an_end_is_told_without_a_log(addon, finished_job):
    from blender_unified_lift.job import session

    with JobLock(finished_job), protocol.JobReport(finished_job) as report:
        report.stage("training", "Training")
    (finished_job / protocol.LOG_FILE).mkdir()  # cannot be read as a file
    session.attach(bpy.context.scene, finished_job)
    watch = wait(ended)
    assert watch.state == "crashed" and "ended from outside" in watch.message


def test_a_warning_is_no_reason_for_an_end(addon, finished_job):
    from blender_unified_lift.job import session

    with JobLock(finished_job), protocol.JobReport(finished_job) as report:
        report.warning("A photo is missing.")
    (finished_job / protocol.LOG_FILE).write_text("Warning: A photo is missing.\n")
    session.attach(bpy.context.scene, finished_job)
    watch = wait(ended)
    assert watch.state == "crashed" and "missing" not in watch.message
    assert watch.warnings == ["A photo is missing."]


def test_a_worker_that_cannot_start_is_told_with_its_last_words(addon, tmp_path):
    from blender_unified_lift.job import session

    request = JobRequest(str(SAMPLE))
    session.start(bpy.context.scene, request, Path(sys.executable), tmp_path)  # it has no torch
    watch = wait(ended)
    assert watch.state in ("crashed", "failed") and "torch" in watch.message


def test_a_job_outlives_undo_and_file_and_is_found_again(running, tmp_path):
    from blender_unified_lift.job import session

    bpy.context.scene.collection.objects.link(bpy.data.objects.new("Empty", None))
    bpy.ops.ed.undo_push(message="Add")
    while bpy.ops.ed.undo.poll() and "unified_lift_job" in bpy.context.scene:
        bpy.ops.ed.undo()
    assert session.watch_of(bpy.context.scene) is running
    blend = str(tmp_path / "room.blend")
    bpy.ops.wm.save_as_mainfile(filepath=blend)
    assert bpy.context.scene["unified_lift_job"] == str(running.job_dir)
    bpy.ops.wm.read_homefile(use_empty=True)
    assert session.watch_of(bpy.context.scene) is None
    assert running.worker.poll() is None, "loading another file ends no job"
    bpy.ops.wm.open_mainfile(filepath=blend)
    watch = wait(lambda watch: watch.fraction > 0 or ended(watch))
    assert watch.state == "running" and watch.worker is None
    bpy.ops.unified_lift.cancel()
    assert wait(ended).state == "cancelled"


# ---- results


def test_a_finished_job_is_imported_once_as_one_undo_step(addon, finished_job, tmp_path):
    from blender_unified_lift.job import session
    from blender_unified_lift.scene import objects

    finish(finished_job)
    bpy.ops.ed.undo_push(message="Before")
    session.attach(bpy.context.scene, finished_job)
    watch = wait(ended)
    assert (watch.state, watch.message) == ("imported", "2 objects, 1 surface found")
    assert objects.root(bpy.context).name == "messy8"
    bpy.ops.ed.undo()
    assert objects.root(bpy.context) is None
    session.poll()
    assert objects.root(bpy.context) is None, "what the user has undone stays undone"
    bpy.ops.ed.redo()
    assert objects.root(bpy.context).name == "messy8"
    blend = str(tmp_path / "room.blend")
    bpy.ops.wm.save_as_mainfile(filepath=blend)
    bpy.ops.wm.open_mainfile(filepath=blend)
    session.poll()
    assert len(bpy.context.scene.collection.children) == 1, "nor does it come twice"


def finish(job_dir: Path) -> None:
    """Make the folder that of a job whose worker has done its work and gone."""
    with JobLock(job_dir), protocol.JobReport(job_dir) as report:
        report.emit("done", objects=3, seconds={})


def test_a_job_that_ended_while_blender_was_closed_is_imported(addon, finished_job, tmp_path):
    from blender_unified_lift.job import session
    from blender_unified_lift.scene import objects

    with JobLock(finished_job):
        session.attach(bpy.context.scene, finished_job)
        assert session.poll()
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "room.blend"))
    bpy.ops.wm.read_homefile(use_empty=True)
    finish(finished_job)
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "room.blend"))
    assert wait(ended).state == "imported"
    assert len(objects.rows(objects.root(bpy.context))) == 4


def test_an_import_waits_for_object_mode(addon, finished_job):
    from blender_unified_lift.job import session

    finish(finished_job)
    mesh = bpy.data.objects.new("Mesh", bpy.data.meshes.new("Mesh"))
    bpy.context.scene.collection.objects.link(mesh)
    bpy.context.view_layer.objects.active = mesh
    bpy.ops.object.mode_set(mode="EDIT")
    session.attach(bpy.context.scene, finished_job)
    assert session.poll(), "there is something left to wait for"
    assert "Object Mode" in session.watch_of(bpy.context.scene).message
    bpy.ops.object.mode_set(mode="OBJECT")
    assert wait(ended).state == "imported"


def test_a_damaged_result_is_told_and_not_tried_again(addon, finished_job):
    from blender_unified_lift.job import session

    finish(finished_job)
    path = finished_job / "scene.ply"
    path.write_bytes(path.read_bytes()[:-9])
    session.attach(bpy.context.scene, finished_job)
    watch = wait(ended)
    assert watch.state == "failed" and "cut short" in watch.message
    assert not session.poll() and not bpy.context.scene.objects


@pytest.mark.parametrize("damage", ["gone", "no request", "events", "event"])
def test_a_lost_or_damaged_job_is_explained(addon, finished_job, tmp_path, damage):
    """As when a .blend is opened on another machine."""
    from blender_unified_lift.job import session

    finish(finished_job)
    session.attach(bpy.context.scene, finished_job)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "room.blend"))
    if damage == "gone":
        shutil.rmtree(finished_job)
    elif damage == "no request":
        (finished_job / "job.json").unlink()
    else:
        line = {"events": "{broken}", "event": '{"event": "warning"}'}[damage]
        (finished_job / "events.jsonl").write_text(f"{line}\n")
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "room.blend"))
    watch = wait(ended)
    assert watch.state == ("missing" if damage == "gone" else "failed")
    assert str(finished_job) in watch.message
    assert not session.poll()
    assert bpy.ops.unified_lift.forget() == {"FINISHED"}


def test_a_folder_that_fails_for_a_moment_ends_no_polling(addon, finished_job):
    from blender_unified_lift.job import session

    finish(finished_job)
    events, aside = finished_job / protocol.EVENTS_FILE, finished_job / "aside"
    events.rename(aside)
    events.mkdir()  # cannot be read as a file
    session.attach(bpy.context.scene, finished_job)
    assert session.poll(), "it may be mended"
    watch = session.watch_of(bpy.context.scene)
    assert watch.state == "running" and str(events) in watch.trouble
    events.rmdir()
    aside.rename(events)
    assert wait(ended).state == "imported" and not watch.trouble


def test_a_cancel_file_that_cannot_be_taken_away_is_told(ready, finished_job):
    from blender_unified_lift.job import session

    with JobLock(finished_job), protocol.JobReport(finished_job) as report:
        report.stage("training", "Training")
    (finished_job / protocol.CANCEL_FILE).mkdir()  # `unlink` takes no folder away
    session.attach(bpy.context.scene, finished_job)
    session.watch_of(bpy.context.scene).state = session.CRASHED
    with pytest.raises(RuntimeError, match="cancel"):
        bpy.ops.unified_lift.resume()
    assert session.watch_of(bpy.context.scene).state == session.CRASHED


def test_job_paths_beside_the_file_move_with_it(addon, finished_job, tmp_path):
    from blender_unified_lift.job import session
    from blender_unified_lift.scene import objects

    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(finished_job, home / "jobs" / "messy8_001")
    bpy.ops.unified_lift.import_job(directory=str(home / "jobs" / "messy8_001"))
    bpy.ops.wm.save_as_mainfile(filepath=str(home / "room.blend"))
    root = objects.root(bpy.context)
    assert session.stored_path(root) == home / "jobs" / "messy8_001"
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "copy.blend"), copy=True)
    assert session.stored_path(root) == home / "jobs" / "messy8_001"
    bpy.ops.wm.read_homefile(use_empty=True)
    home.rename(tmp_path / "moved")
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "moved" / "room.blend"))
    root = objects.root(bpy.context)
    assert session.stored_path(root) == tmp_path / "moved" / "jobs" / "messy8_001"
    assert json.loads((session.stored_path(root) / "objects.json").read_text())
