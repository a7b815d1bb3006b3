# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified-Lift as published: each loss against a slow version, where gradients go, bad input."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import made_up_views

from unified_lift.config import PublishedConfig
from unified_lift.lift.features import nearest_codes
from unified_lift.lift.published import (
    Learned,
    class_loss,
    concentration_loss,
    contrast_loss,
    feature_image,
    published_losses,
    similarity_map,
    train_published,
    uncertainty,
    uncertainty_map,
    virtual_labels,
)
from unified_lift.protocol import Cancelled, JobError, SilentReport

CONFIG = PublishedConfig(num_codes=6, dim=4)
BARE = {"codebook": False, "area_aware": False, "concentration": "", "filter": False}


def sample(num=60, num_masks=4, dim=4, seed=0):
    """Random features of any length, the mask of each, and a codebook, float64."""
    generator = torch.Generator().manual_seed(seed)
    features = 3 * torch.randn(num, dim, generator=generator, dtype=torch.float64)
    masks = (torch.arange(num) ** 2) % (2 * num_masks) % num_masks  # of different sizes
    masks[:num_masks] = torch.arange(num_masks)
    codebook = torch.randn(6, dim, generator=generator, dtype=torch.float64)
    return features, masks, codebook


def unit(features):
    return features / features.norm(dim=1, keepdim=True)


# ---- each loss, slowly


def slow_contrast(x, masks, min_pixels, low=0.5, high=1.0):
    kept = [m for m in sorted(set(masks.tolist())) if int((masks == m).sum()) > min_pixels]
    means, temperatures = [], []
    for m in kept:
        rows = [x[u] for u in range(len(x)) if masks[u] == m]
        mean = sum(rows) / len(rows)
        spread = sum(float((row - mean).detach().norm()) for row in rows)
        spread = 10 * spread / (len(rows) * math.log(len(rows) + 10))
        means.append(mean)
        temperatures.append(min(high, max(low, spread)))
    total = 0
    for own, m in enumerate(kept):
        for u in range(len(x)):
            if masks[u] == m:
                parts = [torch.exp(x[u] @ a / t) for a, t in zip(means, temperatures, strict=True)]
                total = total - torch.log(parts[own] / sum(parts))
    return total / len(kept)


@pytest.mark.parametrize("min_pixels", [0, 5, 16])
def test_contrast_is_the_sum_over_pixels_and_masks(min_pixels):
    features, masks, _ = sample()
    features[masks == 1] = features[masks == 1] * 0.05 + 1  # a narrow mask: the lowest temperature
    x = unit(features).requires_grad_()
    config = replace(CONFIG, max_temperature=2.0)
    fast = contrast_loss(x, masks, 4, min_pixels, config)
    slow = slow_contrast(x, masks, min_pixels, high=2.0)
    assert float(fast.detach()) == pytest.approx(float(slow.detach()))
    # Temperatures take no gradient in either version.
    assert torch.allclose(*(torch.autograd.grad(loss, x)[0] for loss in (fast, slow)))


def test_contrast_of_masks_too_small_is_nothing():
    x, masks, _ = sample()
    x.requires_grad_()
    contrast_loss(x, masks, 4, 60, CONFIG).backward()
    assert not x.grad.any()


def test_uncertainty_is_one_less_the_softmax_over_masks():
    features, masks, _ = sample()
    x = unit(features)
    expected = []
    for u in range(len(x)):
        means = [x[masks == m].mean(0) for m in range(4)]
        parts = [math.exp(float(x[u] @ mean) / 0.1) for mean in means]
        expected.append(1 - parts[int(masks[u])] / sum(parts))
    assert uncertainty(x, masks, 4, CONFIG).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("area_aware", [True, False])
