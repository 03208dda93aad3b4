# -*- coding: utf-8 -*-
# SPDX-License-Identifier: GPL-3.0-or-later
"""Swap areas as they are: what stands in a header, which are in use, who keeps a device, what UUID one is to have.

Used by C(_swap_area), which changes them, and by whatever has to know: C(fstab_swap), C(boot_resume), C(nvm_info), the
readiness checks. Nothing here writes to a device or takes it out of use.

Headers are read directly, without a command: C(union swap_header) of C(include/linux/swap.h) and C(struct
swsusp_header) of C(kernel/power/swap.c). Both end with the first page, so every offset counts from the page size, which
is 4, 16 or 64 KiB where Linux runs today. Values are in native byte order.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import hmac
import os
import re
import struct
import uuid as uuids
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

DEFAULT_DEVICE = "/dev/NVM_SWAP"
DEFAULT_LABEL = "NVM_SWAP"
# Above every swap area whose priority the kernel chose (those are negative), below zram (100 in zram-generator and
# zram-tools): NVM is faster than a disk, and what goes to zram leaves the NVM free for the image.
IMAGE_REMEDY = (
    "If it is wanted, copy it off the device before anything else: the machine has started without it, and to resume it now "
    "would damage every filesystem that has been written to since. nvm_swap with force: true gives it up."
)
DEFAULT_PRIORITY = 10
LABEL_BYTES = 15  # volume_name[16] in util-linux include/swapheader.h, one of them NUL
PRIORITIES = (-1, 32767)  # SWAP_FLAG_PRIO_MASK in include/linux/swap.h; -1 leaves the choice to the kernel
LEAST_PAGES = 10  # util-linux disk-utils/mkswap.c: MIN_GOODPAGES

PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
SPAN = 65536  # nothing that is read here lies beyond it
MAGIC_BYTES = 10  # both signatures: the last ten bytes of the page
# util-linux libblkid/src/superblocks/swap.c: everything it calls TYPE=swsuspend, with the VERSION it gives
SUSPEND = {
    b"S1SUSPEND": "s1suspend",
    b"S2SUSPEND": "s2suspend",
    b"ULSUSPEND": "ulsuspend",
    b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c": "tuxonice",
    b"LINHIB0001": "linhib0001",
}
# 36691cbe-… marks UUIDs made here, so that other programs deriving from the same machine id get others.
NAMESPACE = uuids.UUID("36691cbe-57a3-4c0e-9d0c-3b6f0f4e6a51")


@dataclass(frozen=True)
class Signature:
    """What a device holds. C(type) is None (nothing known), "swap", "swsuspend", or what C(blkid) calls it.

    The rest is known for the first two only. C(last_page) counts pages of C(page_size) bytes; C(version) is the swap
    header's; C(format) is the kind of suspend image ("s1suspend" is the kernel's own). C(image) (block of the first map
    page), C(flags) (C(SF_*) of C(kernel/power/power.h)) and C(orig) (signature to go back to) are of "s1suspend" alone.
    """

    type: str | None = None
    uuid: str | None = None
    label: str = ""
    page_size: int = 0
    last_page: int = 0
    version: int | None = None
    format: str | None = None
    image: int | None = None
    flags: int | None = None
    orig: bytes | None = None

    @property
    def size(self):
        """Bytes the area can hold, as C(/proc/swaps) counts them: all pages but the header's."""
        return self.last_page * self.page_size


@dataclass(frozen=True)
class ActiveSwap:
    """A line of C(/proc/swaps): C(kind) "partition" or "file", C(size) and C(used) in bytes."""

    path: str
    kind: str
    size: int
    used: int
    priority: int


@dataclass(frozen=True)
class Block:
    """A block device: its name as given, its kernel path, sysfs name, "major:minor", size in bytes."""

    given: str
    path: str
    name: str
    number: str
    size: int
    read_only: bool

    def __str__(self):
        return self.given if self.given == self.path else "%s (%s)" % (self.given, self.path)


# headers -------------------------------------------------------------------------------------------------------------


def page_size():
    """The page size of the running kernel: the one swap areas must have."""
    return os.sysconf("SC_PAGE_SIZE")


