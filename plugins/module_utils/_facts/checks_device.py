# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the swap device and the NVM it is on: existence, size, use, persistence, pending image.

Every check takes a Survey and returns a list of Refused, empty if there is no blocker.
"""
from __future__ import annotations

import re

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import memmap, nvm, sleep_policy
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import claims, devices, headers, luks, target
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks import header as luks_header

SWAP_SHARE = 0.98  # systemd, src/shared/hibernate-util.c: HIBERNATION_SWAP_THRESHOLD
PAGES_FOR_IO = 4 << 20  # kernel/power/power.h: PAGES_FOR_IO, in bytes


def no_nvm(survey):
    """Neither the device nor any NVM region exists."""
    if survey.is_file or survey.block is not None or survey.regions:
        return []
    undriven = nvm.missing_driver(survey.host)
    if undriven:
        return [no_driver(survey.host, *undriven)]
    return [Refused(
        "no_nvm",
        "The machine has no non-volatile memory: no region in /sys/bus/nd/devices, and %s does not exist."
        % survey.device,
        "Install NVDIMMs, or add one to the virtual machine. To try hibernation on ordinary memory, which loses its "
        "contents at power-off, use nvm_reservation with method=memmap and volatile_ok=true.",
    )]


def swap_file(survey):
    """A swap file that is not there, or that the kernel cannot use: raises what target.find raises; and what else is in its place."""
    if not survey.is_file:
        return []
    found = target.find(survey.host, survey.device)
    found.check(survey.host)
    if survey.header is not None or survey.swap is not None:
        return []
    return [Refused(
        "not_swap",
        "%s is a file that is no swap area." % survey.device,
        "Give another path, or remove the file, if it is not needed. Then run swap_file.",
    )]


def no_driver(host, what, module):
    """The error Refused C(nvm_unusable) for NVM that the firmware has and no driver uses."""
    return Refused(
        "nvm_unusable",
        "The machine has %s, and the driver %s, which makes regions of it, is not loaded." % (what, module),
        nvm.load_module(host, module),
    )


def nvdimm_locked(survey):
    """A DIMM with a passphrase is locked after power-on; without its key the initramfs has no device to resume from."""
    regions = [survey.region] if survey.region else [] if survey.block else survey.regions
    blockers = []
    for region in regions:
        for dimm, state in nvm.with_passphrase(survey.host, region).items():
            if state == "locked" or region is survey.region:
                blockers.append(_locked(region, dimm, state))
    return blockers


def _locked(region, dimm, state):
    remove = "swapoff the device if it is in use; ndctl disable-region %s; ndctl remove-passphrase %s; ndctl enable-region %s." % (
        region.dev, dimm, region.dev)
    if state == "locked":
        return Refused(
            "nvdimm_locked",
            "%s of %s is locked with a passphrase, so the kernel cannot use the region." % (dimm, region.dev),
            "Unlock it: ndctl load-keys; ndctl disable-dimm %s; ndctl enable-dimm %s; ndctl enable-region %s. Then remove the "
            "passphrase, because it locks again at each power-off: %s" % (dimm, dimm, region.dev, remove),
        )
    return Refused(
        "nvdimm_locked",
        "%s of %s has a passphrase (security: %s): it is locked after each power-on, and the initramfs would not find the image."
        % (dimm, region.dev, state),
        "Remove the passphrase: %s If security is frozen, reboot first. If the initramfs loads the key before libnvdimm "
        "(ndctl load-keys), and you have seen the device appear there, ignore this blocker by its name." % remove,
    )


def virtio_pmem(survey):
    """The region of the device, or all from which it could be made, does not survive a hibernation (C(nvm.survives_hibernation))."""
    lasting = [region for region in survey.regions if not region.volatile and region.provider != "e820"]
    regions = [survey.region] if survey.region else [] if survey.block or survey.is_file else lasting
    if not regions or any(nvm.survives_hibernation(survey.host, region) for region in regions):
        return []
    return [Refused(
        "virtio_pmem",
        "%s is on virtio-pmem, and the driver in kernel %s does not support hibernation: writes would hang after the "
        "resume." % (survey.device if survey.region else regions[0].dev, survey.release),
        "Give the virtual machine an NVDIMM (NFIT) instead, or boot kernel 6.18 or later.",
    )]


def nvdimm_failing(survey):
    """A DIMM that reports that it cannot save its contents at power-off, or could not the last time."""
    if survey.region is None:
        return []
    return [
        Refused(
            "nvdimm_failing",
            "%s, which %s is on, does not keep its contents at power-off: it reports %s." % (dimm, survey.device, ", ".join(flags)),
            "Have its battery or capacitor, or the DIMM, checked and replaced (ndctl list --dimms --health). After a replacement, "
            "power the machine off and on.",
        )
        for dimm, flags in nvm.failing(survey.host, survey.region).items()
    ]


def nvm_volatile(survey):
    """memmap=nn!ss is ordinary memory (Documentation/admin-guide/kernel-parameters.txt): at best it survives a warm reboot.

    Legacy NVM that the firmware lists itself (e820 type 12) is on the same bus, and is non-volatile.
    """
    region = survey.region
    if region is None or not (region.volatile or region.provider == "e820"):
        return []
    if not region.volatile and region.resource is not None and memmap.is_firmware_nvm(survey.firmware_map, region.resource):
        return []
    if survey.hibernate_mode == "reboot":
        return []
    return [Refused(
        "nvm_volatile",
        "%s is ordinary memory, which loses its contents at power-off: the image would be lost." % survey.device,
        "Reserve real NVM. To try hibernation on this machine, make it reboot instead of powering off: set "
        "HibernateMode=reboot in a file in /etc/systemd/sleep.conf.d.",
    )]


def device_ephemeral(survey):
    """The device, or one below it, is memory, or encrypted with a key that is lost."""
    return claims.ephemeral(survey.host, survey.block) if survey.block and not survey.is_file else []


def device_claimed(survey):
    """Configuration that gives the device to another program at the next boot, before or after the resume."""
    if survey.block is None or survey.is_file:
        return []
    return claims.claimed_by_others(survey.host, survey.block, luks.opening_line(survey.host, survey.block))


def device_in_use(survey):
    """Another use, which keeps the device from being swap. A device in use as swap has no other exclusive user."""
    if survey.block is None or survey.swap is not None or survey.is_file:
        return []
    uses = devices.users(survey.host, survey.block)
    return [devices.device_in_use(survey.block, ", ".join(uses))] if uses else []


def mapping_closed(survey):
    """An encrypted swap area that is not open: nothing can be written to it, and not be seen what is in it."""
    if survey.block is None or survey.mappings or survey.header is not None or luks_header.read(survey.host, survey.block.path) is None:
        return []
    return [Refused(
        "mapping_closed",
        "%s is encrypted (LUKS), and not open." % survey.device,
        "If it is to be the swap area of this machine, run nvm_swap with encryption=luks and the passphrase. Else give another device.",
    )]


def not_in_crypttab(survey):
    """A LUKS mapping that was opened by hand: the initramfs does not open it before it looks for the image."""
    return [
        Refused(
            "not_in_crypttab",
            "%s is on the LUKS mapping %s, which no line of %s opens at the next boot."
            % (survey.device, mapping.name, claims.CRYPTTAB),
            "Run nvm_swap with encryption=luks for the device that it made; for one of another program, add the line: %s UUID=%s none "
            "luks,initramfs (with dracut: luks,force,x-initrd.attach), and run boot_resume." % (mapping.name, mapping.uuid),
        )
        for mapping in survey.mappings if mapping.line is None and not luks.opened_by_argument(mapping, survey.cmdline)
    ]


def key_exposed(survey):
    """A key file that others than root can read. Who can read the NVM, too, has the image."""
    problems = [luks.exposed(survey.host, mapping.key_file) for mapping in survey.mappings if mapping.key_file]
    return [problem for problem in problems if problem]


def holds_other(survey):
    """Contents that udev knows (ID_FS_TYPE in its database): a filesystem, or a member of LVM, RAID, ZFS, bcache, multipath, LUKS."""
    if survey.block is None or survey.swap is not None or survey.header is not None or survey.is_file:
        return []
    kind = re.search(r"^E:ID_FS_TYPE=(.+)$", survey.host.read("/run/udev/data/b%s" % survey.block.devno, ""), re.MULTILINE)
    if kind is None:
        return []
    return [Refused(
        "holds_filesystem",
        "%s is not empty: %s." % (survey.device, kind.group(1)),
        "Check the contents (blkid -p %s) or give another device. To overwrite them, run nvm_swap with force=true."
        % survey.block.path,
    )]


def uuid_elsewhere(survey):
    """C(resume=UUID=) leads to another device: two swap areas have the UUID, or the device has two signatures.

    libblkid, ambivalent probing: of a device with signatures of several kinds (a RAID member with its metadata at the end, which
    mkswap leaves there) udev makes no link by UUID.
    """
    if not survey.resume_uuid or not survey.host.exists(target.BY_UUID):
        return []
    if survey.is_file:
        return []  # its UUID was read from the link
    link = "%s/%s" % (target.BY_UUID, survey.resume_uuid)
    if survey.host.real(link) == survey.block.path:
        return []
    if survey.host.exists(link):
        cause = "is %s: two devices have this UUID, such as a disk and its copy" % survey.host.real(link)
        remedy = "Take the copy away, or give it another UUID (swaplabel -U $(uuidgen) DEVICE, after swapoff)."
    else:
        cause = "does not exist: the device has signatures of several kinds, or udev has not seen the swap area yet"
        remedy = "Run: udevadm trigger --settle %s. If the link is still missing, 'wipefs %s' lists the signatures; after " \
            "swapoff, erase the one that is not swap: wipefs --offset OFFSET %s" % ((survey.block.path,) * 3)
    return [Refused(
        "uuid_elsewhere",
        "The initramfs would not find the image: the swap area on %s has UUID %s, and %s %s."
        % (survey.device, survey.header.uuid, link, cause),
        remedy,
    )]


def image_pending(survey):
    """kernel/power/swap.c, mark_swapfiles(): the signature S1SUSPEND replaces SWAPSPACE2."""
    return [headers.image_pending(survey.device)] if survey.image_pending else []


def memory_map_changed(survey):
    """The kernel compares the number of pages (kernel/power/snapshot.c, check_image_kernel() and check_header():
    num_physpages) and, on x86, the firmware's memory map (arch/x86/power/hibernate.c) before it resumes."""
    if not survey.image_pending or survey.header.format != "s1suspend":
        return []
    changes = []
    image = survey.image
    if image.physical_pages != survey.physical_pages:
        changes.append("%d pages of memory then, %d now" % (image.physical_pages, survey.physical_pages))
    checksum = survey.e820_checksum if image.e820_checksum is not None else None
    if checksum is not None and checksum != image.e820_checksum:
        changes.append("firmware memory map with checksum %08x then, %08x now" % (image.e820_checksum, checksum))
    if not changes:
        return []
    return [Refused(
        "memory_map_changed",
        "The kernel would reject the image on %s and remove its signature, because the memory map changed: %s."
        % (survey.device, "; ".join(changes)),
        "Restore the memory map (memory size, memmap= on the kernel command line, firmware settings and version) before "
        "the next boot.",
    )]


