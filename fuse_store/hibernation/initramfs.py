# SPDX-License-Identifier: GPL-3.0-or-later
"""Which modules an initramfs has. Used by ``preflight``.

An initramfs is one or more cpio archives after each other, the last of them compressed (Documentation/driver-api/
early-userspace/buffer-format.rst). It is read as a stream; nothing of it is kept but names.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import lz4.frame
import zstandard

MAGIC = (b"070701", b"070702")
HEADER = 110
LONGEST_NAME = 4096
MOST_FILES = 1 << 17

OPENERS: dict[bytes, Callable[[Any], Any]] = {  # each gives a file to read from
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\0": lzma.open,
    b"\x5d\0\0": lzma.open,
    b"BZh": bz2.open,
    b"\x28\xb5\x2f\xfd": lambda file: zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file, read_across_frames=True),
    b"\x04\x22\x4d\x18": lz4.frame.open,
}


def modules_in(path: Path) -> set[str] | None:
    """The names of its modules, with _ for -; None if it can't be read: of a compressor that is not known here, say."""
    try:
        with open(path, "rb", buffering=1 << 20) as file:
            return _modules(file)
    except (OSError, ValueError, EOFError, RuntimeError, lzma.LZMAError, zstandard.ZstdError):
        return None


def _modules(file: Any) -> set[str] | None:
    found: set[str] = set()
    while True:
        start = file.peek(6)[:6]
        if not start:
            return found
        if start[:1] == b"\0":  # archives are padded
            file.read(1 if file.peek(4)[:4].strip(b"\0") else 4)
        elif start in MAGIC:
            _archive(file, found)
        else:
            for magic, opener in OPENERS.items():
                if start.startswith(magic):
                    with opener(file) as content:
                        _archive(content, found)
                    return found
            return None


def _archive(file: IO[bytes], found: set[str]) -> None:
    """Go through one cpio archive, to its end."""
    for _number in range(MOST_FILES):
        header = _exactly(file, HEADER)
        if header[:6] not in MAGIC:
            raise ValueError("it is no cpio archive")
        size, length = int(header[54:62], 16), int(header[94:102], 16)
        if length > LONGEST_NAME:
            raise ValueError("a name is too long")
        name = _exactly(file, length + -(HEADER + length) % 4).split(b"\0")[0].decode("utf-8", "replace")
        if name == "TRAILER!!!":
            return
        base, ko, _rest = name.rpartition("/")[2].partition(".ko")
        if ko:
            found.add(base.replace("-", "_"))
        left = size + -size % 4
        while left:
            left -= len(_exactly(file, min(left, 1 << 20)))
    raise ValueError("it has too many files")


def _exactly(file: IO[bytes], length: int) -> bytes:
    content = b""
    while len(content) < length:
        part = file.read(length - len(content))
        if not part:
            raise ValueError("it is cut off")
        content += part
    return content
