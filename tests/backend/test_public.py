# SPDX-License-Identifier: GPL-3.0-or-later
"""Public benchmarks: readers on tiny scenes in the real layouts, and protocols on hand cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from unified_lift.__main__ import main
from unified_lift.benchmark.protocols import (
    Panoptic,
    best_codes,
    class_agnostic_iou,
    mask_ious,
    scene_panoptic_quality,
)
from unified_lift.benchmark.public import (
    check_truth,
    find_scenes,
    read_public,
    score_public,
    start_scene,
    write_public,
)
from unified_lift.capture import read_capture
from unified_lift.masks.folder import folder_label_maps
from unified_lift.metrics import score
from unified_lift.protocol import JobError, SilentReport

SAMPLE = Path(__file__).parents[1] / "data" / "messy8"
WIDTH, HEIGHT = 40, 30


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A label map of one row: runs of (label, length)."""
    return np.concatenate([np.full(length, label) for label, length in runs])[None]


def save(path, labels, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.asarray(labels).astype(dtype)
    if path.suffix == ".npy":
        np.save(path, labels)
    else:
        Image.fromarray(labels).save(path)


def save_photo(path, shade=90):
    save(path, np.full((HEIGHT, WIDTH, 3), shade))


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def two_boxes(shift: int) -> np.ndarray:
    """True ids: a box of 1 and one of 2 on 0, moving with the view."""
    labels = np.zeros((HEIGHT, WIDTH), int)
    labels[5:20, 4 + shift : 14 + shift] = 1
    labels[8:25, 22 + shift : 34 + shift] = 2
    return labels


def sample_as_messy_rooms(root, num_train=24, num_test=6, scale=3):
    """Photos of the sample, small, with perfect masks whose ids hold in one view only."""
    transforms = json.loads((SAMPLE / "transforms.json").read_text())
    meta = json.loads((SAMPLE / "gt" / "meta.json").read_text())
    split = {s: [f for f in transforms["frames"] if f["split"] == s] for s in ("train", "test")}
    frames = split["train"][:: 48 // num_train][:num_train] + split["test"][:num_test]
    size = transforms["w"] // scale, transforms["h"] // scale
    poses = np.array([frame["transform_matrix"] for frame in frames])
    for i, frame in enumerate(frames):
        name = Path(frame["file_path"])
        photo = Image.open(SAMPLE / name).resize(size, Image.Resampling.BOX)
        save(root / "color" / f"{i:04d}.png", photo)
        truth = Image.open(SAMPLE / "gt" / "ids" / f"{name.stem}.png")
        ids = np.array(truth.resize(size, Image.Resampling.NEAREST))
        ids[~np.isin(ids, meta["things"])] = 0
        local = np.where(ids > 0, 1 + (ids * 5 + i) % 11, 0)
        for folder, labels in (("", ids), ("detic_", local)):
            save(root / f"{folder}instance" / f"{i:04d}.npy", labels, np.int16)
            save(root / f"{folder}semantic" / f"{i:04d}.npy", labels > 0, np.int16)
    w, h = transforms["w"], transforms["h"]
    K = [
        [transforms["fl_x"] / w, 0, transforms["cx"] / w],
        [0, transforms["fl_y"] / h, transforms["cy"] / h],
        [0, 0, 1],
    ]
    turns = Rotation.from_matrix(poses[:, :3, :3]).as_quat(scalar_first=True)
    camera = {"K": K, "positions": poses[:, :3, 3].tolist(), "quaternions": turns.tolist()}
    write_text(root / "metadata.json", json.dumps({"camera": camera}))


# ---- scenes in the layouts of the benchmarks, three frames each


@pytest.fixture
def lerf_mask(tmp_path):
    """Two training views, a test view between them by name, and a second one."""
    root = tmp_path / "figurines"
    names = ["frame_00001.jpg", "frame_00002.jpg", "frame_00003.jpg", "frame_00004.jpg"]
    write_text(root / "sparse/0/cameras.txt", f"1 PINHOLE {WIDTH} {HEIGHT} 50 50 20 15\n")
    images = (f"{i} 1 0 0 0 {i} 0 4 1 {name}\n\n" for i, name in enumerate(names, 1))
    write_text(root / "sparse/0/images.txt", "".join(images))
    write_text(root / "sparse/0/points3D.txt", "1 0 0 1 10 20 30 0.1 1 0\n2 1 0 1 10 20 30 0.1\n")
    for i, name in enumerate(names):
        save_photo(root / "images" / name)
        train = name in (names[0], names[2])
        if train:
            save_photo(root / "images_train" / name)
        mask = root / "object_mask" / name.replace("jpg", "png")
        save(mask, two_boxes(i) if train else two_boxes(i) * 0)  # black for test views
    for number, i in enumerate((1, 3)):
        for prompt, label in (("green apple", 1), ("old camera", 2)):
            mask = (two_boxes(i) == label) * 255
            save(root / "test_mask" / str(number) / f"{prompt}.png", mask)
    save(root / "test_mask/1/sheep.png", two_boxes(0))  # nothing brighter than 128: not visible
    return root


def lifting_labels(shift: int) -> Panoptic:
    """Wall (1), two chairs (5) with instances 1 and 2, and a void stripe (0)."""
    instances = two_boxes(shift)
    classes = np.where(instances > 0, 5, 1)
    classes[:2] = 0
    return Panoptic(classes, instances)


@pytest.fixture
def lifting(tmp_path):
    """Replica as Panoptic Lifting has it; frame 0000 is the test."""
    root = tmp_path / "room_0"
    stems = ["0000", "0001", "0002"]
    for i, stem in enumerate(stems):
        save_photo(root / "color" / f"{stem}.jpg")
        pose = np.eye(4)
        pose[0, 3] = i
        write_text(root / "pose" / f"{stem}.txt", "\n".join(" ".join(map(str, r)) for r in pose))
        truth = lifting_labels(i)
        for prefix in ("rs", "m2f"):
            save(root / f"{prefix}_semantics" / f"{stem}.png", truth.classes)
            save(root / f"{prefix}_instance" / f"{stem}.png", truth.instances)
    K = "20.0 0.00 19.5 0.00\n0.00 20.0 14.5 0.00\n0.00 0.00 1.00 0.00\n0.00 0.00 0.00 1.00"
    write_text(root / "intrinsic/intrinsic_color.txt", K)
    write_text(root / "splits.json", json.dumps({"train": stems[1:], "test": stems[:1]}))
    return root


@pytest.fixture
def semantic_nerf(tmp_path):
    """Replica as Semantic-NeRF has it: frame 0 trains, frame 2 tests."""
    root = tmp_path / "office_0"
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [0, 1, 2]
    lines = (" ".join(f"{value:.6f}" for value in pose.ravel()) for pose in poses)
    write_text(root / "Sequence_1/traj_w_c.txt", "\n".join(lines))
    for i in range(3):
        save_photo(root / "Sequence_1/rgb" / f"rgb_{i}.png")
        name = f"semantic_instance_{i}.png"
        save(root / "Sequence_1/semantic_instance" / name, two_boxes(i))
    return root


def write_messy(root, count=5):
    """Contrastive Lift's layout: the last fifth of the frames tests."""
    for i in range(count):
        stem = f"{i:04d}"
        save_photo(root / "color" / f"{stem}.png")
        ids = two_boxes(i)
        save(root / "instance" / f"{stem}.npy", ids, np.int16)
        save(root / "semantic" / f"{stem}.npy", ids > 0, np.int16)
        local = np.where(ids > 0, 3 - ids, 0) if i % 2 else ids  # ids of that view only
        save(root / "detic_instance" / f"{stem}.npy", local, np.int16)
        save(root / "detic_semantic" / f"{stem}.npy", ids > 0, np.int16)
    half = np.sqrt(0.5)
    camera = {
        "K": [[-1.5, 0, -0.5], [0, 2.0, -0.5], [0, 0, -1.0]],
        "positions": [[i, 2, 3] for i in range(count)],
        "quaternions": [[half, half, 0, 0]] * count,  # 90 degrees about x: looks along +y
    }
    write_text(root / "metadata.json", json.dumps({"camera": camera}))


@pytest.fixture
def messy_rooms(tmp_path):
    write_messy(tmp_path / "large_corridor_25")
    return tmp_path / "large_corridor_25"


def write_ids(folder, views, label_map):
    """Rendered ids of views; `label_map` tells those of a number of frame."""
    for view in views:
        number = int("".join(c for c in view.name if c.isdigit()))
        save(folder / f"{view.name}.png", label_map(number), np.uint16)


# ---- readers


def test_lerf_mask_is_split_by_images_train(lerf_mask):
    scene = read_public("lerf-mask", lerf_mask)
    assert [view.name for view in scene.capture.train_views] == ["frame_00001", "frame_00003"]
    assert [view.name for view in scene.capture.test_views] == ["frame_00002", "frame_00004"]
    assert {name: folder.name for name, folder in scene.prompts.items()} == {
        "frame_00002": "0",
        "frame_00004": "1",
    }
    assert scene.capture.has_split
    assert len(scene.capture.points) == 2
    maps = scene.label_maps()
    assert np.array_equal(maps[1], two_boxes(2))


def test_panoptic_lifting_is_split_by_its_json(lifting):
    scene = read_public("replica", lifting)
    assert [view.name for view in scene.capture.test_views] == ["0000"]
    view = scene.capture.train_views[0]
    assert view.name == "0001"
    assert view.center == pytest.approx([1, 0, 0])
    assert np.allclose(view.K, np.array([[20, 0, 20], [0, 20, 15], [0, 0, 1]]))
    labels = scene.label_maps()[0]  # void, the wall, and two chairs, of this view only
    assert np.unique(labels).tolist() == [0, 1, 2, 3]
    assert not labels[:2].any()
    (lifting / "splits.json").unlink()
    assert [view.name for view in read_public("replica", lifting).capture.test_views] == ["0000"]


def test_semantic_nerf_trains_with_every_fifth_frame(semantic_nerf):
    scene = read_public("replica", semantic_nerf)
    assert [view.name for view in scene.capture.train_views] == ["rgb_0"]
    (view,) = scene.capture.test_views
    assert view.name == "rgb_2"
    assert view.center == pytest.approx([2, 0, 0])
    assert np.allclose(view.K, np.array([[20, 0, 20], [0, 20, 15], [0, 0, 1]]))
    assert scene.label_maps() == [None]


def test_messy_rooms_has_blenders_cameras(messy_rooms):
    scene = read_public("messy-rooms", messy_rooms)
    assert [view.name for view in scene.capture.test_views] == ["0004"]
    view = scene.capture.train_views[1]
    assert np.allclose(view.K, np.array([[60, 0, 20], [0, 60, 15], [0, 0, 1]]))
    assert view.center == pytest.approx([1, 2, 3])
    ahead = view.viewmat @ [1, 7, 3, 1]  # five units along +y
    assert ahead[:3] == pytest.approx([0, 0, 5])
    above = view.viewmat @ [1, 7, 4, 1]
    assert above[:3] == pytest.approx([0, -1, 5])  # y points down
    assert np.array_equal(scene.label_maps()[2], two_boxes(2))


def test_scenes_are_found_one_or_many(semantic_nerf, lifting, tmp_path):
    assert find_scenes("replica", lifting) == [lifting]
    assert find_scenes("replica", tmp_path) == [semantic_nerf, lifting]
    with pytest.raises(JobError, match="no scene of messy-rooms"):
        find_scenes("messy-rooms", tmp_path)


@pytest.mark.parametrize("kind", ["lerf-mask", "replica", "messy-rooms"])
def test_a_scene_can_be_written_for_the_pipeline(kind, request, tmp_path):
    root = request.getfixturevalue({"replica": "lifting"}.get(kind, kind.replace("-", "_")))
    scene = read_public(kind, root)
    capture_dir = write_public(scene, tmp_path / "out")
    capture = read_capture(capture_dir)
    assert not capture.warnings
    assert [view.name for view in capture.test_views] == [v.name for v in scene.capture.test_views]
    assert len(capture.points) == len(scene.capture.points)
    for ours, theirs in zip(capture.views, scene.capture.views, strict=True):
        assert ours.viewmat == pytest.approx(theirs.viewmat)
        assert np.allclose(ours.K, theirs.K)
    maps = folder_label_maps(capture_dir / "masks", capture.train_views, SilentReport())
    for ours, theirs in zip(maps, scene.label_maps(), strict=True):
        assert np.array_equal(ours, theirs)


# ---- scores of a job


def test_true_ids_win_lerf_mask_with_an_oracle_for_words(lerf_mask, tmp_path):
    scene = read_public("lerf-mask", lerf_mask)
    write_ids(tmp_path / "ids", scene.capture.test_views, lambda n: two_boxes(n - 1) * 7)
    result = score_public(scene, tmp_path / "ids")
    assert result["mIoU_oracle_grounding"] == 1
    assert result["mBIoU_oracle_grounding"] == 1
    assert result["prompts"]["old camera"] == {"mIoU": 1, "mBIoU": 1, "views": 1}
    assert result["unscored"] == ["sheep"]
    assert "mIoU" not in result


def test_an_id_of_another_object_in_the_next_view_loses_lerf_mask(lerf_mask, tmp_path):
    scene = read_public("lerf-mask", lerf_mask)

    def swapped(number):
        labels = two_boxes(number - 1)
        return np.where(labels > 0, 3 - labels, 0) if number == 4 else labels

    write_ids(tmp_path / "ids", scene.capture.test_views, swapped)
    assert score_public(scene, tmp_path / "ids")["mIoU_oracle_grounding"] == 0


def test_masks_that_words_have_found_are_scored_and_missing_ones_are_empty(lerf_mask, tmp_path):
    scene = read_public("lerf-mask", lerf_mask)
    for number, i in ((0, 1), (1, 3)):  # of half the size
        mask = Image.fromarray(((two_boxes(i) == 1) * 255).astype(np.uint8))
        path = tmp_path / "masks" / str(number) / "green apple.png"
        path.parent.mkdir(parents=True)
        mask.save(path)
    result = score_public(scene, tmp_path / "masks")
    assert result["prompts"]["green apple"]["mIoU"] == 1
    assert result["prompts"]["old camera"] == {"mIoU": 0, "mBIoU": 0, "views": 2}
    assert result["mIoU"] == 0.5


@pytest.mark.parametrize("kind", ["replica", "messy-rooms"])
def test_true_ids_win_with_classes(kind, request, tmp_path):
    root = request.getfixturevalue("lifting" if kind == "replica" else "messy_rooms")
    scene = read_public(kind, root)

    def truth(number):  # Replica's wall is an object too
        ids = two_boxes(number)
        return np.where(ids == 0, 9, ids) if kind == "replica" else ids

    write_ids(tmp_path / "ids", scene.capture.views, truth)
    result = score_public(scene, tmp_path / "ids")
    assert (result["benchmark"], result["views"]) == (kind, 1)
    for key in ("PQ", "SQ", "RQ"):
        assert result["pq_scene"][key] == 1
    assert sorted(result["pq_scene"]["classes"]) == ([1, 5] if kind == "replica" else [0, 1])
    assert result["segments"]["things"]["PQ"] == 1
    assert result["segments"]["things"]["n_gt"] == 2
    assert result["class_agnostic"]["mIoU"] == 1
    assert result["class_agnostic"]["F"] == 1


def test_true_ids_win_without_classes(semantic_nerf, tmp_path):
    scene = read_public("replica", semantic_nerf)
    write_ids(tmp_path / "ids", scene.capture.test_views, two_boxes)
    result = score_public(scene, tmp_path / "ids")
    assert "pq_scene" not in result
    assert result["class_agnostic"]["F"] == 1
    assert result["segments"]["things"]["PQ"] == 1


def test_masks_of_single_views_lose_messy_rooms(tmp_path):
    root = tmp_path / "room"
    write_messy(root, count=15)  # three test views
    scene = read_public("messy-rooms", root)

    def unlinked(number):
        ids = two_boxes(number)
        return np.where(ids > 0, ids + 10 * number, 0)

    write_ids(tmp_path / "ids", scene.capture.views, unlinked)
    result = score_public(scene, tmp_path / "ids")
    assert result["segments"]["things"]["PQ"] == 0
    assert result["pq_scene"]["classes"][0]["PQ"] < 1  # what no training view shows is background
    assert 1 not in result["pq_scene"]["classes"] or not result["pq_scene"]["classes"][1]["PQ"]


def test_an_object_mostly_on_background_is_background(messy_rooms, tmp_path):
    scene = read_public("messy-rooms", messy_rooms)

    def with_floor(number):
        ids = two_boxes(number)
        return np.where(ids == 0, 8, ids)

    write_ids(tmp_path / "ids", scene.capture.views, with_floor)
    assert score_public(scene, tmp_path / "ids")["pq_scene"]["PQ"] == 1


# ---- bad input


@pytest.mark.parametrize(
    ("fixture", "kind", "spoil", "message"),
    [
        ("lerf_mask", "lerf-mask", "images_train", "images_train with photos"),
        ("lerf_mask", "lerf-mask", "test_mask", "one numbered folder"),
        ("lerf_mask", "lerf-mask", "images/frame_00004.jpg", "has no photo"),
        ("lifting", "replica", "pose", "neither pose"),
        ("lifting", "replica", "pose/0001.txt", "0001.txt is no table"),
        ("lifting", "replica", "intrinsic", "intrinsic_color.txt is no table"),
        ("lifting", "replica", "color", "lists no photos"),
        ("messy_rooms", "messy-rooms", "metadata.json", "No metadata.json"),
        ("messy_rooms", "messy-rooms", "color/0003.png", "5 positions"),
    ],
)
def test_what_is_missing_in_a_scene_is_told(request, tmp_path, fixture, kind, spoil, message):
    root = request.getfixturevalue(fixture)
    (root / spoil).rename(tmp_path / "gone")
    with pytest.raises(JobError, match=message):
        read_public(kind, root)
    with pytest.raises(JobError, match="no folder"):
        read_public(kind, root / "nowhere")


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ({}, "no camera with K"),
        ([], "no camera with K"),
        ({"K": [[1, 2], [3, 4]], "positions": [], "quaternions": []}, "no camera with K"),
        ({"K": np.eye(3).tolist(), "positions": [[0, 0, 0]], "quaternions": []}, "1 positions"),
        (
            {
                "K": np.eye(3).tolist(),
                "positions": [[0, 0, 0]] * 5,
                "quaternions": [[0, 0, 0, 0]] * 5,
            },
            "no rotation",
        ),
        (
            {
                "K": np.full((3, 3), np.nan).tolist(),
                "positions": [[0, 0, 0]] * 5,
                "quaternions": [[1, 0, 0, 0]] * 5,
            },
            "focal lengths nan",
        ),
    ],
)
def test_damaged_metadata_is_told(messy_rooms, camera, message):
    (messy_rooms / "metadata.json").write_text(json.dumps({"camera": camera}))
    with pytest.raises(JobError, match=message):
        read_public("messy-rooms", messy_rooms)


