# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates, renames, activates, deactivates and removes a swap area with a stable UUID and label (C(nvm_swap)).

Guarantee: no byte of a hibernation image or a filesystem is overwritten unless C(force) is set, and no byte of a device
in use even then. Therefore it reads first (C(_check), C(_plan)), reads again with the device claimed exclusively right
before it writes, and verifies the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import claims, switch
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.devices import active_swap, block_device, claimed
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.headers import (
    LEAST_PAGES,
    MAGIC_BYTES,
    SPAN,
    Signature,
    contents,
    image_pending,
    page_size,
    parse,
    parse_any,
    pending_image,
    read_header,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.identity import (
    DEFAULT_LABEL,
    DEFAULT_PRIORITY,
    LABEL_BYTES,
    check_priority,
    chosen_uuid,
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
    """Steps to the wanted state: C(format), C(rename), C(off) (swapoff), C(on) (swapon). C(signature): type before."""

    format: bool
    rename: bool
    off: bool
    on: bool
    signature: str | None

    @property
    def empty(self):
        return not (self.format or self.rename or self.off or self.on)


def present(tx, device, uuid=None, label=DEFAULT_LABEL, priority=DEFAULT_PRIORITY, active=True, force=False):
    """Make C(device) a swap area with that UUID and label, active or not. Returns what C(nvm_swap) returns.

    A correct header is not written again; a header with another UUID or label is renamed, not formatted.
    """
    check_options(label, priority)
    wanted = Wanted(chosen_uuid(tx.host, device, uuid), label, priority, active, force)
    try:
        block = block_device(tx.host, device)
    except Refused as refused:
        if tx.check_mode and refused.code == "device_missing":
            return _assumed(tx, device, wanted)
        raise
    claims.check(tx.host, block)
    header = read_header(tx.host, block.path) or Signature()
    swap = active_swap(tx.host, block)
    _check(block, header, swap, force)
    plan = _plan(tx.host, block, header, swap, wanted)
    pages = block.size // page_size() - 1 if plan.format else header.last_page
    result = {
        "device": device,
        "block_device": block.path,
        "uuid": wanted.uuid,
        "label": label,
        "size": pages * page_size(),
        "active": active,
        "priority": shown_priority(None if plan.off else swap, wanted),
        "signature": plan.signature,
        "warnings": [] if plan.format else _smaller(block, header),
    }
    if plan.empty:
        return result
    tx.note(
        "swap area %s" % device,
        describe(plan.signature, header.uuid, header.label, header.size, swap is not None, swap and swap.priority),
        describe("swap", wanted.uuid, label, result["size"], active, result["priority"]),
    )
    if not tx.check_mode:
        _apply(tx, block, header, swap, wanted, plan)
        swap = active_swap(tx.host, block)
        result["priority"] = swap.priority if swap else None
    return result


def absent(tx, device, uuid=None, force=False):
    """Deactivate our swap area on C(device) and erase its signature. Returns what C(nvm_swap) returns.

    Writes nothing but the ten bytes of the signature. A device without a swap area is left unchanged.
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
    header = read_header(host, block.path) or Signature()
    swap = active_swap(host, block)
    _check_overwritten(block, header, swap)
    if header.type is None:
        return result
    result["signature"] = header.type
    if not force:
        _check_ours(host, block, header, device, uuid)
    if swap:
        switch.check_memory(host, block, swap)
    tx.note(
        "swap area %s" % device,
        describe(header.type, header.uuid, header.label, header.size, swap is not None, swap and swap.priority),
        "",
    )
    if not tx.check_mode:
        if swap:
            _switch_off(tx, block, swap)
        _erase(host, block, header)
    return result


# checks --------------------------------------------------------------------------------------------------------------


def check_options(label, priority):
    """Refused C(label_invalid) or C(priority_invalid)."""
    if len(label.encode("utf-8")) > LABEL_BYTES or not label.isprintable():
        raise Refused(
            "label_invalid",
            "%r is not a valid label of a swap area: at most %d bytes of printable text." % (label, LABEL_BYTES),
            "Give a shorter label.",
        )
    check_priority(priority)


def _check(block, header, swap, force):
    """Refused where size, header or use of C(block) forbid to make it a swap area."""
    if block.size < LEAST_PAGES * page_size():
        raise Refused(
            "device_too_small",
            "%s has %d bytes; a swap area needs %d." % (block, block.size, LEAST_PAGES * page_size()),
            "Reserve more NVM with nvm_reservation.",
        )
    _check_overwritten(block, header, swap)
    if header.type == "swsuspend" and not force:
        raise image_pending(block)
    problem = misfit(header, block)
    if problem and not force:
        raise Refused(
            "header_mismatch",
            "The swap header on %s %s." % (block, problem),
            "Check whether that swap area is still needed. To format the device, set force=true.",
        )


def _check_overwritten(block, header, swap):
    if swap and header.type != "swap":
        raise Refused(
            "header_mismatch",
            "%s is in use as swap, but its swap header was overwritten by another program." % block,
            "Run swapoff, and check the contents of the device before you use it again.",
        )


def _check_ours(host, block, header, device, uuid):
    """Refused where the header has another UUID than the configured one, or is a hibernation image."""
    if header.uuid != chosen_uuid(host, device, uuid):
        raise Refused(
            "not_ours",
            "The swap area on %s has UUID %s, which is not the one configured for this machine."
            % (block, header.uuid or "of zeros"),
            "To remove it, set the option uuid to that UUID, or set force=true.",
        )
    if header.type == "swsuspend":
        raise image_pending(block)


def check_contents(host, block, header, force):
    """The type of contents on C(block) other than C(header), which the device holds unchanged; None if there are none.

    Claims the device meanwhile. Refused C(holds_filesystem) unless C(force), C(device_changed), C(device_in_use).
    """
    with claimed(host, block) as handle:
        if (parse_any(os.pread(handle, SPAN, 0)) or Signature()) != header:
            raise _changed(block)
        other = contents(host, block.path)
    if other is None or other == header.type:
        return None
    if not force:
        raise Refused(
            "holds_filesystem",
            "%s is not empty: %s." % (block, other),
            "Check the contents (blkid -p %s) or give another device. To overwrite them, set force=true." % block.path,
        )
    return other


def misfit(header, block):
    """Why this kernel cannot use the swap header on C(block), which has a size (C(read_swap_header)), as a predicate, or None."""
    if header.type != "swap":
        return None
    whole = (header.last_page + 1) * header.page_size
    if header.page_size != page_size():
        return "has pages of %d bytes, and this kernel has pages of %d bytes" % (header.page_size, page_size())
    if header.version != 1:
        return "has version %s, and this kernel supports version 1 only" % header.version
    if not header.last_page:
        return "describes an empty swap area"
    if whole > block.size:
        return "describes a swap area of %d bytes, and the device has %d" % (whole, block.size)
    return None


def _smaller(block, header):
    rest = block.size - (header.last_page + 1) * header.page_size
    if rest < header.page_size:
        return []
    return [
        "The swap area on %s leaves %d bytes of the device unused. To use them, remove it (state=absent) and create it "
        "again." % (block, rest)
    ]


# steps ---------------------------------------------------------------------------------------------------------------


def _plan(host, block, header, swap, wanted):
    """The Plan from the current state of C(block) to C(wanted). Refused where a step is not allowed."""
    signature = header.type
    mkswap = header.type != "swap" or misfit(header, block) is not None
    rename = not mkswap and (header.uuid, header.label) != (wanted.uuid, wanted.label)
    off = swap is not None and (mkswap or rename or not wanted.active or not priority_is(swap, wanted.priority))
    on = wanted.active and (swap is None or off)
    if (mkswap or rename or on) and block.read_only:
        raise Refused("device_read_only", "%s is read-only." % block, "Make it writable (blockdev --setrw).")
    if (mkswap or rename or on) and swap is None:
        other = check_contents(host, block, header, wanted.force)
        if other:
            mkswap, rename, signature = True, False, other
    if off:
        switch.check_memory(host, block, swap)
    return Plan(mkswap, rename, off, on, signature)


def _apply(tx, block, header, swap, wanted, plan):
    """Carry out C(plan)."""
    host = tx.host
    if plan.off:
        _switch_off(tx, block, swap)
    if plan.format or plan.rename:
        if plan.off:
            check_contents(host, block, header, wanted.force)
        if plan.format:
            _format(host, block, wanted, over=plan.signature is not None)
        else:
            host.run([host.tool("swaplabel"), "-U", wanted.uuid, "-L", wanted.label, block.path])
        settle(host)
    # also right before swapon(8), which would turn the signature of a pending image into a plain one
    _verify(host, block, wanted)
    if plan.on:
        switch.on(host, block.path, wanted.priority)
        swap = active_swap(host, block)
        if swap is None or not priority_is(swap, wanted.priority):
            raise Refused(
                "verify_failed",
                "swapon succeeded, but /proc/swaps does not list %s with the wanted priority." % block,
                "Check the kernel log (dmesg) for messages on the swap area.",
            )


def _switch_off(tx, block, swap):
    switch.off(tx, block.path, swap, lambda: pending_image(tx.host, block.path))


def _format(host, block, wanted, over):
    """Run mkswap; over other contents, first wipefs, so that no other tool finds them afterwards.

    Both commands open the device exclusively.
    """
    if over:
        host.run([host.tool("wipefs"), "--all", block.path])
    force = ["-f"] if over else []
    host.run([host.tool("mkswap")] + force + ["-U", wanted.uuid, "-L", wanted.label, block.path])


def _erase(host, block, header):
    """Overwrite the signature of C(header) with zeros."""
    with claimed(host, block, os.O_RDWR) as handle:
        if parse(os.pread(handle, SPAN, 0), header.page_size) != header:
            raise _changed(block)
        os.pwrite(handle, b"\0" * MAGIC_BYTES, header.page_size - MAGIC_BYTES)
        os.fsync(handle)
    settle(host)


def _verify(host, block, wanted):
    header = read_header(host, block.path, page_size()) or Signature()
    problem = misfit(header, block)
    if (header.type, header.uuid, header.label) != ("swap", wanted.uuid, wanted.label) or problem:
        raise Refused(
            "verify_failed",
            "%s does not hold the wanted swap header: found %s, UUID %s, label %r%s."
            % (block, header.type or "nothing", header.uuid, header.label, ", which %s" % problem if problem else ""),
            "Check that no other program writes to the device, and check the kernel log for errors of the device.",
        )


def settle(host):
    """Wait until udev knows the new UUID, so that /dev/disk/by-uuid is correct for later tasks."""
    if host.exists("/run/udev/control"):
        host.run([host.tool("udevadm"), "settle", "--timeout=30"], ok=None)


# results -------------------------------------------------------------------------------------------------------------


def _assumed(tx, device, wanted):
    """The result in check mode where C(device) does not exist yet and an earlier task of the run would create it."""
    priority = shown_priority(None, wanted)
    tx.note("swap area %s" % device, "", describe("swap", wanted.uuid, wanted.label, None, wanted.active, priority))
    return {
        "device": device,
        "block_device": None,
        "uuid": wanted.uuid,
        "label": wanted.label,
        "size": None,
        "active": wanted.active,
        "priority": priority,
        "signature": None,
        "warnings": ["%s does not exist; check mode assumes that an earlier task would create it." % device],
    }


def priority_is(swap, priority):
    """Whether the ActiveSwap C(swap) has the wanted priority."""
    return swap.priority == priority if priority >= 0 else swap.priority < 0


def shown_priority(swap, wanted):
    """The priority in use; -1 where the kernel will choose it."""
    if not wanted.active:
        return None
    return swap.priority if swap else wanted.priority


def describe(kind, uuid, label, size, active, priority):
    """A swap area as text, for a diff."""
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
        "The contents of %s changed during the run." % block,
        "Run again when no other program writes to the device.",
    )