def parse(content, size):
    """The Signature in C(content) (the start of a device) if a page is C(size) bytes, or None."""
    if len(content) < size:
        return None
    magic = content[size - MAGIC_BYTES : size]
    if magic == b"SWAP-SPACE":  # of before 2.2: a bitmap of pages instead of a header
        return Signature("swap", page_size=size, version=0)
    suspend = next((name for start, name in SUSPEND.items() if magic.startswith(start)), None)
    if magic != b"SWAPSPACE2" and suspend is None:
        return None
    version, last_page = struct.unpack_from("=II", content, 1024)
    identity = uuids.UUID(bytes=content[1036:1052])
    image, flags, orig = struct.unpack_from("=QI10s", content, size - 32) if suspend == "s1suspend" else (None,) * 3
    return Signature(
        type="swsuspend" if suspend else "swap",
        uuid=str(identity) if identity.int else None,
        label=content[1052:1068].split(b"\0")[0].decode("utf-8", "backslashreplace"),
        page_size=size,
        last_page=last_page,
        version=version,
        format=suspend,
        image=image,
        flags=flags,
        orig=orig,
    )


def parse_any(content):
    """The Signature in C(content) for the running page size or, failing that, any other; or None."""
    sizes = sorted(PAGE_SIZES, key=lambda each: each != page_size())
    return next((found for found in (parse(content, each) for each in sizes) if found), None)


def header(host, device, size=None):
    """The Signature of the swap or suspend header of C(device), for pages of C(size) bytes or of any size, or None.

    Runs no command. Refused C(device_missing) or C(device_unreadable).
    """
    content = host.read_bytes(device, size=SPAN)
    if content is None:
        if not os.path.exists(host.path(device)):
            raise _missing(device)
        raise Refused(
            "device_unreadable",
            "%s cannot be read." % device,
            "Run as root (become: true); if it is root already, see the kernel log for errors of the device.",
        )
    return parse(content, size) if size else parse_any(content)


def probe(host, device):
    """The Signature of C(device), whatever it holds: its header, or else what C(blkid) finds."""
    return header(host, device) or Signature(type=contents(host, device))


def pending_image(host, device):
    """Whether C(device) holds a suspended system that nobody has resumed yet."""
    found = header(host, device)
    return found is not None and found.type == "swsuspend"


def contents(host, device):
    """What C(blkid) finds on C(device): a filesystem, RAID, LVM, encryption or partition table type, or None.

    More than one thing at once is reported as such, a partition table before the swap area in front of it.
    """
    result = host.run([tool(host, "blkid"), "-p", "-o", "export", device], ok=(0, 2, 8))
    if result.rc == 2:
        return None
    if result.rc == 8:
        return "several signatures"
    found = dict(line.split("=", 1) for line in result.out.splitlines() if "=" in line)
    if "PTTYPE" in found:
        return "partition table (%s)" % found["PTTYPE"]
    return found.get("TYPE")


# identity ------------------------------------------------------------------------------------------------------------


def swap_uuid(host, name):
    """The UUID of the swap area C(name) on this machine: the same in every run, another on every machine.

    RFC 9562 version 8 over HMAC-SHA256 keyed with the machine id, which is how machine-id(5) wants ids derived from it.
    """
    machine = host.attribute("/etc/machine-id", "")
    if not re.match(r"^[0-9a-f]{32}$", machine):
        raise Refused(
            "machine_id_missing",
            "/etc/machine-id holds no machine id, so that no lasting UUID can be derived for %s." % name,
            "Run systemd-machine-id-setup on the machine, or give the UUID with the option uuid.",
        )
    digest = hmac.new(bytes.fromhex(machine), NAMESPACE.bytes + name.encode("utf-8"), hashlib.sha256).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | (0x8 << 76)
    number = number & ~(0x3 << 62) | (0x2 << 62)
    return str(uuids.UUID(int=number))


def chosen_uuid(host, device, uuid=None):
    """C(uuid) in its usual form, or without one the UUID derived for the name of C(device) (C(NVM_SWAP))."""
    if uuid is None:
        return swap_uuid(host, os.path.basename(device))
    try:
        given = uuids.UUID(uuid)
    except ValueError:
        given = None
    if not given:
        raise Refused(
            "uuid_invalid",
            "%r is no UUID." % uuid,
            "Give 32 hexadecimal digits such as 6f1c1e1e-9d4b-8a57-9f0e-2f6d0a6f2b11, or leave uuid out.",
        )
    if not given.int:
        raise Refused("uuid_invalid", "The UUID of zeros names nothing.", "Give another one, or leave uuid out.")
    return str(given)


def check_priority(priority):
    """Refused C(priority_invalid) where the kernel knows no such priority."""
    if not PRIORITIES[0] <= priority <= PRIORITIES[1]:
        raise Refused(
            "priority_invalid",
            "A swap area cannot have the priority %d." % priority,
            "Give 0 to 32767, or -1 to leave the choice to the kernel.",
        )


