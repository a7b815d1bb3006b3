# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs as real processes: what comes out, how they end, what bad input does to them."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import SAMPLE, write_capture

from unified_lift import pipeline, views
from unified_lift.__main__ import run_job
from unified_lift.benchmark.run import Recorder
from unified_lift.capture import read_capture
from unified_lift.checkpoint import keep_splats
from unified_lift.config import PRESETS, PublishedConfig, Settings
from unified_lift.gaussians import from_splats
from unified_lift.pipeline.job import CONFIG, Job
from unified_lift.pipeline.splats import splat_quality
from unified_lift.ply import Splats, read_ply, write_ply
from unified_lift.preparation import read_photos
from unified_lift.protocol import (
    EXIT_FAILED,
    JobReport,
    JobRequest,
    SilentReport,
    job_state,
    read_events,
    read_job,
    request_cancel,
    write_job,
)
from unified_lift.rendering import load_engine

LIMIT = 600  # seconds for one command


def command(*arguments):
    return [sys.executable, "-I", "-u", "-X", "utf8", "-m", "unified_lift", *map(str, arguments)]


def unified_lift(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=LIMIT)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def small(tmp_path):
    return write_capture(tmp_path / "capture")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Every other photo of the sample, with masks and ground truth."""
    folder = tmp_path_factory.mktemp("half") / "sample"
    write_capture(folder, num_train=24, num_test=4, scale=1, labels=("masks/paper", "gt/ids"))
    shutil.copytree(SAMPLE / "sparse", folder / "sparse")
    shutil.copy(SAMPLE / "gt" / "meta.json", folder / "gt")
    return folder


@pytest.fixture(scope="module")
def sample_job(sample, tmp_path_factory):
    """The sample, with its masks, at the lowest quality."""
    job = tmp_path_factory.mktemp("sample") / "job"
    masks = sample / "masks" / "paper"
    done = unified_lift("segment", sample, "--out", job, "--preset", "draft", "--masks", masks)
    assert done.returncode == 0, done.stderr
    return job


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished job of the small capture."""
    folder = tmp_path_factory.mktemp("trained")
    done = segment_small(write_capture(folder / "capture"), folder / "job")
    assert done.returncode == 0, done.stderr
    assert geometry_stages(folder / "job") == ["Training splats (cpu)"]
    return folder / "job"


@pytest.fixture
def neighbour(trained, tmp_path):
    """The same beside a test's own jobs, which take its splats instead of training."""
    return shutil.copytree(trained, tmp_path / "neighbour")


def small_job(small, job, *options):
    """The words for a job of seconds: given masks, votes alone."""
    masks = ["--masks", small / "masks" / "paper"]
    options = (*masks, "--preset", "draft", "--method", "votes", *options)
    return ("segment", small, "--out", job, *options)


def segment_small(small, job, *options):
    return unified_lift(*small_job(small, job, *options))


def start_run(small, job):
    """Start the worker as Blender does, and wait until it trains."""
    process = subprocess.Popen(command(*small_job(small, job)), stderr=subprocess.DEVNULL)
    wait_for(
        lambda: any(
            event["event"] == "progress" and event["stage"] == "geometry"
            for event in read_events(job)[0]
        )
    )
    return process


# ---- what comes out


def scores_of(job, sample, folder):
    """Scores of the sample's things in its test views, which are rendered into a folder."""
    assert unified_lift("render", job, "--out", folder, "--split", "test").returncode == 0
    return json.loads(unified_lift("evaluate", folder / "ids", sample / "gt").stdout)["things"]


def test_the_sample_is_split_into_its_objects(sample, sample_job, tmp_path):
    scores = scores_of(sample_job, sample, tmp_path)
    assert scores["TP"] >= 7
    assert scores["FP"] <= 1
    assert scores["mIoU"] > 0.75


