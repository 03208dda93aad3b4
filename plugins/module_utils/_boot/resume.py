# SPDX-License-Identifier: GPL-3.0-or-later
"""Have every installed kernel resume from one device: initramfs first, then the bootloader; and the way back.

Used by C(boot_resume). The order matters: C(resume=) for a device that the initramfs cannot reach makes a boot wait for
it, so the initramfs is built and looked into before the bootloader names the device, and on the way back the bootloader
forgets it first. Everything goes through a Transaction; a step that fails puts back what the earlier ones did.

Nothing here writes to C(/sys/power/resume): that makes the running system try to resume at once.
"""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._boot import initramfs as initramfs_tools
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.modules import name_of
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import devices, headers, identity

PURPOSE = "resume"
# What else may stand in the settings and would lead the kernel elsewhere (kernel/power/hibernate.c, setup functions)
DROP = ("resume", "resume_offset")
# Somebody's decision against hibernation: reported, never overridden
CONFLICTS = ("nohibernate", "noresume", "hibernate=no", "hibernate=noresume")
COMPRESSIONS = ("lzo", "lz4", "none")
COMPRESSION_WORDS = ("hibernate=nocompress", "hibernate.compressor")
COMPRESSOR_SINCE = (6, 9)  # hibernate.compressor=, CONFIG_HIBERNATION_DEF_COMP; before it LZO was built in
COMPRESSOR_PARAMETER = "/sys/module/hibernate/parameters/compressor"

# What a path in /sys/devices says of a device whose driver the path alone does not lead to: (pattern, module)
BY_PATH = (
    (re.compile(r"/btt\d+\.\d+/"), "nd_btt"),  # nd_pmem drives it with the code of nd_btt
    (re.compile(r"/block/dm-\d+$"), "dm_mod"),
    (re.compile(r"/block/md\d+$"), "md_mod"),
)
ASSUMED_DRIVERS = ("libnvdimm", "nd_pmem")  # in check mode, of a reservation that does not exist yet


def present(tx, device=identity.DEFAULT_DEVICE, uuid=None, compression=None, force=False):
    """Have the machine resume from C(device) at every boot of every installed kernel. Returns the module's result.

    C(compression) is one of COMPRESSIONS, or None for the kernel's own choice. Refused as the module documents.
    """
    host = tx.host
    found = _header(tx, device)
    resume = "UUID=%s" % _uuid(tx, device, uuid, found)
    bootloader, initramfs = bootloaders.detect(host), initramfs_tools.detect(host)
    _check_conflicts(bootloader)
    kernels = initramfs.kernels()
    if not kernels:
        raise Refused(
            "kernel_missing",
            "/boot holds no kernel (vmlinuz-VERSION).",
            "Mount the filesystem with the kernels at /boot, or install a kernel there.",
        )
    words, algorithms = _compression(host, kernels, compression)
    arguments = ["resume=" + resume] + words
    drop = DROP + (COMPRESSION_WORDS if compression else ())
    drivers = drivers_for(host, device) if found is not None else list(ASSUMED_DRIVERS)
    modules = drivers + [each for each in algorithms if each not in drivers]

    def change(transaction):
        initramfs.configure(transaction, resume, modules)
        stale = [kernel for kernel in kernels if initramfs.missing(kernel, resume, modules)]
        initramfs.rebuild(transaction, stale, resume, modules)
        bootloader.ensure(transaction, PURPOSE, arguments, drop)

    _guard(tx, device, found, force, change)
    change(tx)
    if not tx.check_mode:
        _check_all(bootloader, initramfs, kernels, resume, modules, arguments, drop)
        initramfs.settle()
    return {
        "resume": resume,
        "arguments": arguments,
        "bootloader": bootloader.name,
        "initramfs": initramfs.name,
        "kernels": [_kernel(initramfs, kernel, not initramfs.missing(kernel, resume, modules)) for kernel in kernels],
        "drivers": drivers,
        "reboot_required": not set(arguments) <= set(host.read("/proc/cmdline", "").split()),
    }


