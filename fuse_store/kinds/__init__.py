# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of images with structure, a module each; ``hibernation`` has a package of its own. ``image.kind`` has their table and interface."""
