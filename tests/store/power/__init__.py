# SPDX-License-Identifier: GPL-3.0-or-later
"""Power cuts: what a filesystem writes to its disk is recorded, and every moment at which the power could have failed is tried.

``recorder`` is a disk that logs its writes and flushes; ``replay`` makes the disks that a power cut could have left.
"""