def test_a_trajectory_of_other_numbers_is_told(semantic_nerf):
    trajectory = semantic_nerf / "Sequence_1/traj_w_c.txt"
    trajectory.write_text("1 2 3\n4 5 6\n")
    with pytest.raises(JobError, match="3 numbers a line"):
        read_public("replica", semantic_nerf)
    trajectory.write_text(" ".join(map(str, np.eye(4).ravel())))
    with pytest.raises(JobError, match="no pose"):
        read_public("replica", semantic_nerf)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, ids: (ids / "0004.png").unlink(), "Render all test views"),
        (lambda root, ids: save(ids / "0004.png", two_boxes(0)[:9]), "40 x 9"),
        (lambda root, ids: save(root / "semantic/0004.npy", two_boxes(0)[:9]), "of the size"),
        (lambda root, ids: (root / "instance/0004.npy").unlink(), "0004.npy"),
        (
            lambda root, ids: save(root / "instance/0004.npy", two_boxes(0) * np.nan, float),
            "no ids",
        ),
        (lambda root, ids: [path.unlink() for path in ids.glob("000[0-3].png")], "split all"),
    ],
)
def test_what_cannot_be_scored_is_told(messy_rooms, tmp_path, spoil, message):
    scene = read_public("messy-rooms", messy_rooms)
    write_ids(tmp_path / "ids", scene.capture.views, two_boxes)
    spoil(messy_rooms, tmp_path / "ids")
    with pytest.raises(JobError, match=message):
        score_public(scene, tmp_path / "ids")


