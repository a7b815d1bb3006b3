# SPDX-License-Identifier: GPL-3.0-or-later
"""Scenes that several tests use: the sample in small, and views made up of random weights."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from unified_lift.rendering.weights import BlendWeights

SAMPLE = Path(__file__).parents[1] / "data" / "messy8"


def write_capture(folder, num_train=8, num_test=0, scale=4, labels=("masks/paper",)):
    """A small version of the sample: some of its photos and label maps, at a fraction of size."""
    transforms = json.loads((SAMPLE / "transforms.json").read_text())
    frames = {
        split: [f for f in transforms["frames"] if f["split"] == split]
        for split in ("train", "test")
    }
    chosen = frames["train"][:: 48 // num_train][:num_train] + frames["test"][:num_test]
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        transforms[key] = transforms[key] / scale
    transforms["w"], transforms["h"] = int(transforms["w"]), int(transforms["h"])
    for frame in chosen:
        name = Path(frame["file_path"])
        for source in [name] + [Path(kind) / f"{name.stem}.png" for kind in labels]:
            if not (SAMPLE / source).exists():
                continue
            (folder / source).parent.mkdir(parents=True, exist_ok=True)
            image = Image.open(SAMPLE / source)
            how = Image.Resampling.NEAREST if source.suffix == ".png" else Image.Resampling.BOX
            image.resize((transforms["w"], transforms["h"]), how).save(folder / source)
        if not num_test:
            del frame["split"]
    for key in ("train_filenames", "test_filenames"):
        transforms.pop(key, None)
    (folder / "transforms.json").write_text(json.dumps({**transforms, "frames": chosen}))
    return folder


def made_up_views(num, side, seed=0):
    """Six views of Gaussians in three objects; a pixel blends three Gaussians of one object.

    Returns:
        (num,) object of each Gaussian, six BlendWeights, and six label maps whose ids do not agree.
    """
    rng = np.random.default_rng(seed)
    objects = np.arange(num) % 3
    views, label_maps = [], []
    for _ in range(6):
        shown = rng.integers(3, size=side * side)
        ids = np.concatenate([rng.choice(np.flatnonzero(objects == k), 3) for k in shown])
        weights = np.tile(np.array([0.5, 0.3, 0.15]) * 65535, side * side)
        indptr = np.arange(0, 3 * side * side + 1, 3)
        entries = ids.astype(np.int32), weights.astype(np.uint16)
        views.append(BlendWeights(indptr, *entries, side, side, num))
        names = rng.permutation([5, 900, 70_000])
        label_maps.append(names[shown].reshape(side, side))
    return objects, views, label_maps
