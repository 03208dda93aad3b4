# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks: up to 128 KiB of pages, compressed and encrypted together, named by the keyed digest of the pages.

Nothing of a block can be read in a pack, also not where it begins or how long it is: the lengths of compressed blocks would tell which
known file is stored. Pure functions of the pages, the store's Aead and its codec; safe in threads, and parallel: compression,
encryption and digests release the interpreter lock.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lz4.block
import zstandard

from fuse_store.repository.aead import Aead

BLOCK_SIZE = 128 << 10  # bytes of pages in a block that is written
MAX_BLOCK_SIZE = 256 << 10  # bytes of pages in a block that is read
UNIT = 64  # bytes: whatever is in a pack begins at a multiple and fills it, so that no length can be seen
HEADER = struct.Struct("<16sI")  # digest, length of the encrypted body behind it
HEADER_SIZE = UNIT  # bytes of an encrypted header
BODY = struct.Struct("<III")  # codec, length of the pages, length compressed
MAX_ADDED = HEADER_SIZE + 2 * UNIT  # bytes that a block in a pack has more than its pages, at most
MAX_STORED = MAX_BLOCK_SIZE + MAX_ADDED  # bytes of a block in a pack

Pages = bytes | memoryview  # of a block, one after the other


def split(content: Pages, page_size: int) -> list[bytes | memoryview]:
    """The pages that stand one after the other in ``content``, without a copy; the last may be shorter."""
    view = memoryview(content)
    return [view[at : at + page_size] for at in range(0, len(view), page_size)]


_local = threading.local()  # zstandard's objects cannot be shared between threads


def _zstd(pages: Pages, level: int) -> bytes:
    if getattr(_local, "level", None) != level:
        _local.level, _local.compressor = level, zstandard.ZstdCompressor(level=level, write_checksum=False)
    return bytes(_local.compressor.compress(pages))


def _unzstd(stored: memoryview, length: int) -> bytes:
    if zstandard.frame_content_size(stored) != length:  # the frame decides how much memory is allocated
        raise ValueError("frame has the wrong length")
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return bytes(_local.decompressor.decompress(stored, max_output_size=length))


@dataclass(frozen=True)
class Codec:
    """A compression. ``code`` stands for it in blocks."""

    code: int
    compress: Callable[[Pages, int], Pages]
    decompress: Callable[[memoryview, int], Pages]


CODECS = {
    "none": Codec(0, lambda pages, level: pages, lambda stored, length: stored),
    "zstd": Codec(1, _zstd, _unzstd),
    "lz4": Codec(
        2,
        lambda pages, level: lz4.block.compress(pages, store_size=False),
        lambda stored, length: lz4.block.decompress(stored, uncompressed_size=length),
    ),
}
_BY_CODE = {codec.code: codec for codec in CODECS.values()}


@dataclass(frozen=True)
class Block:
    """A block as stored: its digest, the bytes of pages in it, and the stored bytes: header and body."""

    digest: bytes
    length: int
    stored: bytes


def pack_block(pages: bytes, digest: bytes, aead: Aead, codec: str, level: int) -> Block:
    """The Block of ``pages``, whose digest is ``digest``. Compressed only if that makes it smaller."""
    out = memoryview(bytearray(len(pages) + MAX_ADDED))
    return Block(digest, len(pages), bytes(out[: seal_block(pages, digest, aead, codec, level, out)]))


def seal_block(pages: Pages, digest: bytes, aead: Aead, codec: str, level: int, out: memoryview) -> int:
    """Have the block of ``pages`` at the start of ``out``, as it is in a pack: at most MAX_ADDED bytes more than the pages; how many
    bytes. Compressed only if that makes it smaller."""
    compressed: Pages = CODECS[codec].compress(pages, level)
    code = CODECS[codec].code
    if len(compressed) >= len(pages):
        compressed, code = pages, CODECS["none"].code
    content = in_units(aead, BODY.pack(code, len(pages), len(compressed)), compressed)
    length = aead.encrypt_into(b"block" + digest, content, out[HEADER_SIZE:])
    return length + aead.encrypt_into(b"header", in_units(aead, HEADER.pack(digest, length)), out)


