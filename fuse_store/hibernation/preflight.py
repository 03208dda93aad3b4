# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight: would the kernel of this machine accept a stored hibernation image, and would resuming it be safe?

The kernel checks most of this itself, but removes the signature first: an image that it refuses is not resumed at the next
boot either. So every check of kernel/power/swap.c, snapshot.c and arch/*/kernel/hibernate.c is made here beforehand, and two
that the kernel cannot make: whether the disks are unchanged, and whether the image was resumed before. CHECKS, at the end, is
the table of them: a check is a function from a context to a Problem or None. Nothing is changed; runs in one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from fuse_store.errors import Damaged, NotFound, Refused
from fuse_store.formats.swsusp import HibernationImage, layout
from fuse_store.hibernation import filesystem_state, history
from fuse_store.hibernation.initramfs import modules_in
from fuse_store.hibernation.machine import UNAME_MACHINES, Machine, memory_map_sum, recorded_sum
from fuse_store.hibernation.stage import header_of
from fuse_store.hibernation.swap_device import SwapDevice
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT, Progress
from fuse_store.repository.state_log import Log
from fuse_store.store import Store

# The first version of Linux that …
READS_ZERO_PAGES = (6, 6)  # commit 005e8dddd497
READS_LZ4 = (6, 9)  # commit 8bc29736357e
HAS_X86_CRC = (5, 13)  # RESTORE_MAGIC in arch/x86/power/hibernate.c

NO_RESUME_PARAMETERS = ("nohibernate", "noresume", "hibernate=no", "hibernate=noresume")  # kernel/power/hibernate.c

T = TypeVar("T")


@dataclass(frozen=True)
class TargetMachine:
    """Where the image is to be resumed: on ``machine`` (None: another machine, of which nothing is known), from ``device``
    with ``size`` bytes, if known. ``disks`` are those of the machine, if they are not its own block devices. ``swap``: what is known of
    the swap areas of a machine whose image is in a slot (``slots.layout.SWAP``); empty for an image that is a whole device."""

    machine: Machine | None
    disks: Sequence[Path] = ()
    device: Path | None = None
    size: int | None = None
    swap: str = ""

    def with_device(self, device: SwapDevice) -> TargetMachine:
        """The same machine, with the device that the image is staged on."""
        return replace(self, device=device.path, size=device.size)


@dataclass(frozen=True)
class Finding:
    """One reason not to resume, or one check that could not be made."""

    code: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """``refusals``: reasons not to resume. ``not_checked``: checks that need facts which the machine does not report."""

    id: str
    refusals: tuple[Finding, ...]
    not_checked: tuple[Finding, ...]


@dataclass(frozen=True)
class PreflightContext:
    """What a check can use. ``machine`` reports nothing if the target machine is not known."""

    store: Store
    version: Image
    image: HibernationImage
    target: TargetMachine
    progress: Progress

    @property
    def machine(self) -> Machine:
        return self.target.machine or Machine("/nonexistent")

    @property
    def log(self) -> Log:
        return self.store.state_log.read(self.version.head.content)

    @property
    def kernel(self) -> tuple[int, int]:
        """Version of the kernel. Raises NotReported."""
        return reported(self.machine.release, "kernel release")


class Problem(NamedTuple):
    """Why a check refuses."""

    message: str
    remedy: str


class NotReported(Exception):
    """The machine does not report a fact; the argument is the message."""


def reported(fact: T | None, name: str) -> T:
    """``fact``. Raises NotReported if it is None."""
    if fact is None:
        raise NotReported(f"{name} is not known.")
    return fact


def preflight(store: Store, image: Image, target: TargetMachine, progress: Progress = SILENT) -> Report:
    """Check a version against a machine. Raises StoreError if disks that were named cannot be read."""
    try:
        header_of(image)
        opened = HibernationImage(image)
    except NotFound as error:
        return Report(image.id, (Finding("not_hibernation", error.cause, "Choose a hibernation image."),), ())
    except (Damaged, Refused) as error:
        return Report(image.id, (Finding("damaged", str(error), "Choose another version."),), ())
    refusals, not_checked = [], []
    with opened:
        context = PreflightContext(store, image, opened, target, progress)
        for check in CHECKS:
            if target.machine is None and check.needs_machine:
                continue
            try:
                problem = check.find(context)
            except NotReported as error:
                not_checked.append(Finding(check.code, str(error)))
                continue
            if problem:
                refusals.append(Finding(check.code, *problem))
    return Report(image.id, tuple(refusals), tuple(not_checked))


# the image ------------------------------------------------------------------------------------------------------------


def _damaged(context: PreflightContext) -> Problem | None:
    try:
        _ = context.image.pages
        crc32 = context.image.header.crc32
        if crc32 is None or history.checksum_was_right(context.log.entries_of(context.version.id)):
            return None
        if context.image.crc_matches(context.progress):
            return None
        reason = f"the kernel's checksum {crc32:#010x} does not match the pages."
    except Damaged as error:
        reason = str(error)
    return Problem(reason, "Choose another version: this one was damaged when it was captured, or later.")


def _history_unknown(context: PreflightContext) -> Problem | None:
    doubt = history.doubt(context.store, context.version.summary)
    if not doubt:
        return None
    return Problem(
        f"it is not known whether the image was resumed before: its state log {doubt}.",
        "If you know, run 'fuse-store report IMAGE failed' or '… resumed'. Otherwise choose another version.",
    )


def _already_used(context: PreflightContext) -> Problem | None:
    resumed = history.resume_history(context.log.usage)
    if not resumed:
        return None
    return Problem(f"{resumed}.", "If the attempt failed, run 'fuse-store report IMAGE failed'. Otherwise choose another version.")


def _device_too_small(context: PreflightContext) -> Problem | None:
    size, needed = context.target.size, context.version.size
    if size is None or size >= needed:
        return None
    return Problem(f"the device has {size} bytes, and the image has {needed}.", "Choose a larger device.")


def _swap_unknown(context: PreflightContext) -> Problem | None:
    if context.target.swap != "unknown":
        return None
    return Problem(
        "it is not known whether pages of the machine were swapped out; they are not in the slot.",
        "If none were, override this refusal. Otherwise stage the version on a device of its own.",
    )


# the machine ----------------------------------------------------------------------------------------------------------


def _machine_unknown(context: PreflightContext) -> Problem | None:
    if context.target.machine is not None:
        return None
    return Problem(
        "the device is a file, so another machine will resume the image, and nothing is known of that machine.",
        "Name its recorded /proc and /sys with --root.",
    )


def _architecture(context: PreflightContext) -> Problem | None:
    info = context.image.info
    machine = reported(context.machine.architecture, "architecture of the machine")
    needed = UNAME_MACHINES.get(info.architecture) or info.record["machine"]
    if needed != machine:
        return Problem(f"the image needs {needed}, and this machine is {machine}.", "Choose a version of this machine.")
    page_size, needed_size = context.machine.page_size, context.image.page_size
    if page_size in (None, needed_size):
        return None
    return Problem(f"the image has pages of {needed_size} bytes, and the machine of {page_size}.", "Boot the kernel of the image.")


def _kernel_differs(context: PreflightContext) -> Problem | None:
    """arm64 and riscv need the same version, generic code the same release as well, x86 only the same form of header."""
    record = context.image.info.record
    if context.image.info.architecture == "x86":
        kernel, needs_crc = context.kernel, "e820_checksum" in record
        if (kernel >= HAS_X86_CRC) == needs_crc:
            return None
        needed = "Linux 5.13 or newer" if needs_crc else "Linux 5.12 or older"
        return Problem(f"the image needs {needed}, and this kernel is {kernel[0]}.{kernel[1]}.", "Boot such a kernel.")
    for field, file in {"version": "version", "sysname": "ostype", "release": "osrelease"}.items():
        if field in record:
            running = reported(context.machine.text(f"proc/sys/kernel/{file}"), f"{field} of the kernel")
            if running != record[field]:
                return Problem(f"the image needs a kernel of {field} {record[field]!r}, and this one has {running!r}.", "Boot that kernel.")
    return None


def _memory_map(context: PreflightContext) -> Problem | None:
    info = context.image.info
    if info.architecture != "x86":
        return None
    memory_map = reported(context.machine.memory_map, "memory map of the firmware (/sys/firmware/memmap)")
    checksum, needed = memory_map_sum(info, memory_map), recorded_sum(info)
    if checksum == needed:
        return None
    return Problem(
        f"the memory map of the firmware has the checksum {checksum}, and the image needs {needed}.",
        "Restore memory, firmware and firmware settings; the kernel accepts no other map.",
    )


def _memory_size(context: PreflightContext) -> Problem | None:
    pages = reported(context.machine.present_pages, "memory size (/proc/zoneinfo)")
    needed = context.image.info.memory
    if pages == needed:
        return None
    return Problem(
        f"the machine has {pages} pages of memory, and the image needs {needed}.", "Restore the memory size and memmap=."
    )


def _zero_pages(context: PreflightContext) -> Problem | None:
    kernel = context.kernel
    try:
        zero_pages = context.image.pages.zeros
    except Damaged:
        return None  # reported as ``damaged``
    if not zero_pages or kernel >= READS_ZERO_PAGES:
        return None
    return Problem(f"the image leaves out {zero_pages} zero pages, which needs Linux 6.6.", "Boot a newer kernel.")


def _unknown_flags(context: PreflightContext) -> Problem | None:
    if context.kernel >= READS_LZ4 or not context.image.header.flags & layout.LZ4:
        return None
    return Problem("the image is compressed with LZ4, which needs Linux 6.9.", "Boot a newer kernel.")


def _compression(context: PreflightContext) -> Problem | None:
    if context.image.header.compression != "lz4" or context.machine.is_builtin("lz4"):
        return None
    if "lz4" in _initramfs_modules(context):
        return None
    return Problem(
        "the image is compressed with LZ4, and neither the kernel nor its initramfs has the module lz4.",
        "Add lz4 to the initramfs (initramfs-tools: /etc/initramfs-tools/modules; dracut: force_drivers).",
    )


def _initramfs_drivers(context: PreflightContext) -> Problem | None:
    device = context.target.device
    if device is None or not device.is_block_device():
        return None
    needed = {name for name in context.machine.drivers_of(device) if not context.machine.is_builtin(name)}
    missing = ", ".join(sorted(needed - _initramfs_modules(context))) if needed else ""
    if not missing:
        return None
    return Problem(f"the initramfs lacks {missing}, which {device} needs.", f"Add {missing} to the initramfs.")


def _initramfs_modules(context: PreflightContext) -> set[str]:
    path = reported(context.machine.initramfs, "initramfs of the kernel")
    return reported(modules_in(path), f"content of {path}")


def _kernel_lockdown(context: PreflightContext) -> Problem | None:
    lockdown = context.machine.lockdown
    if lockdown in (None, "none"):
        return None
    return Problem(f"the kernel is locked down ({lockdown}) and does not resume.", "Disable Secure Boot, or remove lockdown=.")


def _nohibernate(context: PreflightContext) -> Problem | None:
    disabling = [parameter for parameter in context.machine.parameters if parameter in NO_RESUME_PARAMETERS]
    if not disabling:
        return None
    return Problem(
        f"the kernel was started with {disabling[0]}, which disables resume.", f"Remove {disabling[0]} from the boot configuration."
    )


# the disks ------------------------------------------------------------------------------------------------------------


def _filesystems_unknown(context: PreflightContext) -> Problem | None:
    tags = context.version.head.tags
    if filesystem_state.guards_of(tags) is not None:
        return None
    if filesystem_state.UNSAFE in tags:
        return Problem(
            f"the snapshot has no guard: {tags[filesystem_state.UNSAFE]}.", "If no filesystem was written to since, override this refusal."
        )
    if filesystem_state.SOURCE_TAG not in tags:
        return Problem(
            "the state of the machine's filesystems was not recorded at capture.",
            "Capture with --machine-disk. If all were mounted read-only, or none was written to since, override this refusal.",
        )
    unreadable = [
        f"{state.split()[0]} {uuid}"
        for uuid, state in sorted(filesystem_state.recorded_states(tags).items()) if state.endswith(filesystem_state.UNREADABLE)
    ]  # fmt: skip
    if not unreadable:
        return None
    return Problem(
        f"changes to these filesystems cannot be detected: {', '.join(unreadable)}.",
        "If none was written to since, override this refusal.",
    )


def _filesystems_changed(context: PreflightContext) -> Problem | None:
    recorded = filesystem_state.recorded_states(context.version.head.tags)
    in_use = {uuid: state for uuid, state in recorded.items() if state.endswith(filesystem_state.IN_USE)}
    comparable = {
        uuid: state for uuid, state in recorded.items() if uuid not in in_use and not state.endswith(filesystem_state.UNREADABLE)
    }
    changes = [
        f"{state.split()[0]} {uuid} was mounted writable while the machine went on after the capture"
        for uuid, state in sorted(in_use.items())
    ]
    if comparable:
        changes += _on_disks(context, comparable, filesystem_state.changes, filesystem_state.disk_volumes)
    guards = filesystem_state.guards_of(context.version.head.tags)
    if guards:
        changes += _on_disks(context, guards, filesystem_state.guard_changes, filesystem_state.disk_reads)
    if not changes:
        return None
    return Problem(
        "; ".join(changes) + ".",
        "Resuming would destroy later writes. Restore the disks to the time of the image, or choose another version.",
    )


def _on_disks(
    context: PreflightContext, recorded: dict[str, str], compare: Callable[[dict[str, str], Iterator[T]], list[str]],
    look: Callable[[Path, ExitStack, bool], Iterator[T]],
) -> list[str]:  # fmt: skip
    """What ``compare`` finds different from the records on the machine's disks, of each of which ``look`` gives what is compared."""
    disks = context.target.disks
    if not disks and context.target.machine is None:
        return [f"{len(recorded)} filesystems cannot be read: name the machine's disks with --machine-disk"]
    with ExitStack() as stack:
        if not disks:
            return compare(recorded, filesystem_state.on_machine(context.machine, stack, look))
        return compare(recorded, (found for disk in disks for found in look(disk, stack, True)))


@dataclass(frozen=True)
class Check:
    """``code``: of the refusal, for --force. ``needs_machine``: skipped where the target machine is not known."""

    code: str
    find: Callable[[PreflightContext], Problem | None]
    needs_machine: bool = False


CHECKS = (
    Check("damaged", _damaged),
    Check("device_too_small", _device_too_small),
    Check("swap_unknown", _swap_unknown),
    Check("history_unknown", _history_unknown),
    Check("already_used", _already_used),
    Check("machine_unknown", _machine_unknown),
    Check("architecture", _architecture, needs_machine=True),
    Check("kernel_differs", _kernel_differs, needs_machine=True),
    Check("memory_map", _memory_map, needs_machine=True),
    Check("memory_size", _memory_size, needs_machine=True),
    Check("zero_pages", _zero_pages, needs_machine=True),
    Check("unknown_flags", _unknown_flags, needs_machine=True),
    Check("compression", _compression, needs_machine=True),
    Check("initramfs_drivers", _initramfs_drivers, needs_machine=True),
    Check("kernel_lockdown", _kernel_lockdown, needs_machine=True),
    Check("nohibernate", _nohibernate, needs_machine=True),
    Check("filesystems_unknown", _filesystems_unknown),
    Check("filesystems_changed", _filesystems_changed),
)
CODES = ("not_hibernation", *(check.code for check in CHECKS))
