# -*- coding: utf-8 -*-
# SPDX-License-Identifier: GPL-3.0-or-later
"""A swap area with a lasting UUID and label, in use or not: made, renamed, switched on and off, removed.

Used by C(nvm_swap). It owes the machine one thing above all: no byte of a hibernation image, a filesystem or a device
in use is written to unless the user forced it, and a device in use not even then. So it reads first (C(_refuse),
C(_plan)), looks again with the device claimed exclusively right before it writes, and reads back what it wrote.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.areas import (
    DEFAULT_LABEL,
    DEFAULT_PRIORITY,
    IMAGE_REMEDY,
    LABEL_BYTES,
    LEAST_PAGES,
    MAGIC_BYTES,
    SPAN,
    Signature,
    active_swap,
    block_device,
    check_priority,
    chosen_uuid,
    claimed,
    contents,
    header,
    page_size,
    parse,
    parse_any,
    pending_image,
    tool,
)


@dataclass(frozen=True)
class Wanted:
    """The options of C(nvm_swap), checked."""

    uuid: str
    label: str
    priority: int
    active: bool
    force: bool


@dataclass(frozen=True)
class Plan:
    """The steps to what is wanted: format, rename, swapoff, swapon; and what C(signature) stood there before."""

    renew: bool
    rename: bool
    off: bool
    on: bool
    signature: str | None


def present(tx, device, uuid=None, label=DEFAULT_LABEL, priority=DEFAULT_PRIORITY, active=True, force=False):
    """Make C(device) a swap area of that UUID and label, in use or not. Returns what C(nvm_swap) returns.

    A header that is right is left alone; one that is only named otherwise is renamed, which keeps all the rest of it.
    """
    _check_options(label, priority)
    wanted = Wanted(chosen_uuid(tx.host, device, uuid), label, priority, active, force)
    try:
        block = block_device(tx.host, device)
    except Refused as refused:
        if tx.check_mode and refused.code == "device_missing":
            return _assumed(tx, device, wanted)
        raise
    found = header(tx.host, block.path) or Signature()
    entry = active_swap(tx.host, block)
    _refuse(block, found, entry, force)
    plan = _plan(tx.host, block, found, entry, wanted)
    pages = block.size // page_size() - 1 if plan.renew else found.last_page
    result = {
        "device": device,
        "block_device": block.path,
        "uuid": wanted.uuid,
        "label": label,
        "size": pages * page_size(),
        "active": active,
        "priority": _shown_priority(None if plan.off else entry, wanted),
        "signature": plan.signature,
        "warnings": [] if plan.renew else _smaller(block, found),
    }
    if not (plan.renew or plan.rename or plan.off or plan.on):
        return result
    tx.note(
        "swap area %s" % device,
        _describe(plan.signature, found.uuid, found.label, found.size, entry is not None, entry and entry.priority),
        _describe("swap", wanted.uuid, label, result["size"], active, result["priority"]),
    )
    if not tx.check_mode:
        _carry_out(tx, block, found, entry, wanted, plan)
        entry = active_swap(tx.host, block)
        result["priority"] = entry.priority if entry else None
    return result


def absent(tx, device, uuid=None, force=False):
    """Take our swap area on C(device) out of use and its signature away. Returns what C(nvm_swap) returns.

    Nothing but the ten bytes of the signature is written. What is not a swap area is none of ours and stays.
    """
    host = tx.host
    result = dict.fromkeys(("block_device", "uuid", "label", "size", "priority", "signature"))
    result.update(device=device, active=False, warnings=[])
    try:
        block = block_device(host, device)
    except Refused as refused:
        if refused.code in ("device_missing", "not_block_device"):
            return result
        raise
    result["block_device"] = block.path
    found = header(host, block.path) or Signature()
    entry = active_swap(host, block)
    _refuse_overwritten(block, found, entry)
    if found.type is None:
        return result
    result["signature"] = found.type
    if not force:
        if found.uuid != chosen_uuid(host, device, uuid):
            raise Refused(
                "not_ours",
                "The swap area on %s has the UUID %s, not the one this machine's configuration gave it."
                % (block, found.uuid or "of zeros"),
                "Give that UUID with the option uuid if it is the one to remove, or set force: true.",
            )
        if found.type == "swsuspend":
            raise _pending(block)
    if entry:
        _room_for(host, block, entry)
    tx.note(
        "swap area %s" % device,
        _describe(found.type, found.uuid, found.label, found.size, entry is not None, entry and entry.priority),
        "",
    )
    if tx.check_mode:
        return result
    if entry:
        _switch_off(tx, block, entry)
    with claimed(host, block, os.O_RDWR) as handle:
        place = found.page_size - MAGIC_BYTES
        if parse(os.pread(handle, SPAN, 0), found.page_size) != found:
            raise _changed(block)
        os.pwrite(handle, b"\0" * MAGIC_BYTES, place)
        os.fsync(handle)
    _settle(host)
    return result


def _check_options(label, priority):
    if len(label.encode("utf-8")) > LABEL_BYTES or not label.isprintable():
        raise Refused(
            "label_invalid",
            "A swap area cannot have the label %r: at most %d bytes of printable text." % (label, LABEL_BYTES),
            "Give a shorter label.",
        )
    check_priority(priority)


def _refuse(block, found, entry, force):
    """Refuse what the header and the use of C(block) already forbid."""
    if block.size < LEAST_PAGES * page_size():
        raise Refused(
            "device_too_small",
            "%s has %d bytes; a swap area needs %d." % (block, block.size, LEAST_PAGES * page_size()),
            "Reserve more NVM with nvm_reservation.",
        )
    _refuse_overwritten(block, found, entry)
    if found.type == "swsuspend" and not force:
        raise _pending(block)
    misfit = _misfit(found, block)
    if misfit and not force:
        raise Refused(
            "header_mismatch",
            "The swap header on %s %s." % (block, misfit),
            "Look whether anything needs that swap area; force: true formats it anew.",
        )


def _refuse_overwritten(block, found, entry):
    if entry and found.type != "swap":
        raise Refused(
            "header_mismatch",
            "%s is in use as swap, but no swap header stands on it: another program wrote over it." % block,
            "Take it out of use with swapoff, and find out what it holds before it is used again.",
        )


def _plan(host, block, found, entry, wanted):
    """The Plan that takes C(block) from what it is to C(wanted). Refused where a step of it must not be taken."""
    signature = found.type
    renew = found.type != "swap" or _misfit(found, block) is not None
    rename = not renew and (found.uuid, found.label) != (wanted.uuid, wanted.label)
    off = entry is not None and (renew or rename or not wanted.active or not _priority_is(entry, wanted.priority))
    on = wanted.active and (entry is None or off)
    if (renew or rename or on) and block.read_only:
        raise Refused("device_read_only", "%s is read-only." % block, "Make it writable (blockdev --setrw).")
    if (renew or rename or on) and entry is None:
        foreign = _foreign(host, block, found, wanted.force)
        if foreign:
            renew, rename, signature = True, False, foreign
    if off:
        _room_for(host, block, entry)
    return Plan(renew, rename, off, on, signature)


def _carry_out(tx, block, found, entry, wanted, plan):
    host = tx.host
    if plan.off:
        _switch_off(tx, block, entry)
    if plan.renew or plan.rename:
        if plan.off:
            _foreign(host, block, found, wanted.force)
        if plan.renew:
            _make(host, block, wanted, over=plan.signature is not None)
        else:
            host.run([tool(host, "swaplabel"), "-U", wanted.uuid, "-L", wanted.label, block.path])
        _settle(host)
    # also right before swapon(8), which would turn the signature of a pending image into a plain one
    _verify(host, block, wanted)
    if plan.on:
        host.run(_swapon(host, block, wanted.priority))
        entry = active_swap(host, block)
        if entry is None or not _priority_is(entry, wanted.priority):
            raise Refused(
                "verify_failed",
                "swapon reported success, but /proc/swaps does not list %s with the wanted priority." % block,
                "Look into the kernel log (dmesg) for what it says about the swap area.",
            )


def _misfit(found, block):
    """Why the swap header C(found) cannot be used on C(block) by this kernel (C(read_swap_header)), or None."""
    if found.type != "swap":
        return None
    whole = (found.last_page + 1) * found.page_size
    if found.page_size != page_size():
        return "is for pages of %d bytes, and this kernel's have %d" % (found.page_size, page_size())
    if found.version != 1:
        return "is of version %s, and this kernel knows version 1 only" % found.version
    if not found.last_page:
        return "says that the area is empty"
    if whole > block.size:
        return "says that the area has %d bytes, and the device has %d" % (whole, block.size)
    return None


def _smaller(block, found):
    rest = block.size - (found.last_page + 1) * found.page_size
    if rest < found.page_size:
        return []
    return [
        "The swap area on %s leaves %d bytes of the device unused. To use them, remove it (state: absent) and make it "
        "again." % (block, rest)
    ]


def _foreign(host, block, found, force):
    """What else than C(found) stands on C(block), which nobody else has; None if nothing. Refused unless C(force)."""
    with claimed(host, block) as handle:
        if (parse_any(os.pread(handle, SPAN, 0)) or Signature()) != found:
            raise _changed(block)
        other = contents(host, block.path)
    if other is None or other == found.type:
        return None
    if not force:
        raise Refused(
            "holds_filesystem",
            "%s already holds something: %s." % (block, other),
            "Look what it is (blkid -p %s) and name another device; force: true gives up all that it holds."
            % block.path,
        )
    return other


def _room_for(host, block, entry):
    """Refused C(swap_needed) unless what was swapped out to C(entry) fits into memory."""
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", host.read("/proc/meminfo", ""), re.MULTILINE)
    available = int(match.group(1)) * 1024 if match else 0
    if entry.used > available:
        raise Refused(
            "swap_needed",
            "%s cannot be taken out of use: %d bytes are swapped out to it, and %d bytes of memory are available."
            % (block, entry.used, available),
            "Stop what needs the memory, or add another swap area first.",
        )


def _switch_off(tx, block, entry):
    tx.host.run([tool(tx.host, "swapoff"), block.path])
    tx.on_failure(lambda: _switch_on_again(tx.host, block, entry.priority))


def _switch_on_again(host, block, priority):
    if not pending_image(host, block.path):
        host.run(_swapon(host, block, priority), ok=None)


def _swapon(host, block, priority):
    return [tool(host, "swapon")] + (["-p", str(priority)] if priority >= 0 else []) + [block.path]


def _make(host, block, wanted, over):
    """mkswap, C(over) something only after all that other tools would still find there has gone.

    Both commands take the device exclusively.
    """
    if over:
        host.run([tool(host, "wipefs"), "--all", block.path])
    force = ["-f"] if over else []
    host.run([tool(host, "mkswap")] + force + ["-U", wanted.uuid, "-L", wanted.label, block.path])


def _verify(host, block, wanted):
    found = header(host, block.path, page_size()) or Signature()
    misfit = _misfit(found, block)
    if (found.type, found.uuid, found.label) != ("swap", wanted.uuid, wanted.label) or misfit:
        raise Refused(
            "verify_failed",
            "%s does not hold the wanted swap header: found %s, UUID %s, label %r%s."
            % (block, found.type or "nothing", found.uuid, found.label, ", which %s" % misfit if misfit else ""),
            "Check that nothing else writes to the device, and look into the kernel log for errors of it.",
        )


def _settle(host):
    """Wait until udev has the new UUID, so that /dev/disk/by-uuid is right for what comes next."""
    if host.exists("/run/udev/control"):
        host.run([tool(host, "udevadm"), "settle", "--timeout=30"], ok=None)


def _assumed(tx, device, wanted):
    """What would be in check mode if the device were there, which an earlier task of this run would make."""
    shown = _shown_priority(None, wanted)
    tx.note("swap area %s" % device, "", _describe("swap", wanted.uuid, wanted.label, None, wanted.active, shown))
    return {
        "device": device,
        "block_device": None,
        "uuid": wanted.uuid,
        "label": wanted.label,
        "size": None,
        "active": wanted.active,
        "priority": shown,
        "signature": None,
        "warnings": ["%s does not exist; check mode assumes that an earlier task would make it." % device],
    }


def _priority_is(entry, priority):
    return entry.priority == priority if priority >= 0 else entry.priority < 0


def _shown_priority(entry, wanted):
    """The priority in use; where the kernel will choose it, -1."""
    if not wanted.active:
        return None
    return entry.priority if entry else wanted.priority


def _describe(kind, uuid, label, size, active, priority):
    lines = ["type: %s" % (kind or "nothing")]
    if uuid or kind in ("swap", "swsuspend"):
        lines += ["uuid: %s" % uuid, "label: %s" % label]
    if size:
        lines.append("size: %d" % size)
    lines.append("active: %s" % ("priority %s" % priority if active else "no"))
    return "".join("%s\n" % line for line in lines)


def _changed(block):
    return Refused(
        "device_changed",
        "What stands on %s changed while it was looked at." % block,
        "Run again once nothing else writes to the device.",
    )


def _pending(block):
    return Refused(
        "image_pending",
        "%s holds a hibernation image that nobody has resumed." % block,
        IMAGE_REMEDY,
    )
