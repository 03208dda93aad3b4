# SPDX-License-Identifier: GPL-3.0-or-later
"""The method C(memmap) of C(nvm_reservation): NVM made of ordinary memory with the kernel argument C(memmap=).

Its contents are lost at power-off, so it requires the option volatile_ok. The range is chosen once and then kept: changing
the memory map makes every hibernation image unusable. A range configured by other means is used unchanged.
"""
from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import booted, bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import memmap
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import guards, udev_rule

PURPOSE = "memmap-%s"  # names our settings in the bootloader
WHY_NOT = "A range of memmap= is fixed at boot. Another size needs another range, force=true and a reboot."


def present(context):
    """Create the reservation. Returns the return values of the module."""
    _check_options(context)
    own = own_range(context)
    if own:
        if context.options.size and context.options.size > own.size:
            if not context.options.force:
                raise Refused(
                    "reservation_differs",
                    "%s has %s, not %s. Choosing another range loses the contents of this one and every hibernation image."
                    % (own.text, format_size(own.size), format_size(context.options.size)),
                    "Set size to the existing size, or set force=true to choose another range.",
                )
            return _choose(context, own)
        return _configure(context, own.size, own.start, "%s is already configured." % own.text)
    regions = volatile_regions(context)
    return _use(context, regions) if regions else _choose(context, None)


def absent(context):
    """Remove the reservation: the range becomes ordinary memory again at the next boot."""
    own = own_range(context)
    pair = _at(context, own.start) if own else context.own()
    path = pair and pair[1].path
    if path and not (context.tx.check_mode and guards.is_encrypted(context.host, path, context.options.name)):
        guards.check_unused(context.host, path, swap=not context.tx.check_mode)
        guards.check_no_image(context.host, path, context.options.force)
    if own and not context.options.force:
        guards.check_no_image_anywhere(context.host, path)
    if context.known_bootloader:
        bootloaders.forget(context.tx, context.bootloader, PURPOSE % context.options.name)
    udev_rule.remove(context.tx, context.options.name, pair and pair[1].blockdev)
    booted.forget(context.tx, PURPOSE % context.options.name)
    active = own is not None and _booted(context, own.size, own.start)
    return context.result(
        method="memmap",
        range=memmap.render(own.size, own.start) if own else None,
        reboot_required=active,
        explanation="%s is NVM until the next reboot." % own.text if active else "",
    )


def own_range(context):
    """The range of this reservation in the bootloader's settings, as a memmap.Argument, or None."""
    if context.known_bootloader is None:
        return None
    ranges = memmap.parse(context.bootloader.owned(PURPOSE % context.options.name) or [])
    return ranges[0] if ranges else None


def volatile_regions(context):
    """Regions made with C(memmap=), by this module or not, that have a block device."""
    return [
        region
        for region in context.regions
        if context.volatile(region) and region.provider == "e820" and any(each.blockdev for each in region.namespaces)
    ]


def _check_options(context):
    if not context.options.volatile_ok:
        raise Refused(
            "volatile",
            "memmap= makes NVM of ordinary memory, which loses its contents at power-off, including images.",
            "Use real NVM. To accept the loss (for a test, or if the power stays on), set volatile_ok=true.",
        )
    if context.options.mode != "raw":
        raise Refused(
            "mode_unsupported",
            "Mode %s is not supported with memmap=, because its metadata would be lost at power-off." % context.options.mode,
            "Set mode=raw.",
        )


def _use(context, regions):
    """Use a range that the machine booted with and that is not in our settings."""
    fits, refusals = [], []
    for region in sorted(regions, key=lambda region: region.size):
        argument = _argument(context, region)
        need = context.options.size or memmap.automatic_size(
            context.memory, [each.range for each in _taken(context) if each != argument], context.options.dram_multiple)[0]
        if region.size >= need:
            fits.append((region, argument))
        else:
            refusals.append(_small(context, region, need))
    for region, argument in fits:
        namespace = region.namespaces[0]
        try:
            if context.own() != (region, namespace):
                guards.check_takeover(context.host, namespace.path, context.options.name, context.options.force)
        except Refused as refused:
            refusals.append(refused)
            continue
        if argument and context.known_bootloader and not _configured(context, argument):
            text = "%s was on the command line of this boot only, and is now configured for later boots." % argument.text
            return _configure(context, argument.size, argument.start, text)
        udev_rule.apply(context.tx, context.options.name, _rule(region.resource, argument), namespace.blockdev)
        return context.result(
            region,
            namespace,
            method="memmap",
            range=argument and memmap.render(argument.size, argument.start),
            why_not_resizable=WHY_NOT,
            explanation="%s was not configured by this module; it is used unchanged and has %s."
            % (argument.text if argument else region.dev, format_size(region.size)),
        )
    raise refusals[0]


