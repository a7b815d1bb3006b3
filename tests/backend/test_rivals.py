# SPDX-License-Identifier: GPL-3.0-or-later
"""The rivals: their losses against obvious versions, clustering, and each on a small scene."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import made_up_views

from unified_lift.benchmark import rivals
from unified_lift.benchmark.frozen import Frozen
from unified_lift.benchmark.rivals import (
    assignment_loss,
    cluster,
    pair_loss,
    slow_fast_loss,
)
from unified_lift.config import Budget, LiftConfig, RivalConfig
from unified_lift.protocol import JobError, SilentReport

METHODS = ["panoptic_lifting", "contrastive_lift", "saga", "omniseg3d"]


def sample(num=30, num_masks=3, dim=4, seed=0):
    """Random features, float64, and the mask of each."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return features.requires_grad_(), (torch.arange(num) ** 2 % 7) % num_masks


def same_gradient(fast, slow, features):
    gradients = [torch.autograd.grad(x, features, retain_graph=True)[0] for x in (fast, slow)]
    return torch.allclose(*gradients)


# ---- losses, slowly


def test_slow_fast_loss_is_the_sum_over_pairs_and_masks():
    fast, masks = sample()
    slow, slow_masks = sample(seed=1)
    slow, slow_masks = slow.detach(), slow_masks.clone()
    slow_masks[slow_masks == 2] = 1  # a mask that has no slow pixel
    met = [u for u in range(30) if masks[u] != 2]
    contrast = 0
    for u in met:
        kernel = [torch.exp(-(fast[u] - other).norm()) for other in slow]
        own = [kernel[v] for v in range(30) if slow_masks[v] == masks[u]]
        parts = [sum(torch.exp(value) for value in values) for values in (own, kernel)]
        contrast = contrast - torch.log(parts[0] / parts[1]) / len(met)
    concentration = 0
    for m in (0, 1):
        mean = slow[slow_masks == m].mean(0)
        rows = [u for u in met if masks[u] == m]
        for u in rows:
            closeness = torch.exp(-((fast[u] - mean) ** 2).sum())
            concentration = concentration - closeness / len(rows) / 2
    loss = slow_fast_loss(fast, masks, slow, slow_masks)
    assert float(loss.detach()) == pytest.approx(float((contrast + concentration).detach()))
    assert same_gradient(loss, contrast + concentration, fast)


def test_slow_fast_loss_without_a_common_mask_is_nothing():
    fast, masks = sample()
    slow_fast_loss(fast, masks, fast.detach(), masks + 10).backward()
    assert not fast.grad.any()


def test_pair_loss_is_the_mean_over_pairs_of_each_kind():
    features, masks = sample()
    rendered = 0.3 * features
    same, other = [], []
    for u in range(30):
        for v in range(30):
            a, b = rendered[u] / rendered[u].norm(), rendered[v] / rendered[v].norm()
            (same if masks[u] == masks[v] else other).append(torch.clamp(a @ b, min=0))
    lengths = sum(1 - row.norm() for row in rendered) / 30
    slow = sum(other) / len(other) - sum(same) / len(same) + 0.7 * lengths
    loss = pair_loss(rendered, masks, 0.7)
    assert float(loss.detach()) == pytest.approx(float(slow.detach()))
    assert same_gradient(loss, slow, features)


def test_assignment_loss_follows_mean_probabilities_not_area():
    large, small = [[1.0, 0.0]] * 9, [[3.0, 0.0]]  # both like the first id, the small one more
    logits, masks = torch.tensor(large + small), torch.tensor([0] * 9 + [1])
    errors = [math.log(math.exp(1) + 1)] * 9 + [math.log(math.exp(3) + 1) - 3]
    assert float(assignment_loss(logits, masks)) == pytest.approx(sum(errors) / 10)


def test_losses_of_no_pixels_are_nothing():
    none, masks = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    assert assignment_loss(none, masks) == 0
    assert slow_fast_loss(none, masks, none.detach(), masks) == 0
    assert pair_loss(none, masks, 1.0) == 0


