# SPDX-License-Identifier: GPL-3.0-or-later
"""What the EFI firmware started, and starts next: its boot options (UEFI specification, 3.1 and 10.3), and what loaders say of themselves.

Read from C(/sys/firmware/efi/efivars), where each variable follows four bytes of attributes. What is not there, or not as specified,
is None.
"""

from __future__ import annotations

import os
import re
import struct
import uuid
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core import mounts

VARIABLES = "/sys/firmware/efi/efivars/%s-%s"
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # systemd's Boot Loader Interface
LARGEST = 1 << 16  # bytes of a variable that are read
ACTIVE = 1  # LOAD_OPTION_ACTIVE
MEDIA, HARD_DRIVE, FILE, END = 4, 1, 4, 0x7F  # device path nodes: type; two subtypes of MEDIA; type
GUID_SIGNATURE = 2
ESP = ("/boot/efi", "/efi", "/boot")  # where the EFI system partition is mounted


@dataclass(frozen=True)
class Option:
    """A boot option: C(path) of the file with slashes, or None; C(partition) is the PARTUUID it is on, or None; C(data) is
    handed to the program."""

    number: int
    title: str
    path: str | None
    partition: str | None
    active: bool
    data: bytes = b""

    def loads_as(self, other):
        return self.path is not None and (self.path.lower(), self.partition) == ((other.path or "").lower(), other.partition)


class Firmware:
    """The boot options of one Host."""

    def __init__(self, host):
        self._host = host

    def current(self):
        """The Option that this boot began with, or None."""
        numbers = self._numbers("BootCurrent")
        return self.option(numbers[0]) if numbers else None

    def next(self):
        """The Option that the firmware tries first at the next boot, with the name of the variable that says so; or None.

        An option that it would pass over does not count: not active, or its file or partition is not there.
        """
        for name in ("BootNext", "BootOrder"):
            for number in self._numbers(name):
                option = self.option(number)
                if option is not None and option.active and self._is_there(option):
                    return option, name
        return None

    def option(self, number):
        content = self._read("Boot%04X" % number, GLOBAL)
        return _option(number, content) if content else None

    def text(self, name):
        """A text that a loader left in a variable, such as C(LoaderInfo); empty if there is none."""
        return (self._read(name, LOADER) or b"").decode("utf-16-le", "replace").split("\0")[0]

    def file(self, option, name):
        """The path on this machine of the file C(name) in the directory of the loader of C(option), or None if it is not mounted."""
        if not option.path:
            return None
        directory = option.path.rpartition("/")[0]
        paths = ["%s%s/%s" % (place, directory, name) for place in ESP]
        return next((path for path in paths if self._host.exists(path)), None)

    def options(self):
        """Every Option, by its number."""
        names = [os.path.basename(path).split("-")[0] for path in self._host.glob(VARIABLES % ("Boot[0-9A-F]*", GLOBAL))]
        found = [self.option(int(name[4:], 16)) for name in names if re.match(r"Boot[0-9A-F]{4}$", name)]
        return [option for option in found if option is not None]

    def local(self, option):
        """C((place, path)) of the file of C(option) on this machine: where its partition is mounted, and the path below; or None."""
        places = [place for place in ESP if option.path and self._host.exists(place + option.path)]
        link = "/dev/disk/by-partuuid/%s" % option.partition
        found = mounts.mounts(self._host) if option.partition and self._host.exists(link) else []
        for place in places:
            mount = mounts.holder(found, place + option.path)
            if mount is None or self._host.real(mount.device) == self._host.real(link):
                return place, option.path
        return None

    def _is_there(self, option):
        """Whether the firmware would find the file of C(option). An option without one (PXE, a drive) may be there or not: False."""
        links = "/dev/disk/by-partuuid"
        if not option.path or (option.partition and self._host.exists(links) and not self._host.exists(links + "/" + option.partition)):
            return False
        mounted = [place for place in ESP if self._host.exists(place + "/EFI")]
        return not mounted or any(self._host.exists(place + option.path) for place in mounted)

    def _numbers(self, name):
        content = self._read(name, GLOBAL) or b""
        return [number for (number,) in struct.iter_unpack("<H", content[: len(content) // 2 * 2])]

    def _read(self, name, vendor):
        content = self._host.read_bytes(VARIABLES % (name, vendor), None, LARGEST)
        return content[4:] if content is not None else None


def _option(number, content):
    """The Option in EFI_LOAD_OPTION C(content): attributes, length of the paths, title (UTF-16), paths, data."""
    end = next((at for at in range(6, len(content) - 1, 2) if content[at : at + 2] == b"\0\0"), None)
    if end is None:
        return None
    attributes, length = struct.unpack_from("<IH", content)
    start = end + 2 + length
    path = partition = None
    for kind, subtype, data in _nodes(content[end + 2 : start]):
        if (kind, subtype) == (MEDIA, HARD_DRIVE) and len(data) >= 38 and data[37] == GUID_SIGNATURE:
            partition = str(uuid.UUID(bytes_le=data[20:36]))
        elif (kind, subtype) == (MEDIA, FILE):
            path = (path or "") + data.decode("utf-16-le", "replace").split("\0")[0]
    if path is not None:
        path = "/" + re.sub(r"[\\/]+", "/", path).lstrip("/")
    return Option(number, content[6:end].decode("utf-16-le", "replace"), path, partition, bool(attributes & ACTIVE), content[start:])


def _nodes(content):
    """The nodes of a device path, as C((type, subtype, data)), up to its end."""
    at = 0
    while at + 4 <= len(content):
        kind, subtype, length = struct.unpack_from("<BBH", content, at)
        if kind == END or length < 4:
            return
        yield kind, subtype, content[at + 4 : at + length]
        at += length
