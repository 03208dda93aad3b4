# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes hibernation images as the kernel does, for the tests and the fuzzer of ``fuse_store.formats.swsusp``.

Written from the kernel's sources and independent of our parser, so that a mistake in one shows in the other: page by page, with
struct and with the compressors' own libraries. Memory is a dictionary of PFN → page.
"""

from __future__ import annotations

import ctypes
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import lz4.block
from lzallright import LZOCompressor

RELEASE = "6.12.7-test"
HOST = "web01"
KERNEL = 0xFFFFFFFF81000000  # where the kernel's image is mapped
KERNEL_PHYSICAL = 0x200000
DIRECT_MAP = 0xFFFF8A7780000000
DIRECT_MAP_5 = 0xFF11000140000000
SECRET = 1 << 47  # sme_mask, set in every entry of the page tables
UUID = bytes(range(16))


@dataclass
class Encoded:
    """An image and where in it everything is: ``stream`` block of each page of the stream, ``maps`` of each map page."""

    device: bytearray
    page_size: int
    memory: dict[int, bytes]
    header: int = 0
    stream: list[int] = field(default_factory=list)
    maps: list[int] = field(default_factory=list)
    crc: int = 0
    chunks: list[int] = field(default_factory=list)  # index in stream of the first page of each chunk


def machine(
    page_size: int = 4096, architecture: str = "x86", pages: int = 300, zeros: float = 0.3, seed: int = 1, levels: int = 4
) -> dict[int, bytes]:
    """Memory of a machine: a kernel with its names, its VMCOREINFO and (x86) its page tables, noise, text and zeros.

    ``levels`` are those of the page tables; with 5 the direct map is at DIRECT_MAP_5.
    """
    source = random.Random(seed)
    memory: dict[int, bytes] = {}
    pfn = 1
    while len(memory) < pages:
        pfn += source.choice((1, 1, 1, 1, 1, 1, 2, 40))
        if source.random() < zeros:
            memory[pfn] = bytes(page_size)
        elif source.random() < 0.5:
            memory[pfn] = source.randbytes(page_size)
        else:
            memory[pfn] = (b"process %d says hello; " % source.randrange(1000) * page_size)[:page_size]
    _add_kernel(memory, page_size, architecture, levels)
    return memory


def _add_kernel(memory: dict[int, bytes], page_size: int, architecture: str, levels: int) -> None:
    """The pages of a kernel: its names, its VMCOREINFO note, and on x86 its page tables."""
    kernel = KERNEL_PHYSICAL // page_size
    names = b"".join(
        name.encode().ljust(65, b"\0") for name in ("Linux", HOST, RELEASE, "#1 SMP test", "x86_64", "(none)")
    )
    uts = 0x480
    memory[kernel] = (bytes(uts) + names).ljust(page_size, b"\0")[:page_size]
    note_pfn = kernel + 6 + kernel % 2
    items = {
        "x86": [
            f"NUMBER(phys_base)={KERNEL_PHYSICAL - (KERNEL - 0xFFFFFFFF80000000)}",
            f"SYMBOL(init_top_pgt)={KERNEL + page_size:x}", f"NUMBER(pgtable_l5_enabled)={int(levels == 5)}", "KERNELOFFSET=0",
            f"NUMBER(sme_mask)={SECRET}",
        ],
        "arm64": [f"NUMBER(kimage_voffset)={KERNEL - KERNEL_PHYSICAL:#x}", "NUMBER(VA_BITS)=48", "NUMBER(PHYS_OFFSET)=0x0"],
        "riscv": [
            f"NUMBER(va_kernel_pa_offset)={KERNEL - KERNEL_PHYSICAL:#x}", "NUMBER(PAGE_OFFSET)=0xffffffd600000000",
            "NUMBER(phys_ram_base)=0x0",
        ],
        "generic": [],
    }[architecture]  # fmt: skip
    text = "\n".join(
        [
            f"OSRELEASE={RELEASE}", "BUILD-ID=00112233445566778899aabbccddeeff00112233", f"PAGESIZE={page_size}",
            f"SYMBOL(init_uts_ns)={KERNEL + uts:x}", "OFFSET(uts_namespace.name)=0", *items,
        ]
    ).encode() + b"\n"  # fmt: skip
    memory[note_pfn] = note(text).ljust(page_size, b"\0")
    if architecture == "x86" and page_size == 4096:
        _add_page_tables(memory, kernel, levels)


def add_symbols(memory: dict[int, bytes], values: dict[str, int], relative: bool = True) -> None:
    """Give the kernel of ``machine`` variables of type long, a table of symbols with their names (scripts/kallsyms.c), and lines about it
    in its note. ``relative``: offsets as x86 before Linux 6.15 has them. For pages of 4 KiB."""
    table, data, uts = KERNEL + 0x20000, KERNEL + 0x30000, KERNEL + 0x480
    symbols = [("T" + "very_long_name_" * 12, KERNEL), ("Dinit_uts_ns", uts), ("Dinit_uts_nsproxy", uts + 8)]
    symbols += [(f"B{name}", data + 8 * at) for at, name in enumerate(values)]
    tokens = [b"" if at < 32 else bytes([at]) for at in range(256)]
    tokens[1], tokens[2] = b"swap_pages", b"init_"
    names = b""
    for name, _address in symbols:
        packed = name.encode().replace(tokens[1], b"\1").replace(tokens[2], b"\2")
        names += (bytes([len(packed)]) if len(packed) < 128 else bytes([len(packed) & 0x7F | 0x80, len(packed) >> 7])) + packed
    offsets = [KERNEL - 1 - address if relative else address - KERNEL for _name, address in symbols]
    places = {"num_syms": 0, "relative_base": 8, "offsets": 0x100, "names": 0x400, "token_table": 0x400 + len(names)}
    places["token_index"] = (places["token_table"] + len(b"\0".join(tokens)) + 9) // 8 * 8
    content = bytearray(0x2000)
    struct.pack_into("<I4xQ", content, 0, len(symbols), KERNEL)
    struct.pack_into(f"<{len(symbols)}i", content, places["offsets"], *offsets)
    content[0x400 : 0x400 + len(names)] = names
    begin = 0
    for at, token in enumerate(tokens):
        struct.pack_into("<H", content, places["token_index"] + 2 * at, begin)
        content[places["token_table"] + begin : places["token_table"] + begin + len(token)] = token
        begin += len(token) + 1
    _put(memory, table, bytes(content))
    _put(memory, data, struct.pack(f"<{len(values)}q", *values.values()).ljust(4096, b"\0"))
    (place,) = (pfn for pfn, page in memory.items() if page[12:22] == b"VMCOREINFO")
    lines = "".join(f"SYMBOL(kallsyms_{name})={table + at:x}\n" for name, at in places.items())
    (length,) = struct.unpack_from("<I", memory[place], 4)
    memory[place] = note(memory[place][24 : 24 + length] + lines.encode()).ljust(4096, b"\0")


def _put(memory: dict[int, bytes], address: int, content: bytes) -> None:
    first = (address - KERNEL + KERNEL_PHYSICAL) // 4096
    for at in range(0, len(content), 4096):
        memory[first + at // 4096] = content[at : at + 4096]


def _add_page_tables(memory: dict[int, bytes], kernel: int, levels: int) -> None:
    """x86 page tables in the pages after ``kernel``; the lowest maps 2 MiB, from physical address 0 on."""
    base = DIRECT_MAP if levels == 4 else DIRECT_MAP_5
    for level in range(levels - 1, 0, -1):
        table = bytearray(4096)
        place, entry = kernel + levels - level, (kernel + levels - level + 1) << 12 | SECRET | 0x63
        struct.pack_into("<Q", table, 8 * (base >> (12 + 9 * level) & 511), entry if level > 1 else SECRET | 0xE3)
        if level == levels - 1:
            struct.pack_into("<Q", table, 8 * 511, (kernel + 9) << 12 | 0x63)
        memory[place] = bytes(table)


def note(text: bytes) -> bytes:
    """The ELF note with a text."""
    return struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text + bytes(-len(text) % 4)


def info(architecture: str, page_size: int, memory_pages: int, stored: int, pages: int) -> bytes:
    """struct swsusp_info."""
    page = bytearray(page_size)
    if architecture == "x86":
        struct.pack_into("<QQQQQ", page, 0, KERNEL + 0x50, KERNEL_PHYSICAL + 0x50, 0x1000, 0x23456789ABCDEF02, 0xC66E147B)
    elif architecture == "x86 before 5.13":
        struct.pack_into("<QQQQ16s", page, 0, KERNEL + 0x50, KERNEL_PHYSICAL + 0x50, 0x1000, 0x23456789ABCDEF01, bytes(range(16)))
    elif architecture == "arm64":
        page[:12] = b"#1 SMP test\0"
        struct.pack_into("<QQQQ", page, 72, 0x41000000, 0xFFFF800008010000, 0, 0x80000001)
    elif architecture == "riscv":
        page[:12] = b"#1 SMP test\0"
        struct.pack_into("<QQQ", page, 72, 1, 8 << 60 | 0x81234, 0xFFFFFFFF80002000)
    else:
        for index, name in enumerate(("Linux", HOST, RELEASE, "#1 SMP test", "loongarch64", "(none)")):
            page[65 * index : 65 * index + len(name)] = name.encode()
        struct.pack_into("<I", page, 392, 0x060C07)
    struct.pack_into("<Q", page, 400, memory_pages)
    struct.pack_into("<QQQ", page, 416, stored, pages, pages * page_size)
    return bytes(page)


def swap_header(page_size: int, blocks: int, uuid: bytes, label: bytes = b"") -> bytes:
    """The page that mkswap writes for an area of ``blocks`` pages (include/linux/swap.h, union swap_header)."""
    page = bytearray(page_size)
    struct.pack_into("<III16s16s", page, 1024, 1, blocks - 1, 0, uuid, label)
    page[-10:] = b"SWAPSPACE2"
    return bytes(page)


def stream_of(memory: dict[int, bytes], page_size: int = 4096, architecture: str = "x86", zero_flags: bool = True) -> list[bytes]:
    """The pages that /dev/snapshot gives."""
    words, data = [], []
    for pfn in sorted(memory):
        if zero_flags and not any(memory[pfn]):
            words.append(pfn | 1 << 63)
        else:
            words.append(pfn)
            data.append(memory[pfn])
    per_page = page_size // 8
    lists = []
    for at in range(0, len(words), per_page):
        part = words[at : at + per_page]
        if len(part) < per_page:
            part += [0xFFFFFFFFFFFFFFFF] + [0] * (per_page - len(part) - 1)
        lists.append(struct.pack(f"<{per_page}Q", *part))
    first = info(architecture, page_size, max(memory) + 100, len(data), 1 + len(lists) + len(data))
    return [first, *lists, *data]


def kernel_lzo(raw: bytes) -> bytes:
    """What the kernel's LZO makes of it: LZO1X-1 with a dictionary of 15 bits (lib/lzo/lzo1x_compress.c)."""
    out, size = ctypes.create_string_buffer(2 * len(raw) + 128), ctypes.c_size_t(2 * len(raw) + 128)
    work = ctypes.create_string_buffer(8 << 15)
    failed = ctypes.CDLL("liblzo2.so.2").lzo1x_1_15_compress(raw, ctypes.c_size_t(len(raw)), out, ctypes.byref(size), work)
    assert not failed
    return out.raw[: size.value]


