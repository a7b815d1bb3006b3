# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines side by side on the same trained splats and views: times, memory, share of the peak.

Times are the least of several runs in turns: processor time on one thread, wall time on more.
"""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unified_lift.benchmark.machine import held_megabytes
from unified_lift.benchmark.peers import PEERS, PeerEngine, load_peer
from unified_lift.benchmark.suites import trained_splats
from unified_lift.capture import read_capture
from unified_lift.config import PRESETS, GeometryConfig, PipelineConfig, RenderConfig
from unified_lift.digests import digest_photos
from unified_lift.gaussians import GEOMETRY, Gaussians, from_splats
from unified_lift.geometry import Trainer
from unified_lift.ply import read_ply
from unified_lift.preparation import read_photos, to_camera
from unified_lift.protocol import JobError, Report
from unified_lift.rendering import Camera
from unified_lift.rendering.cpu import CpuEngine
from unified_lift.rendering.gsplat import project_in_torch
from unified_lift.rendering.reference import ReferenceEngine, pixel_weights, project

NATIVE, REFERENCE, GSPLAT = "native core", "torch reference", "gsplat's torch parts"
PRESET, SEED = "draft", 0
DEPTHS = (3, 19)  # colours alone; colours and 16 features
THREADS = (1, 2)
PEAK_RESET = Path("/proc/self/clear_refs")
COUNTED_ROWS = 8  # pairs are counted on one row of pixels in so many


@dataclass(frozen=True)
class Plan:
    """How large the measured views are, and how often each is measured."""

    side: int = 320  # pixels, the longest
    repeats: int = 5
    small_side: int = 64  # the reference draws every splat at every pixel
    small_count: int = 1000
    shares: tuple[float, ...] = (0.25, 0.5, 1.0)  # of the splats
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)  # of the side


@dataclass(frozen=True)
class Scene:
    """Trained splats, a view of them, and what they are."""

    gaussians: Gaussians
    camera: Camera
    about: str


def load_scene(
    source: Path, splat: Path | None, cache_dir: Path, side: int, report: Report
) -> Scene:
    """Read or train the splats.

    Args:
        source: a capture, or a trained PLY, which is seen from a made-up camera.
        splat: trained PLY of the capture; None to train with the draft preset.
        cache_dir: keeps the trained splats.
        side: longest side of the view.
        report: told of the training.

    Raises:
        JobError: what the readers refuse.
    """
    if source.suffix == ".ply":
        gaussians = from_splats(read_ply(source))
        return Scene(gaussians, facing_camera(gaussians["means"], side), f"`{source.name}`")
    capture = read_capture(source)
    if splat:
        gaussians, about = from_splats(read_ply(splat)), f"`{splat.name}`"
    else:
        cache_dir.mkdir(parents=True, exist_ok=True)
        digest, config = digest_photos(capture), PRESETS[PRESET]
        inputs = (capture, cache_dir, config.longest_side, PipelineConfig(), report)
        capture, photos = read_photos(*inputs)
        work = (cache_dir, config, SEED, digest, CpuEngine(), report)
        gaussians, about = trained_splats(capture, photos, *work), f"trained with `{PRESET}`"
    views = capture.train_views
    return Scene(gaussians, resized(to_camera(views[0]), side), f"{about}, of `{source.name}`")


def facing_camera(means: Tensor, side: int) -> Camera:
    """A camera before the splats, as far as makes most of them visible."""
    centre = means.median(0).values
    distance = 2.5 * float((means - centre).norm(dim=1).quantile(0.9))
    viewmat = torch.eye(4)
    viewmat[:3, 3] = -centre + torch.tensor([0, 0, distance])
    height = side * 3 // 4
    K = torch.tensor([[side, 0, side / 2], [0, side, height / 2], [0, 0, 1.0]])
    return Camera(viewmat, K, side, height)


def resized(camera: Camera, side: int) -> Camera:
    """The same view with another number of pixels."""
    scale = side / max(camera.width, camera.height)
    width, height = (max(1, round(scale * n)) for n in (camera.width, camera.height))
    K = torch.diag(torch.tensor([width / camera.width, height / camera.height, 1.0])) @ camera.K
    return Camera(camera.viewmat, K, width, height)


def some_of(gaussians: Gaussians, count: int) -> Gaussians:
    """Some splats, drawn at random but always the same."""
    num = len(gaussians["means"])
    rows = torch.randperm(num, generator=torch.Generator().manual_seed(0))[:count]
    return {name: value[rows] for name, value in gaussians.items()}


def clock(num_threads: int) -> Callable[[], float]:
    """Processor time where one thread works, else wall time."""
    return time.process_time if num_threads == 1 else time.perf_counter


def draw(engine: CpuEngine, scene: Scene, depth: int, now: Callable[[], float]) -> list[float]:
    """Seconds of forward and backward, of colours by spherical harmonics or of any channels."""
    generator = torch.Generator().manual_seed(0)
    leaves = {name: t.clone().requires_grad_() for name, t in scene.gaussians.items()}
    geometry = {name: leaves[name] for name in GEOMETRY}
    channels = torch.rand(len(leaves["means"]), depth, generator=generator).requires_grad_()
    start = now()
    if depth == DEPTHS[0]:
        render = engine.render(**leaves, camera=scene.camera)
    else:
        render = engine.rasterize(**geometry, channels=channels, camera=scene.camera)
    middle = now()
    outputs = (render.channels, render.alphas)
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    return [middle - start, now() - middle]


def blend_alone(engine: PeerEngine, scene: Scene, depth: int, now: Callable[[], float]) -> list:
    """Seconds of the two kernels of a peer, projection and tile lists given."""
    camera = scene.camera
    geometry = {name: scene.gaussians[name] for name in GEOMETRY}
    channels = torch.rand(len(geometry["means"]), depth)
    splats = engine.prepare(channels=channels, camera=camera, **geometry)
    image = torch.empty(camera.height, camera.width, depth)
    alphas, last = image[..., 0].clone(), image[..., 0].int()
    grads = [torch.zeros_like(t) for t in splats[:4]]
    start = now()
    engine.launch("forward", splats, [image, alphas, last], [])
    middle = now()
    ones = (torch.ones_like(image), torch.ones_like(alphas))
    engine.launch("backward", splats, [alphas, last, *ones], grads)
    return [middle - start, now() - middle]


def train_step(engine: CpuEngine, scene: Scene, now: Callable[[], float]) -> list[float]:
    """Seconds of rendering, loss, backward and Adam, once Adam has its state."""
    config = GeometryConfig()
    trainer = Trainer.start(scene.gaussians, 1.0, config)
    target = torch.full((scene.camera.height, scene.camera.width, 3), 0.5)
    for _ in range(2):
        start = now()
        image = engine.render(**trainer.gaussians, camera=scene.camera).channels
        engine.photometric_loss(image, target, config.ssim_weight).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
    return [now() - start]


def project_alone(scene: Scene, now: Callable[[], float]) -> list[float]:
    """Seconds of gsplat's projection and spherical harmonics in torch, and of their gradient."""
    names = ("means", "quats", "scales", "sh0", "shN")
    leaves = {name: scene.gaussians[name].clone().requires_grad_() for name in names}
    start = now()
    outputs = project_in_torch(**leaves, camera=scene.camera, config=RenderConfig())
    middle = now()
    sum(output.sum() for output in outputs).backward()
    return [middle - start, now() - middle]


