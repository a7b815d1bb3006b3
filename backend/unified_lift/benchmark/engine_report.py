# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of the engines' benchmark, and how its figures are counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from unified_lift.benchmark.engines import DEPTHS, GSPLAT, NATIVE, REFERENCE, THREADS, Plan, Scene
from unified_lift.benchmark.machine import machine_words, today, version_words

COUNTING = """\
- Times are the least of several runs, the engines in turns within one process; of processor time on
  one thread, of wall time on two. Torch itself has one thread.
- *forward* draws a view from raw parameters (D = 3: with spherical harmonics; D = 19: any
  channels), *backward* gives the gradients of all of them. *step* is a whole training step:
  forward, the photometric loss (L1 + SSIM) against a grey picture, backward and Adam.
- *MB*: the most memory that forward and backward held (D = 3), beyond splats and program.
- A pair is a splat that blends into a pixel; pairs are counted with the reference's own rules, on
  every eighth row of pixels. Useful work of a pair: forward 30 + 2 D and backward 46 + 4 D
  floating-point operations, for the ellipse, the exponential, the blending of D channels, and their
  gradients. What is computed for pixels that turn out to lie outside an ellipse is no useful work,
  nor are projection and sorting; their time counts all the same.
- *FLOP/s share*: useful work over time, as a share of what torch's product of two 1024 x 1024
  matrices reaches here on one thread, times the threads. *bandwidth share*: the bytes that must be
  read and written at the least (parameters, channels, picture; backward: their gradients, too),
  over time, as a share of the most that torch reaches when it copies 128 MiB.
- Peers: Warp and Taichi have kernels of ours, in the way their users write them: one thread a
  pixel, atomic additions in backward. Projection and colours are torch's, tile lists NumPy's
  (*blending alone* leaves these out), the loss the native core's. gsplat's rasterizer needs CUDA:
  of it, projection and spherical harmonics in torch are measured, which draw no picture."""


def write_engine_report(path: Path, scene: Scene, results: dict, plan: Plan, command: str) -> None:
    """Write what `run_engines` has measured as Markdown."""
    camera, num = scene.camera, len(scene.gaussians["means"])
    pairs = results["pairs"]
    size = f"{camera.width} x {camera.height}"
    about = f"{num:,} splats, {scene.about}, at {size} pixels: {pairs:,} pairs of splat and pixel, "
    about += f"{pairs / camera.width / camera.height:.0f} a pixel."
    blocks = ["# Benchmark of the engines", _setup(command), about, "## The machine's peak"]
    blocks.append(_table(["threads", "GFLOP/s", "GB/s"], _peak_rows(results)))
    for depth in DEPTHS:
        blocks += [f"## Whole view, D = {depth}", _whole_table(scene, results, depth)]
    blocks += ["## Blending alone, projection and tile lists given", _blending_table(results)]
    blocks += ["## Growth, one thread", _growth_table(results)]
    small = f"{results['small_count']:,} of the splats, {plan.small_side} pixels wide, D = 3, one "
    small += "thread: the reference draws every splat at every pixel, the whole view would take it "
    small += "minutes and many GB."
    blocks += ["## With the slow reference", small, _small_table(results)]
    blocks += ["## How it is counted", COUNTING]
    if results["left_out"]:
        blocks += ["## Left out", "\n".join(f"- {text}" for text in results["left_out"])]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def useful_work(pairs: int, depth: int) -> tuple[int, int]:
    """Floating-point operations of forward and backward."""
    return pairs * (30 + 2 * depth), pairs * (46 + 4 * depth)


def least_bytes(scene: Scene, depth: int) -> tuple[int, int]:
    """Bytes that forward and backward must move at the least."""
    gaussians, camera = scene.gaussians, scene.camera
    names = gaussians if depth == DEPTHS[0] else ("means", "quats", "scales", "opacities")
    floats = sum(gaussians[name].numel() for name in names)
    floats += 0 if depth == DEPTHS[0] else depth * len(gaussians["means"])
    picture = camera.width * camera.height * (depth + 1)
    return 4 * (floats + picture), 4 * (2 * floats + picture)


def _setup(command: str) -> str:
    return f"`{command}`\n\n{today()}; {machine_words()}; {version_words()}."


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _peak_rows(results: dict) -> list[list[str]]:
    return [
        [str(threads), f"{gflops:.0f}", f"{gbytes:.1f}"]
        for threads, (gflops, gbytes) in results["peaks"].items()
    ]


def _whole_table(scene: Scene, results: dict, depth: int) -> str:
    titles = ["engine", "threads", "forward, ms", "backward, ms", "step, ms", "forward + backward"]
    titles += ["FLOP/s share, forward / backward", "bandwidth share", "MB"]
    rows = []
    for threads in THREADS:
        native = sum(results["whole"][threads, depth][NATIVE][:2])
        for name, seconds in results["whole"][threads, depth].items():
            both = sum(seconds[:2])
            row = [name, str(threads), *map(_ms, seconds)]
            row += ["–"] * (5 - len(row)) + [f"{both / native:.3g} x native"]
            memory = results["memory"].get(name) if (threads, depth) == (1, 3) else None
            shares = ["–", "–"]
            if name != GSPLAT:
                shares = _shares(scene, results, threads, depth, seconds)
            rows.append([*row, *shares, "–" if memory is None else f"{memory:.0f}"])
    return _table(titles, rows)


def _shares(
    scene: Scene, results: dict, threads: int, depth: int, seconds: Sequence[float]
) -> list[str]:
    gflops = threads * results["peaks"][1][0]
    gbytes = max(gbytes for _, gbytes in results["peaks"].values())
    work = useful_work(results["pairs"], depth)
    flop = [100 * w / s / gflops / 1e9 for w, s in zip(work, seconds[:2], strict=True)]
    moved = 100 * sum(least_bytes(scene, depth)) / sum(seconds[:2]) / gbytes / 1e9
    return [f"{flop[0]:.2g} % / {flop[1]:.2g} %", f"{moved:.2g} %"]


def _blending_table(results: dict) -> str:
    titles = ["engine", "threads", "D", "forward, ms", "backward, ms", "x native's whole view"]
    rows = []
    for (threads, depth), engines in results["blending"].items():
        native = sum(results["whole"][threads, depth][NATIVE][:2])
        for name, seconds in engines.items():
            times = [*map(_ms, seconds), f"{sum(seconds) / native:.3g}"]
            rows.append([name, str(threads), str(depth), *times])
    return _table(titles, rows) if rows else "No peer is installed."


def _growth_table(results: dict) -> str:
    titles = ["splats", "pixels", "D", "engine", "forward, ms", "backward, ms"]
    rows = []
    for ((num, width, height), depth), engines in results["growth"].items():
        for name, seconds in engines.items():
            where = [f"{num:,}", f"{width} x {height}", str(depth)]
            rows.append([*where, name, *map(_ms, seconds)])
    return _table(titles, rows)


def _small_table(results: dict) -> str:
    titles = ["engine", "forward, ms", "backward, ms", "step, ms", "reference takes"]
    slow = sum(results["small"][REFERENCE][:2])
    return _table(
        titles,
        [
            [name, *map(_ms, seconds), f"{slow / sum(seconds[:2]):.3g} x as long"]
            for name, seconds in results["small"].items()
        ],
    )
