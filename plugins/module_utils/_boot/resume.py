# SPDX-License-Identifier: GPL-3.0-or-later
"""Configure all installed kernels to resume from a device or a swap file, and remove this configuration.

The order matters. C(resume=) for a device that the initramfs cannot reach makes a boot wait for the device. So the
initramfs is built and verified before the bootloader gets C(resume=), and on removal the bootloader comes first. All
changes go through a Transaction; a step that fails undoes the earlier ones.

Nothing here writes to C(/sys/power/resume), because that makes the running system try to resume at once. One run is one
thread.
"""

from __future__ import annotations

import os

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import booted, bootloaders, files, kernel_config, late
from ansible_collections.nvm.fastboot.plugins.module_utils._boot import initramfs as initramfs_tools
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.compression import ARGUMENTS as COMPRESSION_ARGUMENTS
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.compression import COMPRESSIONS
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.compression import select as select_compression
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.drivers import ASSUMED, drivers_for
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._core.mounts import memory_holding, read_only_holding
from ansible_collections.nvm.fastboot.plugins.module_utils._core.part import STATE, Part, by_state
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import headers, identity, luks, target

PURPOSE = "resume"
# Arguments of other settings that would select another device (kernel/power/hibernate.c, setup functions)
DROP = ("resume", "resume_offset")
UNKNOWN = "unknown"  # in check mode, the resume_offset of a swap file that an earlier task would create
# Arguments that prevent hibernation: reported, never overridden
CONFLICTS = ("nohibernate", "noresume", "hibernate=no", "hibernate=noresume")


def present(tx, device=identity.DEFAULT_DEVICE, uuid=None, compression=None, force=False):
    """Configure the machine to resume from C(device), with all installed kernels. Returns the module's result.

    C(compression) is one of COMPRESSIONS, or None for the kernel's default. Refused as the module documents.
    """
    host = tx.host
    files.check(host)
    place = _place(tx, device)
    header = _header(tx, device, place)
    resume = "UUID=%s" % _uuid(tx, device, uuid, place, header)
    bootloader, initramfs = bootloaders.detect(host), initramfs_tools.detect(host)
    initramfs.unlock(luks.below(host, place.block.path) if place else [])
    _check_conflicts(bootloader)
    kernels = _kernels(initramfs)
    words, algorithms = select_compression(host, kernels, compression)
    arguments = ["resume=" + resume] + _offset(place) + words + initramfs.unlock_arguments()
    drop = DROP + (COMPRESSION_ARGUMENTS if compression else ())
    drivers = drivers_for(host, place.block) + place.modules(host) if place else list(ASSUMED)
    modules = drivers + [name for name in algorithms if name not in drivers]

    built = initramfs.value(resume, target.is_file(device))

    def change(transaction):
        # With other settings than these, every image is built again, and none has to be read, which takes seconds.
        other = initramfs.configure(transaction, built, modules)
        stale = [kernel for kernel in kernels if other or not initramfs.complete(kernel, built, modules)]
        initramfs.rebuild(transaction, stale, built, modules)
        bootloader.ensure(transaction, PURPOSE, arguments, drop)

    _guard(tx, device, header, force, change)
    change(tx)
    if not (tx.check_mode and tx.changed):  # the machine is as it will be
        _check_all(bootloader, initramfs, kernels, built, modules, arguments, drop)
    if not tx.check_mode:
        initramfs.finish()
    lacking = _lacking(host, place, arguments)
    in_vain = booted.reboot_in_vain(tx, PURPOSE, lacking)
    return {
        "resume": resume,
        "offset": place.offset if place and place.file else None,
        "arguments": arguments,
        "bootloader": bootloader.name,
        "initramfs": initramfs.name,
        "kernels": [_kernel(initramfs, kernel, _resumes(initramfs, kernel, built, modules)) for kernel in kernels],
        "drivers": drivers,
        "reboot_required": lacking is not None,
        "reboot_in_vain": in_vain,
        "warnings": [in_vain] if in_vain else [],
    }