# ---- views made up of random weights

NUM, SIDE = 90, 16
CONFIG = RivalConfig(cluster_pixels=600, min_cluster_size=60)


def run(method, label_maps=None, steps=300, seed=0, config=CONFIG):
    _, views, maps = made_up_views(NUM, SIDE)
    budget = Budget(steps=steps, pixels=200)
    frozen = Frozen(views, label_maps or maps, LiftConfig())
    return getattr(rivals, method)(frozen, budget, seed, SilentReport(), config).object_ids


# ---- clustering


def same_partition(a, b):
    pairs = {*zip(a.tolist(), b.tolist(), strict=True)}
    return len(pairs) == len({*a.tolist()}) == len({*b.tolist()})


def blobs(objects):
    noise = torch.randn(NUM, 4, generator=torch.Generator().manual_seed(0))
    return torch.eye(4)[torch.from_numpy(objects)] + 0.1 * noise


@pytest.mark.parametrize("directions", [True, False])
def test_clusters_of_pixels_become_objects_of_gaussians(directions):
    objects, views, label_maps = made_up_views(NUM, SIDE)
    features = blobs(objects)
    features[0] = torch.eye(4)[3]  # odd by itself, but its pixels look like their object
    ids = cluster(features, views, label_maps, CONFIG, directions=directions)
    assert ids.dtype == np.int64
    assert same_partition(ids, objects)


def test_a_gaussian_that_no_pixel_shows_has_no_object():
    objects, views, label_maps = made_up_views(NUM, SIDE)
    views = [replace(view, num_gaussians=NUM + 1) for view in views]
    ids = cluster(torch.cat([blobs(objects), torch.zeros(1, 4)]), views, label_maps, CONFIG)
    assert ids[NUM] == -1
    assert same_partition(ids[:NUM], objects)


def test_without_two_clusters_all_is_one_object():
    _, views, label_maps = made_up_views(NUM, SIDE)
    alike = torch.ones(NUM, 4)
    assert not cluster(alike, views, label_maps, CONFIG).any()
    few = replace(CONFIG, cluster_pixels=6)
    assert not cluster(alike, views, label_maps, few).any()


def test_features_that_are_not_numbers_are_refused():
    objects, views, label_maps = made_up_views(NUM, SIDE)
    features = blobs(objects)
    features[7, 1] = torch.nan
    with pytest.raises(JobError, match="not a finite number"):
        cluster(features, views, label_maps, CONFIG)


# ---- the methods


@pytest.mark.parametrize("method", METHODS)
def test_a_method_finds_the_objects_although_ids_differ_by_view(method):
    ids = run(method)
    assert ids.shape == (NUM,)
    assert ids.dtype == np.int64
    assert same_partition(ids, made_up_views(NUM, SIDE)[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_repeats(method):
    assert np.array_equal(run(method, steps=20), run(method, steps=20))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gets_by_with_one_labelled_view_and_one_mask(method):
    _, _, label_maps = made_up_views(NUM, SIDE)
    single = np.zeros_like(label_maps[1])
    single[0, 0] = 1  # most steps draw no pixel of it
    everything = np.ones_like(single)
    for labels in (single, everything):
        ids = run(method, [None, labels, *[0 * single] * 4], steps=10)
        assert ids.shape == (NUM,)
        assert ids.min() >= 0


@pytest.mark.parametrize("method", METHODS)
def test_a_method_refuses_a_scene_without_masks(method):
    _, _, label_maps = made_up_views(NUM, SIDE)
    with pytest.raises(JobError, match="No view has a mask"):
        run(method, [None, *[0 * label_maps[0]] * 5])


def test_pairs_are_compared_on_fewer_pixels():
    ids = run("saga", config=replace(CONFIG, pair_pixels=64))
    assert same_partition(ids, made_up_views(NUM, SIDE)[0])
