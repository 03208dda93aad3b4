# SPDX-License-Identifier: GPL-3.0-or-later
"""Several images side by side on one device: each is what a kernel reads at its header, none harms another, and the table says so."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuse_store.cli import main
from fuse_store.cli.verbs import load
from fuse_store.cli.verbs.slots import SLOT_KEYS
from fuse_store.errors import Damaged, Locked, NotFound, Refused, UsageError
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation.machine import Machine
from fuse_store.hibernation.preflight import TargetMachine
from fuse_store.hibernation.slots import manage
from fuse_store.hibernation.slots import table as tables
from fuse_store.hibernation.slots.arm import arm, disarm, record_unused
from fuse_store.hibernation.slots.layout import COPIES, EDGE, Slot, Table
from fuse_store.hibernation.slots.manage import Slots, create, listing
from fuse_store.hibernation.slots.stage import SlotResult, Wishes, stage
from fuse_store.hibernation.stage import stage as stage_device
from fuse_store.hibernation.swap_device import SwapDevice
from fuse_store.image import devices
from fuse_store.repository import atomic
from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import decode
from tests.store.conftest import fork, loop_device, state_of, wait
from tests.store.hibernation.cases import FREE, SIZE, Case, blank, kind_on, make_case, signature

ROOT = Path(__file__).resolve().parents[4]
SPACE = 3 * SIZE  # bytes of a device with space for all images of the case
FORCE = (*FREE, "swap_unknown")
NOWHERE = TargetMachine(None)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("slots") / "case")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = blank(tmp_path / "device", SPACE)
    create(path)
    return path


def put(case: Case, index: int, application: str = "system", event: str = "") -> str:
    """The same image as another version."""
    return str(case.store.put(str(case.sources[index]), Label("m", application, "hibernation", event)).id)


def staged(case: Case, index: int, device: Path, **wishes: bool) -> SlotResult:
    return stage(case.image(index), device, Wishes(**wishes))


def stream_at(device: Path, offset: int, page_size: int = 4096) -> list[bytes]:
    return decode(device.read_bytes(), page_size, offset)


def content_of(path: Path, resume_offset: int = 0) -> tuple[Any, ...]:
    """What a kernel gets of an image: header fields, counts, and the stream."""
    with File(path) as file, HibernationImage(file, resume_offset) as image:
        stream = image.map.read(0, image.map.count).tobytes()
        return image.header.flags, image.header.crc32, image.header.state, image.info, stream, image.crc_matches()


def slots_of(device: Path) -> dict[int, Slot]:
    return {slot.number: slot for slot in listing(device).table.slots}


# what is in a slot --------------------------------------------------------------------------------------------------------


def test_images_side_by_side_are_those_that_were_captured(case: Case, device: Path) -> None:
    """LZO, plain and LZ4, in one run each; read at their offsets as the kernel does."""
    results = [staged(case, index, device) for index in range(3)]
    assert [result.slot.number for result in results] == [1, 2, 3] and len({result.slot.header for result in results}) == 3
    for index, result in enumerate(results):
        flags, crc32, _state, *rest = content_of(case.sources[index])
        assert content_of(device, result.slot.header) == (flags, crc32, "disarmed", *rest)
        assert result.slot.state == "complete" and len(result.slot.extents) == 1
    assert stream_at(device, results[1].slot.header) == decode(case.content(1))


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_pages_of_other_sizes(tmp_path: Path, page_size: int) -> None:
    small = make_case(
        tmp_path / "c", page_size=page_size, store_page_size=16384, architecture="arm64", pages=60, compressions=("none", "lzo")
    )  # fmt: skip
    path = blank(tmp_path / "device")
    create(path, page_size=page_size)
    for index in (0, 1):
        result = staged(small, index, path)
        with (
            File(path) as file, HibernationImage(file, result.slot.header, page_size) as image,
            File(small.sources[index]) as source, HibernationImage(source) as original,
        ):  # fmt: skip
            assert image.map.count == original.map.count
            assert (image.map.read(0, image.map.count) == original.map.read(0, image.map.count)).all()
    other = blank(tmp_path / "other")
    create(other, page_size=65536 if page_size == 4096 else 4096)
    with pytest.raises(Refused, match="has blocks of"):
        staged(small, 0, other)


def test_a_slot_in_pieces(case: Case, tmp_path: Path) -> None:
    """Where only pieces are free: the map lists the blocks of the pieces."""
    path = blank(tmp_path / "device", 40 << 20)
    create(path)
    with Slots(path) as slots:
        filler = Slot(1, "complete", "m", "filler", "", "0" * 32, "0" * 32, 0, 0, 1, ((0, 1),), kept="golden")
        table, at, number = slots.table, slots.table.first, 0
        while at + 240 < slots.table.end and number < 60:  # 140 blocks free after each 100
            number += 1
            table = table.with_slot(replace(filler, number=number, extents=((at, 100),)))
            at += 240
        table = table.with_slot(replace(filler, number=number + 1, extents=((at, slots.table.end - at),)))
        slots.save(table)
    result = staged(case, 1, path)
    assert len(result.slot.extents) > 3
    assert stream_at(path, result.slot.header) == decode(case.content(1))
    arm(case.copied(tmp_path / "copy").store, path, result.slot.number, NOWHERE, force=FORCE)
    assert content_of(path, result.slot.header)[2] == "armed"


def test_the_checksum_is_that_of_the_blocks(case: Case, device: Path) -> None:
    """As a shell would compute it."""
    slot = staged(case, 0, device).slot
    content = device.read_bytes()
    blocks = b"".join(content[first * 4096 : (first + count) * 4096] for first, count in slot.extents)
    assert hashlib.sha256(blocks).hexdigest() == slot.sha256


def test_busybox_reads_the_table(case: Case, device: Path) -> None:
    """The commands of docs/slots.md, with busybox: the newest valid table, and the checksum of a slot."""
    text = (ROOT / "docs/slots.md").read_text()
    script = text.split("```sh\n")[1].split("```")[0]
    slot = staged(case, 0, device).slot
    busybox = subprocess.run(["which", "busybox"], capture_output=True, text=True, check=False).stdout.strip()
    assert busybox, "this test needs busybox"
    for flip in (None, 0, 1):
        if flip is not None:
            damage(device, COPIES[flip] + 600)
        done = subprocess.run(
            [busybox, "sh", "-c", f"{script}\nslots_check {slot.number}"], env={"DEVICE": str(device), "PATH": os.environ["PATH"]},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if flip == 1:
            assert done.returncode != 0
        else:
            assert (done.returncode, done.stdout.strip().splitlines()[-1]) == (0, f"slot {slot.number}: sound"), done
        if flip == 0:
            damage(device, COPIES[flip] + 600)


def damage(path: Path, at: int) -> None:
    """Flip a bit."""
    with open(path, "r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 1]))


# the device ---------------------------------------------------------------------------------------------------------------


def test_the_device_looks_like_nothing_else(case: Case, device: Path) -> None:
    staged(case, 0, device)
    assert kind_on(device) == "" and b"SWAPSPACE2" not in device.read_bytes()[:EDGE]
    with SwapDevice(device) as target:
        pass
    with pytest.raises(Refused, match="a table of slots"):
        stage_device(case.image(0), device)
    with pytest.raises(Refused, match="a table of slots"):
        create(device)
    assert subprocess.run(["swapon", device], capture_output=True, check=False).returncode != 0
    assert target.name == str(device)


def test_names_that_look_like_signatures(case: Case, tmp_path: Path) -> None:
    version = put(case, 0, application="SWAPSPACE2", event="S1SUSPEND")
    path = blank(tmp_path / "device", SPACE)
    create(path)
    stage(case.store.open_image(version), path)
    assert kind_on(path) == ""


def test_created_on_a_swap_area_and_not_on_data(case: Case, tmp_path: Path) -> None:
    path = blank(tmp_path / "device")
    path.write_bytes(case.content(0))
    with pytest.raises(Refused, match="armed hibernation image"):
        create(path)
    assert path.read_bytes() == case.content(0)
    stage_device(case.image(0), path, force=True)
    _name, table = create(path)
    assert kind_on(path) == "" and not table.slots and table.replaced == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    with pytest.raises(Refused, match="used this device as its swap area"):
        stage(case.image(0), path, Wishes(force=True))


def test_no_table(case: Case, tmp_path: Path) -> None:
    path = blank(tmp_path / "device")
    for act in (lambda: staged(case, 0, path), lambda: listing(path), lambda: disarm(path), lambda: manage.remove(path, 1)):
        with pytest.raises(NotFound, match="no table of slots"):
            act()
        assert not any(path.read_bytes())


def test_too_small(case: Case, tmp_path: Path) -> None:
    path = blank(tmp_path / "device", 2 << 20)
    with pytest.raises(Refused, match="too small"):
        create(path)
    path = blank(tmp_path / "device", 3 << 20)
    create(path)
    before = path.read_bytes()
    with pytest.raises(Refused, match="no space for"):
        staged(case, 1, path)
    assert path.read_bytes() == before


def test_shrunk_device(case: Case, device: Path) -> None:
    os.truncate(device, SIZE)
    with pytest.raises(Damaged, match="its table of slots is for"):
        staged(case, 0, device)


def test_one_copy_of_the_table_is_enough(case: Case, device: Path) -> None:
    first = staged(case, 0, device).slot
    with Slots(device) as slots:
        copy = slots.found.copy
    damage(device, COPIES[1 - copy] + 700)
    assert "checksum" in listing(device).problem
    staged(case, 1, device)
    assert listing(device).problem == "" and set(slots_of(device)) == {1, 2}
    with Slots(device) as slots:
        copy = slots.found.copy
    damage(device, COPIES[copy] + 700)  # the newest: what the other one says is from before
    assert slots_of(device)[2].state == "writing" and slots_of(device)[1] == first


def test_both_copies_damaged(case: Case, device: Path) -> None:
    staged(case, 0, device)
    for copy in COPIES:
        damage(device, copy + 700)
    before = device.read_bytes()
    for act in (lambda: staged(case, 1, device), lambda: listing(device), lambda: disarm(device)):
        with pytest.raises(Damaged, match="both copies"):
            act()
    with pytest.raises(Refused, match="a table of slots"):
        create(device)
    assert device.read_bytes() == before
    create(device, force=True)
    assert not listing(device).table.slots


def test_two_at_once(case: Case, device: Path) -> None:
    with Slots(device), pytest.raises(Locked):
        staged(case, 0, device)
    with Slots(device):
        pass


def test_block_device(case: Case, tmp_path: Path) -> None:
    """As a file; and who has it open holds it alone."""
    copied = case.copied(tmp_path / "copy")
    with loop_device(tmp_path / "disk", SPACE) as loop:
        create(loop)
        results = [staged(copied, index, loop) for index in (0, 1)]
        done = arm(copied.store, loop, 2, TargetMachine(Machine("/nonexistent")), force=("filesystems_unknown",))
        assert done.device == str(loop) and content_of(loop, results[1].slot.header)[2] == "armed"
        with Slots(loop), pytest.raises(Refused, match="busy"):
            disarm(loop)
        assert kind_on(loop) == "" and not subprocess.run(["blkid", "-p", loop], capture_output=True, check=False).stdout
        disarm(loop)
    assert stream_at(tmp_path / "disk", results[1].slot.header) == decode(case.content(1))


def test_device_that_does_not_keep_what_is_written(case: Case, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = devices.write_at
    monkeypatch.setattr(devices, "write_at", lambda *write: real(*write) if write[2] < EDGE + 12288 else None)
    with pytest.raises(Damaged, match="reads back differently"):
        staged(case, 1, device)
    monkeypatch.undo()
    assert slots_of(device)[1].state == "writing"
    with pytest.raises(Refused, match="not complete"):
        arm(case.store, device, 1, NOWHERE, force=FORCE)
    result = staged(case, 1, device)
    assert result.dropped[0].state == "writing" and list(slots_of(device).values()) == [result.slot]


def test_device_that_fails(case: Case, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = staged(case, 0, device).slot

    def fails(descriptor: int, data: memoryview, at: int) -> None:
        if at > (first.header + first.blocks + 1) * 4096:
            raise OSError(5, "Input/output error")
        real(descriptor, data, at)

    real = devices.write_at
    monkeypatch.setattr(devices, "write_at", fails)
    with pytest.raises(Exception, match="Input/output error"):
        staged(case, 1, device)
    monkeypatch.undo()
    assert slots_of(device)[1] == first and slots_of(device)[2].state == "writing"


# which image goes ---------------------------------------------------------------------------------------------------------


def tight(tmp_path: Path, case: Case, count: int, index: int = 1) -> Path:
    """A device with space for so many copies of an image."""
    path = blank(tmp_path / "tight", SPACE)
    create(path)
    size = staged(case, index, path).slot.blocks * 4096
    path = blank(tmp_path / "tight", 2 * EDGE + count * size + size // 2)
    create(path)
    return path


def test_the_oldest_replaceable_one_goes(case: Case, tmp_path: Path) -> None:
    path = tight(tmp_path, case, 2)
    assert not staged(case, 1, path, golden=True).dropped
    assert not staged(case, 1, path).dropped
    second = staged(case, 1, path)
    assert [gone.number for gone in second.dropped] == [2]
    assert sorted((slot.number, slot.kept) for slot in slots_of(path).values()) == [(1, "golden"), (2, "replaceable")]


def test_never_the_last_good_one(case: Case, tmp_path: Path) -> None:
    """Of an application: of another one's last image nothing is touched."""
    path = tight(tmp_path, case, 1)
    first = staged(case, 1, path).slot
    for version in (case.ids[1], put(case, 1, application="other")):
        with pytest.raises(Refused, match="last good image of its application"):
            stage(case.store.open_image(version), path, Wishes(replace=True))
    assert list(slots_of(path).values()) == [first]
    assert stream_at(path, first.header) == decode(case.content(1))


