# SPDX-License-Identifier: GPL-3.0-or-later
"""Blockers: everything that would stop a hibernation into the device, or lose the machine's state in it.

Used by C(nvm_info), which reports them, and by C(hibernate), which refuses while there are any. It owes them no
guesses: a blocker is a fact read from the machine, with its numbers, and a remedy that one can follow; what cannot be
read is a blocker of its own. It changes nothing, and where all is well it runs no command of its own but what the
bootloader's and the initramfs's classes need.

One row of C(CHECKS) is one check: a small function from a Survey to its findings, with the source it stands on.
"""
from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Callable

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import memmap
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.survey import UNSET, Survey
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import headers

SWAP_SHARE = 0.98  # systemd, src/shared/hibernate-util.c: HIBERNATION_SWAP_THRESHOLD
PAGES_FOR_IO = 4 << 20  # kernel/power/power.h: PAGES_FOR_IO, in bytes
DISABLED = "[disabled]"


def blockers(host, device, skip=(), survey=None):
    """What stands in the way of hibernating into C(device): a list of {code, message, remedy}, causes first.

    C(skip) names codes that are not looked for. A C(survey) that was begun already is gone on with.
    """
    survey = survey or Survey(host, device)
    found = []
    for check in CHECKS:
        if check.code in skip or (check.root and survey.euid != 0):
            continue
        try:
            found.extend(check.look(survey))
        except Refused as refused:
            found.append(refused.as_dict())
    seen = set()
    unique = []
    for blocker in found:
        # Several checks may have stumbled over the same unreadable thing.
        key = (blocker["code"], blocker["message"])
        if blocker["code"] not in skip and key not in seen:
            seen.add(key)
            unique.append(blocker)
    return unique


def _blocker(code, message, remedy):
    return [{"code": code, "message": message, "remedy": remedy}]


def _not_root(survey):
    if survey.euid == 0:
        return []
    return _blocker(
        "not_root",
        "Without root, the device, the boot configuration and the initramfs cannot be read, so nothing is known of "
        "them.",
        "Run it with become: true.",
    )


# the kernel ----------------------------------------------------------------------------------------------------------


def _no_hibernation(survey):
    """kernel/power/Kconfig: without CONFIG_HIBERNATION there is no C(/sys/power/disk)."""
    if survey.hibernation is not None:
        return []
    return _blocker(
        "no_hibernation",
        "The kernel %s is built without hibernation: there is no /sys/power/disk." % survey.release,
        "Boot a kernel with CONFIG_HIBERNATION=y, such as the distribution's ordinary one.",
    )


def _disabled(survey):
    """kernel/power/hibernate.c, hibernation_available(): four causes, and disk_show() says whether any holds."""
    if survey.hibernation != DISABLED:
        return []
    found = [blocker for cause in (_nohibernate, _lockdown, _memfd_secret, _cxl) for blocker in cause(survey)]
    return found or _blocker(
        "hibernation_disabled",
        "The kernel says that hibernation is not available (/sys/power/disk is '[disabled]'). Neither the kernel "
        "command line, nor lockdown, nor a process with secret memory, nor CXL memory shows why.",
        "Look for 'hibernation' in the kernel log (dmesg); it may come from a security module or a change to the "
        "kernel.",
    )


def _nohibernate(survey):
    """kernel/power/hibernate.c: nohibernate_setup(), hibernate_setup(). Nothing but a boot takes it back."""
    words = [word for word in survey.cmdline if word in ("nohibernate", "hibernate=no")]
    if not words:
        return []
    return _blocker(
        "nohibernate",
        "The running kernel was started with '%s', which disables hibernation." % " ".join(words),
        "Remove it from the bootloader's configuration and reboot.",
    )


def _lockdown(survey):
    """security/lockdown/lockdown.c; LOCKDOWN_HIBERNATION is below LOCKDOWN_INTEGRITY_MAX (include/linux/security.h)."""
    if survey.lockdown in (None, "none"):
        return []
    cause = "Secure Boot is on and the kernel locks itself down with it" if survey.secure_boot else \
        "lockdown= or lsm= on the kernel command line, or the kernel's configuration, asks for it"
    return _blocker(
        "lockdown",
        "The kernel is locked down (%s), which forbids hibernation: %s." % (survey.lockdown, cause),
        "Turn Secure Boot off in the firmware, or take lockdown= off the kernel command line, and reboot. Lockdown "
        "cannot be lowered on a running machine.",
    )


