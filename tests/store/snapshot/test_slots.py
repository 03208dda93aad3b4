# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots into slots: beside each other, whole or not there, and found again by a system that was resumed from one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuse_store.cli import main
from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError
from fuse_store.formats.checksums import Checksums
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation.machine import Machine
from fuse_store.hibernation.slots.layout import COPIES, Slot
from fuse_store.hibernation.slots.manage import Slots, create, listing, remove
from fuse_store.hibernation.swap_device import stable_name
from fuse_store.repository import atomic
from fuse_store.snapshot import restored, standstill, taking
from fuse_store.snapshot.memory import Memory
from fuse_store.snapshot.recorder import Recorder
from fuse_store.snapshot.service import policy, server, upload
from fuse_store.snapshot.service.policy import parse
from fuse_store.snapshot.targets import Wishes
from fuse_store.snapshot.targets import slot as slot_target
from tests.store.conftest import fork, loop_device, wait
from tests.store.snapshot.fake_kernel import PAGE, STREAM, Around, Kernel, install

SIZE = 9 << 20
SHOP = Wishes("shop", "ready")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With space for six images."""
    install(monkeypatch)
    with loop_device(tmp_path / "disk", SIZE) as device:
        create(device)
        yield device


def slots_of(device: Path) -> dict[int, Slot]:
    found = listing(device)
    assert not found.armed and not found.problem
    return {slot.number: slot for slot in found.table.slots}


def whole(device: Path, slot: Slot) -> bool:
    """Whether the image is what the kernel gave, as the kernel would find it, and the checksum is that of the blocks."""
    content = device.read_bytes()
    blocks = b"".join(content[first * PAGE : (first + count) * PAGE] for first, count in slot.extents)
    sums = Checksums()
    sums.update(blocks)
    if (hashlib.sha256(blocks).hexdigest(), sums.tags["crc32"]) != (slot.sha256, slot.tags["crc32"]):
        return False
    with File(device) as file, HibernationImage(file, slot.header) as image:
        assert image.map.count == slot.pages and image.header.state == "disarmed"
        return bool(image.map.read(0, image.map.count).tobytes() == b"".join(STREAM))


def test_side_by_side(device: Path) -> None:
    taken = [taking.take(device, Wishes("shop", event)) for event in ("one", "two", "three")]
    slots = slots_of(device)
    assert [(slot.number, slot.image, slot.event) for slot in slots.values()] == [
        (made.slot, made.id, event) for made, event in zip(taken, ("one", "two", "three"), strict=True)
    ]  # fmt: skip
    for made, slot in zip(taken, slots.values(), strict=True):
        assert (made.restored, made.armed, made.size) == (False, False, len(STREAM) * PAGE)
        assert (slot.state, slot.machine, slot.application, slot.content) == ("complete", os.uname().nodename, "shop", "")
        assert (slot.attempts, slot.kept, slot.swap, slot.pages) == (0, "replaceable", "inactive", len(STREAM))
        memory = Machine().memory_tag
        kernel = f"{os.uname().release} {os.uname().version}"
        assert memory and slot.tags == {"kernel": kernel, "memory": memory, "guard.none": "1", "crc32": slot.tags["crc32"]}
        assert slot.blocks == 1 + 1 + len(STREAM), "what it does not need is free again"
        assert whole(device, slot)


def test_the_command_asks_for_a_put_as_well(device: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where it takes the snapshot itself, on the device of the policy."""
    monkeypatch.setattr(upload, "DIRECTORY", tmp_path / "run")
    wanted = tmp_path / "run/put-wanted"
    for content, asked in (
        ({"device": str(device), "store": "/srv/store", "hook_time_limit": 7}, True),
        ({"device": str(device)}, False),
        ({"device": "/dev/other", "store": "/srv/store"}, False),
    ):
        read = parse(content)
        monkeypatch.setattr(policy, "of_this_machine", lambda read=read: (read, ""))
        Around.calls = []
        assert main(["snapshot", str(device), "--application", "shop", "--quiet"]) == 0
        assert wanted.exists() == asked, content
        assert Around.calls[0][1].limit == read.hook_time_limit
        wanted.unlink(missing_ok=True)


