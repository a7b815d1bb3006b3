# SPDX-License-Identifier: GPL-3.0-or-later
"""The CUDA engine, made of gsplat's kernels."""

from __future__ import annotations

from unified_lift.protocol import JobError


class GsplatEngine:
    """Not there yet."""

    def __init__(self, num_threads: int | None = None) -> None:
        raise JobError("No CUDA engine is installed. Choose the device 'cpu'.")
