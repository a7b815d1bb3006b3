# SPDX-License-Identifier: GPL-3.0-or-later
"""How the colours of each photo differ from the scene's: exposure and white balance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unified_lift.capture.views import nearest_cameras
from unified_lift.config import GeometryConfig
from unified_lift.rendering import Camera

FLAT = 1e-4  # squared contrast of a picture that says little of its gain: it stays near 1
GAINS = (0.25, 4.0)  # two stops; beyond, splats and photo show different things


class Exposures:
    """A gain and a bias of each photo and channel; the scene keeps the photos' mean colours.

    At first they are on trial: learned beside the splats, and without a say. They stay only if
    photos then differ from those of the nearest cameras. Where all photos agree, or differ slowly
    along the camera's way, splats that show them as they are look more like other photos from
    there.
    """

    def __init__(self, cameras: list[Camera], config: GeometryConfig, device: torch.device) -> None:
        viewmats = np.stack([camera.viewmat.numpy() for camera in cameras])
        self.neighbours = torch.from_numpy(nearest_cameras(viewmats, config.exposure_neighbours))
        # Separate tensors: Adam leaves those alone that a step gave no gradient.
        self.rows = [torch.zeros(2, 3, device=device, requires_grad=True) for _ in cameras]
        self.optimizer = torch.optim.Adam(self.rows, lr=config.exposure_lr)
        self.on_trial = True

    def apply(self, image: Tensor, view: int) -> Tensor:
        """The scene's colours (H, W, 3) as the photo of a view has them."""
        if self.on_trial or not self.rows:
            return image
        return self._corrected(image, view)

    def trial_loss(self, image: Tensor, photo: Tensor, view: int) -> Tensor | float:
        """What the trial learns from, (H, W, 3) both; it has no gradient for the scene."""
        if not self.on_trial:
            return 0.0
        return (self._corrected(image.detach(), view) - photo).abs().mean()

    @torch.no_grad()
    def fit(self, image: Tensor, photo: Tensor, view: int) -> None:
        """Take what makes a photo of the scene's own colours, (H, W, 3) both, by least squares."""
        image, photo = image.reshape(-1, 3), photo.reshape(-1, 3)
        middle, mean = image.mean(0), photo.mean(0)
        spread = (image - middle).square().mean(0)
        together = ((image - middle) * (photo - mean)).mean(0)
        gain = ((together + FLAT) / (spread + FLAT)).clamp(*GAINS)
        self.rows[view] = torch.stack([gain.log(), mean - gain * middle])

    def _corrected(self, image: Tensor, view: int) -> Tensor:
        gain, bias = self.rows[view]
        return image * gain.exp() + bias

    def state(self) -> dict:
        """All that `restore` needs; it shares the memory of these."""
        rows = [row.detach() for row in self.rows]
        return {"rows": rows, "steps": self.optimizer.state_dict(), "on_trial": self.on_trial}

    def restore(self, state: dict) -> None:
        """Go on from such a state, which is taken over."""
        self.on_trial = state["on_trial"]
        if not state["rows"]:  # forgotten
            self.rows = []
            return
        with torch.no_grad():
            for row, value in zip(self.rows, state["rows"], strict=True):
                row.copy_(value)
        self.optimizer.load_state_dict(state["steps"])

    def step(self) -> None:
        """One step of Adam; the mean over the photos stays 0."""
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
        """End the trial: forget them unless neighbours differ in how they show a middle grey."""
        self.on_trial = False
        gain, bias = torch.stack(self.rows).cpu().unbind(1)
        grey = 0.5 * gain.exp() + bias
        difference = grey - grey[self.neighbours].mean(1)
        if float(difference.square().mean().sqrt()) < config.min_exposure_difference:
            self.rows = []
