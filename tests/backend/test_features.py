# SPDX-License-Identifier: GPL-3.0-or-later
"""Features and codebook: each loss and each step of the association against an obvious version."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from unified_lift.config import FeatureConfig, LiftConfig
from unified_lift.lift.association import (
    associate,
    fit_codebook,
    follow,
    join_fragments,
    mask_scores,
    repelled_codes,
)
from unified_lift.lift.features import count_codes, nearest_codes, train_features
from unified_lift.lift.incidence import mask_incidence
from unified_lift.lift.losses import codebook_loss, contrastive_loss, purity_loss, reliability
from unified_lift.protocol import Cancelled, SilentReport
from unified_lift.rendering.weights import BlendWeights


def sample(num=40, num_masks=4, dim=6, seed=0):
    """Random unit features and the mask of each, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = normalize(torch.randn(num, dim, generator=generator, dtype=torch.float64), dim=1)
    return x, torch.arange(num) % num_masks


def test_contrast_is_the_sum_over_pixels_and_masks():
    x, masks = sample()
    masks[masks == 3] = 0  # three masks of different size
    masks[:2] = 3  # a mask of two pixels is too small
    means = [normalize(x[masks == m].sum(0), dim=0) for m in range(4)]
    total = weight = 0.0
    for u in range(len(x)):
        size = int((masks == masks[u]).sum())
        if size < 3:
            continue
        scores = [float(x[u] @ means[m]) / 0.15 for m in range(3)]
        others = x[(masks == masks[u]) & (torch.arange(len(x)) != u)].sum(0)
        scores[masks[u]] = float(x[u] @ normalize(others, dim=0)) / 0.15
        error = math.log(sum(math.exp(s) for s in scores)) - scores[masks[u]]
        total += error / math.sqrt(size)
        weight += 1 / math.sqrt(size)
    assert float(contrastive_loss(x, masks, 4, 0.15, 3)) == pytest.approx(total / weight)


def test_contrast_without_a_mask_of_enough_pixels_has_no_gradient():
    x, masks = sample(num=4)
    x.requires_grad_()
    contrastive_loss(x, masks, 4, 0.15, 8).backward()
    assert not x.grad.any()


def test_contrast_pulls_a_mask_together_and_apart_from_the_others():
    x, masks = sample()
    x.requires_grad_()
    optimizer = torch.optim.SGD([x], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        contrastive_loss(normalize(x, dim=1), masks, 4, 0.15, 2).backward()
        optimizer.step()
    cosines = normalize(x.detach(), dim=1) @ normalize(x.detach(), dim=1).T
    same = masks[:, None] == masks
    assert cosines[same].min() > cosines[~same].max()


def test_gradients_are_those_of_finite_differences():
    x, masks = sample(num=12, dim=3)
    codes, weights = masks % 2, torch.linspace(0.2, 1, 12, dtype=torch.float64)
    codebook = normalize(torch.eye(2, 3, dtype=torch.float64) + 0.1, dim=1)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: contrastive_loss(v, masks, 4, 0.5, 2), x)
    # The focal factor is held fixed: compare with the plain cross-entropy weighted by it.
    loss = codebook_loss(x, codebook, codes, weights, 4.0)
    logs = (4.0 * x @ codebook.T).log_softmax(1)[torch.arange(12), codes]
    plain = -(weights * (1 - logs.exp().detach()) * logs).sum() / 12
    assert float(loss.detach()) == pytest.approx(float(plain.detach()))
    assert torch.allclose(*(torch.autograd.grad(v, x)[0] for v in (loss, plain)))


def test_a_pixel_that_looks_like_another_mask_is_not_trusted():
    x = torch.eye(3)[[0, 0, 0, 0, 1, 1, 1, 1, 1]]
    masks = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])  # pixel 4 belongs to the second
    trust = reliability(x, masks, 2, 0.1, 0.2, 0.8)
    assert trust[4] == 0
    assert (trust[[0, 1, 2, 3, 5, 6, 7, 8]] == 1).all()