def _choose(context, old):
    """Choose a new range. C(old) is the range that it replaces, or None."""
    memory = memmap.firmware_map(context.host)
    taken = [each.range for each in _taken(context) if old is None or (each.size, each.start) != (old.size, old.start)]
    if context.options.size:
        size, start = memmap.choose_range(memory, context.options.size, taken)
        text = "Requested: %s, rounded up to a multiple of %s." % (
            format_size(context.options.size), format_size(memmap.ALIGN))
    else:
        most, wanted = memmap.automatic_size(memory, taken, context.options.dram_multiple)
        size, start = memmap.choose_range(memory, most or memmap.ALIGN, taken)
        text = "Of %s of memory, %s become NVM; %d x the remaining memory would be %s." % (
            format_size(memmap.total(memory, taken)),
            format_size(size),
            context.options.dram_multiple,
            format_size(wanted),
        )
        if size < wanted:
            text += " At least half of the memory stays ordinary memory, and the range is contiguous."
    if not context.options.force:
        guards.check_no_image_anywhere(context.host, context.device if context.host.exists(context.device) else None)
    return _configure(context, size, start, text)


def _configure(context, size, start, explanation):
    """Set the bootloader's settings and the link for that range."""
    tx, bootloader = context.tx, context.bootloader
    argument = memmap.render(size, start)
    pair = _at(context, start)
    active = _booted(context, size, start)
    changed = bootloader.ensure(tx, PURPOSE % context.options.name, [argument])
    if active and pair is None and not changed:
        raise Refused(
            "region_missing",
            "The kernel was booted with %s, but has no NVM region for it." % argument,
            "Load the driver: modprobe nd_e820 (CONFIG_X86_PMEM_LEGACY). If the kernel log reports that the range is "
            "not RAM, remove the reservation (state=absent) and create it again.",
        )
    region, namespace = pair or (None, None)
    udev_rule.apply(tx, context.options.name, _rule(start, memmap.parse([argument])[0]), namespace and namespace.blockdev)
    lacking = None if active else ("lacks %s on its command line" % argument, booted.OTHER_BOOTLOADER)
    in_vain = booted.reboot_in_vain(tx, PURPOSE % context.options.name, lacking)
    return context.result(
        region,
        namespace,
        method="memmap",
        mode="raw",
        size=namespace.size if namespace else size,
        range=argument,
        reboot_required=pair is None or not active,
        reboot_in_vain=in_vain,
        warnings=[in_vain] if in_vain else [],
        why_not_resizable=WHY_NOT,
        explanation=explanation,
    )


def _rule(address, argument):
    record = {"method": "memmap"}
    if argument:
        record["range"] = memmap.render(argument.size, argument.start)
    return udev_rule.rule_at(address, record)


def _at(context, start):
    """The (region, namespace) of the e820 region that starts at C(start), or None."""
    for region in volatile_regions(context):
        if region.resource == start:
            return region, region.namespaces[0]
    return None


def _taken(context):
    """All ranges of C(memmap=) on the running kernel's command line and in boot entries."""
    entries = context.known_bootloader.entries() if context.known_bootloader else []
    words = [word for entry in entries for word in entry.arguments]
    arguments = memmap.parse(context.host.read("/proc/cmdline", "")) + memmap.parse(words)
    return list(dict.fromkeys(arguments))


def _argument(context, region):
    """The C(memmap=) argument of the running kernel that created a region, or None."""
    for each in memmap.parse(context.host.read("/proc/cmdline", "")):
        if each.sign == "!" and each.start == region.resource:
            return each
    return None


def _configured(context, argument):
    """Whether a boot entry has that range."""
    return any(
        (each.sign, each.size, each.start) == ("!", argument.size, argument.start)
        for entry in context.bootloader.entries()
        for each in memmap.parse(entry.arguments)
    )


def _booted(context, size, start):
    return any(
        (each.sign, each.size, each.start) == ("!", size, start)
        for each in memmap.parse(context.host.read("/proc/cmdline", ""))
    )


def _small(context, region, need):
    return Refused(
        "nvm_too_small",
        "%s, made with memmap=, has %s; %s needs %s."
        % (region.dev, format_size(region.size), context.options.name, format_size(need)),
        "Give a smaller size, or remove that memmap= from the kernel command line and reboot. A range is then chosen.",
    )