def test_a_scene_that_is_all_void_is_told(lifting, tmp_path):
    scene = read_public("replica", lifting)
    write_ids(tmp_path / "ids", scene.capture.views, two_boxes)
    save(lifting / "rs_semantics/0000.png", two_boxes(0) * 0)
    with pytest.raises(JobError, match="void in all test views"):
        score_public(scene, tmp_path / "ids")


# ---- protocols on hand cases


def test_the_best_codes_fit_the_mask_best():
    mask = row((1, 10), (0, 10)) > 0
    labels = row((5, 6), (6, 4), (6, 3), (7, 7))
    assert best_codes(labels, mask).tolist() == [5, 6]  # 10 / 13 against 6 / 10
    labels = row((5, 6), (6, 4), (6, 10))
    assert best_codes(labels, mask).tolist() == [5]  # 6 / 10 against 10 / 20
    assert best_codes(labels * 0, mask).tolist() == []


def test_best_codes_are_the_best_of_all_sets():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, mask = rng.integers(0, 6, (8, 8)), rng.random((8, 8)) < 0.3
        sets = [[i for i in range(1, 6) if number >> i & 1] for number in range(0, 64, 2)]
        ious = [
            (np.isin(labels, ids) & mask).sum() / (np.isin(labels, ids) | mask).sum()
            for ids in sets
        ]
        found = np.isin(labels, best_codes(labels, mask))
        assert (found & mask).sum() / (found | mask).sum() == pytest.approx(max(ious))