def test_trust_rises_between_the_thresholds():
    x, masks = sample()
    means = torch.stack([normalize(x[masks == m].sum(0), dim=0) for m in range(4)])
    expected = []
    for u in range(len(x)):
        parts = torch.exp(x[u] @ means.T / 0.5)
        expected.append(min(1, max(0, (float(parts[masks[u]] / parts.sum()) - 0.2) / 0.3)))
    assert reliability(x, masks, 4, 0.5, 0.2, 0.5).tolist() == pytest.approx(expected)


def test_purity_is_the_variance_along_the_ray():
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(5, 4, generator=generator), dim=1)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])
    mean = weights @ features
    variance = float((weights * ((features - mean) ** 2).sum(1)).sum())
    assert float(purity_loss(mean.norm()[None])) == pytest.approx(variance, abs=1e-6)


def test_mask_scores_sum_over_the_area():
    x, masks = sample()
    codebook = normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    weights = torch.rand(len(x), generator=torch.Generator().manual_seed(2)).double()
    expected = torch.zeros(4, 5, dtype=torch.float64)
    for u in range(len(x)):
        expected[masks[u]] += weights[u] * torch.softmax(3 * codebook.double() @ x[u], 0)
    scores = mask_scores(x, codebook.double(), masks, weights, 4, 3.0)
    assert torch.allclose(scores, expected)
    twice = mask_scores(x.repeat(2, 1), codebook.double(), masks.repeat(2), weights.repeat(2), 4, 3)
    assert torch.allclose(twice, 2 * expected)


def test_association_is_the_best_of_all_permutations():
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(4)
    best = max(
        itertools.permutations(range(6), 4), key=lambda p: float(scores[rows, list(p)].sum())
    )
    assert associate(scores).tolist() == list(best)


def test_a_large_mask_chooses_its_code_first():
    assert associate(torch.tensor([[3.0, 1.0], [90.0, 10.0]])).tolist() == [1, 0]


def test_masks_beyond_the_codes_take_their_best():
    assert associate(torch.tensor([[5.0, 0.0], [0.0, 5.0], [1.0, 2.0]])).tolist() == [0, 1, 1]


