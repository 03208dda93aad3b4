# SPDX-License-Identifier: GPL-3.0-or-later
"""Where images go: a file, a directory of files, standard output, a block device. Used by ``cli`` and ``device``.

A file appears whole or not at all, sparse where the image has zeros. A device that is in use or holds something that can
be recognised is refused; what was written to it is read back and compared. Pages are gathered block by block, in the order
of the packs, and written in the order of the image, a large part of it at once. What stands there already, because a ``get`` was
interrupted or an older version is on the device, is recognised by its page digests without opening a block.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fuse_store.columns import I64, runs
from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError
from fuse_store.image.kind import row_of
from fuse_store.image.reader import Image
from fuse_store.image.segments import Place
from fuse_store.progress import Progress
from fuse_store.repository.manifest import ImageFile

WINDOW = 8 << 20  # bytes that are read and compared at once
GATHERED = 48 << 20  # bytes of pages that are gathered before they are written; twice that is in memory
ZEROS = bytes(WINDOW)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def get(image: Image, target: str, progress: Progress, *, changed_only: bool = False, force: bool = False) -> int:
    """Write the image to ``target``; returns how many bytes were written. Raises StoreError."""
    try:
        if target == "-":
            return _to_stream(image, progress)
        path = Path(target)
        if path.exists() and stat.S_ISBLK(path.stat().st_mode):
            return to_device(image, path, progress, changed_only=changed_only, force=force)
        if changed_only:
            raise UsageError("--changed-only", "it is for block devices; a file is written whole, and then replaces the old one.")
        if len(image.files) == 1 and image.files[0].name == "image":
            if path.is_dir():
                raise UsageError(f"target {target}", "it is a directory, and the image is one file.", "Name a file in it.")
            if path.exists() and not path.is_file():
                raise UsageError(f"target {target}", "it is neither a file nor a block device.")
            return _to_file(image, image.files[0], path, progress)
        return _to_directory(image, path, progress)
    except FileNotFoundError as error:
        raise NotFound(f"target {error.filename or target}", "its folder does not exist.") from None
    except PermissionError:
        raise Refused(f"target {target}", "this user may not write it.") from None
    except OSError as error:
        raise StoreError(f"target {target}", f"{error.strerror or error}.", "Nothing that was there is lost.") from None


def _to_stream(image: Image, progress: Progress) -> int:
    progress.start("get", image.size)
    out = sys.stdout.buffer
    for at in range(0, image.size, WINDOW):
        image.prefetch(at + WINDOW, WINDOW)
        data = image.read_view(at, WINDOW)
        while data:  # a raw stream may take less than it is given
            data = data[out.write(data) :]
        progress.at(min(at + WINDOW, image.size))
    out.flush()
    progress.finish()
    return image.size


def _to_file(image: Image, file: ImageFile, path: Path, progress: Progress) -> int:
    # Of another boot: after a power cut nobody knows what is in it.
    partial = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}{_mark_of(image)}")
    with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b", buffering=0) as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"target {path}", "another process is getting this image to there.", "Wait until it is done.") from None
        resumed = os.fstat(out.fileno()).st_size > 0
        try:
            out.truncate(file.size)
            written = write(image, file, out.fileno(), progress, compare=resumed, zeros=resumed)
            _take_attributes(out.fileno(), path, image, file)
            os.rename(partial, path)
        except (StoreError, OSError):  # interrupted or killed, it stays, and the next get goes on with it
            partial.unlink(missing_ok=True)
            raise
    return written


def _mark_of(image: Image) -> str:
    return f".{image.id[:12]}.{_BOOT_ID.read_text()[:8]}.partial"


def _take_attributes(descriptor: int, path: Path, image: Image, file: ImageFile) -> None:
    """What replaces a file is open to those the file was open to, and on the disk before the file goes."""
    if path.exists():
        status = path.stat()
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
        os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fsync(descriptor)
    else:
        private = row_of(image.summary.kind).private
        os.fchmod(descriptor, file.mode & (0o700 if private else 0o777))


def _to_directory(image: Image, path: Path, progress: Progress) -> int:
    marker = path / _mark_of(image)  # there until all files are: then an interrupted get may go on
    if path.exists() and any(path.iterdir()) and not marker.exists():
        raise Refused(f"target {path}", "it is not empty, and the image has several files.", "Name a directory that does not exist.")
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    marker.touch(0o600)
    written = 0
    for file in image.files:
        if Path(file.name).is_absolute() or ".." in Path(file.name).parts:
            raise Damaged(f"image {image.id}", f"the file name {file.name!r} leads out of it.", image=image.id)
        place = path / file.name
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if place.exists() and (place.stat().st_size, place.stat().st_mtime_ns) == (file.size, file.mtime):
            continue  # an earlier get came as far as this
        written += _to_file(image, file, place, progress)
        os.utime(place, ns=(file.mtime, file.mtime))
    marker.unlink()
    return written


def to_device(image: Image, path: Path, progress: Progress, *, changed_only: bool, force: bool) -> int:
    """Write the image onto a block device, from its start; returns how many bytes were written. Raises StoreError."""
    if len(image.files) != 1:
        raise UsageError(f"target {path}", "it is a device, and the image has several files.")
    if not force:
        refuse_precious(path, ours=changed_only)
    descriptor = open_device(path)
    try:
        room = os.lseek(descriptor, 0, os.SEEK_END)
        if room < image.size:
            raise Refused(f"device {path}", f"it has {room} bytes, and the image {image.size}.", "Choose a larger one.")
        written = write(image, image.files[0], descriptor, progress, compare=changed_only, zeros=True)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        read_back(image, descriptor, path, progress)
    finally:
        os.close(descriptor)
    return written


def open_device(path: Path) -> int:
    """A descriptor of a block device that nobody else uses. Raises Refused."""
    try:
        # O_EXCL: fails with EBUSY while it is mounted, swap, or part of something (blkdev_open).
        return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        remedy = "Unmount it, or take it out of use, first." if error.errno == errno.EBUSY else ""
        raise Refused(f"device {path}", f"it can't be opened for itself alone: {error.strerror}.", remedy) from None


def read_back(image: Image, descriptor: int, path: Path, progress: Progress) -> None:
    """Compare what stands on a device with the image. Raises Damaged, which says where they differ."""
    progress.start("compare", image.size)
    for at, stale, holes in differing(image, image.files[0], descriptor):
        if stale or holes:
            where = int(stale[0].page[0]) * image.head.page_size if stale else holes[0][0]
            raise Damaged(f"device {path}", f"what was written at {where:#x} reads back otherwise.", "Do not use it.")
        progress.at(at)
    progress.finish()


def refuse_precious(path: Path, ours: bool) -> None:
    """Refuse a device that something recognisable is on. With --changed-only an older version may stand there."""
    kind = recognised(path)
    if kind and not ours:
        raise Refused(f"device {path}", f"it holds {kind}.", "Say --force if that may be lost.")


def recognised(path: Path) -> str:
    """What blkid finds on a device or in a file: ext4, swap, gpt …; empty if nothing. Raises Refused without blkid."""
    try:
        found = subprocess.run(
            ["blkid", "-p", "-o", "export", str(path)], capture_output=True, encoding="utf-8", errors="surrogateescape", check=False,
            env={**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
        )  # fmt: skip
    except FileNotFoundError:
        raise Refused(f"device {path}", "blkid is not here to tell what is on it.", "Install util-linux, or say --force.") from None
    fields = dict(line.split("=", 1) for line in found.stdout.splitlines() if "=" in line)
    contradicting = found.returncode == 8
    return fields.get("TYPE") or fields.get("PTTYPE") or ("more than one thing" if contradicting else "")


# pages -----------------------------------------------------------------------------------------------------------------


def write(image: Image, file: ImageFile, descriptor: int, progress: Progress, *, compare: bool, zeros: bool) -> int:
    """Write a file of the image at the start of ``descriptor``. ``compare``: leave what is right already. ``zeros``: something
    else may stand where the image has zeros. Returns how many bytes were written."""
    written = 0
    progress.start("get", file.size)
    parts = differing(image, file, descriptor) if compare else _everything(image, file, zeros)
    try:
        for at, places, holes in parts:
            for start, end in holes:
                for begin in range(start, end, WINDOW):
                    write_at(descriptor, memoryview(ZEROS)[: min(WINDOW, end - begin)], begin)
                written += end - start
            for place in places:
                for wrote in scatter(image, file, place, descriptor):
                    written += wrote
                    if not compare:
                        progress.at(min(written, at))
            progress.at(at)
    finally:
        progress.finish()
    return written


Part = tuple[int, list[Place], list[tuple[int, int]]]


def _everything(image: Image, file: ImageFile, zeros: bool) -> Iterator[Part]:
    """(end, its pages, where it has zeros) of each segment of a file."""
    size = image.head.page_size
    first = done = file.offset // size
    last = -(-(file.offset + file.size) // size)
    for place in image.places(first, last):
        end = int(place.page[-1]) + 1
        yield min((end - first) * size, file.size), [place], _gaps(place.page, done, end, first, size, file.size) if zeros else []
        done = end
    if zeros and done < last:
        yield file.size, [], [((done - first) * size, file.size)]


def differing(image: Image, file: ImageFile, descriptor: int) -> Iterator[Part]:
    """The same, of what stands otherwise in ``descriptor``; in windows."""
    size, seed, digest = image.head.page_size, image.page_seed, xxhash.xxh3_128_digest
    first = file.offset // size
    last = -(-(file.offset + file.size) // size)
    step = WINDOW // size
    for low, there, got in _windows(descriptor, first, last, step, size, file.size):
        high = min(low + step, last)
        start = (low - first) * size
        length = min((high - low) * size, file.size - start)
        content = np.frombuffer(there, np.uint8).reshape(-1, size)
        filled = np.zeros(len(content), bool) if not got else np.bitwise_or.reduce(content.view(np.uint64), axis=1) != 0
        stale = []
        for place in image.places(low, high):
            rows = place.page - low
            filled[rows] = False
            wanted = image.page_digests(place)
            have = np.frombuffer(b"".join([digest(content[row], seed) for row in rows.tolist()]), "<u8").reshape(-1, 2)
            same = (have == wanted).all(axis=1)
            if not same.all():
                stale.append(place.select(~same))
        holes = [
            (start + begin * size, min(start + end * size, file.size)) for begin, end in runs(np.flatnonzero(filled))
        ]
        yield start + length, stale, holes


def _windows(descriptor: int, first: int, last: int, step: int, size: int, most: int) -> Iterator[tuple[int, memoryview, int]]:
    """(first page, content, bytes that were read) of windows of ``step`` pages, valid until the next one; the rest is zeros,
    as it is behind ``most`` bytes. The next is read while this one is compared. Two buffers serve for all: a fresh one each
    time costs as much as the reading."""
    buffers = deque(memoryview(mmap.mmap(-1, WINDOW)) for _buffer in range(2))  # as aligned as O_DIRECT wants it

    def read(low: int) -> tuple[int, memoryview, int]:
        buffer = buffers[0]
        buffers.rotate()
        start = (low - first) * size
        there = buffer[: (min(low + step, last) - low) * size]
        got = min(_read_into(descriptor, start, there), most - start)
        if not got:
            return low, memoryview(ZEROS)[: len(there)], 0
        there[got:] = ZEROS[: len(there) - got]
        return low, there, got

    with ThreadPoolExecutor(1, "read") as pool:
        ahead = pool.submit(read, first) if first < last else None
        for low in range(first, last, step):
            assert ahead is not None
            window = ahead.result()
            if low + step < last:
                ahead = pool.submit(read, low + step)
            yield window


def _gaps(page: I64, low: int, high: int, first: int, size: int, most: int) -> list[tuple[int, int]]:
    """(start, end) in bytes of what ``page`` leaves out of low..high."""
    edges = np.concatenate(([low - 1], page, [high]))
    breaks = np.flatnonzero(np.diff(edges) > 1)
    begin, end = (edges[breaks] + 1 - first) * size, np.minimum((edges[breaks + 1] - first) * size, most)
    return list(zip(begin.tolist(), end.tolist(), strict=True))


def scatter(image: Image, file: ImageFile, place: Place, descriptor: int) -> Iterator[int]:
    """Write pages where they belong, GATHERED bytes of them at once, while the next are gathered; the bytes written each
    time."""
    size = image.head.page_size
    step = GATHERED // size
    buffers = deque(np.empty((min(step, len(place.page)), size), np.uint8) for _buffer in range(2))
    with ThreadPoolExecutor(1, "write") as pool:
        writing: Future[int] | None = None
        for start in range(0, len(place.page), step):
            part = place.select(np.arange(start, min(start + step, len(place.page))))
            image.read_places(part, buffers[0], np.arange(len(part.page)), threads=True)
            if writing is not None:
                yield writing.result()
            writing = pool.submit(_write_rows, file, part.page, buffers[0], descriptor)
            buffers.rotate()
        if writing is not None:
            yield writing.result()


def _write_rows(file: ImageFile, page: I64, rows: NDArray[np.uint8], descriptor: int) -> int:
    """Write pages, which are the first rows of a buffer, where they belong in a file; how many bytes."""
    size = rows.shape[1]
    written = at = 0
    for first, end in runs(page):
        offset = first * size - file.offset
        length = min((end - first) * size, file.size - offset)
        write_at(descriptor, rows[at : at + end - first].reshape(-1).data[:length], offset)
        at, written = at + end - first, written + length
    return written


def read_at(descriptor: int, at: int, length: int) -> bytes:
    parts = []
    while length and (part := os.pread(descriptor, length, at)):
        parts.append(part)
        at, length = at + len(part), length - len(part)
    return b"".join(parts)


def _read_into(descriptor: int, at: int, buffer: memoryview) -> int:
    """Fill the buffer; how many bytes there were, without zeros that are only a hole in a file."""
    try:
        if os.lseek(descriptor, at, os.SEEK_DATA) >= at + len(buffer):
            return 0
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data any more
            return 0
    got = 0
    while got < len(buffer) and (number := os.preadv(descriptor, [buffer[got:]], at + got)):
        got += number
        if got % 512:
            break  # the end of a file
    return got


def write_at(descriptor: int, data: memoryview, at: int) -> None:
    while len(data):
        number = os.pwrite(descriptor, data, at)
        data, at = data[number:], at + number
