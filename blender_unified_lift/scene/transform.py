# SPDX-License-Identifier: GPL-3.0-or-later
"""Splats under an affine map: shifted, turned, scaled, mirrored or sheared. Numpy alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unified_lift.ply import SH_COUNTS, Splats

_NOISE = 2e-6  # of matrices that Blender has multiplied in float32, as a share of their size
_NUM_DIRECTIONS = 400  # far more than the 16 harmonics of degree 3 need
_TINY = float(np.finfo(np.float32).tiny)  # keeps logarithms finite


def transformed(splats: Splats, matrix: np.ndarray) -> Splats:
    """The splats where an affine map takes them, with the colours that they show there.

    Gaussians stay Gaussians under every affine map. Colours are exact under turns, mirrors and
    uniform scales; under others the harmonics can only come near to what is seen.

    Args:
        splats: in their own frame, with a whole SH degree.
        matrix: (4, 4) float64, from that frame to another.

    Returns:
        Splats in the other frame. Where they are only shifted, all but the means keep their bits.
    """
    linear, shift = matrix[:3, :3], matrix[:3, 3]
    if only_shifts(linear):
        return replace(splats, means=(splats.means + shift).astype(np.float32))
    quats, scales = _mapped_ellipsoids(splats.quats, splats.scales, linear)
    harmonics = np.concatenate([splats.sh0, splats.shN], 1)  # (N, K + 1, 3)
    turn = _sh_map(linear, harmonics.shape[1]).astype(np.float32)
    harmonics = np.tensordot(harmonics, turn, ([1], [1])).transpose(0, 2, 1)
    return replace(
        splats,
        means=(splats.means @ linear.T + shift).astype(np.float32),
        quats=quats.astype(np.float32),
        scales=scales.astype(np.float32),
        sh0=np.ascontiguousarray(harmonics[:, :1]),
        shN=np.ascontiguousarray(harmonics[:, 1:]),
    )


def only_shifts(linear: np.ndarray) -> bool:
    """Whether a (3, 3) map turns and scales nothing."""
    return np.allclose(linear, np.eye(3), rtol=0, atol=_NOISE)


def with_whole_degree(splats: Splats, least: int = 0) -> Splats:
    """Splats with all harmonics of a degree: a user may have removed some, or made one more.

    Args:
        splats: with any number of coefficients above the constant one.
        least: of these, how many the degree has room for at least.
    """
    most = min(max(splats.shN.shape[1], least), SH_COUNTS[-1])
    num_sh = next(whole for whole in SH_COUNTS if whole >= most)
    kept = splats.shN[:, :num_sh]
    return replace(splats, shN=np.pad(kept, ((0, 0), (0, num_sh - kept.shape[1]), (0, 0))))


def rotation_matrices(quats: np.ndarray) -> np.ndarray:
    """(N, 3, 3) from (N, 4) w x y z quaternions of any length, of the same float type."""
    quats = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    w, x, y, z = quats.T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, 1) for row in rows], 1)


def _mapped_ellipsoids(
    quats: np.ndarray, scales: np.ndarray, linear: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Quaternions and log scales of covariances M Σ Mᵀ, M being (3, 3) `linear`."""
    rotations = rotation_matrices(quats.astype(np.float64))
    left, sizes, right = np.linalg.svd(linear)
    if sizes[0] - sizes[2] <= _NOISE * sizes[0]:  # a similarity: each axis stays one
        turn = left @ right
        turn = turn * np.linalg.det(turn)  # an ellipsoid is its own mirror image in its centre
        return _quats(turn @ rotations), scales + np.log(max(sizes.mean(), _TINY))
    axes, lengths, _ = np.linalg.svd(linear @ rotations * np.exp(scales)[:, None])
    axes = axes * np.sign(np.linalg.det(axes))[:, None, None]
    return _quats(axes), np.log(np.maximum(lengths, _TINY))


def _quats(rotations: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions w x y z of (N, 3, 3) rotation matrices."""
    (a, b, c), (d, e, f), (g, h, i) = rotations.transpose(1, 2, 0)
    products = np.array(  # four times the outer product of the quaternion with itself
        [
            [1 + a + e + i, h - f, c - g, d - b],
            [h - f, 1 + a - e - i, b + d, c + g],
            [c - g, b + d, 1 - a + e - i, f + h],
            [d - b, c + g, f + h, 1 - a - e + i],
        ]
    )
    largest = np.einsum("iin->in", products).argmax(0)  # no row can be told better
    quats = np.take_along_axis(products, largest[None, None], 0)[0].T
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


def _sh_map(linear: np.ndarray, count: int) -> np.ndarray:
    """(C, C) float64 map of the C = 1, 4, 9 or 16 coefficients of every colour.

    From a direction d the mapped splat shows what it showed from M⁻¹ d before. The harmonics of
    the least squares over the sphere do that: exactly if M keeps angles, for then each degree is
    mapped into itself.
    """
    steps = np.arange(_NUM_DIRECTIONS) + 0.5  # along a spiral from pole to pole
    z, angle = 1 - 2 * steps / _NUM_DIRECTIONS, np.pi * (1 + 5**0.5) * steps
    radius = np.sqrt(1 - z * z)
    directions = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1)
    before = directions @ np.linalg.pinv(linear).T
    return np.linalg.pinv(_sh_basis(directions, count)) @ _sh_basis(before, count)


def _sh_basis(directions: np.ndarray, count: int) -> np.ndarray:
    """(M, count) real spherical harmonics, in order and signs of the 3DGS PLY layout."""
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    x, y, z = (directions / np.maximum(lengths, _TINY)).T
    xx, yy, zz = x * x, y * y, z * z
    basis = [
        np.full_like(x, 0.28209479177387814),
        -0.4886025119029199 * y,
        0.4886025119029199 * z,
        -0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (2 * zz - xx - yy),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (xx - yy),
        -0.5900435899266435 * y * (3 * xx - yy),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (4 * zz - xx - yy),
        0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
        -0.4570457994644658 * x * (4 * zz - xx - yy),
        1.445305721320277 * z * (xx - yy),
        -0.5900435899266435 * x * (xx - 3 * yy),
    ]
    return np.stack(basis[:count], 1)
