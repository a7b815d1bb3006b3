# SPDX-License-Identifier: GPL-3.0-or-later
"""The operators on jobs: start, cancel, resume, import, look into."""

import os
from pathlib import Path

import bpy
from bpy.props import StringProperty
from bpy.types import Context, Operator

from unified_lift.capture import read_capture
from unified_lift.protocol import LOG_FILE, JobError

from .. import preferences
from ..job import environment, folders, session
from ..scene import importer, objects
from .properties import make_request


def why_not_segment(context: Context) -> str:
    """What is missing before Segment Scene can be pressed, '' if nothing is. Cheap."""
    watch = session.watch_of(context.scene)
    if watch and watch.state in session.ALIVE:
        return "A job is running for this scene"
    if watch and watch.state == session.FINISHED:
        return "A result waits for its import: switch to Object Mode"
    if not preferences.get(context).backend_python:
        return "Set the Backend Python in the preferences"
    if not context.scene.unified_lift.capture_dir:
        return "Choose the capture folder"
    return ""


class UNIFIEDLIFT_OT_segment(Operator):
    bl_idname = "unified_lift.segment"
    bl_label = "Segment Scene"
    bl_description = (
        "Train Gaussian splats from the photos and split them into objects. "
        "Runs in the background: go on working meanwhile"
    )
    bl_options = {"REGISTER", "UNDO"}  # the undo step makes Blender ask to save before it quits

    @classmethod
    def poll(cls, context):
        reason = why_not_segment(context)
        if reason:
            cls.poll_message_set(reason)
        return not reason

    def execute(self, context):
        chosen = preferences.get(context)
        try:
            request = make_request(context.scene.unified_lift)
            read_capture(request.capture, with_points=False)
            backend = environment.check(chosen.backend_python)
            jobs_dir = folders.jobs_dir_of(chosen.jobs_dir, bpy.data.filepath)
            session.start(context.scene, request, backend.python, jobs_dir)
        except JobError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class _OnJob:
    """Poll of an operator that works on the job of the scene, in one of `states`."""

    states: tuple[str, ...] = ()
    reason = ""

    @classmethod
    def poll(cls, context):
        watch = session.watch_of(context.scene)
        if watch is None or watch.state not in cls.states:
            cls.poll_message_set(cls.reason)
            return False
        return True


class UNIFIEDLIFT_OT_cancel(_OnJob, Operator):
    bl_idname = "unified_lift.cancel"
    bl_label = "Cancel"
    bl_description = "Stop the job of this scene. Resume goes on with it"
    states, reason = session.ALIVE, "No job is running for this scene"

    def execute(self, context):
        try:
            session.cancel(context.scene)
        except JobError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class _StartsWorker(_OnJob):
    """Starts a worker for the job of the scene once more, by the function `begin`."""

    def execute(self, context):
        try:
            backend = environment.check(preferences.get(context).backend_python)
            self.begin(context.scene, backend.python)
        except JobError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class UNIFIEDLIFT_OT_resume(_StartsWorker, Operator):
    bl_idname = "unified_lift.resume"
    bl_label = "Resume"
    bl_description = (
        "Start the worker of this job again. Splats go on training where they were stopped"
    )
    states = (session.CRASHED, session.FAILED, session.CANCELLED)
    reason = "No job of this scene was stopped or has failed"
    begin = staticmethod(session.resume)


class UNIFIEDLIFT_OT_restart(_StartsWorker, Operator):
    bl_idname = "unified_lift.restart"
    bl_label = "Restart"
    bl_description = (
        "Run the same job again in a new folder. It takes trained splats, if there are any, but "
        "does not go on with a training"
    )
    bl_options = {"REGISTER", "UNDO"}  # as Segment Scene
    states = (session.CRASHED, session.FAILED, session.CANCELLED)
    reason = "No job of this scene was stopped or has failed"
    begin = staticmethod(session.restart)


