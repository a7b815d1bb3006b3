# SPDX-License-Identifier: GPL-3.0-or-later
"""The jobs that Blender watches: one for each scene at most. The job folder is the truth."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import bpy
from bpy.app.handlers import persistent
from bpy.types import Collection, Scene, ViewLayer

from unified_lift import protocol
from unified_lift.protocol import JobError, JobRequest

from ..scene import importer
from ..scene.objects import JOB_KEY, redraw_views, roots, summary, switch_off_earlier
from . import process
from .folders import new_job_dir

POLL_SECONDS = 0.5
AWAY_SECONDS = 5.0  # between looks for a job folder that is not there: a drive may come back
START_SECONDS = 30.0  # a worker of another Blender may take this long to show its first sign
RUNNING, HUNG, FINISHED = "running", "hung", "finished"
FAILED, CANCELLED, CRASHED = "failed", "cancelled", "crashed"
IMPORTED, MISSING = "imported", "missing"  # beyond those of the protocol
ALIVE = (RUNNING, HUNG)
_ENDS = {"failed": FAILED, "cancelled": CANCELLED, "crashed": CRASHED, "new": CRASHED}
_PREVIEW_KEYS = ("image", "labels", "caption")


@dataclass
class Watch:
    """What Blender knows of the job of a scene.

    Attributes:
        job_dir: the job folder.
        state: running, hung, finished (the import is still to come), imported, failed,
            cancelled, crashed, or missing (no such folder on this machine).
        stage: what the worker does, for the user.
        fraction: 0..1 of the whole job.
        seconds_left: None while nothing is known.
        message: what the user should know of the end.
        trouble: why the folder cannot be read or written at this moment, "" if it can.
        warnings: what the worker said that did not stop it.
        preview: paths of an image and of a label map ("" = none), and a caption; {} before.
    """

    job_dir: Path
    worker: subprocess.Popen | None = None
    started: float = 0.0
    offset: int = 0
    stopping: bool = False
    state: str = RUNNING
    stage: str = "Starting"
    fraction: float = 0.0
    seconds_left: float | None = None
    message: str = ""
    trouble: str = ""
    warnings: list[str] = field(default_factory=list)
    preview: dict[str, str] = field(default_factory=dict)


_watches: dict[int, Watch] = {}  # by Scene.session_uid, which undo does not change


def watch_of(scene: Scene) -> Watch | None:
    """The job of a scene, None if it has none."""
    return _watches.get(scene.session_uid)


# ---- begin and end


def start(scene: Scene, request: JobRequest, python: Path, jobs_dir: Path) -> Watch:
    """Write a job into a new folder, start it and watch it.

    Raises:
        JobError: the folder cannot be written, or the worker does not start.
    """
    job_dir = new_job_dir(jobs_dir, Path(request.capture).name)
    protocol.write_job(job_dir, request)
    return _run(scene, job_dir, python)


def resume(scene: Scene, python: Path) -> Watch:
    """Start the worker of a stopped or failed job again; it goes on where it can.

    Raises:
        JobError: the worker does not start.
    """
    return _run(scene, _watches[scene.session_uid].job_dir, python)


def restart(scene: Scene, python: Path) -> Watch:
    """Run the same request again in a new folder.

    Raises:
        JobError: the request cannot be read, or as `start`.
    """
    job_dir = _watches[scene.session_uid].job_dir
    return start(scene, protocol.read_job(job_dir), python, job_dir.parent)


def _run(scene: Scene, job_dir: Path, python: Path) -> Watch:
    try:
        (job_dir / protocol.CANCEL_FILE).unlink(missing_ok=True)
        protocol.end_broken_line(job_dir / protocol.EVENTS_FILE)
        _, offset = protocol.read_events(job_dir)
    except OSError as error:
        raise JobError(protocol.describe_os_error(error, job_dir)) from error
    started = time.time()
    worker = process.start(python, job_dir)
    watch = Watch(job_dir, worker=worker, started=started, offset=offset)
    _follow(scene, watch)
    return watch


def attach(scene: Scene, job_dir: Path) -> Watch:
    """Watch a job that another Blender started."""
    watch = Watch(job_dir)
    _follow(scene, watch)
    return watch


def _follow(scene: Scene, watch: Watch) -> None:
    _watches[scene.session_uid] = watch
    scene[JOB_KEY] = str(watch.job_dir)
    _wake()


def cancel(scene: Scene) -> None:
    """Ask the worker of a scene's job for a stop; `poll` sees to it that it obeys.

    Raises:
        JobError: the job folder cannot be written.
    """
    watch = _watches[scene.session_uid]
    try:
        protocol.request_cancel(watch.job_dir)
    except OSError as error:
        raise JobError(protocol.describe_os_error(error, watch.job_dir)) from error
    watch.stopping = True
    watch.stage, watch.seconds_left = "Stopping", None


def forget(scene: Scene) -> None:
    """Watch no longer; the job itself goes on, or stays as it is."""
    _watches.pop(scene.session_uid, None)
    scene.pop(JOB_KEY, None)


# ---- polling


def poll() -> bool:
    """Read what the watched jobs wrote and import what they finished.

    The one function that timer, scripts and tests call. Blender's data change only here, and
    only for a finished job.

    Returns:
        Whether there is something left to wait for.
    """
    for scene in bpy.data.scenes:
        watch = _watches.get(scene.session_uid)
        if watch and watch.state in (*ALIVE, MISSING):
            _update(watch)
        if watch and watch.state == FINISHED:
            _import(scene, watch)
    return _any_is(*ALIVE, FINISHED)


def _any_is(*states: str) -> bool:
    """Whether the job of a scene is in one of these states; of a scene that is still there."""
    watches = (watch_of(scene) for scene in bpy.data.scenes)
    return any(watch.state in states for watch in watches if watch)


def _update(watch: Watch) -> None:
    try:  # an error would end the timer of all jobs
        # Of a folder that is being copied back, the request may come late.
        is_back = (watch.job_dir / protocol.REQUEST_FILE).is_file()
        if is_back or (watch.state != MISSING and watch.job_dir.is_dir()):
            watch.message = "" if watch.state == MISSING else watch.message
            _read_folder(watch)
        else:
            watch.state = MISSING
            watch.message = (
                f"The job folder {watch.job_dir} is not on this machine. "
                "Copy it here, or run Segment Scene again."
            )
        watch.trouble = ""
    except JobError as error:
        watch.state, watch.message = FAILED, str(error)
    except OSError as error:  # a drive or a permission that may come back
        watch.trouble = protocol.describe_os_error(error, watch.job_dir)


def _read_folder(watch: Watch) -> None:
    state = protocol.job_state(watch.job_dir)
    events, watch.offset = protocol.read_events(watch.job_dir, watch.offset)
    try:
        for event in events:
            _read_event(watch, event)
    except KeyError as error:
        path = watch.job_dir / protocol.EVENTS_FILE
        raise JobError(f"{path} is damaged (an event without {error}). Run it again.") from error
    watch.state = _state_name(watch, state)
    if watch.state in ALIVE:
        _see_to_cancel(watch, state)
    elif watch.state != FINISHED:
        watch.message = watch.message or _last_words(watch)


def _read_event(watch: Watch, event: dict) -> None:
    kind = event["event"]
    if kind == "start":  # what an earlier run of this job told is no longer true
        watch.warnings, watch.message = [], ""
    elif kind == "stage" and not watch.stopping:
        watch.stage = event["label"]
    elif kind == "progress":
        watch.fraction = event["fraction"]
        watch.seconds_left = None if watch.stopping else event["seconds_left"]
    elif kind == "preview":
        watch.preview = {key: event[key] for key in _PREVIEW_KEYS}
    elif kind == "warning":
        watch.warnings.append(event["message"])
    elif kind == "failed":
        watch.message = event["message"]


def _state_name(watch: Watch, state: protocol.JobState) -> str:
    if state.name in ALIVE:
        return state.name
    if _may_still_begin(watch, state):
        return RUNNING
    if state.name == FINISHED:
        return FINISHED
    if state.name != FAILED and (watch.job_dir / protocol.CANCEL_FILE).exists():
        return CANCELLED
    return _ENDS[state.name]


def _may_still_begin(watch: Watch, state: protocol.JobState) -> bool:
    if watch.worker:
        is_old = state.event.get("t", 0.0) < watch.started  # of the run before this one
        return is_old and watch.worker.poll() is None
    log_path = watch.job_dir / protocol.LOG_FILE
    is_young = log_path.exists() and time.time() - log_path.stat().st_mtime < START_SECONDS
    return state.name == "new" and is_young


def _see_to_cancel(watch: Watch, state: protocol.JobState) -> None:
    if watch.stopping and not (watch.job_dir / protocol.CANCEL_FILE).exists():
        protocol.request_cancel(watch.job_dir)  # the worker took an early one for an old one
    process.insist_on_cancel(watch.job_dir, state)


def _last_words(watch: Watch) -> str:
    if watch.state == CANCELLED:
        return "Cancelled"
    line = process.last_log_line(watch.job_dir)
    if line and not line.startswith("Warning: "):  # which stopped nothing
        return f"The backend stopped unexpectedly: {line}"
    return "The backend was ended from outside, or memory ran out. Press Resume"


def _import(scene: Scene, watch: Watch) -> None:
    """Import once, as one undo step, as soon as Blender's mode allows it."""
    if bpy.context.mode != "OBJECT" or bpy.app.is_job_running("RENDER"):
        watch.message = "Finished. The objects come when you are in Object Mode and nothing renders"
        return
    try:
        with bpy.context.temp_override(scene=scene, view_layer=_view_layer(scene)):
            root = importer.import_job(bpy.context, watch.job_dir)
            replaced = switch_off_earlier(bpy.context, root)
    except JobError as error:
        watch.state, watch.message = FAILED, str(error)
        return
    watch.state, watch.message = IMPORTED, summary(root)
    if replaced:
        watch.message += ". The earlier result is switched off in the Outliner"
    scene.pop(JOB_KEY, None)
    bpy.ops.ed.undo_push(message="Import Segmented Scene")


