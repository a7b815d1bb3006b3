# SPDX-License-Identifier: GPL-3.0-or-later
"""Photometric training on real pixels, with its parts against closed forms."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scenes import SAMPLE

from unified_lift.capture import read_capture
from unified_lift.capture.images import load_photo, scaled_view
from unified_lift.checkpoint import Stopped
from unified_lift.config import GeometryConfig, PublishedConfig
from unified_lift.exposures import Exposures
from unified_lift.gaussians import (
    PARAMETERS,
    from_splats,
    random_points,
    relocated,
    scene_extent,
    start_gaussians,
    to_splats,
)
from unified_lift.geometry import _shrink, coarse_factor, start_count, step_costs, train
from unified_lift.lift.features import nearest_codes
from unified_lift.lift.published import Joint
from unified_lift.metrics import psnr
from unified_lift.preparation import to_camera
from unified_lift.protocol import Cancelled, JobError, SilentReport
from unified_lift.rendering import Camera, load_engine

CONFIG = GeometryConfig(longest_side=48, iterations=150, max_gaussians=400, sh_degree=0)


def look_at_origin(angle, width=48, height=36):
    """A camera 3 units from the origin, turned about y."""
    c, s = np.cos(angle), np.sin(angle)
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    pose[2, 3] = 3.0
    intrinsics = torch.tensor([[48.0, 0, width / 2], [0, 48.0, height / 2], [0, 0, 1]])
    return Camera(pose, intrinsics, width, height)


@pytest.fixture(scope="module")
def two_balls():
    """Photos of a red and a green ball, rendered from known Gaussians."""
    rng = np.random.default_rng(1)
    points = rng.normal(size=(200, 3)).astype(np.float32)
    points *= 0.4 / np.linalg.norm(points, axis=1, keepdims=True)
    points[:100, 0] -= 0.6
    points[100:, 0] += 0.6
    colors = np.repeat(np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1]], np.float32), 100, 0)
    truth = start_gaussians(points, colors, replace(CONFIG, init_opacity=0.9))
    engine = load_engine("cpu")
    cameras = [look_at_origin(angle) for angle in np.linspace(0, 5.5, 8)]
    with torch.no_grad():
        images = [engine.render(**truth, camera=camera).channels for camera in cameras]
    photos = [(image.clamp(0, 1) * 255).round().byte().numpy() for image in images]
    return photos, cameras, points, (colors * 255).astype(np.uint8)


def test_the_unit_of_length_does_not_matter(two_balls):
    photos, cameras, points, colors = two_balls
    sizes = []
    for unit in (1.0, 1000.0):
        moved = []
        for camera in cameras:
            viewmat = camera.viewmat.clone()
            viewmat[:3, 3] *= unit
            moved.append(camera._replace(viewmat=viewmat))
        scene = (photos, moved, points * unit, colors)
        trained = train(*scene, CONFIG, load_engine("cpu"), 0, SilentReport())
        sizes.append(float(trained["scales"].mean()) - np.log(unit))
    assert sizes[1] == pytest.approx(sizes[0], abs=0.05)


def train_on(two_balls, config=CONFIG, seed=0):
    photos, cameras, points, colors = two_balls
    engine = load_engine("cpu")
    return train(photos, cameras, points, colors, config, engine, seed, SilentReport())


def mean_psnr(gaussians, two_balls):
    engine = load_engine("cpu")
    with torch.no_grad():
        return np.mean(
            [
                psnr(engine.render(**gaussians, camera=camera).channels.numpy(), photo)
                for photo, camera in zip(two_balls[0], two_balls[1], strict=True)
            ]
        )


def test_the_joint_run_separates_two_balls_and_leaves_the_geometry_as_it_is(two_balls):
    photos, cameras, points, colors = two_balls
    label_maps = [
        np.where(photo.max(2) > 60, 1 + (photo[..., 1] > photo[..., 0]), 0) for photo in photos
    ]
    label_maps[::2] = [np.where(labels > 0, 3 - labels, 0) for labels in label_maps[::2]]
    label_maps[3] = None  # a photo without masks trains the geometry alone
    published = PublishedConfig(num_codes=8, pixels=512, feature_rate=0.02, codebook_rate=0.02)
    joint = Joint(label_maps, published, seed=0)
    engine = load_engine("cpu")
    scene = (photos, cameras, points, colors, CONFIG, engine, 0, SilentReport())
    trained = train(*scene, learner=joint)
    alone = train_on(two_balls)
    assert all(torch.equal(trained[name], alone[name]) for name in PARAMETERS)
    assert len(joint.features) == len(trained["means"])
    codes = nearest_codes(*joint.learned)
    balls = trained["means"][:, 0].numpy() > 0
    visible = trained["opacities"].sigmoid().numpy() > 0.5
    left, right = (np.bincount(codes[visible & side], minlength=8) for side in (~balls, balls))
    assert left.argmax() != right.argmax()
    assert left.max() > 0.9 * left.sum() and right.max() > 0.9 * right.sum()


def test_training_makes_the_splats_look_like_the_photos(two_balls):
    start = start_gaussians(two_balls[2], two_balls[3] / 255, CONFIG)
    assert mean_psnr(train_on(two_balls), two_balls) > mean_psnr(start, two_balls) + 5


class Stop(SilentReport):
    """Cancels at a step, and keeps the steps that it is told of."""

    def __init__(self, step=0):
        self.step, self.told = f"{step} of", []

    def progress(self, step, total, message=""):
        self.told.append((message, step / total))
        if message.startswith(self.step):
            raise Cancelled


GROWING = replace(CONFIG, densify_from=20, densify_every=10)


@pytest.mark.parametrize("dims", [(1.0, 1.0, 1.0), (0.3, 0.65, 1.0)])
@pytest.mark.parametrize("stop", [1, 40, 76])  # exposures are judged in between
def test_a_stopped_training_goes_on_as_if_it_never_stopped(two_balls, tmp_path, dims, stop):
    photos, cameras, points, colors = two_balls
    photos = [(photo * dims[i % 3]).astype(np.uint8) for i, photo in enumerate(photos)]
    running = (GROWING, load_engine("cpu"), 0)
    never = train(photos, cameras, points, colors, *running, SilentReport())
    stopped = Stopped(tmp_path, {"seed": 0}, 1e9, SilentReport())
    assert stopped.read() is None
    with pytest.raises(Cancelled), stopped:
        train(photos, cameras, points, colors, *running, Stop(stop), keep=stopped.keep)
    state = stopped.read()
    assert state["step"] == stop
    assert bool(state["exposures"]["rows"]) == (stop <= 40 or dims[0] < 1)
    report = Stop()
    nothing = (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))  # nobody looks at them
    again = train(photos, cameras, *nothing, *running, report, unfinished=state)
    assert all(torch.equal(never[name], again[name]) for name in PARAMETERS)
    assert report.told[0][0].startswith(f"{stop + 1} of") and report.told[0][1] < 0.1
    assert report.told[-1][1] == 1


def test_a_training_that_has_nothing_to_learn_any_more_stops_at_its_end(two_balls, tmp_path):
    running = (*two_balls, replace(GROWING, done_loss=10.0), load_engine("cpu"), 0)
    report = Stop()
    never = train(*running, report)
    assert len(report.told) < GROWING.iterations
    for stop in (len(report.told) - 2, len(report.told)):
        stopped = Stopped(tmp_path / str(stop), {}, 1e9, SilentReport())
        with pytest.raises(Cancelled), stopped:
            train(*running, Stop(stop), keep=stopped.keep)
        again = train(*running, SilentReport(), unfinished=stopped.read())
        assert all(torch.equal(never[name], again[name]) for name in PARAMETERS)


class Listening(SilentReport):
    """Keeps the warnings."""

    def __init__(self):
        self.told = []

    def warning(self, text):
        self.told.append(text)


@pytest.fixture
def five_steps(two_balls):
    photos, cameras, points, colors = two_balls
    scene = (photos, cameras, points, colors, replace(CONFIG, iterations=5))
    return partial(train, *scene, load_engine("cpu"), 0, SilentReport())


def test_a_state_is_written_when_it_is_due_and_trouble_is_told_once(five_steps, tmp_path):
    stopped = Stopped(tmp_path / "kept", {}, 0.0, SilentReport())
    five_steps(keep=stopped.keep)
    assert stopped.read()["step"] == 5
    (tmp_path / "file").touch()
    listening = Listening()
    five_steps(keep=Stopped(tmp_path / "file", {}, 0.0, listening).keep)
    (told,) = listening.told
    assert "cannot be kept" in told and str(tmp_path / "file") in told


def test_a_training_that_fails_leaves_no_state_to_fail_again(five_steps, tmp_path):
    stopped = Stopped(tmp_path, {}, 0.0, SilentReport())
    with pytest.raises(JobError), stopped:
        five_steps(keep=stopped.keep)
        assert stopped.read()
        raise JobError("Training diverged")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "bit", "text", "empty", "other", "folder"])
def test_a_state_that_cannot_be_used_is_told(five_steps, tmp_path, damage):
    listening = Listening()
    stopped = Stopped(tmp_path, {"seed": 0}, 0.0, listening)
    five_steps(keep=stopped.keep)
    (path,) = tmp_path.iterdir()
    whole, middle = path.read_bytes(), path.stat().st_size // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 64]) + whole[middle + 1 :]
    bad = {"cut": whole[:1000], "bit": flipped, "text": b"no training", "empty": b""}
    if damage == "other":
        stopped = Stopped(tmp_path, {"seed": 1}, 0.0, listening)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(bad[damage])
    assert stopped.read() is None
    (told,) = listening.told
    why = {"other": "It had another seed.", "folder": f"{path} is a folder"}
    assert why.get(damage, f"{path} is damaged") in told and "anew" in told
    assert damage == "folder" or not path.exists()


def test_what_a_kill_leaves_of_a_state_is_taken_away(tmp_path):
    (tmp_path / "training.pt.part").touch()
    Stopped(tmp_path, {}, 0.0, SilentReport()).remove()
    assert not list(tmp_path.iterdir())


def test_training_from_random_points_finds_the_balls(two_balls):
    photos, cameras, _, _ = two_balls
    nothing = (photos, cameras, np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))
    config = replace(CONFIG, iterations=300, random_points=400)
    assert mean_psnr(train_on(nothing, config), two_balls) > 22


def test_the_same_seed_gives_the_same_splats(two_balls):
    first, second = train_on(two_balls), train_on(two_balls)
    assert all(torch.equal(first[name], second[name]) for name in PARAMETERS)
    other = train_on(two_balls, seed=1)
    assert not torch.equal(first["sh0"][:50], other["sh0"][:50])


def test_densification_fills_the_budget_and_no_more(two_balls):
    config = replace(CONFIG, densify_from=20, densify_every=10)
    assert len(train_on(two_balls, config)["means"]) == config.max_gaussians


def test_relocated_copies_cover_as_much_as_the_original():
    opacity, scale = torch.tensor([0.8]), torch.ones(1, 3)
    new_opacity, new_scale = relocated(opacity, scale, torch.tensor([3]))
    assert 1 - (1 - new_opacity) ** 3 == pytest.approx(0.8, abs=1e-6)
    # The integral over a line through the centre of n stacked copies equals the original's.
    x = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    density = new_opacity.double() * torch.exp(-0.5 * (x / new_scale[0, 0]) ** 2)
    copies = 1 - (1 - density) ** 3
    original = 0.8 * torch.exp(-0.5 * x**2)
    assert torch.trapezoid(copies, x) == pytest.approx(
        float(torch.trapezoid(original, x)), rel=1e-3
    )


def test_one_copy_stays_as_it_is():
    opacity, scale = relocated(torch.tensor([0.3]), torch.full((1, 3), 2.0), torch.tensor([1]))
    assert opacity == pytest.approx(0.3)
    assert scale == pytest.approx(torch.full((1, 3), 2.0))


def test_random_points_lie_where_several_cameras_look(two_balls):
    photos, cameras, _, _ = two_balls
    points, colors = random_points(photos, cameras, 200, np.random.default_rng(0))
    seen = np.zeros(200, int)
    for camera in cameras:
        local = points @ camera.viewmat[:3, :3].numpy().T + camera.viewmat[:3, 3].numpy()
        image = local @ camera.K.numpy().T
        x, y = image[:, 0] / image[:, 2], image[:, 1] / image[:, 2]
        inside = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
        seen += (local[:, 2] > 0) & inside
    assert (seen >= 2).mean() > 0.9
    assert colors.min() >= 0 and colors.max() <= 1


def test_shrinking_keeps_the_geometry_of_the_pixels(two_balls):
    photos, cameras, _, _ = two_balls
    images, scaled = _shrink(photos, cameras, 4)
    assert images[0].shape == (9, 12, 3)
    assert images[0][0, 0] == pytest.approx(photos[0][:4, :4].mean((0, 1)), abs=0.51)
    point = torch.tensor([0.1, -0.2, 3.0])
    assert (scaled[0].K @ point)[:2] * 4 == pytest.approx((cameras[0].K @ point)[:2])


def test_resolution_grows_and_the_costs_follow(two_balls):
    config = replace(CONFIG, min_coarse_side=10)
    factors = [coarse_factor(config, two_balls[1], step) for step in (0, 60, 149)]
    assert factors == [4, 2, 1]
    costs = list(step_costs(config, two_balls[1], 100))
    assert len(costs) == config.iterations
    assert costs[1] < costs[-1]


def test_training_starts_from_the_points_of_the_capture():
    assert start_count(350, CONFIG) == 350
    assert start_count(9000, CONFIG) == CONFIG.max_gaussians
    few = CONFIG.min_points - 1
    assert start_count(few, replace(CONFIG, random_points=300)) == 300  # random ones instead


def test_extent_is_the_radius_of_the_cameras(two_balls):
    centres = [-c.viewmat[:3, :3].T @ c.viewmat[:3, 3] for c in two_balls[1]]
    assert all(float(centre.norm()) == pytest.approx(3, rel=1e-4) for centre in centres)
    assert 2.5 < scene_extent(two_balls[1]) < 4.5


def test_splats_and_parameters_are_the_same_thing(two_balls):
    start = start_gaussians(two_balls[2], two_balls[3] / 255, CONFIG)
    again = from_splats(to_splats(start))
    assert all(torch.equal(start[name], again[name]) for name in PARAMETERS)


def test_training_ends_early_where_nothing_is_left_to_learn(two_balls):
    photos, cameras, _, _ = two_balls
    flat = [np.full_like(photo, 90) for photo in photos]
    report = Stop()
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (400, 3)).astype(np.float32)
    colors = np.full((400, 3), 90, np.uint8)
    config = replace(CONFIG, iterations=3000)
    train(flat, cameras, points, colors, config, load_engine("cpu"), 0, report)
    steps = [share for _, share in report.told]
    assert len(steps) < 2500
    assert steps == sorted(steps) and steps[-1] == 1


def test_photos_that_are_exposed_differently_give_the_scene_its_own_colours():
    capture = read_capture(SAMPLE)
    views = [scaled_view(view, 80) for view in capture.views]
    photos = [load_photo(view) for view in views]
    factors = np.exp(np.random.default_rng(0).uniform(-0.35, 0.3, len(capture.train_views)))
    factors /= np.exp(np.log(factors).mean())
    trained_on = [i for i, view in enumerate(views) if view.split == "train"]
    uneven = [
        (photos[i] * factor).clip(0, 255).round().astype(np.uint8)
        for i, factor in zip(trained_on, factors, strict=True)
    ]
    cameras = [to_camera(view) for view in views]
    scene = (uneven, [cameras[i] for i in trained_on], capture.points, capture.point_colors)
    held_out = [i for i in range(len(views)) if i not in trained_on]
    even = ([photos[i] for i in held_out], [cameras[i] for i in held_out])
    config = replace(CONFIG, iterations=600, max_gaussians=2000)
    never = replace(config, min_exposure_difference=np.inf)
    corrected, plain = (mean_psnr(train_on(scene, choice), even) for choice in (config, never))
    assert corrected > plain + 0.4


def judged(shifts):
    """What is left of the corrections of photos taken side by side, for a middle grey."""
    cameras = [look_at_origin(angle) for angle in np.linspace(0, 1, len(shifts))]
    exposures = Exposures(cameras, CONFIG, torch.device("cpu"))
    with torch.no_grad():
        for row, shift in zip(exposures.rows, shifts, strict=True):
            row[1] += shift
    exposures.judge(CONFIG)
    grey = torch.full((1, 1, 3), 0.5)
    return [float(exposures.apply(grey, i).detach().mean()) - 0.5 for i in range(len(shifts))]


def test_only_exposures_that_neighbours_contradict_are_corrected():
    much = 2 * CONFIG.min_exposure_difference
    assert judged([0.01, -0.01] * 6) == [0] * 12
    assert judged(np.linspace(-much, much, 12)) == [0] * 12  # as a camera adapts on its way
    jumps = [much, much, -much] * 4
    assert judged(jumps) == pytest.approx(jumps, abs=1e-6)


def test_corrections_leave_the_scene_its_mean_colours(two_balls):
    exposures = Exposures(two_balls[1], CONFIG, torch.device("cpu"))
    grey = torch.full((2, 2, 3), 0.5, requires_grad=True)
    exposures.trial_loss(grey, torch.ones(2, 2, 3), 1).backward()
    assert grey.grad is None and exposures.apply(grey, 1) is grey  # they have no say yet
    exposures.step()
    assert exposures.rows[1].abs().min() > 0
    assert torch.stack(list(exposures.rows)).mean(0).abs().max() < 1e-7
