# SPDX-License-Identifier: GPL-3.0-or-later
"""The role fast_boot on real boots; ``make vm-test-role``."""
