# SPDX-License-Identifier: GPL-3.0-or-later
"""2D masks as label maps, one a training view: (H, W) int32, 0 = unlabelled, ids of that view only.

Every source returns a list in the order of its views, with None where a view has no masks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Called with the number of a view that is done and its label map so far, to make a preview.
Show = Callable[[int, np.ndarray | None], None]
