# SPDX-License-Identifier: GPL-3.0-or-later
"""Swap headers and hibernation images, recognised from the first page of a device. Nothing here writes.

Headers are read directly, without a command: C(union swap_header) of C(include/linux/swap.h) and C(struct
swsusp_header) of C(kernel/power/swap.c). Both end with the first page, so offsets count from the page size, which is 4,
16 or 64 KiB where Linux runs today. Values are in native byte order. C(blkid) identifies all other contents.
"""

from __future__ import annotations

import os
import struct
import uuid as uuids
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.devices import device_missing

LEAST_PAGES = 10  # util-linux disk-utils/mkswap.c: MIN_GOODPAGES
PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
SPAN = 65536  # bytes from the start of a device that hold everything read here
MAGIC_BYTES = 10  # both signatures: the last ten bytes of the page
# util-linux libblkid/src/superblocks/swap.c: everything it calls TYPE=swsuspend, with the VERSION it gives
SUSPEND = {
    b"S1SUSPEND": "s1suspend",
    b"S2SUSPEND": "s2suspend",
    b"ULSUSPEND": "ulsuspend",
    b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c": "tuxonice",
    b"LINHIB0001": "linhib0001",
}
SLOTS = b"fuse-store-slots "  # how a device with slots begins: docs/slots.md, "The layout"
IMAGE_REMEDY = (
    "To keep the image, copy it off the device first. Do not resume it now: the machine was started without it, and "
    "resuming would damage every filesystem written to since. To discard it, run %s with force=true."
)


@dataclass(frozen=True)
class Signature:
    """Contents of a device. C(type) is None (unknown or empty), "swap", "swsuspend", or a type that C(blkid) reports.

    The other fields are set for the first two only. C(last_page) counts pages of C(page_size) bytes; C(version) is the
    swap header's; C(format) is the kind of suspend image ("s1suspend" is the kernel's own). C(image) (block of the first
    swap map page), C(flags) (C(SF_*) of C(kernel/power/power.h)) and C(orig) (signature to restore) are of "s1suspend"
    alone.
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
        """Bytes of swap space, as C(/proc/swaps) counts them: all pages but the header's."""
        return self.last_page * self.page_size


def page_size():
    """The page size of the running kernel, which its swap areas must have."""
    return os.sysconf("SC_PAGE_SIZE")


def parse(content, size):
    """The Signature in C(content) (the start of a device) for pages of C(size) bytes, or None."""
    if len(content) < size:
        return None
    magic = content[size - MAGIC_BYTES : size]
    if magic == b"SWAP-SPACE":  # before Linux 2.2: a bitmap of pages instead of a header
        return Signature("swap", page_size=size, version=0)
    suspend = next((name for start, name in SUSPEND.items() if magic.startswith(start)), None)
    if magic != b"SWAPSPACE2" and suspend is None:
        return None
    version, last_page = struct.unpack_from("=II", content, 1024)
    swap_uuid = uuids.UUID(bytes=content[1036:1052])
    image, flags, orig = struct.unpack_from("=QI10s", content, size - 32) if suspend == "s1suspend" else (None,) * 3
    return Signature(
        type="swsuspend" if suspend else "swap",
        uuid=str(swap_uuid) if swap_uuid.int else None,
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
    """The Signature in C(content) for the running kernel's page size, else for any other page size, or None."""
    sizes = sorted(PAGE_SIZES, key=lambda size: size != page_size())
    return next((signature for signature in (parse(content, size) for size in sizes) if signature), None)


def read_header(host, device, size=None):
    """The Signature of the swap or suspend header on C(device), for pages of C(size) bytes or of any size, or None.

    Runs no command. Refused C(device_missing) or C(device_unreadable).
    """
    content = host.read_bytes(device, size=SPAN)
    if content is None:
        if not os.path.exists(host.path(device)):
            raise device_missing(device)
        raise Refused(
            "device_unreadable",
            "%s cannot be read." % device,
            "Run as root (become: true). As root, check the kernel log for errors of the device.",
        )
    return parse(content, size) if size else parse_any(content)


def read_header_at(host, device, page):
    """The Signature in the page number C(page) of the block device C(device), for the running kernel's page size, or None.

    Past the kernel's cache of the device, in which a page that a filesystem has written may be an old one. Refused C(device_unreadable).
    """
    size = page_size()
    try:
        content = _read_direct(host.path(device), page * size, size)
    except OSError as error:
        raise Refused(
            "device_unreadable",
            "Page %d of %s cannot be read: %s." % (page, device, error.strerror),
            "Run as root (become: true). As root, check the kernel log for errors of the device.",
        ) from error
    return parse(content, size)


def _read_direct(path, offset, size):
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(handle, offset, size, os.POSIX_FADV_DONTNEED)
        return os.pread(handle, size, offset)
    finally:
        os.close(handle)


def pending_image(host, device):
    """Whether C(device) holds a hibernation image that was not resumed."""
    header = read_header(host, device)
    return header is not None and header.type == "swsuspend"


def image_pending(device, consequence=""):
    """The error Refused C(image_pending): C(device) holds an image. C(consequence) is added to the message."""
    message = "%s holds a hibernation image that was not resumed%s." % (device, "; %s" % consequence if consequence else "")
    return Refused("image_pending", message, IMAGE_REMEDY % ("nvm_swap" if str(device).startswith("/dev/") else "swap_file"))


def contents(host, device):
    """The type that C(blkid) reports for C(device) (a filesystem, RAID, LVM, encryption or partition table), or None.

    Conflicting signatures are reported as "several signatures", a partition table before a swap area inside it. A table of slots
    of C(fuse-store), which C(blkid) does not know, is "fuse-store slots".
    """
    result = host.run([host.tool("blkid"), "-p", "-o", "export", device], ok=(0, 2, 8))
    if result.rc == 2:
        return "fuse-store slots" if host.read_bytes(device, size=len(SLOTS)) == SLOTS else None
    if result.rc == 8:
        return "several signatures"
    tags = dict(line.split("=", 1) for line in result.out.splitlines() if "=" in line)
    if "PTTYPE" in tags:
        return "partition table (%s)" % tags["PTTYPE"]
    return tags.get("TYPE")