def _memfd_secret(survey):
    """mm/secretmem.c: secretmem_active() counts open files, whose name is "secretmem" on a file system of its own.

    The name of such a file is "/secretmem (deleted)" (fs/d_path.c, simple_dname). It lives on as a mapping when every
    descriptor is closed; the mapping is locked memory (VM_LOCKED), so only processes that have some need a look.
    """
    name = "/secretmem (deleted)"
    holders = []
    for process in survey.host.glob("/proc/[0-9]*"):
        if _has_descriptor(survey.host, process, name) or _has_mapping(survey.host, process, name):
            holders.append("%s (%s)" % (os.path.basename(process), survey.host.attribute(process + "/comm") or "?"))
    if not holders:
        return []
    return _blocker(
        "memfd_secret",
        "Memory made with memfd_secret(2) must not be written to an image, so the kernel does not hibernate while a "
        "process has some: %s." % ", ".join(holders),
        "Stop these processes, or boot with secretmem.enable=0.",
    )


def _has_descriptor(host, process, name):
    for descriptor in host.glob(process + "/fd/*"):
        try:
            if os.readlink(host.path(descriptor)) == name:
                return True
        except OSError:
            continue  # closed in the meantime
    return False


def _has_mapping(host, process, name):
    locked = re.search(r"^VmLck:\s+(\d+)", host.read(process + "/status") or "", re.MULTILINE)
    return bool(locked and int(locked.group(1))) and name in (host.read(process + "/maps") or "")


def _cxl(survey):
    """drivers/cxl/mem.c: a bound memory device counts as active (cxl_mem_active_inc); its contents would be lost."""
    bound = [os.path.dirname(path) for path in survey.host.glob("/sys/bus/cxl/devices/mem*/driver")]
    if not bound:
        return []
    return _blocker(
        "cxl",
        "CXL memory devices are in use (%s): the kernel does not hibernate a machine with any."
        % ", ".join(os.path.basename(path) for path in bound),
        "If the machine can do without them, keep the driver away (module_blacklist=cxl_mem on the kernel command "
        "line) and reboot.",
    )


def _noresume(survey):
    """kernel/power/hibernate.c, noresume_setup(); systemd's read_resume_config() refuses with it as well."""
    words = [word for word in survey.cmdline if word in ("noresume", "hibernate=noresume")]
    if not words:
        return []
    return _blocker(
        "noresume",
        "The running kernel was started with '%s', which forbids resuming; systemd does not hibernate with it."
        % " ".join(words),
        "Remove it from the bootloader's configuration and reboot.",
    )


def _pm_test(survey):
    """kernel/power/main.c, pm_test_show(): with a level other than none, hibernation stops there and comes back."""
    found = re.search(r"\[(\w+)\]", survey.host.attribute("/sys/power/pm_test") or "")
    if found is None or found.group(1) == "none":
        return []
    return _blocker(
        "pm_test",
        "/sys/power/pm_test is '%s': the kernel would only test a part of a hibernation, and save nothing." %
        found.group(1), "Run: echo none > /sys/power/pm_test",
    )


def _virtio_pmem(survey):
    """drivers/nvdimm/virtio_pmem.c has .freeze and .restore in 6.18; in 6.12 it has not, and flushes hang then."""
    if survey.region is None or survey.region.provider != "virtio":
        return []
    version = tuple(int(number) for number in re.findall(r"\d+", survey.release)[:2])
    if version >= (6, 18):
        return []
    return _blocker(
        "virtio_pmem",
        "%s is on virtio-pmem, and the driver of kernel %s does not survive a hibernation: writes to it would hang "
        "after the resume. Kernel 6.18 is known to." % (survey.device, survey.release),
        "Give the virtual machine an NVDIMM (NFIT) instead, or boot kernel 6.18 or later.",
    )


def _nvm_volatile(survey):
    """memmap=nn!ss is ordinary memory (Documentation/admin-guide/kernel-parameters.txt): it outlasts a warm reboot at best.

    Legacy NVM that the firmware lists itself (e820 type 12) is on the same bus, and is what it says it is.
    """
    region = survey.region
    if region is None or not (region.volatile or region.provider == "e820"):
        return []
    if not region.volatile and region.resource is not None and memmap.covers(survey.firmware_map, region.resource):
        return []
    if survey.hibernate_mode == "reboot":
        return []
    return _blocker(
        "nvm_volatile",
        "%s is made of ordinary memory, which loses its contents when the power goes: the image would be lost."
        % survey.device,
        "Reserve real NVM. To try hibernation on this machine, have it reboot instead of powering off: HibernateMode=reboot "
        "in a file in /etc/systemd/sleep.conf.d.",
    )


