# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics: label maps, extracted objects, Gaussians and images against ground truth."""

from unified_lift.metrics.files import evaluate, read_labels, read_meta, read_truth
from unified_lift.metrics.objects import extraction_iou, gaussian_accuracy
from unified_lift.metrics.pictures import psnr, ssim
from unified_lift.metrics.segments import (
    MATCH_IOU,
    adjusted_rand_index,
    boundary_band,
    match,
    quality,
    score,
)
from unified_lift.metrics.tables import Table, count, total

__all__ = [
    "MATCH_IOU",
    "Table",
    "adjusted_rand_index",
    "boundary_band",
    "count",
    "evaluate",
    "extraction_iou",
    "gaussian_accuracy",
    "match",
    "psnr",
    "quality",
    "read_labels",
    "read_meta",
    "read_truth",
    "score",
    "ssim",
    "total",
]
