# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots in slots go into a store, once, verified, and come back; whatever stops a put, it can be run again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuse_store.cli import main
from fuse_store.errors import Damaged, NotFound, Refused, UsageError
from fuse_store.formats.swsusp import HibernationImage, layout
from fuse_store.formats.swsusp.placement import Placement
from fuse_store.hibernation.slots import put as putting
from fuse_store.hibernation.slots.arm import arm
from fuse_store.hibernation.slots.manage import Slots, create, listing, remove
from fuse_store.hibernation.slots.put import put, waiting
from fuse_store.hibernation.slots.stage import Wishes, stage
from fuse_store.hibernation.stage import stage as stage_device
from fuse_store.hibernation.swap_device import stable_name
from fuse_store.repository import atomic
from fuse_store.snapshot.service import upload
from fuse_store.store import Store
from tests.fuzz.swsusp_encoder import decode
from tests.store.conftest import fork, loop_device, wait
from tests.store.hibernation.cases import SIZE, Case, blank, make_case
from tests.store.hibernation.slots.test_slots import FORCE as UNKNOWN
from tests.store.hibernation.slots.test_slots import NOWHERE, content_of, slots_of, stream_at
from tests.store.hibernation.test_stage import needs_root

LZO, PLAIN = 0, 1
FORCE = (*UNKNOWN, "filesystems_changed")  # the machine is another one
GUARDS = {"guard.0": f"2f0c-11 0+512,1024+512 {'a' * 64}", "kernel": "6.12.9 #1 SMP a/b", "fs.source": "machine"}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("put") / "case")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", durability="none", key_file=tmp_path / "key")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = blank(tmp_path / "device", 3 * SIZE)
    create(path)
    return path


@pytest.fixture
def disk(device: Path) -> Iterator[Path]:
    """The same as a block device: it can be read while another has it for itself."""
    with loop_device(device, 3 * SIZE) as loop:
        yield loop


def snapshot(case: Case, device: Path, index: int = PLAIN, name: str = "5e", event: str = "ready", **values: Any) -> int:
    """A slot as a snapshot of the running system leaves it: the image is in no store."""
    number = stage(case.image(index), device, Wishes(force=True)).slot.number
    with Slots(device) as slots:
        slot = slots.slot(number)
        own: dict[str, Any] = {
            "machine": "web01", "application": "shop", "event": event, "image": name * 16, "content": "", "tags": GUARDS,
            "taken": 1_790_000_000,
        }  # fmt: skip
        slots.save(slots.table.with_slot(replace(slot, **{**own, **values})))
    return number


def changed(device: Path, number: int, **values: Any) -> None:
    with Slots(device) as slots:
        slots.save(slots.table.with_slot(replace(slots.slot(number), **values)))


@pytest.mark.parametrize("index", [PLAIN, LZO])
def test_there_and_back(case: Case, store: Store, device: Path, tmp_path: Path, index: int) -> None:
    number = snapshot(case, device, index)
    before = slots_of(device)[number]
    result = put(store, device, number)
    version = store.find(result.version.id)
    assert result.stored and result.noted and version.verified
    assert (version.machine, version.application, version.event, version.recognised) == ("web01", "shop", "ready", "hibernation")
    assert int(version.taken.timestamp()) == 1_790_000_000
    assert slots_of(device)[number] == replace(before, content=version.content.hex())
    remove(device, number)
    back = stage(store.open_image(version.id), device, Wishes(force=True)).slot
    stream = content_of(case.sources[index])[4]
    assert content_of(device, back.header)[4] == stream
    assert "crc32" not in version.tags, "of the slot, not of the image"
    tags = {**GUARDS, "crc32": back.tags["crc32"]}
    assert (back.image, back.tags, back.taken, back.event) == ("5e" * 16, tags, 1_790_000_000, "ready")
    assert arm(store, device, back.number, NOWHERE, force=FORCE).changed
    whole = blank(tmp_path / "whole")
    stage_device(store.open_image(version.id), whole)
    assert content_of(whole)[4] == stream


def test_a_golden_one_is_golden_again(case: Case, store: Store, device: Path) -> None:
    number = snapshot(case, device, kept="golden")
    version = put(store, device, number).version
    assert store.find(version.id).tags["golden"] == "yes"
    remove(device, number, force=True)
    assert stage(store.open_image(version.id), device, Wishes(force=True)).slot.kept == "golden"


def test_a_store_with_larger_pages(case: Case, device: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "large", durability="none", key_file=tmp_path / "key2", page_size=65536)
    number = snapshot(case, device)
    version = put(store, device, number).version
    with HibernationImage(store.open_image(version.id)) as image:
        assert image.map.read(0, image.map.count).tobytes() == content_of(case.sources[PLAIN])[4]


