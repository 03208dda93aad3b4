# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m fuse_store.cli`` is ``fuse-store``."""

from fuse_store.cli import command

command()
