# SPDX-License-Identifier: GPL-3.0-or-later
"""Coloured points of PLY files, text or binary (numpy only)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unified_lift.protocol import JobError

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
    "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_GREY = 128


def no_points() -> tuple[np.ndarray, np.ndarray]:
    """Of the shapes and types that all readers of points return: (0, 3) float64 and uint8."""
    return np.zeros((0, 3)), np.zeros((0, 3), np.uint8)


def clean_points(xyz: np.ndarray, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points as (P, 3) float64 and (P, 3) uint8, without those that are not finite."""
    finite = np.isfinite(xyz.astype(np.float32)).all(axis=1)
    return xyz[finite].astype(np.float64), rgb.clip(0, 255).astype(np.uint8)[finite]


def read_points_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a PLY whose first element is `vertex` with x, y, z and perhaps red, green, blue.

    Returns:
        (P, 3) float64 positions and (P, 3) uint8 colours (grey where the file has none).

    Raises:
        JobError: no such file, or not such a PLY.
    """
    try:
        with open(path, "rb") as file:
            table = _read_vertices(file.read())
        columns = [table[name] for name in ("x", "y", "z")]
    except FileNotFoundError as error:
        raise JobError(f"No file {path}.") from error
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise JobError(f"{path} cannot be read as a PLY of points ({error}).") from error
    xyz = np.stack(columns, -1)
    if not {"red", "green", "blue"} <= set(table.dtype.names):
        return clean_points(xyz, np.full(xyz.shape, _GREY))
    return clean_points(xyz, np.stack([table[name] for name in ("red", "green", "blue")], -1))


def _read_vertices(data: bytes) -> np.ndarray:
    """The vertices, first element of a PLY, as a structured array. Raises ValueError, KeyError."""
    head, _, body = data.partition(b"end_header")
    body = body[body.index(b"\n") + 1 :]
    kind, count, fields = "", 0, []
    for words in (line.split() for line in head.decode("ascii").splitlines()):
        if words[:1] == ["format"]:
            kind = words[1]
        elif words[:1] == ["element"] and fields:
            break
        elif words[:2] == ["element", "vertex"]:
            count = int(words[2])
        elif words[:1] == ["property"]:
            fields.append((words[2], _ORDERS[kind] + _TYPES[words[1]]))
    if not fields:
        raise ValueError("it has no vertices")
    dtype = np.dtype(fields)
    if kind != "ascii":
        return np.frombuffer(body, dtype, count)
    return np.loadtxt(body.decode("ascii").splitlines(), dtype, max_rows=count, ndmin=1)