def test_splats_and_object_list_tell_the_same(sample_job):
    splats = read_ply(sample_job / "scene.ply")
    objects = json.loads((sample_job / "objects.json").read_text())["objects"]
    assert [entry["id"] for entry in objects] == list(range(1, len(objects) + 1))
    for entry in objects:
        inside = splats.object_ids == entry["id"]
        assert inside.sum() == entry["count"]
        assert np.allclose(splats.means[inside].min(0), entry["bounds"][0])
        assert entry["kind"] in ("thing", "surface")
        assert 0 <= entry["score"] <= 1
    assert splats.confidence.min() >= 0 and splats.confidence.max() <= 1
    assert splats.object_ids.max() == len(objects)


def test_the_job_tells_its_way(sample_job):
    events = read_events(sample_job)[0]
    stages = ["photos", "geometry", "surfaces", "lift", "edges", "objects", "export"]
    assert stages_of(sample_job) == stages
    assert events[0]["event"] == "start" and events[-1]["event"] == "done"
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    previews = [event for event in events if event["event"] == "preview"]
    assert any(event["labels"] for event in previews)
    last = {event[key] for event in previews[-2:] for key in ("image", "labels")} - {""}
    kept = {f"preview/{path.name}" for path in (sample_job / "preview").iterdir()}
    assert len(previews) > 2 and kept == last, "those before are not asked for any more"
    assert job_state(sample_job).name == "finished"
    kept = {path.name for path in (sample_job / "checkpoint").iterdir()}
    assert kept == {"source.json", "geometry.ply"}, "the splats before their edges were sharpened"


def test_every_long_stage_shows_itself(small, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "CONFIG", replace(pipeline.CONFIG, preview_seconds=0.05))
    short = replace(pipeline.PRESETS["draft"], iterations=50)
    monkeypatch.setitem(pipeline.PRESETS, "draft", short)
    masks = str(small / "masks" / "paper")
    write_job(tmp_path / "job", JobRequest(str(small), Settings(masks=masks, preset="draft")))
    shown = {}

    def show(event):
        if event["event"] == "preview":  # when it is told, its pictures are there
            names = [event[key] for key in ("image", "labels") if event[key]]
            shown[event["caption"]] = [Image.open(tmp_path / "job" / name) for name in names]
            for image in shown[event["caption"]]:
                image.load()

    with JobReport(tmp_path / "job", show) as report:
        pipeline.segment(tmp_path / "job", read_job(tmp_path / "job"), report)
    events = read_events(tmp_path / "job")[0]
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    # it has no points
    assert stages == ["photos", "points", "geometry", "surfaces", "lift", "objects", "export"]
    assert "Training splats" in shown
    for caption in ("Finding surfaces", "First split", "Learning features", "Objects"):
        _, labels = shown[caption]
        assert labels.size == (80, 60) and labels.getbbox(), caption  # not all black


def test_a_trained_splat_is_split_as_it_is(sample, sample_job, tmp_path):
    given, job = sample_job / "scene.ply", tmp_path / "job"
    options = ("--masks", sample / "masks" / "paper", "--method", "votes", "--splat", given)
    done = unified_lift("segment", sample, "--out", job, *options)
    assert done.returncode == 0, done.stderr
    before, after = read_ply(given), read_ply(job / "scene.ply")
    for name in ("means", "quats", "scales", "opacities", "sh0", "shN"):
        assert getattr(before, name).tobytes() == getattr(after, name).tobytes()
    assert after.object_ids.max() >= 8


def test_a_splat_in_another_frame_is_told(sample_job, small, tmp_path):
    splats = read_ply(sample_job / "scene.ply")
    write_ply(tmp_path / "moved.ply", replace(splats, means=splats.means[:, [1, 2, 0]]))
    result = segment_small(small, tmp_path / "job", "--splat", tmp_path / "moved.ply")
    assert "looks unlike the photos" in result.stderr
    none = Splats(**{name: value[:0] for name, value in vars(splats).items()})
    write_ply(tmp_path / "none.ply", none)
    result = segment_small(small, tmp_path / "none", "--splat", tmp_path / "none.ply")
    assert result.returncode == 1 and "none.ply holds no splats." in result.stderr
    write_ply(tmp_path / "far.ply", replace(splats, means=splats.means + 1000))
    result = segment_small(small, tmp_path / "far", "--splat", tmp_path / "far.ply")
    assert result.returncode == 1 and "shows next to nothing" in result.stderr


