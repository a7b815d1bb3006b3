# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark: methods side by side on the same splats, masks and views."""
