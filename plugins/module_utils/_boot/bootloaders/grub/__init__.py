# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB 2 with a C(grub.cfg) that grub-mkconfig generates from C(/etc/default/grub) and C(/etc/default/grub.d): Debian.

With BIOS and with EFI: the C(grub.cfg) on the EFI system partition only points to this one.

grub-mkconfig ends with C(cat NEW > grub.cfg): a power cut at that moment leaves a machine that does not boot. So a file
beside it is generated, verified, and renamed.
"""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import (
    BootEntry,
    Bootloader,
    NextBoot,
    incomplete,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.other_systems import System
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import settings
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.defaults import (
    Defaults,
    scripts_mention,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.menu import Menu
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.script import (
    LINUX_COMMANDS,
    statements,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._core import mounts
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

# (command, file that it generates)
LAYOUTS = (
    ("grub-mkconfig", "/boot/grub/grub.cfg"),
    ("grub2-mkconfig", "/boot/grub2/grub.cfg"),
)
KERNEL = re.compile(r"^(vmlinu[xz]|kernel|bzImage|Image)(-|$|\.)")
FOREIGN = "osprober-"  # /etc/grub.d/30_os-prober: the ids of entries of other systems
INITRDLESS = "GRUB_FORCE_PARTUUID"  # Ubuntu's cloud images: the first try of an entry is without initramfs
# grub-mkconfig: GRUB_EARLY_INITRD_LINUX_STOCK
MICROCODE = ("intel-uc.img", "intel-ucode.img", "amd-uc.img", "amd-ucode.img", "early_ucode.cpio", "microcode.cpio")


class Grub(Bootloader):
    """See Bootloader. C(command) generates C(configuration); C(generator) is how to say that in a remedy."""

    name = "grub"
    title = "GRUB with grub-mkconfig and /etc/default/grub.d"

    def __init__(self, host, command, configuration):
        self.host = host
        self.command = command
        self.configuration = configuration
        generate = "%s-mkconfig -o %s" % (os.path.basename(os.path.dirname(configuration)), configuration)
        self.generator = self.update = "update-grub" if host.which("update-grub") else generate  # Debian's program
        self._system = System(host)

    @classmethod
    def find(cls, host):
        for name, configuration in LAYOUTS:
            command = host.which(name)
            if command is not None and host.exists(configuration):
                if "default/grub.d" in host.read(command, ""):
                    return cls(host, command, configuration)
                raise Refused(
                    "bootloader_unsupported",
                    "%s does not read /etc/default/grub.d, the directory for additional settings." % command,
                    "Supported: %s, as in Debian." % cls.title,
                )
        return None

    @classmethod
    def evidence(cls):
        return ", ".join("%s with %s" % layout for layout in LAYOUTS)

    @classmethod
    def remains(cls, host, purpose, leftovers=()):
        places = [path for path in (settings.path(purpose),) if host.exists(path)]
        for _name, path in LAYOUTS:
            lines = [words for words in statements(host.read(path, "")) if words[0] in LINUX_COMMANDS]
            if any(set(leftovers) & set(words) for words in lines):
                places.append(path)
        return places

    # settings --------------------------------------------------------------------------------------------------------

    def owned(self, purpose):
        record = self._record(settings.path(purpose))
        return record["arguments"] or None if record else None

    def set(self, tx, purpose, arguments, drop=()):
        path = settings.path(purpose)
        before = self.host.read(path)
        if before is None:
            made = not self.host.exists(settings.DIRECTORY)
        else:
            made = (settings.parse(before) or {"directory": False})["directory"]
        if made:
            tx.on_failure(self._remove_directory)
        return tx.write(path, settings.render(arguments, drop, made))

    def unset(self, tx, purpose):
        path = settings.path(purpose)
        before = self.host.read(path)
        if before is None:
            return False
        tx.check_kept(path)
        tx.note(path, before, "")
        if not tx.check_mode:
            made = (settings.parse(before) or {"directory": False})["directory"]
            tx.on_failure(lambda: self.host.replace(path, before))
            self.host.replace(path, settings.render_removed(made))
        return True

    def find_setting(self, words):
        return Defaults(self.host).find(words)

    def find_initrdless(self):
        defaults = Defaults(self.host)
        if not defaults.values.get(INITRDLESS) or not scripts_mention(self.host, INITRDLESS):
            return None
        return defaults.file(INITRDLESS), INITRDLESS

    def unfinished(self):
        return any(not (settings.parse(self.host.read(path, "")) or {"arguments": True})["arguments"]
                   for path in self._files())

    def _files(self):
        return self.host.glob("%s/%s*.cfg" % (settings.DIRECTORY, settings.PREFIX))

    def _record(self, path):
        text = self.host.read(path)
        if text is None:
            return None
        record = settings.parse(text)
        if record is None:
            raise Refused(
                "settings_modified",
                "%s was changed by hand: its record and its settings differ." % path,
                "Remove the file, run %s, and run the module again." % self.generator,
            )
        return record

    def _remove_directory(self):
        try:
            os.rmdir(self.host.path(settings.DIRECTORY))
        except OSError:
            pass  # not empty

    # the generated configuration -------------------------------------------------------------------------------------

    def entries(self):
        return self._entries(self.host.read(self.configuration, ""))

    def _entries(self, text):
        """The entries of C(text), and of the files that it sources (custom.cfg)."""
        entries = [self._started(*entry) for entry in Menu(self.host, self.configuration, text).entries()]
        return [start for starts in entries for start in starts]

    def next_boot(self):
        menu = Menu(self.host, self.configuration, self.host.read(self.configuration, ""))
        choices = [(entry[0], self._started(*entry)) for entry in menu.defaults()]
        defaults = Defaults(self.host)
        saved, file = defaults.values.get("GRUB_DEFAULT") == "saved", defaults.file("GRUB_DEFAULT")

        def remedy(kernel=None):
            return menu.remedy(
                self.generator, saved, file,
                lambda entry: any(kernel in (None, each.kernel) for each in self._started(*entry)),
            )

        return NextBoot(choices, menu.reason(), remedy)

    def _started(self, title, identifier, starts):
        """A BootEntry for each of C(starts) that is a kernel of this system."""
        if identifier.startswith(FOREIGN):
            return []
        own = [start for start in starts if start is not None and self._system.starts(start.arguments, start.loop)]
        return [
            BootEntry(title, self._kernel(start), list(start.arguments),
                      tuple(path for path in self._initrds(start) if os.path.basename(path) not in MICROCODE))
            for start in own if self._kernel(start)
        ]

    def _initrds(self, start):
        """What C(start) loads as initramfs; of an entry from a file, what is there on this machine."""
        if start.beside is None:
            return start.initrds
        paths = (mounts.local(self.host, start.beside, path) for path in start.initrds)
        return [path for path in paths if path and self.host.exists(path)]

    def _kernel(self, start):
        """The file on this machine for the kernel of C(start), or None. kernel-install has copies of those in /boot, below their
        versions."""
        if start.beside is None:
            return self._named(start.kernel)
        copy = mounts.local(self.host, start.beside, start.kernel)
        if not copy or not self.host.exists(copy):
            return None
        installed = "/boot/vmlinuz-" + os.path.basename(os.path.dirname(copy))
        return installed if self.host.exists(installed) else copy

    def _named(self, path):
        """The file on this machine for C(path) in grub.cfg, or None.

        Paths in grub.cfg start at the root of a filesystem: C(/vmlinuz-6.1) if /boot is a filesystem,
        C(/@/boot/vmlinuz-6.1) with btrfs subvolumes. Installers have a C(vmlinuz) in a directory of their own
        (C(/boot/netboot), C(/casper)), which is not the link of this name in /boot.
        """
        directory, name = os.path.split(path)
        if not KERNEL.match(name) or ("-" not in name and not self._is_boot(os.path.basename(directory))):
            return None
        candidates = ["/boot/" + name]
        if os.path.dirname(path) == "/":
            candidates.append(path)
        return next((each for each in candidates if self.host.exists(each)), None)

    def _is_boot(self, name):
        """Whether a directory C(name) in grub.cfg may be /boot: by this name, as the root of a filesystem, a subvolume or a dataset."""
        mount = mounts.holder(mounts.mounts(self.host), "/boot")
        return name in ("", "boot", os.path.basename(mount.root) if mount else "") or "@" in name

    def regenerate(self, tx):
        host = self.host
        before = host.read(self.configuration)
        tx.check_kept(self.configuration)
        if tx.check_mode:
            tx.note(self.configuration, "current configuration", "generated from the new settings")
            return
        after = self._generate()
        self._verify(after)
        if after != before:
            tx.note(self.configuration, before, after)
            tx.on_failure(lambda: self._put(before))
            self._put(after)
        self._remove_emptied(tx)

    def _generate(self):
        """The output of grub-mkconfig, which also runs grub-script-check. Leaves no file behind."""
        target = self.configuration + ".nvm-fastboot"
        leftovers = (target, target + ".new")
        for path in leftovers:
            self.host.remove(path)
        try:
            self.host.run([self.command, "-o", target])
            text = self.host.read(target)
        finally:
            for path in leftovers:
                self.host.remove(path)
        if not text:
            raise Refused(
                "command_failed",
                "%s succeeded, but its output is empty." % self.command,
                "Run it by hand on the machine. Check whether the files in /etc/grub.d are executable.",
            )
        return text

    def _verify(self, text):
        """Check that every entry has the arguments of every purpose. Refused C(bootloader_incomplete)."""
        records = [record for record in (self._record(path) for path in self._files()) if record["arguments"]]
        present = [word for record in records for word in record["arguments"]]
        absent = [word for record in records for word in record["drop"]]
        problems = self.check(self._entries(text), present, absent)
        if problems:
            raise incomplete(
                "The configuration from %s differs from the settings, and was not installed" % self.command,
                problems,
                "Check for files in %s that sort after ours and set GRUB_CMDLINE_LINUX. Add the arguments to entries that "
                "are written by hand in /etc/grub.d or custom.cfg." % settings.DIRECTORY,
            )

    def _put(self, text):
        """Replace the configuration atomically, and flush the journal, which GRUB does not replay."""
        self.host.replace(self.configuration, text, mode=0o600)
        self.host.flush_filesystem(os.path.dirname(self.configuration))

    def _remove_emptied(self, tx):
        """Remove the files of removed settings, once the configuration no longer has them."""
        for path in self._files():
            record = self._record(path)
            if not record["arguments"]:
                text = self.host.read(path)
                tx.on_failure(lambda path=path, text=text: self.host.replace(path, text))
                self.host.remove(path)
                if record["directory"]:
                    self._remove_directory()