class UNIFIEDLIFT_OT_forget(_OnJob, Operator):
    bl_idname = "unified_lift.forget"
    bl_label = "Dismiss"
    bl_description = "Show this job no longer. Its folder stays as it is"
    bl_options = {"REGISTER", "UNDO"}
    states = (
        session.CRASHED,
        session.FAILED,
        session.CANCELLED,
        session.MISSING,
        session.IMPORTED,
    )
    reason = "No finished job is shown for this scene"

    def execute(self, context):
        session.forget(context.scene)
        return {"FINISHED"}


class UNIFIEDLIFT_OT_import_job(Operator):
    bl_idname = "unified_lift.import_job"
    bl_label = "Import Job"
    bl_description = (
        "Import a finished job from its folder. An earlier import of it is left as it is"
    )
    bl_options = {"REGISTER", "UNDO"}

    directory: StringProperty(
        name="Job Folder", description="The folder that holds scene.ply", subtype="DIR_PATH"
    )
    filter_folder: bpy.props.BoolProperty(default=True, options={"HIDDEN"})

    @classmethod
    def poll(cls, context):
        if context.mode != "OBJECT":
            cls.poll_message_set("Switch to Object Mode first")
            return False
        return True

    def invoke(self, context, event):
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context):
        job_dir = Path(os.path.normpath(bpy.path.abspath(self.directory)))
        again = any(session.stored_path(root) == job_dir for root in objects.roots(context.scene))
        try:
            root = importer.import_job(context, job_dir)
        except JobError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        kept = ". The earlier import of this job is untouched" if again else ""
        self.report({"INFO"}, f"Imported {root.name}{kept}")
        return {"FINISHED"}


class _OnFolder:
    """Opens something of the scene's job, or else of the imported one, outside of Blender."""

    file = ""

    @classmethod
    def poll(cls, context):
        if job_dir_of(context) is None:
            cls.poll_message_set("No job belongs to this scene")
            return False
        return True

    def execute(self, context):
        path = job_dir_of(context) / self.file
        if not path.exists():
            self.report({"ERROR"}, f"{path} is not on this machine")
            return {"CANCELLED"}
        bpy.ops.wm.path_open(filepath=str(path))
        return {"FINISHED"}


class UNIFIEDLIFT_OT_open_job_dir(_OnFolder, Operator):
    bl_idname = "unified_lift.open_job_dir"
    bl_label = "Open Job Folder"
    bl_description = "Show the files of the job in the file manager"


class UNIFIEDLIFT_OT_open_log(_OnFolder, Operator):
    bl_idname = "unified_lift.open_log"
    bl_label = "Open Log"
    bl_description = "Show what the backend has printed"
    file = LOG_FILE


def job_dir_of(context: Context) -> Path | None:
    """The folder of the job that runs, or of the one that was imported."""
    watch = session.watch_of(context.scene)
    root = objects.root(context)
    if watch:
        return watch.job_dir
    return session.stored_path(root) if root else None


class UNIFIEDLIFT_OT_open_preferences(Operator):
    bl_idname = "unified_lift.open_preferences"
    bl_label = "Open Preferences"
    bl_description = "Show the preferences of this add-on"

    def execute(self, context):
        bpy.ops.preferences.addon_show(module=preferences.__package__)
        return {"FINISHED"}


_CLASSES = (
    UNIFIEDLIFT_OT_segment,
    UNIFIEDLIFT_OT_cancel,
    UNIFIEDLIFT_OT_resume,
    UNIFIEDLIFT_OT_restart,
    UNIFIEDLIFT_OT_forget,
    UNIFIEDLIFT_OT_import_job,
    UNIFIEDLIFT_OT_open_job_dir,
    UNIFIEDLIFT_OT_open_log,
    UNIFIEDLIFT_OT_open_preferences,
)
register, unregister = bpy.utils.register_classes_factory(_CLASSES)
