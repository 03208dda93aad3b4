# SPDX-License-Identifier: GPL-3.0-or-later
"""What really started the running kernel, where that was not this system's GRUB although its files are there.

GRUB puts C(BOOT_IMAGE=) in front of the kernel command line, and no C(initrd=). The EFI stub of the kernel is given C(initrd=) where
the firmware or rEFInd starts it; Syslinux gives both. x86 kernels also keep the number of their loader
(Documentation/arch/x86/boot.rst, type_of_loader), in which the EFI stub is always 2, with whatever started it.
"""

from __future__ import annotations

import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.efi import Firmware
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.script import statements
from ansible_collections.nvm.fastboot.plugins.module_utils._core import mounts

GRUB_CONFIGURATIONS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
TYPE = "/proc/sys/kernel/bootloader_type"
KNOWN = ("/sys/firmware/efi", TYPE, "/proc/device-tree")  # one exists on every machine; without, nothing is known of the loader
LILO_TYPE, GRUB, KEXEC = 0x0, 0x7, 0xD
TYPES = {LILO_TYPE: "LILO", 0x1: "Loadlin", 0x3: "Syslinux", 0x4: "iPXE", 0x5: "ELILO", 0x8: "U-Boot", 0x9: "Xen", 0xB: "QEMU (-kernel)"}
STUB = "the kernel's own EFI stub"
UKI = "a unified kernel image"
# (pattern for the path of an EFI program, name)
PROGRAMS = (
    (re.compile(r"refind"), "rEFInd"),
    (re.compile(r"/systemd/|systemd-boot"), "systemd-boot"),
    (re.compile(r"limine"), "Limine"),
    (re.compile(r"syslinux"), "Syslinux"),
    (re.compile(r"/(grub|shim)[^/]*$|/grub2?/"), "GRUB"),
    (re.compile(r"^/efi/linux/"), UKI),
    (re.compile(r"/(vmlinu|linux|bzimage)[^/]*$"), STUB),
)
FALLBACK = re.compile(r"/efi/boot/", re.I)  # a copy of any loader, mostly of the one that is installed
FILES = (  # of loaders that do not say what they are
    ("rEFInd", ("/boot/refind_linux.conf", "/boot/efi/EFI/refind/refind.conf", "/efi/EFI/refind/refind.conf",
                "/boot/EFI/refind/refind.conf")),
    ("Limine", ("/boot/limine.conf", "/boot/limine/limine.conf", "/boot/efi/limine.conf", "/boot/efi/limine/limine.conf",
                "/efi/limine.conf", "/boot/limine.cfg", "/boot/limine/limine.cfg")),
)  # fmt: skip
RASPBERRY = "the Raspberry Pi's firmware"
# Firmware and loaders of machines without EFI and without a number of their loader: (name, file, text in it)
TREE = (
    ("Petitboot", "/sys/firmware/opal", ""),
    ("Petitboot", "/proc/device-tree/ibm,opal", ""),
    ("U-Boot", "/proc/device-tree/chosen/u-boot,version", ""),
    (RASPBERRY, "/proc/device-tree/model", "Raspberry Pi"),
    ("U-Boot", "/boot/extlinux/extlinux.conf", ""),
    ("U-Boot", "/extlinux/extlinux.conf", ""),
)
LILO = "/etc/lilo.conf"
IPL = "/sys/firmware/ipl"  # of s390x, where zipl writes what is started


def other_loader(host):
    """C((name, sign)) of what started the running kernel, as phrases, or None if that was GRUB or is not known."""
    words = host.read("/proc/cmdline", "").split()
    if host.exists(IPL):
        return "zipl", "%s is there, as on s390x" % IPL
    if not words or not any(host.exists(path) for path in KNOWN):
        return None
    firmware, loader = Firmware(host), _type(host)
    stub = firmware.text("StubInfo")
    if stub:
        return UKI, "the EFI variable StubInfo is '%s'" % stub
    current = firmware.current()
    program = program_of(current)
    sign = "the firmware started %s, its boot option '%s'" % (current.path, current.title) if program else ""
    if program in (STUB, UKI):
        return program, sign
    direct = _direct(words, program) or _numbered(host, loader)
    if not direct or loader in (GRUB, KEXEC):
        return None
    if host.attribute("/sys/hypervisor/type") == "xen":
        return "the Xen hypervisor", direct
    if program and program != "GRUB":
        return program, sign
    return _name(host, firmware, loader), direct


