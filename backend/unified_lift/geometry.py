# SPDX-License-Identifier: GPL-3.0-or-later
"""Photometric training of the Gaussians: 3DGS losses, coarse to fine, MCMC-style densification."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor

from unified_lift.config import GeometryConfig
from unified_lift.exposures import Exposures
from unified_lift.gaussians import (
    GEOMETRY,
    MAX_COPIES,
    PARAMETERS,
    Gaussians,
    random_points,
    relocated,
    scene_extent,
    start_gaussians,
)
from unified_lift.protocol import JobError, Report
from unified_lift.rendering import Camera, Engine

FEATURES = "features"  # name of a learner's features among the parameters
FAR = 6.0  # SfM points farther from their median than this times the extent are outliers


class Learner(Protocol):
    """What learns features of the Gaussians beside their training, and never touches them."""

    rate: float  # of Adam
    features: Tensor  # (N, D), when the training has ended

    def start(self, num_gaussians: int) -> Tensor:
        """Features (N, D) to begin with; copies of a Gaussian inherit its own."""

    def loss(self, view: int, rendered: Tensor) -> Tensor:
        """Loss of the features that a view (by its place among the photos) shows, (H, W, D)."""


class State(TypedDict):
    """All that a training without a learner needs to go on, as if it had never stopped."""

    step: int  # the next one
    start: int  # number of Gaussians at the first one
    gaussians: Gaussians
    optimizer: dict
    exposures: dict
    generator: Tensor
    order: list[int]  # views that are to come before all are drawn anew
    losses: Tensor  # of the last steps


@dataclass
class Trainer:
    """The Gaussians in training with their optimiser."""

    gaussians: Gaussians
    optimizer: torch.optim.Adam

    @classmethod
    def start(
        cls, gaussians: Gaussians, extent: float, config: GeometryConfig, feature_lr: float = 0.0
    ) -> Trainer:
        """Begin at these Gaussians; `extent` scales the learning rate of the means."""
        rates = {name: getattr(config, f"{name}_lr") for name in PARAMETERS}
        rates["means"] *= extent
        rates[FEATURES] = feature_lr
        params = {name: value.clone().requires_grad_() for name, value in gaussians.items()}
        groups = [
            {"params": [params[name]], "lr": rates[name], "first_lr": rates[name], "name": name}
            for name in params
        ]
        optimizer = torch.optim.Adam(groups, eps=1e-15, fused=True)  # eps: 3DGS
        return cls(params, optimizer)

    def replace(self, gaussians: Gaussians, fresh: Tensor) -> None:
        """Go on with other Gaussians: the first rows are the old ones, `fresh` rows were changed.

        Args:
            gaussians: the new parameters, at least as many rows as before.
            fresh: indices of old rows whose running moments are forgotten.
        """
        for group in self.optimizer.param_groups:
            name, old = group["name"], group["params"][0]
            state = self.optimizer.state.pop(old)
            new = gaussians[name].clone().requires_grad_()
            for moment in ("exp_avg", "exp_avg_sq"):
                padded = torch.zeros_like(new)
                padded[: len(old)] = state[moment]
                padded[fresh] = 0
                state[moment] = padded
            self.optimizer.state[new] = state
            group["params"] = [new]
            self.gaussians[name] = new


def train(
    photos: list[np.ndarray],
    cameras: list[Camera],
    points: np.ndarray,
    colors: np.ndarray,
    config: GeometryConfig,
    engine: Engine,
    seed: int,
    report: Report,
    show: Callable[[Gaussians], None] = lambda gaussians: None,
    learner: Learner | None = None,
    unfinished: State | None = None,
    keep: Callable[[Callable[[], State]], None] | None = None,
) -> Gaussians:
    """Train Gaussians until they look like the photos.

    Args:
        photos: (H, W, 3) uint8 each.
        cameras: one for each photo, world to camera, OpenCV axes.
        points: (P, 3) float32 in the world frame; random ones take the place of too few. Nobody
            looks at them if a training goes on.
        colors: (P, 3) uint8.
        config: iterations, resolution, learning rates.
        engine: what renders.
        seed: makes the run repeatable.
        report: told of each step; its steps are units of cost, so they pass evenly in time.
        show: called after each step, to make a preview.
        learner: learns features in the same steps, and is left with them.
        unfinished: state of a training that was stopped, to go on from; it is taken over.
        keep: called after each step with what makes the state then. No state holds a learner.

    Returns:
        The raw parameters, detached, on the CPU.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    extent = scene_extent(cameras)
    exposures = Exposures(cameras, config, engine.device)
    if unfinished:
        start = unfinished["gaussians"]
        first, order, count = (unfinished[name] for name in ("step", "order", "start"))
        losses = list(unfinished["losses"].to(engine.device))
        exposures.restore(unfinished["exposures"])
        generator.set_state(unfinished["generator"])
    else:
        scene = (photos, cameras, points, colors)
        start = start_gaussians(*_start_points(*scene, config, rng), config)
        first, order, count, losses = 0, [], len(start["means"]), []
    if learner:
        start[FEATURES] = learner.start(count)
    start = {name: value.to(engine.device) for name, value in start.items()}
    trainer = Trainer.start(start, extent, config, learner.rate if learner else 0.0)
    if unfinished:
        trainer.optimizer.load_state_dict(unfinished["optimizer"])
    costs = list(step_costs(config, cameras, count))
    full_size = int(sum(config.coarse_shares[:-1]) * config.iterations)
    total, spent = sum(costs[first:]), 0.0
    for step, view, photo, camera in schedule(photos, cameras, config, generator, first, order):
        if step == min(full_size, config.exposure_rounds * len(photos)):
            exposures.judge(config)
        loss = photometric(trainer, exposures, view, photo, camera, config, engine)
        losses.append(loss.detach())
        loss = loss + regularizers(trainer, extent, config)
        if learner:
            loss = loss + learner.loss(view, _features_of(trainer, camera, engine))
        descend(trainer, loss, step, config)
        exposures.step()
        if _densify_now(config, step):
            densify(trainer, config, generator)
        last = losses[-len(photos) :]
        finished = step >= full_size + len(photos) and _finished(last, config)
        if keep:
            following = config.iterations if finished else step + 1
            running = (trainer, exposures, generator, order, last)
            keep(partial(_state, following, count, *running))
        spent += costs[step]
        share = 1.0 if finished else spent / total
        now = len(trainer.gaussians["means"])
        message = f"{step + 1} of {config.iterations} steps, {now:,} splats"
        report.progress(round(1000 * share), 1000, message)
        show({name: trainer.gaussians[name] for name in PARAMETERS})
        if finished:
            break
    check_finite(trainer.gaussians)
    trained = {name: value.detach().cpu() for name, value in trainer.gaussians.items()}
    if learner:
        learner.features = trained.pop(FEATURES)
    return trained


