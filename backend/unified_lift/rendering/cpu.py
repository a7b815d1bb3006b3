# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU engine: torch's autograd around the native core."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified_lift.rendering import Camera, Render
from unified_lift.rendering.native import Core, load_core
from unified_lift.rendering.weights import BlendWeights

EPS2D, NEAR, FAR = 0.3, 0.01, 1e10
TILE = 16


class CpuEngine:
    """Renders with the native core."""

    name = "cpu"
    device = torch.device("cpu")

    def __init__(self, num_threads: int | None = None) -> None:
        self.core = load_core(num_threads)

    def render(
        self,
        means,
        quats,
        scales,
        opacities,
        sh0,
        shN,
        camera,
        background=None,
        want_means2d_grad=False,
    ) -> Render:
        """See `Engine.render`."""
        linear_scales, linear_opacities, colors = _Activate.apply(
            self.core, camera, means, scales, opacities, sh0, shN
        )
        grad = torch.zeros(len(means), 2) if want_means2d_grad else None
        channels, alphas = _Rasterize.apply(
            self.core,
            camera,
            means,
            quats,
            linear_scales,
            linear_opacities,
            colors,
            background,
            grad,
        )
        return Render(channels, alphas, grad)

    def rasterize(self, means, quats, scales, opacities, channels, camera) -> Render:
        """See `Engine.rasterize`."""
        channels, alphas = _Rasterize.apply(
            self.core,
            camera,
            means,
            quats,
            scales.exp(),
            opacities.sigmoid(),
            channels,
            None,
            None,
        )
        return Render(channels, alphas)

    def blend_weights(self, means, quats, scales, opacities, camera) -> BlendWeights:
        """See `Engine.blend_weights`."""
        with torch.no_grad():
            geometry = [means, quats, scales.exp(), opacities.sigmoid()]
            geometry = [x.detach().contiguous() for x in geometry]
        p = _project(self.core, camera, *geometry)
        b = _bin(self.core, camera, p, geometry[3])
        n, w, h = len(means), camera.width, camera.height
        count = np.empty(w * h, np.int32)
        head = (n, w, h, TILE, p["means2d"], p["conics"], geometry[3], b["cum"], b["offsets"])
        head += (b["ids"], self.core.num_threads, count)
        self.core.call("raster_csr", *head, None, None, None)
        indptr = np.concatenate([[0], np.cumsum(count, dtype=np.int64)])
        ids, weights = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        self.core.call("raster_csr", *head, indptr, ids, weights)
        keep = weights >= 1 / 255
        kept = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])
        fixed = np.round(weights[keep] * 65535).astype(np.uint16)
        return BlendWeights(kept[indptr], ids[keep], fixed, w, h, n)

    def photometric_loss(self, image: Tensor, target: Tensor, ssim_weight: float) -> Tensor:
        """See `Engine.photometric_loss`."""
        return _PhotometricLoss.apply(self.core, image, target, ssim_weight)


def _project(core: Core, camera: Camera, means, quats, scales, opacities) -> dict:
    n = len(means)
    p = {
        "radii": torch.empty(n, 2, dtype=torch.int32),
        "means2d": torch.empty(n, 2),
        "depths": torch.empty(n),
        "conics": torch.empty(n, 3),
        "comps": torch.empty(n),
    }
    core.call(
        "project_fwd",
        n,
        means,
        quats,
        scales,
        opacities,
        camera.viewmat,
        camera.K,
        camera.width,
        camera.height,
        EPS2D,
        NEAR,
        FAR,
        0.0,
        0,
        core.num_threads,
        *p.values(),
    )
    return p


