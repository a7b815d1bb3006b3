# SPDX-License-Identifier: GPL-3.0-or-later
"""Coloured points of PLY files, text or binary (numpy only)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unified_lift.ply import TEXT_OR_BINARY, read_vertices
from unified_lift.protocol import JobError

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
        JobError: it cannot be read, or is no such PLY.
    """
    table = read_vertices(path, TEXT_OR_BINARY)
    names = table.dtype.names
    missing = [name for name in ("x", "y", "z") if name not in names]
    if missing:
        raise JobError(f"{path} holds no points (no {', '.join(missing)}).")
    xyz = np.stack([table[name] for name in ("x", "y", "z")], -1)
    if not {"red", "green", "blue"} <= set(names):
        return clean_points(xyz, np.full(xyz.shape, _GREY))
    return clean_points(xyz, np.stack([table[name] for name in ("red", "green", "blue")], -1))