def test_virtual_labels_are_the_best_of_all_permutations(area_aware):
    features, masks, codebook = sample()
    scores = torch.zeros(4, 6)
    for u in range(len(features)):
        logits = [float(features[u] @ code) for code in codebook]
        parts = [math.exp(value - max(logits)) for value in logits]
        size = 1 if area_aware else int((masks == masks[u]).sum())
        scores[masks[u]] += torch.tensor(parts) / sum(parts) / size
    rows = torch.arange(4)
    best = max(
        itertools.permutations(range(6), 4), key=lambda p: float(scores[rows, list(p)].sum())
    )
    codes = virtual_labels(features, codebook, masks, 4, area_aware)
    assert codes.tolist() == [best[m] for m in masks.tolist()]


def test_area_decides_which_of_two_masks_gets_the_code_that_both_like():
    codebook = torch.eye(2)
    features = torch.tensor([[1.0, 0.0]] * 9 + [[3.0, 0.0]])  # the small mask likes it more
    masks = torch.tensor([0] * 9 + [1])
    assert virtual_labels(features, codebook, masks, 2, True).tolist() == [0] * 9 + [1]
    assert virtual_labels(features, codebook, masks, 2, False).tolist() == [1] * 9 + [0]


def test_class_loss_is_the_cross_entropy_of_kept_pixels():
    features, masks, codebook = sample()
    kept = torch.arange(len(features)) % 3 > 0
    errors = []
    for u in range(len(features)):
        if kept[u]:
            logits = [float(features[u] @ code) for code in codebook]
            largest = max(logits)
            log_sum = largest + math.log(sum(math.exp(value - largest) for value in logits))
            errors.append((log_sum - logits[int(masks[u])]) / math.log(6))
    loss = class_loss(features, codebook, masks, kept)
    assert float(loss) == pytest.approx(sum(errors) / len(errors))


def test_class_loss_leaves_codes_alone_where_all_pixels_agree():
    features, _, codebook = sample()
    codes = (features @ codebook.T).argmax(1)
    kept = torch.ones(len(features), dtype=torch.bool)
    assert class_loss(features, codebook, codes, kept) == 0
    codes[0] = (codes[0] + 1) % 6
    assert class_loss(features, codebook, codes, kept) > 0


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_concentration_is_the_mean_distance_of_kept_pixels(kind):
    features, masks, codebook = sample()
    x, kept = unit(features), torch.arange(len(features)) % 3 > 0
    distances = []
    for u in range(len(x)):
        code = codebook[masks[u]]
        if kept[u] and kind == "l2":
            distances.append(math.sqrt(sum(float(d) ** 2 for d in x[u] - code)))
        elif kept[u]:
            distances.append(sum(abs(float(d)) for d in x[u] - code / code.norm()))
    loss = concentration_loss(x, codebook, masks, kept, kind)
    assert float(loss) == pytest.approx(sum(distances) / len(distances))


# ---- the step as a whole


def test_the_step_puts_the_losses_together():
    features, masks, codebook = sample()
    mask_ids = torch.tensor([0, 7, 300, 70_000])[masks]
    config = replace(CONFIG, min_pixels=0)
    losses = published_losses(features, mask_ids, codebook, config)
    inside = masks > 0
    x = features[inside] / (features[inside].norm(dim=1, keepdim=True) + 1e-6)
    inner = masks[inside] - 1
    kept = 1 - uncertainty(x, inner, 3, config) > 0.2
    assert 0 < kept.sum() < len(kept)
    codes = virtual_labels(features[inside], codebook, inner, 3, True)
    scale = 32_768 / 60
    assert float(losses.contrast) == pytest.approx(scale * float(slow_contrast(x, inner, 0)))
    assert float(losses.norm) == pytest.approx(
        sum((math.sqrt(float(f @ f)) - 1) ** 2 for f in features) / 60
    )
    assert losses.classes == class_loss(features[inside], codebook, codes, kept)
    assert losses.concentration == concentration_loss(x, codebook, codes, kept, "l2")
    weights = (1e-6, 1e-6, 1e-4, 1.0)
    expected = sum(w * float(loss) for w, loss in zip(weights, losses, strict=True))
    assert float(losses.total(config)) == pytest.approx(expected)