def absent(tx, device=identity.DEFAULT_DEVICE, force=False):
    """Remove the configuration: first C(resume=), then the settings of the initramfs. Returns the module's result."""
    host = tx.host
    files.check(host)
    try:
        place = _find(host, device)
        header = place.header(host)
    except Refused:
        place = header = None  # also removes the configuration for a device that is missing or unreadable
    passed = _passed(host, device, place, header)
    bootloader = bootloaders.detect_for_removal(host, PURPOSE, passed)
    initramfs = initramfs_tools.detect_for_removal(host)
    arguments = _owned(bootloader)

    def change(transaction):
        if bootloader:
            bootloaders.forget(transaction, bootloader, PURPOSE, passed)
        for other in initramfs_tools.others(host, initramfs):
            other.remove_settings(transaction)
        if initramfs and initramfs.unconfigure(transaction):
            initramfs.show(_without(host, place))
            initramfs.rebuild(transaction, initramfs.stale())
            if bootloader:
                bootloader.after_hooks(transaction)

    _guard(tx, device, header, force, change)
    change(tx)
    if initramfs and not tx.check_mode:
        initramfs.finish()
    booted.forget(tx, PURPOSE)
    return {
        "resume": None,
        "offset": None,
        "arguments": [],
        "bootloader": bootloader and bootloader.name,
        "initramfs": initramfs and initramfs.name,
        "kernels": [_kernel(initramfs, kernel, None) for kernel in initramfs.kernels()] if initramfs else [],
        "drivers": [],
        "reboot_required": bool(set(arguments) & set(host.read("/proc/cmdline", "").split())),
        "reboot_in_vain": None,
    }


def _without(host, place):
    """What there is without the swap area, as C({path: text}): where it is active, or in crypttab, initramfs-tools and dracut would have
    images wait for it (hooks/resume, dracut's swap_devs), also when it is gone."""
    if place is None or place.file:
        return {}
    swap = place.swap(host)
    gone = {"/proc/swaps": {swap.path.split()[0]} if swap else set(),
            "/etc/crypttab": {mapping.name for mapping in luks.below(host, place.given) if mapping.line}}
    return {
        path: "".join(line for line in host.read(path, "").splitlines(keepends=True) if not names.intersection(line.split()[:1]))
        for path, names in gone.items() if names
    }


def _find(host, device):
    """The Target that C(device) names; where a swap file is not there yet, the one that it would be."""
    try:
        return target.find(host, device)
    except Refused as refused:
        if refused.code != "swap_file_missing":
            raise
        return target.expected(host, device)


def _place(tx, device):
    """The Target to resume from. In check mode, None if the device does not exist yet."""
    try:
        return _find(tx.host, device) if tx.check_mode else target.find(tx.host, device)
    except Refused as refused:
        if refused.code == "device_missing" and tx.check_mode:
            return None
        raise


def _header(tx, device, place):
    """The swap header there. In check mode, None if the device, the swap file or the swap area does not exist yet."""
    header = place.header(tx.host) if place else None
    if header is not None and header.type in ("swap", "swsuspend"):
        return header
    if tx.check_mode and (place is None or place.file or headers.contents(tx.host, device) is None):
        return None
    raise Refused(
        "not_swap",
        "%s holds no swap area to resume from." % device,
        "Create the swap area with %s, or set device to the device with the swap area." % ("swap_file" if place.file else "nvm_swap"),
    )


def _uuid(tx, device, uuid, place, header):
    """What C(resume=UUID=) says."""
    given = identity.chosen_uuid(tx.host, device, uuid) if uuid is not None else None
    if header is not None and given and given != header.uuid:
        raise Refused(
            "uuid_mismatch",
            "The swap area on %s has the UUID %s, not %s." % (device, header.uuid, given),
            "Omit uuid, or set device to the device with this UUID.",
        )
    found = place.uuid(tx.host, header) if place else None
    if not found and header is None and not (place and place.file):
        return given or identity.swap_uuid(tx.host, os.path.basename(device))
    if found:
        return found
    raise Refused(
        "uuid_missing",
        "The filesystem that has %s, on %s, has no UUID." % (device, place.block),
        "Give it one (tune2fs -U random, xfs_admin -U generate, btrfstune -u), or move the swap file.",
    ) if place.file else Refused(
        "uuid_missing",
        "The swap area on %s has no UUID." % device,
        "Run nvm_swap to set one, or: swapoff %s; swaplabel --uuid UUID %s; swapon %s." % (device, device, device),
    )


