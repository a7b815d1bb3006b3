# SPDX-License-Identifier: GPL-3.0-or-later
"""How the colours of each photo differ from the scene's: exposure and white balance."""

from __future__ import annotations

import torch
from torch import Tensor

from unified_lift.config import GeometryConfig


class Exposures:
    """A gain and a bias of each photo and channel, learned while the photos are small.

    Where the photos then differ by no more than such learning always finds, they count as exposed
    alike, and nothing is corrected. The scene keeps the mean of the photos' colours.
    """

    def __init__(self, num_photos: int, config: GeometryConfig, device: torch.device) -> None:
        # Separate tensors: Adam leaves those alone that a step gave no gradient.
        self.rows = [
            torch.zeros(2, 3, device=device, requires_grad=True) for _ in range(num_photos)
        ]
        self.optimizer = torch.optim.Adam(self.rows, lr=config.exposure_lr)

    def apply(self, image: Tensor, view: int) -> Tensor:
        """The scene's colours (H, W, 3) as the photo of a view has them."""
        if not self.rows:
            return image
        gain, bias = self.rows[view]
        return image * gain.exp() + bias

    def step(self) -> None:
        """One step of Adam; on average, the photos have the scene's own colours."""
        if not self.rows:
            return
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            mean = torch.stack(self.rows).mean(0)
            for row in self.rows:
                row -= mean

    @torch.no_grad()
    def judge(self, config: GeometryConfig) -> None:
        """Forget them unless the photos differ in how they show a middle grey."""
        if not self.rows:
            return
        gain, bias = torch.stack(self.rows).unbind(1)
        shift = 0.5 * gain.exp() + bias - 0.5
        if float(shift.square().mean().sqrt()) < config.min_exposure_spread:
            self.rows = []
