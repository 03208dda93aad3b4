# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a version to a file, a directory, standard output or a block device.

A file appears whole or not at all, sparse where the image has zeros. A file or device that is in use is refused, and so is a device
with content that blkid recognises; what was written to it is read back and compared. For one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import sys
from pathlib import Path

from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError, failed
from fuse_store.image import devices, page_io
from fuse_store.image.kind import row_of
from fuse_store.image.reader import Image
from fuse_store.image.targets import entries, usage
from fuse_store.image.targets.directory import NEW_MODE, Directory, find, system_directory
from fuse_store.image.targets.partial import Partial, begun_in, is_own, open_partial, replacement
from fuse_store.paths import checked_path
from fuse_store.progress import Progress
from fuse_store.repository.manifest import ImageFile

RESTORE_MANIFEST = "Restore the manifest from a copy of the store."


def get(image: Image, target: str, progress: Progress, *, changed_only: bool = False, force: bool = False) -> int:
    """Write the image to ``target``; returns how many bytes were written. Raises StoreError; KeyboardInterrupt, with a note on
    what is left."""
    if target == "-":
        try:
            return _to_stream(image, progress)
        except OSError as error:
            raise failed("standard output", error) from None
    checked_path("target", target)
    several = image.head.is_directory or image.files[0].name != "image"
    system = system_directory(target)
    try:
        if several and not system:
            Path(target).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with find(target) as (directory, name):
            path, status = directory.path / name, directory.status(name)
            kind = stat.S_IFMT(status.st_mode) if status else 0
            if kind == stat.S_IFBLK:
                return to_device(image, path, progress, directory=directory.descriptor, changed_only=changed_only, force=force)
            if changed_only:
                raise UsageError("--changed-only", "for block devices only; a file is always written whole.", "Omit it.")
            if system == "/dev" and kind in (0, stat.S_IFREG):
                raise _no_such_device(target)
            if system:
                raise UsageError(f"target {target}", f"in {system}, which is not for files.", "Name a place elsewhere, or a block device.")
            if several:
                return _to_directory(image, directory, name, progress)
            if kind == stat.S_IFDIR:
                raise UsageError(f"target {target}", "is a directory.", "Name a file in it.")
            if target.endswith("/"):
                raise NotFound(f"target {target}", "no such directory.", "Create it, and name a file in it.")
            if kind not in (0, stat.S_IFREG):
                raise UsageError(f"target {target}", "not a file or block device.", "Name one of these, or - for standard output.")
            return _to_file(image, image.files[0], directory, name, status, progress)
    except FileNotFoundError as error:
        if system == "/dev":
            raise _no_such_device(target) from None
        raise NotFound(f"target {error.filename or target}", "no such directory.", "Create it first.") from None
    except PermissionError:
        raise StoreError(f"target {target}", "permission denied.", "Run the command as root, or as the owner.") from None
    except OSError as error:
        raise failed(f"target {target}", error, "Nothing was replaced.") from None


def _no_such_device(target: str) -> NotFound:
    return NotFound(f"target {target}", "no such device.", "Check the name, for example with lsblk.")


def _to_stream(image: Image, progress: Progress) -> int:
    if image.head.is_directory:
        raise UsageError("standard output", "cannot take the image of a directory.", "Name a directory.")
    progress.start("get", image.size)
    out = sys.stdout.buffer
    at = 0
    for data in page_io.in_order(image):
        at += len(data)
        while data:  # a raw stream may take less than it is given
            data = data[out.write(data) :]
        progress.at(at)
    out.flush()
    progress.finish()
    return image.size


def _to_file(image: Image, file: ImageFile, directory: Directory, name: str, old: os.stat_result | None, progress: Progress) -> int:
    """A file that may replace another, with the status ``old``, whose mode and owner it then gets if the directory is trusted."""
    _check_old(directory, name, old)
    with replacement(directory, name, image.id) as partial:
        written = _fill(image, file, partial, progress)
        if old is not None:
            os.fsync(partial.descriptor)  # in a file that no one else may open, which is left if the process is killed here
        if old is None or (row_of(image.summary.kind).private and not directory.is_trusted):  # the old one may have been planted
            os.fchmod(partial.descriptor, file.mode & _allowed(image))
        else:
            os.fchown(partial.descriptor, old.st_uid, old.st_gid)
            os.fchmod(partial.descriptor, old.st_mode & 0o777)
        if old is not None:  # it is on the disk before the old one is gone
            os.fsync(partial.descriptor)
            _check_old(directory, name, old)
        partial.take_name(name)
        if old is not None:
            os.fsync(directory.descriptor)
    return written


def _check_old(directory: Directory, name: str, old: os.stat_result | None) -> None:
    """Raises Refused if a program would go on with the file that is replaced."""
    if old is None:
        return
    try:
        descriptor = directory.open(name, os.O_RDONLY)
    except OSError:  # gone, or not for this user's eyes
        return
    try:
        usage.check_replaceable(descriptor, directory.path / name)
    finally:
        os.close(descriptor)


