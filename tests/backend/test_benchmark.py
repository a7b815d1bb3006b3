# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark on a small version of the sample: all rows run, scores add up, runs go on."""

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import SAMPLE, write_capture

from unified_lift import edges
from unified_lift.__main__ import main
from unified_lift.benchmark import suites
from unified_lift.benchmark.frozen import Frozen, Outcome
from unified_lift.benchmark.methods import ABLATION, ALL_METHODS, METHODS, STEPS
from unified_lift.benchmark.pictures import like_truth
from unified_lift.benchmark.report import write_report
from unified_lift.benchmark.run import (
    Meter,
    Plan,
    _frozen,
    _load_arrays,
    _save_arrays,
    run_benchmark,
)
from unified_lift.benchmark.scores import risk, score_split
from unified_lift.benchmark.suites import (
    check_suite,
    load_suite,
    suite_masks,
    suite_surfaces,
)
from unified_lift.capture import read_capture
from unified_lift.checkpoint import keep_splats, kept_splats, splats_source
from unified_lift.config import AUTO_LIFT, PRESETS, Budget, LiftConfig, SurfaceMaskConfig
from unified_lift.lift.objects import settle
from unified_lift.masks.planes import SurfacePlanes
from unified_lift.protocol import Cancelled, JobError, JobLock, Locked, SilentReport
from unified_lift.rendering import load_engine