# the device ----------------------------------------------------------------------------------------------------------


def _no_nvm(survey):
    if survey.block is not None or survey.regions:
        return []
    return _blocker(
        "no_nvm",
        "The machine has no non-volatile memory that the kernel knows: no region in /sys/bus/nd/devices, and no %s."
        % survey.device,
        "Fit NVDIMMs or give the virtual machine one; to try it on ordinary memory, which loses its contents at "
        "power-off, use nvm_reservation with method: memmap and volatile_ok: true.",
    )


def _nvm_too_small(survey):
    """Even an empty swap area of the device's size, or one of all of the largest region as long as there is no device,
    would not pass the checks of _swap_too_small."""
    if survey.block is None and not survey.regions:
        return []
    name, size = (survey.device, survey.block.size) if survey.block else max(
        ((region.dev, region.size) for region in survey.regions), key=lambda each: each[1])
    need, why = _need(survey)
    room = int(size * SWAP_SHARE)
    if need <= room:
        return []
    return _blocker(
        "nvm_too_small",
        "%s holds %s, of which %s may be used, and %s is needed: %s."
        % (name, format_size(size), format_size(room), format_size(need), why),
        "Make the reservation larger (nvm_reservation, size: auto takes the size of the ordinary memory), or stop "
        "what uses the memory.",
    )


def _swap_too_small(survey):
    """systemd, enough_swap_for_hibernation(), and kernel/power/swap.c, enough_swap(), which is asked without
    compression.

    How well an image compresses nobody knows before, so for a compressed one there is only systemd's check.
    """
    if survey.swap is None or _nvm_too_small(survey):
        return []
    free = survey.swap.size - survey.swap.used
    need, why = _need(survey)
    room = int(free * SWAP_SHARE)
    if need <= room:
        return []
    return _blocker(
        "swap_too_small",
        "The swap area %s has %s free (%s, of which %s is in use), of which %s may be used, and %s is needed: %s."
        % (survey.device, format_size(free), format_size(survey.swap.size), format_size(survey.swap.used),
           format_size(room), format_size(need), why),
        "Stop what uses the memory; or bring what is swapped out back (swapoff and swapon of the device); or give it "
        "more room (nvm_reservation with a larger size).",
    )


def _need(survey):
    """How much room a hibernation needs now, in bytes, and why."""
    if "hibernate=nocompress" in survey.cmdline:
        need = survey.image_estimate + PAGES_FOR_IO
        if need > survey.active_anon:
            return need, "the image is not compressed, and the memory in use makes one of %s" % format_size(need)
    return survey.active_anon, "systemd wants room for Active(anon) of /proc/meminfo, which is %s" % format_size(
        survey.active_anon)


def _swap_inactive(survey):
    """kernel/power/swap.c, swsusp_swap_check(): the image goes to an active swap area."""
    if survey.swap is not None:
        return []
    if survey.block is None:
        return _blocker(
            "swap_inactive",
            "There is no block device %s to hibernate into." % survey.device,
            "Make it with nvm_reservation, then nvm_swap; if it should be there, see what udev says: udevadm info %s"
            % survey.device,
        )
    return _blocker(
        "swap_inactive",
        "%s is not in use as swap (/proc/swaps), so the kernel would not write an image to it." % survey.device,
        "Activate it: nvm_swap with state: present, or swapon %s." % survey.device,
    )


def _image_pending(survey):
    """kernel/power/swap.c, mark_swapfiles(): the signature S1SUSPEND stands where SWAPSPACE2 was."""
    if not survey.image_pending:
        return []
    return _blocker(
        "image_pending",
        "%s holds a hibernation image that was not resumed." % survey.device,
        headers.IMAGE_REMEDY,
    )


def _memory_map_changed(survey):
    """What the kernel compares before it resumes: the number of pages (kernel/power/snapshot.c, check_image_kernel()
    and check_header(): num_physpages) and, on x86, the firmware's memory map (arch/x86/power/hibernate.c)."""
    if not survey.image_pending or survey.header.format != "s1suspend":
        return []
    found = []
    image = survey.image
    if image.physical_pages != survey.physical_pages:
        found.append("it was made with %d pages of memory, and there are %d now"
                     % (image.physical_pages, survey.physical_pages))
    now = survey.e820_checksum if image.e820_checksum is not None else None
    if now is not None and now != image.e820_checksum:
        found.append(
            "the firmware's memory map had the checksum %08x then and has %08x now" % (image.e820_checksum, now))
    if not found:
        return []
    return _blocker(
        "memory_map_changed",
        "The kernel will refuse the image on %s, and in refusing take its signature away: %s."
        % (survey.device, "; ".join(found)),
        "Bring the memory back to what it was (size, memmap= on the kernel command line, firmware settings and "
        "version) before the machine is booted the next time.",
    )


