# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics: hand cases, the sample capture's ground truth, and files that are wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from unified_lift.metrics import (
    adjusted_rand_index,
    boundary_band,
    count,
    evaluate,
    extraction_iou,
    gaussian_accuracy,
    match,
    psnr,
    read_labels,
    score,
    ssim,
)
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
    for protocol, number in (("things", 8), ("all", 14)):
        scores = result[protocol]
        ones = ("PQ", "SQ", "RQ", "mIoU", "mBIoU", "AP", "AP50", "AP75", "ARI", "best_iou")
        assert {key: scores[key] for key in ones} == dict.fromkeys(ones, 1.0)
        assert (scores["TP"], scores["FP"], scores["FN"]) == (number, 0, 0)
        assert scores["n_gt"] == number
        assert (scores["id_consistency"], scores["count_error"]) == (1.0, 0.0)


def test_ids_that_change_from_view_to_view_find_nothing():
    result = evaluate(SAMPLE / "masks" / "paper", SAMPLE / "gt")
    assert result["views"] == 48
    assert result["things"]["PQ"] == 0
    assert result["things"]["mIoU"] < 0.2
    assert result["things"]["id_consistency"] < 0.2


def test_a_split_object_is_one_hit_and_one_false_segment():
    truth = row((1, 10), (2, 10))
    scores = score([row((7, 8), (8, 2), (9, 10))], [truth], [1, 2], [])["things"]
    assert (scores["TP"], scores["FP"], scores["FN"]) == (2, 1, 0)
    assert scores["PQ"] == pytest.approx(1.8 / 2.5)
    assert scores["mIoU"] == pytest.approx(0.9)
    assert scores["n_pred"] == 3


def test_average_precision_ranks_by_how_sure_the_split_is():
    views = [row((1, 6), (2, 4))], [row((1, 3), (3, 3), (2, 4))]  # only 2 is right, the smaller
    by_area = score(*views, [1, 2, 3], [])["things"]["AP75"]
    by_rank = score(*views, [1, 2, 3], [], np.array([0, 0.1, 0.9]))["things"]["AP75"]
    assert by_rank == pytest.approx(2 * by_area) and by_area > 0


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
        (lambda ids, gt: write(gt / "ids", "a/0001", row((0, 20))), "nothing to score"),
    ],
)
def test_what_is_wrong_is_told(folders, spoil, message):
    spoil(*folders)
    with pytest.raises(JobError, match=message):
        evaluate(*folders)


# ---- identity, number of objects


def test_an_id_may_change_in_one_view_of_twenty():
    truth = row((1, 10))
    views = [row((3, 10))] * 19
    assert score([*views, row((4, 10))], [truth] * 20, [1], [])["things"]["id_consistency"] == 1
    views = [row((3, 10))] * 18
    changed = [row((4, 10))] * 2
    assert score([*views, *changed], [truth] * 20, [1], [])["things"]["id_consistency"] == 0


def test_unlabelled_is_no_consistent_id():
    truth = row((1, 10), (2, 10))
    scores = score([row((0, 10), (5, 20 - 10))], [truth], [1, 2], [])["things"]
    assert scores["id_consistency"] == 0.5


def test_views_that_do_not_show_an_object_say_nothing_of_its_id():
    truths = [row((1, 10)), row((2, 10))]
    assert score([row((3, 10)), row((4, 10))], truths, [1, 2], [])["things"]["id_consistency"] == 1


def test_predictions_on_stuff_are_not_counted_as_objects():
    views = [row((1, 5), (2, 5), (3, 10))], [row((1, 10), (9, 10))]
    result = score(*views, things=[1], stuff=[9])
    assert result["things"]["count_error"] == 1.0  # two ids on one object
    assert result["all"]["count_error"] == 0.5  # three for two


def test_true_ids_are_matched_to_predicted_ones():
    found = match([row((7, 10), (8, 8), (0, 2))], [row((1, 10), (2, 10))], [1, 2, 3])
    assert found == {1: 7, 2: 8}
    assert match([row((0, 5))], [row((1, 5))], [1]) == {}


# ---- odd values


def test_ids_may_be_large_and_all_views_void_but_one():
    truth, void = row((70_000, 10), (2, 5)), row((0, 15))
    predicted = row((2**31, 10), (66_000, 5))
    scores = score([predicted] * 3, [void, truth, void], [70_000, 2], [])["things"]
    assert (scores["PQ"], scores["AP"], scores["ARI"], scores["id_consistency"]) == (1, 1, 1, 1)


def test_label_arrays_hold_whole_numbers(tmp_path):
    def read(values):
        np.save(tmp_path / "a.npy", values)
        return read_labels(tmp_path / "a.npy").tolist()

    assert read(np.array([[-1, 7]], np.int16)) == [[0, 7]]
    assert read(np.array([[70_000.0, 0]])) == [[70_000, 0]]
    for wrong in ([[0.5]], [[np.nan]], [[np.inf]], [["a"]]):
        with pytest.raises(JobError, match="no ids"):
            read(np.array(wrong))
    (tmp_path / "a.npy").write_bytes(b"not an array")
    with pytest.raises(JobError, match=r"a\.npy"):
        read_labels(tmp_path / "a.npy")