def other_configuration(host, configuration):
    """A phrase if the GRUB that the firmware started reads another C(grub.cfg) than C(configuration), or None."""
    firmware = Firmware(host)
    current = firmware.current()
    return _other_file(host, firmware, current, configuration) if program_of(current) == "GRUB" else None


def leads_elsewhere(host, configuration, option):
    """Whether the boot option C(option) starts something else than the GRUB that started this system."""
    firmware = Firmware(host)
    current = firmware.current()
    if current is None or option.number == current.number or option.loads_as(current) or FALLBACK.match(option.path or ""):
        return False
    if program_of(option) != "GRUB":
        return True
    if firmware.file(option, "grub.cfg"):
        return _other_file(host, firmware, option, configuration) is not None
    return current.path is not None and _directory(option) != _directory(current)


def _other_file(host, firmware, option, configuration):
    """other_configuration for the GRUB of C(option).

    The file beside it on the EFI system partition has the UUID of the filesystem with its C(grub.cfg).
    """
    stub = firmware.file(option, "grub.cfg")
    wanted = next((_searched(words) for words in statements(host.read(stub, "")) if _searched(words)), None) if stub else None
    mounted = _source(host, configuration)
    if wanted is None or mounted is None or not host.exists("/dev/disk/by-uuid"):
        return None
    link = "/dev/disk/by-uuid/" + wanted
    if host.exists(link) and host.real(link) == host.real(mounted):
        return None
    return "%s names the filesystem %s, and %s is on %s" % (stub, wanted, configuration, mounted)


def _directory(option):
    return option.path.lower().rpartition("/")[0]


def _type(host):
    text = host.attribute(TYPE) or ""
    return int(text) >> 4 if text.isdigit() else None


def program_of(option):
    """The name for the file of a boot option, or an empty string."""
    path = (option.path or "").lower() if option else ""
    return next((name for pattern, name in PROGRAMS if pattern.search(path)), "")


def _direct(words, program):
    """Why the command line C(words) is not from GRUB, as a phrase, or None. It may be GRUB's with C(initrd=) copied from elsewhere."""
    if not any(word.startswith("BOOT_IMAGE=") for word in words):
        return "the kernel command line has no BOOT_IMAGE=, which GRUB adds"
    copied = [word for word in words if word.startswith("initrd=")]
    return "the kernel command line has %s" % copied[0] if copied and program != "GRUB" else None


def _numbered(host, loader):
    """As _direct, by the number of the loader. Nothing else has the one of LILO, but it may not be set."""
    if loader in TYPES and (loader != LILO_TYPE or host.exists(LILO)):
        return "%s is %s" % (TYPE, host.attribute(TYPE))
    return None


def _name(host, firmware, loader):
    info = firmware.text("LoaderInfo")
    if info and not info.startswith("GRUB"):
        return info
    if loader in TYPES:
        return TYPES[loader]
    bare = loader is None and not host.exists("/sys/firmware/efi")
    for name, path, text in TREE if bare else ():
        if host.exists(path) and text in host.read(path, ""):
            return name
    for name, paths in FILES:
        if any(host.exists(path) for path in paths):
            return name
    return "another loader than GRUB"


def _searched(words):
    """The UUID of the filesystem that a command of GRUB searches for, or None."""
    if words[0] == "search.fs_uuid" and len(words) > 1:
        return words[1]
    if words[0] == "search" and ("--fs-uuid" in words or "-u" in words):
        names = [word for word in words[1:] if not word.startswith("-")]
        return names[-1] if names else None
    return None


def _source(host, path):
    """The device of the filesystem that C(path) is on, or None if that is no device."""
    mount = mounts.holder(mounts.mounts(host), path)
    return mount.device if mount and mount.device.startswith("/dev/") else None
