# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates, enlarges, renames, activates, deactivates and removes a swap file with a stable UUID and label (C(swap_file)).

Guarantee: a file that is no swap area is never written to or removed, C(force) or not. A new file is made under another name, complete
and formatted, and takes its own name last. An existing one is enlarged at its end, so that its first page stays where C(resume_offset=)
says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core import mounts, sizing
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.part import STATE, Part, by_state
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import (
    area,
    devices,
    extents,
    headers,
    identity,
    switch,
    target,
)

DEFAULT_PATH = "/swapfile"
DEFAULT_LABEL = "SWAP_FILE"
SPARE = 64 << 20  # bytes of the filesystem that stay free
NEW = ".%s.nvm-fastboot-new"  # of the name of the file
SETFLAGS = 0x40086602  # include/uapi/linux/fs.h: FS_IOC_SETFLAGS


@dataclass(frozen=True)
class Wanted:
    """The options of C(swap_file), checked: C(size) in bytes, whole pages."""

    size: int
    uuid: str
    label: str
    priority: int
    active: bool
    force: bool


@dataclass(frozen=True)
class Plan:
    """Steps to the wanted state: C(grow) (to this many bytes, or 0), C(private) (mode 0600), C(format), C(rename), C(off), C(on)."""

    grow: int
    private: bool
    format: bool
    rename: bool
    off: bool
    on: bool

    @property
    def empty(self):
        return not (self.grow or self.private or self.format or self.rename or self.off or self.on)


def present(
    tx, path=DEFAULT_PATH, size="auto", dram_multiple=1, uuid=None, label=DEFAULT_LABEL, priority=identity.DEFAULT_PRIORITY, active=True,
    force=False,
):
    """Make C(path) a swap file of at least that size, with that UUID and label, active or not. Returns what C(swap_file) returns."""
    host = tx.host
    area.check_options(label, priority)
    _check_path(path)
    wanted = Wanted(_size(host, size, dram_multiple), identity.chosen_uuid(host, path, uuid), label, priority, active, force)
    place = target.expected(host, path)
    place.check(host)
    try:
        found = target.find(host, path)
    except Refused as refused:
        if refused.code != "swap_file_missing":
            raise
        return _create(tx, place, wanted)
    return _keep(tx, found, wanted)


def absent(tx, path=DEFAULT_PATH, uuid=None, force=False):
    """Deactivate our swap file and remove it. Returns what C(swap_file) returns. A file that is no swap area is left unchanged."""
    host = tx.host
    _check_path(path)
    result = dict.fromkeys(("block_device", "offset", "uuid", "label", "size", "priority", "signature"))
    result.update(path=path, active=False, warnings=[])
    if not os.path.isfile(host.path(path)) or os.path.islink(host.path(path)):
        return result
    file, header = _what_is_there(host, path)
    if header is None:
        return result
    swap = devices.active_swap_file(host, file)
    result["signature"] = header.type
    if not force:
        _check_ours(host, path, header, uuid)
    if swap:
        switch.check_memory(host, path, swap)
    tx.note("swap file %s" % path, _describe(header, os.stat(host.path(path)).st_size, swap), "")
    if not tx.check_mode:
        if swap:
            switch.off(tx, file, swap, lambda: False)
        host.remove(file)
        host.remove(_new(file))
    return result


PART = Part(
    {
        "path": {"type": "str", "default": DEFAULT_PATH},
        "size": {"type": "str", "default": "auto"},
        "dram_multiple": {"type": "int", "choices": [1, 2], "default": 1},
        "uuid": {"type": "str"},
        "label": {"type": "str", "default": DEFAULT_LABEL},
        "priority": {"type": "int", "default": identity.DEFAULT_PRIORITY},
        "active": {"type": "bool", "default": True},
        "force": {"type": "bool", "default": False},
        "state": STATE,
    },
    by_state(present, absent, absent_options=("path", "uuid", "force")),
)


# checks --------------------------------------------------------------------------------------------------------------


def _check_path(path):
    if not target.is_file(path) or os.path.normpath(path) != path or path == "/":
        raise Refused(
            "swap_file_invalid",
            "%r is not the path of a swap file." % path,
            "Give an absolute path that is not below /dev, such as %s." % DEFAULT_PATH,
        )


def _size(host, size, dram_multiple):
    need = sizing.reservation_size(sizing.dram_bytes(host), dram_multiple, sizing.MIB) if size == "auto" else sizing.parse_size(size)
    least = headers.LEAST_PAGES * headers.page_size()
    if need < least:
        raise Refused(
            "size_invalid", "A swap file of %d bytes is too small: a swap area needs %d." % (need, least), "Give a larger size."
        )
    return sizing.round_up(need, headers.page_size())


