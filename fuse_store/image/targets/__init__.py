# SPDX-License-Identifier: GPL-3.0-or-later
"""Where ``get`` and ``stage`` write: a name in a directory, the partial file that takes its place, and who else has it in use."""
