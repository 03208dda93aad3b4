# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes as people write them, and the memory of a machine from recorded /proc and /sys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core import sizing
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.nvm_tree import DRAM, ZONEINFO

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

GIB = 1 << 30
IOMEM = """\
00001000-0009fbff : System RAM
00100000-3ffdbfff : System RAM
140000000-1bfffffff : Persistent Memory
  140000000-14fffffff : namespace0.0
  150000000-1bfffffff : dax0.0
    150000000-1bfffffff : System RAM (kmem)
"""


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16G", 16 * GIB),
        ("512M", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1.5T", 3 << 39),
        ("64k", 65536),
        ("4096", 4096),
        (4096, 4096),
        (" 2G ", 2 * GIB),
        ("0.5P", 1 << 49),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert sizing.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "G", "-1G", "0", "16GB", "16B", "1e9", "auto", True, None, "0.3", "9000P", "1,5G", "\u0661G"],
)
def test_what_is_no_size_is_refused(text: str | bool | None) -> None:
    with pytest.raises(Refused) as caught:
        sizing.parse_size(text)
    assert caught.value.code == "size_invalid"
    assert "512M" in caught.value.remedy


@pytest.mark.parametrize(
    ("size", "text"),
    [(16 * GIB, "16.0 GiB"), (1000, "1000 bytes"), (1536 << 20, "1.5 GiB"), (DRAM, "1023.5 MiB")],
)
def test_sizes_are_printed(size: int, text: str) -> None:
    assert sizing.format_size(size) == text


def test_dram_is_what_the_kernel_manages(host: Host, plant: Plant) -> None:
    plant({"/proc/zoneinfo": ZONEINFO})
    assert sizing.dram_bytes(host, 4096) == DRAM


def test_zone_device_is_no_dram(host: Host, plant: Plant) -> None:
    head, _zone, tail = ZONEINFO.rpartition("present  0")
    plant({"/proc/zoneinfo": head + "present  262144" + tail})
    assert sizing.dram_bytes(host, 4096) == DRAM


def test_nvm_lent_as_memory_is_no_dram(host: Host, plant: Plant) -> None:
    lent = 0x1C0000000 - 0x150000000
    pages = "present  %d" % (258014 + lent // 4096)
    plant({"/proc/zoneinfo": ZONEINFO.replace("present  258014", pages), "/proc/iomem": IOMEM})
    assert sizing.dram_bytes(host, 4096) == DRAM


def test_lent_memory_that_is_offline_is_not_counted_twice(host: Host, plant: Plant) -> None:
    block = 0x8000000
    blocks = range(0x150000000 // block, 0x1C0000000 // block)
    states = {
        "/sys/devices/system/memory/memory%d/state" % number: "offline\n" if number == blocks[0] else "online\n"
        for number in blocks
    }
    lent = (len(blocks) - 1) * block
    pages = "present  %d" % (258014 + lent // 4096)
    plant({"/proc/zoneinfo": ZONEINFO.replace("present  258014", pages), "/proc/iomem": IOMEM, **states})
    plant({"/sys/devices/system/memory/block_size_bytes": "8000000\n"})
    assert sizing.dram_bytes(host, 4096) == DRAM


def test_a_machine_that_hides_its_memory_is_refused(host: Host) -> None:
    with pytest.raises(Refused) as caught:
        sizing.dram_bytes(host)
    assert caught.value.code == "dram_unknown"


def test_a_reservation_is_a_multiple_rounded_up() -> None:
    assert sizing.reservation_size(DRAM, 1, 16 << 20) == GIB
    assert sizing.reservation_size(DRAM, 2, 16 << 20) == 2 * GIB
    assert sizing.reservation_size(GIB, 1, 16 << 20) == GIB
