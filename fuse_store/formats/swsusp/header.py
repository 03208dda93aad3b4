# SPDX-License-Identifier: GPL-3.0-or-later
"""The header of a hibernation image: located, parsed, armed and disarmed.

It shares the page at resume_offset with the header of the swap area, and alone decides whether the kernel resumes. A resume
restores the ten bytes of the swap area's signature and leaves everything else, so a header without the signature may still
lead to a complete image: ``state`` is then ``disarmed``.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuse_store.errors import Damaged, NotFound, Refused, UsageError
from fuse_store.formats.readable import Readable, read_exactly
from fuse_store.formats.swsusp import layout
from fuse_store.formats.swsusp.layout import IMAGE


@dataclass(frozen=True)
class Swap:
    """The swap area's own header. ``uuid`` is as blkid shows it; ``last_page`` is the last usable block."""

    version: int
    last_page: int
    bad_pages: int
    uuid: str
    label: str


@dataclass(frozen=True)
class Header:
    """``block`` is the whole page, ``offset`` its position in bytes, ``image`` the block of the first swap map page.

    ``crc32`` and ``hardware_signature`` are None if the flags say that they are not valid.
    """

    block: bytes
    page_size: int
    resume_offset: int
    state: str
    image: int
    flags: int
    crc32: int | None
    hardware_signature: int | None
    swap: Swap

    @property
    def offset(self) -> int:
        return self.resume_offset * self.page_size

    @property
    def signature_offset(self) -> int:
        """Offset of the ten bytes that arm and disarm change."""
        return self.offset + self.page_size - layout.SIGNATURE_SIZE

    @property
    def flag_names(self) -> list[str]:
        return [name for bit, name in layout.FLAGS.items() if self.flags & bit]

    @property
    def compression(self) -> str:
        """``none``, ``lzo`` or ``lz4``."""
        if self.flags & layout.NOCOMPRESS:
            return "none"
        return "lz4" if self.flags & layout.LZ4 else "lzo"


def find(readable: Readable, resume_offset: int = 0, page_size: int | None = None) -> Header:
    """The Header at ``resume_offset``, which counts pages as the kernel's parameter does.

    Without ``page_size``, the size is detected: the signature is at the end of the page. Raises NotFound if there is no image,
    Refused for one that the kernel did not write or that this program does not know, Damaged.
    """
    if page_size is not None and page_size not in layout.PAGE_SIZES:
        sizes = ", ".join(map(str, layout.PAGE_SIZES))
        raise UsageError(f"page size {page_size}", "not a page size of Linux.", f"Use one of {sizes}.")
    if resume_offset < 0:
        raise UsageError(f"resume offset {resume_offset}", "negative.", "Use 0 for a partition.")
    disarmed_size, is_swap = 0, False
    for candidate in (page_size,) if page_size else layout.PAGE_SIZES:
        end = (resume_offset + 1) * candidate
        if end > readable.size:
            continue
        tail = read_exactly(readable, end - layout.TAIL.size, layout.TAIL.size, IMAGE)
        signature = tail[-layout.SIGNATURE_SIZE :]
        _refuse_foreign(signature)
        if signature == layout.SIGNATURE:
            return _parse(readable, resume_offset, candidate)
        if signature in layout.SWAP_SIGNATURES:
            is_swap = True
            _hw_sig, _crc32, image, _flags, original, _signature = layout.TAIL.unpack(tail)
            if 0 < image < readable.size // candidate and original in layout.SWAP_SIGNATURES:
                disarmed_size = disarmed_size or candidate
    if disarmed_size:
        return _parse(readable, resume_offset, disarmed_size)
    if is_swap:
        raise NotFound(IMAGE, "the swap area holds no image.", "Hibernate first.")
    raise NotFound(
        IMAGE, f"neither an image nor a swap area at resume offset {resume_offset}.",
        "For a swap file, give its block device and the value of resume_offset=.",
    )  # fmt: skip


def area_size(readable: Readable, resume_offset: int = 0) -> int | None:
    """The bytes that the swap area at ``resume_offset`` says it has, from the start of the device; None if there is none, or it
    is a swap file, which may be anywhere. Raises Damaged."""
    for page_size in layout.PAGE_SIZES if not resume_offset else ():
        if page_size > readable.size:
            break
        block = read_exactly(readable, 0, page_size, IMAGE)
        if block[-layout.SIGNATURE_SIZE :] in (layout.SIGNATURE, *layout.SWAP_SIGNATURES):
            version, last_page, *_rest = layout.SWAP.unpack_from(block, layout.SWAP_AT)
            return (last_page + 1) * page_size if version == 1 else None
    return None


