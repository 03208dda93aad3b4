# SPDX-License-Identifier: GPL-3.0-or-later
"""The index: in which pack, and at which offset, each block is.

A set of fragments: write-once files of sorted columns, mapped into memory and searched by bisection, many digests at a time.
A put adds one; those of similar size are merged, so that their number grows with the logarithm of the store. The index can be
rebuilt from the packs. A wrong row does no harm: a block is verified when it is read, and a block that a put finds in the index
is looked up in its pack.

``rows``: rows in memory · ``fragment``: one file · ``merge``: several in the order of one, a part at a time · ``lookup``: the index
of a store · ``marks``: a bit for each row, for those who go through all blocks.
"""

from fuse_store.repository.index.lookup import Index, Located
from fuse_store.repository.index.rows import Rows

__all__ = ["Index", "Located", "Rows"]