def test_boundary_iou_of_masks_takes_eroded_rings():
    rng = np.random.default_rng(1)
    masks = [np.kron(rng.random((5, 6)) < 0.5, np.ones((20, 20))) > 0 for _ in range(2)]

    def ring(mask):  # 100 x 120 pixels: 3 of them
        return mask & ~ndimage.binary_erosion(np.pad(mask, 1), np.ones((3, 3)), 3)[1:-1, 1:-1]

    rings = [ring(mask) for mask in masks]
    expected = (rings[0] & rings[1]).sum() / (rings[0] | rings[1]).sum()
    iou = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert mask_ious(*masks) == pytest.approx((iou, expected))
    assert mask_ious(masks[0] & False, masks[0]) == (0, 0)
    assert mask_ious(masks[0] & False, masks[0] & False) is None


def pq_of(predicted, truth, void=None):
    """PQ^scene of one row: wall (1) is stuff, chairs (5) are things."""
    views = [(Panoptic(*predicted), Panoptic(*truth))]
    return scene_panoptic_quality(views, things={5}, stuff={0, 1}, void=void)


def test_pq_scene_is_a_mean_over_classes():
    truth = row((1, 100), (5, 100)), row((0, 100), (1, 50), (2, 50))
    predicted = row((1, 100), (5, 100)), row((4, 100), (7, 100))  # the chairs are fused
    result = pq_of(predicted, truth)
    assert result["classes"][1] == {"PQ": 1, "SQ": 1, "RQ": 1, "TP": 1, "FP": 0, "FN": 0}
    assert result["classes"][5] == {"PQ": 0, "SQ": 0, "RQ": 0, "TP": 0, "FP": 1, "FN": 2}
    assert result["PQ"] == 0.5


