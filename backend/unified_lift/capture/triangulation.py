# SPDX-License-Identifier: GPL-3.0-or-later
"""Points for a capture that has poses and none: what several of its photos show alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from skimage.feature import SIFT

from unified_lift.capture.views import View, nearest_cameras
from unified_lift.config import TriangulationConfig
from unified_lift.protocol import Report

MIN_SIDE = 6  # pixels; below, scikit-image's SIFT has no octave
LUMA = np.array([0.299, 0.587, 0.114]) / 255  # Rec. 601, of 8-bit colours


def triangulate(
    images: Sequence[np.ndarray], views: Sequence[View], config: TriangulationConfig, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Points from SIFT features that at least three photos share; nothing is random.

    The poses are known and stay: features match along epipolar lines only, and the point of some
    features is where their rays meet.

    Args:
        images: (H, W, 3) uint8 each, display space.
        views: the pinhole camera of each, of the same size.
        config: which pairs are matched, what counts as a match and as a point.
        report: told of each photo and each pair.

    Returns:
        (P, 3) float32, world, and (P, 3) uint8, their colours.

    Raises:
        Cancelled: the user asked for a stop.
    """
    pairs = choose_pairs(views, config.neighbours)
    sought = len(images) * config.photo_pairs
    total = sought + len(pairs)
    pixels, descriptors, colors = [], [], []
    for i, image in enumerate(images):
        report.progress(i * config.photo_pairs, total, f"photo {i + 1} of {len(images)}")
        xy, described = find_features(image, config)
        pixels.append(xy)
        descriptors.append(described)
        colors.append(image[xy[:, 1].astype(int), xy[:, 0].astype(int)])
    first_row = np.cumsum([0, *map(len, pixels)])
    matches = [np.zeros((0, 2), np.int64)]
    for number, (i, j) in enumerate(pairs):
        report.progress(sought + number, total, f"pair {number + 1} of {len(pairs)}")
        near = epipolar_distance(views[i], views[j], pixels[i], pixels[j]) < config.max_error
        matches.append(match(descriptors[i], descriptors[j], near, config) + first_row[[i, j]])
    view_ids = np.repeat(np.arange(len(views)), np.diff(first_row))
    points, rows = intersect(
        np.concatenate(pixels), view_ids, views, np.concatenate(matches), config
    )
    return points.astype(np.float32), np.concatenate(colors)[rows]


