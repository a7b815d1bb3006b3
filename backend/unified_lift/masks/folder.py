# SPDX-License-Identifier: GPL-3.0-or-later
"""Label maps from a folder of label images that the user made with any tool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unified_lift.capture.images import (
    UNREADABLE,
    resize_labels,
    same_aspect,
    undistort,
    undistort_view,
)
from unified_lift.capture.views import View
from unified_lift.config import MaskFolderConfig
from unified_lift.protocol import JobError, Report

_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".PNG", ".TIF", ".TIFF", ".BMP")
_UINT16_MAX = np.iinfo(np.uint16).max
_COLOR_MODES = ("RGB", "RGBA")
_ID_MODES = ("1", "L", "LA", "P", "PA", "I", "I;16", "I;16B", "I;16L", "I;16N")
_VOID = np.iinfo(np.uint32).max  # -1 as 32 bits without sign


def folder_label_maps(
    masks_dir: Path, views: Sequence[View], report: Report
) -> list[np.ndarray | None]:
    """Read the label image of each view, at the view's size and without its distortion.

    The label image of `cam/0001.jpg` is `cam/0001.png` or `cam/0001.jpg.png` (or .tif, .bmp)
    below `masks_dir`, of any size. Integers are ids, palette images give their indices, RGB
    images one id for each colour; 0, black, transparent and -1 are unlabelled.

    Args:
        masks_dir: the folder.
        views: the training views, distorted as the photos that the masks were drawn on.
        report: gets one warning if some views have no masks.

    Returns:
        For each view (H, W) int32, ids of that view only, or None without a file.

    Raises:
        JobError: no folder, no label image for any view, one that cannot be read, or no label.
        Cancelled: the user asked for a stop.
    """
    masks_dir = Path(masks_dir)
    if not masks_dir.is_dir():
        raise JobError(f"There is no masks folder {masks_dir}. Choose a folder of label images.")
    paths = [_find_label_image(masks_dir, view) for view in views]
    _report_missing(paths, views, masks_dir, report)
    maps: list[np.ndarray | None] = []
    stretched: list[Path] = []
    for number, (view, path) in enumerate(zip(views, paths)):
        report.progress(number, len(views))
        if path is None:
            maps.append(None)
            continue
        labels = _read_labels(path)
        if not same_aspect((labels.shape[1], labels.shape[0]), view):
            stretched.append(path)
        labels = resize_labels(labels, view.width, view.height)
        maps.append(undistort(labels, undistort_view(view)[1], nearest=True))
    if not any(labels is not None and labels.any() for labels in maps):
        raise JobError(
            f"All label images in {masks_dir} are 0 everywhere, which means unlabelled. "
            "Give each object a number from 1."
        )
    empty = [path for path, labels in zip(paths, maps) if path and not labels.any()]
    if empty:
        report.warning(
            f"{len(empty)} of {len(views)} label images in {masks_dir} are 0 everywhere "
            f"({empty[0].name}): their photos show no object."
        )
    if stretched:
        report.warning(
            f"{len(stretched)} label images have another aspect than their photos and were "
            f"stretched ({stretched[0]})."
        )
    return maps


def _find_label_image(masks_dir: Path, view: View) -> Path | None:
    return next((path for path in _candidates(masks_dir, view) if path.is_file()), None)


def _candidates(masks_dir: Path, view: View) -> Iterator[Path]:
    for name in (view.name, view.name + view.image_path.suffix):
        for ending in _ENDINGS:
            yield masks_dir / (name + ending)


def _report_missing(
    paths: Sequence[Path | None], views: Sequence[View], masks_dir: Path, report: Report
) -> None:
    missing = [view.name for view, path in zip(views, paths) if path is None]
    if len(missing) == len(views):
        blurred = any((masks_dir / f"{missing[0]}{end}").is_file() for end in (".jpg", ".jpeg"))
        jpeg = " JPEG files serve not: they blur the borders of labels." if blurred else ""
        raise JobError(
            f"{masks_dir} has no label image for any of the {len(views)} training photos. The "
            f"first would be {missing[0]}.png. Choose the folder whose files are named as the "
            f"photos.{jpeg}"
        )
    if missing:
        report.warning(
            f"{len(missing)} of {len(views)} training photos have no label image in {masks_dir} "
            f"({missing[0]}.png): these tell nothing of objects."
        )


def _read_labels(path: Path) -> np.ndarray:
    """(H, W) int32 of one file, ids as they are where they fit 16 bits, else numbered anew."""
    try:
        with Image.open(path) as image:
            mode, is_deep = image.mode, ";16" in str(image.tile)
            pixels = np.asarray(image)
            clear = np.zeros(pixels.shape[:2], bool)
            if image.has_transparency_data:
                clear = np.asarray(image.convert("RGBA"))[..., 3] == 0
    except UNREADABLE as error:
        raise JobError(
            f"The label image {path} cannot be read ({error}). Save it again as PNG."
        ) from error
    if pixels.dtype.kind == "f":
        raise JobError(f"The label image {path} holds fractions. Save it as 16-bit PNG.")
    if mode in _COLOR_MODES and not is_deep:
        return _color_labels(pixels, clear, path)
    if mode not in _ID_MODES:
        kind = "has 16 bits a colour, of which 8 would be lost" if is_deep else f"is of mode {mode}"
        raise JobError(f"The label image {path} {kind}. Save it as grey, palette or 8-bit RGB PNG.")
    labels = pixels if pixels.ndim == 2 else pixels[..., 0]  # grey or palette, with alpha
    labels = labels.astype(np.int32).view(np.uint32).astype(np.int64)
    labels[clear | (labels == _VOID)] = 0
    return labels.astype(np.int32) if labels.max() <= _UINT16_MAX else _numbered(labels)


def _color_labels(pixels: np.ndarray, clear: np.ndarray, path: Path) -> np.ndarray:
    """One id for each colour; black and transparent (`clear`) pixels are unlabelled."""
    red, green, blue = np.moveaxis(pixels[..., :3].astype(np.int64), -1, 0)
    colors = np.where(clear, 0, (red << 16) | (green << 8) | blue)
    labels = _numbered(colors)
    if labels.max() > MaskFolderConfig.max_colors:
        raise JobError(
            f"{path} has {labels.max()} colours: it looks like a photo, no label image. Save "
            "labels without smoothing, one colour for each object."
        )
    return labels


def _numbered(values: np.ndarray) -> np.ndarray:
    """The distinct values as int32 from 1; 0 stays 0."""
    present, inverse = np.unique(values, return_inverse=True)
    numbers = np.arange(len(present)) + (0 if present[0] == 0 else 1)
    return numbers[inverse].reshape(values.shape).astype(np.int32)