def test_a_failed_one_goes_before_a_good_one(case: Case, tmp_path: Path) -> None:
    path = tight(tmp_path, case, 2)
    staged(case, 1, path)
    failed = staged(case, 1, path).slot
    with Slots(path) as slots:
        slots.save(slots.table.with_slot(replace(failed, state="failed")))
    assert [gone.number for gone in staged(case, 1, path).dropped] == [failed.number]


def test_an_armed_one_stays(case: Case, tmp_path: Path) -> None:
    path = tight(tmp_path, case, 2)
    copied = case.copied(tmp_path / "copy")
    oldest = staged(copied, 1, path).slot
    arm(copied.store, path, oldest.number, NOWHERE, force=FORCE)
    newer = staged(copied, 1, path).slot
    assert [gone.number for gone in staged(copied, 1, path).dropped] == [newer.number]
    assert listing(path).armed == {oldest.number}


def test_replace_drops_the_old_one_when_the_new_one_is_complete(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = blank(tmp_path / "device", 3 * SPACE)
    create(path)
    old = staged(case, 1, path).slot
    other = stage(case.store.open_image(put(case, 1, event="other")), path).slot
    states = []
    real = tables.save

    def save(device: SwapDevice, found: tables.Found, table: Table, name: str) -> tables.Found:
        states.append([slot.state for slot in table.slots])
        return real(device, found, table, name)

    monkeypatch.setattr(tables, "save", save)
    result = staged(case, 1, path, replace=True)
    assert [gone.number for gone in result.dropped] == [old.number]
    assert states == [["complete", "complete", "writing"], ["complete"] * 3, ["complete"] * 2]
    assert set(slots_of(path)) == {other.number, result.slot.number}


def test_a_full_table(case: Case, tmp_path: Path) -> None:
    path = blank(tmp_path / "device", SPACE)
    create(path)
    with Slots(path) as slots:
        table = slots.table
        for number in range(1, 65):
            slot = Slot(number, "complete", "m", "a", "", "0" * 32, "0" * 32, 0, number, 1, ((table.first + number, 1),), kept="golden")
            table = table.with_slot(slot)
        slots.save(table)
    with pytest.raises(Refused, match="no space for"):
        staged(case, 0, path)


def test_a_table_that_is_too_large(case: Case, device: Path) -> None:
    with Slots(device) as slots:
        table = slots.table
        for number in range(1, 40):
            tags = {f"fs.{tag}": "x" * 200 for tag in range(48)}
            slot = Slot(number, "complete", "m", "a", "", "0" * 32, "0" * 32, 0, 0, 1, ((table.first + number, 1),), tags=tags)
            table = table.with_slot(slot)
        with pytest.raises(Refused, match="there is space for"):
            slots.save(table)


def test_remove(case: Case, device: Path) -> None:
    first = staged(case, 0, device, golden=True).slot
    with pytest.raises(Refused, match="golden"):
        manage.remove(device, first.number)
    with pytest.raises(NotFound, match="no slot 7"):
        manage.remove(device, 7)
    manage.remove(device, first.number, force=True)
    assert not slots_of(device)
    assert staged(case, 1, device).slot.extents[0][0] == first.header


# swapped-out pages --------------------------------------------------------------------------------------------------------


def test_swapped_out_pages_are_not_left_behind_unnoticed(case: Case, tmp_path: Path, device: Path) -> None:
    """Something in the swap area beside the image may be pages of programs: refused unless forced, and arm asks again."""
    content = bytearray(case.content(1))
    content[-8192:-4096] = b"page of a program".ljust(4096, b".")
    (tmp_path / "source").write_bytes(content)
    copied = case.copied(tmp_path / "copy")
    version = copied.store.put(str(tmp_path / "source"), Label("m", kind="hibernation"))
    with pytest.raises(Refused, match="not known whether pages"):
        stage(copied.store.open_image(version.id), device)
    slot = stage(copied.store.open_image(version.id), device, Wishes(force=True)).slot
    assert slot.swap == "unknown"
    with pytest.raises(Refused, match="swap_unknown"):
        arm(copied.store, device, slot.number, NOWHERE, force=FREE)
    arm(copied.store, device, slot.number, NOWHERE, force=(*FREE, "swap_unknown"))
    assert staged(copied, 1, device).slot.swap == "unused"


# arm and disarm -----------------------------------------------------------------------------------------------------------


def test_one_is_armed_at_a_time(case: Case, device: Path, tmp_path: Path) -> None:
    copied = case.copied(tmp_path / "copy")
    results = [staged(copied, index, device) for index in range(3)]
    before = device.read_bytes()
    done = arm(copied.store, device, 2, NOWHERE, force=FREE)
    after = device.read_bytes()
    header = done.offset * 4096
    assert signature(after[header:]) == b"S1SUSPEND\0" and done.offset == results[1].slot.header
    assert before[EDGE : header + 4086] + before[header + 4096 :] == after[EDGE : header + 4086] + after[header + 4096 :]
    assert listing(device).armed == {2} and state_of(copied.store, copied.ids[1]) == "armed"
    assert (slots_of(device)[2].state, slots_of(device)[2].attempts) == ("armed", 1)
    assert not arm(copied.store, device, 2, NOWHERE).changed
    third = arm(copied.store, device, 3, NOWHERE, force=FREE)
    assert third.disarmed == (2,) and listing(device).armed == {3}
    assert [slot.state for slot in slots_of(device).values()] == ["complete", "complete", "armed"]
    assert state_of(copied.store, copied.ids[1]) == "staged"  # not resumed, so it may be armed again
    arm(copied.store, device, 2, NOWHERE, force=FREE)
    assert slots_of(device)[2].attempts == 2


def test_what_was_resumed_is_not_armed_again(case: Case, device: Path, tmp_path: Path) -> None:
    copied = case.copied(tmp_path / "copy")
    slots = [staged(copied, index, device).slot for index in range(2)]
    arm(copied.store, device, 1, NOWHERE, force=FREE)
    with open(device, "r+b") as file:  # as the kernel does before it reads the image
        file.seek(slots[0].header * 4096 + 4086)
        file.write(b"SWAPSPACE2")
    with pytest.raises(Refused, match="already_used"):
        arm(copied.store, device, 1, NOWHERE, force=FREE)
    arm(copied.store, device, 2, NOWHERE, force=FREE)
    assert slots_of(device)[1].state == "used" and state_of(copied.store, copied.ids[0]) == "armed"


def test_disarm(case: Case, device: Path, tmp_path: Path) -> None:
    copied = case.copied(tmp_path / "copy")
    staged(copied, 0, device)
    before = device.read_bytes()
    arm(copied.store, device, 1, NOWHERE, force=FREE)
    done = disarm(device)
    assert [slot.number for _name, slot in done.slots] == [1] and device.read_bytes()[EDGE:] == before[EDGE:]
    assert slots_of(device)[1].state == "complete"
    assert disarm(device).slots == ()


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_signature_that_was_written_in_part(case: Case, device: Path, cut: int) -> None:
    slot = staged(case, 0, device).slot
    with open(device, "r+b") as file:
        file.seek(slot.header * 4096 + 4086)
        file.write(b"S1SUSPEND\0"[:cut])
    assert not disarm(device).slots
    assert signature(device.read_bytes()[slot.header * 4096 :]) == b"SWAPSPACE2"


def test_what_changed_since_is_found(case: Case, device: Path, tmp_path: Path) -> None:
    copied = case.copied(tmp_path / "copy")
    slot = staged(copied, 0, device).slot
    for at in (slot.header * 4096 + 100, (slot.header + 1) * 4096 + 8, (slot.header + slot.blocks - 1) * 4096):
        damage(device, at)
        with pytest.raises(Damaged, match="differs from the staged version"):
            arm(copied.store, device, 1, NOWHERE, force=FREE)
        damage(device, at)
    assert not listing(device).armed and state_of(copied.store, copied.ids[0]) != "armed"


def test_another_checksum_in_the_table(case: Case, device: Path, tmp_path: Path) -> None:
    copied = case.copied(tmp_path / "copy")
    slot = staged(copied, 0, device).slot
    with Slots(device) as slots:
        slots.save(slots.table.with_slot(replace(slot, sha256="0" * 64)))
    with pytest.raises(Damaged, match="checksum in the table"):
        arm(copied.store, device, 1, NOWHERE, force=FREE)


def test_a_snapshot_that_is_in_no_store(case: Case, device: Path, tmp_path: Path) -> None:
    """It is refused by name, and armed once the store has the version with its id, whether or not the table knows its content."""
    copied = case.copied(tmp_path / "copy")
    slot = staged(copied, 0, device).slot
    with Slots(device) as slots:
        slots.save(slots.table.with_slot(replace(slot, image="0" * 32, content="")))
    with pytest.raises(NotFound, match=r"slot 1 of .*: image 000000000000 is not in the store.*docs/slots.md"):
        arm(copied.store, device, 1, NOWHERE, force=FREE)
    assert disarm(device).slots == () and not listing(device).armed
    with Slots(device) as slots:
        slots.save(slots.table.with_slot(replace(slot, content="")))
    name = arm(copied.store, device, 1, NOWHERE, force=FREE).device + "#1"
    assert listing(device).armed == {1}
    assert record_unused(copied.store, name, replace(slot, content="")) and state_of(copied.store, copied.ids[0]) == "staged"
    assert not record_unused(copied.store, name, replace(slot, image="0" * 32))


# power cuts ---------------------------------------------------------------------------------------------------------------

def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image stays whole until the second one is, at most one is armed, and the next staging goes on from there."""
    copied = make_case(tmp_path / "case", compressions=("lzo", "none"), pages=150)
    wanted = decode(copied.content(1))
    path = blank(tmp_path / "start", 5 << 20)
    create(path)
    first = staged(copied, 1, path).slot
    start = path.read_bytes()
    path = tmp_path / "device"
    second = put(copied, 1)

    def work(step: int) -> None:
        store = Store.open(copied.store.path, key_file=copied.store.path.parent / "key")  # without the threads of the parent
        monkeypatch.setattr(atomic, "_steps", itertools.count(1))
        monkeypatch.setenv(atomic.FAULT_POINT, str(step))
        stage(store.open_image(second), path, Wishes(replace=True))
        arm(store, path, 2, NOWHERE, force=FREE)
        disarm(path)

    steps = set()
    states = copied.store.path / "states"
    shutil.copytree(states, tmp_path / "states")
    for step in range(1, 60):
        path.write_bytes(start)
        shutil.rmtree(states)
        shutil.copytree(tmp_path / "states", states)
        ended = wait(fork(lambda step=step: work(step)))  # type: ignore[misc]
        found = listing(path)
        good = [slot for slot in found.table.slots if slot.state in ("complete", "armed")]
        assert good and len(found.armed) <= 1
        for slot in good:
            assert stream_at(path, slot.header) == wanted
            assert hashlib.sha256(unarmed_blocks(path, slot)).hexdigest() == slot.sha256
        assert first in good or any(slot.number == 2 for slot in good)
        assert not found.armed or found.table.slot(2).state == "armed"  # type: ignore[union-attr]
        steps.add(tuple((slot.number, slot.state) for slot in found.table.slots) + (len(found.armed),))
        if ended == 0:
            break
    assert ended == 0 and step > 8 and len(steps) > 4, steps


def unarmed_blocks(path: Path, slot: Slot) -> bytes:
    content = path.read_bytes()
    blocks = bytearray(b"".join(content[first * 4096 : (first + count) * 4096] for first, count in slot.extents))
    blocks[4086:4096] = b"SWAPSPACE2"
    return bytes(blocks)


def test_a_write_of_the_table_that_ends_early(case: Case, device: Path) -> None:
    """At each sector, and within one: the table is the one before or the one after."""
    staged(case, 0, device)
    before = device.read_bytes()
    with Slots(device) as slots:
        old = slots.table
        slots.save(slots.table.with_slot(replace(slots.slot(1), attempts=7)))
        new, at = slots.table, COPIES[slots.found.copy]
    after = device.read_bytes()
    length = len(after[at:].split(b"\0", 1)[0])
    for sector in range(0, length + 1, 512):
        for torn in (before[:at] + after[at : at + sector] + before[at + sector :],
                     before[: at + sector] + after[at + sector : at + length] + before[at + length :],
                     before[: at + sector] + os.urandom(512) + before[at + sector + 512 :]):  # fmt: skip
            found = tables.load(_Bytes(torn), "x").table
            assert found in (old, new)


class _Bytes:
    def __init__(self, content: bytes) -> None:
        self.content, self.size = content, len(content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


def test_init_that_ends_early(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each write the device has its table, or none."""
    path = blank(tmp_path / "device")
    real = SwapDevice.write_checked
    writes = 0

    def cut(target: SwapDevice, offset: int, content: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes > most:
            raise KeyboardInterrupt
        real(target, offset, content)

    monkeypatch.setattr(SwapDevice, "write_checked", cut)
    for most in range(7):
        path = blank(tmp_path / "device")
        writes = 0
        try:
            create(path)
        except KeyboardInterrupt:
            pass
        try:
            assert not listing(path).table.slots
        except NotFound:
            assert most == 0


# the command --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    copied = case.copied(tmp_path / "copy")

    def command(*words: str | Path) -> Any:
        (verb,) = load(str(words[0]))
        code = main([*map(str, words), "--store", str(copied.store.path), "--key-file", str(copied.store.path.parent / "key"), "--json"])
        captured = capfd.readouterr()
        lines = [json.loads(line) for line in captured.err.splitlines()]
        record = json.loads(captured.out or "{}")
        assert code or list(record) == [name for key in verb.keys if not key.startswith(" ") for name in key.split(", ")]
        errors = [one["error"] for one in lines if "error" in one]
        return code, record, errors[0] if errors else None

    return command


def test_commands(case: Case, tmp_path: Path, run: Callable[..., Any]) -> None:
    path = blank(tmp_path / "device", SPACE)
    assert run("slots", "init", path)[1]["slots"] == []
    first, second = (run("stage", case.ids[index], path, "--slot")[1] for index in (0, 1))
    assert (first["slot"], second["slot"], second["dropped"], second["recorded"]) == (1, 2, [], True)
    forces = [word for code in FREE for word in ("--force", code)]
    armed = run("arm", path, "--slot", "2", *forces)[1]
    assert armed["parameters"] == f"resume={path} resume_offset={second['resume_offset']}" and armed["changed"]
    listed = run("slots", "list", path)[1]["slots"]
    assert all(list(one) == list(SLOT_KEYS) for one in listed)
    assert [(one["slot"], one["state"], one["armed"], one["resume_offset"]) for one in listed] == [
        (1, "complete", False, first["resume_offset"]), (2, "armed", True, second["resume_offset"]),
    ]  # fmt: skip
    code, _out, error = run("slots", "remove", path, "--slot", "2")
    assert code == 5 and error["cause"] == "armed."
    disarmed = run("disarm", path)[1]
    assert (disarmed["slots"], disarmed["id"]) == ([2], case.ids[1])
    assert run("slots", "remove", path, "--slot", "2")[1]["image"] == case.ids[1]
    assert run("disarm", path)[1]["changed"] is False


@pytest.mark.parametrize(
    "words",
    [("stage", "x", "d", "--golden"), ("stage", "x", "d", "--replace"), ("slots", "remove", "d"), ("slots", "list"),
     ("arm", "d", "--slot", "x"), ("arm", "d", "--slot", "1", "--image", "x"), ("slots", "list", "d", "--slot", "-1")],
)  # fmt: skip
def test_commands_that_cannot_be(run: Callable[..., Any], words: tuple[str, ...]) -> None:
    assert run(*words)[0] == 2


def test_a_page_size_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        create(blank(tmp_path / "device"), page_size=8192)


def test_the_map_is_made_again(case: Case, device: Path) -> None:
    """Its entries are blocks of the slot, and nothing else in the stream has changed."""
    slot = staged(case, 1, device).slot
    content = device.read_bytes()
    (first,) = struct.unpack_from("<Q", content, slot.header * 4096 + 4064)
    assert first == slot.header + 1
    entries = struct.unpack_from("<511Q", content, first * 4096)
    maps = -(-slot.pages // 511)
    assert entries[:3] == tuple(slot.header + 1 + maps + at for at in range(3))
