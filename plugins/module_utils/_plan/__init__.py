# SPDX-License-Identifier: GPL-3.0-or-later
"""What a configuration would change: all of its parts looked at in one run."""
