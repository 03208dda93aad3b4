# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a hibernation image beside its bytes: recorded as tags when it is captured, told again afterwards.

Used by the verbs ``put``, ``show`` and ``verify``, and by ``filesystem`` for ``info.json``. The tags are ``kernel``, ``host``,
``memory`` (bytes), ``memory_map`` (checksum), ``compression`` and ``vmcoreinfo_page``, which the views need, as far as the
image tells them, and those of ``evidence``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fuse_store.errors import Damaged, NotFound, Refused
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.formats.swsusp.describe import header_fields, kernel_fields
from fuse_store.formats.swsusp.memory import kernel
from fuse_store.hibernation import filesystem_state, history
from fuse_store.hibernation.machine import Machine, recorded_sum
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT, Progress
from fuse_store.store import Store

NO_CHECKSUM, RIGHT, WRONG = "none", "right", "wrong"
# What ``info.json`` has of a description; ``header.json`` and ``show`` have all of it.
BRIEF = (
    "kernel", "host", "architecture", "memory_size", "page_size", "memory_pages", "image_pages", "stored_pages", "zero_pages",
    "flags", "compression", "e820_checksum", "e820_digest",
)  # fmt: skip


def tags_of(source: str, disks: Sequence[Path], machine: Machine) -> tuple[dict[str, str], str]:
    """(tags for an image that is captured from ``source``, what is wrong with it, for people). Of a stream (``-``) nothing
    is known but the disks. Raises StoreError if those that were named can't be read."""
    with ExitStack() as stack:
        if source == "-":
            return (filesystem_state.tags_of_disks(disks) if disks else {}), ""
        path = Path(source)
        if path.is_dir():
            return {}, "a hibernation image is one file, not a folder."
        try:
            image = stack.enter_context(HibernationImage(stack.enter_context(File(path))))
            found = kernel(image)
            fields = kernel_fields(found)
        except (NotFound, Refused, Damaged) as error:
            return (filesystem_state.tags_of_disks(disks) if disks else {}), str(error)
        tags = {
            "kernel": fields["kernel"], "host": fields["host"], "memory": image.info.memory * image.page_size,
            "memory_map": recorded_sum(image.info) if image.info.architecture == "x86" else None,
            "compression": image.header.compression, "vmcoreinfo_page": fields["vmcoreinfo_page"],
        }  # fmt: skip
        texts = {key: str(value)[:64] for key, value in tags.items() if value is not None}
        seen = filesystem_state.tags_of_disks(disks) if disks else filesystem_state.tags_of_machine(image, path, machine)
        return {**texts, **seen}, ""


def description(store: Store, version: Image) -> dict[str, Any] | None:
    """What a stored hibernation image is, as ``formats.describe`` tells it; None if it is none. Does not search it again."""
    told = fields(version)
    return None if told is None else {**told, "crc": verdict(store, version.id, told)}


def fields(version: Image) -> dict[str, Any] | None:
    """The part of a description that never changes; None if it is no hibernation image, or cannot be read."""
    note = version.head.tags.get("vmcoreinfo_page", "")
    try:
        with HibernationImage(version) as image:
            return {**header_fields(image), **kernel_fields(kernel(image, int(note) if note.isdecimal() else None))}
    except (NotFound, Refused, Damaged):
        return None


def verdict(store: Store, image_id: str, told: dict[str, Any]) -> str:
    """What is known of the kernel's own checksum of a version, whose ``fields`` are ``told``: ``none``, ``right``, ``not
    checked``."""
    if told["crc32"] is None:
        return NO_CHECKSUM
    return RIGHT if history.checksum_was_right(store.state_log.entries(image_id)) else "not checked"


def kernel_checksum(version: Image, progress: Progress = SILENT) -> str:
    """``none``, ``right`` or ``wrong``: the kernel's own checksum of a stored image, of which all is read; ``none`` also if
    it has none or is no hibernation image. Raises Damaged if the image contradicts itself."""
    try:
        with HibernationImage(version) as image:
            _ = image.pages
            verdict = image.crc_matches(progress)
    except (NotFound, Refused):
        return NO_CHECKSUM
    return NO_CHECKSUM if verdict is None else RIGHT if verdict else WRONG