def choose_pairs(views: Sequence[View], neighbours: int) -> list[tuple[int, int]]:
    """Each photo with those taken from nearest to it in the most alike direction, no pair twice."""
    nearest = nearest_cameras(np.stack([view.viewmat for view in views]), neighbours)
    return sorted({(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row})


def find_features(image: np.ndarray, config: TriangulationConfig) -> tuple[np.ndarray, np.ndarray]:
    """SIFT (Lowe 2004), described as RootSIFT (Arandjelovic and Zisserman 2012).

    Returns:
        (F, 2) float64 pixels x, y, centres at .5, and (F, 128) float32 of unit length.
    """
    nothing = np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    if min(image.shape[:2]) < MIN_SIDE:
        return nothing
    sift = SIFT(c_dog=config.contrast)
    try:
        sift.detect_and_extract(image @ LUMA)
    except RuntimeError:  # what scikit-image says of a photo without features
        return nothing
    histograms = sift.descriptors.astype(np.float32)
    described = np.sqrt(histograms / np.maximum(histograms.sum(1, keepdims=True), 1))
    places, kept = np.unique(sift.keypoints, axis=0, return_index=True)  # of two orientations one
    inside = np.clip(places[:, ::-1] + 0.5, 0.5, np.array(image.shape[1::-1]) - 0.5)
    return inside, described[kept]


def epipolar_distance(
    first: View, second: View, pixels1: np.ndarray, pixels2: np.ndarray
) -> np.ndarray:
    """How far two pixels are from seeing one point (Sampson's distance).

    Args:
        first, second: pinhole cameras.
        pixels1, pixels2: (F, 2) and (G, 2), of each.

    Returns:
        (F, G) float32 pixels.
    """
    pose = second.viewmat @ np.linalg.inv(first.viewmat)
    x, y, z = pose[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ pose[:3, :3]
    fundamental = np.linalg.inv(second.K).T @ essential @ np.linalg.inv(first.K)
    fundamental /= max(np.linalg.norm(fundamental), 1e-30)  # its length means nothing
    one = np.column_stack([pixels1, np.ones(len(pixels1))])
    two = np.column_stack([pixels2, np.ones(len(pixels2))])
    lines2, lines1 = one @ fundamental.T, two @ fundamental
    steep = [(lines[:, :2] ** 2).sum(1) for lines in (lines2, lines1)]
    lengths = np.sqrt(np.maximum(np.add.outer(*steep), 1e-30), dtype=np.float32)
    return np.abs((lines2 @ two.T).astype(np.float32)) / lengths


def match(
    first: np.ndarray, second: np.ndarray, near: np.ndarray, config: TriangulationConfig
) -> np.ndarray:
    """Features that are each other's nearest, and clearly so (Lowe's ratio test).

    Args:
        first, second: (F, 128) and (G, 128) of unit length.
        near: (F, G), whether two may match at all.
        config: for the thresholds.

    Returns:
        (M, 2) int64 rows of both.
    """
    if not near.any():
        return np.zeros((0, 2), np.int64)
    cosines = np.where(near, first @ second.T, -1)
    rows, best = np.arange(len(first)), cosines.argmax(1)
    mutual = cosines.argmax(0)[best] == rows
    nearest = np.sqrt(np.maximum(2 - 2 * cosines[rows, best], 0))
    cosines[rows, best] = -1
    next_nearest = np.sqrt(np.maximum(2 - 2 * cosines.max(1), 0))
    clear = nearest < np.minimum(config.max_ratio * next_nearest, config.max_distance)
    kept = mutual & clear
    return np.column_stack([rows[kept], best[kept]])


def intersect(
    pixels: np.ndarray,
    view_ids: np.ndarray,
    views: Sequence[View],
    matches: np.ndarray,
    config: TriangulationConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays of matching features meet.

    Each feature with all that match it makes up a candidate: least squares of the distances from
    their rays, outliers left out in rounds. Of candidates that share a feature one stays.

    Args:
        pixels: (F, 2) of all features.
        view_ids: (F,) the view of each.
        views: pinhole cameras.
        matches: (M, 2) rows of features.
        config: what counts as a point.

    Returns:
        (P, 3) float64, world, and (P,) int64 the feature that each point began with.
    """
    own = np.arange(len(pixels))
    candidate = np.concatenate([own, matches[:, 0], matches[:, 1]])
    feature = np.concatenate([own, matches[:, 1], matches[:, 0]])
    centers = np.stack([view.center for view in views])[view_ids]
    to_world = np.stack([np.linalg.inv(view.K @ view.viewmat[:3, :3]) for view in views])
    rays = np.einsum("fij,fj->fi", to_world[view_ids], np.column_stack([pixels, np.ones(len(own))]))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    across = np.eye(3) - rays[:, :, None] * rays[:, None]  # (F, 3, 3), onto the plane across a ray
    sums = np.column_stack([across.reshape(-1, 9), np.einsum("fij,fj->fi", across, centers)])
    project = np.stack([view.K @ view.viewmat[:3] for view in views])

    good = np.ones(len(candidate), bool)
    for factor in config.rounds:
        weights = coo_array((good.astype(float), (candidate, feature)), (len(own), len(own)))
        left, right = np.split(weights.tocsr() @ sums, [9], axis=1)
        matrices = left.reshape(-1, 3, 3) + config.damping * np.eye(3)
        points = np.linalg.solve(matrices, right[..., None])[..., 0]
        homogeneous = np.column_stack([points, np.ones(len(own))])[candidate]
        image = np.einsum("eij,ej->ei", project[view_ids[feature]], homogeneous)
        depth = np.where(image[:, 2] > 0, image[:, 2], np.nan)
        error = np.linalg.norm(image[:, :2] / depth[:, None] - pixels[feature], axis=1)
        good = error < factor * config.max_error  # False where it lies behind the camera

    counts = np.bincount(candidate[good], minlength=len(own))
    cosine = np.ones(len(own))
    between = (rays[candidate] * rays[feature]).sum(1)
    np.minimum.at(cosine, candidate[good], between[good])
    wide = cosine < np.cos(np.radians(config.min_angle))
    kept = np.flatnonzero((counts >= config.min_views) & wide)
    lowest = own.copy()  # of the features that a candidate is made of
    np.minimum.at(lowest, candidate[good], feature[good])
    kept = kept[np.argsort(-counts[kept], kind="stable")]
    _, first = np.unique(lowest[kept], return_index=True)
    return points[kept[first]], kept[first]
