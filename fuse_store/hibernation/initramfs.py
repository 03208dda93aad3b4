# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists the kernel modules in an initramfs.

An initramfs is a sequence of cpio archives, of which the last may be compressed (Documentation/driver-api/early-userspace/
buffer-format.rst). It is read as a stream; only names are kept. Files are untrusted: every size is checked before memory is
allocated for it, and what is read and kept in total is bounded. Safe from any thread.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import lz4.frame
import zstandard

CPIO_MAGIC = (b"070701", b"070702")
CPIO_HEADER = re.compile(rb"(?:070701|070702)[0-9A-Fa-f]{104}")
CPIO_HEADER_SIZE = 110  # bytes
MAX_PATH = 4096  # bytes of a file's path, with its NUL (PATH_MAX)
MAX_NAME = 255  # bytes of a file's name that is kept (NAME_MAX)
MAX_FILES = 1 << 17  # in all archives together
MAX_UNPACKED = 4 << 30  # bytes in all archives together
MAX_DICTIONARY = 1 << 27  # bytes of memory for decompression
READ_SIZE = 1 << 20  # bytes that are read at once


def modules_in(path: Path) -> set[str] | None:
    """The names of the modules, with ``_`` for ``-``; None if the file cannot be read or its compression is not supported."""
    try:
        with open(path, "rb", buffering=READ_SIZE) as file:
            return _Modules().of(file)
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, lzma.LZMAError, zstandard.ZstdError):
        return None


class _Modules:
    """Reads the archives of one initramfs, within the bounds for all of them together."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.files_left = MAX_FILES
        self.bytes_left = MAX_UNPACKED

    def of(self, file: IO[bytes]) -> set[str] | None:
        """``file`` is seekable."""
        while start := file.read(6):
            if start.startswith(b"\0"):
                file.seek(-len(start), os.SEEK_CUR)
                self._skip_padding(file)
            elif start in CPIO_MAGIC:
                file.seek(-len(start), os.SEEK_CUR)
                self._read_archive(file)
            else:
                file.seek(-len(start), os.SEEK_CUR)
                opener = next((opener for magic, opener in DECOMPRESSORS.items() if start.startswith(magic)), None)
                if opener is None:
                    return None
                with opener(file) as content:
                    self._read_archive(content)
                return self.names
        return self.names

    def _skip_padding(self, file: IO[bytes]) -> None:
        """Skip the zeros between two archives."""
        while block := file.read(READ_SIZE):
            self._count(len(block))
            rest = block.lstrip(b"\0")
            if rest:
                file.seek(-len(rest), os.SEEK_CUR)
                return

    def _read_archive(self, file: IO[bytes]) -> None:
        """Read one cpio archive to its end. Raises ValueError."""
        while self.files_left:
            self.files_left -= 1
            header = self._read(file, CPIO_HEADER_SIZE)
            if not CPIO_HEADER.fullmatch(header):
                raise ValueError("not a cpio archive")
            size, path_size = int(header[54:62], 16), int(header[94:102], 16)
            if path_size > MAX_PATH:
                raise ValueError("path too long")
            path = self._read(file, path_size + -(CPIO_HEADER_SIZE + path_size) % 4).split(b"\0")[0]
            if path == b"TRAILER!!!":
                return
            self._keep(path)
            left = size + -size % 4
            while left:
                left -= len(self._read(file, min(left, READ_SIZE)))
        raise ValueError("too many files")

    def _keep(self, path: bytes) -> None:
        name, extension, _compression = path.rpartition(b"/")[2].partition(b".ko")
        if extension and len(name) <= MAX_NAME:
            self.names.add(name.decode("utf-8", "replace").replace("-", "_"))

    def _read(self, file: IO[bytes], length: int) -> bytes:
        """Exactly ``length`` bytes. Raises ValueError."""
        self._count(length)
        content = b""
        while len(content) < length:
            part = file.read(length - len(content))
            if not part:
                raise ValueError("cut off")
            content += part
        return content

    def _count(self, length: int) -> None:
        self.bytes_left -= length
        if self.bytes_left < 0:
            raise ValueError("too large")


class _XzReader(io.RawIOBase):
    """A stream of xz or lzma, within a bound of memory, which ``lzma.open`` does not have."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._decompressor = lzma.LZMADecompressor(memlimit=MAX_DICTIONARY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decompressor.eof:
            compressed = self._file.read(io.DEFAULT_BUFFER_SIZE) if self._decompressor.needs_input else b""
            if not compressed and self._decompressor.needs_input:
                break
            content = self._decompressor.decompress(compressed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)
        return 0


def _open_xz(file: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_XzReader(file))


def _open_zstd(file: IO[bytes]) -> Any:
    return zstandard.ZstdDecompressor(max_window_size=MAX_DICTIONARY).stream_reader(file, read_across_frames=True)


DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {  # magic → opens a file to read from
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\0": _open_xz,
    b"\x5d\0\0": _open_xz,
    b"BZh": bz2.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
    b"\x04\x22\x4d\x18": lz4.frame.open,
}
