# SPDX-License-Identifier: GPL-3.0-or-later
"""Edges of objects: two halves of one grey board, and splats that reach over the line between."""

import numpy as np
import pytest
import torch

from unified_lift.config import PRESETS, GeometryConfig, LiftConfig
from unified_lift.edges import border_targets, sharpen_edges, sharpening_seconds, vote_anew
from unified_lift.exposures import Exposures
from unified_lift.gaussians import GEOMETRY
from unified_lift.geometry import training_seconds
from unified_lift.lift.labels import label_map
from unified_lift.metrics import psnr
from unified_lift.protocol import Cancelled, SilentReport
from unified_lift.rendering import Camera, load_engine

WIDTH, HEIGHT, FOCAL, DISTANCE = 64, 48, 60.0, 3.0
LIFT = LiftConfig()
CONFIG = GeometryConfig(iterations=5000, max_gaussians=1000)
ENGINE = load_engine("cpu")


def camera(x):
    """A camera over the board that looks straight down."""
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.diag(torch.tensor([1.0, -1, -1]))
    viewmat[:3, 3] = torch.tensor([-x, 0, DISTANCE])
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    return Camera(viewmat, K, WIDTH, HEIGHT)


CAMERAS = [camera(x) for x in np.linspace(-0.3, 0.3, 8)]


@pytest.fixture(scope="module")
def board():
    """Gaussians, their object, and photos; those of the left at the line reach to the right."""
    tiles = [(x, y) for x in np.arange(-1.95, 2, 0.1) for y in np.arange(-1.45, 1.5, 0.1)]
    means = torch.tensor([[x, y, 0] for x, y in tiles], dtype=torch.float32)
    reaching = (means[:, 0] + 0.05).abs() < 0.01
    scales = torch.tensor([[0.05, 0.05, 0.005]]).repeat(len(means), 1)
    scales[reaching, 0] = 0.12
    means[reaching, 2] = 0.02
    gaussians = {
        "means": means,
        "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(len(means), 1),
        "scales": scales.log(),
        "opacities": torch.full((len(means),), 3.0),
        "sh0": torch.full((len(means), 1, 3), 0.3),
        "shN": torch.zeros(len(means), 0, 3),
    }
    with torch.no_grad():
        images = [ENGINE.render(**gaussians, camera=view).channels for view in CAMERAS]
    photos = [(image.clamp(0, 1) * 255).round().byte().numpy() for image in images]
    return gaussians, (means[:, 0] > 0).long().numpy(), photos


def true_masks(shift=0, names=(7, 3)):
    """Label maps: what lies left of the line, some pixels beside it, and what lies right."""
    masks = []
    for view in CAMERAS:
        line = round(float(WIDTH / 2 + FOCAL * view.viewmat[0, 3] / DISTANCE)) + shift
        masks.append(np.where(np.arange(WIDTH) < line, *names) * np.ones((HEIGHT, 1), int))
    return masks


def weights_of(gaussians):
    return [ENGINE.blend_weights(*(gaussians[name] for name in GEOMETRY), c) for c in CAMERAS]


def sharpened(board, targets, report=None):
    gaussians, ids, photos = board
    scene = (gaussians, ids, photos, CAMERAS, targets, CAMERAS)
    return sharpen_edges(*scene, CONFIG, ENGINE, 0, report or SilentReport())


def wrong_pixels(gaussians, ids):
    """Share of pixels that the photos' views show of the other half."""
    shown = [label_map(blend, ids + 1) for blend in weights_of(gaussians)]
    return np.mean([s != t for s, t in zip(shown, true_masks(names=(1, 2)), strict=True)])


def test_splats_that_reach_over_the_line_draw_back_and_the_board_looks_the_same(board):
    gaussians, ids, photos = board
    before = {name: value.clone() for name, value in gaussians.items()}
    targets = border_targets(weights_of(gaussians), true_masks(), ids, LIFT)
    result = sharpened(board, targets)
    assert wrong_pixels(result, ids) < 0.3 * wrong_pixels(gaussians, ids)
    with torch.no_grad():
        image = ENGINE.render(**result, camera=CAMERAS[3]).channels.numpy()
    assert psnr(image, photos[3]) > 35
    assert all(torch.equal(gaussians[name], before[name]) for name in before)
    again = sharpened(board, targets)
    assert all(torch.equal(result[name], again[name]) for name in result)


def test_without_a_target_the_splats_only_go_on_to_look_like_the_photos(board):
    gaussians, ids, _ = board
    nothing = [np.zeros((HEIGHT, WIDTH), np.int32)] * len(CAMERAS)
    result = sharpened(board, nothing)
    assert wrong_pixels(result, ids) == pytest.approx(wrong_pixels(gaussians, ids), abs=0.005)


