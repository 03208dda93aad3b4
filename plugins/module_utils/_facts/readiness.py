# SPDX-License-Identifier: GPL-3.0-or-later
"""Blockers: conditions that would prevent a hibernation into a device, or lose the machine's state in it.

A row of C(CHECKS) is one check: a function from a Survey to a list of Refused, which cites its source (kernel, systemd).
A blocker is a fact read from the machine, with its numbers, and a remedy; a fact that cannot be read is a blocker too.
Nothing here changes the machine.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import (
    checks_boot,
    checks_device,
    checks_resume,
    checks_system,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.survey import Survey


@dataclass(frozen=True)
class Check:
    """One row: the code to skip it by, the function, whether it runs for root only, and only if there is no other blocker.

    With C(unless), not if that row has found something: it would only report a consequence, with a remedy that does not help.
    """

    code: str
    run: Callable[[Survey], list]
    root: bool = False
    last: bool = False
    unless: tuple[str, ...] = ()


STARTED = ("bootloader", "no_initramfs")
CHECKS = (  # causes before their consequences
    Check("not_root", checks_system.not_root),
    Check("no_systemd", checks_system.no_systemd),
    Check("no_nvm", checks_device.no_nvm),
    Check("swap_file", checks_device.swap_file, root=True),
    Check("no_hibernation", checks_system.no_hibernation),
    Check("hibernation_disabled", checks_system.hibernation_disabled, root=True),
    Check("noresume", checks_system.noresume),
    Check("pm_test", checks_system.pm_test),
    Check("sleep_masked", checks_system.sleep_masked),
    Check("sleep_disallowed", checks_system.sleep_disallowed),
    Check("sleep_mode", checks_system.sleep_mode),
    Check("sleep_replaced", checks_system.sleep_replaced),
    Check("virtio_pmem", checks_device.virtio_pmem),
    Check("nvdimm_locked", checks_device.nvdimm_locked),
    Check("nvdimm_failing", checks_device.nvdimm_failing),
    Check("nvm_volatile", checks_device.nvm_volatile, root=True),
    Check("device_ephemeral", checks_device.device_ephemeral),
    Check("device_claimed", checks_device.device_claimed),
    Check("device_in_use", checks_device.device_in_use),
    Check("mapping_closed", checks_device.mapping_closed, root=True),
    Check("not_in_crypttab", checks_device.not_in_crypttab),
    Check("key_exposed", checks_device.key_exposed),
    Check("holds_filesystem", checks_device.holds_other, root=True, unless=("mapping_closed",)),
    Check("image_pending", checks_device.image_pending, root=True),
    Check("memory_map_changed", checks_device.memory_map_changed, root=True),
    Check("uuid_elsewhere", checks_device.uuid_elsewhere, root=True),
    Check("swap_inactive", checks_device.swap_inactive, unless=("mapping_closed",)),
    Check("nvm_too_small", checks_device.nvm_too_small),
    Check("swap_too_small", checks_device.swap_too_small),
    Check("boot_files", checks_resume.boot_files),
    Check("bootloader", checks_boot.bootloader, root=True),
    Check("next_boot_elsewhere", checks_boot.next_boot_elsewhere, root=True, unless=("bootloader",)),
    Check("no_initramfs", checks_boot.no_initramfs, root=True, unless=("bootloader",)),
    Check("next_kernel", checks_boot.next_kernel, root=True, unless=("bootloader",)),
    Check("resume_running", checks_resume.resume_running, unless=STARTED),
    Check("resume_configured", checks_resume.resume_configured, root=True),
    Check("other_swap_first", checks_resume.other_swap_first),
    Check("initramfs_drivers", checks_resume.initramfs_drivers, root=True),
    Check("initramfs_outdated", checks_resume.initramfs_outdated, root=True, unless=("bootloader",)),
    Check("other_initramfs", checks_boot.other_initramfs, root=True, unless=(*STARTED, "initramfs_outdated")),
    Check("initramfs_overridden", checks_resume.initramfs_overridden, root=True),
    Check("sleep_inhibited", checks_system.sleep_inhibited),
    Check("logind_refuses", checks_system.logind_refuses, root=True, last=True),
)

# Blockers of which logind's refusal is a consequence: where one of them is skipped, logind is not asked.
JUDGED_BY_LOGIND = {
    "no_hibernation", "hibernation_disabled", "nohibernate", "lockdown", "memfd_secret", "cxl", "noresume", "sleep_disallowed",
    "sleep_mode", "swap_inactive", "mapping_closed", "nvm_too_small", "swap_too_small", "resume_running", "resume_unset",
    "resume_elsewhere", "other_swap_first", "sleep_inhibited",
}


def blockers(host, device, skip=(), survey=None):
    """The blockers of a hibernation into C(device): a list of {code, message, remedy}, causes first, each once.

    C(skip) names codes to leave out. Reads facts through C(survey) if one is given.
    """
    survey = survey or Survey(host, device)
    results: list[Refused] = []
    known = JUDGED_BY_LOGIND.intersection(skip)
    found: set[str] = set()
    for check in CHECKS:
        if check.code in skip or (check.root and survey.euid != 0) or (check.last and (results or known)):
            continue
        if found.intersection(check.unless):
            continue
        before = len(results)
        try:
            results.extend(check.run(survey))
        except Refused as refused:
            results.append(refused)
        if len(results) > before:
            found.add(check.code)
    # Several checks may have failed to read the same fact.
    unique: dict[tuple[str, str], Refused] = {}
    for blocker in results:
        if blocker.code not in skip:
            unique.setdefault((blocker.code, blocker.message), blocker)
    return [blocker.as_dict() for blocker in unique.values()]
