# SPDX-License-Identifier: GPL-3.0-or-later
"""A slow, obvious splat compositor in float64, the tests' measure of the GPU renderer."""

import numpy as np

from unified_lift.ply import Splats

_C1, _C20, _C22 = np.sqrt(3 / (4 * np.pi)), np.sqrt(5 / (16 * np.pi)), np.sqrt(15 / (4 * np.pi))
_C30, _C31 = np.sqrt(7 / (16 * np.pi)), np.sqrt(21 / (32 * np.pi))
_C32, _C33 = np.sqrt(105 / (4 * np.pi)), np.sqrt(35 / (32 * np.pi))


def render(
    splats: Splats, to_world: np.ndarray, viewmat: np.ndarray, K: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Composite splats front to back.

    Args:
        splats: in their own frame.
        to_world: (4, 4), any affine map of that frame.
        viewmat: (4, 4) world to camera, OpenCV axes.
        K: (3, 3), pixels.
        size: (width, height).

    Returns:
        Premultiplied RGB (H, W, 3), alpha (H, W), alpha-weighted depth (H, W); row 0 at the top.
    """
    width, height = size
    to_view = viewmat @ to_world
    points = splats.means @ to_view[:3, :3].T + to_view[:3, 3]
    eye = np.linalg.inv(to_view)[:3, 3]
    colors = np.maximum(0.5 + evaluate_sh(splats, splats.means - eye), 0)
    opacities = 1 / (1 + np.exp(-splats.opacities.astype(float)))
    xs, ys = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    image, depth, through = np.zeros((height, width, 3)), np.zeros((height, width)), 1.0
    for i in np.argsort(points[:, 2], kind="stable"):
        if points[i, 2] <= 0.01:
            continue
        mean, covariance = _project(points[i], _covariance(splats, i, to_view[:3, :3]), K, size)
        d = np.stack([xs - mean[0], ys - mean[1]], -1)
        power = 0.5 * np.einsum("hwi,ij,hwj->hw", d, np.linalg.inv(covariance), d)
        alpha = np.minimum(opacities[i] * np.exp(-power), 0.99)
        alpha[opacities[i] * np.exp(-power) < 1 / 255] = 0
        weight = alpha * through
        image += weight[..., None] * colors[i]
        depth += weight * points[i, 2]
        through = through * (1 - alpha)
    return image, 1 - through, depth


def evaluate_sh(splats: Splats, directions: np.ndarray) -> np.ndarray:
    """(N, 3) sums of the stored coefficients and the real spherical harmonics, degree 0 to 3."""
    x, y, z = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T
    basis = [
        np.full_like(x, np.sqrt(1 / (4 * np.pi))),
        *(-_C1 * y, _C1 * z, -_C1 * x),
        *(_C22 * x * y, -_C22 * y * z, _C20 * (3 * z * z - 1), -_C22 * x * z),
        _C22 / 2 * (x * x - y * y),
        *(-_C33 * y * (3 * x * x - y * y), _C32 * x * y * z, -_C31 * y * (5 * z * z - 1)),
        *(_C30 * z * (5 * z * z - 3), -_C31 * x * (5 * z * z - 1)),
        *(_C32 / 2 * z * (x * x - y * y), -_C33 * x * (x * x - 3 * y * y)),
    ]
    coefficients = np.concatenate([splats.sh0, splats.shN], 1)
    return sum(basis[k][:, None] * coefficients[:, k] for k in range(coefficients.shape[1]))


def _covariance(splats: Splats, i: int, linear: np.ndarray) -> np.ndarray:
    w, x, y, z = splats.quats[i].astype(float) / np.linalg.norm(splats.quats[i].astype(float))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    axes = linear @ rotation @ np.diag(np.exp(splats.scales[i].astype(float)))
    return axes @ axes.T


def _project(point, covariance, K, size):
    x, y, z = point
    tan_x, tan_y = size[0] / K[0, 0] / 2, size[1] / K[1, 1] / 2
    lowest = -K[0, 2] / K[0, 0] - 0.3 * tan_x, -K[1, 2] / K[1, 1] - 0.3 * tan_y
    highest = lowest[0] + 2.6 * tan_x, lowest[1] + 2.6 * tan_y
    slope_x, slope_y = np.clip(x / z, lowest[0], highest[0]), np.clip(y / z, lowest[1], highest[1])
    jacobian = np.array(
        [[K[0, 0] / z, 0, -K[0, 0] * slope_x / z], [0, K[1, 1] / z, -K[1, 1] * slope_y / z]]
    )
    mean = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
    return mean, jacobian @ covariance @ jacobian.T + 0.3 * np.eye(2)
