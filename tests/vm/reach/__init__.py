# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of machines beyond those of make test, each configured, hibernated, switched off, resumed, and brought back (docs/reach.md)."""
