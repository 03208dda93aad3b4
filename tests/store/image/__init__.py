# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of inputs, writing, reading, comparing and restoring images, and of the store as a whole."""
