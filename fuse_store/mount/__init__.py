# SPDX-License-Identifier: GPL-3.0-or-later
"""The store as a file system. ``tree`` says what it looks like, ``adapter`` shows it through FUSE, ``mount`` does it.

``cli`` uses ``mount`` and nothing else of this package.
"""

from fuse_store.mount.daemon import mount

__all__ = ["mount"]
