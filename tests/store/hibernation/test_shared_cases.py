# SPDX-License-Identifier: GPL-3.0-or-later
"""The recorded cases of tests/cases, which the collection's tests read as well: the checks that store and collection each have
agree on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation.machine import E820_TYPES, Machine, memory_map_sum
from fuse_store.hibernation.swap_device import SwapDevice, contents_of
from tests.store.hibernation.cases import Case, blank
from tests.store.hibernation.test_preflight import PLAIN, case, checked, codes, same_machine
from tests.store.hibernation.test_stage import write

__all__ = ["case"]


def recorded(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "cases" / f"{name}.json").read_text())["cases"]
    return cases


@pytest.mark.parametrize("recorded", recorded("memory_maps"), ids=lambda each: each["name"])
def test_memory_maps(case: Case, tmp_path: Path, recorded: dict[str, Any]) -> None:
    for number, entry in enumerate(recorded["entries"]):
        directory = tmp_path / f"sys/firmware/memmap/{number}"
        directory.mkdir(parents=True)
        for name, text in zip(("start", "end", "type"), entry, strict=True):
            (directory / name).write_text(text + "\n")
    memory_map = Machine(tmp_path).memory_map
    with HibernationImage(case.image(PLAIN)) as image:
        assert (memory_map and memory_map_sum(image.info, memory_map)) == recorded["crc32"]


def test_every_type_of_a_memory_map_is_in_a_case() -> None:
    entries = [entry for each in recorded("memory_maps") if each["crc32"] for entry in each["entries"]]
    assert {kind for _start, _end, kind in entries} == set(E820_TYPES)


@pytest.mark.parametrize("recorded", recorded("kernel_command_lines"), ids=lambda each: each["cmdline"])
def test_kernel_command_lines(case: Case, tmp_path: Path, recorded: dict[str, Any]) -> None:
    root = same_machine(case, PLAIN, tmp_path, proc__cmdline=recorded["cmdline"] + "\n")
    assert codes(checked(case, PLAIN, root)) == ([] if recorded["resumes"] else ["nohibernate"])


@pytest.mark.parametrize("recorded", recorded("lockdown"), ids=lambda each: str(each["level"]))
def test_lockdown(case: Case, tmp_path: Path, recorded: dict[str, Any]) -> None:
    root = same_machine(case, PLAIN, tmp_path, sys__kernel__security__lockdown=recorded["content"] or "")
    if recorded["content"] is None:
        (root / "sys/kernel/security/lockdown").unlink()
    assert Machine(root).lockdown == recorded["level"]
    assert codes(checked(case, PLAIN, root)) == ([] if recorded["allowed"] else ["kernel_lockdown"])


@pytest.mark.parametrize("recorded", recorded("swap_headers"), ids=lambda each: each["name"])
def test_swap_headers(tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = blank(tmp_path / "device", 1 << 20)
    for offset, content in recorded["bytes"].items():
        write(path, int(offset), bytes.fromhex(content))
    with SwapDevice(path) as device:
        contents = contents_of(device)
    holds = recorded["holds"]
    assert contents.armed == (holds in ("image", "other image"))
    assert (contents.swap_page is not None) == (holds in ("swap", "image"))
    if holds == "image":
        header = contents.header
        assert header and (header.page_size, header.image, header.flags) == tuple(recorded[key] for key in ("page_size", "image", "flags"))
        assert (header.swap.uuid, header.swap.label) == (recorded["uuid"], recorded["label"])