def test_a_fragment_that_looks_alike_shares_the_code():
    scores = torch.tensor([[9.0, 1.0, 0.0], [2.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
    means = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)
    codes = join_fragments(torch.tensor([0, 1, 2]), scores, means, 0.9)
    assert codes.tolist() == [0, 0, 2]  # the third wants code 0 too, but looks different


def test_codes_settle_at_the_weighted_mean_of_their_features():
    x, masks = sample()
    weights = torch.linspace(0.1, 1, len(x), dtype=torch.float64)
    sums = torch.zeros(5, 6, dtype=torch.float64)
    for _ in range(400):
        sums = follow(sums, x, masks, weights, 0.05)
    expected = torch.stack([(weights[:, None] * x)[masks == m].sum(0) for m in range(4)])
    assert torch.allclose(sums[:4], expected)
    assert not sums[4].any()


def test_codes_start_apart():
    codes = repelled_codes(24, 16, torch.Generator().manual_seed(0), 200, 0.05, 10.0)
    cosines = codes @ codes.T - 2 * torch.eye(24)
    assert float(cosines.max()) < 0.3
    assert torch.allclose(codes.norm(dim=1), torch.ones(24))


def test_a_fitted_codebook_has_a_code_for_each_bundle_of_features():
    centers = repelled_codes(6, 16, torch.Generator().manual_seed(0), 200, 0.05, 10.0)
    bundles = centers.repeat_interleave(50, 0)
    features = normalize(bundles + 0.05 * torch.randn(bundles.shape), dim=1)
    mass = np.where(np.arange(300) < 250, 1e-3, 1e6)  # one bundle outweighs all others
    config = FeatureConfig(fit_count=2000, fit_mass=1e-3)
    codebook = fit_codebook(features, mass, 12, config, np.random.default_rng(0))
    assert codebook.shape == (12, 16)
    assert float((centers @ codebook.T).max(1)[0].min()) > 0.95
    assert torch.allclose(codebook.norm(dim=1), torch.ones(12), atol=1e-5)


def test_a_fitted_codebook_has_no_more_codes_than_there_are_features():
    features = torch.eye(16)[[0, 1, 1]]
    codebook = fit_codebook(features, np.ones(3), 8, FeatureConfig(), np.random.default_rng(0))
    assert sorted(codebook.argmax(1).tolist()) == [0, 1]


# ---- the training, on views made up of random weights

NUM_OBJECTS, EACH, VIEWS, SIDE = 5, 30, 8, 24


def made_up_views(seed=0):
    """Views of five objects, each pixel a blend of three Gaussians of one; ids differ by view."""
    rng = np.random.default_rng(seed)
    weights, label_maps = [], []
    for _ in range(VIEWS):
        objects = np.repeat(rng.integers(NUM_OBJECTS, size=SIDE * SIDE // 16), 16)
        ids = objects[:, None] * EACH + rng.integers(EACH, size=(len(objects), 3))
        shares = np.full(ids.size, 65535 // 3, np.uint16)
        indptr = np.arange(0, ids.size + 1, 3)
        num = NUM_OBJECTS * EACH
        weights.append(BlendWeights(indptr, ids.ravel().astype(np.int32), shares, SIDE, SIDE, num))
        names = rng.permutation(NUM_OBJECTS) + 1
        label_maps.append(names[objects].reshape(SIDE, SIDE).astype(np.int32))
    label_maps[0][:4] = 0
    return weights, label_maps


SMALL = replace(FeatureConfig(), steps=120, pixels=256)


def learn(seed=0, report=None, label_maps=None):
    weights, maps = made_up_views()
    maps = label_maps or maps
    return train_features(
        weights, maps, NUM_OBJECTS * EACH, 8, SMALL, seed, report or SilentReport()
    )


def test_features_find_the_objects_although_ids_differ_by_view():
    features, codebook = learn()
    assert features.shape == (NUM_OBJECTS * EACH, 16)
    assert torch.allclose(features.norm(dim=1), torch.ones(len(features)), atol=1e-5)
    ids = nearest_codes(features, codebook).reshape(NUM_OBJECTS, EACH)
    main = [np.bincount(row).argmax() for row in ids]
    assert len(set(main)) == NUM_OBJECTS
    assert (ids == np.array(main)[:, None]).mean() > 0.97


def test_a_seed_repeats_to_the_last_bit():
    first, second, other = learn(seed=3), learn(seed=3), learn(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


def test_views_without_masks_are_passed_over():
    maps = made_up_views()[1]
    maps[2], maps[5] = None, np.zeros((SIDE, SIDE), np.int32)
    features, _ = learn(label_maps=maps)
    assert bool(features.isfinite().all())


def test_cancelling_stops_the_training_and_gives_the_threads_back():
    class Impatient(SilentReport):
        def progress(self, step, total, message=""):
            assert total == SMALL.total_steps
            if step == 3:
                raise Cancelled

    class Cancelling(SilentReport):
        def check(self):  # looked for before the first step too: codes may be thousands
            raise Cancelled

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for report in (Impatient(), Cancelling()):
            with pytest.raises(Cancelled):
                learn(report=report)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_number_of_codes_follows_the_masks():
    incidence = mask_incidence(*made_up_views())
    config = LiftConfig()
    few, many = np.array([0, 1, 2, -1]), np.arange(100)
    assert count_codes(few, incidence, config) == 3 + config.spare_codes
    assert count_codes(many, incidence, config) == 115
    assert count_codes(np.array([-1]), incidence, config) == config.spare_codes
