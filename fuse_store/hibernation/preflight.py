# SPDX-License-Identifier: GPL-3.0-or-later
"""Would the kernel of this machine accept a stored hibernation image, and would it be safe? Used by ``arm`` and ``cli``.

The kernel checks too, but it takes the signature away first: an image that it refuses is lost to the next boot. So every
check of kernel/power/swap.c, snapshot.c and arch/*/kernel/hibernate.c is made here before, and those that it can't make:
whether the disks are still what the image knows of them, and whether it was resumed already. One row of CHECKS each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from fuse_store.errors import Damaged, NotFound, Refused
from fuse_store.formats.swsusp import HibernationImage, layout
from fuse_store.hibernation import filesystem_state, history
from fuse_store.hibernation.initramfs import modules_in
from fuse_store.hibernation.machine import MACHINES, Machine, memory_map_sum, recorded_sum
from fuse_store.hibernation.stage import header_of
from fuse_store.hibernation.swap_device import Target
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT, Progress
from fuse_store.store import Store

ZERO_PAGES = (6, 6)  # commit 005e8dddd497
LZ4 = (6, 9)  # commit 8bc29736357e
X86_CRC = (5, 13)  # RESTORE_MAGIC in arch/x86/power/hibernate.c


@dataclass(frozen=True)
class Situation:
    """Where the image is to be resumed: on ``machine`` (None: another one, of which nothing is known), from a ``device``
    of ``size`` bytes, if that is known; ``disks`` are those of the machine, if they are not its own block devices."""

    machine: Machine | None
    disks: Sequence[Path] = ()
    device: Path | None = None
    size: int | None = None

    def of(self, target: Target) -> Situation:
        """The same with the device that the image is staged on."""
        return replace(self, device=target.path, size=target.size)


@dataclass(frozen=True)
class Finding:
    """What speaks against it, or could not be told."""

    code: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """``refusals`` speak against it; ``untold`` could not be checked, because the machine does not tell."""

    id: str
    refusals: tuple[Finding, ...]
    untold: tuple[Finding, ...]


@dataclass(frozen=True)
class Case:
    """What a check gets."""

    store: Store
    version: Image
    image: HibernationImage
    situation: Situation
    progress: Progress

    @property
    def machine(self) -> Machine:
        return self.situation.machine or Machine("/nonexistent")


class Untold(Exception):
    """The machine does not tell; the argument says what."""


Check = Callable[[Case], tuple[str, str] | None]  # (message, remedy) of a refusal


def preflight(store: Store, image: Image, situation: Situation, progress: Progress = SILENT) -> Report:
    """What speaks against resuming a version. Raises StoreError for what is wrong with the disks that were named."""
    try:
        header_of(image)
        opened = HibernationImage(image)
    except NotFound as error:
        return Report(image.id, (Finding("not_hibernation", str(error), "Choose a version that is one."),), ())
    except (Damaged, Refused) as error:
        return Report(image.id, (Finding("damaged", str(error), "Choose another version."),), ())
    refusals, untold = [], []
    with opened:
        case = Case(store, image, opened, situation, progress)
        for code, check in CHECKS.items():
            if situation.machine is None and check in OF_MACHINE:
                continue
            try:
                found = check(case)
            except Untold as error:
                untold.append(Finding(code, str(error)))
                continue
            if found:
                refusals.append(Finding(code, *found))
    return Report(image.id, tuple(refusals), tuple(untold))


def _known(value: object, what: str) -> None:
    if value is None:
        raise Untold(f"{what} is not known.")


# the image ------------------------------------------------------------------------------------------------------------


def _damaged(case: Case) -> tuple[str, str] | None:
    try:
        _ = case.image.pages
        if case.image.header.crc32 is None or history.checksum_was_right(case.store.state_log.entries(case.version.id)):
            return None
        if case.image.crc_matches(case.progress):
            return None
        reason = f"the kernel's checksum {case.image.header.crc32:#010x} is not that of its pages."
    except Damaged as error:
        reason = str(error)
    return reason, "Choose another version: this one was damaged when it was captured, or since."


def _already_used(case: Case) -> tuple[str, str] | None:
    text = history.resume_history(case.store.state_log.entries(case.version.id))
    if not text:
        return None
    return f"{text}.", "If the attempt failed, say so: fuse-store outcome IMAGE failed. Else choose another version."


# the machine ----------------------------------------------------------------------------------------------------------


def _machine_unknown(case: Case) -> tuple[str, str] | None:
    if case.situation.machine is not None:
        return None
    return (
        "the device is a file, so another machine will resume it, and nothing is known of that.",
        "Name the machine's tree of /proc and /sys with --root.",
    )


def _architecture(case: Case) -> tuple[str, str] | None:
    info, machine = case.image.info, case.machine.architecture
    _known(machine, "the architecture of the machine")
    wanted = MACHINES.get(info.architecture) or info.record["machine"]
    if wanted == machine:
        size = case.machine.page_size
        if size in (None, case.image.page_size):
            return None
        return f"its pages have {case.image.page_size} bytes, those of the machine {size}.", "Boot the kernel that it is of."
    return f"it is of a machine of {wanted}, and this is one of {machine}.", "Choose a version of this machine."


def _kernel_differs(case: Case) -> tuple[str, str] | None:
    """arm64 and riscv want the same version, generic code the same release as well; x86 wants neither, but its own form."""
    record = case.image.info.record
    release = case.machine.release
    if case.image.info.architecture == "x86":
        _known(release, "the release of the kernel")
        if release is None or (release >= X86_CRC) == ("e820_checksum" in record):
            return None
        return "the form of its first page changed with Linux 5.13, and it has the other one.", "Boot a kernel like its own."
    names = {"version": "version", "sysname": "ostype", "release": "osrelease"}
    for field, name in names.items():
        if field in record:
            there = case.machine.text(f"proc/sys/kernel/{name}")
            _known(there, f"the {field} of the kernel")
            if there != record[field]:
                return f"the kernel that hibernated has the {field} {record[field]!r}, this one {there!r}.", "Boot that kernel."
    return None


def _memory_map(case: Case) -> tuple[str, str] | None:
    if case.image.info.architecture != "x86":
        return None
    if case.machine.memory_map is None:
        raise Untold("the firmware's memory map (/sys/firmware/memmap) is not known.")
    there, wanted = memory_map_sum(case.image.info, case.machine.memory_map), recorded_sum(case.image.info)
    if there == wanted:
        return None
    return (
        f"the checksum of the firmware's memory map is {there}, and was {wanted}.",
        "Put memory, firmware and its settings back as they were; nothing else makes the kernel accept it.",
    )


def _memory_size(case: Case) -> tuple[str, str] | None:
    there, wanted = case.machine.present_pages, case.image.info.memory
    _known(there, "the size of the memory (/proc/zoneinfo)")
    if there == wanted:
        return None
    return f"the machine has {there} pages of memory, and had {wanted}.", "Put memory and memmap= back as they were."


def _zero_pages(case: Case) -> tuple[str, str] | None:
    release = case.machine.release
    _known(release, "the release of the kernel")
    try:
        zeros = case.image.pages.zeros
    except Damaged:
        return None  # that is a reason of its own
    if not zeros or release is None or release >= ZERO_PAGES:
        return None
    return f"it leaves out {zeros} pages of zeros, which kernels know since 6.6.", "Boot a newer kernel."


def _unknown_flags(case: Case) -> tuple[str, str] | None:
    release = case.machine.release
    _known(release, "the release of the kernel")
    if not case.image.header.flags & layout.LZ4 or release is None or release >= LZ4:
        return None
    return "it is compressed with LZ4, which kernels know since 6.9.", "Boot a newer kernel."


def _compression(case: Case) -> tuple[str, str] | None:
    if case.image.header.compression != "lz4" or case.machine.is_builtin("lz4"):
        return None
    modules = _initramfs_modules(case)
    if "lz4" in modules:
        return None
    return (
        "it is compressed with LZ4, which is neither in the kernel nor in its initramfs.",
        "Have lz4 put into the initramfs (initramfs-tools: /etc/initramfs-tools/modules; dracut: force_drivers).",
    )


def _initramfs_drivers(case: Case) -> tuple[str, str] | None:
    device = case.situation.device
    if device is None or not device.is_block_device():
        return None
    needed = [name for name in case.machine.drivers_of(device) if not case.machine.is_builtin(name)]
    if not needed:
        return None
    missing = sorted(set(needed) - _initramfs_modules(case))
    if not missing:
        return None
    names = ", ".join(missing)
    return f"the initramfs has no {names}, which {device} needs.", f"Have {names} put into the initramfs."


def _initramfs_modules(case: Case) -> set[str]:
    path = case.machine.initramfs
    _known(path, "the initramfs of the kernel")
    modules = modules_in(path) if path else None
    if modules is None:
        raise Untold(f"what is in {path} can't be read.")
    return modules


def _kernel_lockdown(case: Case) -> tuple[str, str] | None:
    if case.machine.lockdown in (None, "none"):
        return None
    return f"the kernel is locked down ({case.machine.lockdown}), and resumes nothing.", "Switch Secure Boot off, or lockdown=."


def _nohibernate(case: Case) -> tuple[str, str] | None:
    found = [one for one in case.machine.parameters if one in ("nohibernate", "noresume", "hibernate=no", "hibernate=noresume")]
    if not found:
        return None
    return f"the kernel was started with {found[0]}, which switches resuming off.", "Take it out of the boot loader's settings."


def _device_too_small(case: Case) -> tuple[str, str] | None:
    if case.situation.size is None or case.situation.size >= case.version.size:
        return None
    return f"the device has {case.situation.size} bytes, and the image {case.version.size}.", "Choose a larger one."


# the disks ------------------------------------------------------------------------------------------------------------


def _states(case: Case, broken: bool) -> dict[str, str]:
    """The states that were recorded, by UUID: those that can't be compared (``broken``), or those that can."""
    tags = case.version.head.tags
    found = {key.removeprefix(filesystem_state.PREFIX): value for key, value in tags.items() if key.startswith(filesystem_state.PREFIX)}
    found.pop(filesystem_state.ORIGIN.removeprefix(filesystem_state.PREFIX), None)
    return {uuid: state for uuid, state in found.items() if state.endswith(filesystem_state.UNREADABLE) is broken}