def _what_is_there(host, path):
    """C((path without links, Signature of the swap area)), also of a file that the kernel cannot use."""
    try:
        found = target.find(host, path)
        return found.file, found.header(host)
    except Refused as refused:
        if refused.code not in ("swap_file_unusable", "filesystem_unsupported"):
            raise
    file = target.real_file(host, path)
    return file, headers.read_header(host, file, headers.page_size())


def _check_ours(host, path, header, uuid):
    if header.uuid != identity.chosen_uuid(host, path, uuid):
        raise Refused(
            "not_ours",
            "The swap area in %s has UUID %s, which is not the one configured for this machine." % (path, header.uuid or "of zeros"),
            "To remove it, set the option uuid to that UUID, or set force=true.",
        )
    if header.type == "swsuspend":
        raise headers.image_pending(path)


def _check_space(host, path, need):
    status = os.statvfs(host.path(os.path.dirname(path)))
    free = status.f_bavail * status.f_frsize
    if free < need + SPARE:
        raise Refused(
            "no_space",
            "The filesystem of %s has %s free; the swap file needs %s more, and %s stay free." % (
                path, sizing.format_size(free), sizing.format_size(need), sizing.format_size(SPARE)),
            "Give a path on another filesystem, a smaller size, or make space.",
        )


# a new file ----------------------------------------------------------------------------------------------------------


def _create(tx, place, wanted):
    host = tx.host
    tx.check_kept(place.file)
    if not os.path.isdir(host.path(os.path.dirname(place.file))):
        raise Refused(
            "swap_file_invalid", "The directory of %s does not exist." % place.given, "Create the directory, or give another path.")
    _check_space(host, place.file, wanted.size)
    tx.note("swap file %s" % place.given, "", _wanted_text(wanted, wanted.size, wanted.priority))
    result = {
        "path": place.given,
        "block_device": place.block.path,
        "offset": None,
        "uuid": wanted.uuid,
        "label": wanted.label,
        "size": wanted.size - headers.page_size(),
        "active": wanted.active,
        "priority": area.shown_priority(None, wanted),
        "signature": None,
        "warnings": [],
    }
    if tx.check_mode:
        return result
    new = _new(place.file)
    host.remove(new)
    try:
        _allocate(host, new, wanted.size)
        host.run([host.tool("mkswap"), "-U", wanted.uuid, "-L", wanted.label, new])
        os.link(host.path(new), host.path(place.file))  # unlike a rename, it replaces nothing
    except FileExistsError:
        raise target.not_plain(place.given, "another program has created it meanwhile") from None
    finally:
        host.remove(new)  # syncs the directory
    tx.on_failure(lambda: host.remove(place.file))
    found = target.find(host, place.given)
    _verify(host, found, wanted)
    if wanted.active:
        _switch_on(tx, found, wanted)
        result["priority"] = found.swap(host).priority
    return dict(result, offset=found.offset)


def _new(file):
    return os.path.join(os.path.dirname(file), NEW % os.path.basename(file))


