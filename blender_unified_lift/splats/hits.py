# SPDX-License-Identifier: GPL-3.0-or-later
"""Which object is seen at a pixel or lies in a rectangle: computed as it is blended, in numpy.

Exact and without a wait for the GPU: of all Gaussians only the few thousand that reach the pixels
in question are blended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .clouds import Cloud, SplatInstance
from .viewpoint import ALPHA_MAX, ALPHA_MIN, EPS2D, Viewpoint

REACH = float(np.sqrt(-2 * np.log(ALPHA_MIN)))  # standard deviations to where alpha fades out
MARGIN = 2  # pixels around a click that count too
VISIBLE_WEIGHT = 0.25  # what shows through with less is taken for nothing
_SYMMETRIC = [4, 5, 6, 5, 7, 8, 6, 8, 9]  # of `Cloud.geometry`: the covariance's nine entries


class Hit(NamedTuple):
    """What is seen at a pixel: index of the instance, and its expected depth."""

    index: int
    depth: float


def hit_at(
    instances: Sequence[SplatInstance],
    clouds: Mapping[int, Cloud],
    viewpoint: Viewpoint,
    x: float,
    y: float,
) -> Hit | None:
    """The instance with the most weight around a pixel, None where nothing is seen.

    Args:
        instances: what is drawn.
        clouds: their values, by the instances' keys.
        viewpoint: from where.
        x: pixels from the left.
        y: pixels from the bottom.
    """
    offsets = np.arange(-MARGIN, MARGIN + 1)
    pixels = np.stack(np.meshgrid(x + offsets, y + offsets), -1).reshape(-1, 2)
    parts = [_fragments(clouds[i.key], viewpoint, i.matrix, pixels) for i in instances]
    if not parts:
        return None
    owners = np.repeat(np.arange(len(parts)), [len(depths) for depths, _ in parts])
    depths, alphas = (np.concatenate(values) for values in zip(*parts))
    order = np.argsort(depths, kind="stable")
    owners, depths, alphas = owners[order], depths[order], alphas[order]
    before = np.concatenate([np.ones((1, len(pixels))), np.cumprod(1 - alphas, 0)[:-1]])
    weights = alphas * before[: len(alphas)]  # (M, P)
    shares = np.zeros((len(parts), len(pixels)))
    np.add.at(shares, owners, weights)
    best = int(shares.sum(1).argmax())
    if shares[best].max() < VISIBLE_WEIGHT:
        return None
    own = weights[owners == best].sum(1)
    return Hit(best, float(own @ depths[owners == best] / own.sum()))


def inside(
    instances: Sequence[SplatInstance],
    clouds: Mapping[int, Cloud],
    viewpoint: Viewpoint,
    low: tuple[float, float],
    high: tuple[float, float],
) -> list[int]:
    """Indices of the instances with a Gaussian's centre in a rectangle, behind others or not."""
    found = []
    for index, instance in enumerate(instances):
        points = _shown_points(clouds[instance.key], viewpoint, instance.matrix)[0]
        centers = _project(points, viewpoint)
        if ((centers > low) & (centers < high)).all(1).any():
            found.append(index)
    return found


def _shown_points(
    cloud: Cloud, viewpoint: Viewpoint, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(M, 3) means in view axes and (M,) rows, of the Gaussians in the view's depth range."""
    to_view = (viewpoint.world_to_view @ matrix).astype(np.float32)
    points = cloud.means @ to_view[:3, :3].T + to_view[:3, 3]
    (rows,) = np.nonzero((points[:, 2] > viewpoint.near) & (points[:, 2] < viewpoint.far))
    return points[rows], rows


def _project(points: np.ndarray, viewpoint: Viewpoint) -> np.ndarray:
    """(M, 2) pixels of (M, 3) points in view axes."""
    distance = points[:, 2:] if viewpoint.perspective else 1
    return points[:, :2] * viewpoint.focal / distance + viewpoint.center


def _fragments(
    cloud: Cloud, viewpoint: Viewpoint, matrix: np.ndarray, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(M,) depths and (M, P) alphas of the Gaussians that reach the (P, 2) pixels."""
    points, rows = _shown_points(cloud, viewpoint, matrix)
    linear = (viewpoint.world_to_view @ matrix)[:3, :3]
    distance = points[:, 2] if viewpoint.perspective else 1
    steepness = np.hypot(1, np.abs(viewpoint.limits).max()) if viewpoint.perspective else 1
    magnification = max(viewpoint.focal) * steepness * np.linalg.norm(linear, 2) / distance
    reach = REACH * np.hypot(magnification * cloud.spreads[rows], np.sqrt(EPS2D))
    centers = _project(points, viewpoint)
    close = np.abs(centers - pixels.mean(0)).max(1) < reach + MARGIN
    points, centers = points[close].astype(float), centers[close]
    geometry = cloud.geometry[rows[close]].reshape(-1, 16)
    conics = np.linalg.inv(_flatten(geometry[:, _SYMMETRIC], points, viewpoint, linear))
    d = pixels - centers[:, None]
    alphas = geometry[:, 3:4] * np.exp(-0.5 * np.einsum("mpi,mij,mpj->mp", d, conics, d))
    return points[:, 2], np.where(alphas < ALPHA_MIN, 0, np.minimum(alphas, ALPHA_MAX))


def _flatten(
    entries: np.ndarray, points: np.ndarray, viewpoint: Viewpoint, linear: np.ndarray
) -> np.ndarray:
    """(M, 2, 2) covariances in pixels of (M, 9) ones in the object's frame, as in the shader."""
    scale = np.broadcast_to(viewpoint.focal, (len(points), 2))
    slope = np.zeros((len(points), 2))
    if viewpoint.perspective:
        low, high = viewpoint.limits[:2], viewpoint.limits[2:]
        slope = np.clip(points[:, :2] / points[:, 2:], low, high)
        scale = scale / points[:, 2:]
    rows = scale[..., None] * (linear[:2] - slope[..., None] * linear[2])  # (M, 2, 3)
    return rows @ entries.reshape(-1, 3, 3) @ rows.transpose(0, 2, 1) + EPS2D * np.eye(2)
