# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference engine: plain torch in any float type, every Gaussian at every pixel. Slow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unified_lift.config import RenderConfig
from unified_lift.rendering import Camera, Render
from unified_lift.rendering.weights import FIXED_POINT, BlendWeights


class ReferenceEngine:
    """What the other engines are tested against."""

    name = "reference"
    device = torch.device("cpu")

    def __init__(self, config: RenderConfig | None = None) -> None:
        self.config = config or RenderConfig()

    def render(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        sh0: Tensor,
        shN: Tensor,
        camera: Camera,
        background: Tensor | None = None,
        want_means2d_grad: bool = False,
    ) -> Render:
        """See `Engine.render`."""
        colors = shade(means, sh0, shN, camera)
        geometry = (means, quats, scales, opacities)
        ellipses = project(*geometry, colors, camera, self.config)
        means2d_grad = None
        if want_means2d_grad:
            means2d_grad = torch.zeros(len(means), 2, dtype=means.dtype)
            _record_gradient(ellipses, means2d_grad)
        channels, alphas = composite(ellipses, colors, camera, self.config)
        if background is not None:
            channels = channels + (1 - alphas)[..., None] * background
        return Render(channels, alphas, means2d_grad)

    def rasterize(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        channels: Tensor,
        camera: Camera,
    ) -> Render:
        """See `Engine.rasterize`."""
        ellipses = project(means, quats, scales, opacities, channels, camera, self.config)
        return Render(*composite(ellipses, channels, camera, self.config))

    @torch.no_grad()
    def blend_weights(
        self, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, camera: Camera
    ) -> BlendWeights:
        """See `Engine.blend_weights`."""
        channels = means.new_empty(len(means), 0)
        ellipses = project(means, quats, scales, opacities, channels, camera, self.config)
        rows = [pixel_weights(ellipses, y, camera, self.config) for y in range(camera.height)]
        weights = torch.cat(rows)  # (P, visible)
        pixels, order = torch.nonzero(weights >= self.config.alpha_min, as_tuple=True)
        indptr = np.zeros(camera.width * camera.height + 1, np.int64)
        np.cumsum(np.bincount(pixels, minlength=len(indptr) - 1), out=indptr[1:])
        ids = ellipses.ids[order].numpy().astype(np.int32)
        fixed = (weights[pixels, order] * FIXED_POINT).round().numpy().astype(np.uint16)
        return BlendWeights(indptr, ids, fixed, camera.width, camera.height, len(means))

    def photometric_loss(self, image: Tensor, target: Tensor, ssim_weight: float) -> Tensor:
        """See `Engine.photometric_loss`."""
        return photometric_loss(image, target, ssim_weight, self.config)


class Ellipses(NamedTuple):
    """The visible Gaussians in the image, front to back.

    Attributes:
        ids: (V,) int64, which Gaussians they are.
        means2d: (V, 2) pixels.
        conics: (V, 2, 2) inverse covariances.
        opacities: (V,).
    """

    ids: Tensor
    means2d: Tensor
    conics: Tensor
    opacities: Tensor