BUDGET = Budget(steps=4, pixels=512)
NUM_TRAIN, NUM_TEST, SCALE = 16, 3, 2


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """Some photos of the sample at half their size, with masks and ground truth."""
    folder = tmp_path_factory.mktemp("suite") / "little8"
    write_capture(folder, NUM_TRAIN, NUM_TEST, SCALE, labels=("masks/paper", "gt/ids"))
    shutil.copytree(SAMPLE / "sparse", folder / "sparse")
    (folder / "gt" / "meta.json").write_text((SAMPLE / "gt" / "meta.json").read_text())
    return folder


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """Where the splats of `capture` are kept for all tests."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module", autouse=True)
def short_training():
    """Splats and surfaces of seconds."""
    with pytest.MonkeyPatch.context() as patch:
        short = replace(PRESETS["draft"], iterations=600, max_gaussians=6000)
        patch.setitem(suites.PRESETS, "draft", short)
        rough = partial(SurfaceMaskConfig, voxel_pixels=(2.5,), flat_max_cells=20_000)
        patch.setattr(suites, "SurfaceMaskConfig", rough)
        yield


@pytest.fixture(scope="module")
def suite(capture, work_dir):
    digest = check_suite(capture, ["paper"], SilentReport()).photos
    cache_dir = work_dir / "suites" / "little8-draft-0"
    return load_suite(capture, cache_dir, "draft", 0, digest, load_engine("cpu"), SilentReport())


@pytest.fixture(scope="module")
def voted(capture, suite, work_dir, tmp_path_factory):
    """A folder with a run of votes, which no test changes."""
    folder = tmp_path_factory.mktemp("voted")
    shutil.copytree(work_dir / "suites", folder / "suites")
    run(capture, folder, ["votes"])
    return folder


@pytest.fixture
def copy(capture, voted, tmp_path):
    """A copy of the capture and of a run of votes, to change: (capture, folder of the run)."""
    shutil.copytree(capture, tmp_path / capture.name)
    shutil.copytree(voted, tmp_path / "work")
    return tmp_path / capture.name, tmp_path / "work"


def run(captures, work_dir, methods, masks=("paper",), seeds=(0,), report=None, num_views=0):
    plan = Plan(np.ravel(captures), masks, methods, seeds, "draft", num_views)
    return run_benchmark(plan, work_dir, BUDGET, load_engine("cpu"), report or SilentReport())


class Watch(SilentReport):
    """Keeps what a run tells."""

    def __init__(self):
        self.labels, self.warnings = [], []

    def stage(self, name, label):
        self.labels.append(label)

    def warning(self, text):
        self.warnings.append(text)


def change_images(folder, change):
    """Write all images of a folder anew."""
    for path in folder.iterdir():
        with Image.open(path) as image:
            other = change(image)
        other.save(path)


# ---- methods


ALIKE = set(STEPS) - {*METHODS, "codes-alone", "no-merge", "no-joined", "no-settling"}  # as these


@pytest.mark.parametrize("name", sorted(set(ALL_METHODS) - ALIKE))
def test_every_method_gives_an_object_to_each_gaussian(suite, name):
    masks = "gt" if name == "oracle" else "paper"
    label_maps = suite_masks(suite, masks, SilentReport())
    splats = suite.seen_splats(SurfacePlanes.none())
    frozen = Frozen(suite.weights, label_maps, LiftConfig(), splats=splats)
    outcome = ALL_METHODS[name].run(frozen, BUDGET, 0, SilentReport())
    assert outcome.object_ids.shape == (frozen.num_gaussians,)
    assert outcome.object_ids.min() >= -1


def test_a_split_is_settled_as_in_a_job(suite):
    label_maps = suite_masks(suite, "paper", SilentReport())
    planes = suite_surfaces(suite, SilentReport()).planes
    frozen = Frozen(suite.weights, label_maps, LiftConfig(), splats=suite.seen_splats(planes))
    bare, settled = (
        ALL_METHODS[name].run(frozen, BUDGET, 0, SilentReport())
        for name in ("no-settling", "default")
    )
    scores = [
        score_split(suite, outcome.object_ids, frozen.incidence, LiftConfig())
        for outcome in (bare, settled)
    ]
    assert scores[1]["extraction"]["iou"] >= scores[0]["extraction"]["iou"]
    assert (bare.object_ids != settled.object_ids).any()
    assert abs(scores[1]["things"]["PQ"] - scores[0]["things"]["PQ"]) < 0.02


def test_edges_are_sharpened_where_masks_are_right(suite, monkeypatch):
    label_maps = suite_masks(suite, "gt", SilentReport())
    loose = [np.roll(labels, 6 * (-1) ** view, 1) for view, labels in enumerate(label_maps)]
    truth = Frozen(suite.weights, label_maps, LiftConfig())
    votes = ALL_METHODS["oracle"].run(truth, BUDGET, 0, SilentReport()).object_ids
    assert suite.sharpened(loose, votes, SilentReport()) is None
    # So few splats fit no mask as well as those of a job.
    monkeypatch.setattr(edges, "EDGES", replace(edges.EDGES, max_gap=4.0))
    changed = suite.sharpened(label_maps, votes, SilentReport())
    before, after = (
        score_split(scene, votes, truth.incidence, LiftConfig()) for scene in (suite, changed)
    )
    assert after["things"]["mBIoU"] > before["things"]["mBIoU"] + 0.005
    assert after["things"]["SQ"] > before["things"]["SQ"] + 0.003
    assert after["scene"]["psnr"] > before["scene"]["psnr"] - 0.1


def test_masks_vote_anew_on_sharpened_splats(suite, monkeypatch):
    monkeypatch.setattr(edges, "EDGES", replace(edges.EDGES, max_gap=9.0))
    planes = SurfacePlanes.none()
    frozen = _frozen(suite, "paper", lambda: None, SilentReport())
    outcome = frozen.handed_over(Outcome(frozen.by_votes))
    sharp = suite.with_gaussians(outcome.gaussians)
    assert not torch.equal(sharp.gaussians["means"], suite.gaussians["means"])
    label_maps = suite_masks(suite, "paper", SilentReport())
    incidence, voted = edges.vote_anew(sharp.weights, label_maps, frozen.by_votes, LiftConfig())
    settled, _ = settle(incidence, voted, sharp.seen_splats(planes), LiftConfig())
    assert np.array_equal(outcome.object_ids, settled)
    unsharp = replace(frozen, sharpen=None).handed_over(Outcome(frozen.by_votes))
    assert 0 < np.mean(outcome.object_ids != unsharp.object_ids) < 0.2


def test_what_is_sure_has_the_last_vote(suite):
    seen = suite_surfaces(suite, SilentReport())
    frozen = _frozen(suite, "auto", lambda: seen, SilentReport())
    outcome = frozen.handed_over(Outcome(frozen.by_votes))
    voters = (frozen.incidence, suite.weights, seen.sure_maps)
    voted = edges.vote_where_sure(*voters, frozen.by_votes, AUTO_LIFT)
    splats = suite.seen_splats(seen.planes)
    settled, _ = settle(frozen.incidence, voted, splats, AUTO_LIFT)
    assert np.array_equal(outcome.object_ids, settled)
    last = replace(frozen, sure_maps=None).handed_over(Outcome(frozen.by_votes))
    assert (outcome.object_ids != last.object_ids).any()


def test_a_cell_keeps_the_splats_that_a_method_has_changed(suite, tmp_path):
    gaussians = {name: value + 1 for name, value in suite.gaussians.items()}
    outcome = Outcome(np.zeros(len(gaussians["means"]), np.int32), gaussians=gaussians)
    _save_arrays(tmp_path / "cell.npz", outcome)
    loaded = _load_arrays(tmp_path / "cell.npz").gaussians
    assert all(torch.equal(loaded[name], gaussians[name]) for name in gaussians)
    _save_arrays(tmp_path / "cell.npz", replace(outcome, gaussians=None))
    assert _load_arrays(tmp_path / "cell.npz").gaussians is None


def test_perfect_votes_score_what_the_geometry_allows(suite):
    frozen = Frozen(suite.weights, suite_masks(suite, "gt", SilentReport()), LiftConfig())
    outcome = ALL_METHODS["oracle"].run(frozen, BUDGET, 0, SilentReport())
    scores = score_split(suite, outcome.object_ids, frozen.incidence, LiftConfig())
    assert scores["confidence"]["wrong"] == 0
    assert scores["things"]["PQ"] > 0.7 and scores["extraction"]["iou"] > 0.6
    assert scores["things"]["TP"] == 8 and scores["things"]["FP"] == 0
    assert scores["scene"]["things"] == 8 and scores["scene"]["psnr"] > 20


def test_nothing_found_scores_nothing(suite):
    frozen = Frozen(suite.weights, suite_masks(suite, "paper", SilentReport()), LiftConfig())
    nothing = np.full(frozen.num_gaussians, -1)
    scores = score_split(suite, nothing, frozen.incidence, LiftConfig())
    assert scores["things"]["PQ"] == scores["extraction"]["iou"] == 0


def test_the_least_confident_tenth_catches_wrong_labels():
    object_ids = np.repeat([0, 1, -1], 20)
    true_ids = np.repeat([5, 9, 9], 20)  # 9 is floor
    true_ids[:2] = 9  # of object 0, which shows 5
    true_ids[20:25] = 8  # floor in the wall
    sure = np.linspace(0.2, 1, 60)
    found = risk(sure, object_ids, true_ids, [5])
    assert found["wrong"] == 2 / 20 and found["caught"] == 1
    assert found["curve"][-1] == 2 / 20 and found["curve"][:-3] == [0.0] * 17
    assert risk(1 - sure, object_ids, true_ids, [5])["caught"] == 0
    assert risk(sure, object_ids, np.repeat([5, 9, 9], 20), [5])["caught"] is None


def test_ids_take_the_colours_of_what_they_match():
    truth = np.repeat([[1, 2, 3]], 2, 0)
    same = like_truth([truth], [truth])[0]
    renamed = like_truth([np.repeat([[7, 5, 0]], 2, 0)], [truth])[0]
    assert (renamed[:, :2] == same[:, :2]).all()
    assert not renamed[:, 2].any()
    split = like_truth([np.repeat([[1, 2, 4]], 2, 0)], [np.repeat([[1, 2, 2]], 2, 0)])[0]
    grey = split[0, 2]
    assert grey[0] == grey[1] == grey[2] > 0  # a false piece


# ---- runs


def test_a_report_tells_all_rows(capture, work_dir, tmp_path):
    cells = run(capture, work_dir, ["votes", "unified-lift"], seeds=(0, 1))
    assert [cell["method"] for cell in cells] == ["oracle", "votes", "unified-lift"] * 2
    kept = [work_dir / "suites" / f"little8-draft-{seed}" / "geometry.ply" for seed in (0, 1)]
    assert kept[0].read_bytes() != kept[1].read_bytes()  # each seed trains its own splats
    report = work_dir.with_suffix(".md")
    write_report(report, cells, "the command", BUDGET, "cpu")
    text = report.read_text()
    for row in ("| oracle |", "| votes |", "| unified-lift |", "the command", "±"):
        assert row in text
    pictures = re.findall(r"\]\(([^)]+\.png)\)", text)
    assert {Path(p).stem for p in pictures} == {
        "little8-paper_ids", "little8-paper_training", "little8-paper_losses",
        "little8-paper_risk", "pq",
    }  # fmt: skip
    for picture in pictures:
        with Image.open(report.parent / picture) as image:
            assert min(image.size) > 100


def test_a_report_tells_what_each_step_is_worth(capture, work_dir):
    cells = run(capture, work_dir, ["default", "no-dissolve"])
    report = work_dir.with_suffix(".md")
    write_report(report, cells, "the command", BUDGET, "cpu")
    text = report.read_text()
    assert "| ours without dissolving | " in text and "| tried and dropped |" in text


def test_few_views_are_a_scene_of_their_own(capture, work_dir):
    every = run(capture, work_dir, ["votes"])[-1]
    few = run(capture, work_dir, ["votes"], num_views=4)[-1]
    assert few["suite"] == "little8-4views" and every["suite"] == "little8"
    assert few["scene"]["train_views"] == 4 and few["scene"]["test_views"] == NUM_TEST
    assert every == run(capture, work_dir, ["votes"])[-1]
    for number in (1, NUM_TRAIN + 1, -1):
        with pytest.raises(JobError, match=f"{NUM_TRAIN} training views"):
            run(capture, work_dir, ["votes"], num_views=number)


def test_a_run_goes_on_where_it_stopped(capture, work_dir):
    class Stop(SilentReport):
        def stage(self, name, label):
            if "panoptic-lifting" in label:
                raise Cancelled

    with pytest.raises(Cancelled):
        run(capture, work_dir, ["votes", "panoptic-lifting"], report=Stop())
    done = work_dir / "cells" / "little8-paper-votes-0.json"
    before = done.stat().st_mtime_ns
    cells = run(capture, work_dir, ["votes", "panoptic-lifting"])
    assert [cell["method"] for cell in cells] == ["oracle", "votes", "panoptic-lifting"]
    assert done.stat().st_mtime_ns == before


@pytest.mark.parametrize("part", ["photos", "masks", "truth"])
def test_what_changed_runs_again_and_nothing_else(copy, part):
    capture, work_dir = copy
    run(capture, work_dir, ["votes"])
    folder = {"photos": "images", "masks": "masks/paper", "truth": "gt/ids"}[part]
    change_images(capture / folder, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    watch = Watch()
    run(capture, work_dir, ["votes"], report=watch)
    trained = "little8: training splats" in watch.labels
    again = {"little8-gt-oracle-0 (1 of 2)", "little8-paper-votes-0 (2 of 2)"} & set(watch.labels)
    assert trained == (part == "photos")
    assert len(again) == (1 if part == "masks" else 2)
    idle = Watch()
    run(capture, work_dir, ["votes"], report=idle)
    assert idle.labels == ["Checking photos, masks and ground truth"]


def test_another_budget_runs_again(copy):
    capture, work_dir = copy
    run(capture, work_dir, ["unified-lift"])
    plan = Plan([capture], ["paper"], ["unified-lift"], (0,), "draft")
    other = Budget(steps=BUDGET.steps + 1, pixels=BUDGET.pixels)
    cell = run_benchmark(plan, work_dir, other, load_engine("cpu"), SilentReport())[-1]
    assert len(cell["losses"]) == other.steps


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        ("cells/little8-paper-votes-0.json", "Running this cell again."),
        ("cells/little8-paper-votes-0.npz", "Running this cell again."),
        ("suites/little8-draft-0/geometry.ply", "Training again."),
        ("suites/little8-draft-0/source.json", "Training again."),
        ("little8-paper_ids.png", ""),
    ],
)
@pytest.mark.parametrize("share", [0.001, 0.9])
def test_what_a_crash_left_is_made_again(copy, damaged, told, share):
    capture, work_dir = copy
    first = run(capture, work_dir, ["votes"])
    path = work_dir / damaged
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    if damaged.startswith("suites"):
        shutil.rmtree(work_dir / "cells")
    watch = Watch()
    second = run(capture, work_dir, ["votes"], report=watch)
    assert path.stat().st_size > 0.95 * len(whole)
    assert second[-1]["things"] == first[-1]["things"]
    assert any(told in text for text in watch.warnings) or not told


def test_pictures_show_the_rows_and_masks_of_the_run(copy):
    capture, work_dir = copy
    path = work_dir / "little8-paper_ids.png"

    def width(methods):
        run(capture, work_dir, methods)
        with Image.open(path) as image:
            return image.width

    assert width(["votes"]) < width(["votes", "default"])
    written = path.stat().st_mtime_ns
    run(capture, work_dir, ["votes", "default"])
    assert path.stat().st_mtime_ns == written
    assert width(["votes"]) < width(["default", "votes"])


def test_two_runs_do_not_share_a_folder(copy):
    capture, work_dir = copy
    with JobLock(work_dir), pytest.raises(Locked, match="Another process"):
        run(capture, work_dir, ["votes"])


def test_a_report_repeats_the_warnings(copy):
    capture, work_dir = copy
    masks = sorted((capture / "masks" / "paper").iterdir())
    masks[0].unlink()
    cells = run(capture, work_dir, ["votes"])
    report = work_dir.with_suffix(".md")
    write_report(report, cells, "the command", BUDGET, "cpu")
    assert f"Warning: {cells[-1]['warnings'][0]}" in report.read_text()
    assert masks[0].stem in cells[-1]["warnings"][0]


def test_without_a_surface_masks_are_taken_as_they_are(copy):
    capture, work_dir = copy
    folder = work_dir / "suites" / "little8-draft-0"
    digest = check_suite(capture, ["paper"], SilentReport()).photos
    source = splats_source(digest, PRESETS["draft"], load_engine("cpu"), 0)
    splats = kept_splats(folder, source, SilentReport())
    keep_splats(folder, source, {**splats, "opacities": splats["opacities"] - 20})
    shutil.rmtree(work_dir / "cells")
    watch = Watch()
    run(capture, work_dir, ["votes"], report=watch)
    (told,) = [text for text in watch.warnings if "stay one" in text]
    assert "nowhere opaque" in told
    with pytest.raises(JobError, match="nowhere opaque"):
        run(capture, work_dir, ["votes"], masks=["auto"])


def test_time_and_memory_are_measured():
    with Meter() as meter:
        block = np.ones(30_000_000)
    assert meter.seconds > 0 and block.all()
    assert meter.megabytes is None or meter.megabytes > 230


def test_the_command_writes_the_report(capture, tmp_path):
    out = tmp_path / "report.md"
    arguments = ["benchmark", str(capture), "--methods", "votes", "--masks", "paper", "auto"]
    assert main([*arguments, "--preset", "draft", "--out", str(out)]) == 0
    assert "## little8, masks `auto`" in out.read_text()


# ---- bad input


def test_rows_and_masks_that_do_not_exist(capture, work_dir):
    with pytest.raises(JobError, match="no method 'magic'"):
        run(capture, work_dir, ["magic"])
    with pytest.raises(JobError, match="no masks 'severe'"):
        run(capture, work_dir, ["votes"], masks=["severe"])
    with pytest.raises(JobError, match="no masks 'a/paper'"):
        run(capture, work_dir, ["votes"], masks=["a/paper"])
    with pytest.raises(JobError, match="shows what true masks give"):
        run(capture, work_dir, ["votes"], masks=["gt"])
    with pytest.raises(JobError, match="oracle is always run"):
        run(capture, work_dir, [])


def test_captures_of_one_name_are_not_mixed(capture, copy):
    with pytest.raises(JobError, match="one name"):
        run([capture, copy[0]], copy[1], ["votes"])


def test_a_relative_path(copy, monkeypatch):
    monkeypatch.chdir(copy[0])
    assert run(Path(), copy[1], ["votes"])[0]["suite"] == "little8"


def truth_of_another_size(capture):
    change_images(capture / "gt" / "ids", lambda image: image.resize((50, 40)))


def truth_of_nothing(capture):
    change_images(capture / "gt" / "ids", lambda image: image.point(lambda _: 0))


def no_truth_of_a_photo(capture):
    min((capture / "gt" / "ids").iterdir()).unlink()


def no_truth(capture):
    shutil.rmtree(capture / "gt")


def no_split(capture):
    path = capture / "transforms.json"
    path.write_text(path.read_text().replace('"test"', '"train"'))


def damaged_test_photo(capture):
    path = next(view.image_path for view in read_capture(capture).test_views)
    path.write_bytes(path.read_bytes()[:300])


def damaged_surface(capture):
    (capture / "gt" / "surface.npz").write_bytes(b"PK")


def masks_of_nothing(capture):
    change_images(capture / "masks" / "paper", lambda image: image.point(lambda _: 0))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truth_of_another_size, "50 x 40"),
        (truth_of_nothing, "none of its things"),
        (no_truth_of_a_photo, "gt"),
        (no_truth, "ground truth"),
        (no_split, "no test views"),
        (damaged_test_photo, "cannot be read"),
        (damaged_surface, "no xyz and label"),
        (masks_of_nothing, "0 everywhere"),
    ],
)
def test_a_spoilt_suite_is_refused_before_any_work(capture, copy, spoil, words):
    spoilt, _ = copy
    second = spoilt.rename(spoilt.with_name("second8"))
    spoil(second)
    watch = Watch()
    with pytest.raises(JobError, match=words):
        run([capture, second], second.parent / "new", ["votes"], report=watch)
    assert watch.labels == ["Checking photos, masks and ground truth"]


def test_rows_are_named_in_both_tables():
    assert {"unified-lift", "default"} <= set(ABLATION) & set(METHODS)
