# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel in an image counted of its swap decides whether the image may be in a slot."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse_store.errors import Refused
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.formats.swsusp.kernel import find_kernel, symbols
from fuse_store.formats.swsusp.kernel.symbols import read_longs
from fuse_store.hibernation.slots.manage import create
from fuse_store.hibernation.slots.stage import Wishes, stage
from fuse_store.hibernation.slots.swap_use import SwapUse, swap_use
from fuse_store.image.reader import Image
from fuse_store.store import Label, Store
from tests.fuzz.swsusp import Bytes
from tests.fuzz.swsusp_encoder import KERNEL_PHYSICAL, add_symbols, encode, machine
from tests.store.hibernation.cases import SIZE, blank

OLD, NEW = True, False
STALE = b"what another image left, or a program".ljust(4096, b".")


def counted(total: int, free: int, relative: bool = OLD, without: int | None = None) -> bytes:
    """A device with an image of a kernel that counted so."""
    memory = machine(seed=3)
    add_symbols(memory, {"total_swap_pages": total, "nr_swap_pages": free}, relative)
    if without is not None:
        del memory[KERNEL_PHYSICAL // 4096 + without]
    return bytes(encode(memory, compression="lzo").device)


def stored(store: Store, path: Path, content: bytes) -> Image:
    path.write_bytes(content.ljust(SIZE - 4096, b"\0") + STALE)
    image: Image = store.open_image(store.put(str(path), Label("m", kind="hibernation")).id)
    return image


@pytest.mark.parametrize("relative", [OLD, NEW])
def test_values_of_variables_by_name(relative: bool) -> None:
    with HibernationImage(Bytes(counted(1000, 990, relative))) as image:
        kernel = find_kernel(image)
        assert kernel is not None
        assert read_longs(image, kernel, ("nr_swap_pages", "total_swap_pages")) == {"nr_swap_pages": 990, "total_swap_pages": 1000}
        assert read_longs(image, kernel, ("nr_swap_pages", "unheard_of")) == {}


@pytest.mark.parametrize("page", [0x20, 0x30])
def test_what_is_not_in_the_image_is_not_known(page: int) -> None:
    with HibernationImage(Bytes(counted(1000, 990, without=page))) as image:
        kernel = find_kernel(image)
        assert kernel is not None and read_longs(image, kernel, ("nr_swap_pages",)) == {}


def test_a_table_of_symbols_that_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own address of what the note knows as well must be right."""
    monkeypatch.setattr(symbols, "MODES", (lambda offset, base: base + 8,))
    with HibernationImage(Bytes(counted(1000, 990))) as image:
        kernel = find_kernel(image)
        assert kernel is not None and read_longs(image, kernel, ("nr_swap_pages",)) == {}


@pytest.mark.parametrize(
    ("total", "free", "used", "state"),
    [(0, 0, 0, "inactive"), (1000, 1000, 0, "unused"), (1000, 900, 100, "unused"), (5, 9, None, "unknown")],
)
def test_what_is_known(store: Store, tmp_path: Path, total: int, free: int, used: int | None, state: str) -> None:
    """Also if something else is on the captured device."""
    version = stored(store, tmp_path / "source", counted(total, free))
    with HibernationImage(version) as image:
        assert swap_use(version, image) == SwapUse(used, state)


def test_pages_that_were_swapped_out(store: Store, tmp_path: Path) -> None:
    """Are refused, also with force: the resumed machine would not be the one that slept."""
    version = stored(store, tmp_path / "source", counted(1000, 900))
    device = blank(tmp_path / "device", 3 * SIZE)
    create(device)
    before = device.read_bytes()
    for wishes in (Wishes(), Wishes(force=True)):
        with pytest.raises(Refused, match="100 pages of the machine were swapped out"):
            stage(version, device, wishes)
    assert device.read_bytes() == before


def test_a_machine_without_swap_may_have_used_the_device_before(store: Store, tmp_path: Path) -> None:
    """Its kernel does not go on to swap to it."""
    device = blank(tmp_path / "device", 3 * SIZE)
    for total, possible in ((0, True), (1000, False)):
        version = stored(store, tmp_path / f"source{total}", counted(total, total))
        device.write_bytes((tmp_path / f"source{total}").read_bytes().ljust(3 * SIZE, b"\0"))
        create(device, force=True)
        if possible:
            assert stage(version, device).slot.swap == "inactive"
        else:
            with pytest.raises(Refused, match="used this device as its swap area"):
                stage(version, device)