def test_a_kernel_that_makes_no_images_costs_no_slot(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dropped for an image that cannot be, and nothing that an administrator wrote runs."""
    for event in range(6):
        taking.take(device, Wishes(f"app{event}"))
    before, Around.calls = device.read_bytes(), []

    def refuses() -> None:
        raise Refused("/dev/snapshot", "the kernel has no hibernation.")

    monkeypatch.setattr(standstill, "SnapshotDevice", refuses)
    with pytest.raises(Refused, match="no hibernation"):
        taking.take(device, SHOP)
    assert device.read_bytes() == before and not Around.calls


def test_a_device_on_which_no_image_has_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with loop_device(tmp_path / "small", 3 << 20) as small:
        create(small)
        with pytest.raises(Refused, match=r"no space for \d+ bytes: too small"):
            taking.take(small, SHOP)


@pytest.mark.parametrize("wishes", [Wishes("a\nb"), Wishes(""), Wishes("shop", "x" * 201)])
def test_names_that_cannot_be(device: Path, wishes: Wishes) -> None:
    before = device.read_bytes()
    with pytest.raises(UsageError, match="not possible as a name"):
        taking.take(device, wishes)
    assert device.read_bytes() == before


def test_where_the_free_blocks_are_not_adjacent(device: Path) -> None:
    for number in range(6):
        taking.take(device, Wishes(f"app{number}"))
    for number in (2, 4):  # of what is reserved none has space for all
        remove(device, number)
    made = taking.take(device, SHOP)
    slots = slots_of(device)
    assert made.slot == 2 and len(slots[2].extents) == 2 and len(slots) == 5
    assert all(whole(device, slot) for slot in slots.values())


def test_the_table_says_writing_while_the_system_stands_still(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def size(self: Kernel) -> int:
        (slot,) = listing(device).table.slots
        seen.append((slot.state, slot.blocks * PAGE >= 3 << 19, slot.sha256))
        return len(STREAM) * PAGE

    monkeypatch.setattr(Kernel, "size", size)
    taking.take(device)
    assert seen == [("writing", True, "")] and slots_of(device)[1].application == "system"


def test_a_program_that_notes_something_is_waited_for(device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the one that puts snapshots into a store does; for longer it is refused."""

    begun, ends = tmp_path / "begun", tmp_path / "ends"

    def holds() -> None:
        with Slots(device):
            begun.touch()
            while not ends.exists():
                time.sleep(0.05)

    for patience, outcome in ((60.0, contextlib.nullcontext()), (0.0, pytest.raises(Refused, match="opened exclusively"))):
        monkeypatch.setattr(slot_target, "PATIENCE", patience)
        begun.unlink(missing_ok=True)
        ends.unlink(missing_ok=True)
        child = fork(holds)
        while not begun.exists():
            time.sleep(0.05)
        later = threading.Timer(1, ends.touch)
        if patience:
            later.start()
        with outcome:
            taking.take(device, SHOP)
        ends.touch()
        assert wait(child) == 0
    assert len(slots_of(device)) == 1


@pytest.mark.parametrize("step", ["create", "read", "free", "unfreeze"])
def test_what_fails_leaves_the_others(device: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    first = taking.take(device, SHOP)
    monkeypatch.setattr(Kernel, "fails", step)
    with pytest.raises(StoreError):
        taking.take(device, SHOP)
    assert [slot.state for slot in slots_of(device).values()] == ["complete", "writing"]
    monkeypatch.setattr(Kernel, "fails", "")
    again = taking.take(device, SHOP)
    slots = slots_of(device)
    assert {slot.image for slot in slots.values()} == {first.id, again.id} and all(whole(device, slot) for slot in slots.values())


def test_a_device_that_does_not_keep_what_is_written(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "read_back", lambda self, read, header: (self.checksum ^ 1, ""))
    with pytest.raises(Damaged):
        taking.take(device)
    assert slots_of(device)[1].state == "writing"


@pytest.mark.long
def test_killed_at_every_step(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two that are there are whole until a third one is, of which the wish to keep two is met."""
    for event in ("one", "two"):
        taking.take(device, Wishes("shop", event))
    start = device.read_bytes()

    def work(step: int) -> None:
        monkeypatch.setattr(atomic, "_steps", itertools.count(1))
        monkeypatch.setenv(atomic.FAULT_POINT, str(step))
        taking.take(device, Wishes("shop", "three", keep=2))

    seen = set()
    for step in range(1, 40):
        device.write_bytes(start)
        ended = wait(fork(lambda step=step: work(step)))  # type: ignore[misc]
        slots = slots_of(device)
        good = [slot for slot in slots.values() if slot.state == "complete"]
        assert len(good) >= 2 and all(whole(device, slot) for slot in good)
        assert {"two"} < {slot.event for slot in good}
        seen.add(tuple((slot.event, slot.state) for slot in slots.values()))
        if ended == 0:
            break
        monkeypatch.delenv(atomic.FAULT_POINT, raising=False)
        taking.take(device, Wishes("shop", "next", keep=2))
        assert [slot.state for slot in slots_of(device).values()] == ["complete"] * 2
    assert ended == 0 and step > 15, step
    assert {slot.event for slot in slots_of(device).values()} == {"two", "three"} and len(seen) == 4, seen


def test_what_stays(device: Path) -> None:
    """``keep`` counts what may be replaced, of one application; ``replace`` drops what has the same event. Golden ones stay."""
    golden = taking.take(device, replace(SHOP, golden=True))
    other = taking.take(device, Wishes("other"))
    taking.take(device, SHOP)
    newest = taking.take(device, Wishes("shop", "later", keep=1))
    assert {slot.image for slot in slots_of(device).values()} == {golden.id, other.id, newest.id}
    again = taking.take(device, replace(SHOP, replace=True))
    assert {slot.image for slot in slots_of(device).values()} == {golden.id, other.id, newest.id, again.id}
    instead = taking.take(device, replace(SHOP, replace=True))
    assert {slot.image for slot in slots_of(device).values()} == {golden.id, other.id, newest.id, instead.id}
    with pytest.raises(UsageError, match="not even the new image"):
        taking.take(device, Wishes(keep=0))


def test_the_oldest_goes_where_there_is_no_space(device: Path) -> None:
    taken = [taking.take(device, Wishes("shop", str(number))).id for number in range(7)]
    assert {slot.image for slot in slots_of(device).values()} == set(taken[-6:])
    for number in range(5):
        taking.take(device, Wishes(f"other{number}"))
    before = slots_of(device)
    with pytest.raises(Refused, match=r"no space for .* the last good image of its application"):
        taking.take(device, Wishes("new"))
    assert slots_of(device) == before


def test_an_image_that_turns_out_larger(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are known when the system stands still: then it is tried once more, with more space."""
    monkeypatch.setattr(Memory, "of", lambda machine, swapped=0: Memory(8 << 20, 1 << 19, 1 << 19, swapped))
    monkeypatch.setattr(Kernel, "prefer", lambda self, size: None)
    made = taking.take(device, SHOP)
    assert len(slots_of(device)) == 1 and whole(device, slots_of(device)[made.slot or 0])
    monkeypatch.setattr(Kernel, "stream", STREAM * 9)
    with pytest.raises(Refused, match=r"no space for \d+ bytes"):
        taking.take(device, SHOP)
    assert whole(device, slots_of(device)[1])


def test_caches_are_in_the_image_where_there_is_space(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But no image goes for them."""
    monkeypatch.setattr(Memory, "of", lambda machine, swapped=0: Memory(8 << 20, 5 << 18, 6 << 20, swapped))
    preferred: list[int] = []
    monkeypatch.setattr(Kernel, "prefer", lambda self, size: preferred.append(size))
    for _number in range(6):
        taking.take(device, SHOP)
    assert preferred[0] >= 3 << 20 and preferred[-1] < 2 << 20 and min(preferred) >= 5 << 18, preferred
    assert len(slots_of(device)) == 6, "caches were worth an image"


def test_caches_leave_space_for_one_more_image(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device with space for three images without caches, three are there, though the first one has some."""
    used = Memory(8 << 20, 3 << 19, 6 << 20)
    monkeypatch.setattr(Memory, "of", lambda machine, swapped=0: used)
    sizes: list[int] = []

    def prefer(self: Kernel, size: int) -> None:
        """The image has as many pages as it may."""
        sizes.append(size // PAGE)
        self.stream = self.left = STREAM[:1] * (size // PAGE)

    monkeypatch.setattr(Kernel, "prefer", prefer)
    for _number in range(3):
        taking.take(device, SHOP)
    assert len(slots_of(device)) == 3 and sizes[0] > sizes[-1] >= 384, sizes


# restored --------------------------------------------------------------------------------------------------------------------


def resume(monkeypatch: pytest.MonkeyPatch, device: Path, content: bytes) -> None:
    """The kernel returns from making the image once more; the device has what it had when it was resumed."""
    monkeypatch.setattr(Kernel, "resumed", True)
    made = Kernel._call

    def back(self: Kernel, name: str) -> None:
        made(self, name)
        if name == "create":
            device.write_bytes(content)

    monkeypatch.setattr(Kernel, "_call", back)


@pytest.fixture
def tried(device: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Has a system be resumed from slot 2, which was armed for the second time, while others have come since; returns the id of the image
    in the memory. ``as_other``: the id that the table has for it, if another one."""
    ids = iter(f"{number:032x}" for number in range(1, 9))
    monkeypatch.setattr(taking, "_new_id", lambda machine, device: next(ids))
    taking.take(device, Wishes("first"))
    before = device.read_bytes()
    taking.take(device, SHOP)
    taking.take(device, Wishes("later"))

    def run(as_other: str = "") -> str:
        with Slots(device) as slots:
            slot = slots.slot(2)
            changed = replace(slot, state="armed", attempts=2, image=as_other or slot.image)
            slots.save(replace(slots.table.with_slot(changed), session="ended"))
        content = device.read_bytes()
        device.write_bytes(before)  # what the memory knows of it
        monkeypatch.setattr(taking, "_new_id", lambda machine, device: f"{2:032x}")
        resume(monkeypatch, device, content)
        return f"{2:032x}"

    return run


def test_restored(device: Path, tried: Callable[[str], str]) -> None:
    image = tried("")
    back = taking.take(device, SHOP)
    assert (back.restored, back.id, back.slot, back.size) == (True, image, 2, 0)
    assert back.warnings == ("told after_restored",)
    slots = slots_of(device)
    assert (slots[2].state, slots[2].attempts, listing(device).table.session) == ("complete", 0, "running")
    assert {slot.application for slot in slots.values()} == {"first", "shop", "later"}
    assert all(whole(device, slot) for slot in slots.values())


def test_restored_from_an_image_with_another_id(device: Path, tried: Callable[[str], str]) -> None:
    """It has been put into a store, and was staged from there: it is the one that is armed."""
    tried("f" * 32)
    back = taking.take(device, SHOP)
    assert back.restored and back.slot == 2 and len(back.warnings) == 1
    assert (slots_of(device)[2].state, slots_of(device)[2].attempts) == ("complete", 0)


def test_restored_on_a_device_that_has_changed(device: Path, tried: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is there: what cannot be noted is a warning."""
    tried("")
    damaged = bytearray(device.read_bytes())
    with monkeypatch.context() as patched:
        for at in COPIES:
            damaged[at + 600] ^= 1
        resume(patched, device, bytes(damaged))
        back = taking.take(device, SHOP)
        assert back.restored and "both copies of its table of slots are damaged" in back.warnings[0]
    device.write_bytes(bytes(SIZE))
    create(device)
    resume(monkeypatch, device, device.read_bytes())
    back = taking.take(device, SHOP)
    assert back.restored and "has no slot with the image that was resumed" in back.warnings[0]
    assert listing(device).table.session == "running"


# what cannot be --------------------------------------------------------------------------------------------------------------


def test_options_that_do_not_fit_the_device(device: Path, tmp_path: Path) -> None:
    before = device.read_bytes()
    for wrong in (Wishes(arm=True), Wishes(rearm=True)):
        with pytest.raises(Refused, match="has slots, none of which is armed while the system runs"):
            taking.take(device, wrong)
    assert device.read_bytes() == before
    device.write_bytes(bytes(SIZE))
    for wrong in (Wishes(golden=True), Wishes(keep=1)):
        with pytest.raises(Refused, match="has no slots"):
            taking.take(device, wrong)
    assert not any(device.read_bytes())
    create(device, page_size=16384)
    with pytest.raises(Refused, match="has blocks of 16384 bytes, and this machine has pages of 4096"):
        taking.take(device)
    create(tmp_path_file(tmp_path))
    with pytest.raises(UsageError, match="not a block device"):
        taking.take(tmp_path / "file")
    with pytest.raises(NotFound):
        taking.take(tmp_path / "none")


def tmp_path_file(directory: Path) -> Path:
    path = directory / "file"
    path.write_bytes(bytes(SIZE))
    return path


def test_the_service_takes_them_too(device: Path) -> None:
    policy = parse({"device": str(device), "keep": 1, "applications": {"shop": {}}})
    made = [server.take_as(policy, policy.wishes("shop", event)) for event in ("one", "two")]
    assert [(slot.number, slot.event) for slot in slots_of(device).values()] == [(made[1].slot, "two")]
    device.write_bytes(bytes(SIZE))
    assert [server.take_as(policy, policy.wishes("shop", "")).slot for _number in range(2)] == [None] * 2


class Noted:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare(self) -> None:
        self.calls += ["prepare", *Kernel.calls]

    def record(self) -> dict[str, str]:
        self.calls += ["record", *Kernel.calls]
        return {"guard.0": "1-2 0+4096 ff", "kernel": "another"}

    def close(self) -> None:
        self.calls += ["close"]


def test_the_guard_notes_while_the_filesystems_stand_still(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Noted()
    Kernel.calls = []
    monkeypatch.setattr(taking, "Guard", lambda: guard)
    taking.take(device, SHOP)
    assert guard.calls == ["prepare", "record", "freeze", "close"]
    tags = {"guard.0": "1-2 0+4096 ff", "kernel": "another", "memory": Machine().memory_tag}
    assert slots_of(device)[1].tags == {**tags, "crc32": slots_of(device)[1].tags["crc32"]}


@pytest.mark.parametrize(("fails", "after"), [("", "after_created"), ("read", "after_failed")])
def test_what_is_called_before_and_after(device: Path, monkeypatch: pytest.MonkeyPatch, fails: str, after: str) -> None:
    """First of all, and last of all; the slot is known in the end, and a hook that refuses is the end."""
    Kernel.calls = []
    monkeypatch.setattr(Kernel, "fails", fails)
    with contextlib.suppress(StoreError):
        made = taking.take(device, replace(SHOP, golden=True))
        assert made.warnings == ("told after_created",)
    (first, before, none), (last, context, done) = Around.calls
    assert (first, before.slot, none) == ("before_snapshot", None, 0) and (last, context.slot) == (after, 1)
    assert (context.application, context.event, context.golden, context.image) == ("shop", "ready", True, slots_of(device)[1].image)
    assert done == len(Kernel.calls) and Kernel.calls[-1] == "close" and context.device == stable_name(device)

    def refuses(context: Any) -> None:
        raise Refused("hook", "no.")

    monkeypatch.setattr(restored, "before_snapshot", refuses)
    with pytest.raises(Refused, match="hook"):
        taking.take(device, SHOP)
    assert len(Around.calls) == 2 and len(slots_of(device)) == 1
