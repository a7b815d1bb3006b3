# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures in map coordinates are moved near the origin, for float32 (numpy only)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unified_lift.capture.views import Capture, View
from unified_lift.config import CaptureConfig


def near_origin(capture: Capture) -> Capture:
    """Bring a capture's points to float32, and before that the whole capture near the origin.

    Captures whose coordinates float32 can hold stay where they are.

    Args:
        capture: as read, with float64 points.
    """
    origin = _origin(capture.views)
    points = (capture.points - origin).astype(np.float32)
    if not origin.any():
        return replace(capture, points=points)
    shift = np.eye(4)
    shift[:3, 3] = origin
    place = ", ".join(f"{value:.10g}" for value in origin)
    text = (
        f"The cameras stand {np.linalg.norm(origin):,.0f} units from the origin, too far for "
        f"32-bit coordinates. The scene was moved: its origin lies at ({place}) of the capture."
    )
    return replace(
        capture,
        views=tuple(replace(view, viewmat=view.viewmat @ shift) for view in capture.views),
        points=points,
        warnings=(*capture.warnings, text),
        origin=tuple(origin.tolist()),
    )


def camera_spread(views: Sequence[View]) -> float:
    """Standard deviation of the camera centres, in world units."""
    return float(np.linalg.norm(np.std([view.center for view in views], axis=0)))


def _origin(views: Sequence[View]) -> np.ndarray:
    """(3,) float64: the cameras' centre, rounded to a power of ten below their spread, or 0."""
    center, size = np.mean([view.center for view in views], axis=0), camera_spread(views)
    far = np.linalg.norm(center) > CaptureConfig.max_distance * size
    if not far or size < CaptureConfig.min_spread:
        return np.zeros(3)
    return np.round(center, -math.floor(math.log10(size)))
