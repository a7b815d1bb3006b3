# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures: every dialect that is read, and what is said about those that are broken."""

import json
import os
import struct
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from unified_lift.capture import View, read_cameras, read_capture, write_cameras
from unified_lift.capture.distortion import distort
from unified_lift.capture.images import (
    load_photo,
    readable_views,
    resize_labels,
    scaled_view,
    undistort,
    undistort_view,
)
from unified_lift.protocol import JobError, SilentReport

REPOSITORY = Path(__file__).parents[2]
MESSY8 = REPOSITORY / "tests" / "data" / "messy8"
REAL = Path(os.environ.get("UNIFIED_LIFT_DATA", REPOSITORY.parent / "shared" / "data"))
POSE = [[1.0, 0.0, 0.0, 0.5], [0.0, 0.0, -1.0, -3.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]


class Collector(SilentReport):
    """A report that keeps the warnings."""

    def __init__(self):
        self.warnings = []

    def warning(self, text):
        self.warnings.append(text)


def make_photo(path, size=(8, 6), color=(200, 100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def make_transforms(folder, frames=None, *, name="transforms.json", photos=True, **shared):
    """A capture of two photos, with the given values over the plain ones."""
    if frames is None:
        frames = [{"file_path": f"images/{i}.png"} for i in range(2)]
    frames = [{"transform_matrix": POSE, **frame} for frame in frames]
    for frame in frames if photos else []:
        make_photo(folder / frame["file_path"])
    shared = {"fl_x": 10.0, "w": 8, "h": 6, **shared}
    folder.mkdir(parents=True, exist_ok=True)
    data = {key: value for key, value in shared.items() if value is not None}
    (folder / name).write_text(json.dumps({**data, "frames": frames}), encoding="utf-8")
    return folder


CAMERAS = {
    "SIMPLE_PINHOLE": ([10.0, 4.5, 3.0], 10.0, (0, 0, 0, 0)),
    "PINHOLE": ([10.0, 11.0, 4.5, 3.0], 11.0, (0, 0, 0, 0)),
    "SIMPLE_RADIAL": ([10.0, 4.5, 3.0, 0.1], 10.0, (0.1, 0, 0, 0)),
    "RADIAL": ([10.0, 4.5, 3.0, 0.1, 0.2], 10.0, (0.1, 0.2, 0, 0)),
    "OPENCV": ([10.0, 11.0, 4.5, 3.0, 0.1, 0.2, 0.3, 0.4], 11.0, (0.1, 0.2, 0.3, 0.4)),
}
NAMES = ["left/á 1.jpg", "right/猫.jpg"]
QUATS = [(1.0, 0.0, 0.0, 0.0), (0.5, 0.5, -0.5, 0.5)]
POINTS = [(0.5, -1.0, 2.0, 10, 20, 30), (1.5, 0.25, 4.0, 40, 50, 60)]


def write_colmap_text(model, camera="PINHOLE", names=NAMES):
    model.mkdir(parents=True, exist_ok=True)
    params = " ".join(map(str, CAMERAS[camera][0] if camera in CAMERAS else range(12)))
    (model / "cameras.txt").write_text(f"# comment\n7 {camera} 8 6 {params}\n")
    lines = [
        f"{i} {' '.join(map(str, quat))} 0.1 0.2 3.0 7 {name}\n{'1.5 2.5 -1' * i}\n"
        for i, (quat, name) in enumerate(zip(QUATS, names))
    ]
    (model / "images.txt").write_text("# comment\n" + "".join(lines), encoding="utf-8")
    rows = [f"{i} {' '.join(map(str, point))} 0.5{' 1 2' * i}\n" for i, point in enumerate(POINTS)]
    (model / "points3D.txt").write_text("# comment\n" + "".join(rows))


def write_colmap_binary(model, camera="PINHOLE", names=NAMES):
    model.mkdir(parents=True, exist_ok=True)
    params = CAMERAS[camera][0]
    head = struct.pack("<QIiQQ", 1, 7, list(CAMERAS).index(camera) if camera else 5, 8, 6)
    # COLMAP's ids: 0 SIMPLE_PINHOLE, 1 PINHOLE, 2 SIMPLE_RADIAL, 3 RADIAL, 4 OPENCV
    (model / "cameras.bin").write_bytes(head + struct.pack(f"<{len(params)}d", *params))
    data = struct.pack("<Q", len(names))
    for i, (quat, name) in enumerate(zip(QUATS, names)):
        data += struct.pack("<I7dI", i, *quat, 0.1, 0.2, 3.0, 7) + name.encode() + b"\0"
        data += struct.pack("<Q", i) + struct.pack("<ddq", 1.5, 2.5, -1) * i
    (model / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(POINTS))
    for i, (*xyz, r, g, b) in enumerate(POINTS):
        data += struct.pack("<Q3d3BdQ", i, *xyz, r, g, b, 0.5, i) + struct.pack("<II", 1, 2) * i
    (model / "points3D.bin").write_bytes(data)


# ---- the shipped capture


def test_the_sample_has_its_split_names_and_points():
    capture = read_capture(MESSY8)
    assert (len(capture.train_views), len(capture.test_views)) == (48, 10)
    assert capture.has_split and not capture.warnings
    assert [view.name for view in capture.views[:2]] == ["0000", "0001"]
    assert (capture.views[0].width, capture.views[0].height) == (320, 240)
    assert capture.points.shape == (3500, 3) and capture.points.dtype == np.float32
    assert capture.point_colors[0].tolist() == [215, 206, 188]
    np.testing.assert_array_equal(capture.world_to_blender, np.eye(4))


def test_cameras_project_points_where_colmap_observed_them():
    capture = read_capture(MESSY8)  # cameras of transforms.json, observations of images.txt
    lines = (MESSY8 / "sparse/0/images.txt").read_text().splitlines()[2:]
    observed = np.array(lines[1].split(), dtype=float).reshape(-1, 3)
    world = capture.points[observed[:, 2].astype(int) - 1]
    view = capture.views[0]
    local = world @ view.viewmat[:3, :3].T + view.viewmat[:3, 3]
    pixels = (local / local[:, 2:]) @ view.K.T
    errors = np.linalg.norm(pixels[:, :2] - observed[:, :2], axis=1)
    assert np.median(errors) < 2.0  # the points have 0.3 % noise and 3 % outliers


def test_colmap_and_transforms_of_one_capture_agree():
    ours, colmap = read_capture(MESSY8), read_capture(MESSY8 / "sparse" / "0")
    assert [view.name for view in ours.views] == [view.name for view in colmap.views]
    assert [v.image_path for v in ours.views] == [v.image_path for v in colmap.views]
    for a, b in zip(ours.views, colmap.views):
        np.testing.assert_allclose(a.viewmat, b.viewmat, atol=1e-5)
    assert not colmap.has_split and len(colmap.train_views) == 58


def test_colmap_scenes_are_put_upright():
    capture = read_capture(MESSY8 / "sparse")
    rotation = capture.world_to_blender
    up = -np.mean([view.viewmat[1, :3] for view in capture.views], axis=0)
    np.testing.assert_allclose(rotation[:3, :3] @ up, [0, 0, np.linalg.norm(up)], atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=1e-12)
    assert rotation[2, 2] > 0.99  # this world has z up already


@pytest.mark.parametrize("name, train, test", [("fox", 44, 6), ("redkitchen", 55, 8)])
def test_real_captures_are_read(name, train, test):
    if not (REAL / name).is_dir():
        pytest.skip(f"no {name} in {REAL} (set UNIFIED_LIFT_DATA)")
    capture = read_capture(REAL / name)
    assert (len(capture.train_views), len(capture.test_views)) == (train, test)
    assert len(capture.points) > 2000 and not capture.warnings
    assert len(readable_views(capture.views, SilentReport())) == train + test


# ---- transforms.json


def test_intrinsics_of_a_frame_stand_over_those_of_the_file(tmp_path):
    own = {"file_path": "images/1.png", "fl_x": 20.0, "fl_y": 21.0, "cx": 3.25, "k1": 0.5}
    frames = [{"file_path": "images/0.png"}, own]
    shared, frame = read_capture(make_transforms(tmp_path, frames, cx=4.5, cy=2.5)).views
    assert shared.K.tolist() == [[10.0, 0.0, 4.5], [0.0, 10.0, 2.5], [0.0, 0.0, 1.0]]
    assert frame.K.tolist() == [[20.0, 0.0, 3.25], [0.0, 21.0, 2.5], [0.0, 0.0, 1.0]]
    assert (shared.distortion, frame.distortion) == ((0, 0, 0, 0), (0.5, 0, 0, 0))


def test_a_pose_becomes_world_to_camera_in_opencv_axes(tmp_path):
    view = read_capture(make_transforms(tmp_path)).views[0]
    # The camera stands at (.5, -3, 1), looks along +y, and z is up.
    np.testing.assert_allclose(view.center, [0.5, -3.0, 1.0])
    ahead, above, right = np.array([[0.5, 0, 1, 1], [0.5, -3, 2, 1], [1.5, -3, 1, 1]])
    np.testing.assert_allclose(view.viewmat @ ahead, [0, 0, 3, 1], atol=1e-12)
    np.testing.assert_allclose(view.viewmat @ above, [0, -1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(view.viewmat @ right, [1, 0, 0, 1], atol=1e-12)


def test_blender_synthetic_takes_sizes_from_photos_and_leaves_validation_alone(tmp_path):
    plain = {"photos": False, "fl_x": None, "w": None, "h": None, "camera_angle_x": np.pi / 2}
    for split in ("train", "test", "val"):
        make_photo(tmp_path / split / "r_0.png", size=(12, 10))
        frames = [{"file_path": f"./{split}/r_0"}]
        make_transforms(tmp_path, frames, name=f"transforms_{split}.json", **plain)
    capture = read_capture(tmp_path)
    assert [(view.name, view.split) for view in capture.views] == [
        ("train/r_0", "train"),
        ("test/r_0", "test"),
    ]
    view = capture.views[0]
    assert (view.width, view.height) == (12, 10)
    np.testing.assert_allclose(view.K, [[6, 0, 6], [0, 6, 5], [0, 0, 1]])


def test_validation_photos_are_the_test_where_there_is_none(tmp_path):
    frames = [{"file_path": "a.png"}, {"file_path": "b.png", "split": "val"}]
    capture = read_capture(make_transforms(tmp_path, frames))
    assert [view.split for view in capture.views] == ["train", "test"] and capture.has_split


def test_file_lists_give_the_split(tmp_path):
    frames = [{"file_path": f"images/{i}.png"} for i in range(4)]
    lists = {
        "train_filenames": ["images/0.png", "images/1.png"],
        "test_filenames": ["images/2.png"],
    }
    capture = read_capture(make_transforms(tmp_path, frames, **lists))
    assert [(view.name, view.split) for view in capture.views] == [
        ("0", "train"),
        ("1", "train"),
        ("2", "test"),
    ]
    assert capture.warnings == (
        "Left out 1 photos of transforms.json: no list of filenames names them.",
    )


def test_jpeg_sizes_are_found_behind_long_headers(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 5000
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif, progressive=True)
    frames = [{"file_path": "a.jpg"}]
    make_transforms(tmp_path, frames, photos=False, w=None, h=None)
    view = read_capture(tmp_path).views[0]
    assert (view.width, view.height) == (40, 30)


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_points_come_from_the_ply_that_is_named(tmp_path, kind):
    properties = "property float x\nproperty float y\nproperty float z\n"
    properties += "property uchar red\nproperty uchar green\nproperty uchar blue\n"
    head = f"ply\nformat {kind} 1.0\ncomment made by a test\nelement vertex 3\n{properties}"
    rows = [(1.0, 2.0, 3.0, 4, 5, 6), (-1.0, 0.5, 0.0, 7, 8, 255), (float("nan"), 0, 0, 0, 0, 0)]
    order = ">" if kind.endswith("big_endian") else "<"
    body = b"".join(struct.pack(f"{order}3f3B", *row) for row in rows)
    if kind == "ascii":
        body = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
    make_transforms(tmp_path, ply_file_path="cloud.ply")
    (tmp_path / "cloud.ply").write_bytes(f"{head}end_header\n".encode() + body)
    capture = read_capture(tmp_path)
    assert capture.points.tolist() == [[1, 2, 3], [-1, 0.5, 0]]
    assert capture.point_colors.tolist() == [[4, 5, 6], [7, 8, 255]]


def test_colmap_points_of_other_cameras_are_not_used(tmp_path):
    write_colmap_text(tmp_path / "sparse" / "0", names=["0.png", "1.png"])
    far = [[1.0, 0.0, 0.0, 50.0], *POSE[1:]]
    frames = [
        {"file_path": "images/0.png"},
        {"file_path": "images/1.png", "transform_matrix": far},
    ]
    capture = read_capture(make_transforms(tmp_path, frames))
    assert len(capture.points) == 0
    assert "disagree" in capture.warnings[0]


def test_a_colmap_model_of_other_names_is_told(tmp_path):
    write_colmap_text(tmp_path / "sparse" / "0", names=["a.png", "b.png"])
    capture = read_capture(make_transforms(tmp_path))
    assert len(capture.points) == 0
    assert "name no photo alike" in capture.warnings[0]


@pytest.mark.parametrize(
    ("shared", "words"), [({"fl_x": 1e9}, "focal lengths 1e"), ({"cx": 1e6}, "centre at 1e")]
)
def test_a_camera_that_no_lens_makes_is_refused(tmp_path, shared, words):
    with pytest.raises(JobError, match=words):
        read_capture(make_transforms(tmp_path, **shared))


TEXT_HEAD = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\n"


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "There is no "),
        ("ply\nformat ascii 1.0\nend_header\n", "plain vertices"),
        (f"{TEXT_HEAD}end_header\n1 2\n3 4\n", "no points (no z)"),
        (f"{TEXT_HEAD}property float z\nend_header\n1 2 3\n", "2 vertices were announced"),
        (f"{TEXT_HEAD}property float z\nend_header\n1 2 3\n4 5\n", "is damaged"),
    ],
)
def test_a_damaged_point_cloud_is_a_warning(tmp_path, content, words):
    make_transforms(tmp_path, ply_file_path="cloud.ply")
    if content is not None:
        (tmp_path / "cloud.ply").write_text(content)
    capture = read_capture(tmp_path)
    assert len(capture.points) == 0 and words in capture.warnings[0]
    assert "cloud.ply" in capture.warnings[0]
    assert not read_capture(tmp_path, with_points=False).warnings


def test_points_can_be_left_out(tmp_path):
    write_colmap_text(tmp_path / "sparse" / "0")
    for name in NAMES:
        make_photo(tmp_path / "images" / name)
    whole, bare = read_capture(tmp_path), read_capture(tmp_path, with_points=False)
    assert len(whole.points) and not len(bare.points) and not len(bare.point_colors)
    assert bare.points.dtype == whole.points.dtype and bare.points.shape[1] == 3
    assert [view.name for view in bare.views] == [view.name for view in whole.views]


# ---- COLMAP


@pytest.mark.parametrize("write", [write_colmap_text, write_colmap_binary])
@pytest.mark.parametrize("camera", CAMERAS)
def test_colmap_models_are_read(tmp_path, write, camera):
    write(tmp_path / "sparse" / "0", camera)
    for name in NAMES:
        make_photo(tmp_path / "images" / name)
    capture = read_capture(tmp_path)
    assert [view.name for view in capture.views] == ["left/á 1", "right/猫"]
    view = capture.views[1]
    assert view.K.tolist() == [[10.0, 0.0, 4.5], [0.0, CAMERAS[camera][1], 3.0], [0.0, 0.0, 1.0]]
    assert view.distortion == CAMERAS[camera][2]
    # w x y z = .5 .5 -.5 .5: x to -y, y to z, z to -x
    np.testing.assert_allclose(
        view.viewmat, [[0, -1, 0, 0.1], [0, 0, -1, 0.2], [1, 0, 0, 3.0], [0, 0, 0, 1]], atol=1e-12
    )
    assert capture.points.tolist() == [list(point[:3]) for point in POINTS]
    assert capture.point_colors.tolist() == [list(point[3:]) for point in POINTS]


@pytest.mark.parametrize("model, images", [("sparse", "images"), (".", "images"), (".", ".")])
def test_colmap_folders_of_every_shape_are_found(tmp_path, model, images):
    write_colmap_text(tmp_path / model)
    for name in NAMES:
        make_photo(tmp_path / images / name)
    capture = read_capture(tmp_path)
    assert [view.image_path for view in capture.views] == [
        tmp_path / images / name for name in NAMES
    ]
    assert capture.root == tmp_path


def test_decomposed_file_names_are_found(tmp_path):
    write_colmap_text(tmp_path)
    for name in NAMES:
        make_photo(tmp_path / unicodedata.normalize("NFD", name))
    assert len(read_capture(tmp_path).views) == 2


def test_other_parts_of_a_broken_reconstruction_are_mentioned(tmp_path):
    write_colmap_text(tmp_path / "sparse" / "0")
    write_colmap_text(tmp_path / "sparse" / "1")
    for name in NAMES:
        make_photo(tmp_path / "images" / name)
    assert "holds 2 models; only 0" in read_capture(tmp_path).warnings[0]


@pytest.mark.parametrize("stem", ["cameras", "images"])
def test_a_cut_colmap_file_is_named(tmp_path, stem):
    write_colmap_binary(tmp_path)
    for name in NAMES:
        make_photo(tmp_path / name)
    path = tmp_path / f"{stem}.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(JobError, match=rf"{stem}.bin is damaged or cut short"):
        read_capture(tmp_path)


def test_points_that_cannot_be_read_are_done_without(tmp_path):
    write_colmap_binary(tmp_path)
    for name in NAMES:
        make_photo(tmp_path / name)
    path = tmp_path / "points3D.bin"
    path.write_bytes(path.read_bytes()[:-5])
    capture = read_capture(tmp_path)
    assert len(capture.views) == 2 and len(capture.points) == 0
    assert "points3D.bin is damaged or cut short" in capture.warnings[0]


def test_a_camera_model_without_inverse_is_refused_by_name(tmp_path):
    write_colmap_text(tmp_path, camera="FULL_OPENCV")
    with pytest.raises(JobError, match=r"FULL_OPENCV.*image_undistorter"):
        read_capture(tmp_path)


# ---- bad input


def bad_frames(folder, change):
    frames = [{"file_path": f"images/{i}.png"} for i in range(3)]
    frames[1] |= change
    return make_transforms(folder, frames)


@pytest.mark.parametrize(
    "matrix",
    [
        np.full((4, 4), np.nan).tolist(),
        np.diag([1, 1, np.inf, 1]).tolist(),
        np.zeros((4, 4)).tolist(),
        np.diag([1, 1, -1, 1]).tolist(),
        [[1, 2], [3]],
        "pose",
    ],
)
def test_a_frame_without_a_pose_is_left_out(tmp_path, matrix):
    capture = read_capture(bad_frames(tmp_path, {"transform_matrix": matrix}))
    assert [view.name for view in capture.views] == ["0", "2"]
    assert capture.warnings == (
        f"Left out 1 of 3 photos of transforms.json: pose is no rotation "
        f"({tmp_path / 'images' / '1.png'}).",
    )


def test_missing_photos_are_counted(tmp_path):
    folder = bad_frames(tmp_path, {})
    (folder / "images" / "1.png").unlink()
    capture = read_capture(folder)
    assert [view.name for view in capture.views] == ["0", "2"]
    assert "Left out 1 of 3" in capture.warnings[0] and "no such file" in capture.warnings[0]


def test_a_photo_listed_twice_is_used_once(tmp_path):
    capture = read_capture(bad_frames(tmp_path, {"file_path": "images/0.png"}))
    assert [view.name for view in capture.views] == ["0", "2"]
    assert "listed before" in capture.warnings[0]


def test_one_camera_is_read(tmp_path):
    capture = read_capture(make_transforms(tmp_path, [{"file_path": "images/a.png"}]))
    assert [view.name for view in capture.views] == ["a"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"frames": [{"file_path": "../out.png"}]}, "out.png, outside of"),
        ({"frames": [{"file_path": "a.png"}, {"file_path": "a.jpg"}]}, "differ in their ending"),
        ({"photos": False}, "None of the 2 photos.*no such file"),
        ({"frames": []}, "lists no photos"),
        ({"fl_x": None}, "states no focal length. Add fl_x"),
        ({"fl_x": -3.0}, "focal lengths -3"),
        ({"fl_x": "wide"}, "fl_x = 'wide'"),
        ({"fl_x": None, "camera_angle_x": 42.0}, "camera_angle_x = 42. It must be in radians"),
        ({"camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE.*Undistort the photos"),
        ({"k3": 0.1}, "k3.*Undistort the photos"),
        ({"frames": [{"file_path": "a.png", "split": "eval"}]}, "split 'eval'"),
        ({"frames": [{"file_path": "a.png", "split": "test"}]}, "test views"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(tmp_path, change, words):
    make_transforms(tmp_path / "capture", **change)
    with pytest.raises(JobError, match=words) as error:
        read_capture(tmp_path / "capture")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"frames": [', "damaged"),
        ("[" * 100_000, "damaged"),
        ("[1, 2]", "no JSON object"),
        ("{}", "no list of frames"),
        ('{"frames": [], "train_filenames": 7}', "no list of names in train_filenames"),
    ],
)
def test_a_broken_json_file_is_named(tmp_path, text, words):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(JobError, match=rf"transforms.json.*{words}"):
        read_capture(tmp_path)


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = make_transforms(tmp_path) / "transforms.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_capture(tmp_path).views) == 2


def test_a_folder_that_is_no_capture_is_told_what_was_looked_for(tmp_path):
    with pytest.raises(JobError, match=r"is no capture.*transforms.json.*sparse/0"):
        read_capture(tmp_path)
    with pytest.raises(JobError, match="no folder"):
        read_capture(tmp_path / "absent")


@pytest.mark.skipif(os.name == "nt", reason="needs the right to make links")
def test_photos_may_be_links(tmp_path):
    folder = make_transforms(tmp_path / "capture")
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "1.png").unlink()
    (tmp_path / "elsewhere" / "1.png").symlink_to("1.png")
    capture = read_capture(folder)
    assert [view.name for view in capture.views] == ["0"] and "no such file" in capture.warnings[0]


# ---- cameras.json


def test_cameras_json_keeps_the_views(tmp_path):
    capture = read_capture(make_transforms(tmp_path / "capture", k1=0.1))
    job_dir = tmp_path / "job"
    job_dir.mkdir()
    undistorted = replace(capture.views[0], image_path=job_dir / "images" / "0.png")
    write_cameras(job_dir / "cameras.json", replace(capture, views=(undistorted, capture.views[1])))
    job_dir = job_dir.rename(tmp_path / "moved")
    again = read_cameras(job_dir / "cameras.json")
    assert [view.image_path for view in again.views] == [
        job_dir / "images" / "0.png",
        tmp_path / "capture" / "images" / "1.png",
    ]
    for ours, theirs in zip(capture.views, again.views):
        assert (ours.name, ours.split, ours.width, ours.height, ours.distortion) == (
            (theirs.name, theirs.split, theirs.width, theirs.height, theirs.distortion)
        )
        np.testing.assert_array_equal(ours.K, theirs.K)
        np.testing.assert_array_equal(ours.viewmat, theirs.viewmat)


def test_damaged_cameras_json_is_named(tmp_path):
    (tmp_path / "cameras.json").write_text('{"capture": "x", "views": [{}]}')
    with pytest.raises(JobError, match=r"cameras.json is damaged"):
        read_cameras(tmp_path / "cameras.json")


def test_readers_need_numpy_only():
    code = (
        "import sys, unified_lift.capture\n"
        "print({'PIL', 'scipy', 'torch', 'skimage'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


# ---- map coordinates

UTM = np.array([500_000.25, 4_500_000.5, 200.0])
PLACES = [(0.5, -3.0, 1.0), (2.5, -2.0, 1.5), (-3.0, 1.0, 0.75)]
TEXT_PLY = (
    "ply\nformat ascii 1.0\nelement vertex {count}\nproperty double x\nproperty double y\n"
    "property double z\nend_header\n{rows}\n"
)


def make_placed(folder, offset, places=PLACES):
    """A capture of photos from these places, with points beside them, all moved by an offset."""
    frames = []
    for number, place in enumerate(places):
        pose = [[*row[:3], x] for row, x in zip(POSE, np.add(place, offset).tolist())]
        frames.append({"file_path": f"images/{number}.png", "transform_matrix": pose})
    make_transforms(folder, frames, ply_file_path="cloud.ply")
    rows = "\n".join(" ".join(map(repr, np.add(place, offset).tolist())) for place in places)
    (folder / "cloud.ply").write_text(TEXT_PLY.format(count=len(places), rows=rows))
    return folder


def test_a_capture_in_map_coordinates_is_moved_near_the_origin(tmp_path):
    plain = read_capture(make_placed(tmp_path / "plain", np.zeros(3)))
    moved = read_capture(make_placed(tmp_path / "utm", UTM))
    assert plain.origin == (0, 0, 0) and not plain.warnings
    assert moved.origin == (500_000, 4_499_999, 201) and len(moved.warnings) == 1
    assert "(500000, 4499999, 201)" in moved.warnings[0]
    left = UTM - moved.origin
    for ours, theirs in zip(plain.views, moved.views):
        assert np.abs(theirs.center).max() < 5
        np.testing.assert_allclose(theirs.center, ours.center + left, atol=1e-6)
        np.testing.assert_array_equal(theirs.viewmat[:3, :3], ours.viewmat[:3, :3])
    assert moved.points.dtype == np.float32
    np.testing.assert_allclose(moved.points, plain.points + left, atol=1e-6)
    write_cameras(tmp_path / "cameras.json", moved)
    assert read_cameras(tmp_path / "cameras.json").origin == moved.origin


def test_captures_that_float32_can_hold_stay_where_they_are(tmp_path):
    capture = read_capture(make_placed(tmp_path, np.array([50.0, -80.0, 10.0])))
    assert capture.origin == (0, 0, 0) and not capture.warnings
    np.testing.assert_allclose(capture.points[0], [50.5, -83.0, 11.0])


def test_cameras_of_an_earlier_version_have_no_origin(tmp_path):
    path = tmp_path / "cameras.json"
    write_cameras(path, read_capture(make_transforms(tmp_path / "capture")))
    data = json.loads(path.read_text())
    del data["origin"]
    path.write_text(json.dumps(data))
    assert read_cameras(path).origin == (0, 0, 0)


# ---- photos


def make_view(path, width, height, focal=100.0, distortion=(0.0, 0.0, 0.0, 0.0)):
    K = np.array([[focal, 0, 0.52 * width], [0, 1.02 * focal, 0.47 * height], [0, 0, 1]])
    return View(path.stem, path, width, height, K, np.eye(4), distortion)


def save(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options)
    return path


def test_photos_of_every_kind_become_rgb(tmp_path):
    rgba = np.full((2, 2, 4), [200, 100, 50, 51], np.uint8)  # alpha .2
    grey16 = np.full((2, 2), 100 * 257, np.uint16)
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png")
    save(tmp_path / "rgba.png", rgba)
    save(tmp_path / "grey16.png", grey16)
    save(tmp_path / "grey.png", np.full((2, 2), 7, np.uint8))
    expected = {
        "rgba": [[[40, 20, 10]] * 2] * 2,  # composited on black
        "grey16": [[[100] * 3] * 2] * 2,
        "grey": [[[7] * 3] * 2] * 2,
        "palette": [[[10, 20, 30], [40, 50, 60]], [[40, 50, 60], [10, 20, 30]]],
    }
    for name, value in expected.items():
        photo = load_photo(make_view(tmp_path / f"{name}.png", 2, 2))
        assert photo.dtype == np.uint8 and photo.tolist() == value, name


def turned_photo(path, width, height):
    """A photo that its EXIF tag turns by a quarter; its top left corner, as stored, is white."""
    photo = np.zeros((height, width, 3), np.uint8)
    photo[: height // 2, : width // 2] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return save(path, photo, exif=exif)


def test_exif_orientation_counts_only_where_the_stored_size_does_not_fit(tmp_path):
    path = turned_photo(tmp_path / "a.png", 8, 4)
    stored = load_photo(make_view(path, 8, 4))
    assert stored[0, 0, 0] == 255
    upright = load_photo(make_view(path, 4, 8))
    assert upright.shape == (8, 4, 3) and upright[0, 3, 0] == 255 and upright[0, 0, 0] == 0


def test_a_smaller_photo_scales_the_camera(tmp_path):
    path = make_photo(tmp_path / "a.png", size=(50, 38))
    view = make_view(path, 100, 75)
    (fitted,) = readable_views([view], SilentReport())
    assert (fitted.width, fitted.height) == (50, 38)
    np.testing.assert_allclose(fitted.K[0], view.K[0] / 2)
    np.testing.assert_allclose(fitted.K[1], view.K[1] * 38 / 75)
    with pytest.raises(JobError, match=r"50 x 38 pixels, but its camera 100 x 90"):
        readable_views([replace(view, height=90)], SilentReport())


def test_unreadable_photos_are_left_out(tmp_path):
    good = make_photo(tmp_path / "good.jpg", size=(64, 48))
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    cut = save(tmp_path / "cut.jpg", noise)
    cut.write_bytes(cut.read_bytes()[:1500])
    text = tmp_path / "text.png"
    text.write_text("not a photo")
    views = [make_view(path, 64, 48) for path in (cut, good, text)]
    report = Collector()
    assert [view.name for view in readable_views(views, report)] == ["good"]
    assert len(report.warnings) == 1 and "Left out 2 photos" in report.warnings[0]
    with pytest.raises(JobError, match=r"No training photo can be read.*cut.jpg"):
        readable_views([views[0], views[2]], report)
    with pytest.raises(JobError, match=r"text.png cannot be read"):
        load_photo(views[2])


def test_photos_of_floating_point_numbers_are_left_out(tmp_path):
    good = make_photo(tmp_path / "good.png")
    floats = save(tmp_path / "floats.tif", np.full((6, 8), 0.5, np.float32))
    views = [make_view(path, 8, 6) for path in (floats, good)]
    report = Collector()
    assert [view.name for view in readable_views(views, report)] == ["good"]
    assert "Left out 1 photos" in report.warnings[0] and "floating point" in report.warnings[0]
    with pytest.raises(JobError, match=r"No training photo.*floats.tif: its values are floating"):
        readable_views(views[:1], report)


def test_a_scaled_view_sees_the_same_directions():
    view = scaled_view(make_view(Path("a.png"), 400, 300), 100)
    assert (view.width, view.height) == (100, 75)
    ray = np.linalg.inv(make_view(Path("a.png"), 400, 300).K) @ [400.0, 300.0, 1.0]
    np.testing.assert_allclose(view.K @ ray, [100.0, 75.0, 1.0])
    assert scaled_view(view, 1000).width == 100


def test_labels_are_scaled_by_nearest_neighbour():
    labels = np.arange(6, dtype=np.int32).reshape(2, 3) + 70000
    assert resize_labels(labels, 6, 4).tolist() == np.kron(labels, np.ones((2, 2), int)).tolist()
    assert resize_labels(resize_labels(labels, 15, 10), 3, 2).tolist() == labels.tolist()


# ---- undistortion

LENSES = [(-0.28, 0.09, 0.003, -0.002), (0.12, -0.05, -0.002, 0.004)]


@pytest.mark.parametrize("lens", LENSES)
def test_points_are_found_where_the_pinhole_view_projects_them(tmp_path, lens):
    view = make_view(tmp_path / "a.png", 320, 240, focal=220.0, distortion=lens)
    pinhole, remap = undistort_view(view)
    grid = np.stack(np.meshgrid(np.linspace(30, 290, 6), np.linspace(30, 210, 5)), -1)
    expected = grid.reshape(-1, 2)  # pixels of the pinhole view
    rays = (expected - pinhole.K[:2, 2]) / pinhole.K[[0, 1], [0, 1]]
    seen = [project_through_lens(view.K, lens, x, y) for x, y in rays]
    photo, labels = draw_spots(320, 240, seen)
    flat, flat_labels = undistort(photo, remap), undistort(labels, remap, nearest=True)
    assert flat.shape == photo.shape and flat_labels.dtype == labels.dtype
    for number, (x, y) in enumerate(expected, start=1):
        assert flat_labels[int(y), int(x)] == number
        found = spot_center(flat[..., 0], x, y)
        np.testing.assert_allclose(found, (x, y), atol=0.1)


def project_through_lens(K, lens, x, y):
    """OpenCV's model, written out once more from its documentation."""
    k1, k2, p1, p2 = lens
    r2 = x**2 + y**2
    xd = x * (1 + k1 * r2 + k2 * r2**2) + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    yd = y * (1 + k1 * r2 + k2 * r2**2) + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    return K[0, 0] * xd + K[0, 2], K[1, 1] * yd + K[1, 2]


def draw_spots(width, height, centers):
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    photo, labels = np.zeros((height, width)), np.zeros((height, width), np.int32)
    for number, (cx, cy) in enumerate(centers, start=1):
        squared = (x - cx) ** 2 + (y - cy) ** 2
        photo += 250 * np.exp(-squared / 8)
        labels[squared < 9] = number
    return np.repeat(photo.astype(np.uint8)[..., None], 3, axis=-1), labels


def spot_center(photo, x, y):
    top, left = int(y) - 10, int(x) - 10
    window = photo[top : top + 21, left : left + 21].astype(float)
    rows, columns = np.mgrid[top : top + 21, left : left + 21] + 0.5
    return (window * columns).sum() / window.sum(), (window * rows).sum() / window.sum()


@pytest.mark.parametrize("lens", LENSES)
def test_the_pinhole_view_shows_valid_pixels_only(tmp_path, lens):
    view = make_view(tmp_path / "a.png", 320, 240, focal=220.0, distortion=lens)
    pinhole, _ = undistort_view(view)
    x, y = np.meshgrid(np.linspace(0, 320, 81), np.linspace(0, 240, 61))
    rays = (np.stack([x, y], -1) - pinhole.K[:2, 2]) / pinhole.K[[0, 1], [0, 1]]
    seen = distort(rays, lens) * view.K[[0, 1], [0, 1]] + view.K[:2, 2]
    assert seen.min() > -0.05 and (seen.max(axis=(0, 1)) < [320.05, 240.05]).all()
    # and no wider view would: one side touches the border
    margins = [seen[..., 0].min(), seen[..., 1].min(), *(np.array([320, 240]) - seen.max((0, 1)))]
    assert min(margins) < 1.0


def test_undistortion_and_scaling_commute(tmp_path):
    view = make_view(tmp_path / "a.png", 320, 240, focal=220.0, distortion=LENSES[0])
    first = scaled_view(undistort_view(view)[0], 160)
    second = undistort_view(scaled_view(view, 160))[0]
    np.testing.assert_allclose(first.K, second.K, atol=1e-9)


def test_a_lens_that_folds_over_is_refused(tmp_path):
    view = make_view(tmp_path / "a.png", 320, 240, focal=100.0, distortion=(-0.5, 0, 0, 0))
    with pytest.raises(JobError, match=r"distortion.*has no inverse"):
        undistort_view(view)


def test_a_view_without_distortion_is_left_alone(tmp_path):
    view = make_view(tmp_path / "a.png", 8, 6)
    pinhole, remap = undistort_view(view)
    photo = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert pinhole is view and undistort(photo, remap) is photo
