# SPDX-License-Identifier: GPL-3.0-or-later
"""The method C(memmap) of C(nvm_reservation): ordinary memory that the kernel argument C(memmap=) makes NVM.

It is lost when the power goes, and so only for those who say that they know. The range is chosen once and then kept: a
changed memory map makes every hibernation image useless. A range that somebody else configured is used as it is.
"""
from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import memmap
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import context, udev

PURPOSE = "memmap-%s"  # of the bootloader's settings
WHY_NOT = "A range of memmap= is fixed at boot; another size needs another range, a reboot and force: true."


def present(case):
    """Make the reservation. Returns what the module returns."""
    _check_options(case)
    own = own_range(case)
    if own:
        if case.options.size and case.options.size > own.size:
            if not case.options.force:
                raise Refused(
                    "reservation_differs",
                    "%s is %s, and %s is wanted. Another range loses what this one holds and every hibernation image."
                    % (own.text, format_size(own.size), format_size(case.options.size)),
                    "Ask for what is there, or let another range be chosen with force: true.",
                )
            return _choose(case, own)
        return _configure(case, own.size, own.start, "%s was configured earlier and is kept." % own.text)
    regions = volatile_regions(case)
    return _use(case, regions) if regions else _choose(case, None)


def absent(case):
    """Undo it: the range becomes ordinary memory at the next boot."""
    own = own_range(case)
    found = _at(case, own.start) if own else case.own()
    path = found and found[1].path
    if path:
        context.refuse_in_use(case.host, path)
        context.refuse_image(case.host, path, case.options.force)
    if own and not case.options.force:
        context.refuse_any_image(case.host, path)
    if case.known_bootloader:
        case.bootloader.forget(case.tx, PURPOSE % case.options.name)
    udev.withdraw(case.tx, case.options.name, found and found[1].blockdev)
    booted = own is not None and _booted(case, own.size, own.start)
    return case.result(
        method="memmap",
        range=memmap.render(own.size, own.start) if own else None,
        reboot_required=booted,
        explanation="%s stays NVM until the machine boots again." % own.text if booted else "",
    )


def own_range(case):
    """Our range in the bootloader's settings, as an memmap.Argument, or None."""
    if case.known_bootloader is None:
        return None
    ranges = memmap.parse(case.bootloader.owned(PURPOSE % case.options.name) or [])
    return ranges[0] if ranges else None


def volatile_regions(case):
    """Regions made with C(memmap=), by whomever, as far as a block device stands for them."""
    return [
        region
        for region in case.regions
        if case.volatile(region) and region.provider == "e820" and any(each.blockdev for each in region.namespaces)
    ]


def _check_options(case):
    if not case.options.volatile_ok:
        raise Refused(
            "volatile",
            "memmap= makes NVM of ordinary memory, which loses its contents at power-off, images included.",
            "Say volatile_ok: true to accept that (for a trial, or where the power stays on); else use real NVM.",
        )
    if case.options.mode != "raw":
        raise Refused(
            "mode_unsupported",
            "The metadata of mode %s would be lost with the rest of the memory at power-off." % case.options.mode,
            "Use mode: raw with memmap=.",
        )


def _use(case, regions):
    """A range that the machine booted with and that is not in our settings."""
    fits, refusals = [], []
    for region in sorted(regions, key=lambda region: region.size):
        argument = _argument(case, region)
        need = case.options.size or memmap.automatic_size(
            case.memory, [each.range for each in _taken(case) if each != argument], case.options.dram_multiple)[0]
        if region.size >= need:
            fits.append((region, argument))
        else:
            refusals.append(_small(case, region, need))
    for region, argument in fits:
        namespace = region.namespaces[0]
        try:
            if case.own() != (region, namespace):
                context.vet(case.host, namespace.path, case.options.name, case.options.force)
        except Refused as refused:
            refusals.append(refused)
            continue
        if argument and case.known_bootloader and not _configured(case, argument):
            text = "%s is on the command line of this boot only, and is now kept for the next ones." % argument.text
            return _configure(case, argument.size, argument.start, text)
        udev.apply(case.tx, case.options.name, _rule(region.resource, argument), namespace.blockdev)
        return case.result(
            region,
            namespace,
            method="memmap",
            range=argument and memmap.render(argument.size, argument.start),
            why_not_resizable=WHY_NOT,
            explanation="%s was configured by somebody else, is used as it is, and has %s."
            % (argument.text if argument else region.dev, format_size(region.size)),
        )
    raise refusals[0]