def test_a_mask_moves_a_border_by_some_pixels_and_no_farther(board):
    gaussians, ids, _ = board
    weights = weights_of(gaussians)
    near = border_targets(weights, true_masks(names=(70_000, 5)), ids, LIFT)
    assert all(map(np.array_equal, near, true_masks(names=(1, 2)))), "whatever the masks' names"
    spoilt = true_masks()
    line = int((spoilt[0][0] == 7).sum())
    spoilt[0][10:20, line - 8 : line - 6] = 3  # a piece of the right half's mask, too far left
    spoilt[0][25:30, line - 1 : line] = 3
    targets = border_targets(weights, spoilt, ids, LIFT)
    assert (targets[0][10:20, line - 8 : line - 6] == 0).all()
    assert (targets[0][25:30, line - 1 : line] == 2).all()


def test_a_border_stays_where_no_mask_speaks_for_one_of_its_sides(board):
    gaussians, ids, _ = board
    weights = weights_of(gaussians)
    shown = [label_map(blend, ids + 1) for blend in weights]
    wide, silent = true_masks(shift=2), true_masks(shift=2, names=(7, 0))
    silent[1], silent[2][:] = None, 0
    targets = border_targets(weights, wide, ids, LIFT)
    assert all(map(np.array_equal, targets, true_masks(shift=2, names=(1, 2))))
    targets = border_targets(weights, silent, ids, LIFT)
    left = np.where(shown[0] == 1, 1, 0)
    assert np.array_equal(targets[0], np.where(silent[0] == 7, left, 0))
    assert not targets[1].any() and not targets[2].any()


def test_masks_that_end_anywhere_say_nothing_of_edges(board):
    gaussians, ids, _ = board
    weights = weights_of(gaussians)
    loose = [true_masks(shift)[view] for view, shift in enumerate([10, -10] * 4)]
    assert border_targets(weights, loose, ids, LIFT) is None
    assert border_targets(weights, [None] * 8, ids, LIFT) is None
    assert border_targets(weights, true_masks(), np.full_like(ids, -1), LIFT) is None


def test_splats_that_moved_over_the_line_change_hands(board):
    gaussians, ids, _ = board
    x = gaussians["means"][:, 0].numpy()
    moved, far = np.abs(x + 0.05) < 0.01, np.abs(x) > 0.2
    means = gaussians["means"] + torch.from_numpy(moved)[:, None] * torch.tensor([0.12, 0, 0.01])
    incidence, voted = vote_anew(weights_of({**gaussians, "means": means}), true_masks(), ids, LIFT)
    seen = incidence.mass_of_gaussian > 0
    assert (moved & seen).any() and (ids[moved] == 0).all() and (voted[moved & seen] == 1).all()
    assert np.array_equal(voted[far & seen], ids[far & seen])


def test_a_photo_in_another_light_pulls_no_colour(board):
    gaussians, ids, photos = board
    factors = [0.6, 1.5] * 4
    lit = [(p * f).clip(0, 255).astype(np.uint8) for p, f in zip(photos, factors, strict=True)]
    targets = border_targets(weights_of(gaussians), true_masks(), ids, LIFT)
    result = sharpened((gaussians, ids, lit), targets)
    assert wrong_pixels(result, ids) < 0.3 * wrong_pixels(gaussians, ids)
    assert float((result["sh0"] - gaussians["sh0"]).abs().mean()) < 0.015


def test_the_exposure_of_a_photo_is_found_at_once():
    exposures = Exposures(CAMERAS, CONFIG, torch.device("cpu"))
    image = torch.rand(12, 16, 3, generator=torch.Generator().manual_seed(0))
    gain, bias = torch.tensor([0.8, 1.0, 1.3]), torch.tensor([0.1, 0.0, -0.05])
    exposures.fit(image, image * gain + bias, 2)
    found_gain, found_bias = exposures.rows[2].detach()
    assert torch.allclose(found_gain.exp(), gain, atol=2e-3)
    assert torch.allclose(found_bias, bias, atol=2e-3)
    exposures.fit(torch.full((4, 4, 3), 0.5), torch.full((4, 4, 3), 0.4), 3)
    assert torch.allclose(exposures.rows[3].detach(), torch.tensor([[0.0], [-0.1]]).expand(2, 3))


def test_sharpening_can_be_cancelled_and_tells_its_way(board):
    steps = []

    class Stop(SilentReport):
        def progress(self, step, total, message=""):
            steps.append((step, total))
            if step == 5:
                raise Cancelled

    targets = border_targets(weights_of(board[0]), true_masks(), board[1], LIFT)
    with pytest.raises(Cancelled):
        sharpened(board, targets, Stop())
    assert steps == [(step, 400) for step in range(1, 6)]


def test_its_time_is_a_small_part_of_the_training():
    for name, config in PRESETS.items():
        share = sharpening_seconds(config, CAMERAS) / training_seconds(config, CAMERAS, 3000)
        assert 0.1 < share < 0.4, name