def in_turns(calls: dict[str, Callable[[], list[float]]], repeats: int) -> dict[str, list[float]]:
    """The least seconds of each call's parts, after one run that warms up."""
    best = {name: [math.inf] * len(call()) for name, call in calls.items()}
    for _ in range(repeats):
        for name, call in calls.items():
            gc.collect()
            best[name] = [min(pair) for pair in zip(best[name], call(), strict=True)]
    return best


def peak_megabytes(call: Callable[[], object]) -> float | None:
    """The most memory that a call holds beyond what was held before (None: unknown)."""
    if not sys.platform.startswith("linux") or not PEAK_RESET.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    PEAK_RESET.write_text("5")  # proc(5): the high-water mark starts anew
    before = held_megabytes("VmRSS")
    call()
    return held_megabytes("VmHWM") - before


def machine_peak(num_threads: int) -> tuple[float, float]:
    """GFLOP/s of torch's matrix product and GB/s of its copying, on so many threads."""
    torch.set_num_threads(num_threads)
    a, b, big = torch.rand(1024, 1024), torch.rand(1024, 1024), torch.rand(1 << 25)
    copy, now = torch.empty_like(big), clock(num_threads)

    def timed(work: Callable[[], object]) -> Callable[[], list[float]]:
        def call() -> list[float]:
            start = now()
            work()
            return [now() - start]

        return call

    calls = {"flop": timed(lambda: torch.mm(a, b)), "byte": timed(lambda: copy.copy_(big))}
    best = in_turns(calls, 7)
    torch.set_num_threads(1)
    return 2 * 1024**3 / best["flop"][0] / 1e9, 2 * 4 * len(big) / best["byte"][0] / 1e9


