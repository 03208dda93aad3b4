# SPDX-License-Identifier: GPL-3.0-or-later
"""initramfs-tools: mkinitramfs, whose settings are C(conf.d) files and hooks.

By default, it includes no NVM driver and resumes from the largest swap area. Our file in C(conf.d) has the UUID in its
name, so that the list of names in an image shows the setting. The installer's file, C(conf.d/resume), is sourced before
ours. The image sources them in the same order, and then reads the kernel command line: C(resume=) there replaces
C(RESUME), but there is no C(resume_offset=) to replace one in a file, so ours empties it. hooks/resume overrides C(RESUME)
with C(zz-resume-auto) if the device's type is not swap when the image is built, as while the device holds a hibernation
image.

A LUKS mapping is opened by the package cryptsetup-initramfs, from a crypttab of the image. It takes in key files that a pattern in
C(/etc/cryptsetup-initramfs/conf-hook) names, a file of that package; a hook of ours does the same for ours.
"""

from __future__ import annotations

import os
import shlex

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.archive import plain
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.base import Initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.overrides import (
    Override,
    assigned,
    module_overrides,
    script_overrides,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.unlocking import Programs

DIRECTORY = "/etc/initramfs-tools"
CONF = DIRECTORY + "/conf.d/zz-nvm-fastboot-resume-"
HOOK = DIRECTORY + "/hooks/nvm-fastboot"
UNLOCK = DIRECTORY + "/hooks/nvm-fastboot-luks"
EARLY = DIRECTORY + "/scripts/init-top/nvm-fastboot"
MAIN, CONFS, PARAMETERS = "conf/initramfs.conf", "conf/conf.d/", "conf/param.conf"  # sourced by init
MODPROBE = ("etc/modprobe.d/", "lib/modprobe.d/")
NO_RESUME = {  # variables of init, if they are not empty
    "resume_offset": "which is the place of a swap file, and the image is not there",
    "noresume": "which switches resuming off",
}
NOTE = "# Written by the Ansible collection nvm.fastboot; changes here are overwritten.\n"
SCRIPT = """\
#!/bin/sh
%(note)s# Loads the drivers of the resume device early, so that the device exists when the initramfs looks for it.
case "$1" in
prereqs)
    echo
    exit 0
    ;;
esac
. /usr/share/initramfs-tools/hook-functions
for module in %(modules)s; do
    force_load "$module"
done
"""
# Hooks here run after those in /usr/share, of which cryptroot has made the crypttab of the image.
UNLOCK_SCRIPT = """\
#!/bin/sh
%(note)s# Takes in the key files of the encrypted resume device.
case "$1" in
prereqs)
    echo
    exit 0
    ;;
esac
. /usr/share/initramfs-tools/hook-functions
umask 0077
mkdir -p "$DESTDIR/cryptroot/keyfiles"
%(lines)s"""
UNLOCK_LINES = """\
cp %(file)s "$DESTDIR/cryptroot/keyfiles/"%(name)s.key
[ ! -e "$DESTDIR/cryptroot/crypttab" ] || sed -i %(pattern)s "$DESTDIR/cryptroot/crypttab"
echo %(line)s >>"$DESTDIR/cryptroot/crypttab"
"""
PRIVATE = "# The image has a key.\nUMASK=0077\n"
# Its commands are in every image: modprobe (kmod), blkid (hooks/udev), resume (klibc).
EARLY_SCRIPT = """\
#!/bin/sh
%(note)s# Resumes from NVM before udev starts. An image on NVM needs no later part of the initramfs, and waiting for those takes
# longer than reading the image. Without an image on NVM this script does nothing, and scripts/local-premount/resume
# decides as usual.
case "$1" in
prereqs)
    echo
    exit 0
    ;;
esac
[ -w /sys/power/resume ] && [ -z "${resume_offset:-}" ] || exit 0
case "${resume:-}" in
UUID=*) ;;
*) exit 0 ;;
esac
modprobe -a -q %(modules)s 2>/dev/null
cat /sys/bus/nd/devices/ndbus*/wait_probe >/dev/null 2>&1
device=$(blkid -l -t "$resume" -o device 2>/dev/null)
case "$device" in
/dev/pmem*) ;;
*) exit 0 ;;
esac
[ "$(blkid -p -s TYPE -o value "$device" 2>/dev/null)" = swsuspend ] || exit 0
/bin/resume "$device"
exit 0
"""


class InitramfsTools(Initramfs):
    """See Initramfs."""

    name = package = "initramfs-tools"
    files = ("/usr/sbin/mkinitramfs", "/usr/share/initramfs-tools/hook-functions")
    kernel_hooks = ("/etc/kernel/postinst.d/initramfs-tools",)
    image_names = ("initrd.img-%s",)
    programs = Programs(
        "cryptroot/crypttab", ("scripts/local-top/cryptroot", "sbin/cryptsetup"), "package cryptsetup-initramfs"
    )

    def value(self, resume, file):
        """hooks/resume takes a filesystem for no resume device, and would choose another; C(none) keeps it from that. init then has both
        from the kernel command line: the filesystem, and C(resume_offset)."""
        return "none" if file else resume

    def settings(self, resume, modules):
        keys = self.unlocking.keys
        unlock = {"note": NOTE, "lines": "".join(_unlock_lines(mapping) for mapping in keys)}
        return {
            CONF + _suffix(resume): (NOTE + "RESUME=%s\nresume_offset=\n" % resume + (PRIVATE if keys else ""), 0o644),
            **({UNLOCK: (UNLOCK_SCRIPT % unlock, 0o755)} if keys else {}),
            HOOK: (SCRIPT % {"note": NOTE, "modules": " ".join(modules)}, 0o755),
            EARLY: (EARLY_SCRIPT % {"note": NOTE, "modules": " ".join(modules)}, 0o755),
        }

    def own_files(self):
        return self.host.glob(CONF + "*") + [path for path in (HOOK, UNLOCK, EARLY) if self.host.exists(path)]

    def command(self, kernel, target):
        # The same as update-initramfs, but without replacing the image. The post-update hooks are run later.
        return [self.host.tool("mkinitramfs"), "-o", target, kernel]

    def listing(self, image):
        result = self.host.run([self.host.tool("lsinitramfs"), image], ok=None)
        return {plain(name) for name in result.out.splitlines()} if result.rc == 0 else set()

    def lacking(self, names, resume):
        needs = ["scripts/local-premount/resume", "bin/resume"]
        if resume is not None:
            needs.append("conf/conf.d/%s%s" % (CONF.rsplit("/", 1)[1], _suffix(resume)))
            needs.append(EARLY[len(DIRECTORY) + 1 :])
        lacking = [name for name in needs if name not in names]
        if resume is not None and "conf/conf.d/zz-resume-auto" in names:
            lacking.append("%s as resume device: hooks/resume chose another device (zz-resume-auto)" % resume)
        return lacking

    def reads(self, name):
        return name in (MAIN, PARAMETERS) or name.startswith((CONFS, "scripts/", *MODPROBE))

    def find_overrides(self, names, files, modules, needed):
        del names
        order = [MAIN] + sorted(name for name in files if name.startswith(CONFS)) + [PARAMETERS]
        order = [name for name in order if name in files]
        found = [Override(name, "%s=%s" % (variable, value), NO_RESUME[variable])
                 for variable, (name, value) in assigned(files, order, NO_RESUME).items()
                 if value and (variable, value) != ("resume_offset", "0")]
        for name, text in sorted(files.items()):
            if name.startswith("scripts/"):
                found += script_overrides(name, text)
            elif name.startswith(MODPROBE):
                found += module_overrides(name, text, modules, needed, blacklist=True)  # init: MODPROBE_OPTIONS=-qb
        return found

    def remedy(self, override):
        earlier = override.name == MAIN or (override.name.startswith(CONFS) and override.name < CONFS + os.path.basename(CONF))
        if earlier and override.what.startswith("resume_offset="):
            return "Run boot_resume, which overrides it in the image of every installed kernel."
        return super().remedy(override)

    def sources(self, name):
        if name.startswith(MODPROBE):
            return ["/%s" % name, "/usr/%s" % name]
        path = name[len("conf/"):] if name.startswith("conf/") else name
        return ["%s/%s" % (DIRECTORY, path), "/usr/share/initramfs-tools/%s" % path]


def _unlock_lines(mapping):
    """Shell commands that put the key file of C(mapping) and its line into an image."""
    name, options = mapping.name, ",".join(mapping.line.options)
    return UNLOCK_LINES % {
        "file": shlex.quote(mapping.key_file),
        "name": shlex.quote(name),
        "pattern": shlex.quote("/^%s[[:space:]]/d" % name.replace(".", "[.]")),
        "line": shlex.quote("%s UUID=%s /cryptroot/keyfiles/%s.key %s" % (name, mapping.uuid, name, options)),
    }


def _suffix(resume):
    """C(resume) as part of a file name. mkinitramfs only reads run-parts(8) names, without = and /."""
    value = resume.split("=", 1)[-1]
    return "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in value)
