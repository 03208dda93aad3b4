# SPDX-License-Identifier: GPL-3.0-or-later
"""Blockers that a machine can be given: what brings each about, and its remedy as an administrator follows it.

A ``Step`` is a part of the remedy's text, which has to be there, and what it means: a command (the text itself, if none is named), a
module, or a reboot. ``{device}`` is the device of the swap area, ``{uuid}`` its UUID, ``{disk}`` an empty disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NVM = "/dev/NVM_SWAP"
GRUB_SETTING = "/etc/default/grub.d/zz-spoiled.cfg"
MENU = "/etc/grub.d/42_spoiled"


@dataclass(frozen=True)
class Step:
    says: str
    run: str = ""
    module: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    reboot: bool = False


@dataclass(frozen=True)
class Spoiled:
    """``code``: of the blocker. ``spoil``: a script; ``reboot``: it takes effect at the next boot. ``clean``: a script for afterwards.
    ``leads_to``: codes of blockers that the remedy leads to, each of which has a case of its own."""

    name: str
    code: str
    spoil: str
    steps: tuple[Step, ...]
    reboot: bool = False
    clean: str = "true"
    become: bool = True
    leads_to: tuple[str, ...] = ()


def _sleep_conf(text: str) -> str:
    return f"mkdir -p /etc/systemd/sleep.conf.d && printf '[Sleep]\\n{text}\\n' >/etc/systemd/sleep.conf.d/zz.conf"


def _argument(word: str) -> str:
    return f"echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {word}\"' >{GRUB_SETTING} && update-grub"


BOOT_RESUME = Step("Run boot_resume", module="boot_resume", options={"device": NVM})
REBOOT = Step("eboot", reboot=True)
NO_ARGUMENT = Step("Remove it from the bootloader's configuration", f"rm {GRUB_SETTING} && update-grub")
NO_SLEEP_CONF = Step("emove that line", "rm /etc/systemd/sleep.conf.d/zz.conf")
NO_CONFIGURATION = "rm /etc/default/grub.d/*nvm-fastboot* && update-grub"
NO_RESUME = (  # initramfs-tools looks for a swap area by itself, unless it is told not to
    NO_CONFIGURATION
    + " && rm /etc/initramfs-tools/conf.d/*nvm* && echo RESUME=none >/etc/initramfs-tools/conf.d/resume && update-initramfs -u"
)
NO_FILE = "rm /etc/initramfs-tools/conf.d/resume"
NO_MENU = f"rm -f {MENU} {GRUB_SETTING} && update-grub"

SECRET = """
python3 -c '
import ctypes, mmap, os, time
descriptor = ctypes.CDLL(None).syscall(447, 0)
os.ftruncate(descriptor, 4096)
mmap.mmap(descriptor, 4096)
time.sleep(3600)
' >/dev/null 2>&1 &
sleep 2
"""
# A kernel beside the one that runs: C{version} without hibernation, first in the menu or chosen by its number.
OTHER_KERNEL = """
set -e
running=$(uname -r)
cp /boot/vmlinuz-$running /boot/vmlinuz-5.0.0-spoiled
sed 's/^CONFIG_HIBERNATION=y/# CONFIG_HIBERNATION is not set/' /boot/config-$running >/boot/config-5.0.0-spoiled
cp -a /lib/modules/$running /lib/modules/5.0.0-spoiled
depmod 5.0.0-spoiled
update-initramfs -c -k 5.0.0-spoiled
echo "GRUB_DEFAULT='1>2'" >/etc/default/grub.d/zz-spoiled.cfg
update-grub
"""
OTHER_SYSTEM = f"""
set -e
cat >{MENU} <<'END'
#!/bin/sh
cat <<'MENU'
menuentry 'Memory test' --id memtest {{
    linux16 /boot/memtest86+.bin
}}
MENU
END
chmod 755 {MENU}
touch /boot/memtest86+.bin
echo 'GRUB_DEFAULT=memtest' >{GRUB_SETTING}
update-grub
"""
HOGGED = """
swapoff {device}
mkswap -q -U {uuid} -L NVM_SWAP {device} 200000
swapon {device}
systemd-run -q --unit=hog python3 -c '
import time
held = bytearray(300 << 20)
while True:
    for at in range(0, len(held), 4096):
        held[at] = 1
    time.sleep(0.2)
