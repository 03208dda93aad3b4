# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of what boots next: the bootloader, its default entry, and the kernel that this one starts.

An image stays on the device while another system runs, but a kernel that cannot resume it loses it: it removes the signature
before it looks at the rest (kernel/power/swap.c, swsusp_check), or activates the swap area.

Every check takes a Survey and returns a list of Refused, empty if there is no blocker.
"""
from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import kernel_config
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders import copies
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.efi import Firmware
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.started import leads_elsewhere
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

X86 = ("x86_64", "i686", "i586", "i386")  # arch/x86/power/hibernate.c: the image does not name its kernel
# Since 5.13, images of x86 have another magic number and checksum (RESTORE_MAGIC); earlier kernels and later ones refuse each other's.
X86_FORMAT = (5, 13)
KERNEL_NAME = re.compile(r"^(?:vmlinu[xz]|kernel|bzImage|Image)-(.+?)(?:\.efi)?(?:\.signed)?$")


def bootloader(survey):
    """Whether the machine is started by a bootloader that is supported: raises what bootloaders.detect raises."""
    _detected = survey.bootloader
    return []


def next_boot_elsewhere(survey):
    """The firmware or the bootloader starts another system next."""
    return ([] if survey.bootloader.firmware else _firmware(survey)) or _menu(survey)


def _firmware(survey):
    firmware = Firmware(survey.host)
    current, following = firmware.current(), firmware.next()
    if following is None or not leads_elsewhere(survey.host, survey.bootloader.configuration, following[0]):
        return []
    option, variable = following
    remedy = "Run: efibootmgr --delete-bootnext." if variable == "BootNext" else \
        "Run: efibootmgr --bootorder with %04X first, the number of '%s'." % (current.number, current.title)
    return [Refused(
        "next_boot_elsewhere",
        "The firmware starts '%s' (Boot%04X, %s) next, not '%s', which started this system." % (
            option.title, option.number, variable, current.title),
        remedy,
    )]


def _menu(survey):
    boot = survey.next_boot
    others = [title for title, entries in boot.choices if not entries]
    if not others:
        return []
    return [Refused(
        "next_boot_elsewhere",
        "The bootloader starts '%s' next (%s), which is no kernel of this system." % (others[0], boot.reason),
        boot.remedy(None),
    )]


def no_initramfs(survey):
    """An entry that starts the kernel alone: C(resume=UUID=) means nothing to it, and the drivers are missing."""
    entries = [entry for entry in survey.next_entries if not entry.initrds]
    if not entries:
        return []
    kernel = release(survey.host, entries[0].kernel)
    setting = survey.bootloader.find_initrdless()
    return [Refused(
        "no_initramfs",
        "The entry '%s', which starts next, starts the kernel without an initramfs, which would resume the image."
        % entries[0].title,
        "Remove %s from %s, run %s, and reboot." % (setting[1], setting[0], survey.bootloader.generator) if setting else
        "Build an initramfs for the kernel (update-initramfs -c -k %s, or dracut --force --kver %s), %s, and reboot." % (
            kernel, kernel, "run " + survey.bootloader.update if survey.bootloader.update else "have that entry load it"),
    )]


def other_initramfs(survey):
    """An entry that loads another image than the one in /boot of its kernel, such as a copy of an earlier one.

    Only the image in /boot was looked into."""
    host = survey.host
    for entry in survey.next_entries:
        image = survey.initramfs.image(release(host, entry.kernel))
        loaded = [path for path in (_here(host, path) for path in entry.initrds) if path]
        if loaded and host.exists(image) and not any(copies.same(host, path, image) for path in loaded):
            return [Refused(
                "initramfs_outdated",
                "The entry '%s', which starts next (%s), loads %s, which is not the same as %s."
                % (entry.title, survey.next_boot.reason, loaded[-1], image),
                "Have that entry load %s, or have another one start." % image,
            )]
    return []


def _here(host, path):
    """The file on this machine for the initramfs C(path) of an entry, which may begin at the root of the filesystem of /boot, or None."""
    return next((each for each in ("/boot" + path, path, "/boot/" + os.path.basename(path)) if host.exists(each)), None)


def next_kernel(survey):
    """Whether the kernel that starts next resumes what the running one writes."""
    blockers = []
    for entry in survey.next_entries:
        kernel = release(survey.host, entry.kernel)
        cause = _cause(survey, kernel, entry.kernel)
        if cause:
            blockers.append(Refused(
                "next_kernel",
                "The kernel %s starts next (%s, entry '%s'), and would lose the image: %s." % (
                    kernel, survey.next_boot.reason, entry.title, cause),
                _remedy(survey, kernel, entry),
            ))
    return blockers[:1]


def release(host, path):
    """The version of the kernel file C(path), which may be a symbolic link."""
    match = KERNEL_NAME.match(os.path.basename(host.real(path)))
    return match.group(1) if match else os.path.basename(path)


def _cause(survey, kernel, path):
    """Why C(kernel) cannot resume an image of the running kernel, as a phrase, or None."""
    if kernel == survey.release:
        return None if survey.arch in X86 or not _replaced(survey, path) else \
            "its file was replaced since this boot, and on %s only the same build resumes an image" % survey.arch
    hibernation = kernel_config.option(survey.host, kernel, "CONFIG_HIBERNATION")
    if hibernation != "y":
        return "it is built without hibernation" if hibernation else \
            "whether it is built with hibernation is not known, there is no /boot/config-%s" % kernel
    if survey.arch not in X86:
        return "on %s only the kernel that wrote an image resumes it, and %s is running" % (survey.arch, survey.release)
    if kernel_config.version(kernel) < kernel_config.version(survey.release):
        return "it is older than the running kernel %s" % survey.release
    if kernel_config.version(survey.release) < X86_FORMAT:
        return "images of the running kernel %s are refused by others" % survey.release
    return None


def _replaced(survey, path):
    """Whether the file of the running kernel was written after the machine was booted."""
    booted = re.search(r"^btime (\d+)$", survey.host.read("/proc/stat", ""), re.M)
    try:
        return booted is not None and os.stat(survey.host.path(path)).st_ctime > int(booted.group(1))
    except OSError:
        return False


def _remedy(survey, kernel, entry):
    """A kernel with hibernation that is newer is the one to run; else the running one is the one to start."""
    if kernel == survey.release or (
            kernel_config.option(survey.host, kernel, "CONFIG_HIBERNATION") == "y"
            and kernel_config.version(kernel) > kernel_config.version(survey.release)):
        return "Reboot: the machine then runs that kernel, and hibernates with it."
    own = next((each.kernel for each in survey.entries if release(survey.host, each.kernel) == survey.release), None)
    return survey.next_boot.remedy(own or entry.kernel)
