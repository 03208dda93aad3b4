# SPDX-License-Identifier: GPL-3.0-or-later
"""dracut, with systemd in the image or without it.

Host-only images omit C(resume) while neither the running kernel's command line nor C(/sys/power/resume) names a device
(modules.d/95resume, later 74resume), as before the first reboot. They may omit drivers too. Our file configures both. The
device itself comes from C(resume=) on the kernel command line. dracut copies a finished image over the old one, so images
are built under another name.

A LUKS mapping is opened by systemd in the image, from a crypttab of the image. dracut takes in the lines of devices that it knows to be
needed, and those with the option C(force), since 060 C(x-initrd.attach); a key file has to be named.
"""

from __future__ import annotations

import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs import unlocking
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.archive import plain
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.base import Initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.modules import name_of
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.overrides import Override, module_overrides
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.unlocking import Programs
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

CONF = "/etc/dracut.conf.d/99-nvm-fastboot.conf"
TEXT = """\
# Written by the Ansible collection nvm.fastboot; changes here are overwritten.
# For resuming from %(resume)s. The device itself is set by resume= on the kernel command line.
add_dracutmodules+=" resume "
force_drivers+=" %(modules)s "
"""
CONFS = ("/etc/dracut.conf", "/etc/dracut.conf.d/*.conf", "/usr/lib/dracut/dracut.conf.d/*.conf")
OMITTED = re.compile(r"(?m)^[ \t]*(omit_dracutmodules|omit_drivers)\+?=[\"']?([^\"'\n]*)")  # they win over what ours adds
MODULES = "/usr/lib/dracut/modules.d"
UNLOCK = 'add_dracutmodules+=" %s "\n'
KEYS = 'install_items+=" %s "\n'
# A line of cpio --list --verbose: mode, links, owner, group, size (two numbers for a device), date, name [-> target]
LINE = re.compile(
    r"^[-dlcbps][-rwxsStT]{9}\s+\d+\s+\S+\s+\S+\s+\d+(?:,\s*\d+)?\s+\S+\s+\d+\s+[\d:]+\s+(.+?)(?: -> .*)?$"
)
# A line of unsquashfs -ll, find -ls or ls -ld: a file in the squashed part, which lsinitrd lists below the other files
SQUASHED_LINE = re.compile(r"^(?:\s*\d+\s+\d+\s+)?[-dlcbps][-rwxsStT]{9}\s.*?\s(?:squashfs|erofs)-root/(.+?)(?: -> .*)?$")
SQUASHED = {  # modules squash-squashfs and squash-erofs, and squash up to dracut 103: the package with the program that lists the part
    "squashfs-root.img": "squashfs-tools",
    "erofs-root.img": "erofs-utils",
    "squash-root.img": "squashfs-tools",
}
DAMAGE = re.compile(r"premature end|malformed|corrupt")
MODPROBE = ("etc/modprobe.d/", "lib/modprobe.d/")
SYSTEMD_ITSELF = "lib/systemd/systemd"
SYSTEMD = (  # with systemd in the image, modules.d/95resume copies only these
    "lib/systemd/systemd-hibernate-resume",
    "lib/systemd/system-generators/systemd-hibernate-resume-generator",
)
SYSTEMD_UNITS = (  # up to systemd 253 an instance per device, later one unit
    "lib/systemd/system/systemd-hibernate-resume.service",
    "lib/systemd/system/systemd-hibernate-resume@.service",
)
SCRIPT = "lib/dracut/resume.sh"
LOCKED = re.compile(r"(rd\.)?luks(\.crypttab)?=(0|no|n|false|f|off)$", re.I)  # systemd-cryptsetup-generator(8): opens nothing of crypttab


