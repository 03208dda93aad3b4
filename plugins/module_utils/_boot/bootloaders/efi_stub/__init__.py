# SPDX-License-Identifier: GPL-3.0-or-later
"""The firmware starts the kernel itself, by the EFI stub in it: a boot option (efibootmgr) names the kernel on the EFI system partition and
has its command line, which names the initramfs.

The command line is changed within the option. Kernel and initramfs are mostly copies of those in C(/boot), made by hooks of the
administrator; where these do not copy an image that was built again, it is done here.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders import copies
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import BootEntry, NextBoot, incomplete
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.command_lines import slashes, words_of
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.efi import (
    GLOBAL,
    VARIABLES,
    Firmware,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.started import STUB, other_loader
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.efi_stub.variables import (
    Variables,
    text_of,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.in_place import InPlace, Place
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.base import OLD
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

NAME = re.compile(r"/(vmlinu|linux|bzimage)[^/]*$", re.I)
HEAD = 1 << 16  # bytes of a kernel in which its version is
X86, X86_AT, VERSION_AT = b"HdrS", 0x202, 0x20E  # Documentation/arch/x86/boot.rst: header, kernel_version (from 0x200)


@dataclass(frozen=True)
class Started:
    """A boot option that starts a kernel of this system: C(place) is where its partition is mounted, C(initrds) are paths on it."""

    number: int
    title: str
    place: str
    kernel: str
    version: str
    arguments: tuple
    initrds: tuple

    @property
    def variable(self):
        return VARIABLES % ("Boot%04X" % self.number, GLOBAL)


class EfiStub(InPlace):
    """See Bootloader."""

    name = "efi-stub"
    title = "the kernel's EFI stub, started by a boot option of the firmware"
    firmware = True
    texts = Variables

    @classmethod
    def find(cls, host):
        started = other_loader(host)
        if started is None or started[0] != STUB:
            return None
        firmware = Firmware(host)
        if firmware.local(firmware.current()) is None:
            raise Refused(
                "boot_not_mounted",
                "The firmware started the kernel itself, and the EFI system partition with the kernel is not mounted.",
                "Mount it at /boot/efi or /efi, add it to /etc/fstab, and run the module again.",
            )
        found = cls(host)
        return found if found._own() else None

    @classmethod
    def evidence(cls):
        return "boot options of the firmware that start a kernel"

    def places(self):
        return [Place(each.variable, _whole) for each in self._own()]

    def regenerate(self, tx):
        """Nothing is generated, and the firmware has stored its variables when they are set."""

    # entries ---------------------------------------------------------------------------------------------------------

    def entries(self):
        return [self._entry(each) for each in self._own()]

    def _entry(self, started):
        initrds = (started.place + path for path in started.initrds)
        installed = "/boot/vmlinuz-" + started.version
        kernel = installed if started.version and self.host.exists(installed) else started.place + started.kernel
        title = "%s (Boot%04X)" % (started.title, started.number)
        return BootEntry(title, kernel, list(started.arguments), tuple(path for path in initrds if self.host.exists(path)))

    def _own(self):
        """The active boot options that start a kernel of this system."""
        found = [self._started(option) for option in Firmware(self.host).options() if option.active]
        return [each for each in found if each is not None and self._system.starts(each.arguments)]

    def _started(self, option):
        found, text = Firmware(self.host).local(option), text_of(option.data)
        if found is None or text is None:
            return None
        place, kernel = found
        words = words_of(text.rstrip("\0"))
        if not any(word.startswith(("root=", "initrd=")) for word in words):
            return None
        head = self.host.read_bytes(place + kernel, b"", HEAD)
        version = _version(head)
        if version is None and not NAME.search(option.path):
            return None
        initrds = tuple(slashes(word[len("initrd="):]) for word in words if word.startswith("initrd="))
        arguments = tuple(word for word in words if not word.startswith("initrd="))
        return Started(option.number, option.title, place, kernel, version or self._installed(place + kernel), arguments, initrds)

    def _installed(self, file):
        """The version of the kernel in /boot that is the same as C(file), or an empty string."""
        kernels = self.host.glob("/boot/vmlinu[xz]-*")
        return next((path.split("-", 1)[1] for path in kernels if copies.same(self.host, path, file)), "")

    # copies ----------------------------------------------------------------------------------------------------------

    def outdated(self):
        return ["the boot option '%s' loads %s, which is not the same as %s" % (each.title, copy, image)
                for each, copy, image in self._outdated()]

    def _outdated(self):
        for each in self._own():
            found = copies.outdated(self.host, each.version, [each.place + path for path in each.initrds])
            if found:
                yield (each, *found)

    def ensure(self, tx, purpose, arguments, drop=()):
        changed = self._copy(tx)  # first, so that no kernel looks for a device that its initramfs cannot reach
        for each, copy, image in [] if tx.check_mode else self._outdated():
            raise incomplete("The boot option '%s' loads %s, which is not the same as %s" % (each.title, copy, image),
                             ["nothing here copies it"], "Copy %s to %s, and run the module again." % (image, copy))
        return super().ensure(tx, purpose, arguments, drop) or changed

    def after_hooks(self, tx):
        self._copy(tx)
        super().after_hooks(tx)

    def _copy(self, tx):
        """Copy images that were built again, over what is the same as the image before. Returns whether there were any."""
        known = [(copy, image) for _each, copy, image in self._outdated()
                 if self.host.exists(image + OLD) and copies.same(self.host, copy, image + OLD)]
        for copy, image in dict.fromkeys(known):
            tx.note(copy, "a copy of the earlier %s" % image, "a copy of %s" % image)
            if not tx.check_mode:
                tx.on_failure(lambda copy=copy, old=image + OLD: copies.replace(self.host, old, copy))
                copies.replace(self.host, image, copy)
                self.host.flush_filesystem(copy)
        return bool(known)

    # the next boot ---------------------------------------------------------------------------------------------------

    def next_boot(self):
        own = {each.number: each for each in self._own()}
        found = Firmware(self.host).next()
        if found is None:
            return NextBoot([(each.title, [self._entry(each)]) for each in own.values()], "the firmware chooses", self._remedy(own))
        option, variable = found
        entries = [self._entry(own[option.number])] if option.number in own else []
        return NextBoot([(option.title, entries)], "%s, Boot%04X" % (variable, option.number), self._remedy(own))

    def _remedy(self, own):
        def remedy(kernel=None):
            number = next((each.number for each in own.values() if kernel in (None, self._entry(each).kernel)), None)
            if number is None:
                return "Run: efibootmgr --create, so that the firmware has a boot option for it."
            return "Run: efibootmgr --delete-bootnext; efibootmgr --bootorder with %04X first." % number

        return remedy


def _whole(text):
    """The command line, which may end with zeros."""
    return [[(0, len(text.rstrip("\0")))]]


def _version(head):
    """The version in C(head), the beginning of a kernel for x86, or None."""
    if head[X86_AT : X86_AT + len(X86)] != X86:
        return None
    at = 0x200 + struct.unpack_from("<H", head, VERSION_AT)[0]
    return head[at : at + 256].split(b"\0")[0].decode("ascii", "replace").split(" ")[0] or None
