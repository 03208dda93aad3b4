# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks: up to 128 KiB of pages, compressed and encrypted together, named by the keyed digest of the pages.

Pure functions of the pages, the store's Aead and its codec; safe in threads, and parallel: compression, encryption and
digests release the interpreter lock.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

import lz4.block
import zstandard

from fuse_store.repository.aead import DIGEST, Aead

BLOCK_SIZE = 128 << 10  # bytes of pages in a block that is written
MAX_BLOCK_SIZE = 256 << 10  # bytes of pages in a block that is read
MAGIC = b"FSBK"
HEADER = struct.Struct("<4sB3xII16s")  # magic, codec, length encrypted, length of the pages, digest
OVERHEAD = HEADER.size + 2 * DIGEST


def split(content: bytes | memoryview, page_size: int) -> list[bytes | memoryview]:
    """The pages that stand one after the other in ``content``; the last may be shorter."""
    return [content[at : at + page_size] for at in range(0, len(content), page_size)]


_local = threading.local()  # zstandard's objects cannot be shared between threads


def _zstd(pages: bytes, level: int) -> bytes:
    if getattr(_local, "level", None) != level:
        _local.level, _local.compressor = level, zstandard.ZstdCompressor(level=level, write_checksum=False)
    return bytes(_local.compressor.compress(pages))


def _unzstd(stored: bytes, length: int) -> bytes:
    if zstandard.frame_content_size(stored) != length:  # the frame decides how much memory is allocated
        raise ValueError("frame has the wrong length")
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return bytes(_local.decompressor.decompress(stored, max_output_size=length))


@dataclass(frozen=True)
class Codec:
    """A compression. ``code`` stands for it in block headers."""

    code: int
    compress: Callable[[bytes, int], bytes]
    decompress: Callable[[bytes, int], bytes]


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
    """A block as stored: its digest, the bytes of pages in it, and the stored bytes, header included."""

    digest: bytes
    length: int
    stored: bytes


def pack_block(pages: bytes, digest: bytes, aead: Aead, codec: str, level: int) -> Block:
    """The Block of ``pages``, whose digest is ``digest``. Compressed only if that makes it smaller."""
    compressed = CODECS[codec].compress(pages, level)
    code = CODECS[codec].code
    if len(compressed) >= len(pages):
        compressed, code = pages, CODECS["none"].code
    parts = aead.encrypt_parts(_name(code, len(pages), digest), compressed)
    header = HEADER.pack(MAGIC, code, sum(map(len, parts)), len(pages), digest)
    return Block(digest, len(pages), b"".join((header, *parts)))


def unpack_block(stored: bytes | memoryview, digest: bytes, aead: Aead) -> bytes:
    """The pages of the block ``digest``. Raises ValueError, which names the damage."""
    code, encrypted, length, actual = parse_header(stored)
    if actual != digest:
        raise ValueError("contains another block")
    if len(stored) != HEADER.size + encrypted:
        raise ValueError("wrong length")
    compressed = aead.decrypt(_name(code, length, digest), memoryview(stored)[HEADER.size :])
    try:
        pages = _BY_CODE[code].decompress(compressed, length)
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError) as error:
        raise ValueError(f"decompression failed ({error})") from None
    if len(pages) != length:
        raise ValueError("decompresses to a wrong length")
    return pages


def parse_header(stored: bytes | memoryview) -> tuple[int, int, int, bytes]:
    """(codec, length encrypted, length of the pages, digest) of the block that begins here. Raises ValueError."""
    if len(stored) < HEADER.size:
        raise ValueError("truncated")
    magic, code, encrypted, length, digest = HEADER.unpack_from(stored)
    if magic != MAGIC:
        raise ValueError("not a block")
    if code not in _BY_CODE:
        raise ValueError(f"unknown codec {code}")
    if not 0 < length <= MAX_BLOCK_SIZE or encrypted > MAX_BLOCK_SIZE + 2 * DIGEST:
        raise ValueError("invalid length in the header")
    return code, encrypted, length, digest


def _name(code: int, length: int, digest: bytes) -> bytes:
    return b"block" + HEADER.pack(MAGIC, code, 0, length, digest)