def rotations(quats: Tensor) -> Tensor:
    """(N, 4) wxyz quaternions of any length to (N, 3, 3) rotation matrices."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    channels: Tensor,
    camera: Camera,
    config: RenderConfig,
) -> Ellipses:
    """Project Gaussians (EWA splatting); those that cannot be seen are left out.

    As in 3DGS, the Jacobian is taken at a point whose x/z and y/z are held within 15 % of the
    image's size around it. A Gaussian with a parameter or channel that is not finite is left out.
    """
    parameters = (means, quats, scales, opacities[:, None], channels)
    finite = torch.cat(parameters, 1).detach().isfinite().all(1)
    R, t = camera.viewmat[:3, :3].to(means), camera.viewmat[:3, 3].to(means)
    depths = means.detach() @ R[2] + t[2]
    visible = finite & (depths > config.near) & (opacities.sigmoid() >= config.alpha_min)
    (ids,) = torch.nonzero(visible, as_tuple=True)
    ids = ids[torch.argsort(depths[ids], stable=True)]

    points = means[ids] @ R.T + t  # (V, 3)
    x, y, z = points.unbind(-1)
    K = camera.K.to(means)
    focal, centre = K.diagonal()[:2], K[:2, 2]
    size = means.new_tensor([camera.width, camera.height])
    low, high = -(centre + 0.15 * size) / focal, (1.15 * size - centre) / focal
    x_ratio = (x / z).clamp(low[0], high[0])
    y_ratio = (y / z).clamp(low[1], high[1])
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([focal[0] / z, zero, -focal[0] * x_ratio / z], -1),
            torch.stack([zero, focal[1] / z, -focal[1] * y_ratio / z], -1),
        ],
        -2,
    )  # (V, 2, 3)
    T = jacobian @ R @ (rotations(quats[ids]) * scales[ids].exp()[:, None])
    cov2d = T @ T.mT + config.eps2d * torch.eye(2).to(means)
    means2d = focal * points[:, :2] / z[:, None] + centre
    return Ellipses(ids, means2d, cov2d.inverse(), opacities[ids].sigmoid())


def pixel_weights(ellipses: Ellipses, row: int, camera: Camera, config: RenderConfig) -> Tensor:
    """Blend weights (width, V) of one row of pixels."""
    x = torch.arange(camera.width) + 0.5
    pixels = torch.stack([x, torch.full_like(x, row + 0.5)], -1).to(ellipses.means2d)
    d = pixels[:, None] - ellipses.means2d  # (width, V, 2)
    sigma = 0.5 * torch.einsum("pvi,vij,pvj->pv", d, ellipses.conics, d)
    alphas = ellipses.opacities * torch.exp(-sigma)
    counts = (alphas >= config.alpha_min) & (sigma >= 0)
    alphas = alphas.clamp(max=config.alpha_max) * counts
    after = torch.cumprod(1 - alphas, 1)
    # From the first Gaussian on that would use the pixel up, nothing is blended any more.
    alphas = alphas * (after > config.transmittance_min)
    before = torch.cumprod(1 - alphas, 1) / (1 - alphas)
    return alphas * before


def composite(
    ellipses: Ellipses, channels: Tensor, camera: Camera, config: RenderConfig
) -> tuple[Tensor, Tensor]:
    """Blend channels (N, D) into an image (H, W, D) with alphas (H, W)."""
    images, alphas = [], []
    for row in range(camera.height):
        weights = pixel_weights(ellipses, row, camera, config)
        images.append(weights @ channels[ellipses.ids])
        alphas.append(weights.sum(1))
    return torch.stack(images), torch.stack(alphas)


def shade(means: Tensor, sh0: Tensor, shN: Tensor, camera: Camera) -> Tensor:
    """Colours (N, 3) seen from the camera: max(0, 1/2 + spherical harmonics of the direction)."""
    R, t = camera.viewmat[:3, :3].to(means), camera.viewmat[:3, 3].to(means)
    directions = F.normalize(means + R.T @ t, dim=-1)
    coefficients = torch.cat([sh0, shN], 1)
    basis = spherical_harmonics(directions)[:, : coefficients.shape[1]]
    colors = 0.5 + torch.einsum("nk,nkc->nc", basis, coefficients)
    return torch.where((colors < 0) & colors.isfinite(), 0, colors)


def spherical_harmonics(directions: Tensor) -> Tensor:
    """The 16 real spherical harmonics of degree 0 to 3 at (N, 3) unit vectors, signs as in 3DGS."""
    x, y, z = directions.unbind(-1)
    values = [
        0.28209479177387814 * torch.ones_like(x),
        -0.4886025119029199 * y,
        0.4886025119029199 * z,
        -0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (3 * z * z - 1),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (x * x - y * y),
        -0.5900435899266435 * y * (3 * x * x - y * y),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (5 * z * z - 1),
        0.3731763325901154 * z * (5 * z * z - 3),
        -0.4570457994644658 * x * (5 * z * z - 1),
        1.445305721320277 * z * (x * x - y * y),
        -0.5900435899266435 * x * (x * x - 3 * y * y),
    ]
    return torch.stack(values, -1)


def photometric_loss(
    image: Tensor, target: Tensor, ssim_weight: float, config: RenderConfig
) -> Tensor:
    """(1 - w) L1 + w (1 - SSIM) in plain torch; see `Engine.photometric_loss`."""
    l1 = (image - target).abs().mean()
    if min(image.shape[:2]) < config.ssim_window:
        return l1
    return (1 - ssim_weight) * l1 + ssim_weight * (1 - ssim(image, target, config))


def ssim(image: Tensor, target: Tensor, config: RenderConfig) -> Tensor:
    """Mean structural similarity of two (H, W, C) images, where the window fits."""
    size = config.ssim_window
    x = torch.arange(size).to(image) - size // 2
    weights = torch.exp(-0.5 * (x / config.ssim_sigma) ** 2)
    weights = weights / weights.sum()
    window = torch.outer(weights, weights)[None, None]

    def blur(a: Tensor) -> Tensor:
        return F.conv2d(a.permute(2, 0, 1)[:, None], window)

    mx, my = blur(image), blur(target)
    sxx, syy = blur(image**2) - mx**2, blur(target**2) - my**2
    sxy = blur(image * target) - mx * my
    c1, c2 = config.ssim_c1, config.ssim_c2
    similarity = (2 * mx * my + c1) * (2 * sxy + c2)
    return (similarity / ((mx**2 + my**2 + c1) * (sxx + syy + c2))).mean()


def _record_gradient(ellipses: Ellipses, means2d_grad: Tensor) -> None:
    def record(grad: Tensor) -> None:
        means2d_grad[ellipses.ids] = grad

    if ellipses.means2d.requires_grad:
        ellipses.means2d.register_hook(record)