def test_a_slot_is_armed_after_its_put(case: Case, store: Store, device: Path) -> None:
    """As it is: the version was made of this slot."""
    number = snapshot(case, device)
    put(store, device, number)
    assert arm(store, device, number, NOWHERE, force=FORCE).changed
    assert put(store, device, number).stored is False, "armed, it is the same"


def test_an_armed_slot_is_put(case: Case, store: Store, device: Path) -> None:
    number = snapshot(case, device)
    with Slots(device) as slots:
        slot = slots.slot(number)
        end = (slot.header + 1) * 4096
        slots.device.write(end - 10, b"S1SUSPEND\0")
        slots.device.sync()
    changed(device, number, state="armed")
    version = put(store, device, number).version
    with HibernationImage(store.open_image(version.id)) as image:
        assert image.header.state == "disarmed"


def test_the_version_is_as_long_as_its_swap_area_says(case: Case, store: Store, device: Path) -> None:
    """One that ends with the slot fits on a small device."""
    number = snapshot(case, device)
    blocks = slots_of(device)[number].blocks
    for last, name, size in ((blocks - 1, "6e", blocks), (4999, "8e", 5000), (1 << 31, "7e", 0)):
        with Slots(device) as slots:
            slot = slots.slot(number)
            page = bytearray(slots.device.read(slot.header * 4096, 4096))
            version, _last, *rest = layout.SWAP.unpack_from(page, layout.SWAP_AT)
            layout.SWAP.pack_into(page, layout.SWAP_AT, version, last, *rest)
            slots.device.write(slot.header * 4096, bytes(page))
            slots.device.sync()
            content = b"".join(slots.device.read(begin * 4096, count * 4096) for begin, count in slot.extents)
            slots.save(slots.table.with_slot(replace(slot, content="", image=name * 16, sha256=hashlib.sha256(content).hexdigest())))
        if size:
            assert put(store, device, number).version.size == size * 4096
        else:
            with pytest.raises(Refused, match="truncated"):
                put(store, device, number)


def test_found_by_the_id_of_the_snapshot(case: Case, store: Store, device: Path) -> None:
    version = put(store, device, snapshot(case, device)).version
    assert store.find("5e" * 16).id == store.find("5e" * 5).id == version.id != "5e" * 16
    for missing in ("5e" * 3, "6e" * 16, "6e" * 6):
        with pytest.raises(NotFound):
            store.find(missing)
    put(store, device, snapshot(case, device, LZO, "5e5e5e5e5e5e5e5f", image="5e" * 15 + "5f"))
    assert store.find("5e" * 16).id == version.id
    with pytest.raises(UsageError, match="matches 2 ids of snapshots"):
        store.find("5e" * 8)


def test_the_same_pages_are_stored_once(case: Case, store: Store, device: Path) -> None:
    first = put(store, device, snapshot(case, device)).version
    number = snapshot(case, device, name="6e", event="later")
    with Slots(device) as slots:  # one page of its memory is another
        slot = slots.slot(number)
        last = slot.extents[-1][0] + slot.extents[-1][1] - 1
        slots.device.write(last * 4096, os.urandom(4096))
        slots.device.sync()
        content = b"".join(slots.device.read(begin * 4096, count * 4096) for begin, count in slot.extents)
        slots.save(slots.table.with_slot(replace(slot, sha256=hashlib.sha256(content).hexdigest())))
    second = put(store, device, number).version
    assert second.bases == (first.id,)
    assert first.new > 3_000_000 and second.new <= 3 * 4096, "header, map and one page"


def test_again_nothing_is_stored(case: Case, store: Store, device: Path) -> None:
    number = snapshot(case, device)
    first = put(store, device, number)
    changed(device, number, content="")
    again = put(store, device, number)
    assert (again.version.id, again.stored, again.noted) == (first.version.id, False, True)
    assert len(store.ids()) == 1 and not waiting(listing(device).table)


def test_another_version_with_its_tag_is_not_taken_for_it(case: Case, store: Store, device: Path) -> None:
    """Tags can be given to anything."""
    from fuse_store.store import Label

    store.put(str(case.sources[LZO]), Label("web01", "shop", "hibernation", tags={"snapshot": "5e" * 16}))
    result = put(store, device, snapshot(case, device))
    assert result.stored and len(store.ids()) == 2
    assert slots_of(device)[result.slot.number].content == result.version.content.hex()


