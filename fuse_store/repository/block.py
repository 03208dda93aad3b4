# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks: up to 128 KiB of pages, compressed and encrypted together. Used by ``packs`` and ``capture``.

A block is named by the keyed digest of its pages, and everything here is a pure function of the pages, the store's
Aead and its codec, so threads may do it at once: compressing, sealing and digesting release the interpreter's lock.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

import lz4.block
import zstandard

from fuse_store.repository.aead import DIGEST, Aead

SIZE = 128 << 10  # bytes of pages in the blocks that are written
LARGEST = 256 << 10  # in those that are read
MAGIC = b"FSBK"
HEADER = struct.Struct("<4sB3xII16s")  # magic, codec, length encrypted, length of the pages, digest
OVERHEAD = HEADER.size + 2 * DIGEST

_local = threading.local()  # zstandard's objects must not be shared between threads


def _zstd(pages: bytes, level: int) -> bytes:
    if getattr(_local, "level", None) != level:
        _local.level, _local.compressor = level, zstandard.ZstdCompressor(level=level, write_checksum=False)
    return bytes(_local.compressor.compress(pages))


def _unzstd(stored: bytes, length: int) -> bytes:
    if zstandard.frame_content_size(stored) != length:  # what the frame says is what it is given room for
        raise ValueError("its length is not the one it was given")
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return bytes(_local.decompressor.decompress(stored, max_output_size=length))


@dataclass(frozen=True)
class Codec:
    """One way to compress. ``number`` is what a block's header says."""

    number: int
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
_BY_NUMBER = {codec.number: codec for codec in CODECS.values()}


@dataclass(frozen=True)
class Block:
    """A block as it is stored: its name, how many bytes of pages it holds, and the bytes, header included."""

    digest: bytes
    length: int
    stored: bytes


def pack_block(pages: bytes, digest: bytes, aead: Aead, codec: str, level: int) -> Block:
    """The Block of ``pages``, whose digest is ``digest``. Compressed only if that makes it smaller."""
    compressed = CODECS[codec].compress(pages, level)
    number = CODECS[codec].number
    if len(compressed) >= len(pages):
        compressed, number = pages, CODECS["none"].number
    name = _name(number, len(pages), digest)
    one, other = aead.encrypt_parts(name, compressed)
    header = HEADER.pack(MAGIC, number, len(one) + len(other), len(pages), digest)
    return Block(digest, len(pages), b"".join((header, one, other)))


def unpack_block(stored: bytes | memoryview, digest: bytes, aead: Aead) -> bytes:
    """The pages of the block ``digest``. Raises ValueError, which says what is wrong with it."""
    number, encrypted, length, found = parse_header(stored)
    if found != digest:
        raise ValueError("another block stands in its place")
    if len(stored) != HEADER.size + encrypted:
        raise ValueError("its length is wrong")
    compressed = aead.decrypt(_name(number, length, digest), memoryview(stored)[HEADER.size :])
    try:
        pages = _BY_NUMBER[number].decompress(compressed, length)
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError) as error:
        raise ValueError(f"it does not decompress ({error})") from None
    if len(pages) != length:
        raise ValueError("it decompresses to another length")
    return pages


def parse_header(stored: bytes | memoryview) -> tuple[int, int, int, bytes]:
    """(codec, length encrypted, length of the pages, digest) of the block that begins here. Raises ValueError."""
    if len(stored) < HEADER.size:
        raise ValueError("it is cut off")
    magic, number, encrypted, length, digest = HEADER.unpack_from(stored)
    if magic != MAGIC:
        raise ValueError("there is no block where one should be")
    if number not in _BY_NUMBER:
        raise ValueError(f"its codec {number} is unknown")
    if not 0 < length <= LARGEST or encrypted > LARGEST + 2 * DIGEST:
        raise ValueError("its header gives an impossible length")
    return number, encrypted, length, digest


def _name(number: int, length: int, digest: bytes) -> bytes:
    return b"block" + HEADER.pack(MAGIC, number, 0, length, digest)