def _state(
    step: int,
    start: int,
    trainer: Trainer,
    exposures: Exposures,
    generator: torch.Generator,
    order: list[int],
    losses: list[Tensor],
) -> State:
    """The state before a step; it shares the memory of the training."""
    return {
        "step": step,
        "start": start,
        "gaussians": {name: value.detach() for name, value in trainer.gaussians.items()},
        "optimizer": trainer.optimizer.state_dict(),
        "exposures": exposures.state(),
        "generator": generator.get_state(),
        "order": order,
        "losses": torch.stack(losses),
    }


def schedule(
    photos: list[np.ndarray],
    cameras: list[Camera],
    config: GeometryConfig,
    generator: torch.Generator,
    first: int = 0,
    order: list[int] | None = None,
) -> Iterator[tuple[int, int, np.ndarray, Camera]]:
    """Each step with its view, photo and camera: all in random order, again and again.

    From step `first` on; `order` holds the views that are to come before all are drawn anew, and
    is kept up to date.
    """
    level, images, scaled = 1, photos, cameras
    order = [] if order is None else order
    for step in range(first, config.iterations):
        factor = coarse_factor(config, cameras, step)
        if factor != level:
            level = factor
            images, scaled = _shrink(photos, cameras, factor)
        if not order:
            order += torch.randperm(len(photos), generator=generator).tolist()
        view = order.pop()
        yield step, view, images[view], scaled[view]


