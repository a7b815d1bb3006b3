# SPDX-License-Identifier: GPL-3.0-or-later
"""Depth maps of trained splats, from the weights with which they are blended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unified_lift.config import SurfaceMaskConfig
from unified_lift.gaussians import Gaussians
from unified_lift.rendering import Camera
from unified_lift.rendering.weights import FIXED_POINT, BlendWeights

RAYS_AT_ONCE = 16_384  # they stay in a core's cache
MIN_SCALE = 1e-5  # thinner splats are numerically flat


@dataclass(frozen=True)
class DepthView:
    """A depth map with its camera.

    Attributes:
        rotation: (3, 3) float32, world to camera, OpenCV axes.
        translation: (3,) float32.
        focal: (2,) float32, pixels.
        center: (2,) float32, the principal point.
        depth: (H, W) float32, along the camera's z axis; 0 = no opaque surface.
    """

    rotation: np.ndarray
    translation: np.ndarray
    focal: np.ndarray
    center: np.ndarray
    depth: np.ndarray

    def points(self) -> np.ndarray:
        """(H, W, 3) float32 world position of each pixel; the camera itself where depth is 0."""
        height, width = self.depth.shape
        local = ray_directions(self.focal, self.center, width, height) * self.depth[..., None]
        return (local - self.translation) @ self.rotation

    def project(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the pixels of world positions.

        Args:
            positions: (n, 3) float32.

        Returns:
            indices (m,) of the positions inside the image, their row-major pixels (m,), and their
            depths along the camera's z axis (m,) float32.
        """
        height, width = self.depth.shape
        x, y, z = self.rotation @ positions.T + self.translation[:, None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # behind the camera
            columns = x / z * self.focal[0] + self.center[0]
            rows = y / z * self.focal[1] + self.center[1]
        inside = (z > 0) & (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        (indices,) = np.nonzero(inside)
        pixels = rows[indices].astype(np.int32) * width + columns[indices].astype(np.int32)
        return indices, pixels, z[indices]


def depth_view(
    gaussians: Gaussians, weights: BlendWeights, camera: Camera, config: SurfaceMaskConfig
) -> DepthView:
    """Depth map of one view with its camera; arguments as in `depth_map`."""
    viewmat, K = camera.viewmat.cpu().numpy(), camera.K.cpu().numpy()
    focal, center = K[[0, 1], [0, 1]], K[:2, 2]
    depth = depth_map(gaussians, weights, camera, config)
    return DepthView(viewmat[:3, :3], viewmat[:3, 3], focal, center, depth)


def ray_directions(focal: np.ndarray, center: np.ndarray, width: int, height: int) -> np.ndarray:
    """(height, width, 3) float32 rays through the pixel centres, camera frame, z = 1."""
    rays = np.ones((height, width, 3), np.float32)
    rays[..., 0] = (np.arange(width) + 0.5 - center[0]) / focal[0]
    rays[..., 1] = ((np.arange(height) + 0.5 - center[1]) / focal[1])[:, None]
    return rays


def depth_map(
    gaussians: Gaussians, weights: BlendWeights, camera: Camera, config: SurfaceMaskConfig
) -> np.ndarray:
    """Depth of the surface in each pixel.

    The mean, weighted by blend weight, of where the ray passes the middle of its splats; only the
    splats near the one at which half of the pixel's weight is reached count, so neither a faint
    veil in front nor what shines through from behind moves it.

    Args:
        gaussians: raw parameters, world frame.
        weights: blend weights of the view.
        camera: the view, of the size of `weights`.
        config: the constants `depth_*` and `splat_reach`.

    Returns:
        (H, W) float32 along the camera's z axis; 0 where the view is not opaque.
    """
    K = camera.K.cpu().numpy()
    rays = ray_directions(K[[0, 1], [0, 1]], K[:2, 2], weights.width, weights.height)
    rays, splats = rays.reshape(-1, 3), _Ellipsoids.seen_by(camera, gaussians, config)
    opaque, entries = _median_entries(weights, config)
    depth = np.zeros(len(rays), np.float32)
    depth[opaque] = splats.depths(weights.gaussian_ids[entries], rays[opaque])

    pixels = np.repeat(np.arange(len(rays), dtype=np.int32), np.diff(weights.indptr))
    strong = (weights.weights > config.depth_min_weight * FIXED_POINT) & (depth[pixels] > 0)
    pixels = pixels[strong]
    each = splats.depths(weights.gaussian_ids[strong], rays[pixels])
    agree = np.abs(each - depth[pixels]) < config.depth_spread * depth[pixels]
    share = weights.weights[strong] * agree.astype(np.float32)
    total = np.bincount(pixels, share, len(rays))
    mean = np.bincount(pixels, share * each, len(rays)) / np.maximum(total, 1)
    return np.where(total > 0, mean, depth).astype(np.float32).reshape(weights.height, -1)


def _median_entries(
    weights: BlendWeights, config: SurfaceMaskConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Opaque pixels (n,), and the entry of each at which half of its weight is reached (n,)."""
    reached = np.cumsum(weights.weights, dtype=np.int64)
    before = np.concatenate([[0], reached])[weights.indptr]
    total = np.diff(before)
    (opaque,) = np.nonzero(total > config.depth_min_alpha * FIXED_POINT)
    return opaque, np.searchsorted(reached, before[opaque] + total[opaque] // 2, side="right")


@dataclass(frozen=True)
class _Ellipsoids:
    """Gaussians in a camera's frame: `whitening` maps their 1-sigma surface to the unit sphere.

    Attributes:
        whitening: (N, 3, 3) float32, inverse scales times inverse rotation.
        centers: (N, 3) float32, whitened means.
        nearest: (N,) float32, depth where the Gaussian begins.
        farthest: (N,) float32, depth where it ends.
    """

    whitening: np.ndarray
    centers: np.ndarray
    nearest: np.ndarray
    farthest: np.ndarray

    @classmethod
    def seen_by(
        cls, camera: Camera, gaussians: Gaussians, config: SurfaceMaskConfig
    ) -> _Ellipsoids:
        viewmat = camera.viewmat.cpu()
        means = gaussians["means"].detach().cpu() @ viewmat[:3, :3].T + viewmat[:3, 3]
        scales = gaussians["scales"].detach().cpu().exp().clamp_min(MIN_SCALE)
        rotations = rotation_matrices(gaussians["quats"].detach().cpu())
        whitening = (viewmat[:3, :3] @ rotations).transpose(1, 2) / scales[:, :, None]
        centers = (whitening @ means[:, :, None])[:, :, 0]
        reach = config.splat_reach * scales.max(1).values
        arrays = whitening, centers, means[:, 2] - reach, means[:, 2] + reach
        return cls(*(x.numpy() for x in arrays))

    def depths(self, ids: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Depth at which ray i is deepest in Gaussian ids[i], (n,) float32; rays (n, 3), z = 1."""
        depths = np.empty(len(ids), np.float32)
        for start in range(0, len(ids), RAYS_AT_ONCE):
            part = slice(start, start + RAYS_AT_ONCE)
            some = ids[part]
            axes = self.whitening[some]
            x, y = rays[part, 0, None], rays[part, 1, None]
            ray = axes[:, :, 0] * x + axes[:, :, 1] * y + axes[:, :, 2]
            along = np.einsum("ni,ni->n", ray, self.centers[some])
            depth = along / np.einsum("ni,ni->n", ray, ray)
            depths[part] = np.clip(depth, self.nearest[some], self.farthest[some])
        return depths


def rotation_matrices(quats: torch.Tensor) -> torch.Tensor:
    """(N, 3, 3) rotations of (N, 4) wxyz quaternions of any length."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=1).unbind(1)
    rows = (
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], 1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], 1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1),
    )
    return torch.stack(rows, 1)