# devices -------------------------------------------------------------------------------------------------------------


def block_device(host, device):
    """The Block that C(device) names, through symbolic links. Refused C(device_missing) or C(not_block_device)."""
    if not device.startswith("/"):
        raise Refused("device_invalid", "%r is no absolute path." % device, "Give a path such as /dev/NVM_SWAP.")
    path = host.real(device)
    if not os.path.exists(host.path(path)):
        raise _missing(device)
    # the kernel writes the slash of a name such as cciss/c0d0 as an exclamation mark
    name = path[len("/dev/") :].replace("/", "!") if path.startswith("/dev/") else ""
    entry = "/sys/class/block/%s" % name
    number = host.attribute("%s/dev" % entry) if name else None
    if number is None:
        raise Refused(
            "not_block_device",
            "%s is there, but it is no block device." % device,
            "Remove what stands in its place (a file made by writing to a device that was missing?), then make the "
            "device with nvm_reservation.",
        )
    return Block(
        given=device,
        path=path,
        name=name,
        number=number,
        size=int(host.attribute("%s/size" % entry, "0")) * 512,
        read_only=host.attribute("%s/ro" % entry, "0") == "1",
    )


def active_swaps(host):
    """The swap areas in use, as in C(/proc/swaps) (C(mm/swapfile.c), swap_show)."""
    found = []
    for line in host.read("/proc/swaps", "").splitlines()[1:]:
        fields = line.split()
        if len(fields) == 5:
            size, used, priority = (int(field) for field in fields[2:])
            found.append(ActiveSwap(unescape(fields[0]), fields[1], size * 1024, used * 1024, priority))
    return found


def unescape(text):
    """C(text) of /proc or fstab with its octal escapes (C(\\\\040)) as the characters they stand for."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), text)


def active_swap(host, block):
    """The ActiveSwap on C(block), or None. Its node may have been replaced since ("(deleted)")."""
    for entry in active_swaps(host):
        path = entry.path[: -len(" (deleted)")] if entry.path.endswith(" (deleted)") else entry.path
        if entry.kind == "partition" and host.real(path) == block.path:
            return entry
    return None


def users(host, block):
    """Who keeps C(block) or a partition of it, besides swap: one phrase for each mount, mapping and loop device."""
    names = [block.name] + [
        path.split("/")[-2] for path in host.glob("/sys/class/block/%s/*/partition" % glob.escape(block.name))
    ]
    numbers = {host.attribute("/sys/class/block/%s/dev" % name) for name in names}
    found = []
    for name in names:
        for holder in host.glob("/sys/class/block/%s/holders/*" % glob.escape(name)):
            found.append("held by %s" % os.path.basename(holder))
    for line in host.read("/proc/self/mountinfo", "").splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[2] in numbers:
            found.append("mounted at %s" % unescape(fields[4]))
    for backing in host.glob("/sys/class/block/loop*/loop/backing_file"):
        if host.real(host.attribute(backing, "")) == block.path:
            found.append("the backing of %s" % backing.split("/")[4])
    return found


@contextlib.contextmanager
def claimed(host, block, flags=os.O_RDONLY):
    """A file descriptor on C(block) that excludes every other exclusive user: mounts, mappings, RAID, swap, mkswap.

    Refused C(device_in_use) where somebody has it, C(device_changed) where it is no longer what C(block) says.
    """
    found = users(host, block)
    if found:
        raise _in_use(block, ", ".join(found))
    try:
        handle = os.open(host.path(block.path), flags | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(block, "claimed by another program or by the kernel") from error
        raise Refused(
            "device_unreadable", "%s cannot be opened: %s." % (block, error.strerror), "Run as root (become: true)."
        ) from error
    try:
        if os.lseek(handle, 0, os.SEEK_END) != block.size:
            raise Refused(
                "device_changed",
                "%s changed its size while it was looked at." % block,
                "Run again once nothing else configures the device.",
            )
        yield handle
    finally:
        os.close(handle)


def tool(host, name):
    """C(name) with its directory, which is not always on PATH, or as it is."""
    return host.which(name) or name


def _missing(device):
    return Refused(
        "device_missing",
        "%s does not exist." % device,
        "Make it with nvm_reservation; where that changed the kernel command line, reboot first.",
    )


def _in_use(block, who):
    return Refused(
        "device_in_use",
        "%s is in use: %s." % (block, who),
        "Name another device, or take it out of that use first (umount, dmsetup, mdadm, losetup); force does not help.",
    )