def _choose(case, old):
    """A new range; C(old) is the one it takes the place of, or None."""
    memory = memmap.firmware_map(case.host)
    taken = [each.range for each in _taken(case) if old is None or (each.size, each.start) != (old.size, old.start)]
    if case.options.size:
        size, start = memmap.choose_range(memory, case.options.size, taken)
        text = "%s were asked for, in multiples of %s." % (
            format_size(case.options.size), format_size(memmap.ALIGN))
    else:
        most, wanted = memmap.automatic_size(memory, taken, case.options.dram_multiple)
        size, start = memmap.choose_range(memory, most or memmap.ALIGN, taken)
        text = "Of %s of memory, %s become NVM; %d x what would be left is %s." % (
            format_size(memmap.total(memory, taken)),
            format_size(size),
            case.options.dram_multiple,
            format_size(wanted),
        )
        if size < wanted:
            text += " It is less because half of the memory stays ordinary, and because the range is in one piece."
    if not case.options.force:
        context.refuse_any_image(case.host, case.device if case.host.exists(case.device) else None)
    return _configure(case, size, start, text)


def _configure(case, size, start, explanation):
    """The bootloader's settings and the link for that range."""
    tx, bootloader = case.tx, case.bootloader
    argument = memmap.render(size, start)
    found = _at(case, start)
    booted = _booted(case, size, start)
    changed = bootloader.ensure(tx, PURPOSE % case.options.name, [argument])
    if booted and found is None and not changed:
        raise Refused(
            "region_missing",
            "The kernel booted with %s, and made no NVM of it." % argument,
            "Its driver may be missing: modprobe nd_e820 (CONFIG_X86_PMEM_LEGACY). If the kernel log says that the "
            "range is no RAM, remove the reservation (state: absent) and make it anew.",
        )
    region, namespace = found or (None, None)
    udev.apply(tx, case.options.name, _rule(start, memmap.parse([argument])[0]), namespace and namespace.blockdev)
    return case.result(
        region,
        namespace,
        method="memmap",
        mode="raw",
        size=namespace.size if namespace else size,
        range=argument,
        reboot_required=found is None or not booted,
        why_not_resizable=WHY_NOT,
        explanation=explanation,
    )


def _rule(address, argument):
    record = {"method": "memmap"}
    if argument:
        record["range"] = memmap.render(argument.size, argument.start)
    return udev.rule_at(address, record)


def _at(case, start):
    """The (region, namespace) of the e820 region that starts at C(start), or None."""
    for region in volatile_regions(case):
        if region.resource == start:
            return region, region.namespaces[0]
    return None


def _taken(case):
    """Every range of C(memmap=) on the running kernel's command line or in a boot entry."""
    entries = case.known_bootloader.entries() if case.known_bootloader else []
    words = [word for entry in entries for word in entry.arguments]
    found = memmap.parse(case.host.read("/proc/cmdline", "")) + memmap.parse(words)
    return list(dict.fromkeys(found))


def _argument(case, region):
    """The C(memmap=) argument of the running kernel that made a region, or None."""
    for each in memmap.parse(case.host.read("/proc/cmdline", "")):
        if each.sign == "!" and each.start == region.resource:
            return each
    return None


def _configured(case, argument):
    """Whether the next boot will have that range, too."""
    return any(
        (each.sign, each.size, each.start) == ("!", argument.size, argument.start)
        for entry in case.bootloader.entries()
        for each in memmap.parse(entry.arguments)
    )


def _booted(case, size, start):
    return any(
        (each.sign, each.size, each.start) == ("!", size, start)
        for each in memmap.parse(case.host.read("/proc/cmdline", ""))
    )


def _small(case, region, need):
    return Refused(
        "nvm_too_small",
        "%s, made with memmap=, has %s, and %s is to have %s."
        % (region.dev, format_size(region.size), case.options.name, format_size(need)),
        "Give a smaller size, or take that memmap= off the kernel command line and reboot: a range is then chosen.",
    )