def test_pq_scene_needs_one_id_in_all_views():
    truth = Panoptic(row((5, 10)), row((1, 10)))
    views = [(Panoptic(row((5, 10)), row((i, 10))), truth) for i in (1, 2)]
    assert scene_panoptic_quality(views, {5}, {0}, None)["PQ"] == 0
    views = [(Panoptic(row((5, 10)), row((1, 10))), truth)] * 2
    assert scene_panoptic_quality(views, {5}, {0}, None)["PQ"] == 1


def test_true_void_is_left_out_and_rare_classes_become_void():
    truth = row((1, 995), (5, 4), (0, 1000)), row((0, 995), (1, 4), (0, 1000))  # a chair of .4 %
    predicted = row((1, 1999)), row((0, 1999))
    result = pq_of(predicted, truth, void=0)
    assert sorted(result["classes"]) == [1]
    assert result["PQ"] == 1  # the rare chair does not count in the wall's union


def test_views_that_are_all_void_do_not_count():
    void = Panoptic(row((0, 10)), row((3, 10)))
    chair = Panoptic(row((5, 10)), row((70_000, 10)))
    views = [(chair, void), (chair, chair), (void, void)]
    assert scene_panoptic_quality(views, {5}, {0, 1}, void=0)["PQ"] == 1
    assert scene_panoptic_quality([(chair, void)], {5}, {0, 1}, void=0)["PQ"] == 0


