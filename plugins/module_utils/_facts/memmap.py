# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel argument C(memmap=nn!ss), which turns ordinary memory into NVM: parsing it, and choosing a range for it.

A range is chosen from the firmware's memory map, which C(memmap=) does not change, so the result is the same before and
after the reboot. Sources: arch/x86/kernel/e820.c (parse_memmap_one, e820__reserve_resources),
arch/x86/boot/compressed/kaslr.c, Documentation/admin-guide/kernel-parameters.txt.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import (
    GIB,
    MIB,
    format_size,
    round_down,
    round_up,
)

MAP = "/sys/firmware/memmap"
RAM = "System RAM"
LEGACY_NVM = "Persistent Memory (legacy)"
# A memory section of x86-64: a section that is partly RAM and partly NVM cannot be mapped with struct pages
# (drivers/nvdimm/namespace_devs.c, pmem_should_map_pages)
ALIGN = 128 * MIB
HIGH = 4 * GIB
# Below 4 GiB, bootloaders place the initrd at the end of memory and firmware its own data; both ignore memmap=
CLEARANCE = 96 * MIB
LOWEST = 128 * MIB  # the kernel is loaded at 16 MiB and above
KEEP = 256 * MIB  # least amount of ordinary memory to keep
SUFFIXES = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}  # lib/cmdline.c, memparse()


@dataclass(frozen=True)
class Range:
    """Physical memory from C(start) up to C(end), exclusive; C(kind) as in the firmware map."""

    start: int
    end: int
    kind: str = RAM

    @property
    def size(self):
        return self.end - self.start


@dataclass(frozen=True)
class Argument:
    """One range of a C(memmap=) argument: C(sign) is "!" (NVM), "@", "#", "$" or "%"; C(text) is the original text."""

    size: int
    start: int
    sign: str
    text: str

    @property
    def range(self):
        return Range(self.start, self.start + self.size, self.sign)


def firmware_map(host):
    """The firmware's memory map as a list of Range, in order; adjacent ranges of the same kind are merged.

    Refused C(no_firmware_map) if the kernel exports none (x86 with CONFIG_FIRMWARE_MEMMAP does).
    """
    ranges = []
    for path in host.glob("%s/*" % MAP):
        start, end, kind = (host.attribute("%s/%s" % (path, name), "") for name in ("start", "end", "type"))
        if start and end and kind:
            ranges.append(Range(int(start, 16), int(end, 16) + 1, kind))
    if not ranges:
        raise Refused(
            "no_firmware_map",
            "%s contains no memory map, which is needed to choose a range for memmap=." % MAP,
            "Use real NVM. memmap= is supported on x86 with a kernel that has CONFIG_FIRMWARE_MEMMAP.",
        )
    merged: list[Range] = []
    for each in sorted(ranges, key=lambda each: each.start):
        if merged and merged[-1].kind == each.kind and merged[-1].end == each.start:
            merged[-1] = Range(merged[-1].start, each.end, each.kind)
        else:
            merged.append(each)
    return merged


def parse(cmdline):
    """All ranges of all C(memmap=) on a command line (a text or a list of words), as a list of Argument.

    C(memmap=exactmap) and a plain size have no range and are skipped.
    """
    words = cmdline.split() if isinstance(cmdline, str) else cmdline
    arguments = []
    for word in words:
        word = word.replace('"', "").replace("\\", "")
        if not word.startswith("memmap="):
            continue
        for text in word[len("memmap=") :].split(","):
            match = re.match(r"^(\w+)([@#$!%])(\w+)", text)
            if match is None:
                continue
            size, start = _number(match.group(1)), _number(match.group(3))
            if size is not None and start is not None:
                arguments.append(Argument(size, start, match.group(2), text))
    return arguments


def render(size, start):
    """The kernel argument for a range, unquoted: "memmap=512M!1G"."""
    return "memmap=%s!%s" % (_short(size), _short(start))


