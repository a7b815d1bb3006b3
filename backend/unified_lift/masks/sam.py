# SPDX-License-Identifier: GPL-3.0-or-later
"""Label maps from segment-anything's mask generator and a checkpoint that the user names."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unified_lift.capture.images import UNREADABLE, resize_labels, resize_photo
from unified_lift.config import SamConfig
from unified_lift.masks import Show
from unified_lift.masks.flatten import flatten_masks
from unified_lift.masks.sam_model import (
    build_sam,
    cannot_open,
    import_segment_anything,
    read_weights,
)
from unified_lift.protocol import Report, write_whole


def sam_label_maps(
    photos: Sequence[np.ndarray],
    checkpoint: Path,
    config: SamConfig,
    cache_dir: Path,
    report: Report,
    device: torch.device | str = "cpu",
    show: Show = lambda view, labels: None,
) -> list[np.ndarray | None]:
    """Segment every photo with the "segment everything" mode of SAM and flatten the masks.

    Args:
        photos: (H, W, 3) uint8 each.
        checkpoint: weights of vit_b, vit_l or vit_h as published, loaded without running code.
        config: settings of generator and flattening.
        cache_dir: holds finished label maps, keyed by photo, weights and settings.
        report: progress and cancel, also inside a photo.
        device: where the model runs.
        show: called after each photo, to make a preview.

    Returns:
        For each photo (H, W) int32, 0 = unlabelled.

    Raises:
        JobError: segment-anything is missing, or the checkpoint is.
        Cancelled: the user asked for a stop; the photos done so far stay in the cache.
    """
    weights_hash = _hash_file(checkpoint)
    sides = config.points_per_side_cpu if str(device) == "cpu" else config.points_per_side
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    generator = None
    maps: list[np.ndarray | None] = []
    for number, photo in enumerate(photos):
        report.progress(number, len(photos), f"photo {number + 1} of {len(photos)}")
        path = Path(cache_dir) / f"{_cache_key(photo, weights_hash, sides, config)}.png"
        labels = _read_cached(path)
        if labels is None:
            generator = generator or _make_generator(checkpoint, sides, config, report, device)
            labels = _segment(generator, photo, config)
            _write_cached(path, labels)
        maps.append(resize_labels(labels, photo.shape[1], photo.shape[0]))
        show(number, maps[-1])
    return maps


def _segment(generator: object, photo: np.ndarray, config: SamConfig) -> np.ndarray:
    """(H, W) int32 labels of one photo, at most `longest_side` large."""
    height, width = photo.shape[:2]
    scale = min(1.0, config.longest_side / max(height, width))
    photo = resize_photo(photo, max(1, round(width * scale)), max(1, round(height * scale)))
    found = generator.generate(photo)
    masks = np.zeros((len(found), *photo.shape[:2]), bool)
    for mask, one in zip(masks, found):
        mask[:] = one["segmentation"]
    scores = np.array([one["predicted_iou"] for one in found], np.float64)
    return flatten_masks(masks, scores, config)


def _make_generator(
    checkpoint: Path, sides: int, config: SamConfig, report: Report, device: torch.device | str
) -> object:
    model = build_sam(read_weights(checkpoint), checkpoint).to(device).eval()
    for part in (*model.image_encoder.blocks, model.mask_decoder):
        # A photo takes a minute on a laptop: look for a cancel in every block and batch.
        part.register_forward_pre_hook(lambda *_: report.check())
    return import_segment_anything().SamAutomaticMaskGenerator(
        model,
        points_per_side=sides,
        points_per_batch=config.points_per_batch,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh,
        box_nms_thresh=config.box_nms_thresh,
    )


# ---- the cache


def _hash_file(checkpoint: Path) -> str:
    try:
        with open(checkpoint, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_open(checkpoint, error) from error


def _cache_key(photo: np.ndarray, weights_hash: str, sides: int, config: SamConfig) -> str:
    settings = f"{weights_hash} {sides} {sorted(asdict(config).items())} {photo.shape}"
    return hashlib.sha256(settings.encode() + np.ascontiguousarray(photo).tobytes()).hexdigest()


def _read_cached(path: Path) -> np.ndarray | None:
    """A finished label map; None where there is none, or a damaged one to be made again."""
    try:
        with Image.open(path) as image:
            return np.asarray(image).astype(np.int32)
    except UNREADABLE:
        return None


def _write_cached(path: Path, labels: np.ndarray) -> None:
    png = io.BytesIO()
    Image.fromarray(labels.astype(np.uint16)).save(png, format="PNG")
    write_whole(path, png.getvalue())
