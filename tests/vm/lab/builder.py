# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the disk of a guest from Debian packages.

mmdebstrap unpacks and configures the packages (as root, or in a user namespace), mke2fs makes the root filesystem out of
the tree, and the guest itself, started once by ``-kernel``, installs its bootloader. What this file says is part of the
key under which ``images`` keeps the result.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.vm.lab import accelerator
from tests.vm.lab.recipes import Recipe

MIRROR = os.environ.get("LAB_DEBIAN_MIRROR", "http://deb.debian.org/debian")
GUEST_FILES = Path(__file__).parent / "guest"
DISK_MIB = 3072
BOOT_PARTITION_MIB = 64  # EFI system partition; on BIOS machines the gap that holds GRUB's core image
FINALIZE_SECONDS = 240  # six times what it takes on an idle machine
FINALIZE_TRIES = 3
_OVMF = (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd"))

# Runs with the root directory of the new guest as $1.
_CUSTOMIZE = r"""
set -eu
root="$1"
install -m 755 "$FILES/finalize" "$root/usr/local/sbin/lab-finalize"
install -m 755 "$FILES/seed" "$root/usr/local/sbin/lab-seed"
install -m 644 "$FILES/lab-seed.service" "$root/etc/systemd/system/lab-seed.service"
install -m 644 "$FILES/lab.network" "$root/etc/systemd/network/lab.network"
chroot "$root" systemctl enable lab-seed.service systemd-networkd.service serial-getty@ttyS0.service >/dev/null 2>&1
chroot "$root" systemctl disable systemd-networkd-wait-online.service >/dev/null 2>&1 || true
chroot "$root" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
  systemd-networkd-wait-online.service >/dev/null 2>&1
chroot "$root" passwd -q -d root
# Whoever waits for a slow guest tries again and again, for which OpenSSH since 9.8 shuts out the whole address for a while.
{
  echo 'MaxStartups 100'
  ! grep -qi persourcepenalties "$root/usr/sbin/sshd" || echo 'PerSourcePenalties no'
} >"$root/etc/ssh/sshd_config.d/lab.conf"
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
echo localhost >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' >"$root/etc/hosts"
printf 'LANG=C.UTF-8\n' >"$root/etc/default/locale"
# tsc=reliable: on a busy host the emulated timers make the kernel give up the TSC for a clock that is far slower to read.
# norandmaps: libraries at the same addresses in every process let QEMU use its translations again; building an initramfs
# is 2.7 times as fast.
arguments="console=ttyS0,115200 mitigations=off tsc=reliable norandmaps"
sed -i -e 's/^GRUB_TIMEOUT=.*/GRUB_TIMEOUT=0/' \
  -e "s/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT=\"$arguments\"/" "$root/etc/default/grub"
printf 'GRUB_TERMINAL=console\nGRUB_DISABLE_OS_PROBER=true\nGRUB_RECORDFAIL_TIMEOUT=0\n' >>"$root/etc/default/grub"
{
  echo '# <file system> <mount point> <type> <options> <dump> <pass>'
  echo 'UUID='"$ROOT_UUID"' / ext4 errors=remount-ro 0 1'
  if [ "$FIRMWARE" = efi ]; then
    mkdir -p "$root/boot/efi"
    echo 'UUID='"$ESP_UUID"' /boot/efi vfat umask=0077,nofail 0 1'
  fi
} >"$root/etc/fstab"
kernel=$(ls -v "$root"/boot/vmlinuz-* | tail -n 1)
cp "$kernel" "$OUT/vmlinuz"
cp "$root/boot/initrd.img-${kernel##*/vmlinuz-}" "$OUT/initrd"
# From here on the guest builds its own images: under software emulation the defaults (every driver, zstd -9) take minutes.
if [ -d "$root/etc/initramfs-tools/conf.d" ]; then
  printf 'MODULES=dep\nCOMPRESS=lz4\nCOMPRESSLEVEL=1\n' >"$root/etc/initramfs-tools/conf.d/lab"
fi
if [ -d "$root/etc/dracut.conf.d" ]; then
  printf 'hostonly=yes\nhostonly_mode=sloppy\ncompress="lz4 -1 -l"\n' >"$root/etc/dracut.conf.d/lab.conf"
fi
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* \
  "$root"/usr/share/locale/* "$root"/usr/share/man/*
mkdir -p "$root/var/lib/apt/lists/partial"
# A second view of the tree that leaves out what is mounted below it (/proc, /sys, /dev).
mkdir -p "$OUT/tree"
mount --bind "$root" "$OUT/tree"
mke2fs -q -t ext4 -L root -U "$ROOT_UUID" -m 1 -E offset=$((ROOT_START * 1048576)),lazy_itable_init=0 \
  -d "$OUT/tree" "$OUT/disk.raw" "$((ROOT_MIB * 1024))"
umount "$OUT/tree"
rmdir "$OUT/tree"
"""


class BuildError(Exception):
    """A guest image could not be built; the message names the step and where its log is."""


def ovmf() -> tuple[Path, Path]:
    """OVMF's code and variable store. Raises BuildError if the package is missing."""
    if not all(file.exists() for file in _OVMF):
        raise BuildError("EFI guests need OVMF: apt-get install ovmf")
    return _OVMF


def build(recipe: Recipe, folder: Path, accel_verdict: Path, say: Callable[[str], None]) -> None:
    """Make ``base.qcow2`` and ``vmlinuz`` in ``folder``, which appears when they are whole. Raises BuildError."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    started = time.monotonic()
    say(f"installing Debian {recipe.suite} packages")
    _make_disk(recipe, partial)
    say(f"installing GRUB inside the guest ({time.monotonic() - started:.0f} s so far)")
    _finalize(partial, accel_verdict)
    _run(["qemu-img", "convert", "-O", "qcow2", "finalize.qcow2", "base.qcow2"], partial)
    for leftover in ("disk.raw", "finalize.qcow2", "initrd"):
        (partial / leftover).unlink(missing_ok=True)
    partial.rename(folder)
    say(f"built in {time.monotonic() - started:.0f} s")


def _make_disk(recipe: Recipe, out: Path) -> None:
    start = 1 + BOOT_PARTITION_MIB
    size = DISK_MIB - start - 1
    boot_type = {"efi": "uefi", "bios": "21686148-6449-6E6F-744E-656564454649"}[recipe.firmware]
    table = f"label: gpt\nstart=1MiB, size={BOOT_PARTITION_MIB}MiB, type={boot_type}\nstart={start}MiB, size={size}MiB, type=linux\n"
    disk = out / "disk.raw"
    with open(disk, "wb") as file:
        file.truncate(DISK_MIB << 20)
    _run(["/sbin/sfdisk", "-q", str(disk)], out, stdin=table)
    esp_id = os.urandom(4).hex().upper()
    if recipe.firmware == "efi":
        # One sector per cluster: with fewer clusters than FAT32 has at least, firmware takes it for FAT16 and reads nothing.
        _run(["/sbin/mkfs.vfat", "-F", "32", "-s", "1", "-n", "ESP", "-i", esp_id, "--offset", str(1 << 11),
              str(disk), str(BOOT_PARTITION_MIB << 10)], out)  # fmt: skip
    environment = {
        "FILES": str(GUEST_FILES),
        "OUT": str(out),
        "FIRMWARE": recipe.firmware,
        "ROOT_START": str(start),
        "ROOT_MIB": str(size),
        "ROOT_UUID": _uuid(),
        "ESP_UUID": f"{esp_id[:4]}-{esp_id[4:]}",
    }
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    hook = out / "customize.sh"
    hook.write_text(f"{exports}PATH=$PATH:/usr/sbin:/sbin\n{_CUSTOMIZE}")
    _run(
        ["mmdebstrap", "--variant=minbase", "--format=null", "--include=" + ",".join(recipe.packages),
         "--aptopt=Acquire::Languages \"none\"", "--skip=cleanup", f"--customize-hook=sh {shlex.quote(str(hook))} \"$1\"",
         recipe.suite, "/dev/null", MIRROR],
        out,
    )  # fmt: skip


def _finalize(out: Path, accel_verdict: Path) -> None:
    """Boot the guest once by ``-kernel`` so that it installs its own bootloader."""
    accel = accelerator.choose(out / "vmlinuz", accel_verdict)
    command = [
        "qemu-system-x86_64", "-M", "q35", *accelerator.options(accel), "-m", "1024",
        "-display", "none", "-no-reboot", "-nic", "none", "-monitor", "none", "-serial", "file:finalize.log",
        "-drive", "file=finalize.qcow2,format=qcow2,if=virtio,cache=unsafe",
        "-kernel", "vmlinuz", "-initrd", "initrd",
        "-append", "root=/dev/vda2 ro console=ttyS0 tsc=reliable norandmaps init=/usr/local/sbin/lab-finalize",
    ]  # fmt: skip
    for _attempt in range(FINALIZE_TRIES):
        # Each attempt starts from the disk as it was made: one that was stopped halfway leaves a broken filesystem.
        _run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "disk.raw", "finalize.qcow2"], out)
        try:
            subprocess.run(
                command, cwd=out, stdin=subprocess.DEVNULL, check=True, timeout=FINALIZE_SECONDS, capture_output=True
            )
        except subprocess.TimeoutExpired:
            continue  # seen: a 6.12 kernel that stops early in its boot, once in several
        except subprocess.CalledProcessError as error:
            raise BuildError(f"QEMU does not run: {error.stderr.decode(errors='replace')}") from error
        if "LAB-FINALIZE-DONE" in (out / "finalize.log").read_text(errors="replace"):
            return
        break
    raise BuildError(f"the guest did not install its bootloader; see {out}/finalize.log")


def _run(command: list[str], folder: Path, stdin: str = "") -> None:
    with open(folder / "build.log", "a") as log:
        log.write("$ " + " ".join(map(shlex.quote, command)) + "\n")
        log.flush()
        try:
            subprocess.run(command, cwd=folder, input=stdin, text=True, stdout=log, stderr=subprocess.STDOUT, check=True)
        except FileNotFoundError as error:
            raise BuildError(f"{command[0]} is not installed; 'make setup' installs what the laboratory needs") from error
        except subprocess.CalledProcessError as error:
            raise BuildError(f"{command[0]} exited with {error.returncode}; see {folder}/build.log") from error


def _uuid() -> str:
    return Path("/proc/sys/kernel/random/uuid").read_text().strip()
