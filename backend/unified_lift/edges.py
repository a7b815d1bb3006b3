# SPDX-License-Identifier: GPL-3.0-or-later
"""Edges of objects: a little more training of the Gaussians, now that it is known whose each is.

Photos alone do not forbid a Gaussian to reach over the border of two things that look alike there.
The masks do, once each is known to show which object. What moved may be another object's then: the
masks vote once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unified_lift.config import EdgeConfig, GeometryConfig, LiftConfig
from unified_lift.exposures import Exposures
from unified_lift.gaussians import GEOMETRY, PARAMETERS, Gaussians, scene_extent
from unified_lift.geometry import (
    Trainer,
    check_finite,
    descend,
    photometric,
    regularizers,
    schedule,
    step_costs,
)
from unified_lift.lift.compaction import revote, without_gaps
from unified_lift.lift.incidence import Incidence, mask_incidence
from unified_lift.lift.labels import label_map
from unified_lift.metrics import count
from unified_lift.protocol import Report
from unified_lift.rendering import Camera, Engine
from unified_lift.rendering.weights import BlendWeights

EDGES = EdgeConfig()


def border_targets(
    weights: list[BlendWeights],
    label_maps: list[np.ndarray | None],
    object_ids: np.ndarray,
    config: LiftConfig,
    check: Callable[[], None] = lambda: None,
) -> list[np.ndarray] | None:
    """Which object each view should show in a pixel, where its masks tell.

    A mask speaks for the object that it shows, if it shows one. Farther from that object than
    borders go wrong the mask is wrong. A border moves only where masks speak for both sides, for
    those of floors and walls come in pieces more often than those of things, which would grow.
    What is part of no object is spoken for wherever masks leave out some pixels of the view.

    Args:
        weights: of each view, N Gaussians.
        label_maps: (H, W) int each, 0 = unlabelled, ids local to the view; None = no masks.
        object_ids: (N,) int from 0, -1 = none.
        config: from which IoU on a mask shows an object.
        check: called for each view; may raise Cancelled.

    Returns:
        (H, W) int32 each: the object's id + 1, 0 = anything. None where the borders of masks and
        split lie so far apart (loose masks, coarse splats) that nothing tells which are right.
    """
    targets: list[np.ndarray] = []
    gaps: list[float] = []
    for blend, labels in zip(weights, label_maps, strict=True):
        check()
        visible = np.zeros(len(object_ids), bool)
        visible[blend.gaussian_ids] = True  # of hundreds of objects, a view shows some
        split = label_map(blend, np.where(visible, object_ids + 1, 0))
        if labels is None:
            targets.append(np.zeros_like(split))
            continue
        asked, gap = _asked(split, labels, config.support_iou)
        gaps += gap.tolist()
        told = _is_near(split, asked, EDGES.reach) & np.isin(split, asked)
        targets.append(np.where(told, asked, 0).astype(np.int32))
    return targets if gaps and np.median(gaps) <= EDGES.max_gap else None


def _asked(split: np.ndarray, labels: np.ndarray, min_iou: float) -> tuple[np.ndarray, np.ndarray]:
    """The object that each pixel's mask shows, and how far apart their borders lie.

    If the border of a disc wobbles by d pixels, the symmetric difference is d times its length.

    Args:
        split: (H, W) int, as the view shows it, 0 = no object.
        labels: (H, W) int, 0 = unlabelled.
        min_iou: from which on a mask shows the object that it fits best.

    Returns:
        (H, W) int, 0 where there is none; pixels (M,) of the masks that show one.
    """
    table = count(labels, split)
    iou = np.where((table.predicted_ids[:, None] != 0) & (table.truth_ids != 0), table.iou, 0)
    best, fit = iou.argmax(1), iou.max(1)
    named = fit >= min_iou
    shown = np.where(named, table.truth_ids[best], 0)
    area = table.counts.sum(0)[best]
    gap = (1 - fit) * np.sqrt(area / np.pi) / 2
    return shown[np.searchsorted(table.predicted_ids, labels)], gap[named]


def _is_near(shown: np.ndarray, asked: np.ndarray, reach: int) -> np.ndarray:
    """Whether a view shows within some pixels of each what is asked for there, (H, W) bool."""
    height, width = shown.shape
    padded = np.pad(shown, reach)
    near = np.zeros(shown.shape, bool)
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            if y * y + x * x <= reach * reach:
                rows, columns = reach + y, reach + x
                near |= padded[rows : rows + height, columns : columns + width] == asked
    return near


def sharpen_edges(
    gaussians: Gaussians,
    object_ids: np.ndarray,
    photos: list[np.ndarray],
    cameras: list[Camera],
    targets: list[np.ndarray],
    views: list[Camera],
    config: GeometryConfig,
    engine: Engine,
    seed: int,
    report: Report,
    show: Callable[[Gaussians], None] = lambda gaussians: None,
) -> Gaussians:
    """Go on training until each object ends where the views say, and looks as before.

    Beside the photometric loss, the share m_j of each object j (0 is what belongs to none) in a
    pixel of object t costs |m - e_t|^2. Its gradient is that of |sum_j (m_j - [j = t]) c_j|^2, on
    average, for random unit vectors c_j: three channels do for any number of objects, with new
    vectors in each step.

    Args:
        gaussians: raw parameters, N.
        object_ids: (N,) int from 0, -1 = none; they stay as they are.
        photos: (H, W, 3) uint8 each, at training size.
        cameras: of the photos.
        targets: of some views, as `border_targets`.
        views: cameras of the targets.
        config: of the training before.
        engine: what renders.
        seed: makes the run repeatable.
        report: told of each step.
        show: called after each step, to make a preview.

    Returns:
        The raw parameters, detached, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    config, device = _continued(config), engine.device
    start = {name: value.to(device) for name, value in gaussians.items()}
    extent = scene_extent(cameras)
    trainer = Trainer.start(start, extent, config)
    exposures = Exposures(cameras, config, device)
    for view, (photo, camera) in enumerate(zip(photos, cameras, strict=True)):
        report.check()
        with torch.no_grad():
            image = engine.render(**start, camera=camera).channels
        exposures.fit(image, torch.tensor(photo, device=device).float() / 255, view)
    exposures.judge(config)
    numbers = torch.from_numpy(object_ids + 1).to(device)
    num_codes = int(object_ids.max()) + 2
    told = [place for place, target in enumerate(targets) if target.any()]
    order: list[int] = []
    for step, view, photo, camera in schedule(photos, cameras, config, generator):
        loss = photometric(trainer, exposures, view, photo, camera, config, engine)
        loss = loss + regularizers(trainer, extent, config)
        if told:
            order = order or torch.randperm(len(told), generator=generator).tolist()
            place = told[order.pop()]
            target = torch.from_numpy(targets[place]).to(device)
            codes = torch.randn(num_codes, 3, generator=generator).to(device)
            codes = torch.nn.functional.normalize(codes, dim=1)
            mixed = _mixing(trainer, codes, numbers, target, views[place], engine)
            loss = loss + EDGES.weight * mixed
        descend(trainer, loss, step, config)
        report.progress(step + 1, config.iterations, f"{step + 1} of {config.iterations} steps")
        show(trainer.gaussians)
    check_finite(trainer.gaussians)
    return {name: trainer.gaussians[name].detach().cpu() for name in PARAMETERS}


