# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the mount: the tree by itself, and through the kernel."""
