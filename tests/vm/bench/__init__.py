# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements on virtual machines, each a command: ``compression`` of images, and ``snapshots`` of the running system."""