def swap_inactive(survey):
    """kernel/power/swap.c, swsusp_swap_check(): the image is written to an active swap area."""
    if survey.swap is not None or (survey.is_file and survey.header is None):
        return []  # swap_file() says it
    if survey.block is None:
        return [Refused(
            "swap_inactive",
            "The block device %s does not exist." % survey.device,
            "Create it with nvm_reservation and nvm_swap. If it should exist, check udev: udevadm info %s"
            % survey.device,
        )]
    remedy = "Run %s with state=present, or swapon %s." % ("swap_file" if survey.is_file else "nvm_swap", survey.device)
    names = [survey.device, survey.block.path] + (["%s/%s" % (target.BY_UUID, survey.header.uuid)] if survey.header else [])
    off = sleep_policy.swap_off(survey.host, names)
    return [Refused(
        "swap_inactive",
        "%s is not in use as swap (/proc/swaps), so the kernel cannot write an image to it%s." % (
            survey.device, ", and systemd does not change that at a boot: " + off[0] if off else ""),
        "%s To have it in use after each boot, %s." % (remedy, off[1]) if off else remedy,
    )]


def nvm_too_small(survey):
    """Even an empty swap area as large as the device would fail swap_too_small(). Without the device, the largest
    region counts."""
    if survey.block is None and (survey.is_file or not survey.regions):
        return []
    if survey.block:
        name, size = survey.device, survey.target.size
    else:
        largest = max(survey.regions, key=lambda region: region.size)
        name, size = largest.dev, largest.size
    need, why = _need(survey)
    usable = int(size * SWAP_SHARE)
    if need <= usable:
        return []
    return [Refused(
        "swap_too_small" if survey.is_file else "nvm_too_small",
        "%s has %s, of which %s are usable; %s are needed: %s."
        % (name, format_size(size), format_size(usable), format_size(need), why),
        "Enlarge the %s the size of the ordinary memory), or stop programs that use much memory." % (
            "swap file (swap_file with size=auto gives it" if survey.is_file else "reservation (nvm_reservation with size=auto reserves"),
    )]