def _filesystems_unknown(case: Case) -> tuple[str, str] | None:
    if filesystem_state.ORIGIN not in case.version.head.tags:
        return (
            "nothing was recorded of the machine's filesystems when it was captured.",
            "Capture with --evidence-disk. If each was mounted read-only, or none has been written to since, it may be forced.",
        )
    unreadable = _states(case, broken=True)
    if not unreadable:
        return None
    names = ", ".join(f"{state.split()[0]} {uuid}" for uuid, state in sorted(unreadable.items()))
    return f"whether they have been written to since can't be told of {names}.", "If none was, it may be forced."


def _filesystems_changed(case: Case) -> tuple[str, str] | None:
    recorded = _states(case, broken=False)
    if not recorded:
        return None
    changes = [
        f"{state.split()[0]} {uuid} was writable while the machine went on after its image was taken"
        for uuid, state in sorted(recorded.items()) if state.endswith(filesystem_state.IN_USE)
    ]  # fmt: skip
    recorded = {uuid: state for uuid, state in recorded.items() if not state.endswith(filesystem_state.IN_USE)}
    if recorded and not case.situation.disks and case.situation.machine is None:
        changes.append(f"none of {len(recorded)} filesystems can be looked at: name the machine's disks with --evidence-disk")
        recorded = {}
    if recorded:
        with ExitStack() as stack:
            disks = case.situation.disks
            found: list[filesystem_state.Part] = []
            for disk in disks:
                found += filesystem_state.disk_parts(disk, stack)
            if not disks:
                found += filesystem_state.machine_parts(case.machine, stack)
            for uuid, state in sorted(recorded.items()):
                now = {part.state() for part in found if part.uuid == uuid}
                changes += [] if now == {state} else [_change(uuid, state, now)]
    if not changes:
        return None
    return (
        "; ".join(changes) + ".",
        "Resuming it would destroy what has been written since. Bring the disks back to the same time, or choose another version.",
    )


