# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are derived from a hibernation image when they are read, and stored nowhere; the mount shows them.

``memory.elf`` and ``memory.lime`` (``memory_dump``, with the headers of ``dump_headers``) are dumps of the machine's memory for
drgn, crash and Volatility 3; ``header.json`` is the description of the image; ``pages.tsv`` (``page_list``) tells for each page
of memory whether it is stored. ``files`` lists them; each has ``name``, ``size()`` and ``read(offset, length)``.
"""

from __future__ import annotations

from fuse_store.formats.swsusp.views.files import DerivedFile, derived

__all__ = ["DerivedFile", "derived"]
