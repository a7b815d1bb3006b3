# SPDX-License-Identifier: GPL-3.0-or-later
"""What all stages of a job share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unified_lift.capture import Capture
from unified_lift.config import PRESETS, GeometryConfig, PipelineConfig, Settings
from unified_lift.preparation import Photos
from unified_lift.previews import Previews
from unified_lift.protocol import JobReport
from unified_lift.rendering import Engine

CONFIG = PipelineConfig()


@dataclass(frozen=True)
class Job:
    """One job at work.

    Attributes:
        folder: the job folder.
        settings: what the user chose.
        capture: pinhole views.
        photos: the training photos, at training size.
        engine: what renders.
        report: told of the progress.
        previews: shows pictures.
    """

    folder: Path
    settings: Settings
    capture: Capture
    photos: Photos
    engine: Engine
    report: JobReport
    previews: Previews

    @property
    def config(self) -> GeometryConfig:
        """The preset."""
        return PRESETS[self.settings.preset]