def _bin(core: Core, camera: Camera, p: dict, opacities: Tensor) -> dict:
    n, w, h = len(opacities), camera.width, camera.height
    cum, rows, total = torch.empty(n + 1, dtype=torch.int32), torch.empty(n, 16), ctypes.c_int64(0)
    handle = core.call(
        "bin_begin",
        n,
        p["means2d"],
        p["conics"],
        opacities,
        p["radii"],
        w,
        h,
        core.num_threads,
        rows,
        cum,
        ctypes.byref(total),
        returns=ctypes.c_void_p,
    )
    tiles = -(-w // TILE) * -(-h // TILE)
    new = lambda k: torch.empty(k, dtype=torch.int32)
    b = {"cum": cum, "offsets": new(tiles + 1), "ids": new(total.value), "slots": new(total.value)}
    core.call("bin_end", ctypes.c_void_p(handle), p["depths"], *b.values())
    return b | {"rows": rows, "masks": new(total.value)}


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, core, camera, means, scales, opacities, sh0, shN):
        n, k = shN.shape[:2]
        assert k in (0, 3, 8), "degree 3 follows"
        out = torch.empty(n, 3), torch.empty(n), torch.empty(n, 3)
        core.call(
            "act_fwd",
            n,
            k,
            camera.viewmat,
            means,
            scales,
            opacities,
            sh0,
            shN,
            core.num_threads,
            *out,
        )
        ctx.core, ctx.camera, ctx.k = core, camera, k
        ctx.save_for_backward(means, *out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads):
        means, s, o, c = ctx.saved_tensors
        n, k = len(means), ctx.k
        out = torch.empty(n, 3), torch.empty(n), torch.empty(n, 1, 3), torch.empty(n, k, 3)
        grads = [g.contiguous() for g in grads]
        ctx.core.call(
            "act_bwd",
            n,
            k,
            ctx.camera.viewmat,
            means,
            s,
            o,
            c,
            *grads,
            ctx.core.num_threads,
            *out,
        )
        return None, None, None, *out


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, core, camera, means, quats, scales, opacities, channels, background, means2d_grad
    ):
        x = [t.contiguous() for t in (means, quats, scales, opacities, channels)]
        w, h, d = camera.width, camera.height, channels.shape[1]
        p = _project(core, camera, *x[:4])
        b = _bin(core, camera, p, x[3])
        out, alphas, left = torch.empty(h, w, d), torch.empty(h, w), torch.empty(h, w)
        last = torch.empty(h, w, dtype=torch.int32)
        core.call(
            "raster_fwd2",
            w,
            h,
            d,
            b["rows"],
            x[4],
            background,
            b["offsets"],
            b["ids"],
            core.num_threads,
            out,
            alphas,
            left,
            last,
            b["masks"],
        )
        ctx.core, ctx.camera, ctx.p, ctx.b, ctx.means2d_grad = core, camera, p, b, means2d_grad
        ctx.background, ctx.left, ctx.last = background, left, last
        ctx.save_for_backward(*x)
        return out, alphas

    @staticmethod
    def backward(ctx: Any, v_out, v_alphas):
        means, quats, scales, opacities, channels = ctx.saved_tensors
        core, camera, p, b = ctx.core, ctx.camera, ctx.p, ctx.b
        n, d, w, h = *channels.shape, camera.width, camera.height
        slots = torch.empty(max(1, len(b["ids"])) * (8 + (d + 3) // 4 * 4))
        v = torch.empty(n, 2), torch.empty(n, 3), torch.empty(n), torch.empty(n, d)
        core.call(
            "raster_bwd2",
            n,
            w,
            h,
            d,
            b["rows"],
            p["conics"],
            opacities,
            channels,
            ctx.background,
            b["offsets"],
            b["ids"],
            b["slots"],
            b["cum"],
            ctx.left,
            ctx.last,
            b["masks"],
            v_out.contiguous(),
            v_alphas.contiguous(),
            0,
            core.num_threads,
            slots,
            *v,
            None,
        )
        if ctx.means2d_grad is not None:
            ctx.means2d_grad.copy_(v[0])
        g = torch.empty(n, 3), torch.empty(n, 4), torch.empty(n, 3)
        core.call(
            "project_bwd",
            n,
            means,
            quats,
            scales,
            camera.viewmat,
            camera.K,
            w,
            h,
            EPS2D,
            core.num_threads,
            p["radii"],
            v[0],
            None,
            v[1],
            None,
            *g,
        )
        return None, None, *g, v[2], v[3], None, None


class _PhotometricLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, core, image, target, ssim_weight):
        ctx.grad = torch.empty_like(image, memory_format=torch.contiguous_format)
        h, w, c = image.shape
        value = core.call(
            "l1_ssim",
            h,
            w,
            c,
            image.contiguous(),
            target.contiguous(),
            float(ssim_weight),
            core.num_threads,
            ctx.grad,
            returns=ctypes.c_double,
        )
        return image.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, grad):
        return None, ctx.grad * grad, None, None
