# SPDX-License-Identifier: GPL-3.0-or-later
"""The slots of a device: a table of them, one slot removed, all of the device erased. The command C(fuse-store) does it.

One run is one thread. A call that is killed leaves the table as it was, or changed.
"""

from __future__ import annotations

import os

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._store.client import Program

EDGE = 1 << 20  # bytes at the start of a device, with its table
MADE = "a table of slots\n"


def apply(transaction, options):
    """Bring the device into the state C(options["state"]), and return the module's result."""
    device = options["device"]
    try:
        program = Program(transaction.host, options["executable"])
    except Refused:
        if not transaction.check_mode or options["state"] != "present":
            raise
        transaction.note(device, "", MADE)  # an earlier task would install the command
        return _result(device, None, [])
    before = _listed(transaction.host, program, device)
    after = _STATES[options["state"]](transaction, program, options, before)
    return _result(device, after, program.warnings)


def _result(device, after, warnings):
    known = after or {"page_size": None, "free": None, "slots": []}
    found = {key: known[key] for key in ("page_size", "free", "slots")}
    return dict(found, device=device, initialized=after is not None, warnings=warnings)


def _present(transaction, program, options, before):
    if before is not None:
        return before
    transaction.note(options["device"], "", MADE)
    if transaction.check_mode:
        return None
    program.call("slots", "init", options["device"], *_force(options))
    return program.call("slots", "list", options["device"])


def _read(transaction, program, options, before):
    return before


def _absent(transaction, program, options, before):
    """Without C(slot), erase the device: images hold the secrets of a machine. The table goes last, so that a run that was
    interrupted is completed by the next one."""
    if before is None:
        return None
    device, number = options["device"], options["slot"]
    if number is not None:
        return _without(transaction, program, options, before)
    kept = [str(slot["slot"]) for slot in before["slots"] if slot["kept"] == "golden" or slot["state"] == "armed"]
    if kept and not options["force"]:
        raise Refused(
            "slots_kept",
            "%s has golden or armed images in its slots %s." % (device, ", ".join(kept)),
            "Put them into a store first, or set force=true to lose them.",
        )
    transaction.note(device, "a table of slots, with %d images\n" % len(before["slots"]), "zeros\n")
    if transaction.check_mode:
        return before
    zero = [transaction.host.tool("blkdiscard"), "--zeroout"]  # exclusively: it fails on a device that is in use
    transaction.host.run(zero + ["--offset", str(EDGE), device])
    transaction.host.run(zero + ["--length", str(EDGE), device])
    return None


def _without(transaction, program, options, before):
    device, number = options["device"], options["slot"]
    slot = next((each for each in before["slots"] if each["slot"] == number), None)
    if slot is None:
        return before
    transaction.note(device, "slot %d: %s/%s %s\n" % (number, slot["machine"], slot["application"], slot["image"]), "")
    if transaction.check_mode:
        return before
    program.call("slots", "remove", device, "--slot", str(number), *_force(options))
    return program.call("slots", "list", device)


_STATES = {"present": _present, "listed": _read, "absent": _absent}
STATES = tuple(_STATES)


def _listed(host, program, device):
    """The answer of C(slots list), or None if the device has no table."""
    if not os.path.exists(host.path(host.real(device))):
        raise Refused("device_missing", "%s does not exist." % device, "Set the option device to the device with the slots.")
    try:
        return program.call("slots", "list", device)
    except Refused as refused:
        if refused.code != "not_found":
            raise
        return None


def _force(options):
    return ["--force"] if options["force"] else []