def absent(tx, device=identity.DEFAULT_DEVICE, force=False):
    """Take all of it back: C(resume=) first, then what the initramfs holds. Returns the module's result."""
    host = tx.host
    try:
        found = headers.read_header(host, device)
    except Refused:
        found = None  # a device that is gone or unreadable is no reason to keep naming it
    bootloader = _known(bootloaders.detect, host)
    initramfs = _known(initramfs_tools.detect, host)
    arguments = _owned(bootloader)

    def change(transaction):
        if bootloader:
            bootloader.forget(transaction, PURPOSE)
        if initramfs and initramfs.unconfigure(transaction):
            initramfs.rebuild(transaction, initramfs.stale())

    _guard(tx, device, found, force, change)
    change(tx)
    if initramfs and not tx.check_mode:
        initramfs.settle()
    return {
        "resume": None,
        "arguments": [],
        "bootloader": bootloader and bootloader.name,
        "initramfs": initramfs and initramfs.name,
        "kernels": [_kernel(initramfs, kernel, None) for kernel in initramfs.kernels()] if initramfs else [],
        "drivers": [],
        "reboot_required": bool(set(arguments) & set(host.read("/proc/cmdline", "").split())),
    }


def drivers_for(host, device):
    """The modules that C(device) hangs on, as names: its own driver, and those of all it stands on up to the bus.

    Found where the kernel shows them: the path of the device in C(/sys/devices), with the driver bound at each step
    (C(driver/module)), and below device mapper and RAID what they stand on. What is built into the kernel is left out.
    """
    found = []
    waiting = [devices.block_device(host, device).name]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = host.real("/sys/class/block/%s" % name)
        names = [module for pattern, module in BY_PATH if pattern.search(path)]
        step = path
        while step.startswith("/sys/devices/"):
            driver = "%s/driver" % step
            if host.exists(driver):
                # An ACPI driver such as nfit may not say which module it is of (it sets no owner; seen on 6.1), but it
                # bears the module's name.
                module = driver + "/module"
                names.append(name_of(os.path.basename(host.real(module if host.exists(module) else driver))))
            step = os.path.dirname(step)
        # initstate is there for what was loaded, not for what is built in (kernel/module/sysfs.c)
        for each in names:
            if each not in found and host.exists("/sys/module/%s/initstate" % each):
                found.append(each)
        waiting += [os.path.basename(slave) for slave in host.glob("/sys/class/block/%s/slaves/*" % name)]
    return found


def _header(tx, device):
    """The swap header on C(device). In check mode None where there is no device yet."""
    try:
        found = headers.read_header(tx.host, device)
    except Refused as refused:
        if refused.code == "device_missing" and tx.check_mode:
            return None
        raise
    if found is not None and found.type in ("swap", "swsuspend"):
        return found
    if tx.check_mode and headers.contents(tx.host, device) is None:
        return None
    raise Refused(
        "not_swap",
        "%s holds no swap area, so nothing could be resumed from it." % device,
        "Make the swap area with nvm_swap first, or name the device that has it.",
    )


def _uuid(tx, device, uuid, found):
    given = identity.chosen_uuid(tx.host, device, uuid) if uuid is not None else None
    if found is None:
        return given or identity.swap_uuid(tx.host, os.path.basename(device))
    if not found.uuid:
        raise Refused(
            "uuid_missing",
            "The swap area on %s has no UUID, by which it is found again under any name." % device,
            "Give it one: swapoff %s, swaplabel --uuid UUID %s (or nvm_swap), swapon." % (device, device),
        )
    if given and given != found.uuid:
        raise Refused(
            "uuid_mismatch",
            "The swap area on %s has the UUID %s, not %s." % (device, found.uuid, given),
            "Leave uuid out, or name the device that has it.",
        )
    return found.uuid


