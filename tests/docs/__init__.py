# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents: their commands run, their options, links and names exist."""
