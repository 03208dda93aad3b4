# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of snapshots without a kernel that makes one; tests/vm/scenarios/test_snapshot.py has those with one."""
