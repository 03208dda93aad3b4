# SPDX-License-Identifier: GPL-3.0-or-later
"""Where ``get`` and ``stage`` write: a name in a folder, the partial file that takes its place, and who else has it in use."""