def _view_layer(scene: Scene) -> ViewLayer:
    """The one that the user sees this scene by."""
    windows = bpy.context.window_manager.windows
    return next((w.view_layer for w in windows if w.scene == scene), scene.view_layers[0])


# ---- Blender's clock and files


def _wake() -> None:
    if bpy.app.timers.is_registered(_tick):  # it may sleep for a folder that is away
        bpy.app.timers.unregister(_tick)
    bpy.app.timers.register(_tick, first_interval=POLL_SECONDS, persistent=True)


def _tick() -> float | None:
    waiting = poll()
    redraw_views()
    if waiting:
        return POLL_SECONDS
    return AWAY_SECONDS if _any_is(MISSING) else None


def attach_all() -> None:
    """Watch the jobs that the open .blend file refers to."""
    for scene in bpy.data.scenes:
        if JOB_KEY in scene and not watch_of(scene):
            attach(scene, stored_path(scene))


def stored_path(holder: Scene | Collection) -> Path:
    """The job folder that a scene or a root collection names, absolute."""
    return Path(os.path.normpath(bpy.path.abspath(holder[JOB_KEY], library=holder.library)))


@persistent
def _on_load(*_: object) -> None:
    _watches.clear()
    _store_paths("")
    attach_all()


@persistent
def _after_undo(*_: object) -> None:
    _wake()  # it may have brought back a scene whose job nobody watched


