# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates and removes a reservation (C(nvm_reservation)): chooses the method and calls it.

The methods are method_ndctl.py and method_memmap.py. A run that changes nothing runs no command.
"""
from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.part import STATE, Part
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import checks_device, nvm
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import method_memmap, method_ndctl, udev_rule
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation.context import (
    REMAIN,
    Options,
    ReservationContext,
)

METHODS = {"ndctl": method_ndctl, "memmap": method_memmap}

__all__ = ["PART", "Options", "absent", "present"]


def present(tx, options, detect=None):
    """Create the reservation described by C(options) (an Options), within the Transaction C(tx).

    Returns the return values of the module. C(detect(host)) returns the bootloader; the default is bootloaders.detect.
    """
    udev_rule.check_name(tx.host, options.name)
    context = ReservationContext(tx, options, detect)
    method = _method(context)
    _check_method(context, method)
    return dict(METHODS[method].present(context), dram=context.dram)


def absent(tx, options, detect=None):
    """Remove the reservation, whatever method made it. Returns the return values of the module."""
    udev_rule.check_name(tx.host, options.name)
    context = ReservationContext(tx, options, detect or _detect_for_removal(options.name))
    return dict(METHODS[_made_with(context)].absent(context), dram=context.dram)


def _detect_for_removal(name):
    """Settings are removed from the bootloader that has them, whichever one starts the machine now."""
    return lambda host: bootloaders.detect_for_removal(host, method_memmap.PURPOSE % name)


def _method(context):
    """"ndctl" or "memmap": the method of the existing reservation, else ndctl if there is real NVM. Refused C(no_nvm)."""
    wanted = context.options.method
    if wanted == "memmap":
        return wanted
    if wanted == "auto":
        own = context.own()
        if own:
            return "memmap" if context.volatile(own[0]) else "ndctl"
        if context.rule and context.rule.record.get("method") == "memmap":
            return "memmap"  # configured, but not booted with yet
    if method_ndctl.usable_regions(context):
        return "ndctl"
    if wanted == "auto" and (context.options.volatile_ok or method_memmap.volatile_regions(context)):
        return "memmap"
    undriven = nvm.missing_driver(context.host)
    if undriven and not context.regions:
        raise checks_device.no_driver(context.host, *undriven)
    raise Refused(
        "no_nvm",
        "The machine has no non-volatile memory: no region in %s keeps its contents at power-off." % nvm.DEVICES,
        "Install NVDIMMs, or add one to the virtual machine. To try it on ordinary memory, which loses its contents at "
        "power-off, set volatile_ok=true and method=auto.",
    )


def _check_method(context, method):
    """Refused C(reservation_differs) if the reservation exists and was made with another method than C(method)."""
    own = context.own()
    made = "ndctl" if own and own[1].labelled else context.rule and context.rule.record.get("method")
    if made and made != method:
        raise Refused(
            "reservation_differs",
            "%s was created with method %s, not %s." % (context.device, made, method),
            "Remove it first with state=absent, and reboot if the result says so.",
        )


def _made_with(context):
    """The method that made the reservation, from its label, its udev rule, or the settings of the bootloader.

    An interrupted removal may have left no rule.
    """
    own = context.own()
    if own and own[1].labelled:
        return "ndctl"
    if context.rule:
        return context.rule.record.get("method", "ndctl")
    try:
        return "memmap" if method_memmap.own_range(context) else "ndctl"
    except Refused as refused:
        return "memmap" if refused.code == REMAIN else "ndctl"


def _change(tx, params):
    return {"present": present, "absent": absent}[params["state"]](tx, Options.of(params))


PART = Part(
    {
        "name": {"type": "str", "default": "NVM_SWAP"},
        "size": {"type": "str", "default": "auto"},
        "dram_multiple": {"type": "int", "choices": [1, 2], "default": 1},
        "method": {"type": "str", "choices": ["auto", "ndctl", "memmap"], "default": "auto"},
        "mode": {"type": "str", "choices": ["raw", "sector"], "default": "raw"},
        "volatile_ok": {"type": "bool", "default": False},
        "force": {"type": "bool", "default": False},
        "state": STATE,
    },
    _change,
)