def test_predictions_without_a_class_cost_as_a_class_of_their_own():
    truth = row((1, 100)), row((0, 100))
    predicted = row((1, 60), (0, 40)), row((0, 100))
    result = pq_of(predicted, truth, void=0)
    assert result["classes"][1]["SQ"] == pytest.approx(0.6)
    assert result["PQ"] == pytest.approx(0.3)


def test_void_excuses_segments_that_it_covers():
    # 9 is no class: it is void on both sides. Chair 1 is lost to it, prediction 3 lies on it.
    truth = row((5, 40), (9, 40), (5, 40)), row((1, 40), (0, 40), (2, 40))
    predicted = row((9, 40), (5, 40), (5, 40)), row((0, 40), (3, 40), (2, 40))
    result = pq_of(predicted, truth)
    assert result["classes"][5] == {"PQ": 1, "SQ": 1, "RQ": 1, "TP": 1, "FP": 0, "FN": 0}


def test_views_without_a_segment_do_not_enter_its_iou():
    truths = [row((1, 10), (0, 10)), row((0, 20))]
    predictions = [row((1, 5), (0, 15)), row((1, 10), (0, 10))]
    result = class_agnostic_iou(zip(predictions, truths))
    assert result["mIoU"] == pytest.approx((5 / 10 + (10 / 15 + 10 / 20) / 2) / 2)
    assert result["tube_mIoU"] == pytest.approx((5 / 20 + 20 / 35) / 2)
    assert result["precision"] == result["recall"] == result["F"] == 0.5