@torch.no_grad()
def count_pairs(scene: Scene) -> int:
    """How many (splat, pixel) pairs blend, counted on some rows of pixels."""
    config, camera = RenderConfig(), scene.camera
    geometry = [scene.gaussians[name] for name in GEOMETRY]
    ellipses = project(*geometry, scene.gaussians["means"], camera, config)
    rows = range(min(COUNTED_ROWS // 2, camera.height - 1), camera.height, COUNTED_ROWS)
    counts = [int((pixel_weights(ellipses, y, camera, config) > 0).sum()) for y in rows]
    return round(sum(counts) * camera.height / len(counts))


def run_engines(scene: Scene, plan: Plan, report: Report) -> dict:
    """Measure all engines that are here.

    Returns:
        What `write_engine_report` shows: `peaks` by threads; `left_out` sentences; `pairs`;
        `whole` and `blending` by (threads, depth), `growth` by ((splats, width, height), depth) and
        `small`, each the seconds of every engine; `memory` by engine.
    """
    torch.set_num_threads(1)  # but for its peak: the engines get the threads
    results: dict = {"peaks": {}, "left_out": [], "whole": {}, "blending": {}, "growth": {}}
    for num_threads in THREADS:
        report.stage("engines", f"Measuring on {num_threads} thread(s)")
        results["peaks"][num_threads] = machine_peak(num_threads)
        engines = _engines(num_threads, results["left_out"])
        _whole(scene, plan, num_threads, engines, results)
        if num_threads == 1:
            results["memory"] = {
                name: peak_megabytes(lambda e=engine: draw(e, scene, 3, time.perf_counter))
                for name, engine in engines.items()
            }
            _growth(scene, plan, engines, results["growth"])
            engines[REFERENCE] = ReferenceEngine()
            count = min(plan.small_count, len(scene.gaussians["means"]))
            camera = resized(scene.camera, plan.small_side)
            small = Scene(some_of(scene.gaussians, count), camera, "")
            results["small"] = _steps(small, 1, engines, 2)
            results["small_count"] = count
    results["pairs"] = count_pairs(scene)
    return results


def _engines(num_threads: int, left_out: list[str]) -> dict[str, CpuEngine | PeerEngine]:
    engines = {NATIVE: CpuEngine(num_threads)}
    for name in PEERS:
        try:
            engines[name] = load_peer(name, num_threads)
        except JobError as error:
            if str(error) not in left_out:
                left_out.append(str(error))
    return engines


def _whole(scene: Scene, plan: Plan, num_threads: int, engines: dict, results: dict) -> None:
    now = clock(num_threads)
    results["whole"][num_threads, 3] = _steps(scene, num_threads, engines, plan.repeats)
    calls = {name: lambda e=e: draw(e, scene, 19, now) for name, e in engines.items()}
    results["whole"][num_threads, 19] = in_turns(calls, plan.repeats)
    peers = {name: engine for name, engine in engines.items() if name != NATIVE}
    for depth in DEPTHS:
        calls = {n: lambda e=e, d=depth: blend_alone(e, scene, d, now) for n, e in peers.items()}
        results["blending"][num_threads, depth] = in_turns(calls, plan.repeats)
    if num_threads > 1:
        return
    try:
        parts = in_turns({GSPLAT: lambda: project_alone(scene, now)}, plan.repeats)
        results["whole"][num_threads, 3] |= parts
    except JobError as error:
        results["left_out"].append(str(error))


def _steps(scene: Scene, num_threads: int, engines: dict, repeats: int) -> dict[str, list[float]]:
    """Forward, backward and a whole training step of each engine."""
    now = clock(num_threads)

    def call(engine: CpuEngine) -> list[float]:
        return [*draw(engine, scene, 3, now), *train_step(engine, scene, now)]

    return in_turns({name: lambda e=e: call(e) for name, e in engines.items()}, repeats)


def _growth(scene: Scene, plan: Plan, engines: dict, growth: dict) -> None:
    """Forward and backward on one thread, with fewer splats and with other numbers of pixels."""
    num = len(scene.gaussians["means"])
    counts = [max(1, round(share * num)) for share in plan.shares]
    scenes = [replace(scene, gaussians=some_of(scene.gaussians, count)) for count in counts]
    sides = [round(scale * plan.side) for scale in plan.scales if scale != 1]
    scenes += [replace(scene, camera=resized(scene.camera, side)) for side in sides]
    for variant in scenes:
        label = (len(variant.gaussians["means"]), variant.camera.width, variant.camera.height)
        for depth in DEPTHS:
            calls = {
                name: lambda e=e, v=variant, d=depth: draw(e, v, d, clock(1))
                for name, e in engines.items()
            }
            growth[label, depth] = in_turns(calls, max(1, plan.repeats // 2))
