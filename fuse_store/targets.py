# SPDX-License-Identifier: GPL-3.0-or-later
"""Where images go: a file, a directory of files, standard output, a block device. Used by ``cli``.

A file appears whole or not at all, sparse where the image has zeros. A device that is in use or holds something that can
be recognised is refused; what was written to it is read back and compared.
"""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path

from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError
from fuse_store.image import Image
from fuse_store.manifest import ImageFile
from fuse_store.progress import Progress

WINDOW = 8 << 20  # bytes that are read and written at once


def get(image: Image, target: str, progress: Progress, *, changed_only: bool = False, force: bool = False) -> int:
    """Write the image to ``target``; returns how many bytes were written. Raises StoreError."""
    try:
        if target == "-":
            return _to_stream(image, progress)
        path = Path(target)
        if path.exists() and stat.S_ISBLK(path.stat().st_mode):
            return _to_device(image, path, progress, changed_only, force)
        if changed_only:
            raise UsageError("--changed-only", "it is for block devices; a file is written whole, and then replaces the old one.")
        if len(image.files) == 1 and image.files[0].name == "image":
            if path.is_dir():
                raise UsageError(f"target {target}", "it is a directory.", "Name a file in it.")
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
    for at in range(0, image.size, WINDOW):
        image.prefetch(at + WINDOW, WINDOW)
        sys.stdout.buffer.write(image.read(at, WINDOW))
        progress.at(min(at + WINDOW, image.size))
    sys.stdout.buffer.flush()
    progress.finish()
    return image.size


def _to_file(image: Image, file: ImageFile, path: Path, progress: Progress) -> int:
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
    written = 0
    progress.start("get", file.size)
    try:
        with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.truncate(file.size)
            for at in range(0, file.size, WINDOW):
                end = min(at + WINDOW, file.size)
                image.prefetch(file.offset + end, min(WINDOW, file.size - end))
                data = memoryview(image.read(file.offset + at, end - at))
                for start, length in image.data_ranges(file.offset + at, file.offset + end):
                    start -= file.offset
                    _write_at(out.fileno(), data[start - at : start - at + length], start)
                    written += length
                progress.at(end)
            os.fsync(out.fileno())
            if path.exists():  # what replaces a file is open to those the file was open to
                status = path.stat()
                os.fchmod(out.fileno(), stat.S_IMODE(status.st_mode))
                os.fchown(out.fileno(), status.st_uid, status.st_gid)
            else:
                os.fchmod(out.fileno(), file.mode & 0o700 if image.summary.kind in ("hibernation", "memory") else file.mode & 0o777)
        os.rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        progress.finish()
    return written


def _to_directory(image: Image, path: Path, progress: Progress) -> int:
    if path.exists():
        raise Refused(f"target {path}", "it exists, and the image has several files.", "Name a directory that does not exist.")
    written = 0
    for file in image.files:
        parts = Path(file.name).parts
        if Path(file.name).is_absolute() or ".." in parts:
            raise Damaged(f"image {image.id}", f"the file name {file.name!r} leads out of it.", image=image.id)
        place = path / file.name
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        written += _to_file(image, file, place, progress)
        os.utime(place, ns=(file.mtime, file.mtime))
    return written


def _to_device(image: Image, path: Path, progress: Progress, changed_only: bool, force: bool) -> int:
    if len(image.files) != 1:
        raise UsageError(f"target {path}", "it is a device, and the image has several files.")
    if not force:
        _refuse_precious(path, ours=changed_only)
    try:
        # O_EXCL: fails with EBUSY while it is mounted, swap, or part of something (blkdev_open).
        descriptor = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"device {path}", f"it can't be opened for itself alone: {error.strerror}.", "Unmount it first.") from None
    written = 0
    progress.start("get", 2 * image.size)
    try:
        room = os.lseek(descriptor, 0, os.SEEK_END)
        if room < image.size:
            raise Refused(f"device {path}", f"it has {room} bytes, and the image {image.size}.", "Choose a larger one.")
        for at in range(0, image.size, WINDOW):
            image.prefetch(at + WINDOW, WINDOW)
            data = image.read(at, min(WINDOW, image.size - at))
            if changed_only:
                old = os.pread(descriptor, len(data), at)
                step = image.head.page_size
                for start in range(0, len(data), step):
                    if data[start : start + step] != old[start : start + step]:
                        _write_at(descriptor, memoryview(data)[start : start + step], at + start)
                        written += min(step, len(data) - start)
            else:  # zeros as well: what stood there before must not show through
                _write_at(descriptor, memoryview(data), at)
                written += len(data)
            progress.at(at + len(data))
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for at in range(0, image.size, WINDOW):
            data = image.read(at, min(WINDOW, image.size - at))
            if os.pread(descriptor, len(data), at) != data:
                raise Damaged(f"device {path}", f"what was written at {at:#x} reads back otherwise.", "Do not use it.")
            progress.at(image.size + at + len(data))
    finally:
        os.close(descriptor)
        progress.finish()
    return written


def _refuse_precious(path: Path, ours: bool) -> None:
    """Refuse a device that something recognisable is on. With --changed-only an older version may stand there."""
    try:
        found = subprocess.run(
            ["blkid", "-p", "-o", "export", str(path)], capture_output=True, text=True, check=False,
            env={**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
        )  # fmt: skip
    except FileNotFoundError:
        raise Refused(f"device {path}", "blkid is not here to tell what is on it.", "Install util-linux, or say --force.") from None
    fields = dict(line.split("=", 1) for line in found.stdout.splitlines() if "=" in line)
    kind = fields.get("TYPE") or fields.get("PTTYPE")
    if kind and not ours:
        raise Refused(f"device {path}", f"it holds {kind}.", "Say --force if that may be lost.")


def _write_at(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        number = os.pwrite(descriptor, data, at)
        data, at = data[number:], at + number
