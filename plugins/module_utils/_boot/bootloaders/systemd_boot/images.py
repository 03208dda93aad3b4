# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified kernel images (UAPI.5) in C(EFI/Linux): a kernel with its initramfs and its command line in one EFI program.

The stub in it adds the command lines of addons, which are EFI programs as well, unless the image is given one by who starts it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders import copies
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import BootEntry
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.command_lines import words_of
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot import pe
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot.menu import Item, named

DIRECTORY = "/EFI/Linux"
LINUX, INITRD, CMDLINE, UNAME, OSREL = ".linux", ".initrd", ".cmdline", ".uname", ".osrel"
MACHINE = "systemd.machine_id="
SIGNATURES = (".pcrsig", ".pcrpkey")  # of a policy for the TPM, which unlocks disks for the images that are signed


@dataclass(frozen=True)
class Image:
    """A unified kernel image: C(root) is where its partition is mounted, C(content) a Pe, or None for a file that is not whole."""

    path: str
    root: str
    version: str
    osrel: dict
    content: pe.Pe | None
    entries: tuple

    @property
    def identifier(self):
        return named(os.path.basename(self.path))[0]

    def whole(self):
        return self.content is not None

    def signed(self):
        """What is signed in it, as a set: the file for Secure Boot, and sections for the TPM."""
        if self.content is None:
            return set()
        return (self.content.names() & set(SIGNATURES)) | ({"Secure Boot"} if self.content.signed else set())

    def item(self, own):
        """Its Item of the menu; the first profile is the default one."""
        identifier, left, done = named(os.path.basename(self.path))
        get = self.osrel.get
        version = get("IMAGE_VERSION") or get("VERSION") or get("VERSION_ID") or get("BUILD_ID") or ""
        return Item(identifier, self.entries[0].title, version, "", get("IMAGE_ID") or get("ID") or "", left, done,
                    self.entries[0] if own else None)


class Images:
    """The unified kernel images on the partitions at C(roots) of one Host; C(system) is a System."""

    def __init__(self, host, roots, system):
        self.host = host
        self._roots = roots
        self._system = system
        self._compared: dict = {}
        self._token = host.attribute("/etc/kernel/entry-token") or host.attribute("/etc/machine-id", "")

    def all(self):
        found: dict = {}
        for root in self._roots:
            for path in self.host.glob(root + DIRECTORY + "/*.[eE][fF][iI]"):
                found.setdefault(self.host.real(path), self._image(path, root))
        return [image for image in found.values() if image is not None]

    def own(self):
        """Those that start this system."""
        return [image for image in self.all() if self._is_own(image)]

    def name(self, version):
        """The identifier that kernel-install gives the image of the kernel C(version)."""
        return "%s-%s.efi" % (self._token, version)

    def read(self, path, root):
        """The Image in C(path), also before it is in its place."""
        return self._image(path, root)

    def addons(self, image):
        """The command lines that the stub adds, as C((path, text))."""
        directories = ["%s/%s.extra.d" % (os.path.dirname(image.path), name)
                       for name in dict.fromkeys((os.path.basename(image.path), image.identifier))]
        paths = [path for directory in (*directories, image.root + "/loader/addons") for path in self.host.glob(directory + "/*.addon.efi")]
        for path in paths:
            content = pe.read(self.host.path(path))
            if content is not None:
                yield path, content.text(content.variants()[0].get(CMDLINE))

    def has_initramfs(self, image, path):
        """Whether the initramfs within C(image) is the file C(path), maybe behind microcode."""
        sections = [variant.get(INITRD) for variant in image.content.variants()] if image.content else [None]
        return all(section is not None and image.content.ends_with(section, self.host.path(path)) for section in sections)

    def outdated(self, image):
        """The initramfs in /boot if the image has another one inside, or None."""
        installed = copies.image_of(self.host, image.version)
        if installed is None or image.content is None:
            return None
        key = tuple((path, *_times(self.host.path(path))) for path in (image.path, installed))
        if key not in self._compared:
            self._compared[key] = self.has_initramfs(image, installed)
        return None if self._compared[key] else installed

    def _image(self, path, root):
        content = pe.read(self.host.path(path))
        if content is None:
            return self._damaged(path, root)
        variants = content.variants()
        if LINUX not in variants[0]:
            return None
        version = content.text(variants[0].get(UNAME)) or self._version(path)
        image = Image(path, root, version, _osrel(content.text(variants[0].get(OSREL))), content, ())
        added = [text for _path, text in self.addons(image)]
        return Image(path, root, version, image.osrel, content, tuple(
            self._entry(image, variant, number if len(variants) > 1 else None, added) for number, variant in enumerate(variants)))

    def _entry(self, image, variant, number, added):
        words = words_of(" ".join([image.content.text(variant.get(CMDLINE)), *added]))
        title = image.osrel.get("PRETTY_NAME") or image.identifier
        initrd = variant.get(INITRD)
        return BootEntry(
            "%s (%s%s)" % (title, image.version or image.identifier, "" if number is None else ", profile %d" % number),
            self._kernel(image), words, (image.path,) if initrd is not None and initrd.size else (),
        )  # fmt: skip

    def _kernel(self, image):
        installed = "/boot/vmlinuz-" + image.version
        return installed if image.version and self.host.exists(installed) else image.path

    def _damaged(self, path, root):
        """A file that is not whole, but has the name of an image of this system: a loader may offer it."""
        version = self._version(path)
        if not version:
            return None
        image = Image(path, root, version, {}, None, ())
        title = "%s, which is damaged" % os.path.basename(path)
        return Image(path, root, version, {}, None, (BootEntry(title, self._kernel(image), []),))

    def _version(self, path):
        """The version of an installed kernel in the name of C(path), as kernel-install writes it; or an empty string."""
        name = named(os.path.basename(path))[0]
        version = name[len(self._token) + 1 : -len(".efi")] if self._token and name.startswith(self._token + "-") else ""
        return version if version and self.host.exists("/boot/vmlinuz-" + version) else ""

    def _is_own(self, image):
        words = image.entries[0].arguments
        machines = {word[len(MACHINE):] for word in words if word.startswith(MACHINE)}
        prefix = re.match(r"([0-9a-f]{32})-", image.identifier)
        machines |= {prefix.group(1)} if prefix else set()
        release = _osrel(self.host.read("/etc/os-release", ""))
        foreign = image.osrel.get("ID") and release.get("ID") and image.osrel["ID"] != release["ID"]
        return not foreign and machines <= {self.host.attribute("/etc/machine-id", "")} and self._system.starts(words)


def _osrel(text):
    """The variables of os-release(5) in C(text)."""
    return {name: value.strip("\"'") for name, equals, value in (line.partition("=") for line in text.splitlines()) if equals}


def _times(path):
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
