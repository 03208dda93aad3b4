# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the repository: invariants under damage, crashes and concurrency, the format, and each module by itself."""
