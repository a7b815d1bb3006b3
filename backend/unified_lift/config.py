# SPDX-License-Identifier: GPL-3.0-or-later
"""Every constant that a result depends on, with its meaning and source. Only dataclasses here."""

from __future__ import annotations

from dataclasses import dataclass

MASKS_AUTO, MASKS_SAM = "auto", "sam"  # any other value of Settings.masks is a folder
METHODS = ("default", "votes")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Settings:
    """What the user chooses for a job.

    Attributes:
        masks: "auto" (from photos and splats alone), "sam", or the path of a mask folder.
        sam_checkpoint: path of a segment-anything checkpoint, "" unless masks is "sam".
        method: "default" (features, codebook, compaction) or "votes" (training-free).
        preset: a key of `PRESETS`.
        device: one of `DEVICES`.
        seed: seed of everything random.
    """

    masks: str = MASKS_AUTO
    sam_checkpoint: str = ""
    method: str = "default"
    preset: str = "standard"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class GeometryConfig:
    """Photometric training of the Gaussians (3DGS, with MCMC-style densification).

    The four first values make up a preset; the learning rates are those of 3DGS's reference
    settings for 30 000 steps, raised for the few thousand steps that a CPU affords (measured).
    """

    longest_side: int = 480  # photos are scaled down to this, pixels
    iterations: int = 3000
    max_gaussians: int = 30_000
    sh_degree: int = 2
    coarse_factors: tuple[int, ...] = (4, 2, 1)  # resolution is divided by these, in turn
    coarse_shares: tuple[float, ...] = (0.3, 0.3, 0.4)  # share of the iterations of each
    min_coarse_side: int = 80  # never train below this longest side, pixels

    means_lr: float = 3.2e-4  # times the scene's extent; decays to 1 % of it
    means_lr_final: float = 0.01
    scales_lr: float = 7.5e-3
    quats_lr: float = 2e-3
    opacities_lr: float = 5e-2
    sh0_lr: float = 5e-3
    shN_lr: float = 2.5e-4
    ssim_weight: float = 0.2  # 3DGS
    opacity_regularizer: float = 0.01  # 3DGS-MCMC
    scale_regularizer: float = 0.01  # 3DGS-MCMC

    densify_from: int = 200  # iteration
    densify_until: float = 0.8  # share of the iterations
    densify_every: int = 100
    growth: float = 1.3  # Gaussians grow by this factor at most at each densification
    dead_opacity: float = 0.005  # relocated below this (3DGS-MCMC)
    init_opacity: float = 0.1  # 3DGS
    random_points: int = 10_000  # where the capture has no points
    min_points: int = 100  # with fewer points than this the start is random

    # Seconds of a training step on two cores of a 2023 server CPU: a least-squares fit that
    # keeps each stretch of 300 steps on messy25 within 10 %. Only the time left depends on them.
    cost_pixel: float = 1.44e-7
    cost_overdraw: float = 1.6e-12  # for each pixel and Gaussian
    cost_gaussian: float = 2.1e-7


PRESETS = {
    "draft": GeometryConfig(longest_side=256, iterations=1000, max_gaussians=15_000, sh_degree=1),
    "standard": GeometryConfig(),
    "high": GeometryConfig(longest_side=960, iterations=7000, max_gaussians=100_000, sh_degree=3),
}


@dataclass(frozen=True)
class CaptureConfig:
    """What the readers of captures tolerate."""

    pose_tolerance: float = 0.01  # relative difference in length of the axes of a rotation
    center_tolerance: float = 0.01  # median distance of camera centres, relative to their spread
    aspect_tolerance: float = 1.5  # pixels by which a scaled photo may miss the camera's aspect
    undistortion_tolerance: float = 0.01  # pixels that undistortion and distortion may differ