def _fill(image: Image, file: ImageFile, partial: Partial, progress: Progress) -> int:
    os.truncate(partial.descriptor, file.size)
    return page_io.write(image, file, partial.descriptor, progress, compare=partial.resumed, zeros=partial.resumed)


def _allowed(image: Image) -> int:
    """The permissions that a new file or directory may have, of those that it had: as far as the umask lets others have it; an image of
    memory is for its owner alone."""
    return (0o700 if row_of(image.summary.kind).private else 0o777) & ~_umask()


def _umask() -> int:
    """Of this process. umask(2) tells it only while it sets another one, which other threads would see."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077


def _to_directory(image: Image, parent: Directory, name: str, progress: Progress) -> int:
    for file in image.files:
        if {"", ".", ".."} & set(file.name.split("/")) or "\0" in file.name:
            raise Damaged(f"image {image.id}", f"the file name {file.name!r} leads out of the target.", RESTORE_MANIFEST, image=image.id)
    before = parent.status(name)
    with parent.below((name,)) as root:
        _check_empty(root, image.id)
        return _into(image, root, before, progress)


def _check_empty(root: Directory, image_id: str) -> None:
    """Raises Refused for a directory that is not empty, unless a get of this version began to write it; nothing in it is changed."""
    begun = begun_in(root, image_id)
    if root.names and begun is None:
        cause = "has a part of another version, whose get was interrupted, or the machine has booted since."
        raise Refused(f"target {root.path}", cause, "Remove it, or name a new or empty directory.")
    if root.names and not begun:
        raise _not_empty(root)


def _not_empty(root: Directory) -> Refused:
    return Refused(f"target {root.path}", "not empty, and the image is that of a directory.", "Name a new or empty directory.")


def _into(image: Image, root: Directory, before: os.stat_result | None, progress: Progress) -> int:
    with open_partial(root, "", image.id) as marker:  # there until everything is
        if not marker.resumed and set(root.names) - {marker.name}:
            marker.remove()
            raise _not_empty(root)
        written, allowed = 0, _allowed(image)
        entries.make_directories(root, image.head.directories)
        for directories, files in itertools.groupby(image.files, lambda file: tuple(file.name.split("/")[:-1])):
            with root.below(directories) as directory:
                for file in files:
                    written += _to_file_below(image, file, directory, file.name.split("/")[-1], allowed, marker.resumed, progress)
        entries.make_links(root, image.head.links)
        entries.finish_directories(root, image.head.directories, allowed)
        marker.remove()
        made = before is None or (marker.resumed and stat.S_IMODE(before.st_mode) == NEW_MODE)
        entries.finish_root(root, image.head.directories, allowed if made else None)
    return written


def _to_file_below(
    image: Image, file: ImageFile, directory: Directory, name: str, allowed: int, resumed: bool, progress: Progress
) -> int:
    if resumed and _is_there(image, file, directory, name):
        return 0
    with replacement(directory, name, image.id) as partial:
        written = _fill(image, file, partial, progress)
        os.fchmod(partial.descriptor, file.mode & allowed)
        with contextlib.suppress(OverflowError):  # a time that no file of this system has
            os.utime(partial.descriptor, ns=(file.mtime, file.mtime))
        partial.take_name(name)
    return written


def _is_there(image: Image, file: ImageFile, directory: Directory, name: str) -> bool:
    """Whether a get that was interrupted came as far as this file: it is this user's, and every page is right."""
    try:
        descriptor = directory.open(name, os.O_RDONLY)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if not is_own(status) or (status.st_size, status.st_mtime_ns) != (file.size, file.mtime):
            return False
        return not any(stale or holes for _end, stale, holes in page_io.differing(image, file, descriptor))
    finally:
        os.close(descriptor)


def to_device(image: Image, path: Path, progress: Progress, *, changed_only: bool, force: bool, directory: int | None = None) -> int:
    """Write the image onto a block device, from its start; returns how many bytes were written. Raises StoreError."""
    if image.head.is_directory:
        raise UsageError(f"target {path}", "is a device, and the image is that of a directory.", "Name a directory.")
    descriptor = devices.open_device(path, directory)
    try:
        device = devices.OpenDevice(descriptor)
        if device.size < image.size:
            raise Refused(f"device {path}", f"too small: {device.size} bytes for an image of {image.size}.", "Choose a larger device.")
        if not force:
            _check_content(image, device, path, changed_only)
        written = page_io.write(image, image.files[0], descriptor, progress, compare=changed_only, zeros=True)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        page_io.read_back(image, descriptor, path, progress)
    finally:
        os.close(descriptor)
    return written


def _check_content(image: Image, device: devices.OpenDevice, path: Path, changed_only: bool) -> None:
    """Raises Refused if a device holds something; with --changed-only, something else than an earlier version."""
    content = devices.content_of(device, path)
    if not content.kind:
        return
    if not changed_only:
        raise Refused(f"device {path}", f"holds {content.kind}.", "Use --force to overwrite it.")
    if not content.may_be_replaced_by(devices.content_of(image, path)):
        raise Refused(f"device {path}", f"holds {content.kind}, and no earlier version of this image.", "Use --force to overwrite it.")