def test_a_slot_that_cannot_be_put(case: Case, store: Store, device: Path) -> None:
    number = snapshot(case, device)
    with pytest.raises(NotFound, match="has no slot 9"):
        put(store, device, 9)
    changed(device, number, state="writing")
    with pytest.raises(Refused, match="not complete: writing"):
        put(store, device, number)
    changed(device, number, state="complete")
    with Slots(device) as slots:
        slots.device.write(slots.slot(number).header * 4096 + 40 * 4096, b"x")
        slots.device.sync()
    with pytest.raises(Damaged, match="its content differs from the checksum in the table"):
        put(store, device, number)
    assert not store.ids()


@needs_root
def test_a_slot_that_is_dropped_while_it_is_read(case: Case, store: Store, disk: Path) -> None:
    device = disk
    number = snapshot(case, device)
    seen: list[int] = []

    class Dropping(putting.SlotInput):
        def _read(self, place: Placement, at: int, count: int) -> Iterator[bytes]:
            for part in super()._read(place, at, count):
                if not seen:
                    seen.append(number)
                    remove(device, number)
                    snapshot(case, device, LZO, "9e")
                yield part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(putting, "SlotInput", Dropping)
        with pytest.raises(Refused, match="dropped for another image while it was read"):
            put(store, device, number)
    assert not store.ids()


@needs_root
def test_the_device_is_held_by_a_snapshot(case: Case, store: Store, disk: Path) -> None:
    """It is stored all the same, and the next put notes it."""
    device = disk
    number = snapshot(case, device)
    with Slots(device):
        result = put(store, device, number, busy=0.3)
        assert result.stored and not result.noted
        assert waiting(listing(device).table) == [number]
    again = put(store, device, number)
    assert not again.stored and again.noted


@pytest.mark.parametrize("point", ["commit", "slots put", "slots table", "slots table written", "slots put noted"])
def test_killed_at_each_step(case: Case, store: Store, device: Path, tmp_path: Path, point: str) -> None:
    number = snapshot(case, device)

    def killed() -> None:
        os.environ[atomic.FAULT_POINT] = point
        put(store, device, number)

    assert wait(fork(killed)) == -signal.SIGKILL
    again = put(Store.open(tmp_path / "store", key_file=tmp_path / "key"), device, number)
    assert again.noted and len(store.ids()) == 1
    assert stream_at(device, slots_of(device)[number].header) == decode(case.content(PLAIN))


def test_oldest_first(case: Case, device: Path) -> None:
    first, second = snapshot(case, device), snapshot(case, device, LZO, "6e")
    changed(device, first, staged=99)
    assert waiting(listing(device).table) == [second, first]


# the command line ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Runs a command with --json: (exit code, result, messages)."""
    monkeypatch.setenv("FUSE_STORE", str(store.path))
    monkeypatch.setenv("FUSE_STORE_KEY_FILE", str(tmp_path / "key"))

    def run(*words: object) -> tuple[int, dict[str, Any], str]:
        capfd.readouterr()
        code = main(["--json", *map(str, words)])
        out, err = capfd.readouterr()
        return code, json.loads((out or err).splitlines()[-1]), err

    return run


def test_all_slots(case: Case, device: Path, cli: Callable[..., Any]) -> None:
    snapshot(case, device)
    snapshot(case, device, LZO, "6e")
    code, record, _err = cli("put", device, "--slots")
    assert code == 0 and [(one["slot"], one["stored"], one["noted"]) for one in record["slots"]] == [(1, True, True), (2, True, True)]
    assert cli("put", device, "--slots")[1]["slots"] == []
    code, record, _err = cli("put", device, "--slot", 1)
    assert code == 0 and record["slots"][0]["stored"] is False


def test_one_damaged_slot_does_not_hold_up_others(case: Case, device: Path, cli: Callable[..., Any], store: Store) -> None:
    first, second = snapshot(case, device), snapshot(case, device, LZO, "6e")
    with Slots(device) as slots:
        slots.device.write((slots.slot(first).header + 40) * 4096, b"x")
        slots.device.sync()
    code, record, _err = cli("put", device, "--slots")
    assert code == 4
    assert slots_of(device)[second].content and not slots_of(device)[first].content
    code, record, _err = cli("slots", "verify", device)
    assert code == 4 and [(one["slot"], one["sound"]) for one in record["slots"]] == [(1, False), (2, True)]
    assert cli("slots", "verify", device, "--slot", second)[0] == 0
    assert cli("slots", "verify", device, "--slot", 9)[0] == 3


def test_verify_of_an_armed_slot(case: Case, device: Path, cli: Callable[..., Any]) -> None:
    number = snapshot(case, device)
    with Slots(device) as slots:
        slots.device.write((slots.slot(number).header + 1) * 4096 - 10, b"S1SUSPEND\0")
        slots.device.sync()
    changed(device, number, state="armed")
    assert cli("slots", "verify", device)[0] == 0
    changed(device, number, sha256="", state="writing")
    assert cli("slots", "verify", device)[1]["slots"] == []
    assert cli("slots", "verify", device, "--slot", number)[0] == 5


