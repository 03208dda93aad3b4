# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of machines that are tried: a row each, with what makes such a machine of a guest that the laboratory builds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.vm.conftest import NVDIMM

SCRIPTS = Path(__file__).parent / "prepare"


@dataclass(frozen=True)
class Cell:
    """``recipe``: of the guest. ``bootloader``: its name in the results of modules. ``prepare``: a script in prepare/ for it, and its
    arguments, after which it is rebooted. ``variables``: for the role. ``nvm``: a row of lab.machine.NVM. ``nvdimm``, ``disk``: in MiB;
    the disk is empty. ``before``: a command that has to be run before the configuration can be changed. ``again``: one that writes the
    bootloader's configuration, as the system does by itself now and then. ``tpm``: it has a TPM 2.0. ``same``: a command that prints the
    same before it is configured, while it is, and afterwards."""

    name: str
    recipe: str
    bootloader: str = "grub"
    prepare: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    nvm: str = "nvdimm"
    nvdimm: int = NVDIMM
    disk: int = 0
    before: str = "true"
    again: str = "true"
    tpm: bool = False
    same: str = "true"

    @property
    def encrypted(self) -> bool:
        return self.variables.get("nvm_encryption") == "luks"

    @property
    def script(self) -> str:
        name, *arguments = self.prepare.split()
        return f"set -- {' '.join(arguments)}\n" + (SCRIPTS / f"{name}.sh").read_text()


FILE = {"nvm_method": "file"}  # at /swapfile, on the root filesystem
ON_DATA = {**FILE, "nvm_swap_file": "/srv/swapfile"}
BY_KEY_FILE = {"nvm_encryption": "luks", "nvm_unlock": "key_file"}
BY_TPM2 = {"nvm_encryption": "luks", "nvm_unlock": "tpm2", "nvm_passphrase": "if the TPM does not"}
# Whether it is enforcing, and which files have another context than the policy says.
CONTEXTS = "getenforce; restorecon -nvr /boot /etc /usr/lib/systemd /var/lib | sort"
CELLS = (
    Cell("debian12-dracut", "debian12-dracut"),
    Cell("debian13-initramfs-tools", "debian13-initramfs-tools"),
    Cell("debian14", "debian14"),
    Cell("debian13-systemd-boot", "debian13-systemd-boot", "systemd-boot", "systemd-boot"),
    Cell("debian12-systemd-boot", "debian12-systemd-boot", "systemd-boot", "systemd-boot"),
    Cell("debian12-refind", "debian12-refind", "refind", "refind"),
    Cell("debian12-extlinux", "debian12-extlinux", "extlinux", "extlinux"),
    Cell("debian14-blscfg", "debian14", "grub-bls", "blscfg", again="update-grub"),
    Cell("debian12-u-boot-menu", "debian12-extlinux", "extlinux", "u-boot-menu", again="u-boot-update"),
    Cell("debian13-efi-stub", "debian13-efi-stub", "efi-stub", "efi-stub"),
    Cell("debian13-uki", "debian13-uki", "uki", "uki menu"),
    Cell("debian13-uki-firmware", "debian13-uki", "uki", "uki firmware"),
    Cell("debian12-luks", "debian12-luks", variables=BY_KEY_FILE),
    Cell("debian13-luks", "debian13-luks", variables=BY_KEY_FILE),
    Cell("debian13-luks-tpm2", "debian13-luks", variables=BY_TPM2, tpm=True),
    Cell("debian11", "debian11"),
    Cell("virtio-pmem", "debian14", nvm="virtio-pmem"),
    Cell("two-nvdimms", "debian12", nvm="two-nvdimms"),
    Cell("debian12-selinux", "debian12-selinux", prepare="selinux", same=CONTEXTS),
    Cell("root-btrfs", "debian12-roots", prepare="root btrfs", disk=2560),
    Cell("root-xfs", "debian12-roots", prepare="root xfs", disk=2560),
    Cell("root-luks-lvm", "debian12-roots", prepare="root luks-lvm", disk=2560),
    Cell("root-raid1", "debian12-roots", prepare="root raid1", disk=3584),
    Cell("root-read-only", "debian12-roots", prepare="root read-only", disk=2560, before="mount -o remount,rw /"),
    Cell("debian12-swap-file", "debian12", variables=FILE, nvdimm=0),
    Cell("debian13-swap-file-xfs", "debian13-data", prepare="data xfs", variables=ON_DATA, nvdimm=0, disk=1280),
    Cell("debian13-swap-file-btrfs", "debian13-data", prepare="data btrfs", variables=ON_DATA, nvdimm=0, disk=1280),
)

# Kinds that are refused: with the code of a blocker in place of the bootloader.
REFUSED = (
    Cell("secure-boot", "debian12-secure-boot", "lockdown", "shim"),
    Cell("virtio-pmem-old", "debian12", "virtio_pmem", nvm="virtio-pmem"),
)


def chosen(cells: Sequence[Cell]) -> list[Cell]:
    """Those of ``cells`` that ``$CELLS`` names, or all. Raises ValueError if it names one that is not there."""
    names = os.environ.get("CELLS", "").split()
    unknown = set(names) - {cell.name for cell in (*CELLS, *REFUSED)}
    if unknown:
        raise ValueError(
            f"there is no {', '.join(sorted(unknown))}; there are {', '.join(cell.name for cell in (*CELLS, *REFUSED))}"
        )
    return [cell for cell in cells if not names or cell.name in names]
