# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of guest the laboratory can build. One row each; ``images`` turns a row into a disk.

A guest is a plain Debian server installation: its packages come from the Debian archive alone, GRUB is installed on its
disk and reads its own configuration. What is special to the laboratory (SSH key, host name, network) comes from a seed
that the machine reads at its first boot, so that one image serves every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# What every guest has. ndctl is there because guests have no network to fetch it from.
_COMMON = (
    "systemd-sysv", "udev", "dbus", "libpam-systemd", "openssh-server", "python3", "sudo", "kmod", "iproute2",
    "ndctl", "zstd", "xz-utils", "lz4", "busybox", "e2fsprogs", "mount", "procps", "less",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One kind of guest.

    ``kernels`` are Debian package names; the first is the one to boot. ``firmware`` is ``bios`` (SeaBIOS, GRUB in the
    boot sector) or ``efi`` (OVMF, GRUB on the EFI system partition).
    """

    suite: str
    firmware: str
    initramfs: str
    kernels: tuple[str, ...] = ("linux-image-cloud-amd64",)
    extra: tuple[str, ...] = field(default=())

    @property
    def packages(self) -> tuple[str, ...]:
        grub = {"bios": ("grub-pc",), "efi": ("grub-efi-amd64", "dosfstools")}[self.firmware]
        return (*self.kernels, *_COMMON, *grub, self.initramfs, *self.extra)


RECIPES: dict[str, Recipe] = {
    "debian12": Recipe(suite="bookworm", firmware="bios", initramfs="initramfs-tools"),
    # With an application server and what a server runs besides: the demonstration's machine.
    "debian12-server": Recipe(
        suite="bookworm",
        firmware="bios",
        initramfs="initramfs-tools",
        extra=("apparmor", "chrony", "cron", "logrotate", "rsyslog", "tomcat10"),
    ),
    # With what the role image_store asks apt for, and b3sum, to check the store's mount with a tool that is not ours.
    "debian12-store": Recipe(
        suite="bookworm",
        firmware="bios",
        initramfs="initramfs-tools",
        extra=("b3sum", "fuse3", "liblzo2-2", "python3-packaging", "python3-venv"),
    ),
    # With what the role fast_boot asks apt for.
    "debian12-fast-boot": Recipe(
        suite="bookworm",
        firmware="bios",
        initramfs="initramfs-tools",
        extra=("fuse3", "liblzo2-2", "overlayroot", "python3-packaging", "python3-venv"),
    ),
    "debian13-fast-boot": Recipe(
        suite="trixie",
        firmware="efi",
        initramfs="dracut",
        extra=("fuse3", "liblzo2-2", "python3-packaging", "python3-venv"),
    ),
    "debian13": Recipe(suite="trixie", firmware="efi", initramfs="dracut"),
    "debian13-systemd-boot": Recipe(suite="trixie", firmware="efi", initramfs="dracut", extra=("systemd-boot",)),
    "debian12-systemd-boot": Recipe(
        suite="bookworm", firmware="efi", initramfs="initramfs-tools", extra=("systemd-boot",)
    ),
    "debian13-uki": Recipe(
        suite="trixie",
        firmware="efi",
        initramfs="initramfs-tools",
        extra=("systemd-boot", "systemd-boot-efi", "systemd-ukify", "efibootmgr"),
    ),
    "debian13-efi-stub": Recipe(suite="trixie", firmware="efi", initramfs="initramfs-tools", extra=("efibootmgr",)),
    "debian12-refind": Recipe(suite="bookworm", firmware="efi", initramfs="initramfs-tools", extra=("refind",)),
    # Syslinux is not what starts it, until prepare/extlinux.sh installs it.
    "debian12-extlinux": Recipe(
        suite="bookworm", firmware="bios", initramfs="initramfs-tools", extra=("extlinux", "fdisk", "syslinux-common", "u-boot-menu")
    ),
    # With what the role asks apt for where the swap area is encrypted: with a key file, and with the key in a TPM.
    "debian12-luks": Recipe(suite="bookworm", firmware="bios", initramfs="initramfs-tools", extra=("cryptsetup-initramfs",)),
    "debian13-luks": Recipe(
        suite="trixie", firmware="efi", initramfs="dracut", extra=("cryptsetup-bin", "systemd-cryptsetup", "tpm2-tools")
    ),
    # The newest kernel that Debian has for its next release.
    "debian14": Recipe(suite="forky", firmware="efi", initramfs="dracut"),
    "debian12-dracut": Recipe(suite="bookworm", firmware="bios", initramfs="dracut"),
    "debian13-initramfs-tools": Recipe(suite="trixie", firmware="efi", initramfs="initramfs-tools"),
    # With what a root filesystem of another kind takes, and the tools that mount it in the initramfs.
    "debian12-roots": Recipe(
        suite="bookworm",
        firmware="bios",
        initramfs="initramfs-tools",
        extra=("btrfs-progs", "cryptsetup-initramfs", "fdisk", "lvm2", "mdadm", "xfsprogs"),
    ),
    # With what a filesystem for data may be made with.
    "debian13-data": Recipe(suite="trixie", firmware="efi", initramfs="dracut", extra=("btrfs-progs", "xfsprogs")),
    "debian12-selinux": Recipe(
        suite="bookworm",
        firmware="bios",
        initramfs="initramfs-tools",
        extra=("policycoreutils", "python3-selinux", "selinux-policy-default", "selinux-utils"),
    ),
    "debian12-secure-boot": Recipe(
        suite="bookworm", firmware="efi", initramfs="initramfs-tools", extra=("grub-efi-amd64-signed", "shim-signed")
    ),
    "debian11": Recipe(suite="bullseye", firmware="bios", initramfs="initramfs-tools"),
    "debian12-two-kernels": Recipe(
        suite="bookworm",
        firmware="bios",
        initramfs="initramfs-tools",
        kernels=("linux-image-cloud-amd64", "linux-image-amd64"),
        extra=("postgresql",),
    ),
}
