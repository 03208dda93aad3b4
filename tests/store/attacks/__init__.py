# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks on the store, each by the attacker's means alone. docs/threat-model.md says who may do what, and names the test."""