# ---- objects alone


def alone(alpha, prediction, truth):
    return extraction_iou([alpha], [prediction], [truth], 7, 1, things=[1, 2])


def test_the_true_masks_extract_with_an_iou_of_one():
    truth = row((1, 10), (2, 5), (9, 5))
    assert alone((truth == 1) * 1.0, np.where(truth == 1, 7, 3), truth) == (1, 0)


def test_what_another_thing_hides_is_left_out():
    truth = row((1, 10), (2, 5), (9, 5))
    behind = row((1, 15), (0, 5)) * 0.9  # the object goes on behind thing 2
    result = alone(behind, row((7, 10), (8, 10)), truth)
    assert result.iou == 1
    assert result.left_out == pytest.approx(5 / 15)


def test_an_object_fused_with_its_neighbour_pays():
    truth = row((1, 10), (2, 5), (9, 5))
    result = alone(row((1, 15), (0, 5)), row((7, 15), (8, 5)), truth)
    assert result == (pytest.approx(10 / 15), 0)


def test_stuff_hides_nothing_and_void_is_not_counted():
    truth = row((1, 10), (9, 5), (0, 5))
    result = alone(row((1, 20)), row((7, 10), (8, 10)), truth)
    assert result == (pytest.approx(10 / 15), 0)


def test_an_object_that_nobody_sees_is_no_extraction():
    with pytest.raises(JobError, match="No view shows"):
        alone(row((0, 4)), row((7, 4)), row((9, 4)))
    with pytest.raises(JobError, match="NaN"):
        alone(np.full((1, 4), np.nan), row((7, 4)), row((1, 4)))


# ---- Gaussians


@pytest.fixture
def plates():
    """A regular plate of points, its left half object 1, its right half floor (9)."""
    x, y = np.meshgrid(np.arange(20.0), np.arange(10.0))
    surface = np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3)
    return surface, np.where(surface[:, 0] < 10, 1, 9)


def test_gaussians_on_the_surface_have_its_ids(plates):
    surface, labels = plates
    means = np.concatenate(
        [surface + np.array([0, 0, 0.1]), [[0, 0, 50], [3, 3, -9]]]
    )  # two floaters
    ids = np.append(np.where(labels == 1, 4, 6), [4, 0])
    result = gaussian_accuracy(means, ids, surface, labels, [1])
    assert result["floaters"] == pytest.approx(2 / 202)
    assert result["scored"] == pytest.approx(200 / 202)
    assert result["things"] == {"accuracy": 1, "mIoU": 1, "ARI": 1}
    assert result["all"] == {"accuracy": 1, "mIoU": 1, "ARI": 1}


def test_gaussians_without_an_object_are_wrong(plates):
    surface, labels = plates
    ids = np.where(labels == 1, 4, 0)
    ids[:40] = 0  # the first two rows
    result = gaussian_accuracy(surface, ids, surface, labels, [1])
    assert result["things"]["accuracy"] == pytest.approx(80 / 100)
    assert result["all"]["accuracy"] == pytest.approx(80 / 200)
    assert result["all"]["mIoU"] == pytest.approx(0.8 / 2)


def test_surface_that_is_not_annotated_scores_no_gaussian(plates):
    surface, labels = plates
    result = gaussian_accuracy(surface, labels, surface, np.where(labels == 9, 0, 1), [1])
    assert result["scored"] == 0.5
    assert result["all"]["accuracy"] == 1
    with pytest.raises(JobError, match="NaN"):
        gaussian_accuracy(surface * np.nan, labels, surface, labels, [1])


# ---- pictures


def test_psnr_of_a_constant_error():
    photo = np.full((12, 12, 3), 100, np.uint8)
    assert psnr(photo, photo) == pytest.approx(100)
    assert psnr(photo / 255 + 0.1, photo) == pytest.approx(20)


def test_ssim_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    photo = rng.random((11, 11, 1)).repeat(3, 2)
    image = np.clip(photo + rng.normal(0, 0.1, (11, 11, 3)), 0, 1)
    assert ssim(photo, photo) == pytest.approx(1)
    weights = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    x, y = image[..., 0], photo[..., 0]
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    both = (weights * x * y).sum() - mean_x * mean_y
    spread = (weights * x**2).sum() - mean_x**2 + (weights * y**2).sum() - mean_y**2
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * both + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (spread + 9e-4)
    grey = ssim(image[..., :1].repeat(3, 2), photo)  # one window fits: its centre is the mean
    assert grey == pytest.approx(expected)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_pictures_that_cannot_be_compared_are_told(metric):
    photo = np.zeros((12, 12, 3))
    with pytest.raises(JobError, match="12 x 12"):
        metric(photo[:11], photo)
    with pytest.raises(JobError, match="NaN"):
        metric(photo * np.nan, photo)


# ---- against public implementations


