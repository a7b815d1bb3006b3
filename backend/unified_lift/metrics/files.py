# SPDX-License-Identifier: GPL-3.0-or-later
"""Label maps from files, and the scores of a folder of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unified_lift.metrics.segments import score
from unified_lift.protocol import JobError, describe_os_error, read_json

_INT32_MAX = np.iinfo(np.int32).max
IDS_DIR = "ids"  # of a ground truth: NAME.png


def evaluate(ids_dir: Path, gt_dir: Path) -> dict:
    """Score predicted label maps whose ground truth exists, as `score` does.

    Args:
        ids_dir: NAME.png, single channel, 0 = unlabelled; sub-folders allowed.
        gt_dir: holds ids/NAME.png and meta.json with the lists of ids `things` and `stuff`.

    Returns:
        {"views": int, "things": scores, "all": scores}, see `score`.

    Raises:
        JobError: no scored view, no annotated pixel, an unreadable or odd file, or sizes that
            differ.
    """
    things, stuff = read_meta(Path(gt_dir))
    predictions, truths = _read_views(Path(ids_dir), Path(gt_dir) / IDS_DIR)
    scores = score(predictions, truths, things, stuff)
    if not scores:
        raise JobError(
            f"No pixel of the {len(truths)} views in {gt_dir} shows an id of its meta.json. There "
            "is nothing to score."
        )
    return {"views": len(predictions), **scores}


def read_meta(gt_dir: Path) -> tuple[list[int], list[int]]:
    """The ids of things and of stuff that a ground truth's meta.json lists.

    Raises:
        JobError: no such file, or without these lists.
    """
    path = gt_dir / "meta.json"
    meta = read_json(path)
    for key in ("things", "stuff"):
        ids = meta.get(key)
        if not isinstance(ids, list) or not all(isinstance(entry, int) for entry in ids):
            raise JobError(f"{path} has no list of ids '{key}'. It does not describe ids/.")
    return meta["things"], meta["stuff"]


def read_truth(gt_dir: Path, name: str) -> np.ndarray:
    """(H, W) int32 true ids of the view of that name, 0 = not annotated.

    Raises:
        JobError: as `read_labels`.
    """
    return read_labels(gt_dir / IDS_DIR / f"{name}.png")


def _read_views(ids_dir: Path, gt_dir: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    if not ids_dir.is_dir():
        raise JobError(f"No folder {ids_dir}. Choose the ids folder that render wrote.")
    names = sorted(path.relative_to(ids_dir) for path in ids_dir.rglob("*.png"))
    names = [name for name in names if (gt_dir / name).is_file()]
    if not names:
        raise JobError(
            f"No label map in {ids_dir} has a ground truth of the same name in {gt_dir}. "
            "Choose the ids folder that render wrote, and the gt folder of the same capture."
        )
    predictions = [read_labels(ids_dir / name) for name in names]
    truths = [read_labels(gt_dir / name) for name in names]
    for name, prediction, truth in zip(names, predictions, truths, strict=True):
        if prediction.shape != truth.shape:
            raise JobError(
                f"{ids_dir / name} has {_size(prediction)} pixels, its ground truth "
                f"{_size(truth)}. Render at the size of the photos."
            )
    return predictions, truths


def _size(labels: np.ndarray) -> str:
    return f"{labels.shape[1]} x {labels.shape[0]}"


def read_labels(path: Path) -> np.ndarray:
    """Read a label map: (H, W) int32, from an image of one channel or an .npy file.

    Numbers below 0 mean 0. Ids that need more than 31 bits come as int64.

    Raises:
        JobError: unreadable, several channels, or numbers that are no ids.
    """
    try:
        if path.suffix == ".npy":
            labels = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                labels = np.array(image)
    except OSError as error:  # most of Pillow's own errors are among them
        raise JobError(describe_os_error(error, path)) from error
    except (SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise JobError(f"{path} cannot be read ({error}). Save it again.") from error
    if labels.ndim != 2:
        raise JobError(f"{path} has several channels. A label map is one 8 or 16 bit channel.")
    if labels.dtype.kind not in "iub":
        whole = labels.dtype.kind == "f" and (labels == np.round(labels)).all()
        if not whole or not np.isfinite(labels).all():
            raise JobError(f"{path} holds numbers that are no ids. Save whole numbers.")
    labels = labels.astype(np.int64).clip(0)
    return labels.astype(np.int32) if labels.max(initial=0) <= _INT32_MAX else labels
