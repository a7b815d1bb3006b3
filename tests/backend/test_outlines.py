# SPDX-License-Identifier: GPL-3.0-or-later
"""Things without what floor and walls hide of them: a ball on a floor, and its feet below."""

import numpy as np
import pytest
import torch

from unified_lift.config import LiftConfig
from unified_lift.gaussians import GEOMETRY
from unified_lift.lift.incidence import mask_incidence
from unified_lift.lift.objects import SeenSplats, describe, settle
from unified_lift.lift.outlines import shown_alone, within_outlines
from unified_lift.protocol import Cancelled
from unified_lift.rendering import Camera, load_engine
from unified_lift.rendering.weights import BlendWeights

CONFIG = LiftConfig()
WIDTH, HEIGHT = 48, 36
BALL, BESIDE, BELOW_BALL, BELOW_FLOOR = range(4)  # Gaussians; those of the floor follow
THING, FLOOR = 0, 1


def camera(x, above=True, distance=3.0):
    """A camera over the floor that looks straight down, or one below it that looks up."""
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.diag(torch.tensor([1.0, -1, -1] if above else [1.0, 1, 1]))
    viewmat[:3, 3] = torch.tensor([-x, 0, distance])
    K = torch.tensor([[40.0, 0, WIDTH / 2], [0, 40, HEIGHT / 2], [0, 0, 1]])
    return Camera(viewmat, K, WIDTH, HEIGHT)


def gaussians():
    tiles = [[x, y, 0] for x in np.arange(-2, 2.01, 0.1) for y in np.arange(-2, 2.01, 0.1)]
    means = [[0, 0, 0.3], [-0.6, 0, 0.3], [0, 0, -0.1], [0.6, 0, -0.1], *tiles]
    scales = [[0.15] * 3] * 2 + [[0.05] * 3] * 2 + [[0.1, 0.1, 0.01]] * len(tiles)
    return {
        "means": torch.tensor(means, dtype=torch.float32),
        "quats": torch.tensor([[1.0, 0, 0, 0]] * len(means)),
        "scales": torch.tensor(scales).log(),
        "opacities": torch.full((len(means),), 6.0),
    }


IDS = np.array([THING] * 4 + [FLOOR] * (len(gaussians()["means"]) - 4))
SURFACES = np.array([False, True])


def views(cameras):
    """Blend weights of cameras, and what shows some of the Gaussians alone."""
    engine, splats = load_engine("cpu"), gaussians()
    weights = [engine.blend_weights(*(splats[name] for name in GEOMETRY), c) for c in cameras]
    return weights, shown_alone(engine, splats, cameras)


ABOVE = [camera(x) for x in (-0.1, 0, 0.1)]


def test_what_only_the_floor_hides_goes_to_the_floor():
    settled, _ = within_outlines(*views(ABOVE), IDS, SURFACES, CONFIG)
    assert settled[BELOW_FLOOR] == FLOOR
    assert np.delete(settled, BELOW_FLOOR).tolist() == np.delete(IDS, BELOW_FLOOR).tolist()


@pytest.mark.parametrize(("others", "expected"), [(20, THING), (30, FLOOR)])
def test_what_one_of_25_views_shows_stays_with_its_thing(others, expected):
    above = [camera(x) for x in np.linspace(-0.1, 0.1, others)]
    settled, _ = within_outlines(*views([*above, camera(0, above=False)]), IDS, SURFACES, CONFIG)
    assert settled[BELOW_FLOOR] == expected
    assert np.delete(settled, BELOW_FLOOR).tolist() == np.delete(IDS, BELOW_FLOOR).tolist()


@pytest.mark.parametrize("distance", [0.5, 1, 3])
def test_a_camera_close_to_the_other_side_of_the_floor_takes_nothing(distance):
    cameras = [camera(0, distance=8.0), camera(0, above=False, distance=distance)]
    settled, _ = within_outlines(*views(cameras), IDS, SURFACES, CONFIG)
    assert settled[[BALL, BESIDE]].tolist() == [THING] * 2


def test_what_hides_behind_splats_of_no_object_goes_to_none():
    ids = np.where(IDS == FLOOR, -1, IDS)
    settled, _ = within_outlines(*views(ABOVE), ids, np.array([False]), CONFIG)
    assert settled[BELOW_FLOOR] == -1
    assert settled[[BALL, BESIDE, BELOW_BALL]].tolist() == [THING] * 3


def test_what_another_thing_hides_stays():
    ids = IDS.copy()
    ids[[BESIDE, BELOW_BALL]] = FLOOR + 1
    kinds = np.append(SURFACES, False)
    assert within_outlines(*views(ABOVE), ids, kinds, CONFIG)[0][BELOW_BALL] == FLOOR + 1


