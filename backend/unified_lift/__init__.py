# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified-Lift: train Gaussian splats from photos and split them into objects."""

__version__ = "0.1.0"
