# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd-boot with entries of type 1 (UAPI.1, Boot Loader Specification): C(loader/entries/*.conf) on the EFI system partition or on an
extended boot loader partition, with copies of the kernels and their initramfs.

kernel-install(8) writes the entries of new kernels, with the command line in C(/etc/kernel/cmdline), or without that file with the one
of the running kernel. Both are changed in place: the file for kernels to come, the entries for those that are there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders import copies
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import BootEntry, NextBoot, incomplete
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.command_lines import (
    running,
    slashes,
    words_of,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.efi import Firmware
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.in_place import InPlace, Place
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot import menu
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot.images import Images
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

PLACES = ("/efi", "/boot/efi", "/boot")  # where systemd-boot's partitions are mounted (bootctl)
GRUB_CONFIGURATIONS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
CMDLINE = "/etc/kernel/cmdline"
FALLBACK = "/usr/lib/kernel/cmdline"
INSTALLED = "/boot/vmlinuz-"
OPTIONS = re.compile(r"(?m)^[ \t]*options[ \t]+(.*?)[ \t]*$")


@dataclass(frozen=True)
class Entry:
    """An entry: C(root) is where its partition is mounted, C(kernel) and C(initrds) are paths on it."""

    path: str
    root: str
    title: str
    version: str
    machine: str
    sort_key: str
    kernel: str
    initrds: tuple
    arguments: tuple

    def item(self, started):
        """Its Item of the menu, with the BootEntry C(started)."""
        identifier, left, done = menu.named(os.path.basename(self.path))
        return menu.Item(identifier, self.title, self.version, self.machine, self.sort_key, left, done, started)


class SystemdBoot(InPlace):
    """See Bootloader."""

    name = "systemd-boot"
    title = "systemd-boot with entries in loader/entries"

    @classmethod
    def find(cls, host):
        firmware = Firmware(host)
        started = firmware.text("LoaderInfo").startswith("systemd-boot")
        if firmware.text("StubInfo"):
            return None  # a unified kernel image was started
        found = [root for root in PLACES if host.exists(root + "/loader/loader.conf") or host.exists(root + "/loader/entries")]
        if not started and (not found or any(host.exists(path) for path in GRUB_CONFIGURATIONS)):
            return None
        if not found:
            raise Refused(
                "boot_not_mounted",
                "The machine was started by systemd-boot, and the EFI system partition with its entries is not mounted.",
                "Mount it at /efi or /boot/efi (bootctl status names it), add it to /etc/fstab, and run the module again.",
            )
        return cls(host)

    @classmethod
    def evidence(cls):
        return "the EFI variable LoaderInfo, loader/loader.conf in %s" % ", ".join(PLACES)

    def __init__(self, host):
        super().__init__(host)
        paths = ["%s/loader/loader.conf" % root for root in PLACES]
        self.configuration = next((path for path in paths if host.exists(path)), "")
        self._images = Images(host, PLACES, self._system)

    def places(self):
        entries = [Place(entry.path, _options) for entry in self._own()]
        if self.host.which("kernel-install") is None:
            return entries
        return [*entries, Place(CMDLINE, _whole, self._default())]

    def _default(self):
        """The command line that kernel-install takes without C(/etc/kernel/cmdline)."""
        text = self.host.read(FALLBACK)
        if text is not None:
            return text
        return running(self.host) + "\n"

    # entries ---------------------------------------------------------------------------------------------------------

    def entries(self):
        return [self._started(entry) for entry in self._own()]

    def _started(self, entry):
        initrds = (entry.root + path for path in entry.initrds)
        return BootEntry(entry.title, self._kernel(entry), list(entry.arguments), tuple(path for path in initrds if self.host.exists(path)))

    def _kernel(self, entry):
        installed = INSTALLED + self._version(entry)
        return installed if installed != INSTALLED and self.host.exists(installed) else entry.root + entry.kernel

    def _version(self, entry):
        """The version of the kernel in /boot that C(entry) starts. An entry that people wrote may not say it: it starts that kernel or a
        copy of it then."""
        if entry.version and self.host.exists(INSTALLED + entry.version):
            return entry.version
        kernel = entry.root + entry.kernel
        found = [path for path in self.host.glob(INSTALLED + "*") if copies.same(self.host, path, kernel)]
        return found[0][len(INSTALLED):] if len(found) == 1 else entry.version

    def _own(self):
        """The entries that start a kernel of this system."""
        machine = self.host.attribute("/etc/machine-id", "")
        return [
            entry for entry in self._all()
            if self.host.exists(entry.root + entry.kernel) and entry.machine in ("", machine) and self._system.starts(entry.arguments)
        ]

    def _all(self):
        """Every entry that starts Linux."""
        found: dict = {}
        for root in PLACES:
            for path in self.host.glob(root + "/loader/entries/*.conf"):
                found.setdefault(self.host.real(path), self._parse(path, root))
        return [entry for entry in found.values() if entry is not None]

    def _parse(self, path, root):
        values: dict = {}
        for line in self.host.read(path, "").splitlines():
            key, value = (line.split(None, 1) + ["", ""])[:2]
            if not key.startswith("#"):
                values.setdefault(key, []).append(value.strip())
        if not values.get("linux"):
            return None
        first = {key: each[0] for key, each in values.items()}
        name, version = first.get("title", os.path.basename(path)), first.get("version", "")
        return Entry(
            path, root, "%s (%s)" % (name, version) if version else name, version, first.get("machine-id", ""), first.get("sort-key", ""),
            slashes(first["linux"]), tuple(slashes(each) for each in values.get("initrd", ())),
            tuple(word for each in values.get("options", ()) for word in words_of(each)),
        )  # fmt: skip

    # copies ----------------------------------------------------------------------------------------------------------

    def outdated(self):
        return ["the entry '%s' loads %s, which is not the same as %s" % (entry.title, copy, image)
                for entry, copy, image in self._outdated()]

    def _outdated(self):
        """Entries whose copy of an initramfs is another one than the image in /boot, as C((entry, copy, image))."""
        for entry in self._own():
            found = copies.outdated(self.host, self._version(entry), [entry.root + path for path in entry.initrds])
            if found:
                yield (entry, *found)

    def ensure(self, tx, purpose, arguments, drop=()):
        changed = super().ensure(tx, purpose, arguments, drop)
        if not self._copy(tx):
            return changed
        super().ensure(tx, purpose, arguments, drop)  # the entries were written again
        return True

    def forget(self, tx, purpose, leftovers=()):
        changed = self._copy(tx)
        return super().forget(tx, purpose, leftovers) or changed

    def after_hooks(self, tx):
        self._copy(tx)
        super().after_hooks(tx)

    def _copy(self, tx):
        """Have kernel-install copy images that were built since, which writes their entries again. An entry without a version is not of
        kernel-install: its copy is replaced. Returns whether there were any."""
        outdated = list(self._outdated())
        command = self.host.which("kernel-install")
        for entry, copy, image in outdated:
            tx.note(entry.path, "with an earlier copy of %s" % image, "with a copy of %s" % image)
            if tx.check_mode:
                continue
            if not entry.version:
                copies.replace(self.host, image, copy)
                continue
            kernel = INSTALLED + entry.version
            if command is None or not self.host.exists(kernel):
                raise incomplete("The entry '%s' loads a copy of %s that is out of date" % (entry.title, image), ["nothing here copies it"],
                                 "Copy %s to %s." % (image, entry.root + entry.initrds[-1]))
            self.host.run([command, "add", entry.version, kernel, image])
        return bool(outdated)

    # the next boot ---------------------------------------------------------------------------------------------------

    def next_boot(self):
        firmware, items = Firmware(self.host), self._menu()
        once, chosen = firmware.text("LoaderEntryOneShot"), firmware.text("LoaderEntryDefault")
        last = firmware.text("LoaderEntryLastBooted") or firmware.text("LoaderEntrySelected")
        configured = _default_of(self.host.read(self.configuration, ""))
        for pattern, reason in ((once, "LoaderEntryOneShot"), (chosen, "LoaderEntryDefault"), (configured, "default in loader.conf")):
            pattern = last if pattern == "@saved" else pattern
            item = menu.matching(items, pattern)
            if pattern and item is not None:
                return self._next(items, [item], "%s=%s" % (reason, pattern))
            if pattern.startswith("auto-"):
                return NextBoot([(pattern, [])], "%s=%s" % (reason, pattern), self._remedy(items))
        return self._next(items, items[:1], "the first entry of the menu")

    def _menu(self):
        """The Items of the menu, in their order."""
        own = self._own()
        entries = [each.item(self._started(each) if each in own else None) for each in self._all()]
        mine = self._images.own()
        return menu.ordered(entries + [image.item(image in mine) for image in self._images.all() if image.content])

    def _next(self, items, chosen, reason):
        choices = [(item.title, [item.entry] if item.entry else []) for item in chosen]
        return NextBoot(choices, reason, self._remedy(items))

    def _remedy(self, items):
        def remedy(kernel=None):
            name = next((item.identifier for item in items if item.entry and kernel in (None, item.entry.kernel)), None)
            return "Run: bootctl set-default %s." % name if name else "Run: kernel-install add, so that the menu has an entry for it."

        return remedy


def _options(text):
    """The command line of an entry, which may be in several lines."""
    spans = [match.span(1) for match in OPTIONS.finditer(text)]
    return [spans] if spans else []


def _whole(text):
    return [[(0, len(text))]]


def _default_of(text):
    """The pattern of C(default) in loader.conf."""
    found = re.findall(r"(?m)^[ \t]*default[ \t]+(\S+)", text)
    return found[-1] if found else ""
