# SPDX-License-Identifier: GPL-3.0-or-later
"""One interface to the Gaussian splat renderers, and the choice between them.

The world frame is the capture's, cameras look along +z (OpenCV axes), pixel (x, y) has its centre
at (x + .5, y + .5). Parameters are raw: log scales, logit opacities, wxyz quaternions of any
length. Everything is float32 and contiguous, on the engine's device.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from unified_lift.protocol import JobError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unified_lift.rendering.weights import BlendWeights

log = logging.getLogger(__name__)


class Camera(NamedTuple):
    """A pinhole camera: viewmat (4, 4) world-to-camera, K (3, 3) in pixels, both float32."""

    viewmat: Tensor
    K: Tensor
    width: int
    height: int


class Render(NamedTuple):
    """One rendered view.

    Attributes:
        channels: (H, W, D), blended front to back.
        alphas: (H, W), 1 - remaining transmittance.
        means2d_grad: None, or (N, 2), zero until backward fills in the gradient with respect to
            the projected means, in pixels.
    """

    channels: Tensor
    alphas: Tensor
    means2d_grad: Tensor | None = None


class Engine(Protocol):
    """What every engine does. N Gaussians, D channels; shN has K = 0, 3, 8 or 15 coefficients."""

    name: str
    device: torch.device

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
        """Render colours, differentiable in all parameters.

        Args:
            means: (N, 3).
            quats: (N, 4).
            scales: (N, 3), log.
            opacities: (N,), logit.
            sh0: (N, 1, 3).
            shN: (N, K, 3); K gives the degree of the spherical harmonics.
            camera: the view.
            background: (3,) or None for black.
            want_means2d_grad: fill `Render.means2d_grad` in backward.
        """

    def rasterize(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        channels: Tensor,
        camera: Camera,
    ) -> Render:
        """Blend any channels (N, D), differentiable in them and in the geometry."""

    def blend_weights(
        self, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, camera: Camera
    ) -> BlendWeights:
        """The weights with which `rasterize` blends, without those below 1/255."""

    def photometric_loss(self, image: Tensor, target: Tensor, ssim_weight: float) -> Tensor:
        """(1 - w) L1 + w (1 - SSIM) of two (H, W, 3) images, differentiable in `image`.

        SSIM has an 11 x 11 Gaussian window (sigma 1.5) and is averaged where the window fits; an
        image smaller than the window has the L1 loss alone.
        """


def load_engine(device: str = "auto", num_threads: int | None = None) -> Engine:
    """Choose an engine, and keep torch to one thread in the whole process.

    The engine has the processor's threads. Idle threads of torch spin, and a training takes 1.6
    times as long beside them (the native core on two processor cores).

    Args:
        device: "cuda" (gsplat), "cpu" (the native core), "reference" (plain torch, slow), or
            "auto": the first of these that works here.
        num_threads: threads of the native core; None for one a processor.

    Raises:
        JobError: the engine cannot work here, and why.
    """
    import torch

    torch.set_num_threads(1)
    if device == "auto":
        return _load_best(num_threads)
    if device == "cuda":
        from unified_lift.rendering.gsplat import GsplatEngine

        return GsplatEngine(num_threads)
    if device == "cpu":
        from unified_lift.rendering.cpu import CpuEngine

        return CpuEngine(num_threads)
    if device == "reference":
        from unified_lift.rendering.reference import ReferenceEngine

        return ReferenceEngine()
    raise JobError(f"Unknown device '{device}'. Choose auto, cpu, cuda or reference.")


def _load_best(num_threads: int | None) -> Engine:
    for device in ("cuda", "cpu"):
        try:
            return load_engine(device, num_threads)
        except JobError as error:
            _log_once(device, str(error))
    return load_engine("reference")


@cache
def _log_once(device: str, reason: str) -> None:
    level = logging.DEBUG if device == "cuda" else logging.WARNING  # few machines have CUDA
    log.log(level, "engine '%s' is not used: %s", device, reason)