def other_lzo(raw: bytes) -> bytes:
    """The same format from another compressor: other bytes, which every decompressor takes."""
    return bytes(LZOCompressor().compress(raw))


def kernel_lz4(raw: bytes) -> bytes:
    return bytes(lz4.block.compress(raw, store_size=False))


COMPRESSORS = {"lzo": kernel_lzo, "lz4": kernel_lz4}


def encode(
    memory: dict[int, bytes],
    page_size: int = 4096,
    architecture: str = "x86",
    compression: str = "none",
    zero_flags: bool = True,
    armed: bool = True,
    resume_offset: int = 0,
    scattered: int = 0,
    extra_empty: bool = True,
    flags: int = 0,
    hw_sig: int = 0,
    compressor: Callable[[bytes], bytes] | None = None,
    threads: int = 0,
) -> Encoded:
    """A swap device with the image of ``memory``. ``scattered`` is the seed of a random order of blocks, 0 for ascending ones;
    ``extra_empty`` writes the last map page that lists nothing, as kernels before 7.3 do. ``threads`` compress in turn, each
    into a buffer of its own with random content, of which the rest stays behind each chunk; with 0 that rest is one byte,
    repeated."""
    pages = stream_of(memory, page_size, architecture, zero_flags)
    crc = 0
    chunks: list[int] = []
    if compression != "none":
        pages, crc, chunks = _compressed(pages, page_size, compressor or COMPRESSORS[compression], threads)
    entries = page_size // 8 - 1
    map_count = len(pages) // entries + 1 if extra_empty else -(-len(pages) // entries)
    blocks = resume_offset + 2 + len(pages) + map_count + 20
    stream, maps = _allocated(len(pages), map_count, entries, _free_blocks(blocks, resume_offset, scattered))
    device = bytearray(blocks * page_size)
    for block, page in zip(stream, pages, strict=True):
        device[block * page_size : (block + 1) * page_size] = page
    for index, block in enumerate(maps):
        listed = stream[index * entries : (index + 1) * entries]
        following = maps[index + 1] if index + 1 < len(maps) else 0
        content = struct.pack(f"<{entries + 1}Q", *listed, *[0] * (entries - len(listed)), following)
        device[block * page_size : (block + 1) * page_size] = content
    header = resume_offset * page_size
    end = header + page_size
    device[header:end] = swap_header(page_size, blocks, UUID, b"NVM_SWAP")
    struct.pack_into("<II", device, end - 40, hw_sig, crc)
    struct.pack_into("<QI", device, end - 32, maps[0], flags | {"none": 2, "lzo": 4, "lz4": 4 | 16}[compression])
    device[end - 20 : end] = b"SWAPSPACE2" + (b"S1SUSPEND\0" if armed else b"SWAPSPACE2")
    return Encoded(device, page_size, memory, header, stream, maps, crc, chunks)


