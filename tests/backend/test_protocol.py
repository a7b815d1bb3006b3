# SPDX-License-Identifier: GPL-3.0-or-later
"""The job folder: request, events, lock, heartbeat, cancel, seen from both sides."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unified_lift import protocol
from unified_lift.config import Settings
from unified_lift.protocol import (
    Cancelled,
    JobError,
    JobLock,
    JobReport,
    JobRequest,
    Locked,
    is_locked,
    job_state,
    read_events,
    read_job,
    request_cancel,
    write_job,
)

HOLD_LOCK = """
import sys, time
from pathlib import Path
from unified_lift.protocol import JobLock, JobReport
job = Path(sys.argv[1])
with JobLock(job), JobReport(job) as report:
    report.emit("start", pid=1)
    print("ready", flush=True)
    time.sleep(60)
"""

FILL_DISK = """
import resource, sys
from pathlib import Path
from unified_lift.protocol import EVENTS_FILE, JobReport
report = JobReport(Path(sys.argv[1]))
report.emit("start", pid=1)
full = report.job_dir.joinpath(EVENTS_FILE).stat().st_size + 20
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))
try:
    report.warning("dusty lens")
except OSError:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    report.emit("failed")
"""


@pytest.fixture
def job(tmp_path):
    write_job(tmp_path / "job", JobRequest("/captures/desk", Settings(seed=7)))
    return tmp_path / "job"


@pytest.fixture
def worker(job):
    """A real process that holds the job."""
    command = [sys.executable, "-c", HOLD_LOCK, str(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_folder_of_other_files_is_no_place_for_a_job(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(JobError, match="other files"):
        write_job(tmp_path, JobRequest(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_request_comes_back_as_written(job):
    assert read_job(job) == JobRequest("/captures/desk", Settings(seed=7))


def test_a_second_job_in_the_same_folder_is_refused(job):
    with pytest.raises(JobError, match="already holds a job"):
        write_job(job, JobRequest("/captures/other"))
    assert read_job(job).capture == "/captures/desk"


@pytest.mark.parametrize(("end", "made"), [("failed", True), ("done", False), ("crash", False)])
def test_a_job_that_failed_before_it_made_anything_gives_way(job, end, made):
    with JobLock(job), protocol.JobReport(job) as report:
        report.emit("start")
        if end != "crash":
            report.emit(end, message="", objects=0, seconds={})
    other = JobRequest("/captures/other")
    if made:
        write_job(job, other)
        assert read_job(job) == other and read_events(job) == ([], 0)
        (job / "scene.ply").write_bytes(b"result")
        with JobLock(job), protocol.JobReport(job) as report:
            report.emit("failed", message="")
    with pytest.raises(JobError, match="already holds a job"):
        write_job(job, JobRequest("/captures/third"))


def test_a_request_that_cannot_be_written_leaves_no_empty_folder(tmp_path):
    (tmp_path / "job").mkdir()  # Blender makes it, for its number
    with pytest.raises(JobError, match="no preset 'fast'"):
        write_job(tmp_path / "job", JobRequest("/captures/desk", Settings(preset="fast")))
    assert not (tmp_path / "job").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_leaves_no_empty_folder(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.json.part").symlink_to("/dev/full")
    with pytest.raises(JobError, match="disk is full"):
        write_job(tmp_path / "job", JobRequest("/captures/desk"))
    assert not (tmp_path / "job").exists()


def test_what_cannot_take_its_name_leaves_nothing(tmp_path):
    (tmp_path / "scene.ply").mkdir()
    with pytest.raises(OSError):
        protocol.write_whole(tmp_path / "scene.ply", b"ply")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.ply"]


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "damaged"),
        ("[]", "no JSON object"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1, "settings": {}}', "capture missing"),
        ('{"schema": 1, "capture": "/c", "settings": {"speed": 3}}', "speed"),
    ],
)
def test_a_bad_request_is_explained(job, content, words):
    (job / protocol.REQUEST_FILE).write_text(content)
    with pytest.raises(JobError, match=words):
        read_job(job)


def test_events_are_read_from_where_the_last_reading_ended(job):
    with JobReport(job) as report:
        report.emit("start", pid=1)
        events, offset = read_events(job)
        report.warning("dusty lens")
    later, _ = read_events(job, offset)
    assert [event["event"] for event in events + later] == ["start", "warning"]


def test_what_is_no_event_at_the_end_is_cut_off(job):
    path = job / protocol.EVENTS_FILE
    path.write_bytes(b'{"event": "start"}\ngarbage\n\n{"event": 1')
    with JobReport(job) as report:
        report.emit("start", pid=2)
    assert [event["event"] for event in read_events(job)[0]] == ["start", "start"]


def test_a_half_written_event_waits_for_its_end(job):
    path = job / protocol.EVENTS_FILE
    path.write_bytes(b'{"event": "start"}\n{"event": "sta')
    assert [event["event"] for event in read_events(job)[0]] == ["start"]
    with JobReport(job) as report:  # a new worker, after the first was killed while writing
        report.emit("start", pid=2)
    assert [event["event"] for event in read_events(job)[0]] == ["start", "start"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_an_event_without_room_leaves_no_half_line_before_the_next(job):
    subprocess.run([sys.executable, "-c", FILL_DISK, str(job)], check=True)
    assert [event["event"] for event in read_events(job)[0]] == ["start", "failed"]


def test_a_living_worker_is_told_from_a_killed_one(job, worker):
    assert job_state(job).name == "running"
    assert job_state(job).age < protocol.HUNG_SECONDS
    worker.kill()
    worker.wait()
    assert job_state(job).name == "crashed"


def test_a_second_worker_is_refused(job, worker):
    with pytest.raises(Locked), JobLock(job):
        pass


def test_a_probe_leaves_the_lock_free(job):
    with JobLock(job):
        assert is_locked(job)
    assert not is_locked(job)
    with JobLock(job):
        pass


@pytest.mark.parametrize(
    "event, name", [("done", "finished"), ("failed", "failed"), ("cancelled", "cancelled")]
)
def test_the_last_event_names_the_end(job, event, name):
    with JobReport(job) as report:
        report.emit(event)
    assert job_state(job).name == name


def test_a_cancel_is_obeyed_at_the_next_step(job):
    with JobReport(job) as report:
        report.stage("geometry", "Training")
        report.progress(1, 10)
        request_cancel(job)
        with pytest.raises(Cancelled):
            report.progress(2, 10)


def test_a_cancel_before_the_worker_is_ready_is_obeyed(job):
    request_cancel(job)
    with JobReport(job) as report, pytest.raises(Cancelled):
        report.check()


@pytest.mark.parametrize("event", ["done", "failed", "cancelled"])
def test_a_cancel_of_a_run_that_has_ended_does_not_stop_the_next(job, event):
    with JobReport(job) as report:
        request_cancel(job)  # it may come too late to be obeyed
        report.emit(event)
    with JobReport(job) as report:
        report.check()


def test_the_heartbeat_goes_on_while_the_work_is_silent(job):
    with JobReport(job):
        time.sleep(2.5 * protocol.HEARTBEAT_SECONDS)
        assert job_state(job).age < 2 * protocol.HEARTBEAT_SECONDS


def test_the_time_left_follows_the_speed_of_this_machine(job):
    with JobReport(job) as report:
        report.plan(geometry=10.0, masks=30.0)
        report.stage("geometry", "Training")
        report._stage_start -= 5.0  # as if half of the stage had taken 5 s: as planned
        report.progress(50, 100)
        fraction, left = report.estimate()
    assert left == pytest.approx(35.0, rel=0.05)
    assert fraction == pytest.approx(5 / 40, rel=0.05)


def test_the_first_estimate_rests_on_the_plan(job):
    with JobReport(job) as report:
        report.stage("photos", "Reading photos")
        report._stage_start -= 30.0  # has no plan, and tells nothing of the rest
        report.stage("geometry", "Training")
        report.plan(geometry=40.0, masks=20.0)
        report._stage_start -= 1.0
        report.progress(1, 1000)
        assert report.estimate()[1] == pytest.approx(60.0, rel=0.2)


def test_the_plan_is_forgotten_as_work_goes_on(job):
    with JobReport(job) as report:
        report.plan(geometry=40.0, masks=20.0)
        report.stage("geometry", "Training")
        report._stage_start -= 180.0  # a machine six times as slow
        report.progress(3, 4)
        assert report.estimate()[1] == pytest.approx(60 + 120, rel=0.2)


def test_a_stage_that_was_done_before_tells_nothing_of_the_speed(job):
    with JobReport(job) as report:
        report.plan(geometry=400.0, masks=20.0)
        report.stage("geometry", "Training")
        report.plan(geometry=0.0)  # the splats of an earlier worker are there
        report.stage("masks", "Finding surfaces")
        report._stage_start -= 1.0
        report.progress(1, 20)
        assert report.estimate()[1] == pytest.approx(19, rel=0.2)


def test_a_folder_without_a_job_is_explained(tmp_path):
    with pytest.raises(JobError, match="holds no job"):
        job_state(tmp_path)


def test_json_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "objects.json"
    protocol.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        protocol.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
