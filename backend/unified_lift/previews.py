# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of a job at work: one view as it renders now, and its label map."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unified_lift.gaussians import Gaussians
from unified_lift.lift.objects import label_color
from unified_lift.protocol import PREVIEW_DIR, Report
from unified_lift.rendering import Camera, Engine


class Previews:
    """Writes pictures into the job folder and announces them, at most every `seconds`.

    Only the last two stay.
    """

    def __init__(
        self, job_dir: Path, engine: Engine, camera: Camera, seconds: float, report: Report
    ) -> None:
        self.folder = Path(job_dir) / PREVIEW_DIR
        self.engine, self.camera, self.seconds, self.report = engine, camera, seconds, report
        self._last = time.monotonic()
        self._count = 0

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last >= self.seconds

    def training(self, gaussians: Gaussians) -> None:
        """Show how the splats look by now, if it is time."""
        if self.due:
            self.show(gaussians, None, "Training splats")

    def show(self, gaussians: Gaussians, labels: np.ndarray | None, caption: str) -> None:
        """Show the splats and, where there is one, a label map (H, W) of the camera's view."""
        self.folder.mkdir(exist_ok=True)
        self._count += 1
        with torch.no_grad():
            image = self.engine.render(**gaussians, camera=self.camera).channels
        name = f"{self._count:04d}-image.png"
        save_image(self.folder / name, image)
        labels_name = ""
        if labels is not None:
            labels_name = f"{self._count:04d}-labels.png"
            Image.fromarray(label_colors(labels)).save(self.folder / labels_name)
        paths = [f"{PREVIEW_DIR}/{file}" if file else "" for file in (name, labels_name)]
        self.report.preview(*paths, caption)
        self._remove_old()
        self._last = time.monotonic()

    def _remove_old(self) -> None:
        """Keep the last two: Blender may still be loading the one before the last."""
        kept = {f"{number:04d}" for number in (self._count - 1, self._count)}
        for path in self.folder.iterdir():
            if path.name.partition("-")[0] not in kept:
                with suppress(PermissionError):  # of a file in use, on Windows: the next time then
                    path.unlink(missing_ok=True)


def save_image(path: Path, channels: torch.Tensor, alphas: torch.Tensor | None = None) -> None:
    """Write a rendering (H, W, 3), display space, as PNG; with alphas as straight RGBA."""
    image = channels.detach().cpu().clamp(0, 1)
    if alphas is not None:
        alphas = alphas.detach().cpu().clamp(0, 1)[..., None]
        color = (channels.detach().cpu() / alphas.clamp(min=1e-6)).clamp(0, 1)
        image = torch.cat([color, alphas], -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 255).round().byte().numpy()).save(path)


def label_colors(labels: np.ndarray) -> np.ndarray:
    """(H, W) ids as (H, W, 3) uint8 in the colours of their objects; 0 is black."""
    colors = [(0.0, 0.0, 0.0), *(label_color(i) for i in range(1, int(labels.max()) + 1))]
    return (np.array(colors) * 255).round().astype(np.uint8)[labels]
