# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmarks: each module is a command, ``python -m tests.store.bench.NAME``; none is run by ``make test``."""
