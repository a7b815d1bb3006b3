# SPDX-License-Identifier: GPL-3.0-or-later
"""The CUDA engine, made of gsplat's kernels, and its parts for torch. Written for gsplat 1.5.3."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unified_lift.config import RenderConfig
from unified_lift.protocol import JobError
from unified_lift.rendering import Camera, Render
from unified_lift.rendering.cpu import CpuEngine
from unified_lift.rendering.reference import photometric_loss
from unified_lift.rendering.weights import BlendWeights

ALPHA_MAX = 0.999  # compiled into the kernels of gsplat 1.5.3, where 3DGS has 0.99
INSTALL = "Choose the device 'cpu', or install gsplat built for this torch."


class GsplatEngine:
    """Renders on the first CUDA device; blend weights come from the native core, on the CPU."""

    name = "cuda"

    def __init__(self, num_threads: int | None = None) -> None:
        _check_kernels()
        self.device = torch.device("cuda")
        self.config = RenderConfig(alpha_max=ALPHA_MAX)
        self.cpu = CpuEngine(num_threads, self.config)

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
        coefficients = torch.cat([sh0, shN], 1)
        degree = math.isqrt(coefficients.shape[1]) - 1
        geometry = (means, quats, scales, opacities)
        render, means2d = self._rasterization(geometry, coefficients, camera, degree, background)
        if not want_means2d_grad:
            return render
        means2d_grad = torch.zeros_like(means[:, :2])
        if means2d.requires_grad:
            means2d.register_hook(lambda grad: means2d_grad.copy_(grad[0])[None])
        return render._replace(means2d_grad=means2d_grad)

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
        return self._rasterization((means, quats, scales, opacities), channels, camera)[0]

    def blend_weights(
        self, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, camera: Camera
    ) -> BlendWeights:
        """See `Engine.blend_weights`."""
        geometry = (t.detach().cpu() for t in (means, quats, scales, opacities))
        return self.cpu.blend_weights(*geometry, camera)

    def photometric_loss(self, image: Tensor, target: Tensor, ssim_weight: float) -> Tensor:
        """See `Engine.photometric_loss`."""
        return photometric_loss(image, target, ssim_weight, self.config)

    def _rasterization(
        self,
        geometry: tuple[Tensor, Tensor, Tensor, Tensor],
        colors: Tensor,
        camera: Camera,
        sh_degree: int | None = None,
        background: Tensor | None = None,
    ) -> tuple[Render, Tensor]:
        """The render and the projected means (1, N, 2)."""
        from gsplat import rasterization

        # Results lie on the CPU, and are shown from there.
        means, quats, scales, opacities = (values.to(self.device) for values in geometry)
        channels, alphas, meta = rasterization(
            means=means,
            quats=quats,
            scales=scales.exp(),
            opacities=opacities.sigmoid(),
            colors=colors.to(self.device),
            viewmats=camera.viewmat.to(means)[None],
            Ks=camera.K.to(means)[None],
            width=camera.width,
            height=camera.height,
            near_plane=self.config.near,
            eps2d=self.config.eps2d,
            sh_degree=sh_degree,
            packed=False,
            backgrounds=None if background is None else background.to(self.device)[None],
        )
        return Render(channels[0], alphas[0, ..., 0]), meta["means2d"]


def project_in_torch(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    sh0: Tensor,
    shN: Tensor,
    camera: Camera,
    config: RenderConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """What of gsplat runs without CUDA: projection and spherical harmonics, in plain torch.

    Args:
        means, quats, scales, sh0, shN, camera: as `Engine.render`.
        config: the blur and the near plane.

    Returns:
        means2d (N, 2), conics (N, 3) and colours (N, 3).

    Raises:
        JobError: gsplat is not installed.
    """
    try:
        from gsplat.cuda import _torch_impl as gsplat
    except ImportError as error:
        raise JobError("gsplat is not installed ('pip install gsplat').") from error

    covars, _ = gsplat._quat_scale_to_covar_preci(quats, scales.exp(), compute_preci=False)
    _, means2d, _, conics, _ = gsplat._fully_fused_projection(
        *(means, covars, camera.viewmat[None], camera.K[None], camera.width, camera.height),
        eps2d=config.eps2d,
        near_plane=config.near,
    )
    coefficients = torch.cat([sh0, shN], 1)
    centre = -camera.viewmat[:3, :3].T @ camera.viewmat[:3, 3]
    degree = math.isqrt(coefficients.shape[1]) - 1
    colors = gsplat._spherical_harmonics(degree, means - centre, coefficients)
    return means2d[0], conics[0], (colors + 0.5).clamp(min=0)


def _check_kernels() -> None:
    if not torch.cuda.is_available():
        raise JobError(f"torch {torch.__version__} finds no CUDA device. Choose the device 'cpu'.")
    try:
        from gsplat.cuda._backend import _C  # compiles the kernels if there is a CUDA toolkit
    except (ImportError, OSError, RuntimeError) as error:
        raise JobError(f"gsplat does not import: {error}. {INSTALL}") from error
    if _C is None:  # gsplat imports without its kernels where it finds no CUDA toolkit
        raise JobError(f"gsplat has no compiled kernels and no CUDA toolkit to build. {INSTALL}")
