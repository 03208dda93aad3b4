# SPDX-License-Identifier: GPL-3.0-or-later
"""initramfs-tools: mkinitramfs, whose settings are C(conf.d) files and hooks.

It ships no driver of NVM by itself, and left alone it picks the largest swap area as the one to resume from. The file
in C(conf.d) is named after the UUID it sets, so that the list of names in an image tells what is in it; the file of the
installer, C(conf.d/resume), is sourced before it. hooks/resume overrides both with C(zz-resume-auto) if the device is
not of type swap when the image is built, which it is not while it holds a hibernation image.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.base import Initramfs, plain

FOLDER = "/etc/initramfs-tools"
CONF = FOLDER + "/conf.d/zz-nvm-fastboot-resume-"
HOOK = FOLDER + "/hooks/nvm-fastboot"
EARLY = FOLDER + "/scripts/init-top/nvm-fastboot"
NOTE = "# Written by the Ansible collection nvm.fastboot, which replaces this file as a whole.\n"
SCRIPT = """\
#!/bin/sh
%(note)s# The drivers of the device to resume from: without them it is not there when the initramfs looks for it.
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
# What it calls is in every image: modprobe (kmod), blkid (hooks/udev), resume (klibc).
EARLY_SCRIPT = """\
#!/bin/sh
%(note)s# Resumes from NVM before udev starts: an image on NVM needs nothing of what the initramfs sets up after this, and waiting
# for that takes longer than reading the image. Where there is no image, or it is not on NVM, it does nothing, and
# scripts/local-premount/resume decides as ever.
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

    name = "initramfs-tools"
    files = ("/usr/sbin/mkinitramfs", "/usr/share/initramfs-tools/hook-functions")
    kernel_hooks = ("/etc/kernel/postinst.d/initramfs-tools",)
    image_names = ("initrd.img-%s",)

    def settings(self, resume, modules):
        return {
            CONF + _suffix(resume): (NOTE + "RESUME=%s\n" % resume, 0o644),
            HOOK: (SCRIPT % {"note": NOTE, "modules": " ".join(modules)}, 0o755),
            EARLY: (EARLY_SCRIPT % {"note": NOTE, "modules": " ".join(modules)}, 0o755),
        }

    def own_files(self):
        return self.host.glob(CONF + "*") + [path for path in (HOOK, EARLY) if self.host.exists(path)]

    def command(self, kernel, target):
        # What update-initramfs does, less the replacing. Its post-update hooks are run when that is done.
        return [self.host.which("mkinitramfs") or "mkinitramfs", "-o", target, kernel]

    def listing(self, image):
        result = self.host.run([self.host.which("lsinitramfs") or "lsinitramfs", image], ok=None)
        return {plain(name) for name in result.out.splitlines()} if result.rc == 0 else set()

    def lacking(self, names, resume):
        needs = ["scripts/local-premount/resume", "bin/resume"]
        if resume is not None:
            needs.append("conf/conf.d/%s%s" % (CONF.rsplit("/", 1)[1], _suffix(resume)))
            needs.append(EARLY[len(FOLDER) + 1 :])
        found = [name for name in needs if name not in names]
        if resume is not None and "conf/conf.d/zz-resume-auto" in names:
            found.append("%s as the device to resume from: hooks/resume chose another one (zz-resume-auto)" % resume)
        return found


def _suffix(resume):
    """C(resume) in a file name; run-parts(8) names, which are all that mkinitramfs takes, have neither = nor /."""
    value = resume.split("=", 1)[-1]
    return "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in value)