def _guard(tx, device, found, force, change):
    """Refused C(image_pending) where C(change) would change anything while C(device) holds an image."""
    if force or found is None or found.type != "swsuspend":
        return
    trial = Transaction(tx.host, check_mode=True)
    change(trial)
    if trial.changed:
        raise Refused(
            "image_pending",
            "%s holds a hibernation image that nobody has resumed; what boots the machine is left alone until then."
            % device,
            headers.IMAGE_REMEDY,
        )


def _check_conflicts(bootloader):
    found = bootloader.find_setting(CONFLICTS)
    if found:
        raise Refused(
            "conflicting_argument",
            "%s tells the kernel '%s', which rules out resuming." % found,
            "Remove it there if the machine is to hibernate.",
        )


def _compression(host, kernels, compression):
    """(arguments for the kernel, modules that decompress) of C(compression) for all of C(kernels).

    Refused C(compressor_unsupported) where one of them cannot.
    """
    if compression == "none":
        return ["hibernate=nocompress"], []
    selecting = [kernel for kernel in kernels if _selects(host, kernel)]
    if compression == "lz4":
        unable = [kernel for kernel in kernels if kernel not in selecting or not _crypto(host, kernel, "lz4")]
        if unable:
            raise Refused(
                "compressor_unsupported",
                "The installed kernel %s has no LZ4 for images (Linux 6.9 and later, with CRYPTO_LZ4)." % unable[0],
                "Use lzo, or remove kernels that are older.",
            )
    modules = []
    for kernel in selecting:
        name = compression or _default_compressor(host, kernel)
        if name and name not in modules and _crypto(host, kernel, name) == "m":
            modules.append(name)
    return ["hibernate.compressor=%s" % compression] if compression and selecting else [], modules


def _selects(host, kernel):
    """Whether C(kernel) has C(hibernate.compressor=)."""
    config = _config(host, kernel)
    if config is not None:
        return "CONFIG_HIBERNATION_DEF_COMP=" in config
    if kernel == os.uname().release:
        return host.exists(COMPRESSOR_PARAMETER)
    version = re.match(r"(\d+)\.(\d+)", kernel)
    return version is not None and (int(version.group(1)), int(version.group(2))) >= COMPRESSOR_SINCE


def _default_compressor(host, kernel):
    match = re.search(r'^CONFIG_HIBERNATION_DEF_COMP="(\w+)"$', _config(host, kernel) or "", re.M)
    return match.group(1) if match else None


def _crypto(host, kernel, name):
    """How C(kernel) has the compressor C(name): "y" built in, "m" as a module, or None."""
    config = _config(host, kernel)
    if config is None:
        return "m" if host.glob("/lib/modules/%s/kernel/crypto/%s.ko*" % (kernel, name)) else None
    match = re.search(r"^CONFIG_CRYPTO_%s=([ym])$" % name.upper(), config, re.M)
    return match.group(1) if match else None


def _config(host, kernel):
    return host.read("/boot/config-%s" % kernel)


def _check_all(bootloader, initramfs, kernels, resume, modules, arguments, drop):
    """The end result, read once more from where the next boot reads it."""
    problems = bootloader.check(bootloader.entries(), arguments, drop + CONFLICTS)
    for kernel in kernels:
        lacking = initramfs.missing(kernel, resume, modules)
        if lacking:
            problems.append("the initramfs of kernel %s lacks %s" % (kernel, ", ".join(lacking)))
    if problems:
        raise Refused(
            "verify_failed",
            "The next boot would not resume: %s. Everything was put back." % "; ".join(problems),
            "Remove what is named, in the bootloader's settings or in entries written by hand, and run again.",
        )


def _kernel(initramfs, kernel, verified):
    return {"kernel": kernel, "initramfs": initramfs.image(kernel), "verified": verified}


def _owned(bootloader):
    try:
        return (bootloader.owned(PURPOSE) if bootloader else None) or []
    except Refused:
        return []  # changed by somebody; it goes all the same


def _known(detect, host):
    """What C(detect) finds, or None where there is nothing that could hold settings of ours."""
    try:
        return detect(host)
    except Refused:
        return None
