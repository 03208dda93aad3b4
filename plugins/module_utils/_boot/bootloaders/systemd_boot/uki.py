# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified kernel images (UAPI.5), which systemd-boot or the firmware itself starts out of C(EFI/Linux).

Command line and initramfs are within the image, so a change of either needs a new one: the command line is changed in
C(/etc/kernel/cmdline), and kernel-install builds each image of this system again. Entries of type 1 may be there as well.
"""

from __future__ import annotations

import contextlib
import os

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders import copies
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import (
    BootEntry,
    NextBoot,
    incomplete,
    matches,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.command_lines import changed, words_of
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.efi import (
    GLOBAL,
    VARIABLES,
    Firmware,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.started import (
    UKI,
    leads_elsewhere,
    program_of,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.efi_stub.variables import (
    Variables,
    text_of,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.in_place import Place
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot import (
    CMDLINE,
    FALLBACK,
    PLACES,
    SystemdBoot,
    kernel_install,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.base import OLD
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused


class Uki(SystemdBoot):
    """See Bootloader. What is recorded is the same as for systemd-boot: a machine may go from one to the other."""

    name = "uki"
    recorded = SystemdBoot.name
    title = "unified kernel images in EFI/Linux, made by kernel-install"
    firmware = True
    texts = Variables

    @classmethod
    def find(cls, host):
        firmware = Firmware(host)
        info, stub, program = firmware.text("LoaderInfo"), firmware.text("StubInfo"), program_of(firmware.current())
        directly = not info and program in ("", UKI) and (stub or program)
        if not directly and not info.startswith(SystemdBoot.name):
            return None
        found = cls(host)
        if found._images.own():
            return found
        if stub and not any(host.exists(root + name) for root in PLACES for name in ("/EFI", "/loader")):
            raise Refused(
                "boot_not_mounted",
                "A unified kernel image was started, and the EFI system partition with it is not mounted.",
                "Mount it at /efi or /boot/efi (bootctl status names it), add it to /etc/fstab, and run the module again.",
            )
        return None

    @classmethod
    def find_for_removal(cls, host):
        found = cls(host)
        return found if found._images.own() and (found._record.files or cls.find(host)) else None

    @classmethod
    def remains(cls, host, purpose, leftovers=()):
        return []  # SystemdBoot says it, out of the same record

    @classmethod
    def evidence(cls):
        return "the EFI variable StubInfo, EFI/Linux in %s" % ", ".join(PLACES)

    def __init__(self, host):
        super().__init__(host)
        self._removed: tuple = ()  # arguments that forget took out
        self._line = ""  # the command line where no file has one, once forget knows it

    def places(self):
        options = [Place(VARIABLES % ("Boot%04X" % option.number, GLOBAL), _whole) for option, _image, _text in self._given()]
        return super().places() + options

    # entries ---------------------------------------------------------------------------------------------------------

    def entries(self):
        images = [entry for image in self._images.own() for entry in image.entries]
        return super().entries() + images + [self._option(*each) for each in self._given()]

    def _given(self):
        """Boot options that hand an image of this system a command line, which replaces the one inside: C((option, image, text))."""
        for option in Firmware(self.host).options():
            image, text = self._started_by(option), text_of(option.data)
            if option.active and image is not None and text and text[0] > "\x1f":
                yield option, image, text

    def _started_by(self, option):
        """The image of this system that a boot option of the firmware starts, or None."""
        local = Firmware(self.host).local(option)
        path = self.host.real("".join(local)) if local else None
        return next((image for image in self._images.own() if self.host.real(image.path) == path), None)

    def _option(self, option, image, text):
        words = words_of(" ".join([text.rstrip("\0"), *(more for _path, more in self._images.addons(image))]))
        entry = image.entries[0]
        return BootEntry("%s (Boot%04X)" % (option.title, option.number), entry.kernel, words, entry.initrds)

    def find_setting(self, words):
        found = super().find_setting(words)
        for image in self._images.own() if found is None else []:
            for path, text in self._images.addons(image):
                found = next(((path, word) for word in words_of(text) if word in words), found)
        return found

    def outdated(self):
        images = ((image, self._images.outdated(image)) for image in self._images.own())
        return super().outdated() + [
            "the initramfs within %s is not the same as %s" % (image.path, installed) for image, installed in images if installed]

    # building --------------------------------------------------------------------------------------------------------

    def ensure(self, tx, purpose, arguments, drop=()):
        stale = self._stale(arguments, drop)
        self._check(stale, drop)
        self._undo(tx, stale)
        changed = super().ensure(tx, purpose, arguments, drop)
        for entry, copy, image in self._outdated() if self._builds() else ():
            raise incomplete("The entry '%s' loads %s, which is not the same as %s" % (entry.title, copy, image),
                             ["kernel-install makes unified kernel images, and no such copies (layout=uki)"],
                             "Remove %s, or copy %s to %s." % (entry.path, image, copy))
        return self._build(tx, self._stale(arguments, drop), arguments, drop) or changed

    def forget(self, tx, purpose, leftovers=()):
        words = tuple(dict.fromkeys([*(self._record.owned(purpose) or ()), *leftovers]))
        line = self._record.files.get(CMDLINE, {}).get("missing") or self._default()
        self._line = changed(line, [], words)
        self._removed += words
        stale = self._with(words)
        self._check(stale)
        self._undo(tx, stale)
        taken = super().forget(tx, purpose, leftovers)
        return self._build(tx, stale, (), words) or taken

    def after_hooks(self, tx):
        super().after_hooks(tx)
        own = self._images.own()
        self._build(tx, [image for image in own if image in self._with(self._removed) or self._images.outdated(image)], (), self._removed)

    def _copy(self, tx):
        """Entries of type 1 may be left from a time when kernel-install made some; it copies nothing for them any more."""
        return False if self._builds() else super()._copy(tx)

    def _builds(self):
        return kernel_install.lacking(self.host) is None

    def _stale(self, arguments, drop):
        """The images that lack one of C(arguments), have one of C(drop), or an initramfs that was built again since."""
        return [image for image in self._images.own()
                if not image.whole() or _differs(image, arguments, drop) or self._images.outdated(image)]

    def _with(self, words):
        return [image for image in self._images.own() if _differs(image, (), words)]

    def _check(self, images, drop=()):
        """Refused C(bootloader_incomplete) if one of C(images) cannot be built again as it is."""
        for image in images:
            cause, remedy = self._cause(image, drop) or (None, None)
            if cause:
                raise incomplete("%s has to be built again, and that is not possible" % image.path, [cause], remedy)

    def _cause(self, image, drop):
        remove = "Remove %s if it is no longer used." % image.path
        if not image.version or not self.host.exists("/boot/vmlinuz-" + image.version):
            return "its kernel %s is not in /boot" % image.version, remove
        if copies.image_of(self.host, image.version) is None:
            return "/boot has no initramfs for its kernel %s" % image.version, "Build it: update-initramfs -c -k %s." % image.version
        name = self._images.name(image.version)
        if image.identifier != name:
            return "it was not made by kernel-install, which calls it %s" % name, (
                "%s Or have kernel-install make it, or build it with the arguments by hand." % remove)
        lacking = kernel_install.lacking(self.host)
        if lacking:
            return lacking
        if image.signed() and not kernel_install.signs(self.host):
            return "it is signed, and the new one would not be", (
                "Have kernel-install sign it: SecureBootPrivateKey= and SecureBootCertificate=, or PCRPrivateKey=, in "
                "/etc/kernel/uki.conf. Or build it once without a signature, if neither Secure Boot nor the TPM needs one: "
                "kernel-install add.")
        for path, text in self._images.addons(image):
            found = [word for word in words_of(text) if matches(word, drop)]
            if found:
                return "%s adds %s" % (path, " ".join(found)), "Remove %s." % path
        return None

    def _build(self, tx, images, present, absent):
        """Have C(images) built again, with C(present) on their command lines and without C(absent). Returns whether there are any."""
        for image in images:
            line = " ".join(image.entries[0].arguments)
            tx.note(image.path, line + "\n", changed(line, list(present), [*absent, *present]) + "\n")
        if images and not tx.check_mode:
            with self._command_line():
                for image in images:
                    self._make(image, copies.image_of(self.host, image.version), present, absent)
        return bool(images)

    @contextlib.contextmanager
    def _command_line(self):
        """Without a file for it, kernel-install takes the command line of the running kernel, which may have what was removed."""
        if not self._line or self.host.exists(CMDLINE) or self.host.exists(FALLBACK):
            yield
            return
        with self._record.lent(CMDLINE, self._line):
            yield

    def _make(self, image, initramfs, present, absent):
        """Replace C(image) by a new one, which has to be whole and as it is asked for before."""
        try:
            path = kernel_install.build(self.host, image, initramfs)
            made = self._images.read(path, image.root) if path else None
            problem = self._problem(made, image, initramfs, present, absent)
            if problem:
                raise incomplete("The new %s was not put in place" % image.path, [problem],
                                 "Run: kernel-install --verbose add %s /boot/vmlinuz-%s %s, and look for the cause."
                                 % (image.version, image.version, initramfs))
            handle = os.open(self.host.path(path), os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
            self.host.rename(path, image.path)
        finally:
            kernel_install.discard(self.host, image.root)
        self.host.flush_filesystem(image.root)

    def _problem(self, made, image, initramfs, present, absent):
        if made is None or not made.whole():
            return "kernel-install made none"
        if _differs(made, present, absent):
            return "its command line is %s" % " ".join(made.entries[0].arguments)
        if not self._images.has_initramfs(made, initramfs):
            return "it has another initramfs inside than %s" % initramfs
        return "the earlier one is signed, and it is not" if image.signed() - made.signed() else None

    def _undo(self, tx, images):
        """Have C(images) built as they were if the transaction fails: called once the settings are back, and before the initramfs is."""
        if images and not tx.check_mode:
            tx.on_failure(lambda: self._restore(images))

    def _restore(self, images):
        self._line = self._line or self._default()
        for image in images:
            installed = copies.image_of(self.host, image.version)
            initramfs = installed + OLD if installed and self.host.exists(installed + OLD) else installed
            now = self._images.read(image.path, image.root)
            if initramfs is None or (now is not None and now.entries == image.entries and self._images.has_initramfs(now, initramfs)):
                continue
            try:
                with self._command_line():
                    self._make(image, initramfs, (), ())
            except (Refused, OSError):
                pass  # it starts this system as well, with the new settings; the other changes are undone

    # the next boot ---------------------------------------------------------------------------------------------------

    def next_boot(self):
        firmware = Firmware(self.host)
        with_menu = firmware.text("LoaderInfo").startswith(SystemdBoot.name)
        option, variable = firmware.next() or (None, "")
        if option is None:
            return super().next_boot() if with_menu else self._chosen(self._images.own(), "the firmware chooses")
        image, reason = self._started_by(option), "%s, Boot%04X" % (variable, option.number)
        if image is not None:
            given = [self._option(*each) for each in self._given() if each[0].number == option.number]
            return NextBoot([(option.title, given or [image.entries[0]])], reason, self._by_firmware)
        if with_menu and not leads_elsewhere(self.host, "", option):
            return super().next_boot()
        return NextBoot([(option.title, [])], reason, self._by_firmware)

    def _chosen(self, images, reason):
        return NextBoot([(image.entries[0].title, [image.entries[0]]) for image in images], reason, self._by_firmware)

    def _by_firmware(self, kernel=None):
        for option in Firmware(self.host).options():
            image = self._started_by(option)
            if option.active and image is not None and kernel in (None, image.entries[0].kernel):
                return "Run: efibootmgr --delete-bootnext; efibootmgr --bootorder with %04X first." % option.number
        return "Have the firmware start systemd-boot first (efibootmgr --bootorder), or make a boot option for it (efibootmgr --create)."


def _differs(image, present, absent):
    """Whether an Image lacks one of C(present) or has one of C(absent) beside these."""
    return any(
        any(word not in entry.arguments for word in present)
        or any(word not in present and matches(word, absent) for word in entry.arguments)
        for entry in image.entries
    )


def _whole(text):
    return [[(0, len(text.rstrip("\0")))]]
