# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at several parts of the configuration in one run, each in check mode (C(nvm_plan)).

Each part assumes that those before it were done. Nothing is changed.
"""

from __future__ import annotations

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import resume
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carried_out
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted import area
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import readiness
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate import triggers
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import reservation
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import file_area, fstab

# By the name of the module that changes it.
PARTS = {
    "nvm_reservation": reservation.PART,
    "nvm_swap": area.PART,
    "swap_file": file_area.PART,
    "fstab_swap": fstab.PART,
    "boot_resume": resume.PART,
    "hibernate_trigger": triggers.PART,
}
BUILT_NEXT = ("initramfs_drivers", "initramfs_outdated", "initramfs_overridden")  # blockers of images that a change would build again


def plan(host, wanted, device=None, passphrase=None):
    """Look at the parts C(wanted), C([{module: options, or a list of options}]), in order. Returns what C(nvm_plan) returns.

    With C(device), also the blockers of a hibernation into it. C(passphrase) is the option of nvm_swap: those in parts are logged.
    Raises Refused as the first part does that would.
    """
    # All options are checked before the first look: a mistake is no news about the machine.
    asked = [(name, options, isinstance(given, list)) for name, given in _named(wanted) for options in [_checked(name, given)]]
    for options in (each for name, several, _list in asked if name == "nvm_swap" for each in several):
        if options["passphrase"] is not None:
            raise Refused("part_invalid", "nvm_swap has a passphrase in parts, which are logged.", "Give it as the option passphrase.")
        options["passphrase"] = passphrase
    parts, done = {}, []
    for name, options, several in asked:
        looks = [_look(host, PARTS[name], each) for each in options]
        done += [(name, look) for look in looks]
        values = [{key: value for key, value in look.items() if key not in ("changed", "diff", "warnings")} for look in looks]
        parts[name] = values if several else values[0]
    would_change = list(dict.fromkeys(name for name, look in done if look["changed"]))
    result = {
        "parts": parts,
        "would_change": would_change,
        "diff": [change for _name, look in done for change in look["diff"]],
        "reboot_required": any(look.get("reboot_required") for _name, look in done),
        "reboot_in_vain": [look["reboot_in_vain"] for _name, look in done if look.get("reboot_in_vain")],
        "warnings": [text for _name, look in done for text in look.get("warnings", ())],
    }
    if device is not None:
        result["blockers"] = readiness.blockers(host, device, BUILT_NEXT if would_change else ())
    return result


def _named(wanted):
    """C(wanted) as pairs of a module's name and what is given for it. Refused C(part_invalid)."""
    for entry in wanted:
        names = list(entry)
        if len(names) != 1 or names[0] not in PARTS:
            raise Refused(
                "part_invalid",
                "An entry of parts has %s, not one module." % (", ".join(map(str, names)) or "nothing"),
                "Give one of %s, with its options." % ", ".join(PARTS),
            )
        yield names[0], entry[names[0]]


def _checked(name, given):
    """The options of each use of the module C(name), checked and with their defaults: a list. Refused C(options_invalid)."""
    part, checked = PARTS[name], []
    for options in given if isinstance(given, list) else [given]:
        if not isinstance(options, dict):
            raise Refused("options_invalid", "The options of %s are %r." % (name, options), "Give its options by name.")
        result = ArgumentSpecValidator(part.options, required_if=part.required_if).validate(options)
        if result.error_messages:
            raise Refused("options_invalid", "%s: %s." % (name, "; ".join(result.error_messages)), "Correct the options.")
        checked.append(result.validated_parameters)
    return checked


def _look(host, part, options):
    return carried_out(host, True, lambda transaction: part.change(transaction, options))