# resume --------------------------------------------------------------------------------------------------------------


def _resume_running(survey):
    """C(/sys/power/resume) of the running kernel, which the initramfs wrote when it looked for an image at this boot.

    systemd takes it for the only swap area allowed (find_suitable_hibernation_device_full()), and refuses on BIOS
    machines where it is not set.
    """
    if survey.resume is None or survey.block is None:
        return []
    if survey.resume == survey.block.number:
        return _resume_offset(survey)
    if survey.resume == UNSET:
        return _blocker(
            "resume_unset",
            "The running kernel knows no device to resume from (/sys/power/resume is 0:0): at its boot nothing named "
            "one, or the initramfs did not find it.",
            "Run boot_resume for %s and reboot. If it is still unset, the initramfs lacks what the device needs."
            % survey.device,
        )
    return _blocker(
        "resume_elsewhere",
        "The running kernel resumes from the device %s (/sys/power/resume), and %s is %s."
        % (survey.resume, survey.device, survey.block.number),
        "Run boot_resume for %s and reboot." % survey.device,
    )


def _resume_offset(survey):
    """kernel/power/swap.c, swsusp_swap_check(): a swap area of which the offset is not the start is another one."""
    offset = survey.host.attribute("/sys/power/resume_offset") or "0"
    if offset == "0":
        return []
    return _blocker(
        "resume_elsewhere",
        "The running kernel looks for the image %s pages into %s (/sys/power/resume_offset), as for a swap file; the "
        "swap area is the whole device." % (offset, survey.device),
        "Run: echo 0 > /sys/power/resume_offset. Then boot_resume for %s, which keeps resume_offset= from the kernel."
        % survey.device,
    )


# Entries that a person chooses to repair a machine; nobody resumes through them.
RESCUE = {"single", "s", "S", "1", "rescue", "emergency", "systemd.unit=rescue.target", "systemd.unit=emergency.target"}


def _resume_configured(survey):
    """Each entry of the generated boot configuration, for it decides what the next boot does.

    The last C(resume=) counts: kernel/power/hibernate.c, resume_setup(), and both initramfs tools take it.
    """
    if survey.block is None:
        return []
    entries = [entry for entry in survey.entries if not RESCUE.intersection(entry.arguments)]
    unset, forbidden, elsewhere = [], [], []
    for entry in entries:
        values = [word[len("resume="):] for word in entry.arguments if word.startswith("resume=")]
        words = [word for word in entry.arguments
                 if word in ("noresume", "hibernate=noresume", "nohibernate", "hibernate=no")]
        if words:
            forbidden.append("%s (%s)" % (entry.title, " ".join(words)))
        elif not values:
            unset.append(entry.title)
        elif not _names(survey, values[-1]) or _offset(entry.arguments):
            elsewhere.append("%s (resume=%s)" % (entry.title, values[-1]))
    found = []
    if not entries:
        found += _blocker(
            "unknown_boot_entries",
            "The boot configuration of %s has no entry that starts Linux, so nothing says how the next boot goes."
            % survey.bootloader.name,
            "Generate it anew with the bootloader's own tool.",
        )
    if unset:
        found += _blocker(
            "resume_unset",
            "Nothing tells the next boot to resume: the boot configuration has no resume= in %s." % _some(unset),
            "Run boot_resume for %s." % survey.device,
        )
    if elsewhere:
        found += _blocker(
            "resume_elsewhere",
            "The next boot would look for the image somewhere else than on %s: %s." % (survey.device, _some(elsewhere)),
            "Run boot_resume for %s; it takes a resume= of other files' out." % survey.device,
        )
    if forbidden:
        found += _blocker(
            "noresume",
            "The next boot would not resume: %s." % _some(forbidden),
            "Remove it from the bootloader's configuration, and generate that anew.",
        )
    return found


def _offset(arguments):
    """Whether the last C(resume_offset=) leads away from the start of the device."""
    values = [word[len("resume_offset="):] for word in arguments if word.startswith("resume_offset=")]
    return bool(values) and values[-1] != "0"


def _some(titles):
    """Entries in a message: a few of them, by name."""
    named = ", ".join("'%s'" % title for title in titles[:3])
    return named if len(titles) <= 3 else "%s and %d more" % (named, len(titles) - 3)


