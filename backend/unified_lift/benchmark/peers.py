# SPDX-License-Identifier: GPL-3.0-or-later
"""Other CPU engines: kernels of ours in NVIDIA Warp and in Taichi, one thread a pixel.

Projection and colours are the reference engine's (torch), tile lists NumPy's, the loss is the
native core's: only the blending is theirs. No postponed annotations: both compilers read the types.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_lift.config import RenderConfig
from unified_lift.protocol import JobError
from unified_lift.rendering import Camera, Render
from unified_lift.rendering.cpu import CpuEngine
from unified_lift.rendering.reference import Ellipses, project, shade

TILE = 16  # pixels a side, as in the native core


class Splats(NamedTuple):
    """What is blended: V ellipses, and which of them each tile has, front to back.

    Attributes:
        means2d: (V, 2) pixels.
        conics: (V, 3), xx, xy and yy of the inverse covariance.
        opacities: (V,).
        channels: (V, D).
        tile_begin: (tiles + 1,) int32, places in `entries`.
        entries: int32, ellipses.
    """

    means2d: Tensor
    conics: Tensor
    opacities: Tensor
    channels: Tensor
    tile_begin: Tensor
    entries: Tensor


# Blending, compiled for any number of channels at its first use: "forward" fills pixels (H, W, ...)
# [out, alphas, last], where `last` int32 gets the last entry or -1; "backward" reads pixels
# [alphas, last, v_out, v_alphas] and adds to grads of means2d, conics, opacities and channels.
Launch = Callable[[str, Splats, list[Tensor], list[Tensor]], None]


class PeerEngine:
    """An `Engine` (without blend weights) around somebody's kernels."""

    device = torch.device("cpu")

    def __init__(self, name: str, launch: Launch, num_threads: int) -> None:
        self.name, self.launch, self.config = name, launch, RenderConfig()
        self.photometric_loss = CpuEngine(num_threads).photometric_loss

    def render(self, *, sh0: Tensor, shN: Tensor, camera: Camera, **geometry: Tensor) -> Render:
        """See `Engine.render`."""
        channels = shade(geometry["means"], sh0, shN, camera)
        return self.rasterize(**geometry, channels=channels, camera=camera)

    def rasterize(self, *, channels: Tensor, camera: Camera, **geometry: Tensor) -> Render:
        """See `Engine.rasterize`."""
        splats = self.prepare(channels=channels, camera=camera, **geometry)
        return Render(*_Blend.apply(self.launch, camera, *splats))

    def prepare(self, *, channels: Tensor, camera: Camera, **geometry: Tensor) -> Splats:
        """All that comes before the blending."""
        ellipses = project(**geometry, channels=channels, camera=camera, config=self.config)
        conics = ellipses.conics.flatten(1)[:, [0, 1, 3]]
        lists = tile_lists(ellipses, camera, self.config.alpha_min)
        parts = (ellipses.means2d, conics, ellipses.opacities, channels[ellipses.ids])
        return Splats(*(part.contiguous() for part in parts), *lists)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launch, camera: Camera, *splats: Tensor) -> tuple:
        size = (camera.height, camera.width)
        out, alphas = torch.empty(*size, splats[3].shape[1]), torch.empty(size)
        last = torch.empty(size, dtype=torch.int32)
        launch("forward", Splats(*(t.detach() for t in splats)), [out, alphas, last], [])
        ctx.launch = launch
        ctx.save_for_backward(*splats, alphas, last)
        return out, alphas

    @staticmethod
    def backward(ctx: Any, v_out: Tensor, v_alphas: Tensor) -> tuple:
        *splats, alphas, last = (t.detach() for t in ctx.saved_tensors)
        grads = [torch.zeros_like(t) for t in splats[:4]]
        pixels = [alphas, last, v_out.contiguous(), v_alphas.contiguous()]
        ctx.launch("backward", Splats(*splats), pixels, grads)
        return None, None, *grads, None, None


