# SPDX-License-Identifier: GPL-3.0-or-later
"""Hibernation images on devices: staged, checked, armed, so that the machine's own kernel resumes them. Used by ``cli``.

A stored version is the whole swap device as it was captured. ``stage`` writes it back, not armed; ``preflight`` tells
whether the kernel would accept it, and ``arm`` sets the ten bytes that make it resume. docs/staging.md is the users' guide.
"""
