# SPDX-License-Identifier: GPL-3.0-or-later
"""Splat files: what is written comes back, what is damaged is explained."""

from dataclasses import replace

import numpy as np
import pytest

from unified_lift.ply import SH_COUNTS, Splats, read_ply, write_ply
from unified_lift.protocol import JobError


def make_splats(num=5, num_sh=8):
    rng = np.random.default_rng(0)

    def random(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return Splats(
        means=random(num, 3),
        quats=random(num, 4),
        scales=random(num, 3),
        opacities=random(num),
        sh0=random(num, 1, 3),
        shN=random(num, num_sh, 3),
        object_ids=np.arange(num, dtype=np.int32),
        confidence=rng.random(num, dtype=np.float32),
    )


@pytest.mark.parametrize("num_sh", SH_COUNTS)
def test_splats_come_back_bit_for_bit(tmp_path, num_sh):
    splats = make_splats(num_sh=num_sh)
    write_ply(tmp_path / "scene.ply", splats)
    again = read_ply(tmp_path / "scene.ply")
    for name, value in vars(splats).items():
        assert np.array_equal(value, getattr(again, name)), name


def test_harmonics_are_stored_channel_by_channel(tmp_path):
    splats = make_splats(num=1, num_sh=3)
    write_ply(tmp_path / "scene.ply", splats)
    data = (tmp_path / "scene.ply").read_bytes()
    values = np.frombuffer(data[data.index(b"end_header\n") + 11 :], "<f4")
    assert np.array_equal(values[9:12], splats.shN[0, :, 0])  # all of red first


def test_a_file_without_object_ids_is_unassigned(tmp_path):
    path = tmp_path / "scene.ply"
    write_ply(path, make_splats(num=2, num_sh=0))
    head, body = path.read_bytes().split(b"end_header\n", 1)
    table = np.frombuffer(body, "<f4").reshape(2, -1)[:, :-2]
    head = head.replace(b"property int object_id\nproperty float confidence\n", b"")
    path.write_bytes(head + b"end_header\n" + table.tobytes())
    assert read_ply(path).object_ids.tolist() == [0, 0]


def test_a_file_without_splats_is_refused(tmp_path):
    write_ply(tmp_path / "scene.ply", make_splats(num=0))
    with pytest.raises(JobError, match="holds no splats"):
        read_ply(tmp_path / "scene.ply")


def test_nan_is_refused(tmp_path):
    splats = make_splats()
    means = splats.means.copy()
    means[2, 1] = np.nan
    write_ply(tmp_path / "scene.ply", replace(splats, means=means))
    with pytest.raises(JobError, match="1 of 5 splats"):
        read_ply(tmp_path / "scene.ply")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not a PLY"),
        (b"hello", "not a PLY"),
        (b"ply\nformat ascii 1.0\nend_header\n", "format 'ascii'"),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 0\n"
            b"property float x\nend_header\n",
            "no Gaussian splats",
        ),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 3x\n"
            b"property float x\nend_header\n",
            "plain vertices",
        ),
        (
            b"ply\r\nformat binary_little_endian 1.0\r\nelement vertex x 3\r\n"
            b"property float x\r\nend_header\r\n",
            "plain vertices",
        ),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 3\n"
            b"property float x\nproperty float x\nend_header\n",
            "plain vertices",
        ),
    ],
)
def test_another_file_is_explained(tmp_path, content, words):
    (tmp_path / "scene.ply").write_bytes(content)
    with pytest.raises(JobError, match=words):
        read_ply(tmp_path / "scene.ply")


def test_a_compressed_file_is_named(tmp_path):
    write_ply(tmp_path / "scene.ply", make_splats())
    whole = (tmp_path / "scene.ply").read_bytes()
    chunks = b"element chunk 1\nproperty float min_x\nproperty float max_x\nelement vertex"
    (tmp_path / "scene.ply").write_bytes(whole.replace(b"element vertex", chunks))
    with pytest.raises(JobError, match="is a compressed PLY"):
        read_ply(tmp_path / "scene.ply")


def test_harmonics_with_a_gap_are_explained(tmp_path):
    path = tmp_path / "scene.ply"
    write_ply(path, make_splats(num_sh=3))
    path.write_bytes(path.read_bytes().replace(b"f_rest_4\n", b"f_rest_9\n"))
    with pytest.raises(JobError, match="f_rest"):
        read_ply(path)


def test_a_truncated_file_is_explained(tmp_path):
    path = tmp_path / "scene.ply"
    write_ply(path, make_splats())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(JobError, match="cut short"):
        read_ply(path)


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(JobError, match=r"There is no .*scene\.ply\. It was moved"):
        read_ply(tmp_path / "scene.ply")