def test_lengths_take_no_gradient_from_contrast():
    """The published behaviour, by which features grow long."""
    features, masks, codebook = sample()
    features.requires_grad_()
    config = replace(CONFIG, **BARE, min_pixels=0, void_is_object=True, reference_pixels=60)
    fast = published_losses(features, masks, codebook, config).contrast
    x = features / (features.detach().norm(dim=1, keepdim=True) + 1e-6)
    slow = slow_contrast(x, masks, 0)
    assert torch.allclose(*(torch.autograd.grad(loss, features)[0] for loss in (fast, slow)))


def test_gradients_go_where_the_method_sends_them():
    features, masks, codebook = sample()
    features.requires_grad_()
    codebook.requires_grad_()
    config = replace(CONFIG, min_pixels=0, void_is_object=True)
    losses = published_losses(features, masks, codebook, config)
    for loss, reached, spared in (
        (losses.contrast, features, codebook),
        (losses.norm, features, codebook),
        (losses.classes, codebook, features),
        (losses.concentration, codebook, features),
    ):
        reach = torch.autograd.grad(loss, (reached, spared), retain_graph=True, allow_unused=True)
        assert reach[0].any()
        assert reach[1] is None


def test_each_component_is_switched_off_alone():
    features, masks, codebook = sample()
    whole = published_losses(features, masks, codebook, replace(CONFIG, min_pixels=0))
    bare = published_losses(features, masks, codebook, replace(CONFIG, **BARE, min_pixels=0))
    assert (bare.classes, bare.concentration) == (0, 0)
    assert (bare.contrast, bare.norm) == (whole.contrast, whole.norm)
    for off in BARE.items():
        part = published_losses(
            features, masks, codebook, replace(CONFIG, min_pixels=0, **dict([off]))
        )
        assert part != whole


def test_unlabelled_pixels_are_an_object_on_demand():
    features, masks, codebook = sample()
    config = replace(CONFIG, min_pixels=0)
    as_object = published_losses(features, masks, codebook, replace(config, void_is_object=True))
    renamed = published_losses(features, masks + 1, codebook, config)
    assert as_object == renamed
    assert as_object != published_losses(features, masks, codebook, config)


# ---- bad input


def test_one_mask_over_everything_has_no_contrast():
    features, masks, codebook = sample()
    features.requires_grad_()
    losses = published_losses(features, torch.ones_like(masks), codebook, CONFIG)
    losses.contrast.backward()
    assert losses.contrast.item() == pytest.approx(0, abs=1e-6)
    assert torch.allclose(features.grad, torch.zeros_like(features), atol=1e-6)
    assert all(torch.isfinite(loss) for loss in losses)


def test_a_step_without_a_labelled_pixel_moves_nothing_but_lengths():
    features, masks, codebook = sample()
    features[0] = 0  # a pixel that shows no splat
    features.requires_grad_()
    codebook.requires_grad_()
    losses = published_losses(features, 0 * masks, codebook, CONFIG)
    losses.total(CONFIG).backward()
    assert (losses.contrast, losses.classes, losses.concentration) == (0, 0, 0)
    assert losses.norm > 0
    assert torch.isfinite(features.grad).all()
    assert not codebook.grad.any()


def test_more_masks_than_codes_get_their_best():
    features, _, codebook = sample()
    losses = published_losses(features, torch.arange(60) + 1, codebook[:2], CONFIG)
    assert all(torch.isfinite(loss) for loss in losses)


def test_features_that_are_not_numbers_are_refused():
    features, masks, codebook = sample()
    features[3, 2] = torch.nan
    with pytest.raises(JobError, match="not a finite number"):
        published_losses(features, masks, codebook, CONFIG)


# ---- the training, on views made up of random weights

NUM, SIDE = 60, 12
SHORT = PublishedConfig(
    steps=400, pixels=96, num_codes=8, feature_rate=0.02, codebook_rate=0.02, min_pixels=300
)