def _offset(place):
    """The argument that says where the swap file begins, in a list; empty for a device."""
    if not place or not place.file:
        return []
    return ["resume_offset=%s" % (UNKNOWN if place.offset is None else place.offset)]


def _kernels(initramfs):
    kernels = initramfs.kernels()
    if not kernels:
        raise Refused(
            "kernel_missing",
            "/boot has no kernel (vmlinuz-VERSION).",
            "Mount the filesystem with the kernels at /boot, or install a kernel.",
        )
    return kernels


def _guard(tx, device, header, force, change):
    """Refused if C(change) would change anything while C(device) holds an image (C(image_pending)), or where changes are in memory only
    (C(root_is_overlay)) or impossible (C(filesystem_read_only))."""
    pending = not force and header is not None and header.type == "swsuspend"
    lost = [path for path in ("/etc", files.BOOT) if memory_holding(tx.host, path) or read_only_holding(tx.host, path)]
    if not pending and not lost:
        return
    trial = Transaction(tx.host, check_mode=True, kept=False)
    change(trial)
    if trial.changed:
        for path in lost:
            tx.check_kept(path)
        raise headers.image_pending(device, "the boot configuration was not changed")


def _check_conflicts(bootloader):
    setting = bootloader.find_setting(CONFLICTS) or bootloader.find_initrdless()
    if setting:
        raise Refused(
            "conflicting_argument",
            "%s sets '%s', which prevents resuming." % setting,
            "Remove it from that file to hibernate this machine, and run the module again.",
        )


def _check_all(bootloader, initramfs, kernels, resume, modules, arguments, drop):
    """Verify the result by reading what the next boot reads."""
    problems = bootloader.check(bootloader.entries(), arguments, drop + CONFLICTS)
    for kernel in kernels:
        lacking = initramfs.missing(kernel, resume, modules)
        if lacking:
            problems.append("the initramfs of kernel %s lacks %s" % (kernel, ", ".join(lacking)))
    if problems:
        raise Refused(
            "verify_failed",
            "The next boot would not resume: %s. All changes were undone." % "; ".join(problems),
            "Remove the named arguments from the bootloader's settings or from custom entries, and run the module again.",
        )


def _lacking(host, place, arguments):
    """What the running kernel lacks to resume from there, and what to look at; None if no reboot is required."""
    running = host.read("/proc/cmdline", "").split()
    words = [word for word in arguments if word not in running]
    if words:
        return "lacks %s on its command line" % " ".join(words), booted.OTHER_BOOTLOADER
    chosen = host.attribute("/sys/power/resume")
    if place is None or chosen in (None, place.block.devno):
        return None
    rewritten = late.setting(host)
    return (
        "does not resume from %s: /sys/power/resume is %s, and the device is %s" % (place.given, chosen, place.block.devno),
        "%s sets it again at each boot: remove it, and reboot." % rewritten if rewritten else
        "Its initramfs did not look for the device or did not find it: journalctl -b shows why (search for %s and resume)."
        % ("the device" if place.file else "pmem"),
    )


def _resumes(initramfs, kernel, resume, modules):
    built_without = kernel_config.option(initramfs.host, kernel, "CONFIG_HIBERNATION") == "n"
    return initramfs.complete(kernel, resume, modules) and not built_without


def _kernel(initramfs, kernel, verified):
    return {"kernel": kernel, "initramfs": initramfs.image(kernel), "verified": verified}


def _passed(host, device, place, header):
    """What our settings passed for C(device), if they were there and are known no more: C(resume=) with its UUID, and the offset."""
    if target.is_file(device):
        return ["resume=UUID=%s" % place.uuid(host, header)] + (_offset(place) if header else []) if place else []
    try:
        uuid = header.uuid if header else identity.swap_uuid(host, os.path.basename(device))
    except Refused:
        uuid = None
    return ["resume=UUID=%s" % uuid] if uuid else []


def _owned(bootloader):
    try:
        return (bootloader.owned(PURPOSE) if bootloader else None) or []
    except Refused:
        return []  # changed by hand; removed anyway


PART = Part(
    {
        "device": {"type": "str", "default": identity.DEFAULT_DEVICE},
        "uuid": {"type": "str"},
        "compression": {"type": "str", "choices": list(COMPRESSIONS)},
        "force": {"type": "bool", "default": False},
        "state": STATE,
    },
    by_state(present, absent, absent_options=("device", "force")),
)
