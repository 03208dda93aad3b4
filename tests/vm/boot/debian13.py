# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian 13, with EFI and dracut: images compressed with LZ4, which Linux has since 6.9, and the selection at boot.

What differs from the LZO of Debian 12 (test_restore.py) is in the image, in the initramfs, which needs the module that
decompresses, and in the kernel. The kernel's own default there is LZO; the role chooses. The selection (a_day.py) is a
module of dracut.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import play
from tests.vm.boot.selecting import cut, is_resumed, panics, prepare, taken
from tests.vm.conftest import MEMORY, NVDIMM, off, switched_on
from tests.vm.lab import Lab, Machine
from tests.vm.restoring import Case, resumes_the_first
from tests.vm.store import Store, tree_of


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("debian13", "debian13", memory=MEMORY, nvdimm=NVDIMM, disk=1024, erst=True)) as machine:
        play.play(lab, [machine], "nvm.fastboot.configure", {"nvm_compression": "lz4"}).ok()
        prepare(machine)
        yield machine


def test_an_image_compressed_with_lz4_is_resumed(machine: Machine, tmp_path: Path) -> None:
    """The first of two, by the distribution's own kernel, with its memory and its files; the selection, which has none, leaves it alone."""
    case = Case(machine, Store(tmp_path), tmp_path, machine.folder / "nvdimm.img", tree_of(machine, tmp_path / "tree"))
    off(machine)
    resumes_the_first(case, "lz4")


def test_the_newest_after_a_power_cut_another_after_a_panic(machine: Machine) -> None:
    first, (memory, slot) = taken(machine, "first"), taken(machine, "second")
    cut(machine)
    is_resumed(machine, memory, slot, "second", "power_loss")
    panics(machine)
    is_resumed(machine, *first, "first", "panic")
