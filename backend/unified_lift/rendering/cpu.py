# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU engine: torch's autograd around the native core. Float32 only."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_lift.config import RenderConfig
from unified_lift.protocol import JobError
from unified_lift.rendering import Camera, Render
from unified_lift.rendering.native import Core, load_core
from unified_lift.rendering.weights import BlendWeights

SH_COEFFICIENTS = (0, 3, 8, 15)  # beyond the constant one, of degree 0 to 3


class CpuEngine:
    """Renders with the native core. Results do not depend on the number of threads."""

    name = "cpu"
    device = torch.device("cpu")

    def __init__(self, num_threads: int | None = None, config: RenderConfig | None = None) -> None:
        self.core = load_core(num_threads)
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
        assert shN.shape[1] in SH_COEFFICIENTS, shN.shape
        camera = _on_cpu(camera)
        colors = _Shade.apply(self.core, camera, means, sh0, shN)
        means2d_grad = torch.zeros(len(means), 2) if want_means2d_grad else None
        if background is not None:
            background = background.detach().contiguous()
        geometry = (means, quats, scales, opacities)
        view = _View(self.core, self.config, camera, background, means2d_grad)
        return Render(*_Rasterize.apply(view, *geometry, colors), means2d_grad)

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
        view = _View(self.core, self.config, _on_cpu(camera))
        return Render(*_Rasterize.apply(view, means, quats, scales, opacities, channels))

    def blend_weights(
        self, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, camera: Camera
    ) -> BlendWeights:
        """See `Engine.blend_weights`."""
        geometry = [t.detach().contiguous() for t in (means, quats, scales, opacities)]
        channels = means.new_empty(len(means), 0)
        frame = _Frame(self.core, self.config, _on_cpu(camera), geometry, channels)
        indptr = np.zeros(camera.width * camera.height + 1, np.int64)
        self.core.call("frame_count_weights", frame.handle, indptr[1:])
        np.cumsum(indptr, out=indptr)
        ids, weights = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.uint16)
        self.core.call("frame_fill_weights", frame.handle, indptr, ids, weights)
        return BlendWeights(
            indptr, ids, weights, camera.width, camera.height, len(means), self.core
        )

    def photometric_loss(self, image: Tensor, target: Tensor, ssim_weight: float) -> Tensor:
        """See `Engine.photometric_loss`."""
        assert image.shape == target.shape, (image.shape, target.shape)
        return _PhotometricLoss.apply(self.core, image, target, ssim_weight)


def _on_cpu(camera: Camera) -> Camera:
    viewmat, K = (t.detach().to("cpu", torch.float32).contiguous() for t in camera[:2])
    return camera._replace(viewmat=viewmat, K=K)


class _Constants(ctypes.Structure):
    """`Constants` of projection.h."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in ("alpha_min", "alpha_max", "transmittance_min", "eps2d", "near")
    ]


class _Frame:
    """The core's view of a scene: projected, sorted into tiles; freed with this object."""

    def __init__(
        self,
        core: Core,
        config: RenderConfig,
        camera: Camera,
        geometry: list[Tensor],
        channels: Tensor,
    ) -> None:
        constants = _Constants(*(getattr(config, name) for name, _ in _Constants._fields_))
        self.core, self.handle = core, ctypes.c_void_p()
        self.handle = ctypes.c_void_p(
            core.call(
                "frame_create",
                ctypes.byref(constants),
                len(channels),
                *geometry,
                channels.shape[1],
                channels,
                *camera,
                core.num_threads,
                returns=ctypes.c_void_p,
            )
        )
        if not self.handle:
            raise JobError(
                f"A view of {camera.width} x {camera.height} pixels with {len(channels)} Gaussians "
                "is too large for the native core. Use smaller photos or fewer Gaussians."
            )

    def __del__(self) -> None:
        self.core.call("frame_free", self.handle)


class _View(NamedTuple):
    """What `_Rasterize` needs besides tensors that have gradients."""

    core: Core
    config: RenderConfig
    camera: Camera
    background: Tensor | None = None
    means2d_grad: Tensor | None = None


class _Shade(torch.autograd.Function):
    """Colours (N, 3) from spherical harmonics."""

    @staticmethod
    def forward(
        ctx: Any, core: Core, camera: Camera, means: Tensor, sh0: Tensor, shN: Tensor
    ) -> Tensor:
        means, sh0, shN = means.contiguous(), sh0.contiguous(), shN.contiguous()
        colors = torch.empty_like(means)
        sizes = (len(means), shN.shape[1])
        core.call("sh_forward", *sizes, camera.viewmat, means, sh0, shN, core.num_threads, colors)
        ctx.core, ctx.viewmat = core, camera.viewmat
        ctx.save_for_backward(means, sh0, shN, colors)
        return colors

    @staticmethod
    def backward(ctx: Any, v_colors: Tensor) -> tuple:
        means, sh0, shN, colors = ctx.saved_tensors
        grads = [torch.empty_like(t) for t in (means, sh0, shN)]
        inputs = (means, shN, colors, v_colors.contiguous())
        sizes = (len(means), shN.shape[1])
        ctx.core.call("sh_backward", *sizes, ctx.viewmat, *inputs, ctx.core.num_threads, *grads)
        return None, None, *grads


class _Rasterize(torch.autograd.Function):
    """Blended channels (H, W, D) and alphas (H, W)."""

    @staticmethod
    def forward(
        ctx: Any,
        view: _View,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        channels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        *geometry, channels = (t.contiguous() for t in (means, quats, scales, opacities, channels))
        width, height, num_channels = view.camera.width, view.camera.height, channels.shape[1]
        assert num_channels > 0, channels.shape
        frame = _Frame(view.core, view.config, view.camera, geometry, channels)
        out, alphas = torch.empty(height, width, num_channels), torch.empty(height, width)
        view.core.call(
            "frame_forward", frame.handle, num_channels, channels, view.background, out, alphas
        )
        ctx.view, ctx.frame = view, frame
        ctx.save_for_backward(*geometry, channels)
        return out, alphas

    @staticmethod
    def backward(ctx: Any, v_out: Tensor, v_alphas: Tensor) -> tuple:
        means, quats, scales, _, channels = ctx.saved_tensors
        grads = [torch.empty_like(t) for t in ctx.saved_tensors]
        ctx.view.core.call(
            "frame_backward",
            ctx.frame.handle,
            channels.shape[1],
            channels,
            ctx.view.background,
            v_out.contiguous(),
            v_alphas.contiguous(),
            means,
            quats,
            scales,
            *grads,
            ctx.view.means2d_grad,
        )
        return None, *grads


class _PhotometricLoss(torch.autograd.Function):
    """The loss; its gradient is computed with it."""

    @staticmethod
    def forward(ctx: Any, core: Core, image: Tensor, target: Tensor, ssim_weight: float) -> Tensor:
        image, target = image.contiguous(), target.contiguous()
        ctx.grad = torch.empty_like(image)
        inputs = (image, target, float(ssim_weight), core.num_threads)
        loss = core.call("l1_ssim_loss", *image.shape, *inputs, ctx.grad, returns=ctypes.c_double)
        return image.new_tensor(loss)

    @staticmethod
    def backward(ctx: Any, v_loss: Tensor) -> tuple:
        return None, ctx.grad * v_loss, None, None