BY_TAG = {  # the links of udev's 60-persistent-storage.rules, for what is not in the header
    "PARTUUID": "/dev/disk/by-partuuid/%s",
    "PARTLABEL": "/dev/disk/by-partlabel/%s",
    "UUID": "/dev/disk/by-uuid/%s",
    "LABEL": "/dev/disk/by-label/%s",
}


def _names(survey, value):
    """Whether a value of C(resume=) means the device: a path, a tag of blkid's, or major:minor."""
    value = value.strip('"')
    tag, equals, rest = value.partition("=")
    rest = rest.strip('"')
    if not equals:
        return value == survey.block.number or survey.host.real(value) == survey.block.path
    if survey.header is not None and tag in ("UUID", "LABEL"):
        return rest == (survey.header.uuid if tag == "UUID" else survey.header.label)
    return tag in BY_TAG and survey.host.real(BY_TAG[tag] % rest) == survey.block.path


def _other_swap_first(survey):
    """Which swap area systemd takes while C(/sys/power/resume) is not set: find_suitable_hibernation_device_full()
    walks /proc/swaps without zram and changes over to an area of higher priority or with more free space."""
    if survey.resume != UNSET or survey.swap is None:
        return []
    chosen = None
    for swap in survey.swaps:
        if swap.path.startswith("/dev/zram") or swap.path.endswith(" (deleted)"):
            continue
        if chosen is None or swap.priority > chosen.priority or swap.size - swap.used > chosen.size - chosen.used:
            chosen = swap
    if chosen is None or chosen == survey.swap:
        return []
    return _blocker(
        "other_swap_first",
        "As long as no device to resume from is set, systemd hibernates into %s (priority %d, %s free) and not into %s "
        "(priority %d, %s free)." % (
            chosen.path, chosen.priority, format_size(chosen.size - chosen.used),
            survey.device, survey.swap.priority, format_size(survey.swap.size - survey.swap.used)),
        "Run boot_resume for %s and reboot: with resume= set, systemd takes that device whatever the priorities. Or: "
        "swapoff %s" % (survey.device, chosen.path),
    )


def _initramfs_drivers(survey):
    """Inside the image of every installed kernel: without the drivers the device is not there when the initramfs looks
    for it, the machine boots cold, and swapon destroys the saved image."""
    if survey.block is None or survey.resume is None:
        return []
    found = []
    for kernel, missing in survey.initramfs_missing():
        found += _blocker(
            "initramfs_drivers",
            "The initramfs of kernel %s lacks what resuming from %s needs: %s."
            % (kernel, survey.device, ", ".join(missing)),
            "Run boot_resume for %s; it adds them and builds the initramfs of every installed kernel anew."
            % survey.device,
        )
    return found


# policy --------------------------------------------------------------------------------------------------------------


def _sleep_inhibited(survey):
    """logind's block inhibitors of sleep: org.freedesktop.login1.Manager.ListInhibitors.

    Up to systemd 256 root passes them, from 257 on it does not; whoever set one asked for the machine to stay awake.
    """
    holders = ["%s (%s)" % (lock.who, lock.why) for lock in survey.inhibitors if lock.blocks_sleep]
    if not holders:
        return []
    return _blocker(
        "sleep_inhibited",
        "Sleep is inhibited by %s." % ", ".join(holders),
        "Wait until it is done, or end it; systemd-inhibit --list shows who it is.",
    )


@dataclass(frozen=True)
class Check:
    """One row: what it looks for, the function, and whether only root can tell. The code is the one to skip it by."""

    code: str
    look: Callable[[Survey], list]
    root: bool = False


CHECKS = (
    Check("not_root", _not_root),
    Check("no_nvm", _no_nvm),
    Check("no_hibernation", _no_hibernation),
    Check("hibernation_disabled", _disabled, root=True),
    Check("noresume", _noresume),
    Check("pm_test", _pm_test),
    Check("virtio_pmem", _virtio_pmem),
    Check("nvm_volatile", _nvm_volatile, root=True),
    Check("image_pending", _image_pending, root=True),
    Check("memory_map_changed", _memory_map_changed, root=True),
    Check("swap_inactive", _swap_inactive),
    Check("nvm_too_small", _nvm_too_small),
    Check("swap_too_small", _swap_too_small),
    Check("resume_running", _resume_running),
    Check("resume_configured", _resume_configured, root=True),
    Check("other_swap_first", _other_swap_first),
    Check("initramfs_drivers", _initramfs_drivers, root=True),
    Check("sleep_inhibited", _sleep_inhibited),
)
