# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussian splats as PLY files of the 3DGS layout, with an object id for each Gaussian."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unified_lift.protocol import JobError, describe_os_error, write_whole

SH_COUNTS = (0, 3, 8, 15)  # coefficients above the constant one, for SH degree 0, 1, 2, 3
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip
_BINARY = {"binary_little_endian": "<", "binary_big_endian": ">"}
TEXT_OR_BINARY = {"ascii": "=", **_BINARY}


@dataclass(frozen=True)
class Splats:
    """N Gaussians, raw as in the 3DGS PLY layout, in the capture's world frame.

    Attributes:
        means: (N, 3) float32.
        quats: (N, 4) float32, w x y z, not normalised.
        scales: (N, 3) float32, logarithms.
        opacities: (N,) float32, logits.
        sh0: (N, 1, 3) float32, constant SH coefficient of each colour channel.
        shN: (N, K, 3) float32, the others, K one of `SH_COUNTS`.
        object_ids: (N,) int32, 0 = unassigned.
        confidence: (N,) float32 in 0..1.
    """

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    sh0: np.ndarray
    shN: np.ndarray
    object_ids: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.means)

    def select(self, rows: np.ndarray) -> Splats:
        """The Gaussians of a boolean mask or of indices, in that order."""
        return replace(self, **{name: value[rows] for name, value in vars(self).items()})


def _columns(num_sh: int) -> list[tuple[str, str]]:
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * num_sh)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return [(name, "<f4") for name in names] + [("object_id", "<i4"), ("confidence", "<f4")]


def write_ply(path: Path, splats: Splats) -> None:
    """Write splats as a binary PLY that any 3DGS viewer opens.

    The two last properties, `int object_id` and `float confidence`, are ours. The file appears
    under its name only when it is complete.
    """
    num_sh = splats.shN.shape[1]
    table = np.zeros(len(splats), dtype=_columns(num_sh))
    _put(table, ("x", "y", "z"), splats.means)
    _put(table, ("f_dc_0", "f_dc_1", "f_dc_2"), splats.sh0[:, 0])
    # the layout is channel-major: all coefficients of red, then of green, then of blue
    rest = splats.shN.transpose(0, 2, 1).reshape(len(splats), 3 * num_sh)
    _put(table, [f"f_rest_{i}" for i in range(3 * num_sh)], rest)
    _put(table, [f"scale_{i}" for i in range(3)], splats.scales)
    _put(table, [f"rot_{i}" for i in range(4)], splats.quats)
    table["opacity"] = splats.opacities
    table["object_id"] = splats.object_ids
    table["confidence"] = splats.confidence
    kinds = {"<f4": "float", "<i4": "int"}
    properties = "".join(f"property {kinds[kind]} {name}\n" for name, kind in _columns(num_sh))
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(splats)}\n{properties}"
    write_whole(Path(path), f"{head}end_header\n".encode("ascii"), table.tobytes())


def _put(table: np.ndarray, names: tuple[str, ...] | list[str], values: np.ndarray) -> None:
    for i, name in enumerate(names):
        table[name] = values[:, i]