def random_case(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Three views of blocks and their noisy prediction, with void and unlabelled pixels."""
    rng = np.random.default_rng(seed)
    truths = [np.kron(rng.integers(0, 8, (6, 8)), np.ones((16, 16), int)) for _ in range(3)]
    renamed = np.append(0, rng.permutation(np.arange(10, 20)))
    predictions = []
    for truth in truths:
        moved = np.roll(truth, rng.integers(-1, 2, 2), (0, 1))
        prediction = renamed[moved]
        patches = np.kron(rng.integers(0, 20, (12, 16)), np.ones((8, 8), int))
        prediction = np.where(patches == 1, 30, prediction)  # a false segment
        prediction = np.where((patches % 3 == 2) & (moved == 3), 31, prediction)  # a fragment
        predictions.append(np.where(patches == 3, 0, prediction))
    return predictions, truths


def long_image(views: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(views)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("protocol", ["things", "all"])
def test_panoptic_quality_is_that_of_panopticapi(tmp_path, seed, protocol):
    evaluation = pytest.importorskip("panopticapi.evaluation", reason="needs panopticapi-lite")
    predictions, truths = random_case(seed)
    things, stuff = [1, 2, 3, 4, 5], [6, 7]
    scores = score(predictions, truths, things, stuff)[protocol]
    truth = long_image(truths)
    prediction = np.where(truth == 0, 0, long_image(predictions))
    crowd = {}
    if protocol == "things":  # stuff is what panopticapi calls a crowd: it excuses predictions
        truth = np.where(np.isin(truth, stuff), 6, truth)
        crowd = {6: 1}
    for name, labels in (("truth", truth), ("prediction", prediction)):
        colors = np.stack([labels % 256, labels // 256, labels * 0], -1).astype(np.uint8)
        Image.fromarray(colors).save(tmp_path / f"{name}.png")

    def annotation(name, labels, crowd):
        infos = [
            {
                "id": i,
                "category_id": 1,
                "iscrowd": crowd.get(i, 0),
                "area": int((labels == i).sum()),
            }
            for i in np.unique(labels[labels != 0]).tolist()
        ]
        return {"image_id": 1, "file_name": f"{name}.png", "segments_info": infos}

    pair = annotation("truth", truth, crowd), annotation("prediction", prediction, {})
    folders, categories = (str(tmp_path), str(tmp_path)), {1: {"isthing": 1}}
    theirs = evaluation.pq_compute_single_core(0, [pair], *folders, categories)
    quality, _ = theirs.pq_average(categories, isthing=None)
    found = theirs[1]
    assert (scores["TP"], scores["FP"], scores["FN"]) == (found.tp, found.fp, found.fn)
    for ours, name in (("PQ", "pq"), ("SQ", "sq"), ("RQ", "rq")):
        assert scores[ours] == pytest.approx(quality[name], abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    cocoeval = pytest.importorskip("pycocotools.cocoeval", reason="needs pycocotools")
    encode = pytest.importorskip("pycocotools.mask", reason="needs pycocotools").encode
    predictions, truths = random_case(seed)
    scores = score(predictions, truths, list(range(1, 8)), [])["all"]
    truth = long_image(truths)
    prediction = np.where(truth == 0, 0, long_image(predictions))

    def annotations(labels):
        for number, label in enumerate(np.unique(labels[labels != 0]), 1):
            mask = labels == label
            code = encode(np.asfortranarray(mask.astype(np.uint8)))
            entry = {"id": number, "image_id": 1, "category_id": 1, "segmentation": code}
            yield {**entry, "area": int(mask.sum()), "score": float(mask.sum()), "iscrowd": 0}

    height, width = truth.shape
    dataset = {"images": [{"id": 1, "height": height, "width": width}], "categories": [{"id": 1}]}
    sides = []
    for labels in (truth, prediction):
        side = coco.COCO()
        side.dataset = {**dataset, "annotations": list(annotations(labels))}
        side.createIndex()
        sides.append(side)
    evaluation = cocoeval.COCOeval(*sides, "segm")
    evaluation.params.maxDets = [1000]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, 0].mean(1)
    assert scores["AP"] == pytest.approx(precision.mean(), abs=1e-6)
    assert scores["AP50"] == pytest.approx(precision[0], abs=1e-6)
    assert scores["AP75"] == pytest.approx(precision[5], abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_rand_index_is_that_of_scikit_learn(seed):
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, 500)
    prediction = np.where(rng.random(500) < 0.7, truth + 3, rng.integers(0, 9, 500))
    ours = adjusted_rand_index(count(prediction, truth).counts)
    assert ours == pytest.approx(sklearn.adjusted_rand_score(truth, prediction), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_segmentation_of_its_own_is_perfect(seed):
    _, truths = random_case(seed)
    scores = score([truth * 3 for truth in truths], truths, list(range(1, 8)), [])["things"]
    ones = ("PQ", "SQ", "RQ", "mIoU", "mBIoU", "AP", "AP50", "AP75", "ARI", "best_iou")
    assert {key: scores[key] for key in ones} == dict.fromkeys(ones, 1.0)
    assert (scores["id_consistency"], scores["count_error"]) == (1.0, 0.0)