def total(memory, taken=()):
    """Bytes of RAM in the firmware map outside C(taken), rounded up, because the firmware reserves some of it."""
    return round_up(sum(each.size for each in _free(memory, taken)), ALIGN)


def limit(memory, taken=()):
    """The most that may become NVM: at least 256 MiB and at least half stay ordinary memory."""
    whole = total(memory, taken)
    return max(0, round_down(whole - max(KEEP, whole // 2), ALIGN))


def automatic_size(memory, taken, multiple):
    """The size that is C(multiple) times the remaining memory: (size within limit() and largest(), size wanted).

    s = multiple * (total - s), so s = total * multiple / (multiple + 1).
    """
    wanted = round_down(total(memory, taken) * multiple // (multiple + 1), ALIGN)
    return min(wanted, limit(memory, taken), largest(memory, taken)), wanted


def largest(memory, taken=()):
    """The size of the largest range that choose_range() can return."""
    return max([end - start for start, end in _candidates(memory, taken)] or [0])


def choose_range(memory, size, taken=()):
    """Choose a range of C(size) bytes at the highest possible address: (size rounded up, start).

    C(memory) is the firmware map. The range keeps a distance from the Ranges in C(taken), because the kernel would merge
    adjacent ranges into one region. Refused C(nvm_too_small).
    """
    size = round_up(size, ALIGN)
    fitting = [(start, end) for start, end in _candidates(memory, taken) if end - start >= size]
    most = limit(memory, taken)
    if size > most or not fitting:
        raise Refused(
            "nvm_too_small",
            "%s of ordinary memory cannot become NVM: of %s, at most %s can be used (at least %s and at least half stay "
            "ordinary memory), and the largest free range aligned to %s has %s."
            % (
                format_size(size),
                format_size(total(memory, taken)),
                format_size(most),
                format_size(KEEP),
                format_size(ALIGN),
                format_size(largest(memory, taken)),
            ),
            "Give a smaller size, or size=auto, or add memory to the machine.",
        )
    return size, max(end for _start, end in fitting) - size


def _free(memory, taken, gap=0):
    """The parts of the RAM in C(memory) at least C(gap) away from each Range of C(taken), as (start, end)."""
    parts = [(each.start, each.end) for each in memory if each.kind == RAM]
    for other in taken:
        low, high = other.start - gap, other.end + gap
        split = []
        for start, end in parts:
            split += [(start, min(end, low)), (max(start, high), end)]
        parts = [(start, end) for start, end in split if start < end]
    return [Range(start, end) for start, end in parts]


def _candidates(memory, taken):
    """Aligned (start, end) in which a range can be placed."""
    usable = [
        Range(max(each.start, LOWEST), each.end - (0 if each.start >= HIGH else CLEARANCE))
        for each in memory
        if each.kind == RAM
    ]
    aligned = [
        (round_up(each.start, ALIGN), round_down(each.end, ALIGN))
        for each in _free([each for each in usable if each.start < each.end], taken, gap=ALIGN)
    ]
    return [(start, end) for start, end in aligned if start < end]


def _number(text):
    """A number as the kernel's memparse() reads it, or None."""
    match = re.match(r"^(0[xX][0-9a-fA-F]+|[0-9]+)([kKmMgGtTpPeE]?)$", text)
    if not match:
        return None
    digits = match.group(1)
    base = 16 if digits[:2].lower() == "0x" else 8 if digits.startswith("0") and len(digits) > 1 else 10
    try:
        return int(digits, base) << SUFFIXES[match.group(2).lower()]
    except ValueError:
        return None


def _short(size):
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size and size % (1 << shift) == 0:
            return "%d%s" % (size >> shift, unit)
    return "0x%x" % size


def is_firmware_nvm(memory, address):
    """Whether the firmware map lists legacy NVM at C(address): real NVM, not made with C(memmap=)."""
    return any(each.kind == LEGACY_NVM and each.start <= address < each.end for each in memory)