def with_header(digest: bytes, length: int, body: Sequence[bytes], aead: Aead) -> Block:
    """The Block with the encrypted ``body``, in parts, and ``length`` bytes of pages."""
    header = encrypt_units(b"header", aead, HEADER.pack(digest, sum(map(len, body))))
    return Block(digest, length, b"".join((*header, *body)))


def encrypt_units(name: bytes, aead: Aead, *content: bytes) -> tuple[bytes, bytes]:
    """``Aead.encrypt_parts`` of ``content``, in parts, and so many zeros that whole units are filled."""
    return aead.encrypt_parts(name, in_units(aead, *content))


def in_units(aead: Aead, *content: bytes | memoryview) -> bytes:
    """``content`` and so many zeros that it fills whole units when it is encrypted."""
    return b"".join((*content, bytes(-(sum(map(len, content)) + aead.overhead) % UNIT)))


def unpack_block(body: bytes | memoryview, digest: bytes, aead: Aead) -> Pages:
    """The pages of the block ``digest``, compared with it. Raises ValueError, which names the damage."""
    return _pages(memoryview(aead.decrypt(b"block" + digest, memoryview(body))), digest, aead)


def open_block(body: memoryview, digest: bytes, aead: Aead) -> Pages:
    """The same, for pages that are used at once: what is not ``bytes`` is valid until this thread opens the next block."""
    return _pages(_decrypted(body, digest, aead), digest, aead)


def _decrypted(body: memoryview, digest: bytes, aead: Aead) -> memoryview:
    """The content of a block, until this thread decrypts the next one. Raises ValueError."""
    if not hasattr(_local, "content"):
        _local.content = memoryview(bytearray(MAX_STORED))
    content: memoryview = _local.content
    return content[: aead.decrypt_into(b"block" + digest, body, content)]


def _pages(content: memoryview, digest: bytes, aead: Aead) -> Pages:
    if len(content) < BODY.size:
        raise ValueError("truncated")
    code, length, compressed = BODY.unpack_from(content)
    if code not in _BY_CODE:
        raise ValueError(f"unknown codec {code}")
    if not 0 < length <= MAX_BLOCK_SIZE or BODY.size + compressed > len(content):
        raise ValueError("invalid length in the block")
    try:
        pages = _BY_CODE[code].decompress(content[BODY.size : BODY.size + compressed], length)
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError) as error:
        raise ValueError(f"decompression failed ({error})") from None
    if len(pages) != length:
        raise ValueError("decompresses to a wrong length")
    if aead.digest(pages) != digest:
        raise ValueError("contains other pages than its digest says")
    return pages


def authenticate(stored: memoryview, digest: bytes, length: int, aead: Aead) -> None:
    """See that a block, as it stands in a pack with its header, is what a writer encrypted as ``digest``, with ``length`` bytes of pages.
    It is not decompressed. Raises ValueError, which names the damage."""
    named, body = parse_header(stored[:HEADER_SIZE], aead)
    if named != digest or body != len(stored) - HEADER_SIZE:
        raise ValueError("its header and the pack table contradict each other")
    content = _decrypted(stored[HEADER_SIZE:], digest, aead)
    if len(content) < BODY.size or BODY.unpack_from(content)[1] != length:
        raise ValueError("it has other pages than the pack table says")


def parse_header(header: bytes | memoryview, aead: Aead) -> tuple[bytes, int]:
    """(digest, length of the body behind it) of the block whose encrypted header this is. Raises ValueError."""
    digest, length = HEADER.unpack_from(aead.decrypt(b"header", header))
    if not 0 < length <= MAX_STORED - HEADER_SIZE:
        raise ValueError("invalid length in the header")
    return digest, length