def _refuse_foreign(signature: bytes) -> None:
    """Raises Refused for the signature of another program."""
    for magic, maker in layout.FOREIGN.items():
        if signature.startswith(magic):
            raise Refused(IMAGE, f"written by {maker}; the kernel cannot resume it.", "Resume it with the program that wrote it.")


def _parse(readable: Readable, resume_offset: int, page_size: int) -> Header:
    block = read_exactly(readable, resume_offset * page_size, page_size, IMAGE)
    hw_sig, crc32, image, flags, _original, signature = layout.TAIL.unpack(block[-layout.TAIL.size :])
    blocks = readable.size // page_size
    if not 0 < image < blocks:
        if 0 < int.from_bytes(image.to_bytes(8, "little"), "big") < blocks:
            raise Refused(IMAGE, "written by a big-endian kernel.", "Only images of little-endian kernels are supported.")
        raise Damaged(
            IMAGE, f"the swap map begins at block {image}, but there are only {blocks} blocks.",
            "If this is a swap file, give its block device and the resume offset.",
        )  # fmt: skip
    unknown = flags & ~sum(layout.FLAGS)
    if unknown:
        raise Refused(IMAGE, f"unknown flags {unknown:#x}.", "The kernel that wrote it is newer than this program supports.")
    version, last_page, bad_pages, uuid, label = layout.SWAP.unpack_from(block, layout.SWAP_AT)
    digits = uuid.hex()
    return Header(
        block=block,
        page_size=page_size,
        resume_offset=resume_offset,
        state="armed" if signature == layout.SIGNATURE else "disarmed",
        image=image,
        flags=flags,
        crc32=crc32 if flags & layout.CRC32 and not flags & layout.NOCOMPRESS else None,
        hardware_signature=hw_sig if flags & layout.HW_SIG else None,
        swap=Swap(
            version, last_page, bad_pages,
            "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])),
            printable(label),
        ),
    )  # fmt: skip


def printable(field: bytes) -> str:
    """The text of a NUL-terminated field; what a terminal could interpret is replaced."""
    content = field.split(b"\0")[0].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in content)


def armed(block: bytes) -> bytes:
    """The page of a header with the signature that makes the kernel resume. Raises NotFound if it leads to no image."""
    tail = list(layout.TAIL.unpack(block[-layout.TAIL.size :]))
    if not tail[2] or tail[4] not in layout.SWAP_SIGNATURES:
        raise NotFound(IMAGE, "the header of this swap area leads to no image.", "Stage an image first.")
    tail[5] = layout.SIGNATURE
    return block[: -layout.TAIL.size] + layout.TAIL.pack(*tail)


def disarmed(block: bytes) -> bytes:
    """The page of a header with the swap area's own signature. Raises Damaged if that is not in it."""
    tail = list(layout.TAIL.unpack(block[-layout.TAIL.size :]))
    if tail[4] not in layout.SWAP_SIGNATURES:
        raise Damaged(IMAGE, "the header lacks the signature of the swap area.", "Create the swap area again with mkswap.")
    tail[5] = tail[4]
    return block[: -layout.TAIL.size] + layout.TAIL.pack(*tail)


def swap_page(page_size: int, last_page: int, uuid: bytes) -> bytes:
    """The header page of a new swap area, as mkswap(8) writes it. ``uuid``: 16 bytes."""
    page = bytearray(page_size)
    layout.SWAP.pack_into(page, layout.SWAP_AT, 1, last_page, 0, uuid, bytes(16))
    page[-layout.SIGNATURE_SIZE :] = layout.SWAP_SIGNATURES[0]
    return bytes(page)


def without_image(block: bytes) -> bytes:
    """The page of a swap area, armed or not, with its own signature and no reference to an image. Raises Damaged if neither signature
    is that of a swap area."""
    plain = block if block[-layout.SIGNATURE_SIZE :] in layout.SWAP_SIGNATURES else disarmed(block)
    signature = plain[-layout.SIGNATURE_SIZE :]
    return block[: -layout.TAIL.size] + layout.TAIL.pack(0, 0, 0, 0, bytes(layout.SIGNATURE_SIZE), signature)


def leading_to(block: bytes, first_map: int, flags: int | None = None) -> bytes:
    """The page of a header, not armed, whose swap map begins at a block; the rest is as it was. ``flags``: of another image than the
    one that the header is of, which has no checksum. Raises Damaged if the page is not that of a header, or of a swap area."""
    if flags is None:
        hw_sig, crc32, _image, flags, original, signature = layout.TAIL.unpack(disarmed(block)[-layout.TAIL.size :])
    else:
        hw_sig = crc32 = 0
        original = signature = without_image(block)[-layout.SIGNATURE_SIZE :]
    return block[: -layout.TAIL.size] + layout.TAIL.pack(hw_sig, crc32, first_map, flags, original, signature)
