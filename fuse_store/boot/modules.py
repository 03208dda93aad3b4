# SPDX-License-Identifier: GPL-3.0-or-later
"""Which modules of the kernel an initramfs needs before it can select: the drivers of the device, of watchdogs and of pstore, as the
running kernel has them."""

from __future__ import annotations

import os
from pathlib import Path

_PSTORE = ("efi_pstore", "ramoops")
# By the beginning of a device's name: what its drivers are where the device is not there.
_KNOWN = {"pmem": ("nfit", "nd_pmem", "nd_btt", "nd_e820")}


def needed(device: Path | str, root: Path | str = "/") -> tuple[str, ...]:
    """Names of modules, in the order in which to load them, without those that are built in; ``root`` is that of /sys and /dev."""
    system = Path(root) / "sys"
    name = (Path(root) / str(device).lstrip("/")).resolve().name
    found = _drivers(system, system / "class/block" / name, set())
    found += [module for prefix, modules in _KNOWN.items() if name.startswith(prefix) for module in modules]
    for watchdog in sorted((system / "class/watchdog").glob("watchdog*")):
        found += _drivers(system, watchdog / "device", set())
    found += _loaded(system, Path(root) / "lib/modules" / os.uname().release / "kernel/drivers/watchdog")
    found += [module for module in _PSTORE if (system / "module" / module).is_dir()]
    return tuple(dict.fromkeys(found))


def _loaded(system: Path, directory: Path) -> list[str]:
    """Those of the modules in a directory that the kernel has: some watchdogs do not say in /sys what their device is."""
    names = sorted(path.name.partition(".ko")[0].replace("-", "_") for path in directory.glob("*.ko*"))
    return [name for name in names if (system / "module" / name).is_dir()]


def _drivers(system: Path, device: Path, seen: set[Path]) -> list[str]:
    """Modules of the drivers of a device, and of all that it is connected to or made of, the outermost first."""
    place = device.resolve()
    if place in seen or not place.is_dir():
        return []
    seen.add(place)
    found: list[str] = []
    for part in sorted((place / "slaves").glob("*")):  # of a mapped device
        found += _drivers(system, part, seen)
    for directory in (*reversed(place.parents), place):
        module = directory / "driver/module"
        if module.is_dir() and system.resolve() in directory.parents:
            found.append(module.resolve().name)
    return found
