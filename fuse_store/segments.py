# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments of extents as they stand in a manifest, behind its head. Used by ``capture`` and ``image``; lists of versions
need the heads alone, and none of the libraries that this needs.
"""

from __future__ import annotations

from fuse_store.backends import Backend
from fuse_store.blocks import LARGEST
from fuse_store.chunks import check
from fuse_store.crypto import Sealer
from fuse_store.errors import Damaged, NotFound
from fuse_store.extents import Extents, pack_extents, parse_extents
from fuse_store.manifest import Head, Segment, image_name


def seal_segment(extents: Extents, offset: int, sealer: Sealer, chunked: bool = False) -> tuple[Segment, bytes]:
    """A Segment, which will stand at ``offset``, and its sealed bytes. ``chunked``: of a version with chunks."""
    content = pack_extents(extents, chunked)
    digest = sealer.digest(content)
    sealed = sealer.seal(b"segment" + digest, content)
    last = int(extents.page[-1] + extents.count[-1])
    return Segment(int(extents.page[0]), last, offset, len(sealed), digest), sealed


def read_segment(backend: Backend, image_id: str, head: Head, number: int, start: int, sealer: Sealer) -> Extents:
    """The Extents of segment ``number``; segments begin at ``start`` in the manifest's file. Raises NotFound, Damaged."""
    segment = head.segments[number]
    try:  # who has the image open may finish if it was removed since
        sealed = backend.read_range(image_name(image_id), start + segment.offset, segment.length, trashed=True)
        content = sealer.open(b"segment" + segment.digest, sealed)
        extents = parse_extents(content, head.pages, LARGEST // head.page_size, head.chunks is not None)
        if head.chunks is not None:
            check(extents, head.chunks, head.page_size)
        return extents
    except FileNotFoundError:
        raise NotFound(f"image {image_id}", "it has been removed.") from None
    except (ValueError, OSError) as error:
        raise Damaged(
            f"manifest {image_id}.img", f"{error}.", "Restore it from a copy of the store.",
            image=image_id, extent=f"{segment.first * head.page_size:#x}",
        ) from None  # fmt: skip
