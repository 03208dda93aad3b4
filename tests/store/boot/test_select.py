# SPDX-License-Identifier: GPL-3.0-or-later
"""The scripts of the initramfs: which slot is resumed after what, what is passed over and why, and what is on the device after a power cut
at any write."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuse_store.formats import checksums
from fuse_store.formats.checksums import Checksums
from fuse_store.formats.swsusp import layout as swsusp
from fuse_store.hibernation.machine import Machine
from fuse_store.hibernation.slots.layout import COPIES, COPY_SIZE, SECTOR
from fuse_store.hibernation.slots.text import framed, pack, unpack
from tests.store.boot.stand import KERNEL, NEW, NONE, PAGE, SCRIPTS, SHELLS, Stand
from tests.store.conftest import loop_device

PLAIN = swsusp.SWAP_SIGNATURES[0]


@pytest.fixture(params=SHELLS)
def stand(tmp_path: Path, request: pytest.FixtureRequest) -> Stand:
    return Stand.made(tmp_path, request.param)


def passed(stand: Stand, words: str = "") -> str:
    """Why the one slot there is not resumed."""
    before = stand.table()
    outcome = stand.boot(words)
    assert outcome.resumed is None and outcome.ended and not stand.armed()
    (line,) = [line for line in outcome.report if line.startswith("passed")]
    assert stand.table().slots == before.slots
    number, reason = line.removeprefix("passed ").split(" ", 1)
    assert f"slot {number} is passed over: {reason}" in outcome.log and "normal boot: " in outcome.log
    return reason


# which one ----------------------------------------------------------------------------------------------------------------


def test_the_newest_is_armed_and_resumed(stand: Stand) -> None:
    stand.add()
    newest = stand.add()
    before = stand.table()
    outcome = stand.boot()
    assert outcome.resumed == newest.header and stand.armed() == [newest.number]
    table = stand.table()
    assert table.slot(newest.number) == replace(newest, state="armed", attempts=1)
    assert (table.session, table.generation) == ("running", before.generation + 1) and None not in stand.copies()
    assert stand.report()[1:4] == [f"kernel {KERNEL}", "event power_loss", f"selected {newest.number} {newest.image}"]
    content = stand.device.read_bytes()
    blocks = b"".join(content[first * PAGE : (first + count) * PAGE] for first, count in newest.extents)
    assert hashlib.sha256(blocks.replace(swsusp.SIGNATURE, PLAIN)).hexdigest() == newest.sha256


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["any|||"], [4, 3, 2, 1]),
        (["application|shop||"], [3, 1]),
        (["application|shop|checkout|", "cold|||", "any|||"], [1]),
        (["golden|||", "application|other||", "application|shop||"], [2, 4, 3, 1]),
        ([f"any|||{NEW + 3}"], [2, 1]),
        ([f"application|shop||{NEW + 3}", "golden|||"], [1, 2]),
        (["cold|||"], []),
        (["application|1.0||"], []),
        ([], []),
    ],
)
def test_rules(tmp_path: Path, rules: list[str], expected: list[int]) -> None:
    """All that a rule means, the newest first, then those of the next rule; each once."""
    stand = Stand.made(tmp_path)
    stand.policy = ["attempts 2", "check 1", *(f"power_loss {rule}" for rule in rules)]
    stand.add(event="checkout")
    stand.add("1", kept="golden")
    stand.add()
    stand.add("other")
    outcome = stand.boot(resumes=False)
    assert outcome.ended and not stand.armed()
    tried = [line.split()[1] for line in outcome.report if line.startswith("passed")]
    assert tried == list(map(str, expected))
    assert {slot.number for slot in stand.table().slots if slot.state == "failed"} == set(expected)
    assert (stand.folder / "root/sys/power/resume").read_text() == ("7:9\n" if expected else "")


def test_what_the_kernel_does_not_resume_has_failed(stand: Stand) -> None:
    """It is tried once, and all of them in turn; the next boot tries none of them."""
    slots = [stand.add(), stand.add()]
    outcome = stand.boot(resumes=False)
    assert outcome.ended and set(stand.signatures().values()) == {PLAIN}
    assert [(slot.state, slot.attempts) for slot in stand.table().slots] == [("failed", 1)] * 2
    assert [f"passed {slot.number} the kernel did not resume it" in stand.report() for slot in slots] == [True] * 2
    assert stand.report()[5] == "normal after power_loss no slot can be resumed"
    assert (stand.folder / "root/sys/power/resume_offset").read_text() == "0\n"
    again = stand.boot()
    assert again.resumed is None and "passed 2 it has failed before" in again.report


# what is not resumed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processors", [0, 1, 3, 40])
def test_parts_are_compared_on_all_processors(stand: Stand, monkeypatch: pytest.MonkeyPatch, processors: int) -> None:
    """In place of the checksum of all, which takes longer; each of them."""
    monkeypatch.setattr(checksums, "PART_SIZE", 65536 + 4096 * 2)  # the first ends in the second extent
    stand.write("proc/cpuinfo", "".join(f"processor\t: {number}\nflags\t\t: fpu\n\n" for number in range(processors)))
    slot = stand.add()
    content = stand.device.read_bytes()
    sums = Checksums()
    for first, count in slot.extents:
        sums.update(content[first * PAGE : (first + count) * PAGE])
    assert sums.sha256 == slot.sha256
    right = replace(slot, sha256="0" * 64, tags={**slot.tags, **sums.tags})
    stand.change(lambda table: table.with_slot(right))
    content = stand.device.read_bytes()
    for first, count in slot.extents:
        for block in (first, first + count - 1):
            torn = bytearray(content)
            torn[block * PAGE + 7] ^= 1
            stand.device.write_bytes(torn)
            assert passed(stand) == "its checksum is wrong", block
    stand.device.write_bytes(content)
    assert stand.boot().resumed == slot.header


def test_checksums_of_parts_that_are_not_usable(stand: Stand) -> None:
    """From the device, so anything may be there."""
    slot = stand.add()
    for value in ("", "x", "65536", f"65535 {'0' * 64}", f"16777216 {'0' * 64}", f"99999999999999999999 {'0' * 64}", "1 2 3", "* *"):
        stand.change(lambda table, value=value: table.with_slot(replace(slot, tags={**slot.tags, "crc32": value})))
        assert passed(stand) == "its checksum is wrong", value


def test_what_is_passed_over(stand: Stand) -> None:
    memory = Machine(stand.folder / "root").memory_tag or ""
    assert memory.startswith("4711 ") and Machine(stand.folder).memory_tag is None
    slot = stand.add(tags={"guard.none": "1", "kernel": KERNEL, "memory": memory})
    cases: dict[str, dict[str, Any]] = {
        "it is not complete": {"state": "writing"},
        "it was tried 2 times, and did not come up": {"attempts": 2},
        "it was made by another kernel": {"tags": {**slot.tags, "kernel": f"{KERNEL} x"}},
        "it was made with other memory": {"tags": {**slot.tags, "memory": memory.replace("4711", "4712")}},
        "it has no checksum": {"sha256": ""},
        "its checksum is wrong": {"sha256": "0" * 64},
        "unsafe: / is writable": {"tags": {**slot.tags, "unsafe": "/ is writable"}},
        "no state of the filesystems was recorded": {"tags": {"kernel": KERNEL}},
    }
    for reason, change in cases.items():
        changed = replace(slot, **change)
        stand.change(lambda table, changed=changed: table.with_slot(changed))
        assert passed(stand) == reason
        assert passed(stand, "fuse_store.slot=1") == reason
        assert "the chosen slot, 1, cannot be resumed" in stand.report()[-1]
    stand.change(lambda table: table.with_slot(slot))
    assert stand.boot().resumed == slot.header


def test_a_damaged_one_leads_to_the_one_before(stand: Stand) -> None:
    older, newest = stand.add(), stand.add()
    stand.damage((newest.extents[1][0] + 2) * PAGE)
    outcome = stand.boot()
    assert outcome.resumed == older.header and stand.armed() == [older.number]
    assert f"passed {newest.number} its checksum is wrong" in stand.report()
    stand.policy[1] = "check 0"
    assert stand.boot().resumed == newest.header


def test_without_a_header(stand: Stand) -> None:
    slot = stand.add()
    stand.sign(slot, bytes(20))
    assert passed(stand) == "no image is there"


def test_guard_of_a_filesystem(stand: Stand) -> None:
    with loop_device(stand.folder / "disk", 4 << 20) as loop:
        uuid = "0f3e1111-2222-4333-8444-555566667777"
        subprocess.run(["mkfs.ext4", "-q", "-U", uuid, loop], check=True)
        content = (stand.folder / "disk").read_bytes()
        sum_ = hashlib.sha256(content[1024:2048] + content[70001:70008]).hexdigest()
        slot = stand.add(tags={"guard.0": f"{uuid} 1024+1024,70001+7 {sum_}"})
        assert stand.boot().resumed == slot.header
        stand.change(lambda table: table.with_slot(slot))
        subprocess.run(["tune2fs", "-L", "changed", loop], check=True, capture_output=True)
        subprocess.run(["blockdev", "--flushbufs", loop], check=True)
        assert passed(stand) == f"the filesystem {uuid} has changed since the snapshot"
    assert passed(stand) == f"the filesystem {uuid} has changed since the snapshot"


def test_guard_of_a_filesystem_without_a_uuid(stand: Stand) -> None:
    """Some device has to have the bytes."""
    content = os.urandom(4 << 20)
    (stand.folder / "disk").write_bytes(content)
    slot = stand.add(tags={"guard.0": f"any 4096+4096,0+3 {hashlib.sha256(content[4096:8192] + content[:3]).hexdigest()}"})
    assert passed(stand) == "the filesystem any has changed since the snapshot"
    with loop_device(stand.folder / "disk", 4 << 20) as loop:
        stand.write(f"sys/class/block/{loop.name}/dev", "7:1")
        assert stand.boot().resumed == slot.header


@pytest.mark.parametrize(
    "guard",
    ["", f"/etc/passwd 0+1 {'0' * 64}", "a-b 0+1", f"a-b * {'0' * 64}", f"any 0+281474976710655 {'0' * 64}", "$(reboot) 1+1 x", "a b c d"],
)
def test_guards_of_any_kind(tmp_path: Path, guard: str) -> None:
    stand = Stand.made(tmp_path)
    stand.add(tags={"guard.0": guard})
    assert "filesystem" in passed(stand)


# what happened ------------------------------------------------------------------------------------------------------------


def event(stand: Stand, words: str = "") -> str:
    stand.boot(words)
    (line,) = [line for line in stand.report() if line.startswith("event")]
    return line.removeprefix("event ")


def test_events(stand: Stand) -> None:
    stand.policy = []
    assert event(stand) == "power_loss"
    for session, expected in (("ended", "shutdown"), ("unknown", "unknown"), ("running", "power_loss")):
        stand.change(lambda table, session=session: replace(table, session=session))
        assert event(stand) == expected and stand.table().session == "running"
    stand.write("sys/class/watchdog/watchdog0/bootstatus", "0\n")
    stand.write("sys/class/watchdog/watchdog1/bootstatus", "nonsense\n")
    assert event(stand) == "power_loss"
    stand.write("sys/class/watchdog/watchdog0/bootstatus", "32\n")
    assert event(stand) == "watchdog"
    stand.change(lambda table: replace(table, session="ended"))
    assert event(stand) == "shutdown"
    stand.write("sys/class/watchdog/watchdog0/bootstatus", "0\n")
    stand.write("sys/fs/pstore/dmesg-erst-1", "Oops#1 Part1\n<4>it went on\n")
    assert event(stand) == "power_loss"
    stand.write("sys/fs/pstore/dmesg-erst-2", "Panic#1 Part1\n<0>Kernel panic\n")
    stand.write("sys/fs/pstore/console-ramoops-0", "Panic#\n")
    assert event(stand) == "panic"
    assert event(stand) == "power_loss", "a record that the last boot has seen is no news"
    stand.write("sys/fs/pstore/dmesg-erst-2", "Panic#2 Part1\n<0>another one in the same place\n")
    assert event(stand) == "panic"
    stand.write("sys/fs/pstore/dmesg-ramoops-0.enc.z", b"\0" * 100)
    assert event(stand) == "panic"
    stand.change(lambda table: replace(table, session="ended"))
    stand.write("sys/fs/pstore/dmesg-erst-3", "Panic#1 Part1\n")
    assert event(stand) == "shutdown"
    assert sum(line.startswith("record dmesg-") for line in stand.report()) == 4


def test_events_have_rules_of_their_own(stand: Stand) -> None:
    stand.policy = ["attempts 9", "shutdown cold|||", "power_loss any|||", "panic application|other||"]
    first, other = stand.add(), stand.add("other")
    assert stand.boot().resumed == other.header
    stand.change(lambda table: replace(table, session="ended"))
    assert stand.boot().resumed is None
    assert stand.report()[-1] == "normal after shutdown no slot is to be resumed"
    stand.write("sys/fs/pstore/dmesg-erst-2", "Panic#1 Part1\n")
    assert stand.boot().resumed == other.header
    assert stand.boot("fuse_store.boot=power_loss").resumed == other.header
    assert stand.boot(f"fuse_store.slot={first.number}").resumed == first.header


# chosen -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fuse_store.slot=1", 1), ("fuse_store.slot=1 fuse_store.boot=cold", 1), ("fuse_store.boot=cold", None),
        ("fuse_store.boot=newest", 2), ("fuse_store.slot=3", None), ("fuse_store.slot=*", None), ("fuse_store.slot=01", None),
        ("fuse_store.slot=99999999999999999999", None), ("fuse_store.boot=powerloss", None), ("fuse_store.boot=$(reboot)", None),
        ("noresume", None), ("fuse_store.boot=shutdown", None),
    ],
)  # fmt: skip
def test_command_line(stand: Stand, words: str, expected: int | None) -> None:
    slots = {slot.number: slot for slot in (stand.add(), stand.add())}
    outcome = stand.boot(words)
    assert outcome.resumed == (slots[expected].header if expected else None), outcome
    if expected is None:
        assert outcome.ended and outcome.report[-1].startswith("normal ") and len(outcome.report[-1]) > 15


def test_asked(stand: Stand) -> None:
    """The user may have a slot tried again that has failed; without an answer the policy counts."""
    failed = stand.add(state="failed", attempts=9)
    stand.add()
    assert stand.boot("fuse_store.boot=ask", answer=f"{failed.number}\n").resumed == failed.header
    assert stand.boot("fuse_store.boot=ask", answer="0\n").report[-1] == "normal a normal boot was chosen"
    assert stand.boot("fuse_store.boot=ask", answer="7\n").report[-1] == "normal there is no slot of the chosen number"
    assert stand.boot("fuse_store.boot=ask", answer="$(reboot)\n").resumed is None
    assert "within 1 seconds" in (stand.folder / "console").read_text()


def test_no_answer(stand: Stand) -> None:
    newest = stand.add()
    outcome = stand.boot("fuse_store.boot=ask", answer="\n")
    assert outcome.resumed == newest.header and "no answer" in outcome.log


def test_chosen_for_this_boot_alone(stand: Stand) -> None:
    older, newest = stand.add(), stand.add()

    def choose(text: str) -> None:
        with open(stand.device, "r+b") as file:
            file.seek(831 << 10)
            file.write(framed("fuse-store-boot-next 1", text.encode(), 1024))

    choose(f"slot {older.number} {older.image}\n")
    assert stand.boot().resumed == older.header
    assert not any(stand.device.read_bytes()[831 << 10 : 832 << 10])
    assert stand.boot().resumed == newest.header
    choose("cold\n")
    assert stand.boot().report[-1] == "normal a normal boot was chosen"
    choose(f"slot {older.number} {newest.image}\n")
    assert stand.boot().report[-1] == "normal the slot that was chosen for this boot has another image now"
    for nonsense in ("slot", "slot * x", f"slot 64 {newest.image}", "$(reboot)", "\n\n"):
        choose(nonsense)
        assert stand.boot().ended or stand.armed() == [newest.number]


# what keeps it from looking -----------------------------------------------------------------------------------------------


def test_a_machine_that_was_hibernated(stand: Stand) -> None:
    """Its own image is newer than all slots; nothing is written."""
    stand.add()
    image = stand.folder / "swap"
    image.write_bytes(bytes(3 * PAGE - 10) + swsusp.SIGNATURE)
    with loop_device(image, 3 * PAGE) as loop:
        before = stand.device.read_bytes()
        outcome = stand.boot(f"resume={loop} resume_offset=2")
        assert outcome.resumed is None and outcome.report[-2:] == ["event hibernated", "normal the machine was hibernated"]
        assert stand.device.read_bytes() == before
        assert stand.boot(f"resume={loop} resume_offset=1").resumed is not None


def test_a_machine_that_systemd_hibernated(stand: Stand) -> None:
    """What it says of the image among the EFI variables counts as long as the image is there, or cannot be looked at."""
    stand.add()
    variable = "sys/firmware/efi/efivars/HibernateLocation-8cf2644b-4b0b-428f-9387-6d876050dc67"
    uuid = "0e4efc0b-2f4f-4a39-b2a4-6a5bd9ec3f7e"
    said = f'{{"uuid":"{uuid}","offset":2,"kernelVersion":"6.12.48","osReleaseId":"debian"}}'
    for text in ("x", said, said.replace("2,", '"2",')):
        stand.write(variable, b"\7\0\0\0" + text.encode("utf-16-le"))
        assert stand.boot().report[-1] == "normal the machine was hibernated", text
    stand.write(variable, b"\7\0\0\0" + said.encode("utf-16-le"))
    stand.write(f"dev/disk/by-uuid/{uuid}", bytes(3 * PAGE - 10) + swsusp.SIGNATURE)
    assert stand.boot().resumed is None
    stand.write(f"dev/disk/by-uuid/{uuid}", bytes(3 * PAGE - 10) + b"SWAPSPACE2")
    assert stand.boot().resumed is not None


def test_a_kernel_that_may_not_resume(stand: Stand) -> None:
    stand.add()
    stand.write("sys/power/disk", "[disabled]\n")
    assert stand.boot().report[-1] == "normal this kernel may not resume"
    assert stand.table().slots[0].state == "complete"


def test_no_device_and_no_policy(stand: Stand) -> None:
    (stand.device).rename(stand.folder / "elsewhere")
    assert "did not appear within 0 seconds" in stand.boot().log
    stand.device.mkdir()
    assert "did not appear" in stand.boot().log
    stand.device.rmdir()
    stand.policy = NONE
    assert stand.boot().report[-1] == "normal there is no policy"


# damage -------------------------------------------------------------------------------------------------------------------


def test_copies(stand: Stand) -> None:
    """One is enough; with none, nothing is done."""
    slot = stand.add()
    copy = max(range(2), key=lambda index: stand.copies()[index].generation)  # type: ignore[union-attr]
    stand.damage(COPIES[1 - copy] + 700)
    assert stand.boot().resumed == slot.header and None not in stand.copies()
    copy = max(range(2), key=lambda index: stand.copies()[index].generation)  # type: ignore[union-attr]
    stand.damage(COPIES[copy] + 700)
    assert stand.boot().resumed == slot.header
    for at in COPIES:
        stand.damage(at + 20)
    before = stand.device.read_bytes()
    outcome = stand.boot()
    assert outcome.resumed is None and outcome.report[-1] == f"normal the device {stand.device} has no valid table of slots"
    assert stand.device.read_bytes() == before


def test_a_smaller_device(stand: Stand) -> None:
    stand.add()
    os.truncate(stand.device, (8 << 20) - PAGE)
    assert stand.boot().report[-1].endswith("has no valid table of slots")


def test_left_armed(stand: Stand) -> None:
    """Signatures that are left are taken away, also in part, whatever is selected; the table says what has become of the slots."""
    slots = [stand.add(state="armed"), stand.add(state="armed"), stand.add(), stand.add(state="armed")]
    stand.sign(slots[0], swsusp.SIGNATURE)
    stand.sign(slots[2], swsusp.SIGNATURE)
    stand.sign(slots[3], b"S1SUSPACE2")
    stand.boot("noresume")
    assert stand.armed() == [1, 3], "a rescue system is to leave them"
    stand.boot("fuse_store.boot=cold")
    assert set(stand.signatures().values()) == {PLAIN}
    assert [slot.state for slot in stand.table().slots] == ["complete", "used", "complete", "used"]
    stand.change(lambda table: table.with_slot(slots[0]).with_slot(slots[1]))
    stand.sign(slots[0], swsusp.SIGNATURE)
    assert stand.boot("fuse_store.slot=2").resumed == slots[1].header and stand.armed() == [2]
    assert [slot.state for slot in stand.table().slots] == ["complete", "armed", "complete", "used"]


@pytest.mark.long
@pytest.mark.parametrize("how", ["before", "torn", "after"])
@pytest.mark.parametrize("resumes", [True, False])
def test_power_cut_at_each_write(tmp_path: Path, how: str, resumes: bool) -> None:
    """Never two armed slots, always a valid table; and after it, the machine comes up with one of the images, or normally."""
    cut = 0
    while True:
        cut += 1
        folder = tmp_path / str(cut)
        folder.mkdir()
        stand = Stand.made(folder)
        left = stand.add(state="armed")
        stand.sign(left, swsusp.SIGNATURE)
        stand.add()
        stand.add(sha256="0" * 64)
        stand.change(lambda table: replace(table, session="ended"))
        stand.policy = ["attempts 2", "check 1", "shutdown any|||", "power_loss any|||"]
        outcome = stand.boot(resumes=resumes, cut=(cut, how))
        assert len(stand.armed()) <= 1 and len([one for one in stand.table().slots if one.state == "armed"]) <= 1
        if outcome.ended or outcome.resumed:
            assert cut > stand.writes() >= 4
            return
        (folder / "bin/dd").unlink()
        (folder / "bin/dd").symlink_to(SHELLS["busybox"][0])
        again = stand.boot()
        headers = {slot.header for slot in stand.table().slots if slot.number < 3}
        failed = all(slot.state == "failed" for slot in stand.table().slots if slot.number < 3)
        assert again.resumed in headers or (failed and again.ended), (cut, how, again)
        assert len(stand.armed()) == (again.resumed is not None) and None not in stand.copies()


# tables of any kind -------------------------------------------------------------------------------------------------------


def changed(body: bytes, chance: random.Random) -> bytes:
    """Text with some bytes, words or lines that are others."""
    result = bytearray(body)
    for _change in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(result))
        kind = chance.randrange(6)
        if kind == 0:
            result[at] = chance.randrange(256)
        elif kind == 1:
            result[at] = chance.choice(b"0123456789 abcdefSs+%\n|$`;*")
        elif kind == 2:
            del result[at : at + chance.choice((1, 2, 20))]
        elif kind == 3:
            result[at:at] = chance.choice((b"0", b" ", b"\n", b"\n\n", b"9" * 20, b"%41", b"%0A", b"$(reboot)", b"-1", b"*"))
        elif kind == 4:
            lines = bytes(result).split(b"\n")
            lines.insert(chance.randrange(len(lines)), chance.choice(lines))
            result = bytearray(b"\n".join(lines))
        else:
            lines = bytes(result).split(b"\n")
            one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
            lines[one], lines[other] = lines[other], lines[one]
            result = bytearray(b"\n".join(lines))
        result = result or bytearray(b"\n")
    return bytes(result)


def tables_of_any_kind(stand: Stand, count: int) -> Iterator[bytes]:
    """Copies of a table that is changed, with the right checksum."""
    table = stand.table()
    body = pack(table)[SECTOR:].rstrip(b"\n") + b"\n"
    chance = random.Random(14)
    for _index in range(count):
        yield framed("fuse-store-slots 1", changed(body, chance), COPY_SIZE)


@pytest.mark.long
def test_shell_and_python_agree_about_tables(stand: Stand) -> None:
    """Of tables that were changed, and given the right checksum, both take the same."""
    stand.add("shop", event="a b", tags={"guard.0": "x y z", "guard.none": "1", "fs.é": "50 %|\n"})
    stand.add("other")
    script = ". $LIB/table.sh; if copy_read 512 found; then echo valid; else echo wrong; fi"
    environment = {"PATH": str(stand.folder / "bin"), "LIB": str(SCRIPTS), "DEVICE": str(stand.device), "WORK": str(stand.folder)}
    valid = 0
    for content in [pack(stand.table()), *tables_of_any_kind(stand, 150)]:
        with open(stand.device, "r+b") as file:
            file.seek(COPIES[0])
            file.write(content.ljust(COPY_SIZE, b"\0"))
        try:
            unpack(content)
            expected = "valid\n"
        except ValueError:
            expected = "wrong\n"
        done = subprocess.run([*SHELLS[stand.shell], "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60)
        assert (done.stdout, done.stderr) == (expected, ""), content.decode("latin1").strip()
        valid += expected == "valid\n"
    assert 3 < valid < 100


@pytest.mark.long
def test_bytes_of_any_kind_on_the_device(stand: Stand) -> None:
    """Damage anywhere in both copies: nothing is armed, nothing is written."""
    stand.add()
    content = bytearray(pack(stand.table()))
    chance = random.Random(14)
    for turn in range(40):
        copy = bytearray(content)
        for _change in range(chance.choice((1, 1, 3, 50))):
            copy[chance.choice((chance.randrange(len(copy)), chance.randrange(100)))] ^= 1 << chance.randrange(8)
        if turn % 8 == 0:
            copy = bytearray(chance.randbytes(COPY_SIZE))
        if turn % 8 == 1:
            copy = bytearray(b"fuse-store-slots 1 511 " + b"0" * 2000)
        with open(stand.device, "r+b") as file:
            for at in COPIES:
                file.seek(at)
                file.write(copy.ljust(COPY_SIZE, b"\n"))
        before = stand.device.read_bytes()
        outcome = stand.boot()
        assert outcome.ended and stand.device.read_bytes() == before, bytes(copy[:600])


def test_shell_reads_what_python_frames(stand: Stand) -> None:
    """And no text that is longer than its place."""
    script = '. $LIB/table.sh; frame_read "$REPORT" "$REPORT_AT" "$REPORT_SECTORS" "$WORK/found" && cat "$WORK/found"'
    environment = {"PATH": str(stand.folder / "bin"), "LIB": str(SCRIPTS), "DEVICE": str(stand.device), "WORK": str(stand.folder)}
    for size, fits in ((10, True), (125 * 512, True), (125 * 512 + 1, False)):
        with open(stand.device, "r+b") as file:
            file.seek(768 << 10)
            file.write(framed("fuse-store-boot 1", b"x" * size, 1 << 20))
        done = subprocess.run([*SHELLS[stand.shell], "-c", script], env=environment, capture_output=True, check=False)
        assert (done.stdout.rstrip(b"\n") == b"x" * size) == fits and (done.returncode == 0) == fits
