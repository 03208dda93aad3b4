# SPDX-License-Identifier: GPL-3.0-or-later
"""The header of a hibernation image: found, parsed, armed and disarmed. Used by ``image``, ``write`` and ``device``.

It shares the page at resume_offset with the header of the swap area, and is all that decides whether the kernel resumes.
A resume puts the ten bytes of the swap area's signature back and leaves everything else, so a header without the
signature may still lead to a whole image: ``state`` is then ``disarmed``.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuse_store.errors import Damaged, NotFound, Refused, UsageError
from fuse_store.formats.readable import Readable, read_exactly
from fuse_store.formats.swsusp import layout

THING = "hibernation image"


@dataclass(frozen=True)
class Swap:
    """The swap area's own header. ``uuid`` is as blkid shows it; ``last_page`` is the last block it may use."""

    version: int
    last_page: int
    bad_pages: int
    uuid: str
    label: str


@dataclass(frozen=True)
class Header:
    """``block`` is the whole page, ``offset`` where it stands in bytes, ``image`` the block of the first swap map page.

    ``crc32`` and ``hardware_signature`` are None where the flags say that they are not valid.
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
        """Where the ten bytes stand that arm and disarm."""
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

    Without ``page_size`` it is the one at whose end a signature stands. Raises NotFound if there is no image, Refused for
    one that is not the kernel's own or that this program does not know, Damaged.
    """
    if page_size is not None and page_size not in layout.PAGE_SIZES:
        raise UsageError(f"page size {page_size}", "no kernel has it.", f"There are {layout.PAGE_SIZES}.")
    if resume_offset < 0:
        raise UsageError(f"resume offset {resume_offset}", "it is negative.")
    disarmed, swap = [], False
    for candidate in (page_size,) if page_size else layout.PAGE_SIZES:
        end = (resume_offset + 1) * candidate
        if end > readable.size:
            continue
        tail = read_exactly(readable, end - layout.TAIL.size, layout.TAIL.size, THING)
        signature = tail[-layout.SIGNATURE_SIZE :]
        for magic, maker in layout.FOREIGN.items():
            if signature.startswith(magic):
                raise Refused(THING, f"it is one of {maker}, which the kernel's own code cannot resume.", "Resume it with that.")
        if signature == layout.SIGNATURE:
            return _parse(readable, resume_offset, candidate)
        if signature in layout.SWAP_SIGNATURES:
            swap = True
            _hw_sig, _crc32, image, _flags, original, _signature = layout.TAIL.unpack(tail)
            if 0 < image < readable.size // candidate and original in layout.SWAP_SIGNATURES:
                disarmed.append(candidate)
    if disarmed:
        return _parse(readable, resume_offset, disarmed[0])
    if swap:
        raise NotFound(THING, "this is a swap area, and no image has been written to it.", "Hibernate first.")
    raise NotFound(
        THING, f"there is neither an image nor a swap area at resume offset {resume_offset}.",
        "Of a swap file give the device and the offset that resume_offset= names.",
    )  # fmt: skip


def _parse(readable: Readable, resume_offset: int, page_size: int) -> Header:
    block = read_exactly(readable, resume_offset * page_size, page_size, THING)
    hw_sig, crc32, image, flags, _original, signature = layout.TAIL.unpack(block[-layout.TAIL.size :])
    blocks = readable.size // page_size
    if not 0 < image < blocks:
        if 0 < int.from_bytes(image.to_bytes(8, "little"), "big") < blocks:
            raise Refused(THING, "it was made by a big-endian kernel.", "Only little-endian ones are understood.")
        raise Damaged(
            THING, f"its swap map begins at block {image}, and there are {blocks} blocks.",
            "If this is a swap file, give the device that holds it, and the resume offset.",
        )  # fmt: skip
    unknown = flags & ~sum(layout.FLAGS)
    if unknown:
        raise Refused(THING, f"its flags {unknown:#x} are not known.", "A newer kernel made it than this program was made for.")
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
            text(label),
        ),
    )  # fmt: skip


def text(field: bytes) -> str:
    """What a NUL-terminated field says, with what a terminal would act on replaced."""
    content = field.split(b"\0")[0].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in content)


def armed(block: bytes) -> bytes:
    """The page of a header with the signature that makes the kernel resume. Raises NotFound if it leads to no image."""
    tail = list(layout.TAIL.unpack(block[-layout.TAIL.size :]))
    if not tail[2] or tail[4] not in layout.SWAP_SIGNATURES:
        raise NotFound(THING, "this swap area's header leads to none.", "Stage one first.")
    tail[5] = layout.SIGNATURE
    return block[: -layout.TAIL.size] + layout.TAIL.pack(*tail)


def disarmed(block: bytes) -> bytes:
    """The page of a header with the swap area's own signature. Raises Damaged if it keeps none."""
    tail = list(layout.TAIL.unpack(block[-layout.TAIL.size :]))
    if tail[4] not in layout.SWAP_SIGNATURES:
        raise Damaged(THING, "its header does not keep the signature of the swap area.", "Make the swap area anew with mkswap.")
    tail[5] = tail[4]
    return block[: -layout.TAIL.size] + layout.TAIL.pack(*tail)


def staged(block: bytes, page_size: int, image: int, flags: int, hardware_signature: int) -> bytes:
    """``block``, the page of a swap area's header, with an image that begins at map block ``image``, not armed.

    Raises Refused if it is not one.
    """
    if len(block) != page_size or block[-layout.SIGNATURE_SIZE :] not in layout.SWAP_SIGNATURES:
        raise Refused("device", "there is no swap area on it.", "Make one with mkswap, or disarm the image that stands there.")
    signature = block[-layout.SIGNATURE_SIZE :]
    tail = layout.TAIL.pack(hardware_signature, 0, image, flags, signature, signature)
    return block[: -layout.TAIL.size] + tail


def swap_header(page_size: int, blocks: int, uuid: bytes, label: bytes = b"") -> bytes:
    """The page that mkswap writes for an area of ``blocks`` pages (include/linux/swap.h, union swap_header)."""
    block = bytearray(page_size)
    layout.SWAP.pack_into(block, layout.SWAP_AT, 1, blocks - 1, 0, uuid, label)
    block[-layout.SIGNATURE_SIZE :] = layout.SWAP_SIGNATURES[0]
    return bytes(block)
