# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the command line, by ``main`` in this process, or as a process of its own where that matters."""
