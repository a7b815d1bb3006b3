# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics: hand cases, the sample capture's ground truth, and files that are wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from unified_lift.metrics import adjusted_rand_index, boundary_band, evaluate, score
from unified_lift.protocol import JobError

SAMPLE = Path(__file__).parents[1] / "data" / "messy8"


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A label map of one row: runs of (label, length)."""
    return np.concatenate([np.full(length, label) for label, length in runs])[None]


def write(folder: Path, name: str, labels: np.ndarray) -> None:
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint16)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Predictions and ground truth of one view, in folders."""
    truth = row((1, 10), (2, 10))
    write(tmp_path / "ids", "a/0001", truth)
    write(tmp_path / "gt" / "ids", "a/0001", truth)
    (tmp_path / "gt" / "meta.json").write_text(json.dumps({"things": [1], "stuff": [2]}))
    return tmp_path / "ids", tmp_path / "gt"


def test_the_ground_truth_scores_one():
    result = evaluate(SAMPLE / "gt" / "ids", SAMPLE / "gt")
    assert result["views"] == 58
    for protocol, count in (("things", 8), ("all", 14)):
        scores = result[protocol]
        ones = ("PQ", "SQ", "RQ", "mIoU", "mBIoU", "AP", "AP50", "AP75", "ARI", "best_iou")
        assert {key: scores[key] for key in ones} == dict.fromkeys(ones, 1.0)
        assert (scores["TP"], scores["FP"], scores["FN"]) == (count, 0, 0)
        assert scores["n_gt"] == count


def test_ids_that_change_from_view_to_view_find_nothing():
    result = evaluate(SAMPLE / "masks" / "paper", SAMPLE / "gt")
    assert result["views"] == 48
    assert result["things"]["PQ"] == 0
    assert result["things"]["mIoU"] < 0.2


def test_a_split_object_is_one_hit_and_one_false_segment():
    truth = row((1, 10), (2, 10))
    scores = score([row((7, 8), (8, 2), (9, 10))], [truth], [1, 2], [])["things"]
    assert (scores["TP"], scores["FP"], scores["FN"]) == (2, 1, 0)
    assert scores["PQ"] == pytest.approx(1.8 / 2.5)
    assert scores["mIoU"] == pytest.approx(0.9)
    assert scores["n_pred"] == 3


def test_unlabelled_pixels_cost_iou():
    scores = score([row((0, 4), (5, 6))], [row((1, 10))], [1], [])["things"]
    assert scores["SQ"] == pytest.approx(0.6)


def test_pixels_without_ground_truth_are_left_out():
    scores = score([row((5, 30))], [row((1, 10), (0, 20))], [1], [])["things"]
    assert scores["PQ"] == 1


def test_a_prediction_on_stuff_is_ignored_among_things_only():
    views = [row((1, 10), (2, 6), (3, 4))], [row((1, 10), (9, 10))]
    result = score(*views, things=[1], stuff=[9])
    assert result["things"]["FP"] == 0
    assert result["all"]["FP"] == 1


def test_an_object_fused_with_stuff_is_not_found():
    scores = score([row((1, 30))], [row((1, 10), (9, 20))], [1], [9])["things"]
    assert (scores["TP"], scores["FN"], scores["FP"]) == (0, 1, 0)
    assert scores["mIoU"] == pytest.approx(1 / 3)


def test_an_id_must_hold_through_all_views():
    truth = row((1, 10))
    scores = score([row((3, 10)), row((4, 10))], [truth, truth], [1], [])["things"]
    assert scores["TP"] == 0
    assert scores["best_iou"] == 0.5


def test_average_precision_ranks_by_area():
    # The larger prediction straddles both objects, the other one is right, an object is missed:
    # precision 1/2 at recalls up to 1/2, 0 beyond.
    truth = row((1, 12), (2, 14))
    scores = score([row((5, 8), (4, 12), (0, 6))], [truth], [1, 2], [])["things"]
    assert scores["AP50"] == pytest.approx(0.5 * 51 / 101)


def test_no_prediction_at_all_scores_zero():
    scores = score([row((0, 10))], [row((1, 10))], [1], [])["things"]
    assert (scores["PQ"], scores["mIoU"], scores["AP"], scores["best_iou"]) == (0, 0, 0, 0)
    assert scores["n_pred"] == 0


def test_the_boundary_band_is_what_erosion_takes_away():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (5, 6)), np.ones((20, 20), int))  # a band of 3 pixels
    band = boundary_band(labels)
    for label in range(4):
        segment = np.pad(labels == label, 1)
        inside = ndimage.binary_erosion(segment, np.ones((3, 3)), iterations=3)[1:-1, 1:-1]
        assert np.array_equal(band[labels == label], ~inside[labels == label])


def test_boundary_iou_compares_the_bands():
    truth = np.zeros((60, 80), int) + 2  # diagonal 100: bands of 2 pixels
    truth[20:40, 20:40] = 1
    wide = truth.copy()
    wide[20:40, 40:42] = 1
    scores = score([wide], [truth], [1], [2])["things"]
    ring, wide_ring = 20 * 20 - 16 * 16, 20 * 22 - 16 * 18
    shared = ring - 16 * 2  # the right side of the ring, less its corners
    assert scores["mBIoU"] == pytest.approx(shared / (ring + wide_ring - shared))


def test_the_rand_index_of_a_known_table():
    # n = 6: sum of pairs 1 + 3 = 4 in cells {2, 1, 3}, rows {2, 4}, columns {3, 3}
    counts = np.array([[2, 0], [1, 3]])
    expected = 7 * 6 / 15
    assert adjusted_rand_index(counts) == pytest.approx((4 - expected) / (6.5 - expected))


def test_sub_folders_are_names(folders):
    assert evaluate(*folders)["things"]["PQ"] == 1


def test_views_without_ground_truth_are_not_scored(folders):
    write(folders[0], "0002", row((3, 4)))
    assert evaluate(*folders)["views"] == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ids, gt: (gt / "meta.json").unlink(), "No meta.json"),
        (lambda ids, gt: (gt / "meta.json").write_text('{"things": [1]}'), "'stuff'"),
        (lambda ids, gt: (gt / "ids" / "a" / "0001.png").rename(gt / "b.png"), "No label map"),
        (lambda ids, gt: ids.rename(ids.with_name("other")), "No folder"),
        (lambda ids, gt: write(ids, "a/0001", row((1, 5))), "5 x 1"),
        (lambda ids, gt: (ids / "a" / "0001.png").write_bytes(b"no image"), "0001.png"),
        (lambda ids, gt: Image.new("RGB", (20, 1)).save(ids / "a" / "0001.png"), "channel"),
    ],
)
def test_what_is_wrong_is_told(folders, spoil, message):
    spoil(*folders)
    with pytest.raises(JobError, match=message):
        evaluate(*folders)