@persistent
def _before_save(path: str, *_: object) -> None:
    for scene in bpy.data.scenes:  # undo may have taken it away
        watch = watch_of(scene)
        scene.pop(JOB_KEY, None)
        if watch and watch.state != IMPORTED:
            scene[JOB_KEY] = str(watch.job_dir)
    _store_paths(path)


@persistent
def _after_save(path: str, *_: object) -> None:
    _store_paths("", path)


def _store_paths(path: str, now: str = "") -> None:
    """Write the job folders relative to a .blend file where they lie beside it, else absolute.

    Args:
        path: the .blend that will hold them, "" to write all of them absolute.
        now: the .blend that they are relative to now, "" for the open one.
    """
    start = os.path.dirname(now) or None
    for holder in (*bpy.data.scenes, *(root for scene in bpy.data.scenes for root in roots(scene))):
        if JOB_KEY not in holder or holder.library:  # what is linked is its own file's
            continue
        job_dir = bpy.path.abspath(holder[JOB_KEY], start=start)
        beside = path and Path(job_dir).is_relative_to(Path(path).parent)
        holder[JOB_KEY] = (
            bpy.path.relpath(job_dir, start=os.path.dirname(path)) if beside else job_dir
        )


_HANDLERS = {
    "load_post": _on_load,
    "undo_post": _after_undo,
    "redo_post": _after_undo,
    "save_pre": _before_save,
    "save_post": _after_save,
    "save_post_fail": _after_save,
}


def register() -> None:
    for name, handler in _HANDLERS.items():
        getattr(bpy.app.handlers, name).append(handler)
    bpy.app.timers.register(attach_all, first_interval=0)  # bpy.data cannot be read yet


def unregister() -> None:
    for name, handler in _HANDLERS.items():
        getattr(bpy.app.handlers, name).remove(handler)
    for timer in (_tick, attach_all):
        if bpy.app.timers.is_registered(timer):
            bpy.app.timers.unregister(timer)
    _watches.clear()
