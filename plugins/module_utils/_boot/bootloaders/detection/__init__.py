# SPDX-License-Identifier: GPL-3.0-or-later
"""What starts this machine, and which of the entries in a menu are this system's."""
