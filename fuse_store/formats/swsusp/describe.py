# SPDX-License-Identifier: GPL-3.0-or-later
"""The description of a hibernation image, as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fuse_store.formats.readable import Readable
from fuse_store.formats.swsusp.image import HibernationImage
from fuse_store.formats.swsusp.kernel import Kernel, find_kernel
from fuse_store.progress import SILENT, Progress


def describe(readable: Readable, resume_offset: int = 0, check: bool = False, progress: Progress = SILENT) -> dict[str, Any]:
    """The image at ``resume_offset``. ``check`` reads the whole image and compares the kernel's checksum.

    Sizes in bytes, counts in pages; a value that the image does not contain is None. Reads the image until the kernel's note is
    found. Raises NotFound if there is no image, Refused, Damaged.
    """
    with HibernationImage(readable, resume_offset) as image:
        return {**header_fields(image), **kernel_fields(find_kernel(image)), "crc": _verdict(image, check, progress)}


def header_fields(image: HibernationImage) -> dict[str, Any]:
    """The fields from header, swap map and lists, without a search through the image. Raises Damaged."""
    header, info, pages = image.header, image.info, image.pages
    return {
        "format": "swsusp",
        "state": header.state,
        "page_size": header.page_size,
        "resume_offset": header.resume_offset,
        "flags": header.flag_names,
        "compression": header.compression,
        "architecture": info.architecture,
        "memory_pages": info.memory,
        "memory_size": info.memory * header.page_size,
        "image_pages": info.pages,
        "image_size": info.size,
        "stored_pages": info.stored,
        "zero_pages": pages.zeros,
        "list_pages": info.lists,
        "map_pages": len(image.map.pages),
        "device_pages": image.map.count + len(image.map.pages) + 1,
        "device_runs": len(image.map.first),
        "highest_page": pages.last,
        "e820_checksum": info.record.get("e820_checksum"),
        "e820_digest": info.record.get("e820_digest"),
        "hardware_signature": header.hardware_signature,
        "crc32": header.crc32,
        "record": info.record,
        "swap": asdict(header.swap),
    }


def kernel_fields(kernel: Kernel | None) -> dict[str, Any]:
    """The fields about the kernel. ``vmcoreinfo_page`` is the PFN of its note, with which later searches are avoided."""
    if kernel is None:
        return dict.fromkeys(("kernel", "kernel_version", "host", "build_id", "vmcoreinfo_page"))
    return {
        "kernel": kernel.release,
        "kernel_version": kernel.uts.get("version"),
        "host": kernel.host or None,
        "build_id": kernel.info.fields.get("BUILD-ID"),
        "vmcoreinfo_page": kernel.info.address // kernel.page_size,
    }


def _verdict(image: HibernationImage, check: bool, progress: Progress) -> str:
    """``none`` if the image has no checksum, ``not checked``, ``right`` or ``wrong``."""
    if image.header.crc32 is None:
        return "none"
    if not check:
        return "not checked"
    return "right" if image.crc_matches(progress) else "wrong"
