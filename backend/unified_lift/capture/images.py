# SPDX-License-Identifier: GPL-3.0-or-later
"""Photos and label maps: reading, scaling, undistortion (Pillow; not part of the contract)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import ExifTags, Image, ImageOps

from unified_lift.capture.distortion import Remap, source_pixels, undistort_view
from unified_lift.capture.views import TRAIN, View
from unified_lift.config import CaptureConfig
from unified_lift.protocol import JobError, Report

__all__ = [
    "load_photo",
    "readable_views",
    "resize_labels",
    "resize_photo",
    "same_aspect",
    "scaled_view",
    "undistort",
    "undistort_view",
]

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_CHUNK_PIXELS = 1 << 20  # undistorted at a time, to bound memory
_UINT16_TO_UINT8 = 257
_GREY16_MODES = ("I", "I;16", "I;16B", "I;16L")


def readable_views(views: Sequence[View], report: Report) -> list[View]:
    """Decode every photo once; keep the views that have one, with the photo's size.

    A photo of another size than its camera's, but the same aspect, gets scaled intrinsics.
    EXIF orientation counts only where the stored size does not fit the camera.

    Raises:
        JobError: no photo, or no training photo, can be read; or one is of another aspect.
        Cancelled: the user asked for a stop.
    """
    kept: list[View] = []
    failed: list[str] = []
    for view in views:
        report.check()
        try:
            kept.append(_fitted(view))
        except UNREADABLE as error:
            failed.append(f"{view.image_path}: {error}")
    lost = {view.split for view in views} - {view.split for view in kept}
    if TRAIN in lost or not kept:
        raise JobError(
            f"No training photo can be read, the first is {failed[0]}. "
            "Save the photos again as PNG or JPEG."
        )
    if failed:
        report.warning(f"Left out {len(failed)} photos that cannot be read ({failed[0]}).")
    return kept


def _fitted(view: View) -> View:
    """The view at the size of its photo, whose values can be used.

    Raises UNREADABLE, and JobError on another aspect.
    """
    with Image.open(view.image_path) as image:
        width, height = _fitting_size(image, view)
        image.draft("L", (1, 1))  # of a JPEG, decode an eighth of the size: enough to prove it
        image.load()
        _to_rgb(image.crop((0, 0, 1, 1)))  # raises where its mode has no way to RGB
    return resized_view(view, width, height)


def _fitting_size(image: Image.Image, view: View) -> tuple[int, int]:
    """The photo's size, stored or turned by its EXIF tag, whichever fits the camera."""
    if same_aspect(image.size, view):
        return image.size
    turned = (image.height, image.width)
    if _is_turned(image) and same_aspect(turned, view):
        return turned
    raise JobError(
        f"{view.image_path} is {image.width} x {image.height} pixels, but its camera "
        f"{view.width} x {view.height}. Use the photos that the cameras were made from."
    )


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation) in _TURNED


def same_aspect(size: tuple[int, int], view: View) -> bool:
    """Whether an image of this (width, height) is the view scaled, give or take rounding."""
    scale = size[0] / view.width
    return abs(size[1] - scale * view.height) <= CaptureConfig.aspect_tolerance * max(1.0, scale)


def load_photo(view: View) -> np.ndarray:
    """Read a photo as (H, W, 3) uint8 of the view's size, scaled if it is stored in another.

    Alpha is composited on black, as 3DGS does by default, so that empty stays empty for a
    renderer without background; 16 bits are reduced to 8; grey and palettes become RGB.

    Raises:
        JobError: the photo cannot be read, or has not the camera's aspect.
    """
    try:
        with Image.open(view.image_path) as image:
            fits = _fitting_size(image, view) == image.size
            photo = np.asarray(_to_rgb(image if fits else ImageOps.exif_transpose(image)))
    except UNREADABLE as error:
        raise JobError(
            f"{view.image_path} cannot be read ({error}). Save it again as PNG or JPEG."
        ) from error
    return resize_photo(photo, view.width, view.height)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as 8-bit RGB, alpha on black. Raises ValueError on floats."""
    if image.mode == "F":
        raise ValueError("its values are floating point numbers")
    if image.mode in _GREY16_MODES:
        grey = np.asarray(image).clip(0, np.iinfo(np.uint16).max) // _UINT16_TO_UINT8
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        colors = image.convert("RGBA")
        black = Image.new("RGBA", colors.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, colors)
    return image.convert("RGB")


def scaled_view(view: View, longest_side: int) -> View:
    """The view with its longest side reduced to `longest_side` pixels; never enlarged."""
    scale = min(1.0, longest_side / max(view.width, view.height))
    return resized_view(view, max(1, round(view.width * scale)), max(1, round(view.height * scale)))


def resized_view(view: View, width: int, height: int) -> View:
    """The view at another size: with pixel centres at .5, all intrinsics scale like the size."""
    scale = np.array([[width / view.width], [height / view.height], [1.0]])
    return replace(view, width=width, height=height, K=view.K * scale)


def resize_photo(photo: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale (H, W, 3) uint8 with an antialiasing filter that does not overshoot at edges."""
    if photo.shape[:2] == (height, width):
        return photo
    scaled = Image.fromarray(photo).resize((width, height), Image.Resampling.HAMMING)
    return np.asarray(scaled)


def resize_labels(labels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale (H, W) labels by nearest neighbour, pixel centres at .5."""
    rows = ((np.arange(height) + 0.5) * (labels.shape[0] / height)).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * (labels.shape[1] / width)).astype(np.int64)
    return labels[rows[:, None], columns]


def undistort(image: np.ndarray, remap: Remap, nearest: bool = False) -> np.ndarray:
    """Resample a photo or a label map to the pinhole view of `undistort_view`.

    Args:
        image: (H, W, 3) uint8, or (H, W) integers, of the source view's size.
        remap: from `undistort_view`.
        nearest: True for labels, else bilinear.

    Returns:
        The same shape and dtype (H, W are the same for both views).
    """
    source, target = remap
    assert image.shape[:2] == (source.height, source.width), image.shape
    if source is target:
        return image
    result = np.empty((target.height, target.width, *image.shape[2:]), image.dtype)
    step = max(1, _CHUNK_PIXELS // target.width)
    for start in range(0, target.height, step):
        rows = np.arange(start, min(start + step, target.height))
        positions = source_pixels(remap, rows)
        result[rows] = _nearest(image, positions) if nearest else _bilinear(image, positions)
    return result


def _nearest(image: np.ndarray, positions: np.ndarray) -> np.ndarray:
    limit = np.array([image.shape[1] - 1, image.shape[0] - 1])
    column, row = np.moveaxis(np.floor(positions).astype(np.int64).clip(0, limit), -1, 0)
    return image[row, column]


def _bilinear(image: np.ndarray, positions: np.ndarray) -> np.ndarray:
    limit = np.array([image.shape[1] - 1, image.shape[0] - 1])
    corner = (positions - 0.5).clip(0, limit)
    low = np.floor(corner).astype(np.int64)
    high = np.minimum(low + 1, limit)
    (x0, y0), (x1, y1) = np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0)
    x, y = np.moveaxis((corner - low).astype(np.float32)[..., None], 2, 0)
    top = image[y0, x0] * (1 - x) + image[y0, x1] * x
    bottom = image[y1, x0] * (1 - x) + image[y1, x1] * x
    return (top * (1 - y) + bottom * y + 0.5).astype(image.dtype)  # rounded
