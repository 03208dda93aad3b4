# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks, each by the attacker's means alone: one file a subject. docs/format.md, "Threat model", says what holds against whom."""
