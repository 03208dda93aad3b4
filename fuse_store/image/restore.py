# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a version to a file, a directory of files, standard output or a block device.

A file appears whole or not at all, sparse where the image has zeros. A device that is in use or has content that blkid
recognises is refused; what was written to it is read back and compared. For one thread.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from pathlib import Path

from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError
from fuse_store.image import devices, page_io
from fuse_store.image.kind import row_of
from fuse_store.image.reader import Image
from fuse_store.progress import Progress
from fuse_store.repository.manifest import ImageFile

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
            raise UsageError("--changed-only", "for block devices only; a file is always written whole.", "Omit it.")
        if not path.exists() and _is_device_name(path):
            raise NotFound(f"target {target}", "no such device.", "Check the name, for example with lsblk.")
        if len(image.files) == 1 and image.files[0].name == "image":
            if path.is_dir():
                raise UsageError(f"target {target}", "is a directory.", "Name a file in it.")
            if path.exists() and not path.is_file():
                raise UsageError(f"target {target}", "not a file or block device.")
            return _to_file(image, image.files[0], path, progress)
        return _to_directory(image, path, progress)
    except FileNotFoundError as error:
        raise NotFound(f"target {error.filename or target}", "no such directory.", "Create it first.") from None
    except PermissionError:
        raise Refused(f"target {target}", "permission denied.") from None
    except OSError as error:
        raise StoreError(f"target {target}", f"{error.strerror or error}.", "The old content was kept.") from None


def _is_device_name(path: Path) -> bool:
    """Whether a file there would be one in devtmpfs: in memory, under the name of a device."""
    place = Path(os.path.realpath(path))
    return place.is_relative_to("/dev") and not place.is_relative_to("/dev/shm")


def _to_stream(image: Image, progress: Progress) -> int:
    if len(image.files) != 1:
        raise UsageError("standard output", "cannot take an image of several files.", "Name a directory.")
    progress.start("get", image.size)
    out = sys.stdout.buffer
    for at in range(0, image.size, page_io.COMPARE_WINDOW):
        image.prefetch(at + page_io.COMPARE_WINDOW, page_io.COMPARE_WINDOW)
        data = image.read_view(at, page_io.COMPARE_WINDOW)
        while data:  # a raw stream may take less than it is given
            data = data[out.write(data) :]
        progress.at(min(at + page_io.COMPARE_WINDOW, image.size))
    out.flush()
    progress.finish()
    return image.size


def _to_file(image: Image, file: ImageFile, path: Path, progress: Progress) -> int:
    # Named by the boot: after a power cut its content is not known.
    partial = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}{_mark_of(image)}")
    with open(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b", buffering=0) as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"target {path}", "another process is writing this image there.", "Wait until it has finished.") from None
        resumed = os.fstat(out.fileno()).st_size > 0
        try:
            out.truncate(file.size)
            written = page_io.write(image, file, out.fileno(), progress, compare=resumed, zeros=resumed)
            _take_attributes(out.fileno(), path, image, file)
            os.rename(partial, path)
        except (StoreError, OSError):  # interrupted or killed, it stays, and the next get goes on with it
            partial.unlink(missing_ok=True)
            raise
    return written


def _mark_of(image: Image) -> str:
    return f".{image.id[:12]}.{_BOOT_ID.read_text()[:8]}.partial"


def _take_attributes(descriptor: int, path: Path, image: Image, file: ImageFile) -> None:
    """A file that replaces another gets its mode and owner, and is on the disk before the old one is gone."""
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
        raise Refused(f"target {path}", "not empty, and the image has several files.", "Name a new or empty directory.")
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    marker.touch(0o600)
    written = 0
    for file in image.files:
        if Path(file.name).is_absolute() or ".." in Path(file.name).parts:
            raise Damaged(f"image {image.id}", f"the file name {file.name!r} leads out of the target.", image=image.id)
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
        raise UsageError(f"target {path}", "is a device, and the image has several files.", "Name a directory.")
    if not force:
        devices.check_content(path, ours=changed_only)
    descriptor = devices.open_device(path)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size < image.size:
            raise Refused(f"device {path}", f"too small: {size} bytes for an image of {image.size}.", "Choose a larger device.")
        written = page_io.write(image, image.files[0], descriptor, progress, compare=changed_only, zeros=True)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        page_io.read_back(image, descriptor, path, progress)
    finally:
        os.close(descriptor)
    return written
