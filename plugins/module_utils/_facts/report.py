# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of C(nvm_info): a Survey and its blockers as a dict.

A fact that cannot be read (unknown bootloader, unreadable device) is None; the blockers contain the reason.
"""
from __future__ import annotations

from dataclasses import asdict

from ansible_collections.nvm.fastboot.plugins.module_utils._core import sizing
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import readiness
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.survey import Survey


def report(host, device, dram_multiple=1, skip=(), euid=None):
    """The return values of C(nvm_info), without the blockers that C(skip) names. C(euid) replaces the effective user id, for tests."""
    survey = Survey(host, device, euid)
    bootloader = _known(lambda: survey.bootloader)
    initramfs = _known(lambda: survey.initramfs)
    blockers = readiness.blockers(host, device, skip, survey)
    return {
        "dram": survey.dram,
        "nvm": sum(region.size for region in survey.regions if not region.volatile),
        "recommended_size": sizing.reservation_size(survey.dram, dram_multiple, survey.align),
        "regions": [asdict(region) for region in survey.regions],
        "swaps": [asdict(swap) for swap in survey.swaps],
        "memory": {"active_anon": survey.active_anon, "image": survey.image_estimate},
        "bootloader": bootloader and bootloader.name,
        "initramfs": initramfs and initramfs.name,
        "kernels": (_known(initramfs.kernels) if initramfs else None) or [],
        "resume": {
            "configured": _known(lambda: _configured(survey.entries)) or [],
            "running": survey.resume,
            "cmdline": survey.cmdline_resume,
        },
        "swap_file": _known(lambda: _swap_file(survey)),
        "pending_image": _known(lambda: _pending(survey)),
        "boot": {"efi": survey.efi, "secure_boot": survey.secure_boot, "lockdown": survey.lockdown},
        "kernel": survey.release,
        "systemd": survey.systemd,
        "ndctl_installed": host.which("ndctl") is not None,
        "blockers": blockers,
        "ready": not blockers,
    }


def _known(fact):
    """C(fact()), or None if it raises Refused."""
    try:
        return fact()
    except Refused:
        return None


def _configured(entries):
    """The values of C(resume=) in the boot entries, each once, in order."""
    values = [word[len("resume="):] for entry in entries for word in entry.arguments if word.startswith("resume=")]
    return list(dict.fromkeys(values))


def _swap_file(survey):
    """Where the swap file is, and where the running kernel takes it to be; None for a device."""
    if not survey.is_file or survey.target is None:
        return None
    running = survey.host.attribute("/sys/power/resume_offset")
    return {"block_device": survey.block.path, "offset": survey.target.offset, "running": int(running) if running else None}


def _pending(survey):
    if not survey.image_pending:
        return None
    return {"device": survey.device, "type": survey.header.type, "uuid": survey.header.uuid}
