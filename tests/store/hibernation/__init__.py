# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of staging, arming and preflight, and of LZO chunks; ``cases`` has stores with images and machines for them."""