def test_device_and_store_of_the_policy(
    case: Case, disk: Path, tmp_path: Path, store: Store, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot(case, disk)
    monkeypatch.setattr(upload, "DIRECTORY", tmp_path)
    wanted = tmp_path / upload.WANTED
    monkeypatch.delenv("FUSE_STORE")
    monkeypatch.delenv("FUSE_STORE_KEY_FILE")
    policy = tmp_path / "snapshots.toml"
    policy.write_text(f'device = "{disk}"\n')
    policy.chmod(0o644)
    code, record, err = cli("put", "--slots", "--policy", policy)
    assert code == 2, record
    policy.write_text(f'device = "{disk}"\nstore = "{store.path}"\nkey_file = "{tmp_path / "key"}"\n')
    wanted.touch()
    code, record, err = cli("put", "--slots", "--policy", policy)
    assert code == 0 and len(record["slots"]) == 1, (record, err)
    assert not wanted.exists(), "else systemd would start it again and again"
    policy.write_text(f'device = "{disk}"\nstore = "{tmp_path / "gone"}"\n')
    changed(disk, 1, content="")
    code, record, err = cli("put", "--slots", "--policy", policy)
    assert code == 3 and "gone" in record["error"]["thing"], record
    assert slots_of(disk)[1].state == "complete"


def test_a_restore_is_noted_in_the_store(
    case: Case, disk: Path, tmp_path: Path, store: Store, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the put that follows it; also that of an image which only this put has stored. What is in no store waits."""
    monkeypatch.setattr(upload, "DIRECTORY", tmp_path)
    policy = tmp_path / "snapshots.toml"
    policy.write_text(f'device = "{disk}"\nstore = "{store.path}"\nkey_file = "{tmp_path / "key"}"\n')
    policy.chmod(0o644)
    snapshot(case, disk)
    image = slots_of(disk)[1].image
    other = "0" * 32
    for restored in (image, other, "no id"):
        assert upload.ask(restored) == ""
    assert upload.restored_images() == [image, other]
    for _again in range(2):
        assert cli("put", "--slots", "--policy", policy)[0] == 0
        version = store.find(image)
        entries = [entry for entry in store.state_log.read(version.content).entries if entry["state"] == "resumed"]
        assert [entry["fields"]["device"] for entry in entries] == [f"{stable_name(disk)}#1"]
        assert upload.restored_images() == [other]


def test_options_that_the_table_answers(device: Path, cli: Callable[..., Any]) -> None:
    for words in (["--machine", "m"], ["--tag", "a=b"], ["--size", "1"], ["--replace"], ["--slot", "1"]):
        code, record, _err = cli("put", device, "--slots", *words)
        assert code == 2 and record["error"]["thing"] == words[0], record
    code, record, _err = cli("put", device)
    assert code == 2 and "no machine" in record["error"]["cause"]


def test_the_store_is_full(case: Case, device: Path, store: Store, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the store is told, and the slot stays; the next put succeeds."""
    number = snapshot(case, device)
    before = slots_of(device)

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fuse_store.repository.pack.PackWriter._write", full, raising=True)
        code, record, _err = cli("put", device, "--slots")
    assert code == 1 and "No space left" in record["error"]["cause"], record
    assert slots_of(device) == before
    assert cli("put", device, "--slots")[1]["slots"][0]["slot"] == number


def test_preflight_of_a_slot(case: Case, device: Path, store: Store, cli: Callable[..., Any]) -> None:
    """What arming would refuse, without arming."""
    number, other = snapshot(case, device), snapshot(case, device, LZO, "6e")
    version = put(store, device, number).version
    before = device.read_bytes()
    code, record, _err = cli("preflight", version.id, "--device", device, "--slot", number)
    assert code == 5 and [one["code"] for one in record["refusals"]] == ["machine_unknown", "filesystems_changed"]
    changed(device, number, swap="unknown")
    assert "swap_unknown" in [one["code"] for one in cli("preflight", version.id, "--device", device, "--slot", number)[1]["refusals"]]
    changed(device, number, swap="unused")
    for slot, code in ((other, 5), (9, 3)):
        assert cli("preflight", version.id, "--device", device, "--slot", slot)[0] == code
    assert cli("preflight", version.id, "--slot", number)[0] == 2
    changed(device, number, sha256="", state="writing")
    assert cli("preflight", version.id, "--device", device, "--slot", number)[0] == 5
    assert device.read_bytes()[1 << 20 :] == before[1 << 20 :]