def tile_lists(ellipses: Ellipses, camera: Camera, alpha_min: float) -> tuple[Tensor, Tensor]:
    """`tile_begin` and `entries` of `Splats`, from the boxes around the ellipses."""
    means, conics = (t.detach().numpy() for t in ellipses[1:3])
    ranges = 2 * np.log(ellipses.opacities.detach().numpy() / alpha_min)
    determinants = conics[:, 0, 0] * conics[:, 1, 1] - conics[:, 0, 1] ** 2
    variances = conics[:, [1, 0], [1, 0]] / determinants[:, None]
    half = np.sqrt(np.maximum(ranges, 0)[:, None] * variances)
    num_tiles = -(-np.array([camera.width, camera.height]) // TILE)
    first = np.floor((means - half) / TILE).clip(0, num_tiles).astype(np.int64)
    sizes = np.ceil((means + half) / TILE).clip(0, num_tiles).astype(np.int64) - first
    counts = np.maximum(sizes, 0).prod(1)
    owners = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows, columns = np.divmod(places, sizes[owners, 0])
    tiles = (first[owners, 1] + rows) * num_tiles[0] + first[owners, 0] + columns
    begin = np.zeros(num_tiles.prod() + 1, np.int32)
    begin[1:] = np.cumsum(np.bincount(tiles, minlength=len(begin) - 1))
    entries = owners[np.argsort(tiles, kind="stable")].astype(np.int32)
    return torch.from_numpy(begin), torch.from_numpy(entries)


def load_peer(name: str, num_threads: int) -> PeerEngine:
    """Make an engine of `PEERS`.

    Raises:
        JobError: its package is missing, or it cannot use so many threads.
    """
    module, package, start = PEERS[name]
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        raise JobError(f"{name} is not installed ('pip install {package}').") from error
    return PeerEngine(name, start(library, num_threads), num_threads)


def start_warp(wp: Any, num_threads: int) -> Launch:
    """Warp compiles for the processor, too, but runs a kernel on one thread."""
    if num_threads > 1:
        raise JobError("Warp runs a kernel on one processor thread only.")
    wp.config.quiet = True
    wp.init()
    kernels = cache(lambda depth: _warp_kernels(wp, depth))
    config = RenderConfig()

    def launch(which: str, splats: Splats, pixels: list[Tensor], grads: list[Tensor]) -> None:
        height, width = pixels[0].shape[:2]
        sizes = [width, -(-width // TILE)]
        rules = [config.alpha_min, config.alpha_max, config.transmittance_min]
        arrays = map(wp.from_torch, [*splats, *(t.flatten(0, 1) for t in pixels), *grads])
        kernel = kernels(splats.channels.shape[1])[which]
        wp.launch(kernel, height * width, inputs=[*sizes, *rules, *arrays], device="cpu")

    return launch


def _warp_kernels(wp: Any, depth: int) -> dict[str, Any]:
    """Forward and backward for a number of channels."""
    Vector = wp.types.vector(length=depth, dtype=wp.float32)
    Floats, Rows, Ints = (wp.array(dtype=float), wp.array2d(dtype=float), wp.array(dtype=int))
    side = wp.constant(TILE)

    @wp.func
    def sigma_at(means: Rows, conics: Rows, g: int, x: float, y: float):
        dx = x - means[g, 0]
        dy = y - means[g, 1]
        return 0.5 * (conics[g, 0] * dx * dx + conics[g, 2] * dy * dy) + conics[g, 1] * dx * dy

    @wp.kernel(module="unique")
    def forward(
        width: int, tiles_x: int, least: float, most: float, end: float, means: Rows, conics: Rows,
        opacities: Floats, channels: Rows, begin: Ints, entries: Ints, out: Rows, alphas: Floats,
        last: Ints,
    ):  # fmt: skip
        pixel = wp.tid()
        row = pixel // width
        column = pixel - row * width
        tile = (row // side) * tiles_x + column // side
        T = wp.float32(1.0)
        final = wp.int32(-1)
        total = Vector()
        for entry in range(begin[tile], begin[tile + 1]):
            g = entries[entry]
            sigma = sigma_at(means, conics, g, float(column) + 0.5, float(row) + 0.5)
            alpha = opacities[g] * wp.exp(-sigma)
            if sigma >= 0.0 and alpha >= least:
                alpha = wp.min(alpha, most)
                if T * (1.0 - alpha) <= end:
                    break
                for k in range(depth):
                    total[k] = total[k] + alpha * T * channels[g, k]
                T = T * (1.0 - alpha)
                final = entry
        for k in range(depth):
            out[pixel, k] = total[k]
        alphas[pixel] = 1.0 - T
        last[pixel] = final

    @wp.kernel(module="unique")
    def backward(
        width: int, tiles_x: int, least: float, most: float, end: float, means: Rows, conics: Rows,
        opacities: Floats, channels: Rows, begin: Ints, entries: Ints, alphas: Floats, last: Ints,
        v_out: Rows, v_alphas: Floats, v_means: Rows, v_conics: Rows, v_opacities: Floats,
        v_channels: Rows,
    ):  # fmt: skip
        pixel = wp.tid()
        row = pixel // width
        column = pixel - row * width
        first = begin[(row // side) * tiles_x + column // side]
        T = 1.0 - alphas[pixel]
        S = -T * v_alphas[pixel]
        for back in range(last[pixel] - first + 1):
            g = entries[last[pixel] - back]
            sigma = sigma_at(means, conics, g, float(column) + 0.5, float(row) + 0.5)
            alpha = opacities[g] * wp.exp(-sigma)
            if sigma >= 0.0 and alpha >= least:
                held = wp.min(alpha, most)
                T = T / (1.0 - held)
                q = wp.float32(0.0)
                for k in range(depth):
                    q = q + channels[g, k] * v_out[pixel, k]
                    wp.atomic_add(v_channels, g, k, held * T * v_out[pixel, k])
                v = T * q - S / (1.0 - held)
                S = S + held * T * q
                if alpha <= most:
                    dx = float(column) + 0.5 - means[g, 0]
                    dy = float(row) + 0.5 - means[g, 1]
                    s = alpha * v
                    wp.atomic_add(v_opacities, g, s / opacities[g])
                    wp.atomic_add(v_means, g, 0, s * (conics[g, 0] * dx + conics[g, 1] * dy))
                    wp.atomic_add(v_means, g, 1, s * (conics[g, 1] * dx + conics[g, 2] * dy))
                    wp.atomic_add(v_conics, g, 0, -0.5 * s * dx * dx)
                    wp.atomic_add(v_conics, g, 1, -s * dx * dy)
                    wp.atomic_add(v_conics, g, 2, -0.5 * s * dy * dy)

    return {"forward": forward, "backward": backward}


def start_taichi(ti: Any, num_threads: int) -> Launch:
    """Taichi runs the same loops on threads of its own; a second start ends the first one."""
    options = {"arch": ti.cpu, "cpu_max_num_threads": num_threads, "offline_cache": False}
    ti.init(**options, default_fp=ti.f32, log_level=ti.WARN)
    kernels = cache(lambda depth: _taichi_kernels(ti, depth))

    def launch(which: str, splats: Splats, pixels: list[Tensor], grads: list[Tensor]) -> None:
        kernels(splats.channels.shape[1])[which](*splats, *pixels, *grads)
        ti.sync()

    return launch


def _taichi_kernels(ti: Any, depth: int) -> dict[str, Any]:
    """Forward and backward for a number of channels."""
    config = RenderConfig()
    least, most, end = config.alpha_min, config.alpha_max, config.transmittance_min
    Floats, Rows = (ti.types.ndarray(dtype=ti.f32, ndim=n) for n in (1, 2))
    Ints, IntRows = (ti.types.ndarray(dtype=ti.i32, ndim=n) for n in (1, 2))
    Vector = ti.types.vector(depth, ti.f32)
    Vectors, VectorRows = (ti.types.ndarray(dtype=Vector, ndim=n) for n in (1, 2))

    @ti.func
    def sigma_at(c0, c1, c2, dx, dy):
        return 0.5 * (c0 * dx * dx + c2 * dy * dy) + c1 * dx * dy

    @ti.kernel
    def forward(
        means: Rows, conics: Rows, opacities: Floats, channels: Vectors, begin: Ints, entries: Ints,
        out: VectorRows, alphas: Rows, last: IntRows,
    ):  # fmt: skip
        tiles_x = (alphas.shape[1] + TILE - 1) // TILE
        for row, column in alphas:
            tile = row // TILE * tiles_x + column // TILE
            T, final, total, entry = 1.0, -1, Vector(0.0), begin[tile]
            while entry < begin[tile + 1]:
                g = entries[entry]
                dx, dy = column + 0.5 - means[g, 0], row + 0.5 - means[g, 1]
                sigma = sigma_at(conics[g, 0], conics[g, 1], conics[g, 2], dx, dy)
                alpha = opacities[g] * ti.exp(-sigma)
                if sigma >= 0.0 and alpha >= least:
                    alpha = ti.min(alpha, most)
                    if T * (1.0 - alpha) <= end:
                        break
                    total += alpha * T * channels[g]
                    T *= 1.0 - alpha
                    final = entry
                entry += 1
            out[row, column] = total
            alphas[row, column] = 1.0 - T
            last[row, column] = final

    @ti.kernel
    def backward(
        means: Rows, conics: Rows, opacities: Floats, channels: Vectors, begin: Ints, entries: Ints,
        alphas: Rows, last: IntRows, v_out: VectorRows, v_alphas: Rows, v_means: Rows,
        v_conics: Rows, v_opacities: Floats, v_channels: Vectors,
    ):  # fmt: skip
        tiles_x = (alphas.shape[1] + TILE - 1) // TILE
        for row, column in alphas:
            first = begin[row // TILE * tiles_x + column // TILE]
            T, v = 1.0 - alphas[row, column], v_out[row, column]
            S, entry = -T * v_alphas[row, column], last[row, column]
            while entry >= first:
                g = entries[entry]
                dx, dy = column + 0.5 - means[g, 0], row + 0.5 - means[g, 1]
                sigma = sigma_at(conics[g, 0], conics[g, 1], conics[g, 2], dx, dy)
                alpha = opacities[g] * ti.exp(-sigma)
                if sigma >= 0.0 and alpha >= least:
                    held = ti.min(alpha, most)
                    T /= 1.0 - held
                    q = channels[g].dot(v)
                    ti.atomic_add(v_channels[g], held * T * v)
                    s = alpha * (T * q - S / (1.0 - held))
                    S += held * T * q
                    if alpha <= most:
                        ti.atomic_add(v_opacities[g], s / opacities[g])
                        ti.atomic_add(v_means[g, 0], s * (conics[g, 0] * dx + conics[g, 1] * dy))
                        ti.atomic_add(v_means[g, 1], s * (conics[g, 1] * dx + conics[g, 2] * dy))
                        ti.atomic_add(v_conics[g, 0], -0.5 * s * dx * dx)
                        ti.atomic_add(v_conics[g, 1], -s * dx * dy)
                        ti.atomic_add(v_conics[g, 2], -0.5 * s * dy * dy)
                entry -= 1

    return {"forward": forward, "backward": backward}


PEERS: dict[str, tuple[str, str, Callable[[Any, int], Launch]]] = {  # module, package
    "Warp": ("warp", "warp-lang", start_warp),
    "Taichi": ("taichi", "taichi", start_taichi),
}