def read_ply(path: Path) -> Splats:
    """Read a 3DGS PLY; without `object_id` and `confidence` these are 0.

    Raises:
        JobError: it cannot be read, is no binary PLY of splats, is empty or cut short, or has
            non-finite values.
    """
    table = read_vertices(Path(path), _BINARY)
    names = table.dtype.names or ()
    needed = [name for name, _ in _columns(0) if name[0] != "n"][:-2]
    missing = [name for name in needed if name not in names]
    if missing:
        raise JobError(f"{path} holds no Gaussian splats (no {', '.join(missing)}).")
    if not len(table):
        raise JobError(f"{path} holds no splats.")
    num_rest = sum(name.startswith("f_rest_") for name in names)
    whole = all(f"f_rest_{i}" in names for i in range(num_rest))
    if num_rest % 3 or num_rest // 3 not in SH_COUNTS or not whole:
        raise JobError(f"{path} has {num_rest} f_rest values, no whole SH degree from 0 to 3.")

    def get(columns: list[str]) -> np.ndarray:
        return np.stack([table[name].astype(np.float32) for name in columns], -1)

    def optional(name: str, dtype: type) -> np.ndarray:
        return table[name].astype(dtype) if name in names else np.zeros(len(table), dtype)

    splats = Splats(
        means=get(["x", "y", "z"]),
        quats=get([f"rot_{i}" for i in range(4)]),
        scales=get([f"scale_{i}" for i in range(3)]),
        opacities=table["opacity"].astype(np.float32),
        sh0=get([f"f_dc_{i}" for i in range(3)])[:, None],
        shN=_read_rest(table, num_rest // 3),
        object_ids=optional("object_id", np.int32),
        confidence=optional("confidence", np.float32),
    )
    _check_finite(splats, Path(path))
    return splats


def _read_rest(table: np.ndarray, num_sh: int) -> np.ndarray:
    rest = np.zeros((len(table), num_sh, 3), np.float32)
    for i in range(3 * num_sh):
        rest[:, i % num_sh, i // num_sh] = table[f"f_rest_{i}"]
    return rest


def _check_finite(splats: Splats, path: Path) -> None:
    bad = np.zeros(len(splats), bool)
    for value in vars(splats).values():
        bad |= ~np.isfinite(value.reshape(len(splats), -1)).all(1) if value.size else False
    if bad.any():
        raise JobError(
            f"{path} has NaN or infinite values in {bad.sum()} of {len(splats)} splats. "
            "Remove them in a splat editor, or train the scene again."
        )


def read_vertices(path: Path, orders: Mapping[str, str]) -> np.ndarray:
    """The vertices of a PLY, which have to be its first element, as a structured array.

    Args:
        path: of the file.
        orders: the formats that may be, and NumPy's sign for the byte order of each.

    Raises:
        JobError: the file cannot be read, is no such PLY, or is cut short.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JobError(describe_os_error(error, path)) from error
    end = re.search(rb"end_header\r?\n", data)
    if not data.startswith(b"ply") or not end:
        raise JobError(f"{path} is not a PLY file.")
    words = [line.split() for line in data[: end.start()].decode("ascii", "replace").splitlines()]
    form = next((line[1] for line in words if line[:1] == ["format"] and len(line) > 1), "")
    if form not in orders:
        raise JobError(f"{path} is a PLY of format '{form}'. Save it as binary PLY.")
    count, dtype = _first_element(words, orders[form], path)
    start = end.end()
    if form == "ascii":
        table = _read_text(data[start:], dtype, count, path)
    else:
        whole = (len(data) - start) // dtype.itemsize
        table = np.frombuffer(data, dtype, min(count, whole), start)
    if len(table) < count:
        raise JobError(f"{path} is cut short: {count} vertices were announced. Copy it again.")
    return table


def _first_element(words: list[list[str]], order: str, path: Path) -> tuple[int, np.dtype]:
    """How many vertices a header announces, and what each has."""
    elements = [i for i, line in enumerate(words) if line[:1] == ["element"]] + [len(words)]
    first = words[elements[0]] if len(elements) > 1 else []
    properties = words[elements[0] + 1 : elements[1]] if len(elements) > 1 else []
    fields = [line for line in properties if line[:1] == ["property"]]
    if first[1:2] == ["chunk"]:  # of SuperSplat and PlayCanvas
        raise JobError(f"{path} is a compressed PLY. Export it uncompressed.")
    plain = bool(fields) and all(len(field) == 3 and field[1] in _TYPES for field in fields)
    plain &= len({field[-1] for field in fields}) == len(fields)
    counted = len(first) == 3 and first[2].isdigit()
    if first[1:2] != ["vertex"] or not counted or not plain:
        raise JobError(
            f"{path} does not begin with plain vertices: it is no PLY of splats or points. Choose "
            "another file."
        )
    return int(first[2]), np.dtype([(name, order + _TYPES[kind]) for _, kind, name in fields])


def _read_text(body: bytes, dtype: np.dtype, count: int, path: Path) -> np.ndarray:
    try:
        return np.loadtxt(body.decode("ascii").splitlines(), dtype, max_rows=count, ndmin=1)
    except ValueError as error:
        raise JobError(f"{path} is damaged ({error}). Copy it again.") from error