def _mixing(
    trainer: Trainer,
    codes: Tensor,
    numbers: Tensor,
    target: Tensor,
    camera: Camera,
    engine: Engine,
) -> Tensor:
    """How much a view's pixels show of other objects than they should, mean over all pixels."""
    geometry = [trainer.gaussians[name] for name in GEOMETRY]
    shown = engine.rasterize(*geometry, codes[numbers], camera).channels
    difference = (shown - codes[target.long()]).square().sum(-1)
    return (difference * (target > 0)).mean()


def vote_anew(
    weights: list[BlendWeights],
    label_maps: list[np.ndarray | None],
    object_ids: np.ndarray,
    config: LiftConfig,
    check: Callable[[], None] = lambda: None,
) -> tuple[Incidence, np.ndarray]:
    """Whose each Gaussian is, now that its edges are sharp.

    Masks that may move borders count alike here, whereas those that fit their object better count
    more in `refine`.

    Args:
        weights: of each view, N sharpened Gaussians.
        label_maps: (H, W) int each, 0 = unlabelled, ids local to the view; None = no masks.
        object_ids: (N,) int from 0, -1 = none, of the Gaussians as they were.
        config: thresholds.
        check: called again and again; may raise Cancelled.

    Returns:
        The incidence of masks and sharpened Gaussians; ids (N,) int64 from 0 without gaps.
    """
    incidence = mask_incidence(weights, label_maps)
    voted = revote(incidence, object_ids, config.refine_rounds, config, check=check)
    return incidence, without_gaps(voted)


def vote_where_sure(
    incidence: Incidence,
    weights: list[BlendWeights],
    sure_maps: list[np.ndarray],
    object_ids: np.ndarray,
    config: LiftConfig,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Whose each Gaussian is by the pixels alone of which masks are sure.

    Args:
        incidence: of all that masks say, N Gaussians.
        weights: of each view.
        sure_maps: (H, W) int of each view, 0 = unsure, which says nothing, or unlabelled.
        object_ids: (N,) int from 0, -1 = none; it stays so where no sure pixel shows a Gaussian.
        config: thresholds.
        check: called again and again; may raise Cancelled.

    Returns:
        (N,) int64 from 0 without gaps.
    """
    sure = replace(mask_incidence(weights, sure_maps), void=incidence.void)
    voted = revote(sure, object_ids, config.refine_rounds, config, check=check)
    return without_gaps(np.where(sure.mass_of_gaussian > 0, voted, object_ids))


def sharpening_seconds(config: GeometryConfig, cameras: list[Camera]) -> float:
    """Expected seconds, as `training_seconds`: each step renders colours, and objects."""
    return 2 * sum(step_costs(_continued(config), cameras, config.max_gaussians))


def _continued(config: GeometryConfig) -> GeometryConfig:
    """The training's end once more: at full size, with rates that fall to a tenth."""
    return replace(
        config,
        iterations=max(1, round(EDGES.share * config.iterations)),
        coarse_factors=(1,),
        coarse_shares=(1.0,),
        means_lr=EDGES.means_rate * config.means_lr,
        decay_from=0.0,
        cost_start=0.0,
    )
