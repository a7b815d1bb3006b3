# SPDX-License-Identifier: GPL-3.0-or-later
"""Segment-anything: the real classes with tiny random weights; flattening on drawn masks."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from unified_lift.config import SamConfig
from unified_lift.masks.flatten import flatten_masks
from unified_lift.masks.sam import sam_label_maps
from unified_lift.masks.sam_model import (
    batched_nms,
    build_sam,
    import_segment_anything,
    read_weights,
)
from unified_lift.protocol import Cancelled, JobError, SilentReport

# Random weights make poor masks: keep them all.
TINY = SamConfig(
    points_per_side_cpu=2,
    pred_iou_thresh=-1e9,
    stability_score_thresh=-1.0,
    box_nms_thresh=1.0,
    min_area=1e-4,
    max_area=1.0,
    containment=2.0,
)


def tiny_sam(seed=0):
    """Three encoder blocks, windowed, global, windowed, for images of 64 x 64."""
    modeling = import_segment_anything().modeling
    torch.manual_seed(seed)
    model = modeling.Sam(
        modeling.ImageEncoderViT(
            img_size=64,
            patch_size=16,
            embed_dim=32,
            depth=3,
            num_heads=4,
            mlp_ratio=2,
            out_chans=64,
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        ),
        modeling.PromptEncoder(
            embed_dim=64,
            image_embedding_size=(4, 4),
            input_image_size=(64, 64),
            mask_in_chans=8,
        ),
        modeling.MaskDecoder(
            transformer_dim=64,
            transformer=modeling.TwoWayTransformer(
                depth=1, embedding_dim=64, num_heads=8, mlp_dim=48
            ),
            iou_head_depth=2,
            iou_head_hidden_dim=24,
        ),
    )
    for name, weight in model.named_parameters():  # zeros at first: let positions count
        if "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("sam") / "tiny.pth"
    torch.save(tiny_sam().state_dict(), path)
    return path


def make_photos(number=2):
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (number, 6, 8, 3), dtype=np.uint8)
    return list(photos.repeat(8, axis=1).repeat(8, axis=2))


class Steps(SilentReport):
    """A report that counts its checks, and cancels at one of them."""

    def __init__(self, cancel_at=None):
        self.checks = 0
        self.progresses = []
        self.cancel_at = cancel_at

    def progress(self, step, total, message=""):
        self.progresses.append((step, total))

    def check(self):
        self.checks += 1
        if self.checks == self.cancel_at:
            raise Cancelled


# ---- the generator


def test_a_checkpoint_segments_photos(tmp_path, checkpoint):
    report = Steps()
    maps = sam_label_maps(make_photos(), checkpoint, TINY, tmp_path, report)
    assert [labels.shape for labels in maps] == [(48, 64)] * 2
    assert all(labels.dtype == np.int32 and labels.max() >= 1 for labels in maps)
    assert report.progresses == [(0, 2), (1, 2)]


def test_label_maps_are_those_of_the_model_that_was_saved(tmp_path, checkpoint):
    photo = make_photos(1)[0]
    generator = import_segment_anything().SamAutomaticMaskGenerator(
        tiny_sam(),
        points_per_side=TINY.points_per_side_cpu,
        pred_iou_thresh=TINY.pred_iou_thresh,
        stability_score_thresh=TINY.stability_score_thresh,
        box_nms_thresh=TINY.box_nms_thresh,
    )
    found = generator.generate(photo)
    masks = np.array([one["segmentation"] for one in found])
    expected = flatten_masks(masks, np.array([one["predicted_iou"] for one in found]), TINY)
    (labels,) = sam_label_maps([photo], checkpoint, TINY, tmp_path, SilentReport())
    assert len(found) > 1
    np.testing.assert_array_equal(labels, expected)


def test_finished_photos_come_from_the_cache(tmp_path, checkpoint):
    photos = make_photos()
    first = sam_label_maps(photos[:1], checkpoint, TINY, tmp_path, SilentReport())
    report = Steps()
    again = sam_label_maps([photos[0], photos[0]], checkpoint, TINY, tmp_path, report)
    np.testing.assert_array_equal(first[0], again[1])
    assert report.checks == 0  # the model never ran
    sam_label_maps(photos, checkpoint, TINY, tmp_path, report)
    assert report.checks > 0 and len(list(tmp_path.iterdir())) == 2
    other = replace(TINY, points_per_side_cpu=1)
    sam_label_maps(photos[:1], checkpoint, other, tmp_path, report)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_cache_file_is_made_again(tmp_path, checkpoint):
    photos = make_photos(1)
    first = sam_label_maps(photos, checkpoint, TINY, tmp_path, SilentReport())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:60])
    again = sam_label_maps(photos, checkpoint, TINY, tmp_path, SilentReport())
    np.testing.assert_array_equal(first[0], again[0])


def test_a_cancel_is_seen_inside_a_photo(tmp_path, checkpoint):
    with pytest.raises(Cancelled):
        sam_label_maps(make_photos(1), checkpoint, TINY, tmp_path, Steps(cancel_at=2))
    assert not list(tmp_path.iterdir())


def test_photos_larger_than_the_model_are_segmented_small(tmp_path, checkpoint):
    photo = make_photos(1)[0].repeat(2, axis=0).repeat(2, axis=1)
    config = replace(TINY, longest_side=64)
    (labels,) = sam_label_maps([photo], checkpoint, config, tmp_path, SilentReport())
    assert labels.shape == (96, 128)
    np.testing.assert_array_equal(labels, labels[::2, ::2].repeat(2, axis=0).repeat(2, axis=1))


# ---- checkpoints


def describe(model):
    encoder, decoder = model.image_encoder, model.mask_decoder
    return (
        encoder.img_size,
        [block.window_size for block in encoder.blocks],
        [block.attn.num_heads for block in encoder.blocks],
        {module.eps for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)},
        model.prompt_encoder.image_embedding_size,
        decoder.num_multimask_outputs,
        decoder.transformer.final_attn_token_to_image.num_heads,
        str(model),
    )


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_published_models_are_told_from_their_weights(tmp_path, name):
    with torch.device("meta"):  # shapes without memory
        model = import_segment_anything().sam_model_registry[name](checkpoint=None)
    built = build_sam(model.state_dict(), tmp_path / "x.pth")
    assert describe(built) == describe(model)
    torch.testing.assert_close(built.pixel_mean.flatten(), torch.tensor([123.675, 116.28, 103.53]))


def segment_one(path, tmp_path):
    sam_label_maps(make_photos(1), path, TINY, tmp_path, SilentReport())


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"image_encoder.pos_embed": Exploit()}, "bad.pth")
    with pytest.raises(JobError, match=r"bad.pth holds no plain weights"):
        segment_one(tmp_path / "bad.pth", tmp_path)
    assert not (tmp_path / "exploited").exists()


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(JobError, match=r"absent.pth cannot be opened"):
        segment_one(tmp_path / "absent.pth", tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(JobError, match=r"text.pth holds no plain weights"):
        segment_one(tmp_path / "text.pth", tmp_path)
    for seed in range(20):
        noise = np.random.default_rng(seed).integers(0, 256, 200 + seed, np.uint8)
        (tmp_path / "noise.pth").write_bytes(b"\x80\x02" + noise.tobytes())  # begins as a pickle
        with pytest.raises(JobError, match=r"noise.pth holds no plain weights"):
            read_weights(tmp_path / "noise.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(JobError, match=r"list.pth is no checkpoint of segment-anything"):
        segment_one(tmp_path / "list.pth", tmp_path)
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(JobError, match=r"other.pth is no checkpoint.*no image_encoder.pos_embed"):
        segment_one(tmp_path / "other.pth", tmp_path)


def test_weights_must_be_complete(tmp_path):
    state = tiny_sam().state_dict()
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(JobError, match=r"part.pth is no checkpoint.*iou_token") as error:
        segment_one(tmp_path / "part.pth", tmp_path)
    assert "\n" not in str(error.value)


# ---- the stand-in


def test_a_broken_torchvision_is_stood_in_for_during_the_import_only(tmp_path):
    (tmp_path / "torchvision" / "ops").mkdir(parents=True)
    (tmp_path / "torchvision" / "__init__.py").write_text("import torchvision.ops\n")
    (tmp_path / "torchvision" / "ops" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from unified_lift.masks.sam_model import import_segment_anything\n"
        "print(import_segment_anything().__name__)\n"
        "print([name for name in sys.modules if name.startswith('torchvision')])\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert output.split() == [b"segment_anything", b"[]"]


def slow_nms(boxes, scores, categories, threshold):
    """One pair of boxes at a time."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            width = min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0])
            height = min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1])
            shared = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            if categories[i] == categories[j] and shared / (sum(areas) - shared) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_nms_equals_the_slow_way(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 50, (80, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 30, (80, 2))], axis=1).astype(np.float32)
    scores, categories = rng.uniform(size=80).astype(np.float32), rng.integers(0, 2, 80)
    found = batched_nms(
        torch.tensor(boxes), torch.tensor(scores), torch.tensor(categories), iou_threshold=0.4
    )
    expected = slow_nms(boxes.tolist(), scores.tolist(), categories.tolist(), 0.4)
    assert found.tolist() == expected and len(expected) < 80