def ghost_scene(shown_there):
    """Blend weights, and `alone`, of a thing, a floor and what hides below it."""

    def blend(num, *pixels):  # Gaussian and weight of a pixel that shows the thing, then the floor
        entries = np.array(pixels)[:, 1] * 65535
        ids = np.array(pixels)[:, 0].astype(np.int32)
        return BlendWeights(np.array([0, 1, 2]), ids, entries.astype(np.uint16), 2, 1, num)

    def alone(rows, view):
        is_thing = rows.tolist() == [0, 2]
        there = [(0, 0.9), (1, 0.3)] if is_thing else [(1, shown_there), (0, 0.9)]
        return blend(2, *there)

    return [blend(3, (0, 0.9), (1, 0.9))], alone  # nothing of the third


GHOST_IDS = np.array([THING, FLOOR, THING])


@pytest.mark.parametrize(("shown_there", "expected"), [(0.5, FLOOR), (0.7, THING)])
def test_it_stays_with_its_thing_if_the_surface_would_keep_a_ghost_of_it(shown_there, expected):
    scene = ghost_scene(shown_there)
    settled, ghosts = within_outlines(*scene, GHOST_IDS, SURFACES, CONFIG)
    assert settled.tolist() == [0, 1, expected]
    assert ghosts.tolist() == [False, False, expected == THING]


@pytest.mark.parametrize("may_drop", [True, False])
def test_a_ghost_is_left_out_of_splats_that_may_change(may_drop):
    weights, alone = ghost_scene(0.7)
    incidence = mask_incidence(weights, [np.array([[1, 2]])])
    splats = SeenSplats(np.zeros((3, 3), np.float32), np.array([0, 1, 0]), weights, alone)
    settled, kept = settle(incidence, GHOST_IDS, splats, CONFIG, may_drop=may_drop)
    assert kept.tolist() == [True, True, not may_drop]
    assert settled.tolist() == [THING, FLOOR, -1 if may_drop else THING]


@pytest.mark.parametrize("ids", [np.full(len(IDS), -1), np.full(len(IDS), FLOOR)])
def test_without_things_nothing_changes(ids):
    settled, ghosts = within_outlines(*views(ABOVE), ids, SURFACES, CONFIG)
    assert settled.tolist() == ids.tolist() and not ghosts.any()


def test_the_rest_is_looked_at_only_if_anything_is_hidden():
    weights, alone = views(ABOVE)
    looked = []

    def counted(rows, view):
        looked.append((view, len(rows)))
        return alone(rows, view)

    things, rest = 4, len(IDS) - 4
    settled, _ = within_outlines(weights, counted, IDS, SURFACES, CONFIG)
    assert settled[BELOW_FLOOR] == FLOOR
    assert looked == [(view, num) for num in (things, rest + 1) for view in range(3)]
    looked.clear()
    within_outlines(weights, counted, settled, SURFACES, CONFIG)
    assert len(looked) == 3


@pytest.mark.parametrize("at", [1, 3])
def test_it_tells_of_each_view_and_stops_when_cancelled(at):
    told, looked = [], []
    weights, alone = views(ABOVE)

    def progress(step, total):
        told.append((step, total))
        if step == at:
            raise Cancelled

    def counted(rows, view):
        looked.append(view)
        return alone(rows, view)

    with pytest.raises(Cancelled):
        within_outlines(weights, counted, IDS, SURFACES, CONFIG, progress)
    assert told == [(step, 6) for step in range(at + 1)]
    assert len(looked) == at


def test_a_thing_of_nothing_but_hidden_splats_is_no_object():
    weights, alone = views(ABOVE)
    ids = IDS.copy()
    ids[BELOW_FLOOR] = FLOOR + 1  # 0 and 1 are the ball and the floor
    labels = [np.ones((HEIGHT, WIDTH), int)] * len(weights)
    on_plane = np.array([0] * 4 + [1] * (len(IDS) - 4))
    splats = SeenSplats(gaussians()["means"].numpy(), on_plane, weights, alone)
    incidence = mask_incidence(weights, labels)
    settled, kept = settle(incidence, ids, splats, CONFIG)
    assert kept.all() and settled[BELOW_FLOOR] == FLOOR
    assert set(settled.tolist()) == {THING, FLOOR}
    records, final, _ = describe(incidence, settled, splats, CONFIG)
    assert [record.name for record in records] == ["Object 001", "Surface 001"]
    assert final[BELOW_FLOOR] == 2
