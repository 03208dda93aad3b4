# SPDX-License-Identifier: GPL-3.0-or-later
"""The store as a file system.

``tree`` defines the files and directories and knows nothing of FUSE; ``versions``, ``image_views``, ``content`` and
``ranges`` hold what it shows. ``fuse_adapter`` answers the kernel through libfuse, with ``prefetch`` for reading ahead and
``incoming`` for files that are copied into the mount. ``daemon`` mounts and unmounts; its function ``mount`` is all that
other packages need, with ``Access``.
"""

from fuse_store.mount.daemon import mount
from fuse_store.mount.tree import Access

__all__ = ["Access", "mount"]