def learn(label_maps=None, config=SHORT, seed=0, report=None):
    _, views, maps = made_up_views(NUM, SIDE)
    return train_published(views, label_maps or maps, NUM, config, seed, report or SilentReport())


def same_partition(a, b):
    return (
        len({*zip(a.tolist(), b.tolist(), strict=True)}) == len({*a.tolist()}) == len({*b.tolist()})
    )


@pytest.mark.parametrize("concentration", ["l2", "l1"])
def test_codes_find_the_objects_although_ids_differ_by_view(concentration):
    learned = learn(config=replace(SHORT, concentration=concentration))
    ids = nearest_codes(learned.features, learned.codebook)
    assert same_partition(ids, made_up_views(NUM, SIDE)[0])


def test_a_seed_repeats_to_the_last_bit():
    short = replace(SHORT, steps=20)
    first, again, other = learn(config=short), learn(config=short), learn(config=short, seed=1)
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.codebook, again.codebook)
    assert not torch.equal(first.features, other.features)


def test_views_without_a_mask_are_passed_over():
    _, _, label_maps = made_up_views(NUM, SIDE)
    label_maps[1], label_maps[2] = None, np.zeros_like(label_maps[2])
    assert torch.isfinite(learn(label_maps, replace(SHORT, steps=30)).features).all()
    only = [None] * 5 + label_maps[5:]
    assert torch.isfinite(learn(only, replace(SHORT, steps=30)).features).all()


def test_a_scene_without_a_mask_is_refused():
    with pytest.raises(JobError, match="No view has a mask"):
        learn([None, *[np.zeros((SIDE, SIDE), int)] * 5])


def test_cancelling_stops_the_training_and_gives_the_threads_back():
    class Impatient(SilentReport):
        def progress(self, step, total, message=""):
            raise Cancelled

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(Cancelled):
            learn(report=Impatient())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# ---- pictures


def test_uncertainty_is_high_where_a_mask_covers_what_is_not_its_own():
    objects, views, label_maps = made_up_views(NUM, SIDE)
    learned = Learned(4 * torch.eye(3)[torch.from_numpy(objects)], torch.eye(3))
    labels = label_maps[0].copy()
    labels[0, 0] = next(i for i in np.unique(labels) if i != labels[0, 0])
    labels[0, 1] = 0
    shown = uncertainty_map(learned, views[0], labels, CONFIG)
    assert shown.shape == (SIDE, SIDE)
    assert shown[0, 0] > 0.9
    assert shown[0, 1] == 0
    assert shown[1:].max() < 0.1


def test_similarity_is_the_softmax_over_codes():
    objects, views, _ = made_up_views(NUM, SIDE)
    learned = Learned(4 * torch.eye(3)[torch.from_numpy(objects)], torch.eye(3))
    each = np.stack([similarity_map(learned, views[0], code) for code in range(3)])
    assert each.shape == (3, SIDE, SIDE)
    assert np.allclose(each.sum(0), 1)
    assert np.array_equal(similarity_map(learned, views[0]), each.max(0))
    assert (each.max(0) > 0.9).all()


def test_the_feature_image_gives_objects_the_same_colour_in_all_views():
    objects, views, _ = made_up_views(NUM, SIDE)
    learned = Learned(4 * torch.eye(4)[torch.from_numpy(objects)], torch.eye(4))
    colors = {}
    for view in views[:2]:
        image = feature_image(learned, view)
        assert image.shape == (SIDE, SIDE, 3)
        assert image.dtype == np.uint8
        shown = objects[view.gaussian_ids[::3]].reshape(SIDE, SIDE)
        for k in range(3):
            colors.setdefault(k, set()).update(map(tuple, image[shown == k].tolist()))
    spread = [np.ptp(np.array(list(c)), axis=0).max() for c in colors.values()]
    assert max(spread) <= 1  # of 255: rounding
    assert len({next(iter(c)) for c in colors.values()}) == 3
