# SPDX-License-Identifier: GPL-3.0-or-later
"""The Gaussians' parameters: their start, their change by densification, their way to a PLY."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from unified_lift.config import GeometryConfig
from unified_lift.ply import SH_COUNTS, Splats
from unified_lift.rendering import Camera

# Raw parameters by their gsplat names: means (N, 3), quats (N, 4), scales (N, 3) log,
# opacities (N,) logit, sh0 (N, 1, 3), shN (N, K, 3), all float32.
Gaussians = dict[str, Tensor]
GEOMETRY = ("means", "quats", "scales", "opacities")
PARAMETERS = (*GEOMETRY, "sh0", "shN")

SH_C0 = 0.28209479177387814  # the constant SH basis function
NEIGHBOURS = 3  # the initial scale is the distance to this many neighbours (3DGS)
MAX_COPIES = 50  # of one Gaussian in one relocation (3DGS-MCMC)
DEPTH_RANGE = (0.1, 10.0)  # of random points, times the extent of the cameras
COMMON_VIEW = 0.3  # random points are seen by at least this share of the cameras


def scene_extent(cameras: list[Camera]) -> float:
    """Radius of the camera positions about their mean, with 10 % margin (3DGS); > 0."""
    centres = torch.stack([-c.viewmat[:3, :3].T @ c.viewmat[:3, 3] for c in cameras])
    return max(float((centres - centres.mean(0)).norm(dim=1).max()) * 1.1, 1e-3)


def start_gaussians(points: np.ndarray, colors: np.ndarray, config: GeometryConfig) -> Gaussians:
    """Isotropic Gaussians at points, as large as their neighbours are far (3DGS).

    Args:
        points: (P, 3) float32, world frame, P >= 2.
        colors: (P, 3) float32 in 0..1, display space.
        config: for the SH degree and the opacity at the start.
    """
    num = len(points)
    distances, _ = cKDTree(points).query(points, k=min(NEIGHBOURS + 1, num))
    scales = np.sqrt((distances[:, 1:] ** 2).mean(1)).clip(min=1e-5).astype(np.float32)
    quats = torch.zeros(num, 4)
    quats[:, 0] = 1
    opacity = config.init_opacity
    return {
        "means": torch.tensor(points, dtype=torch.float32),
        "quats": quats,
        "scales": torch.from_numpy(np.log(scales))[:, None].repeat(1, 3),
        "opacities": torch.full((num,), math.log(opacity / (1 - opacity))),
        "sh0": (torch.tensor(colors, dtype=torch.float32)[:, None] - 0.5) / SH_C0,
        "shN": torch.zeros(num, SH_COUNTS[config.sh_degree], 3),
    }


def random_points(
    photos: list[np.ndarray], cameras: list[Camera], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points along random pixels' rays, at random depths, that several cameras see.

    Args:
        photos: (H, W, 3) uint8 each.
        cameras: one for each photo.
        count: number of points.
        rng: source of randomness.

    Returns:
        points (count, 3) float32 and their pixels' colours (count, 3) float32 in 0..1.
    """
    tries = 8 * count
    views = rng.integers(len(cameras), size=tries)
    depths = scene_extent(cameras) * np.exp(rng.uniform(*np.log(DEPTH_RANGE), size=tries))
    points = np.empty((tries, 3), np.float32)
    colors = np.empty((tries, 3), np.float32)
    for i, camera in enumerate(cameras):
        rows = np.nonzero(views == i)[0]
        x = rng.integers(camera.width, size=len(rows))
        y = rng.integers(camera.height, size=len(rows))
        rays = np.stack([x + 0.5, y + 0.5, np.ones(len(rows))]) * depths[rows]
        local = np.linalg.inv(camera.K.double().numpy()) @ rays
        pose = camera.viewmat.double().numpy()
        points[rows] = (pose[:3, :3].T @ (local - pose[:3, 3:])).T
        colors[rows] = photos[i][y, x] / 255.0
    seen = sum(_inside(points, camera).astype(np.int64) for camera in cameras)
    common = seen >= max(2, COMMON_VIEW * len(cameras))
    keep = np.argsort(~common, kind="stable")[:count]
    return points[keep], colors[keep]


def _inside(points: np.ndarray, camera: Camera) -> np.ndarray:
    pose = camera.viewmat.numpy()
    local = points @ pose[:3, :3].T + pose[:3, 3]
    image = local @ camera.K.numpy().T
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = image[:, 0] / image[:, 2], image[:, 1] / image[:, 2]
    inside = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    return (local[:, 2] > 0) & inside


def relocated(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and scale of each of n equal Gaussians that together look like one.

    3DGS-MCMC, equation 9: o' = 1 - (1 - o)^(1/n), and the scale is divided by
    sum_{i=1..n} sum_{k=0..i-1} binom(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1), times 1/o.

    Args:
        opacities: (M,) in 0..1.
        scales: (M, 3), linear.
        copies: (M,) int64, 1..MAX_COPIES.

    Returns:
        (M,) opacities and (M, 3) linear scales.
    """
    new = 1 - (1 - opacities.double()) ** (1 / copies)
    total = torch.zeros_like(new)
    for i in range(1, int(copies.max()) + 1):
        k = torch.arange(i, dtype=torch.float64)
        binomial = torch.tensor([math.comb(i - 1, j) for j in range(i)], dtype=torch.float64)
        terms = binomial * (-1) ** k * new[:, None] ** (k + 1) / (k + 1).sqrt()
        total += torch.where(copies >= i, terms.sum(1), 0.0)
    return new.float(), scales * (opacities.double() / total).float()[:, None]


def to_splats(gaussians: Gaussians) -> Splats:
    """The same Gaussians as arrays, all unassigned."""
    arrays = {name: gaussians[name].detach().cpu().numpy() for name in PARAMETERS}
    num = len(arrays["means"])
    return Splats(
        **arrays, object_ids=np.zeros(num, np.int32), confidence=np.zeros(num, np.float32)
    )


def from_splats(splats: Splats) -> Gaussians:
    """The parameters of a read PLY."""
    return {name: torch.tensor(getattr(splats, name)) for name in PARAMETERS}