def _change(uuid: str, before: str, now: set[str]) -> str:
    kind, *fields = before.split()
    if not now:
        return f"{kind} {uuid} is not there"
    new = sorted(now)[0].split()
    different = [f"{old} → {one}" for old, one in zip(fields, new[1:], strict=False) if old != one and "superblock" not in old]
    return f"{kind} {uuid} has been written to since ({', '.join(different) or 'its superblock'})"


CHECKS: dict[str, Check] = {
    "damaged": _damaged,
    "device_too_small": _device_too_small,
    "already_used": _already_used,
    "machine_unknown": _machine_unknown,
    "architecture": _architecture,
    "kernel_differs": _kernel_differs,
    "memory_map": _memory_map,
    "memory_size": _memory_size,
    "zero_pages": _zero_pages,
    "unknown_flags": _unknown_flags,
    "compression": _compression,
    "initramfs_drivers": _initramfs_drivers,
    "kernel_lockdown": _kernel_lockdown,
    "nohibernate": _nohibernate,
    "filesystems_unknown": _filesystems_unknown,
    "filesystems_changed": _filesystems_changed,
}
OF_MACHINE = (
    _architecture, _kernel_differs, _memory_map, _memory_size, _zero_pages, _unknown_flags, _compression, _initramfs_drivers,
    _kernel_lockdown, _nohibernate,
)  # fmt: skip
CODES = ("not_hibernation", *CHECKS)
