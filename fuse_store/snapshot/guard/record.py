# SPDX-License-Identifier: GPL-3.0-or-later
"""Records the guards of a snapshot: looks for them and takes all memory beforehand, and reads the devices while the system stands still,
past all caches. For one thread."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fuse_store.hibernation.machine import Machine, Mounted
from fuse_store.snapshot.guard.mounted import (
    backing_file,
    device_of,
    hidden,
    in_memory,
    kind_below,
    on_devices,
)
from fuse_store.snapshot.guard.places import ANY, NotGuarded, Places, Ranges, places_of

PREFIX, NONE, UNSAFE = "guard.", "guard.none", "unsafe"  # tags
MAX_GUARDS = 32  # tags of a slot are few
MAX_COMMIT_INTERVAL = 30  # seconds (mount option commit=) after which a change is on the device at the latest
_MAX_LENGTH = 190  # bytes of a tag
_ALIGNMENT = 4096  # bytes: of reads past the cache, whatever the device has as sectors
_WINDOW = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class _Device:
    """An open device, and what is to be read of it."""

    name: str
    descriptor: int
    size: int
    places: Places
    read: Callable[[int, int], bytes] = field(repr=False)


class Guard:
    """The guards of the running system. ``prepare``, then ``record`` while it stands still, then ``close``."""

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine or Machine()
        self._window = memoryview(mmap.mmap(-1, _WINDOW))
        self._devices: list[_Device] = []
        self._reasons: list[str] = []  # why a filesystem cannot be guarded

    def prepare(self) -> None:
        """Look for all filesystems, and open their devices. Those that are writable have to be frozen before ``record``."""
        self.close()
        self._reasons = []
        known = list(on_devices(self._machine))
        for mounted in known:
            try:
                self._add(mounted)
            except NotGuarded as error:
                self._reasons.append(f"{error} ({mounted.point})")
            except OSError as error:
                self._reasons.append(f"{mounted.kind} cannot be read: {error.strerror} ({mounted.point})")
        self._reasons += [
            f"{name} is mounted where it cannot be seen"
            for name in hidden(self._machine, known, {device.places.uuid for device in self._devices})
        ]
        if len(self._devices) > MAX_GUARDS:
            self._reasons.append(f"{len(self._devices)} filesystems are mounted, and {MAX_GUARDS} can be guarded")

    def _add(self, mounted: Mounted) -> None:
        """Raises NotGuarded, OSError."""
        if in_memory(self._machine, mounted) or self._stands_on_another(mounted):
            return
        if mounted.writable:
            _check_options(mounted)
        device = device_of(self._machine, mounted)
        if device is None:
            raise NotGuarded(f"{mounted.kind} is on a device that has no name")
        opened = self._opened(device, mounted)
        if any(opened.places.uuid == other.places.uuid and opened.places.uuid != ANY for other in self._devices):
            os.close(opened.descriptor)
            raise NotGuarded(f"two filesystems have the UUID {opened.places.uuid}")
        self._devices.append(opened)

    def _stands_on_another(self, mounted: Mounted) -> bool:
        """Whether it is on a loop device whose file is in memory, or on a filesystem that shows a change of it. Raises NotGuarded."""
        path = backing_file(self._machine, mounted)
        if path is None:
            return False
        below = kind_below(self._machine, path)
        if below == "memory" or (below == "device" and not mounted.writable):
            return True
        raise NotGuarded(f"{mounted.kind} is {'writable ' if mounted.writable else ''}in a file, {path}")

    def _opened(self, path: Path, mounted: Mounted) -> _Device:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)

            def read(offset: int, length: int) -> bytes:
                return read_direct(descriptor, self._window, offset, length)

            return _Device(mounted.point, descriptor, size, places_of(mounted.kind, read, size, mounted.writable), read)
        except BaseException:
            os.close(descriptor)
            raise

    def record(self) -> dict[str, str]:
        """Read what was prepared: the tags ``guard.0`` and so on, or ``guard.none``, or ``unsafe`` alone, with the reason."""
        if self._reasons:
            return {UNSAFE: _cut("; ".join(self._reasons))}
        if not self._devices:
            return {NONE: "1"}
        tags = {}
        for number, device in enumerate(self._devices):
            try:
                ranges = device.places.ranges + device.places.when_frozen(device.read)
                tags[f"{PREFIX}{number}"] = _tag(device.places.uuid, ranges, _digest(device.read, ranges))
            except NotGuarded as error:
                return {UNSAFE: _cut(f"{error} ({device.name})")}
            except OSError as error:
                return {UNSAFE: _cut(f"its device cannot be read: {error.strerror} ({device.name})")}
        return tags

    def close(self) -> None:
        while self._devices:
            os.close(self._devices.pop().descriptor)

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _check_options(mounted: Mounted) -> None:
    """Raises NotGuarded if changes of a writable filesystem may be on the device long before anything tells of them."""
    if "lazytime" in mounted.options:
        raise NotGuarded(f"{mounted.kind} is mounted with lazytime")
    for option in mounted.options:
        name, _equals, value = option.partition("=")
        if name == "commit" and not (value.isdecimal() and int(value) <= MAX_COMMIT_INTERVAL):
            raise NotGuarded(f"{mounted.kind} is mounted with {option}")


def read_direct(descriptor: int, window: memoryview, offset: int, length: int) -> bytes:
    """``length`` bytes past the kernel's cache, by way of an aligned ``window``; fewer at the end. Raises OSError."""
    content = bytearray()
    end = offset + length
    at = offset - offset % _ALIGNMENT
    while at < end:
        wanted = min(len(window), -(-(end - at) // _ALIGNMENT) * _ALIGNMENT)
        done = os.preadv(descriptor, [window[:wanted]], at)
        content += window[max(0, offset - at) : min(done, end - at)]
        if done < wanted:
            break
        at += done
    return bytes(content)


def _digest(read: Callable[[int, int], bytes], ranges: Ranges) -> str:
    """SHA-256 of what is in the ranges, one after the other. Raises OSError, and NotGuarded where the device ends before."""
    digest = hashlib.sha256()
    for offset, length in ranges:
        content = read(offset, length)
        if len(content) != length:
            raise NotGuarded("its device is shorter than it says")
        digest.update(content)
    return digest.hexdigest()


def _tag(uuid: str, ranges: Ranges, digest: str) -> str:
    return f"{uuid} {','.join(f'{offset}+{length}' for offset, length in ranges)} {digest}"


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:_MAX_LENGTH].decode("utf-8", "ignore")