def _allocate(host, path, size):
    """A file for root alone whose blocks are all placed; on btrfs one that is not copied on write."""
    kind = mounts.holder(mounts.mounts(host), path).kind
    handle = os.open(host.path(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(handle, 0o600)
        if kind == "btrfs":
            flags = struct.unpack_from("=L", fcntl.ioctl(handle, extents.GETFLAGS, bytes(8)))[0]
            fcntl.ioctl(handle, SETFLAGS, struct.pack("=LL", flags | extents.NOCOW, 0))
        _reserve(handle, path, size)
    finally:
        os.close(handle)


def _reserve(handle, path, size):
    try:
        os.posix_fallocate(handle, 0, size)
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Refused(
            "no_space", "%s cannot have %s: %s." % (path, sizing.format_size(size), error.strerror),
            "Give a path on another filesystem, a smaller size, or make space.") from error


# an existing file ----------------------------------------------------------------------------------------------------


def _keep(tx, found, wanted):
    host = tx.host
    header, swap = found.header(host), found.swap(host)
    _check_existing(found, header, swap, wanted)
    plan = _plan(host, found, header, swap, wanted)
    size = plan.grow or found.size
    result = {
        "path": found.given,
        "block_device": found.block.path,
        "offset": found.offset,
        "uuid": wanted.uuid,
        "label": wanted.label,
        "size": (size // headers.page_size() - 1) * headers.page_size() if plan.format else header.size,
        "active": wanted.active,
        "priority": area.shown_priority(None if plan.off else swap, wanted),
        "signature": header.type,
        "warnings": [],
    }
    if plan.empty:
        return result
    tx.check_kept(found.file)
    if plan.grow:
        _check_space(host, found.file, plan.grow - found.size)
    tx.note("swap file %s" % found.given, _describe(header, found.size, swap), _wanted_text(wanted, size, result["priority"]))
    if tx.check_mode:
        return result
    if plan.off:
        switch.off(tx, found.file, swap, lambda: (found.header(host) or headers.Signature()).type != "swap")
    _change(tx, found, wanted, plan)
    found = target.find(host, found.given)
    _verify(host, found, wanted)
    if plan.on:
        _switch_on(tx, found, wanted)
    swap = found.swap(host)
    return dict(result, offset=found.offset, priority=swap.priority if swap else None)


def _check_existing(found, header, swap, wanted):
    if header is None:
        if swap:
            raise Refused(
                "header_mismatch",
                "%s is in use as swap, but its swap header was overwritten by another program." % found.given,
                "Run swapoff, and check the contents of the file before you use it again.",
            )
        raise Refused(
            "not_swap",
            "%s is a file that is no swap area. It is never overwritten." % found.given,
            "Give another path, or remove the file, if it is not needed.",
        )
    if header.type == "swsuspend" and not wanted.force:
        raise headers.image_pending(found.given)
    problem = area.misfit(header, found)
    if problem and not wanted.force:
        raise Refused(
            "header_mismatch",
            "The swap header in %s %s." % (found.given, problem),
            "Check whether that swap area is still needed. To format the file, set force=true.",
        )


def _plan(host, found, header, swap, wanted):
    grow = wanted.size if found.size < wanted.size else 0
    make = bool(grow) or header.type != "swap" or area.misfit(header, found) is not None
    rename = not make and (header.uuid, header.label) != (wanted.uuid, wanted.label)
    status = os.stat(host.path(found.file))
    off = swap is not None and (make or rename or not wanted.active or not area.priority_is(swap, wanted.priority))
    if off:
        switch.check_memory(host, found.given, swap)
    return Plan(
        grow=grow,
        private=bool(status.st_mode & 0o077),
        format=make,
        rename=rename,
        off=off,
        on=wanted.active and (swap is None or off),
    )


def _change(tx, found, wanted, plan):
    host = tx.host
    if plan.private:
        os.chmod(host.path(found.file), 0o600)
    if plan.grow:
        handle = os.open(host.path(found.file), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            tx.on_failure(lambda: os.truncate(host.path(found.file), found.size))
            _reserve(handle, found.given, plan.grow)
        finally:
            os.close(handle)
    if plan.format:
        host.run([host.tool("mkswap"), "-U", wanted.uuid, "-L", wanted.label, found.file])
    elif plan.rename:
        host.run([host.tool("swaplabel"), "-U", wanted.uuid, "-L", wanted.label, found.file])
    if plan.format or plan.rename:
        handle = os.open(host.path(found.file), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(handle)  # swaplabel does not
        finally:
            os.close(handle)


# both ----------------------------------------------------------------------------------------------------------------


def _verify(host, found, wanted):
    header = found.header(host) or headers.Signature()
    problem = area.misfit(header, found)
    if (header.type, header.uuid, header.label) != ("swap", wanted.uuid, wanted.label) or problem:
        raise Refused(
            "verify_failed",
            "%s does not hold the wanted swap header on %s: found %s, UUID %s, label %r%s."
            % (found.given, found.block, header.type or "nothing", header.uuid, header.label, ", which %s" % problem if problem else ""),
            "Check that no other program writes to the file, and check the kernel log for errors of the device.",
        )


def _switch_on(tx, found, wanted):
    host = tx.host
    switch.on(host, found.file, wanted.priority)
    tx.on_failure(lambda: host.run([host.tool("swapoff"), found.file], ok=None))
    swap = found.swap(host)
    if swap is None or not area.priority_is(swap, wanted.priority):
        raise Refused(
            "verify_failed",
            "swapon succeeded, but /proc/swaps does not list %s with the wanted priority." % found.given,
            "Check the kernel log (dmesg) for messages on the swap area.",
        )


def _describe(header, size, swap):
    return area.describe(header.type, header.uuid, header.label, size, swap is not None, swap and swap.priority)


def _wanted_text(wanted, size, priority):
    return area.describe("swap", wanted.uuid, wanted.label, size, wanted.active, priority)