class Dracut(Initramfs):
    """See Initramfs."""

    name = package = "dracut"
    files = ("/usr/bin/dracut", "/usr/lib/dracut/dracut-functions.sh")
    kernel_hooks = ("/etc/kernel/postinst.d/dracut", "/usr/lib/kernel/install.d/50-dracut.install")
    image_names = ("initrd.img-%s", "initramfs-%s.img")

    programs = Programs(
        "etc/crypttab",
        (("lib/systemd/systemd-cryptsetup", "bin/systemd-cryptsetup"), "lib/systemd/system-generators/systemd-cryptsetup-generator"),
        "package systemd-cryptsetup, and systemd in the image",
    )

    def settings(self, resume, modules):
        text = TEXT % {"resume": resume, "modules": " ".join(modules)}
        if self.unlocking.mappings:
            text += UNLOCK % " ".join(self._unlock_modules())
        if self.unlocking.keys:
            text += KEYS % " ".join(mapping.key_file for mapping in self.unlocking.keys)
        return {CONF: (text, 0o644)}

    def _unlock_modules(self):
        """The modules of dracut that open LUKS mappings. Up to 102, crypt had what is in systemd-cryptsetup since."""
        own = ["systemd-cryptsetup"] if self.host.glob(MODULES + "/*systemd-cryptsetup") else []
        return ["crypt"] + own + (["tpm2-tss"] if self.unlocking.by_tpm2 else [])

    def unlock_arguments(self):
        return unlocking.arguments(self.host, self.unlocking.mappings)

    def own_files(self):
        return [CONF] if self.host.exists(CONF) else []

    def command(self, kernel, target):
        # The post-update hooks expect the image at its final path, and are run later.
        return ["env", "NO_POST_UPDATE_HOOKS=1", "/usr/bin/dracut", "--quiet", "--force", target, kernel]

    def listing(self, image):
        # The exit code also reports parts that an image need not have, and does not report damage that cpio finds.
        result = self.host.run([self.host.tool("lsinitrd"), image], ok=None)
        missing = re.search(r"^Need '.*|^.*not found, cannot display.*", result.out + result.err, re.M)
        if missing:
            raise Refused(
                "initramfs_unreadable",
                "lsinitrd cannot list %s: %s" % (image, missing.group(0)),
                "Install the missing command.",
            )
        if DAMAGE.search(result.err):
            return set()
        lines = result.out.splitlines()
        squashed = {plain(match.group(1)) for match in map(SQUASHED_LINE.match, lines) if match}
        names = {plain(match.group(1)) for match in map(LINE.match, lines) if match}
        for part, package in SQUASHED.items():
            if part in names and not squashed:
                raise Refused(
                    "initramfs_unreadable",
                    "Most of %s is in its part %s, which lsinitrd cannot list." % (image, part),
                    "Install the package %s." % package,
                )
        return names | squashed

    def lacking(self, names, resume):
        del resume  # set on the kernel command line
        if SYSTEMD_ITSELF in names:
            lacking = [name for name in SYSTEMD if name not in names]
            if not any(unit in names for unit in SYSTEMD_UNITS):
                lacking.append(SYSTEMD_UNITS[0])
            return lacking
        return [] if SCRIPT in names else [SCRIPT]

    def reads(self, name):
        return name == "etc/cmdline" or name.startswith(("etc/cmdline.d/", *MODPROBE))

    def _opened(self):
        return super()._opened() + self._switched_off()

    def _locked(self, names, image):
        return super()._locked(names, image) + ["the opening of LUKS, which %s switches off" % word for word in self._switched_off()]

    def _switched_off(self):
        """The words of the kernel command line with which an image opens none of its LUKS mappings."""
        words = self.host.read("/proc/cmdline", "").split() if self.unlocking.mappings else []
        return [word for word in words if LOCKED.match(word)]

    def excluded(self, modules):
        wanted = {"omit_dracutmodules": ["resume"] + self._unlock_modules(), "omit_drivers": [name_of(module) for module in modules]}
        found = ["Remove %s from the bootloader's settings, and reboot." % word for word in self._switched_off()]
        for path in [path for pattern in CONFS for path in self.host.glob(pattern)]:
            for setting, words in OMITTED.findall(self.host.read(path, "")):
                found += ["Remove %s from %s in %s." % (word, setting, path) for word in words.split()
                          if {word, name_of(word)} & set(wanted[setting])]
        return found

    def find_overrides(self, names, files, modules, needed):
        """Arguments in the image come before those of the kernel command line, where C(resume=) thus wins. systemd in an image reads only
        the kernel command line. Drivers are loaded by name before a blacklist is made (rd.driver.pre)."""
        found = []
        for name, text in sorted(files.items()):
            if name.startswith(MODPROBE):
                found += module_overrides(name, text, modules, needed, blacklist=False)
            elif "noresume" in text.split() and SYSTEMD_ITSELF not in names:
                found.append(Override(name, "noresume", "which switches resuming off"))
        return found

    def sources(self, name):
        if name.startswith(MODPROBE):
            return ["/%s" % name, "/usr/%s" % name]
        return ["/%s" % name] + self.host.glob("/etc/dracut.conf.d/*.conf") + ["/etc/dracut.conf"]
