# SPDX-License-Identifier: GPL-3.0-or-later
"""memmap=: reading it as the kernel does, and choosing ranges in recorded firmware maps."""

from __future__ import annotations

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import memmap
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.memmap import Range
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.nvm_tree import (
    FIRMWARE_1G,
    FIRMWARE_6G,
    GIB,
    MIB,
    Tree,
)


def memory(entries: tuple[tuple[int, int, str], ...]) -> list[Range]:
    return [Range(start, end + 1, kind) for start, end, kind in entries]


SMALL, LARGE = memory(FIRMWARE_1G), memory(FIRMWARE_6G)


def test_the_firmware_map_is_read_in_order_and_joined(host: Host) -> None:
    halves = [(0x100000, 0x1FFFFFFF, "System RAM"), (0x20000000, 0x3FFFFFFF, "System RAM")]
    Tree(host).firmware((0x40000000, 0x4FFFFFFF, "Reserved"), *reversed(halves))
    found = memmap.firmware_map(host)
    assert found == [Range(0x100000, 0x40000000, "System RAM"), Range(0x40000000, 0x50000000, "Reserved")]


def test_no_firmware_map_is_refused(host: Host) -> None:
    with pytest.raises(Refused) as caught:
        memmap.firmware_map(host)
    assert caught.value.code == "no_firmware_map"


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("ro quiet", []),
        ("memmap=512M!1G", [(512 * MIB, GIB, "!")]),
        ('"memmap=512M!1G"', [(512 * MIB, GIB, "!")]),
        ("memmap=512M\\!1G", [(512 * MIB, GIB, "!")]),
        ("memmap=1G!4G,64K$0x10000000", [(GIB, 4 * GIB, "!"), (65536, 0x10000000, "$")]),
        ("memmap=1G!4G memmap=4096@8192", [(GIB, 4 * GIB, "!"), (4096, 8192, "@")]),
        ("memmap=exactmap memmap=64M memmap=010!1g", [(8, GIB, "!")]),
        ("memmap=64M%16G-1+2", [(64 * MIB, 16 * GIB, "%")]),
        ("memmap=x!y memmap=08!1G memmap=", []),
        ("notmemmap=1G!1G", []),
    ],
)
def test_arguments_are_read_as_the_kernel_does(cmdline: str, expected: list[tuple[int, int, str]]) -> None:
    assert [(each.size, each.start, each.sign) for each in memmap.parse(cmdline)] == expected


def test_words_are_read_as_well() -> None:
    assert memmap.parse(["ro", "memmap=1G!4G"])[0].range == Range(4 * GIB, 5 * GIB, "!")


@pytest.mark.parametrize(
    ("size", "start", "text"),
    [(512 * MIB, GIB, "memmap=512M!1G"), (GIB, 4 * GIB, "memmap=1G!4G"), (512 * MIB, 384 * MIB, "memmap=512M!384M")],
)
def test_arguments_are_written_and_read_back(size: int, start: int, text: str) -> None:
    assert memmap.render(size, start) == text
    assert [(each.size, each.start) for each in memmap.parse(text)] == [(size, start)]


def test_a_small_machine_gives_the_top_clear_of_firmware_and_initrd() -> None:
    size, start = memmap.choose_range(SMALL, 512 * MIB)
    assert (size, start) == (512 * MIB, 384 * MIB)
    assert start + size <= 0x3FFDC000 - memmap.CLEARANCE


def test_memory_above_4_gib_is_preferred() -> None:
    assert memmap.choose_range(LARGE, 2 * GIB) == (2 * GIB, 6 * GIB)
    assert memmap.choose_range(LARGE, 3 * GIB) == (3 * GIB, 5 * GIB)


def test_sizes_are_rounded_up() -> None:
    assert memmap.choose_range(LARGE, GIB + 1)[0] == GIB + 128 * MIB


@pytest.mark.parametrize("entries", [SMALL, LARGE])
@pytest.mark.parametrize("size", [128 * MIB, 256 * MIB, 512 * MIB])
def test_ranges_are_aligned_and_inside_of_ram(entries: list[Range], size: int) -> None:
    size, start = memmap.choose_range(entries, size)
    assert size % memmap.ALIGN == 0 and start % memmap.ALIGN == 0 and start >= 16 * MIB
    assert any(each.kind == "System RAM" and each.start <= start and start + size <= each.end for each in entries)


def test_ranges_keep_away_from_others() -> None:
    taken = [Range(7 * GIB, 8 * GIB)]
    size, start = memmap.choose_range(LARGE, GIB, taken)
    assert start + size < 7 * GIB, "neighbours would become one region"
    assert start >= 4 * GIB


def test_a_range_in_the_middle_leaves_both_sides() -> None:
    taken = [Range(5 * GIB, 6 * GIB)]
    assert memmap.choose_range(LARGE, GIB, taken) == (GIB, 7 * GIB)
    taken.append(Range(6 * GIB + 512 * MIB, 8 * GIB))
    size, start = memmap.choose_range(LARGE, 512 * MIB, taken)
    assert start + size <= 5 * GIB - memmap.ALIGN


def test_half_of_the_memory_stays() -> None:
    assert memmap.limit(SMALL) == 512 * MIB
    with pytest.raises(Refused) as caught:
        memmap.choose_range(SMALL, 640 * MIB)
    assert caught.value.code == "nvm_too_small"
    assert "512.0 MiB can be used" in caught.value.message and "1.0 GiB" in caught.value.message


def test_a_quarter_gib_stays_on_tiny_machines() -> None:
    tiny = [Range(0x100000, 384 * MIB - 0x20000)]
    assert memmap.limit(tiny) == 128 * MIB


def test_what_others_took_is_no_longer_there_to_take() -> None:
    assert memmap.total(LARGE, [Range(4 * GIB, 8 * GIB)]) == 2 * GIB
    assert memmap.limit(LARGE, [Range(4 * GIB, 8 * GIB)]) == GIB


@pytest.mark.parametrize(
    ("entries", "multiple", "expected"),
    [
        (SMALL, 1, (512 * MIB, 512 * MIB)),
        (SMALL, 2, (512 * MIB, 640 * MIB)),
        (LARGE, 1, (3 * GIB, 3 * GIB)),
        (LARGE, 2, (3 * GIB, 4 * GIB)),
    ],
)
def test_the_automatic_size_is_a_multiple_of_what_remains(entries: list[Range], multiple: int, expected: tuple[int, int]) -> None:
    assert memmap.automatic_size(entries, [], multiple) == expected


def test_the_automatic_size_is_at_most_the_largest_piece() -> None:
    pieces = [Range(4 * GIB, 5 * GIB), Range(6 * GIB, 7 * GIB), Range(8 * GIB, 9 * GIB), Range(10 * GIB, 11 * GIB)]
    assert memmap.automatic_size(pieces, [], 1) == (GIB, 2 * GIB)


def test_legacy_nvm_of_the_firmware_is_told_from_memmap() -> None:
    firmware = [*SMALL, Range(4 * GIB, 5 * GIB, "Persistent Memory (legacy)")]
    assert memmap.is_firmware_nvm(firmware, 4 * GIB)
    assert not memmap.is_firmware_nvm(firmware, 384 * MIB)