def test_nms_of_nothing_is_nothing():
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), 0.5).shape == (0,)


# ---- flattening

CONFIG = SamConfig(min_area=0.004, max_area=0.95)


def box(top, left, bottom, right, size=(40, 50)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def flatten(*masks, scores=None, config=CONFIG):
    scores = np.ones(len(masks)) if scores is None else np.array(scores)
    return flatten_masks(np.array(masks).reshape(len(masks), 40, 50), scores, config)


def test_parts_of_an_object_are_not_labels():
    labels = flatten(box(5, 5, 30, 30), box(10, 10, 15, 15), box(31, 32, 38, 48))
    assert np.unique(labels).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(labels == 1, box(5, 5, 30, 30))


def test_small_objects_lie_on_top_of_large_ones_they_stick_out_of():
    table, cup = box(20, 0, 40, 50), box(5, 10, 25, 20)  # 3/4 of the cup is above the table
    for masks in ((table, cup), (cup, table)):
        labels = flatten(*masks)
        assert labels[22, 15] == labels[10, 15] != labels[30, 15] != 0


def test_one_pixel_between_labels_is_unlabelled():
    labels = flatten(box(0, 0, 40, 20), box(0, 20, 40, 50))
    assert labels[5].tolist() == [2] * 19 + [0] + [1] * 30
    labels = flatten(box(0, 0, 20, 50), box(20, 0, 40, 49))
    assert labels[:, 5].tolist() == [1] * 19 + [0] + [2] * 20


def test_of_two_duplicates_the_better_stays():
    good, poor = box(5, 5, 30, 30), box(5, 5, 30, 32)
    for masks, scores in (((good, poor), (0.9, 0.8)), ((poor, good), (0.8, 0.9))):
        np.testing.assert_array_equal(flatten(*masks, scores=scores), good.astype(np.int32))


def test_specks_go_and_pinholes_are_filled():
    mask = box(5, 5, 30, 30)
    mask[10, 10] = mask[20:28, 20:28] = False  # a pinhole, and a real hole
    mask[38, 40] = True
    expected = mask.copy()
    expected[10, 10], expected[38, 40] = True, False
    np.testing.assert_array_equal(flatten(mask), expected.astype(np.int32))
    assert not flatten(box(0, 0, 2, 3)).any()


def test_the_whole_picture_is_no_object():
    labels = flatten(box(0, 0, 40, 50), box(5, 5, 15, 15))
    np.testing.assert_array_equal(labels > 0, box(5, 5, 15, 15))


def test_no_masks_give_an_empty_map():
    assert flatten().shape == (40, 50) and not flatten().any()
