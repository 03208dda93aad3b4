# SPDX-License-Identifier: GPL-3.0-or-later
"""Base of all modules: access to the machine, undoing changes, how a module ends, sizes."""
