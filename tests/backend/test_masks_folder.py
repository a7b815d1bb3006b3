# SPDX-License-Identifier: GPL-3.0-or-later
"""Label images of every kind that users have become label maps."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified_lift.capture import View, read_capture
from unified_lift.capture.images import load_photo, undistort, undistort_view
from unified_lift.masks.folder import folder_label_maps
from unified_lift.protocol import JobError, SilentReport

MESSY8 = Path(__file__).parents[1] / "data" / "messy8"
LABELS = np.array([[0, 1, 1, 2], [0, 1, 3, 3]])


class Collector(SilentReport):
    """A report that keeps the warnings."""

    def __init__(self):
        self.warnings = []

    def warning(self, text):
        self.warnings.append(text)


def make_view(name="0001", ending=".jpg", width=4, height=2):
    K = np.array([[5.0, 0, width / 2], [0, 5.0, height / 2], [0, 0, 1]])
    return View(name, Path("/photos") / (name + ending), width, height, K, np.eye(4))


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array, mode)
    image.save(path)


def read_one(folder, view=None):
    (labels,) = folder_label_maps(folder, [view or make_view()], SilentReport())
    assert labels.dtype == np.int32
    return labels


@pytest.mark.parametrize(
    "name, dtype",
    [("0001.png", np.uint8), ("0001.png", np.uint16), ("0001.tif", np.uint16), ("0001.tif", "i4")],
)
def test_integers_are_ids(tmp_path, name, dtype):
    save(tmp_path / name, LABELS.astype(dtype))
    assert read_one(tmp_path).tolist() == LABELS.tolist()


def test_large_ids_of_16_bits_stay(tmp_path):
    save(tmp_path / "0001.png", (LABELS * 20000).astype(np.uint16))
    assert read_one(tmp_path).tolist() == (LABELS * 20000).tolist()


def test_ids_above_16_bits_are_numbered_and_minus_one_is_unlabelled(tmp_path):
    values = np.array([[-1, 70000, 70000, 9], [0, 70000, -2, -2]], np.int32)
    save(tmp_path / "0001.tif", values)
    assert read_one(tmp_path).tolist() == [[0, 2, 2, 1], [0, 2, 3, 3]]


def test_palette_images_give_indices_not_colors(tmp_path):
    image = Image.fromarray(LABELS.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 90, 90, 90, 90, 90, 90, 1, 2, 3])  # 1 and 2 look the same
    save(tmp_path / "0001.png", image)
    assert read_one(tmp_path).tolist() == LABELS.tolist()


def test_black_and_white_masks_are_one_object(tmp_path):
    save(tmp_path / "0001.png", Image.fromarray(LABELS > 0))
    assert read_one(tmp_path).tolist() == (LABELS > 0).astype(int).tolist()


def test_each_color_is_an_object_and_black_none(tmp_path):
    colors = np.array([[0, 0, 0], [255, 0, 0], [255, 0, 1], [0, 9, 0]], np.uint8)
    save(tmp_path / "0001.png", colors[LABELS])
    labels = read_one(tmp_path)
    assert ((labels == 0) == (LABELS == 0)).all()
    assert all(len(np.unique(labels[i == LABELS])) == 1 for i in (1, 2, 3))
    assert len(np.unique(labels)) == 4


def test_transparent_pixels_are_unlabelled(tmp_path):
    pixels = np.full((2, 4, 4), 200, np.uint8)
    pixels[:, :2, 3] = 0
    save(tmp_path / "0001.png", pixels)
    assert read_one(tmp_path).tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB"])
def test_ids_and_colors_may_be_transparent_too(tmp_path, mode):
    image = Image.fromarray(LABELS.astype(np.uint8), "P" if mode == "P" else "L")
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90])
    image = image.convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray((LABELS != 3).astype(np.uint8) * 255))
        image.save(tmp_path / "0001.png")
    else:
        image.save(tmp_path / "0001.png", transparency=(3, 3, 3) if mode == "RGB" else 3)
    assert read_one(tmp_path).tolist() == np.where(LABELS == 3, 0, LABELS).tolist()


def test_colors_of_other_modes_are_refused(tmp_path):
    for number, mode in enumerate(("CMYK", "LAB", "YCbCr")):
        Image.new(mode, (4, 2)).save(tmp_path / f"{number}.tif")
        with pytest.raises(JobError, match=rf"{number}.tif is of mode {mode}. Save it as grey"):
            read_one(tmp_path, make_view(str(number)))


def test_colors_of_16_bits_are_refused(tmp_path):
    write_deep_png(tmp_path / "0001.png", np.kron(LABELS[..., None], [1, 0, 0]))
    with pytest.raises(JobError, match=r"0001.png has 16 bits a colour"):
        read_one(tmp_path)


def write_deep_png(path, colors):
    """A PNG of 16 bits a colour, which Pillow cannot write. (H, W, 3) ints."""
    height, width, _ = colors.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        check = zlib.crc32(name + body)
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["cam/ä.png", "cam/ä.jpg.png", "cam/ä.TIF"])
def test_nested_names_are_matched(tmp_path, name):
    save(tmp_path / name, LABELS.astype(np.uint8))
    assert read_one(tmp_path, make_view("cam/ä")).tolist() == LABELS.tolist()


def test_other_sizes_are_scaled_without_mixing_ids(tmp_path):
    save(tmp_path / "0001.png", np.kron(LABELS, np.ones((3, 3), int)).astype(np.uint8))
    assert read_one(tmp_path).tolist() == LABELS.tolist()
    assert read_one(tmp_path, make_view(width=8, height=4)).shape == (4, 8)


def test_another_aspect_is_a_warning(tmp_path):
    save(tmp_path / "0001.png", np.ones((20, 20), np.uint8))
    report = Collector()
    (labels,) = folder_label_maps(tmp_path, [make_view(width=40, height=20)], report)
    assert labels.shape == (20, 40) and "another aspect" in report.warnings[0]


def test_labels_follow_the_undistorted_photo(tmp_path):
    labels = np.kron(np.arange(1, 49).reshape(6, 8), np.ones((20, 20), int)).astype(np.uint8)
    photo = np.repeat((labels * 5)[..., None], 3, axis=-1)
    save(tmp_path / "photos" / "0001.png", photo)
    save(tmp_path / "masks" / "0001.png", labels)
    view = make_view(width=160, height=120)
    K = np.array([[110.0, 0, 83], [0, 110.0, 58], [0, 0, 1]])
    path = tmp_path / "photos" / "0001.png"
    view = replace(view, image_path=path, K=K, distortion=(-0.2, 0.03, 0.001, -0.002))
    found = read_one(tmp_path / "masks", view)
    flat = undistort(load_photo(view), undistort_view(view)[1])[..., 0]
    inside = flat % 5 == 0  # away from borders, where bilinear mixes
    assert inside.mean() > 0.7
    assert (found[inside] * 5 == flat[inside]).mean() > 0.99
    assert (found != labels).mean() > 0.05


def test_views_without_a_file_train_geometry_only(tmp_path):
    save(tmp_path / "b.png", LABELS.astype(np.uint8))
    report = Collector()
    maps = folder_label_maps(tmp_path, [make_view("a"), make_view("b"), make_view("c")], report)
    assert [labels is None for labels in maps] == [True, False, True]
    assert len(report.warnings) == 1
    assert "2 of 3 training photos have no label image" in report.warnings[0]


def test_no_file_for_any_view_is_an_error(tmp_path):
    save(tmp_path / "x.png", LABELS.astype(np.uint8))
    with pytest.raises(JobError, match=r"no label image for any of the 1 .*0001.png"):
        read_one(tmp_path)
    with pytest.raises(JobError, match="no masks folder"):
        read_one(tmp_path / "absent")


def test_maps_of_zeros_only_are_an_error(tmp_path):
    save(tmp_path / "0001.png", np.zeros((2, 4), np.uint8))
    with pytest.raises(JobError, match="0 everywhere"):
        read_one(tmp_path)


def test_what_is_no_label_image_is_named(tmp_path):
    (tmp_path / "0001.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(JobError, match=r"0001.png cannot be read"):
        read_one(tmp_path)
    save(tmp_path / "0002.tif", LABELS.astype(np.float32))
    with pytest.raises(JobError, match=r"0002.tif holds fractions"):
        read_one(tmp_path, make_view("0002"))
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    save(tmp_path / "0003.png", noise)
    with pytest.raises(JobError, match=r"0003.png has \d+ colours: it looks like a photo"):
        read_one(tmp_path, make_view("0003"))


def test_the_sample_masks_are_read_for_every_training_view():
    views = read_capture(MESSY8).train_views
    report = Collector()
    maps = folder_label_maps(MESSY8 / "masks" / "paper", views, report)
    assert len(maps) == 48 and not report.warnings
    with Image.open(MESSY8 / "masks" / "paper" / "0000.png") as image:
        np.testing.assert_array_equal(maps[0], np.asarray(image))