def test_pq_scene_with_one_class_is_our_panoptic_quality():
    rng = np.random.default_rng(2)
    truths = [np.kron(rng.integers(1, 6, (5, 5)), np.ones((9, 9), int)) for _ in range(3)]
    predictions = [np.where(rng.random(t.shape) < 0.8, t + 10, 30) for t in truths]
    views = [
        (Panoptic(np.ones_like(p), p), Panoptic(np.ones_like(t), t))
        for p, t in zip(predictions, truths)
    ]
    result = scene_panoptic_quality(views, {1}, set(), None)
    ours = score(predictions, truths, [1, 2, 3, 4, 5], [])["things"]
    for key in ("PQ", "SQ", "RQ"):
        assert result[key] == pytest.approx(ours[key])


def test_one_command_runs_a_public_benchmark(tmp_path):
    sample_as_messy_rooms(tmp_path / "rooms" / "little_8")
    command = ["public", "messy-rooms", str(tmp_path / "rooms"), "--out", str(tmp_path / "out")]
    options = ["--preset", "draft", "--method", "votes"]
    assert main([*command, *options]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["little_8"]
    assert scores["segments"]["things"]["TP"] >= 4
    assert 0.3 < scores["pq_scene"]["PQ"] <= 1
    assert main([*command, *options]) == 0  # goes on: the job is done, its views are scored
    done = tmp_path / "out" / "little_8" / "job" / "scene.ply"
    before = done.stat().st_mtime_ns
    assert main([*command, *options]) == 0
    assert done.stat().st_mtime_ns == before
    photo = next((tmp_path / "rooms" / "little_8" / "color").iterdir())
    with Image.open(photo) as image:
        changed = image.rotate(180)
    changed.save(photo)
    assert main([*command, *options]) == 0  # another photo: from the start
    assert done.stat().st_mtime_ns != before


def test_a_scene_of_other_files_or_settings_starts_anew(messy_rooms, tmp_path):
    folder = tmp_path / "out"
    start_scene(messy_rooms, folder, {"method": "votes"})
    left = folder / "job" / "scene.ply"

    def is_kept(settings):
        left.parent.mkdir(exist_ok=True)
        left.touch()
        start_scene(messy_rooms, folder, settings)
        return left.exists()

    assert is_kept({"method": "votes"})
    assert not is_kept({"method": "default"})
    (messy_rooms / "more.txt").touch()
    assert not is_kept({"method": "default"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(JobError, match="not of this benchmark"):
        start_scene(messy_rooms, tmp_path / "other", {})


def test_damaged_truth_is_told_before_the_job(messy_rooms):
    scene = read_public("messy-rooms", messy_rooms)
    check_truth(scene)
    next(iter(scene.truth.values())).instances.write_bytes(b"no labels")
    with pytest.raises(JobError, match="cannot be read"):
        check_truth(scene)
