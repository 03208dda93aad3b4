# SPDX-License-Identifier: GPL-3.0-or-later
"""How each initramfs tool makes the overlay: its settings, its kernel argument, and what an image must contain for it."""

from __future__ import annotations

from dataclasses import dataclass

NO_CHECK = "fsck.mode=skip"
DRACUT_CONF = "/etc/dracut.conf.d/99-nvm-fastboot-overlay.conf"
# dracut up to 108 hands the flags of the root filesystem to the overlay, which knows none of them, and then goes on without one. An image
# for one machine carries these flags unless it is told not to.
DRACUT_TEXT = """\
# Written by the Ansible collection nvm.fastboot; changes here are overwritten.
# An overlay in memory above the root filesystem, if rd.live.overlay.overlayfs=1 is on the kernel command line.
add_dracutmodules+=" overlayfs "
force_drivers+=" overlay "
hostonly_cmdline="no"
"""


@dataclass(frozen=True)
class Kind:
    """C(argument) switches the overlay on; C(drop) are arguments of others that would be in its way, C(conflicts) those with which it
    cannot work. C(script) is the tool's own part, of C(package). C(parts) are the ends of names in an image. C(remounts): systemd's remount
    of the root fails on the overlay, because /etc/fstab still has the options of the filesystem below it."""

    title: str
    package: str
    argument: str
    drop: tuple
    parts: tuple
    conflicts: tuple = ()
    script: str = ""
    files: tuple = ()
    text: str = ""
    remounts: bool = False

    @property
    def arguments(self):
        """For the kernel. A check of the filesystem below the overlay writes to it at each boot, even if there is nothing to repair."""
        return [self.argument, NO_CHECK]

    def settings(self):
        """Our files for the overlay, as C({path: content})."""
        return dict.fromkeys(self.files, self.text)

    def lacking(self, names):
        """The parts that are not among the C(names) of an image, as a list of phrases."""
        return [part for part in self.parts if not any(name.endswith(part) for name in names)]


KINDS = {
    "initramfs-tools": Kind(
        title="initramfs-tools",
        package="overlayroot",
        argument="overlayroot=tmpfs:swap=1,recurse=0",
        drop=("overlayroot", "fsck.mode"),
        parts=("scripts/init-bottom/overlayroot",),
        script="/usr/share/initramfs-tools/scripts/init-bottom/overlayroot",
    ),
    "dracut": Kind(
        title="dracut",
        package="dracut-core",
        argument="rd.live.overlay.overlayfs=1",
        drop=("rd.live.overlay.overlayfs", "rd.overlay", "fsck.mode"),
        parts=("hooks/mount/01-mount-overlayfs.sh",),
        conflicts=("rootflags",),
        files=(DRACUT_CONF,),
        text=DRACUT_TEXT,
        remounts=True,
    ),
}
