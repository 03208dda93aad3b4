# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of maintenance: garbage collection and the trash."""
