# SPDX-License-Identifier: GPL-3.0-or-later
"""What C(nvm_reservation) does: choose the method, and have it make or undo the reservation.

The methods are ndctl.py and memmap.py. Reading a reservation that is right runs no command.
"""
from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import nvm
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import memmap, ndctl, udev
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation.context import Case, Options

METHODS = {"ndctl": ndctl, "memmap": memmap}

__all__ = ["Options", "absent", "present"]


def present(tx, options, detect=None):
    """Make the reservation that C(options) (an Options) asks for, within the Transaction C(tx).

    Returns the module's result but C(changed) and C(diff). C(detect(host)) finds the bootloader; the usual one if None.
    """
    udev.check_name(tx.host, options.name)
    case = Case(tx, options, detect)
    method = _method(case)
    _refuse_other_method(case, method)
    found = METHODS[method].present(case)
    return dict(found, dram=case.dram)


def absent(tx, options, detect=None):
    """Undo the reservation, whatever method made it. Returns as present() does."""
    udev.check_name(tx.host, options.name)
    case = Case(tx, options, detect)
    found = METHODS[_made_with(case)].absent(case)
    return dict(found, dram=case.dram)


def _method(case):
    """"ndctl" or "memmap". What there is already comes first, then NVM that keeps its contents. Refused C(no_nvm)."""
    wanted = case.options.method
    if wanted == "memmap":
        return wanted
    if wanted == "auto":
        own = case.own()
        if own:
            return "memmap" if case.volatile(own[0]) else "ndctl"
        if case.rule and case.rule.record.get("method") == "memmap":
            return "memmap"  # before the reboot that makes the range NVM
    if ndctl.usable_regions(case):
        return "ndctl"
    if wanted == "auto" and (case.options.volatile_ok or memmap.volatile_regions(case)):
        return "memmap"
    raise Refused(
        "no_nvm",
        "The machine has no non-volatile memory that the kernel knows: no region in %s that outlasts power-off."
        % nvm.DEVICES,
        "Fit NVDIMMs, or give the virtual machine one. To try it on ordinary memory, which loses its contents at "
        "power-off, say volatile_ok: true (and no method: ndctl).",
    )


def _refuse_other_method(case, method):
    """Refused C(reservation_differs) where the reservation was made with another method than C(method)."""
    own = case.own()
    made = "ndctl" if own and own[1].labelled else case.rule and case.rule.record.get("method")
    if made and made != method:
        raise Refused(
            "reservation_differs",
            "%s was made with method %s, and %s is wanted." % (case.device, made, method),
            "Remove it first with state: absent, which also tells whether a reboot is needed.",
        )


def _made_with(case):
    """The method that made the reservation. Without a rule, of which an interrupted removal may have left none, the
    bootloader's settings are looked at, if there is a bootloader that is known."""
    own = case.own()
    if own and own[1].labelled:
        return "ndctl"
    if case.rule:
        return case.rule.record.get("method", "ndctl")
    try:
        return "memmap" if memmap.own_range(case) else "ndctl"
    except Refused:
        return "ndctl"
