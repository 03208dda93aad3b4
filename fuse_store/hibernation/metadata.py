# SPDX-License-Identifier: GPL-3.0-or-later
"""Metadata of hibernation images: tags that are recorded at ``put``, and what a stored version tells about itself.

The tags are ``kernel``, ``host``, ``memory`` (bytes), ``memory_map`` (checksum), ``compression`` and ``vmcoreinfo_page``, which
the views need, as far as the image tells them. Pure functions over an open image; threads may call them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fuse_store.errors import Damaged, NotFound, Refused
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.formats.swsusp.describe import header_fields, kernel_fields
from fuse_store.formats.swsusp.kernel import find_kernel
from fuse_store.hibernation import history
from fuse_store.hibernation.machine import recorded_sum
from fuse_store.image.kind import NO_CHECKSUM, RIGHT
from fuse_store.image.reader import Image
from fuse_store.repository.state_log import StateEntry

MAX_TAG_LENGTH = 64
# The part of a description that ``info.json`` has; ``header.json`` and ``show`` have all of it.
BRIEF = (
    "kernel", "host", "architecture", "memory_size", "page_size", "memory_pages", "image_pages", "stored_pages", "zero_pages",
    "flags", "compression", "e820_checksum", "e820_digest",
)  # fmt: skip


def resume_offset(tags: Mapping[str, str]) -> int | None:
    """Where the header is, in pages: 0 but for a swap file. None if the tag is not a number."""
    text = tags.get("resume_offset", "0")
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def tags_of(image: HibernationImage) -> dict[str, str]:
    """What an image tells about its machine. Raises Damaged."""
    fields = kernel_fields(find_kernel(image))
    values = {
        "kernel": fields["kernel"], "host": fields["host"], "memory": image.info.memory * image.page_size,
        "memory_map": recorded_sum(image.info) if image.info.architecture == "x86" else None,
        "compression": image.header.compression, "vmcoreinfo_page": fields["vmcoreinfo_page"],
    }  # fmt: skip
    return {key: str(value)[:MAX_TAG_LENGTH] for key, value in values.items() if value is not None}


def describe(version: Image) -> dict[str, Any] | None:
    """What never changes of a stored version, with the keys of ``image.kind.inspect`` but ``crc``; None if it is no hibernation
    image, or cannot be read. Does not search for the kernel's note again."""
    tags = version.head.tags
    note = tags.get("vmcoreinfo_page", "")
    try:
        with HibernationImage(version, resume_offset(tags) or 0) as image:
            return {**header_fields(image), **kernel_fields(find_kernel(image, int(note) if note.isdecimal() else None))}
    except (NotFound, Refused, Damaged):
        return None


def checksum_known(description: Mapping[str, Any], entries: Sequence[StateEntry]) -> str:
    """What the state log says of the kernel's own checksum: ``none``, ``right`` or ``not checked``."""
    if description["crc32"] is None:
        return NO_CHECKSUM
    return RIGHT if history.checksum_was_right(entries) else "not checked"