def _compressed(
    pages: list[bytes], page_size: int, compressor: Callable[[bytes], bytes], threads: int
) -> tuple[list[bytes], int, list[int]]:
    """(pages of the compressed stream, crc32 of the data, index of the first page of each chunk)."""
    packed, crc = [pages[0]], 0
    chunks: list[int] = []
    buffers = [bytearray(random.Random(thread).randbytes(40 * page_size)) for thread in range(threads)]
    for at in range(1, len(pages), 32):
        raw = b"".join(pages[at : at + 32])
        crc = zlib.crc32(raw, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
        small = compressor(raw)
        chunk = struct.pack("<Q", len(small)) + small
        size = len(chunk) + -len(chunk) % page_size
        if threads:
            buffer = buffers[len(chunks) % threads]
            buffer[: len(chunk)] = chunk
            chunk = bytes(buffer[:size])
        chunk = chunk.ljust(size, b"\xa5")
        chunks.append(len(packed))
        packed += [chunk[begin : begin + page_size] for begin in range(0, len(chunk), page_size)]
    return packed, crc, chunks


def _free_blocks(blocks: int, header: int, scattered: int) -> Iterator[int]:
    """The blocks that the swap allocator returns, in its order; never that of the header."""
    free = [block for block in range(1, blocks) if block != header]
    if scattered:
        random.Random(scattered).shuffle(free)
        return iter(free)
    return iter(free[3:7] + free[10:])  # not in one run, nor from the first block on


def _allocated(pages: int, map_pages: int, entries: int, free: Iterator[int]) -> tuple[list[int], list[int]]:
    """(block of each page of the stream, block of each map page), allocated as the kernel does: a map page before what it
    lists."""
    maps, stream = [next(free)], []
    for index in range(pages):
        stream.append(next(free))
        if (index + 1) % entries == 0 and len(maps) < map_pages:
            maps.append(next(free))
    return stream, maps


def decode(device: bytes | bytearray, page_size: int = 4096, resume_offset: int = 0) -> list[bytes]:
    """The pages of the stream of an uncompressed image, as the kernel's reader follows them."""
    end = (resume_offset + 1) * page_size
    map_block, flags = struct.unpack_from("<QI", device, end - 32)
    assert flags & 2, "compressed"
    pages: list[bytes] = []
    entries = page_size // 8 - 1
    while map_block:
        *listed, map_block = struct.unpack_from(f"<{entries + 1}Q", device, map_block * page_size)
        for block in listed:
            if not block:
                return pages
            pages.append(bytes(device[block * page_size : (block + 1) * page_size]))
    return pages