'
sleep 20
"""
BOOT_APART = """
set -e
mkfs.ext4 -q -F {disk}
mount {disk} /mnt
cp -a /boot/. /mnt
umount /mnt
echo "UUID=$(blkid -s UUID -o value {disk}) /boot ext4 noauto 0 0" >>/etc/fstab
"""

SPOILED = (
    Spoiled("not_root", "not_root", "true", (Step("become: true", "true"),), become=False),
    Spoiled("masked", "sleep_masked", "systemctl mask hibernate.target", (Step("systemctl unmask hibernate.target"),)),
    Spoiled("masked_sleep", "sleep_masked", "systemctl mask sleep.target", (Step("systemctl unmask sleep.target"),)),
    Spoiled("disallowed", "sleep_disallowed", _sleep_conf("AllowHibernation=no"), (NO_SLEEP_CONF,)),
    Spoiled("mode", "sleep_mode", _sleep_conf("HibernateMode=suspend"), (NO_SLEEP_CONF,)),
    Spoiled(
        "replaced",
        "sleep_replaced",
        "mkdir -p /etc/systemd/system/systemd-hibernate.service.d && printf '[Service]\\nExecStart=\\nExecStart=/usr/sbin/s2disk\\n'"
        " >/etc/systemd/system/systemd-hibernate.service.d/s2disk.conf && systemctl daemon-reload",
        (
            Step("Remove that file", "rm -r /etc/systemd/system/systemd-hibernate.service.d"),
            Step("systemctl daemon-reload"),
        ),
    ),
    Spoiled(
        "inhibited",
        "sleep_inhibited",
        "systemd-run -q --unit=backup systemd-inhibit --what=sleep --who=backup --why='it runs' sleep 3600; sleep 3",
        (Step("stop it", "systemctl stop backup"),),
    ),
    Spoiled("secret", "memfd_secret", SECRET, (Step("Stop these processes", "pkill -f ctypes; sleep 1"),)),
    Spoiled("lockdown", "lockdown", "echo integrity >/sys/kernel/security/lockdown", (REBOOT,)),
    Spoiled("nohibernate", "nohibernate", _argument("nohibernate"), (NO_ARGUMENT, REBOOT), reboot=True),
    Spoiled("noresume", "noresume", _argument("noresume"), (NO_ARGUMENT, REBOOT), reboot=True),
    Spoiled(
        "claimed",
        "device_claimed",
        f"echo 'scratch {NVM} /dev/urandom swap' >>/etc/crypttab",
        (Step("remove that line", "sed -i /scratch/d /etc/crypttab"),),
    ),
    Spoiled(
        "inactive", "swap_inactive", "swapoff {device}", (Step("Run nvm_swap with state=present", module="nvm_swap"),)
    ),
    Spoiled(
        "filesystem",
        "holds_filesystem",
        "swapoff {device} && wipefs -q -a {device} && mkfs.ext4 -q {device} && udevadm settle",
        (Step("run nvm_swap with force=true", module="nvm_swap", options={"force": True}),),
    ),
    Spoiled(
        "in_use",
        "device_in_use",
        "swapoff {device} && losetup /dev/loop7 {device}",
        (Step("losetup", "losetup -d /dev/loop7"), Step("", module="nvm_swap")),
    ),
    Spoiled(
        "link",
        "uuid_elsewhere",
        "rm /dev/disk/by-uuid/{uuid}",
        (Step("udevadm trigger --settle {real}"),),
    ),
    Spoiled(
        "copy",
        "uuid_elsewhere",
        "mkswap -q -U {uuid} {disk} && ln -sf {disk} /dev/disk/by-uuid/{uuid}",
        (
            Step(
                "give it another UUID (swaplabel -U $(uuidgen) DEVICE",
                "swaplabel -U 12345678-1234-4321-8765-123456789abc {disk}",
            ),
            Step("", "udevadm trigger --settle {disk} {real}"),
        ),
        clean="wipefs -q -a {disk}; udevadm trigger --settle {disk} {real}",
    ),
    Spoiled(
        "too_small",
        "swap_too_small",
        HOGGED,
        (Step("Stop programs that use much memory", "systemctl stop hog"),),
    ),
    Spoiled("entries_unset", "resume_unset", NO_CONFIGURATION, (BOOT_RESUME,)),
    Spoiled("unset", "resume_unset", NO_RESUME, (BOOT_RESUME, REBOOT), reboot=True, clean=NO_FILE),
    Spoiled(
        "entries_elsewhere",
        "resume_elsewhere",
        "sed -i s/resume=UUID=[^\\ ]*/resume=UUID=0815/ /boot/grub/grub.cfg",
        (BOOT_RESUME,),
    ),
    Spoiled(
        "other_swap",
        "other_swap_first",
        NO_RESUME
        + " && mkswap -q {disk} && echo 'UUID='$(blkid -p -s UUID -o value {disk})' none swap pri=100 0 0' >>/etc/fstab",
        (BOOT_RESUME, REBOOT),
        reboot=True,
        clean=NO_FILE + "; swapoff {disk}; sed -i /pri=100/d /etc/fstab; wipefs -q -a {disk}",
    ),
    Spoiled(
        "no_entries",
        "unknown_boot_entries",
        "echo >/boot/grub/grub.cfg",
        (Step("bootloader's own tool", "update-grub"),),
    ),
    Spoiled(
        "drivers",
        "initramfs_drivers",
        "mkdir /root/kept && mv /etc/initramfs-tools/conf.d/*nvm* /root/kept && sed -i /pmem/d /etc/initramfs-tools/modules &&"
        " update-initramfs -u",
        (BOOT_RESUME,),
        clean="rm -r /root/kept",
    ),
    Spoiled(
        "overridden",
        "initramfs_overridden",
        "echo 'resume_offset=34816' >/etc/initramfs-tools/conf.d/zzzz-file && update-initramfs -u",
        (
            Step("Remove it from /etc/initramfs-tools/conf.d/zzzz-file", "rm /etc/initramfs-tools/conf.d/zzzz-file"),
            Step("run boot_resume", module="boot_resume", options={"device": NVM}),
        ),
    ),
    Spoiled(
        "next_kernel",
        "next_kernel",
        OTHER_KERNEL,
        (Step(f"in {GRUB_SETTING}, and run update-grub", "{setting} && update-grub"),),
        clean=f"rm -rf /boot/*5.0.0-spoiled /lib/modules/5.0.0-spoiled {GRUB_SETTING}; update-grub",
    ),
    Spoiled(
        "next_system",
        "next_boot_elsewhere",
        OTHER_SYSTEM,
        (Step(f"in {GRUB_SETTING}, and run update-grub", "{setting} && update-grub"),),
        clean=NO_MENU,
    ),
    Spoiled(
        "no_initramfs",
        "no_initramfs",
        "rm /boot/initrd.img-* && update-grub",
        (Step("update-initramfs -c -k {kernel}"), Step("run update-grub", "update-grub"), REBOOT),
    ),
    # The last two belong together: the files of /boot move to a filesystem of their own.
    Spoiled(
        "boot_noauto",
        "boot_not_mounted",
        BOOT_APART,
        (Step("mount /boot", "sed -i s/noauto/defaults/ /etc/fstab && mount /boot"),),
        leads_to=("boot_elsewhere",),
    ),
    Spoiled(
        "boot_moved",
        "boot_elsewhere",
        "mountpoint /boot",
        (Step("install the bootloader again (grub-install)", "grub-install /dev/vda && update-grub"), REBOOT),
    ),
)