def test_a_splat_that_does_not_exist(small, tmp_path):
    fails(segment_small(small, tmp_path / "job", "--splat", tmp_path / "no.ply"), "no.ply")


def test_the_published_method_splits_a_scene(sample_job, small, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.split, "PublishedConfig", partial(PublishedConfig, steps=20))
    masks, splat = str(small / "masks" / "paper"), str(sample_job / "scene.ply")
    request = JobRequest(str(small), Settings(masks=masks, method="unified-lift", splat=splat))
    write_job(tmp_path / "job", request)
    with JobReport(tmp_path / "job") as report:
        pipeline.segment(tmp_path / "job", request, report)
    with np.load(tmp_path / "job" / "features.npz") as learned:
        assert learned["codebook"].shape == (256, 16)
        assert learned["features"].shape == (len(read_ply(sample_job / "scene.ply")), 16)


def test_codes_without_masks_that_agree_are_told(sample_job, small, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    masks = sorted((small / "masks" / "paper").iterdir())
    for path in masks:
        shape = np.array(Image.open(path)).shape
        Image.fromarray(rng.integers(9, size=shape).astype(np.uint16)).save(path)
    monkeypatch.setattr(pipeline.split, "PublishedConfig", partial(PublishedConfig, steps=20))
    chosen = {"masks": str(masks[0].parent), "splat": str(sample_job / "scene.ply")}
    request = JobRequest(str(small), Settings(method="unified-lift", **chosen))
    write_job(tmp_path / "job", request)
    with JobReport(tmp_path / "job") as report:
        pipeline.segment(tmp_path / "job", request, report)
    events = read_events(tmp_path / "job")[0]
    assert any("this split means little" in event.get("message", "") for event in events)


def test_masks_that_tell_nothing_apart_are_told(sample_job, small, tmp_path):
    for path in (small / "masks" / "paper").iterdir():
        shape = np.array(Image.open(path)).shape
        Image.fromarray(np.ones(shape, np.uint8)).save(path)
    done = segment_small(small, tmp_path / "job", "--splat", sample_job / "scene.ply")
    assert done.returncode == 0 and "Only one object was found" in done.stderr


def test_large_label_maps_are_rendered_object_by_object(sample_job, tmp_path, monkeypatch):
    views.render_views(sample_job, tmp_path / "whole", "test", [], "cpu")
    monkeypatch.setattr(views, "CONFIG", replace(views.CONFIG, max_lift_pixels=9))
    views.render_views(sample_job, tmp_path / "parts", "test", [], "cpu")
    for path in (tmp_path / "whole" / "ids").iterdir():
        with (
            Image.open(path) as whole,
            Image.open(tmp_path / "parts" / "ids" / path.name) as other,
        ):
            # Only one of the two drops weights below 1/255.
            same = np.array(whole) == np.array(other)
            assert same.mean() > 0.99, path.name


def test_an_object_renders_alone_with_alpha(sample_job, tmp_path):
    done = unified_lift("render", sample_job, "--out", tmp_path, "--object", "2")
    assert done.returncode == 0, done.stderr
    alpha = np.asarray(Image.open(tmp_path / "rgb" / "0048.png"))[..., 3]
    assert 0.001 < (alpha > 127).mean() < 0.5
    assert unified_lift("render", sample_job, "--out", tmp_path, "--object", "99").returncode == 1


def test_renderings_never_overwrite_what_they_did_not_write(sample_job, tmp_path):
    photo = tmp_path / "rgb" / "0048.png"
    photo.parent.mkdir()
    photo.write_bytes(b"a photo of mine")
    fails(unified_lift("render", sample_job, "--out", tmp_path), photo.parent, "--out")
    assert photo.read_bytes() == b"a photo of mine"
    fails(unified_lift("render", tmp_path, "--out", tmp_path / "out"), "no job.json")


def test_a_job_without_a_result_is_not_rendered(tmp_path):
    write_job(tmp_path / "job", JobRequest("/captures/desk"))
    fails(unified_lift("render", tmp_path / "job", "--out", tmp_path / "out"), "the job is new")


def test_the_same_seed_gives_the_same_result(small, tmp_path, trained):
    done = segment_small(small, tmp_path / "job")
    assert done.returncode == 0, done.stderr
    assert geometry_stages(tmp_path / "job") == ["Training splats (cpu)"]
    assert same_result(tmp_path / "job", trained)


def test_test_views_never_train(tmp_path):
    capture = write_capture(tmp_path / "capture", num_test=2)
    first = segment_small(capture, tmp_path / "first")
    assert first.returncode == 0, first.stderr
    for name in ("0048", "0049"):
        path = capture / "images" / f"{name}.jpg"
        Image.new("RGB", Image.open(path).size, (255, 0, 255)).save(path)
    segment_small(capture, tmp_path / "second")
    assert geometry_stages(tmp_path / "second") == ["Training splats (cpu)"]
    assert same_result(tmp_path / "first", tmp_path / "second")


# ---- how jobs end


def test_a_job_is_cancelled_between_two_steps(small, tmp_path):
    process = start_run(small, tmp_path / "job")
    request_cancel(tmp_path / "job")
    assert process.wait(30) == 130
    assert job_state(tmp_path / "job").name == "cancelled"
    assert not (tmp_path / "job" / "scene.ply").exists()


def test_a_cancelled_training_goes_on_and_ends_as_if_never_stopped(small, tmp_path, trained):
    job = tmp_path / "job"
    process = start_run(small, job)
    request_cancel(job)
    assert process.wait(60) == 130
    assert (job / "checkpoint" / "training.pt").is_file()
    again = unified_lift("run", job)
    assert again.returncode == 0, again.stderr
    assert re.fullmatch(r"Training from step [1-9]\d*", geometry_stages(job)[-1])
    assert same_result(job, trained)
    assert not (job / "checkpoint" / "training.pt").exists()


def test_a_second_worker_refuses_a_job_at_work(small, tmp_path):
    process = start_run(small, tmp_path / "job")
    assert job_state(tmp_path / "job").name == "running"
    second = unified_lift("run", tmp_path / "job")
    assert second.returncode == 75
    assert "at work" in second.stderr
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_job_is_run_again_to_its_end(small, tmp_path, trained):
    process = start_run(small, tmp_path / "job")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert job_state(tmp_path / "job").name == "crashed"
    again = unified_lift("run", tmp_path / "job")
    assert again.returncode == 0, again.stderr
    assert job_state(tmp_path / "job").name == "finished"
    assert same_result(tmp_path / "job", trained)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A job that failed after its training, for its masks show nothing."""
    folder = tmp_path_factory.mktemp("failed")
    small = write_capture(folder / "capture")
    for number, path in enumerate(sorted((small / "masks" / "paper").iterdir())):
        labels = np.zeros((60, 80), np.uint16)
        labels[5 * number : 5 * number + 3, 8 * number : 8 * number + 3] = 1
        Image.fromarray(labels).save(path)
    result = segment_small(small, folder / "job")
    assert fails(result, "No object was found", "goes on from them", f"another one in {folder}")
    assert (folder / "job" / "checkpoint" / "geometry.ply").is_file()
    return folder / "job"


@pytest.fixture
def kept(small, failed, tmp_path):
    """The same job, with masks that were mended since."""
    job = shutil.copytree(failed, tmp_path / "job")
    request = json.loads((job / "job.json").read_text())
    request["capture"], request["settings"]["masks"] = str(small), str(small / "masks" / "paper")
    (job / "job.json").write_text(json.dumps(request))
    return job


def warnings_of(job):
    return [event["message"] for event in read_events(job)[0] if event["event"] == "warning"]


def stages_of(job):
    return [event["stage"] for event in read_events(job)[0] if event["event"] == "stage"]


def geometry_stages(job):
    events = [event for event in read_events(job)[0] if event["event"] == "stage"]
    return [event["label"] for event in events if event["stage"] == "geometry"]


def same_result(job, other):
    """Whether two jobs came to the same splats with the same ids, to the last bit."""
    return (job / "scene.ply").read_bytes() == (other / "scene.ply").read_bytes()


def test_a_job_goes_on_from_the_trained_splats(kept, trained):
    assert unified_lift("run", kept).returncode == 0
    assert geometry_stages(kept)[-1] == "Reading splats"
    assert same_result(kept, trained)


def test_a_finished_job_started_again_does_not_train(trained, tmp_path):
    job = shutil.copytree(trained, tmp_path / "job")
    assert segment_small(trained.parent / "capture", job).returncode == 0
    assert geometry_stages(job) == ["Training splats (cpu)", "Reading splats"]
    assert same_result(job, trained)


def test_a_job_takes_the_splats_that_one_beside_it_has_trained(small, tmp_path, neighbour):
    job = tmp_path / "job"
    done = segment_small(small, job, "--method", "default")
    assert done.returncode == 0, done.stderr
    assert geometry_stages(job) == ["Reading splats of neighbour"]
    ours, theirs = (vars(read_ply(folder / "scene.ply")) for folder in (job, neighbour))
    for name in set(ours) - {"object_ids", "confidence"}:
        assert np.array_equal(ours[name], theirs[name]), name
    shutil.rmtree(neighbour)
    assert unified_lift("run", job).returncode == 0
    assert geometry_stages(job)[-1] == "Reading splats", "it does not hang on the first"


def test_right_masks_sharpen_edges_and_the_trained_splats_stay(sample, sample_job, tmp_path):
    folder = sample_job.parent / "right"  # its splats are there already
    masks, geometry = tmp_path / "masks", folder / "checkpoint" / "geometry.ply"
    masks.mkdir()
    for view, path in enumerate(sorted((sample / "gt" / "ids").iterdir())):
        with Image.open(path) as ids:  # shifted, to and fro
            loose = np.roll(np.asarray(ids), 12 if view % 2 else -12, 1)
        Image.fromarray(loose).save(masks / path.name)
    options = ("--masks", masks, "--preset", "draft", "--method", "votes")
    assert unified_lift("segment", sample, "--out", folder, *options).returncode == 0
    assert geometry_stages(folder) == ["Reading splats of job"]
    assert "edges" not in stages_of(folder)
    shutil.copytree(sample / "gt" / "ids", masks, dirs_exist_ok=True)
    done = unified_lift("run", folder)
    assert done.returncode == 0, done.stderr
    assert geometry_stages(folder)[-1] == "Reading splats"
    assert stages_of(folder)[-3:] == ["edges", "objects", "export"]
    trained, sharp = read_ply(geometry), read_ply(folder / "scene.ply")
    first = read_ply(sample_job / "checkpoint" / "geometry.ply")
    assert np.array_equal(trained.means, first.means)
    assert not np.array_equal(trained.means, sharp.means)
    test_splats_and_object_list_tell_the_same(folder)
    own = tmp_path / "own"
    assert (
        unified_lift("segment", sample, "--out", own, *options, "--splat", geometry).returncode == 0
    )
    assert np.array_equal(read_ply(own / "scene.ply").means, trained.means)
    scores = [scores_of(job, sample, tmp_path / f"{job.name} views") for job in (own, folder)]
    assert scores[1]["mBIoU"] > scores[0]["mBIoU"] + 0.005


def test_a_job_with_another_seed_or_other_photos_trains(small, tmp_path, neighbour):
    assert segment_small(small, tmp_path / "seed", "--seed", "5").returncode == 0
    assert geometry_stages(tmp_path / "seed") == ["Training splats (cpu)"]
    path = sorted((small / "images").iterdir())[0]
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
    assert segment_small(small, tmp_path / "photos").returncode == 0
    assert geometry_stages(tmp_path / "photos") == ["Training splats (cpu)"]
    told = warnings_of(tmp_path / "photos")
    assert not any("cannot be used" in text for text in told), "other jobs are no news here"


def test_splats_of_other_photos_are_trained_again(small, kept):
    path = sorted((small / "images").iterdir())[0]
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
    assert unified_lift("run", kept).returncode == 0
    assert geometry_stages(kept)[-1].startswith("Training splats")
    messages = warnings_of(kept)
    assert any("They were trained with another capture." in text for text in messages)


def test_trained_splats_that_are_not_of_the_photos_are_told(kept):
    folder = kept / "checkpoint"
    splats = read_ply(folder / "geometry.ply")
    source = json.loads((folder / "source.json").read_text())
    keep_splats(folder, source, from_splats(replace(splats, sh0=-splats.sh0, shN=-splats.shN)))
    unified_lift("run", kept)
    messages = warnings_of(kept)
    assert any("The trained splats look unlike the photos" in text for text in messages)


def test_splats_are_judged_by_the_photos_at_hand(small, tmp_path, trained):
    side = PRESETS["draft"].longest_side
    capture, photos = read_photos(read_capture(small), tmp_path, side, CONFIG, SilentReport())
    shutil.rmtree(small / "images")  # to read them again takes as long as the first time
    engine, settings = load_engine("cpu"), Settings(preset="draft")
    job = Job(tmp_path, settings, capture, photos, engine, SilentReport(), None)
    quality = splat_quality(job, from_splats(read_ply(trained / "scene.ply")))
    assert quality.psnr == pytest.approx(read_events(trained)[0][-1]["psnr"])


def test_splats_without_a_surface_take_masks(small, tmp_path, trained):
    splats = read_ply(trained / "scene.ply")
    write_ply(
        tmp_path / "mist.ply", replace(splats, opacities=np.full(len(splats), -5, np.float32))
    )
    done = segment_small(small, tmp_path / "job", "--splat", tmp_path / "mist.ply")
    assert done.returncode == 0, done.stderr
    messages = warnings_of(tmp_path / "job")
    assert any("Floor and walls cannot be told from things" in text for text in messages)
    objects = json.loads((tmp_path / "job" / "objects.json").read_text())["objects"]
    assert objects and all(entry["kind"] == "thing" for entry in objects)


@pytest.mark.usefixtures("neighbour")
def test_splats_that_cannot_be_kept_are_told(small, tmp_path):
    job, masks = tmp_path / "job", str(small / "masks" / "paper")
    write_job(job, JobRequest(str(small), Settings(masks=masks, method="votes", preset="draft")))
    (job / "checkpoint").write_text("in the way")
    done = segment_small(small, job)
    assert done.returncode == 0, done.stderr
    messages = warnings_of(job)
    assert any("The trained splats are not kept" in text for text in messages)


def test_damaged_splats_of_an_earlier_run_are_trained_again(kept, trained):
    path = kept / "checkpoint" / "geometry.ply"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert unified_lift("run", kept).returncode == 0
    messages = warnings_of(kept)
    assert any(f"{path} is cut short" in text and "Training again." in text for text in messages)
    assert same_result(kept, trained)


def test_a_result_that_was_changed_is_not_taken(small, tmp_path, trained):
    """Nor does it stand in the way of a whole one."""
    for name in ("first", "second"):
        shutil.copytree(trained, tmp_path / name)
    path = tmp_path / "first" / "checkpoint" / "geometry.ply"
    splats = read_ply(path)
    write_ply(path, replace(splats, means=splats.means + 1))
    assert segment_small(small, tmp_path / "third").returncode == 0
    assert geometry_stages(tmp_path / "third") == ["Reading splats of second"]
    (tmp_path / "second" / "checkpoint" / "geometry.ply").unlink()
    (tmp_path / "third" / "checkpoint" / "source.json").write_text("[")
    assert segment_small(small, tmp_path / "fourth").returncode == 0
    assert geometry_stages(tmp_path / "fourth") == ["Training splats (cpu)"]
    assert same_result(tmp_path / "fourth", trained)


def test_splats_that_were_not_trained_are_not_taken_for_such(small, tmp_path, trained, sample_job):
    job = shutil.copytree(trained, tmp_path / "job")
    request = json.loads((job / "job.json").read_text())
    request["settings"]["splat"] = str(sample_job / "scene.ply")
    (job / "job.json").write_text(json.dumps(request))
    assert unified_lift("run", job).returncode == 0
    assert segment_small(small, tmp_path / "second").returncode == 0
    assert geometry_stages(tmp_path / "second") == ["Reading splats of job"]
    assert same_result(tmp_path / "second", trained)


# ---- bad input


def fails(result, *words):
    """One clear line, no traceback, exit code 1."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert str(word) in result.stderr, result.stderr
    return True


@pytest.mark.parametrize(
    ("color", "words"), [((0, 0, 0), "one colour each"), (None, "one and the same picture")]
)
def test_photos_that_show_nothing_new_are_refused(small, tmp_path, color, words):
    paths = sorted((small / "images").iterdir())
    first = Image.open(paths[0])
    for path in paths:
        (first if color is None else Image.new("RGB", first.size, color)).save(path)
    fails(segment_small(small, tmp_path / "job"), small, words)


def test_copies_of_a_photo_are_told(small, tmp_path):
    first, second, *_ = sorted((small / "images").iterdir())
    shutil.copy(first, second)
    capture = read_capture(small)
    heard = Recorder(SilentReport())
    read_photos(capture, tmp_path, 160, CONFIG, heard)
    assert any(f"{second.stem} as {first.stem}" in text for text in heard.warnings)


def test_the_corrected_command_takes_the_place_of_a_slip(small, tmp_path):
    photo = next((small / "images").iterdir())
    job = ("--out", tmp_path / "job", "--preset", "draft")
    fails(unified_lift("segment", photo, *job), "There is no folder")
    (tmp_path / "bad.ply").write_bytes(b"ply\nend_header\n")
    fails(unified_lift("segment", small, *job, "--splat", tmp_path / "bad.ply"), "bad.ply")
    (small / "notes").mkdir()
    fails(unified_lift("segment", small, *job, "--masks", small / "notes"), "no label image")


def test_a_folder_that_is_no_capture(tmp_path):
    (tmp_path / "holiday" / "masks" / "paper").mkdir(parents=True)
    assert fails(segment_small(tmp_path / "holiday", tmp_path / "job"), "holiday", "no capture")
    assert job_state(tmp_path / "job").name == "failed"


def test_one_photo_is_not_enough(tmp_path):
    capture = write_capture(tmp_path / "capture", num_train=1)
    assert fails(segment_small(capture, tmp_path / "job"), "at least 2 photos")


def test_cameras_that_all_stand_at_one_place(small, tmp_path):
    path = small / "transforms.json"
    transforms = json.loads(path.read_text())
    for frame in transforms["frames"]:
        for row, value in zip(frame["transform_matrix"], (400_000.1, 5_000_000.2, 3.3)):
            row[3] = value
    path.write_text(json.dumps(transforms))
    assert fails(segment_small(small, tmp_path / "job"), "8 training cameras", "one place")
    assert not (tmp_path / "job" / "cameras.json").exists()


def test_an_unreadable_photo_is_left_out(small, tmp_path):
    path = sorted((small / "images").iterdir())[0]
    path.write_bytes(path.read_bytes()[:200])
    done = segment_small(small, tmp_path / "job")
    assert done.returncode == 0, done.stderr
    assert path.name in warnings_of(tmp_path / "job")[0]


def test_photos_that_are_all_missing(small, tmp_path):
    shutil.rmtree(small / "images")
    assert fails(segment_small(small, tmp_path / "job"), "no such file")


def test_the_joint_run_without_masks(small, tmp_path):
    options = ("--out", tmp_path / "job", "--method", "unified-lift-joint")
    fails(unified_lift("segment", small, *options), "needs masks")


def test_masks_for_no_photo(small, tmp_path):
    shutil.rmtree(small / "masks" / "paper")
    (small / "masks" / "paper").mkdir()
    words = ("no label image for any of the 8 training photos", "named as the photos")
    assert fails(segment_small(small, tmp_path / "job"), *words)


def test_masks_that_are_all_zero(small, tmp_path):
    for path in (small / "masks" / "paper").iterdir():
        Image.new("I;16", (80, 60)).save(path)
    assert fails(segment_small(small, tmp_path / "job"), "are 0 everywhere", "a number from 1")


def test_masks_for_one_photo(small, tmp_path):
    for path in sorted((small / "masks" / "paper").iterdir())[1:]:
        path.unlink()
    assert fails(segment_small(small, tmp_path / "job"), "only 1 of 8 photos", "Label more")
    assert not geometry_stages(tmp_path / "job")


def test_masks_of_one_id_for_each_pixel(small, tmp_path):
    for path in (small / "masks" / "paper").iterdir():
        Image.fromarray(np.arange(80 * 60, dtype=np.uint16).reshape(60, 80)).save(path)
    assert fails(segment_small(small, tmp_path / "job"), "8 photos have 38,392 masks", "30,000")
    stages = [event.get("stage") for event in read_events(tmp_path / "job")[0]]
    assert "geometry" not in stages


@pytest.mark.usefixtures("neighbour")
def test_masks_for_some_photos_are_a_warning(small, tmp_path):
    sorted((small / "masks" / "paper").iterdir())[0].unlink()
    done = segment_small(small, tmp_path / "job")
    assert done.returncode == 0, done.stderr
    assert "Warning: 1 of 8 training photos have no label image in" in done.stderr


def test_poses_of_nan(small, tmp_path):
    path = small / "transforms.json"
    transforms = json.loads(path.read_text())
    for frame in transforms["frames"]:
        frame["transform_matrix"][0][3] = float("nan")
    path.write_text(json.dumps(transforms))
    assert fails(segment_small(small, tmp_path / "job"), "pose")


@pytest.mark.parametrize(
    "options", [("--masks", "sam", "--sam-checkpoint", "none.pth"), ("--masks", "none")]
)
def test_a_slip_of_the_pen_does_not_use_up_the_job_folder(small, tmp_path, options):
    result = unified_lift("segment", small, "--out", tmp_path / "job", *options)
    assert fails(result, "There is no ", options[-1])
    assert not (tmp_path / "job").exists()


def test_cameras_in_too_large_a_unit(small, tmp_path):
    path = small / "transforms.json"
    transforms = json.loads(path.read_text())
    for frame in transforms["frames"]:
        for row in frame["transform_matrix"][:3]:
            row[3] *= 1e-3
    path.write_text(json.dumps(transforms))
    assert fails(segment_small(small, tmp_path / "job"), "a smaller unit")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk(small, tmp_path):
    job, masks = tmp_path / "job", str(small / "masks" / "paper")
    write_job(job, JobRequest(str(small), Settings(masks=masks, method="votes", preset="draft")))
    (job / "events.jsonl").symlink_to("/dev/full")
    assert fails(segment_small(small, job), "disk is full")


def ask_for_all_memory(*_):
    torch.empty(1 << 50)


def fill_a_gpu(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.")  # what PyTorch raises where there is one


@pytest.mark.parametrize("take_memory", [ask_for_all_memory, fill_a_gpu])
def test_pytorch_without_memory_is_explained(small, tmp_path, monkeypatch, take_memory):
    monkeypatch.setattr(pipeline, "read_photos", take_memory)
    write_job(tmp_path / "job", JobRequest(str(small), Settings(masks="none")))
    assert run_job(tmp_path / "job") == EXIT_FAILED
    assert read_events(tmp_path / "job")[0][-1]["message"].startswith("Out of memory. Choose a")


def test_another_job_in_the_folder_is_not_overwritten(neighbour, trained):
    other = segment_small(trained.parent / "capture", neighbour, "--seed", "5")
    assert fails(other, "already holds a job")
    assert same_result(neighbour, trained)


def test_no_test_views_to_render(trained, tmp_path):
    result = unified_lift("render", trained, "--out", tmp_path, "--split", "test")
    assert fails(result, "names no test views")


def test_a_job_without_a_result_cannot_render(tmp_path):
    assert fails(unified_lift("render", tmp_path, "--out", tmp_path / "views"), "no job.json")