def _start_points(
    photos: list[np.ndarray],
    cameras: list[Camera],
    points: np.ndarray,
    colors: np.ndarray,
    config: GeometryConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The capture's points without far outliers, or random ones where there are too few."""
    values = colors.astype(np.float32) / 255
    if len(points) >= config.min_points:
        far = np.linalg.norm(points - np.median(points, 0), axis=1)
        keep = np.nonzero(far < FAR * scene_extent(cameras))[0]
        if len(keep) >= config.min_points:
            if len(keep) > config.max_gaussians:
                keep = rng.choice(keep, config.max_gaussians, replace=False)
            return points[keep], values[keep]
    return random_points(photos, cameras, start_count(0, config), rng)


def coarse_factor(config: GeometryConfig, cameras: list[Camera], step: int) -> int:
    """By how much the photos are scaled down at a step: coarse to fine."""
    side = max(max(camera.width, camera.height) for camera in cameras)
    ends = np.cumsum(config.coarse_shares) * config.iterations
    stage = int(np.searchsorted(ends, step, side="right"))
    factor = config.coarse_factors[min(stage, len(config.coarse_factors) - 1)]
    return max(1, min(factor, side // config.min_coarse_side))


def start_count(num_points: int, config: GeometryConfig) -> int:
    """How many Gaussians training starts from, far outliers aside, of a capture's points."""
    enough = num_points >= config.min_points
    return min(num_points if enough else config.random_points, config.max_gaussians)


def training_seconds(
    config: GeometryConfig, cameras: list[Camera], num_points: int, unfinished: State | None = None
) -> float:
    """Expected seconds of a training from so many points of the capture, or of what is left."""
    if unfinished:
        costs = step_costs(config, cameras, unfinished["start"])
        return sum(islice(costs, unfinished["step"], None))
    return sum(step_costs(config, cameras, start_count(num_points, config)))


def step_costs(config: GeometryConfig, cameras: list[Camera], count: int) -> Iterator[float]:
    """Expected seconds of each step on two CPU cores (`cost_*` of the config, measured).

    Only their ratios matter to the time left: the first steps show how fast the machine is.
    """
    pixels = sum(camera.width * camera.height for camera in cameras) / len(cameras)
    for step in range(config.iterations):
        share = pixels / coarse_factor(config, cameras, step) ** 2
        per_pixel = config.cost_pixel + config.cost_overdraw * count
        once = config.cost_start if step == 0 else 0.0
        yield once + config.cost_step + share * per_pixel + count * config.cost_gaussian
        if _densify_now(config, step):
            count = max(count, min(config.max_gaussians, int(count * config.growth) + 1))


def _shrink(
    photos: list[np.ndarray], cameras: list[Camera], factor: int
) -> tuple[list[np.ndarray], list[Camera]]:
    """Mean over factor x factor pixels; pixels that fill no block are cut off."""
    if factor == 1:
        return photos, cameras
    images, scaled = [], []
    for photo, camera in zip(photos, cameras, strict=True):
        height, width = camera.height // factor, camera.width // factor
        blocks = photo[: height * factor, : width * factor].reshape(
            height, factor, width, factor, 3
        )
        images.append(np.round(blocks.mean((1, 3))).astype(np.uint8))
        intrinsics = camera.K.clone()
        intrinsics[:2] /= factor
        scaled.append(Camera(camera.viewmat, intrinsics, width, height))
    return images, scaled


def photometric(
    trainer: Trainer,
    exposures: Exposures,
    view: int,
    photo: np.ndarray,
    camera: Camera,
    config: GeometryConfig,
    engine: Engine,
) -> Tensor:
    """L = (1 - w) L1 + w (1 - SSIM) (3DGS); at first, what the exposures learn from beside it."""
    target = torch.tensor(photo, device=engine.device).float() / 255
    params = {name: trainer.gaussians[name] for name in PARAMETERS}
    image = engine.render(**params, camera=camera).channels
    shown = exposures.apply(image, view)
    loss = engine.photometric_loss(shown, target, config.ssim_weight)
    return loss + exposures.trial_loss(image, target, view)


def regularizers(trainer: Trainer, extent: float, config: GeometryConfig) -> Tensor:
    """Small and faint Gaussians cost least (3DGS-MCMC); small beside the scene, in any unit."""
    opacity = trainer.gaussians["opacities"].sigmoid().mean()
    scale = trainer.gaussians["scales"].exp().mean() / extent
    return config.opacity_regularizer * opacity + config.scale_regularizer * scale


def _features_of(trainer: Trainer, camera: Camera, engine: Engine) -> Tensor:
    """Features as a view shows them, (H, W, D); their gradient never reaches the geometry."""
    geometry = [trainer.gaussians[name].detach() for name in GEOMETRY]
    return engine.rasterize(*geometry, trainer.gaussians[FEATURES], camera).channels


def descend(trainer: Trainer, loss: Tensor, step: int, config: GeometryConfig) -> None:
    """One step of Adam."""
    share = step / config.iterations
    late = max(0.0, share - config.decay_from) / (1 - config.decay_from)
    for group in trainer.optimizer.param_groups:
        if group["name"] == "means":
            group["lr"] = group["first_lr"] * config.means_lr_final**share
        elif group["name"] in PARAMETERS:
            group["lr"] = group["first_lr"] * config.final_lr**late
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)


def _densify_now(config: GeometryConfig, step: int) -> bool:
    inside = config.densify_from <= step <= config.densify_until * config.iterations
    return inside and step % config.densify_every == 0


@torch.no_grad()
def densify(trainer: Trainer, config: GeometryConfig, generator: torch.Generator) -> None:
    """Move dead Gaussians onto living ones and add copies, drawn by opacity (3DGS-MCMC)."""
    opacities = trainer.gaussians["opacities"].sigmoid().cpu()
    num = len(opacities)
    alive = opacities > config.dead_opacity
    dead = torch.nonzero(~alive)[:, 0]
    wanted = min(config.max_gaussians, int(num * config.growth) + 1)
    total = len(dead) + max(0, wanted - num)
    if total == 0 or not alive.any():
        return
    chances = torch.where(alive, opacities, 0.0)
    sources = torch.multinomial(chances, total, replacement=True, generator=generator)
    copies = (torch.bincount(sources, minlength=num) + 1).clamp(max=MAX_COPIES)
    parents = torch.unique(sources)
    new = {name: value.detach().clone() for name, value in trainer.gaussians.items()}
    scales = new["scales"][parents].exp().cpu()
    opacity, scale = relocated(opacities[parents], scales, copies[parents])
    device = new["means"].device
    new["opacities"][parents] = torch.logit(opacity.clamp(config.dead_opacity, 1 - 1e-6)).to(device)
    new["scales"][parents] = scale.log().to(device)
    for name, value in new.items():
        value[dead] = value[sources[: len(dead)]]
        new[name] = torch.cat([value, value[sources[len(dead) :]]])
    trainer.replace(new, torch.cat([parents, dead]))


def _finished(losses: list[Tensor], config: GeometryConfig) -> bool:
    """Whether none of the last losses leaves anything to learn.

    That the loss stands still would be no sign: the falling rates lower it to the very end.
    """
    return float(losses[-1]) < config.done_loss and float(max(losses)) < config.done_loss


def check_finite(gaussians: Gaussians) -> None:
    """Refuse splats of which anything became NaN or infinite, with a JobError."""
    if not all(bool(value.isfinite().all()) for value in gaussians.values()):
        raise JobError(
            "Training diverged: some splats became NaN. Check that the camera poses belong to "
            "the photos, or try another quality preset."
        )
