# SPDX-License-Identifier: GPL-3.0-or-later
"""Points from photos with known poses: on real photos, its parts on made-up points."""

from dataclasses import replace

import numpy as np
import pytest
from scenes import SAMPLE
from scipy.spatial import cKDTree

from unified_lift.capture import View, read_capture
from unified_lift.capture.images import load_photo
from unified_lift.capture.triangulation import (
    choose_pairs,
    epipolar_distance,
    find_features,
    intersect,
    match,
    triangulate,
)
from unified_lift.config import TriangulationConfig
from unified_lift.preparation import Photos, with_points
from unified_lift.protocol import Cancelled, SilentReport

CONFIG = TriangulationConfig()


class Listening(SilentReport):
    def __init__(self, cancel_at=np.inf):
        self.steps, self.warnings, self.cancel_at = [], [], cancel_at

    def progress(self, step, total, message=""):
        if len(self.steps) >= self.cancel_at:
            raise Cancelled
        self.steps.append(step / total)

    def warning(self, text):
        self.warnings.append(text)


@pytest.fixture(scope="module")
def sample():
    return read_capture(SAMPLE)


@pytest.fixture(scope="module")
def photos(sample):
    """Twelve neighbouring photos."""
    views = sorted(sample.train_views, key=lambda view: np.arctan2(*view.center[:2]))[:12]
    return Photos(views, views, [load_photo(view) for view in views])


@pytest.fixture(scope="module")
def seen(sample):
    """Points of the sample as six of its cameras see them: pixels (6, P, 2), points, views."""
    views = sample.train_views[::8]
    points = sample.points[::20].astype(np.float64)
    pixels = []
    for view in views:
        image = (points @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]) @ view.K.T
        pixels.append(image[:, :2] / image[:, 2:])
    return np.stack(pixels), points, views


def test_points_of_real_photos_lie_on_what_structure_from_motion_found(sample, photos):
    report = Listening()
    points, colors = triangulate(photos.images, photos.views, CONFIG, report)
    assert len(points) == len(colors) > 500
    assert points.dtype == np.float32 and colors.dtype == np.uint8
    assert report.steps == sorted(report.steps) and report.steps[-1] < 1
    spread = np.linalg.norm(sample.points - np.median(sample.points, 0), axis=1)
    distances, nearest = cKDTree(sample.points).query(points)
    assert np.percentile(distances, 25) < 0.03 * np.median(spread)
    close = distances < np.percentile(distances, 20)
    difference = colors[close].astype(float) - sample.point_colors[nearest[close]]
    assert np.median(np.abs(difference)) < 20


def test_a_capture_without_points_gets_some_and_one_with_points_keeps_them(sample, photos):
    bare = replace(sample, points=sample.points[:0], point_colors=sample.point_colors[:0])
    report = Listening()
    assert len(with_points(bare, photos, 100, report).points) >= 100
    assert with_points(sample, photos, 100, report) is sample
    assert not report.warnings


def test_photos_without_features_are_told_of(sample, photos):
    bare = replace(sample, points=sample.points[:0], point_colors=sample.point_colors[:0])
    flat = replace(photos, images=[np.full_like(image, 90) for image in photos.images])
    report = Listening()
    assert len(with_points(bare, flat, 100, report).points) == 0
    assert len(report.warnings) == 1 and "too few features" in report.warnings[0]


@pytest.mark.parametrize("shape", [(1, 1), (3, 300), (640, 5), (6, 640)])
def test_photos_too_small_for_features_have_none(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    places, descriptors = find_features(noise, TriangulationConfig())
    assert len(places) == len(descriptors)
    if min(shape) < 6:
        assert len(places) == 0


def test_a_cancel_is_obeyed_between_photos(photos):
    report = Listening(cancel_at=2)
    with pytest.raises(Cancelled):
        triangulate(photos.images, photos.views, CONFIG, report)


def test_a_point_lies_on_its_own_epipolar_lines(seen):
    pixels, _, views = seen
    distance = epipolar_distance(views[0], views[1], pixels[0], pixels[1])
    assert np.diag(distance).max() < 1e-3
    moved = epipolar_distance(views[0], views[1], pixels[0], pixels[1] + [3.0, 3.0])
    assert np.median(np.diag(moved)) > 0.5


def test_rays_meet_in_the_points_in_spite_of_wrong_matches(seen):
    pixels, points, views = seen
    num_views, num = pixels.shape[:2]
    rows = np.arange(num_views * num).reshape(num_views, num)
    pairs = [
        np.column_stack([rows[i], rows[j]]) for i in range(num_views) for j in range(i, num_views)
    ]
    wrong = np.column_stack([rows[0], np.roll(rows[1], 1)])
    matches = np.concatenate([*(p for p in pairs if p[0, 0] != p[0, 1]), wrong])
    view_ids = np.repeat(np.arange(num_views), num)
    found, features = intersect(pixels.reshape(-1, 2), view_ids, views, matches, CONFIG)
    assert 0.8 * num <= len(found) <= 1.2 * num
    error = np.linalg.norm(found - points[features % num], axis=1)
    assert np.median(error) < 1e-3 * np.ptp(points, axis=0).max()


def test_two_rays_make_no_point(seen):
    pixels, _, views = seen
    num = pixels.shape[1]
    matches = np.column_stack([np.arange(num), np.arange(num) + num])
    view_ids = np.repeat([0, 1], num)
    found, _ = intersect(pixels[:2].reshape(-1, 2), view_ids, views, matches, CONFIG)
    assert len(found) == 0


def test_features_match_if_they_are_each_others_nearest_by_far():
    basis = np.eye(4, dtype=np.float32)
    everywhere = np.ones((4, 4), bool)
    assert match(basis, basis[::-1], everywhere, CONFIG).tolist() == [
        [0, 3],
        [1, 2],
        [2, 1],
        [3, 0],
    ]
    twins = basis[[0, 0, 1, 2]]
    assert 0 not in match(basis, twins, everywhere, CONFIG)[:, 0]
    elsewhere = everywhere & ~np.eye(4, dtype=bool)
    assert len(match(basis, basis, elsewhere, CONFIG)) == 0


def test_each_photo_is_paired_with_its_neighbours_once(photos):
    pairs = choose_pairs(photos.views, 3)
    assert len(pairs) == len(set(pairs)) and all(i < j for i, j in pairs)
    partners = np.bincount(np.ravel(pairs), minlength=12)
    assert partners.min() >= 3
    view = photos.views[0]
    twin = View("twin", view.image_path, view.width, view.height, view.K, view.viewmat)
    assert (0, 1) in choose_pairs([view, twin, *photos.views[5:]], 1)
