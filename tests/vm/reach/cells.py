# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of machines that are tried: a row each, with what makes such a machine of a guest that the laboratory builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.vm.conftest import NVDIMM

SCRIPTS = Path(__file__).parent / "prepare"


@dataclass(frozen=True)
class Cell:
    """``recipe``: of the guest. ``bootloader``: its name in the results of modules. ``prepare``: the name of a script in prepare/ for
    it, after which it is rebooted. ``variables``: for the role. ``nvdimm``, ``disk``: in MiB, of the machine; the disk is empty."""

    name: str
    recipe: str
    bootloader: str = "grub"
    prepare: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    nvdimm: int = NVDIMM
    disk: int = 0

    @property
    def script(self) -> str:
        return (SCRIPTS / f"{self.prepare}.sh").read_text() if self.prepare else ""


CELLS = (
    Cell("debian12-dracut", "debian12-dracut"),
    Cell("debian13-initramfs-tools", "debian13-initramfs-tools"),
    Cell("debian14", "debian14"),
    Cell("debian13-systemd-boot", "debian13-systemd-boot", "systemd-boot", "systemd-boot"),
    Cell("debian12-systemd-boot", "debian12-systemd-boot", "systemd-boot", "systemd-boot"),
    Cell("debian12-refind", "debian12-refind", "refind", "refind"),
)
