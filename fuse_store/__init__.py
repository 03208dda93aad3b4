# SPDX-License-Identifier: GPL-3.0-or-later
"""A store of boot images: versioned, deduplicated, checksummed, encrypted. ``docs/format.md`` is what it writes."""

__version__ = "1.0.0"