def swap_too_small(survey):
    """systemd, enough_swap_for_hibernation(), and kernel/power/swap.c, enough_swap(), which the kernel calls only if
    the image is not compressed.

    The size of a compressed image is not known in advance, so only systemd's check applies to it.
    """
    if survey.swap is None or nvm_too_small(survey):
        return []
    need, why = _need(survey)
    usable = int(survey.swap.free * SWAP_SHARE)
    if need <= usable:
        return []
    return [Refused(
        "swap_too_small",
        "The swap area %s has %s free (%s, of which %s are in use), of which %s are usable; %s are needed: %s."
        % (survey.device, format_size(survey.swap.free), format_size(survey.swap.size), format_size(survey.swap.used),
           format_size(usable), format_size(need), why),
        "Stop programs that use much memory, move swapped-out pages back to memory (swapoff and swapon of the device), "
        "or enlarge the swap area (%s with a larger size)." % ("swap_file" if survey.is_file else "nvm_reservation"),
    )]


def _need(survey):
    """Bytes of swap space that a hibernation needs now, and why."""
    if "hibernate=nocompress" in survey.cmdline:
        need = survey.image_estimate + PAGES_FOR_IO
        if need > survey.active_anon:
            return need, "the image is not compressed and has up to %s" % format_size(need)
    return survey.active_anon, "systemd requires space for Active(anon) of /proc/meminfo, which is %s" % format_size(
        survey.active_anon)
