# SPDX-License-Identifier: GPL-3.0-or-later
"""Swap files made, kept, enlarged and removed on real filesystems. Only swapon and swapoff are not run: the machine keeps its swap."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import (
    claims,
    extents,
    file_area,
    fstab,
    headers,
    target,
)
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.swap.mounted import (
    KINDS,
    MIB,
    mounted,
    nocow,
    possible,
    real_host,
)

PAGE = os.sysconf("SC_PAGE_SIZE")
UUID = "6f1c1e1e-9d4b-8a57-9f0e-2f6d0a6f2b11"
OTHER = "0b7b6c2e-5a0d-4e8f-8a7e-8c1f6a2d9e34"
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
SIZE = 40 * MIB


class Machine:
    """A machine with an empty filesystem, and swap areas of its own."""

    def __init__(self, kind: str, place: Path, device: str) -> None:
        self.kind, self.place, self.device = kind, place, device
        self.path = str(place / "swapfile")
        self.active: dict[str, int] = {}
        self.fails: set[str] = set()
        self.calls: list[str] = []
        self.host = _Host(self)

    def swaps(self) -> str:
        lines = ["%s file %d 0 %d\n" % (path, os.stat(path).st_size // 1024 - 4, priority) for path, priority in self.active.items()]
        return SWAPS + "".join(lines)

    def present(self, check: bool = False, **options: Any) -> tuple[bool, dict[str, Any]]:
        with Transaction(self.host, check) as tx:
            result = file_area.present(tx, **{"path": self.path, "size": SIZE, "uuid": UUID, **options})
        return tx.changed, result

    def absent(self, check: bool = False, **options: Any) -> tuple[bool, dict[str, Any]]:
        with Transaction(self.host, check) as tx:
            result = file_area.absent(tx, **{"path": self.path, "uuid": UUID, **options})
        return tx.changed, result

    def refused(self, verb: str = "present", **options: Any) -> str:
        with pytest.raises(Refused) as caught:
            getattr(self, verb)(**options)
        assert caught.value.message and caught.value.remedy
        return str(caught.value.code)

    def header(self) -> Any:
        return target.find(self.host, self.path).header(self.host)

    def on_device(self, content: bytes, at: int) -> None:
        """What the kernel writes when it hibernates: past the filesystem."""
        with open(self.device, "r+b") as file:
            file.seek(target.find(self.host, self.path).offset * PAGE + at)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def hibernated(self) -> None:
        self.active.clear()
        self.on_device(struct.pack("=QI10s", 16384, 4, b"SWAPSPACE2") + b"S1SUSPEND\0", PAGE - 32)


class _Host(Host):
    """This machine, whose swapon and swapoff only keep a list."""

    def __init__(self, machine: Machine) -> None:
        real = real_host()
        super().__init__(self._command)
        self._real, self._machine = real._run, machine

    def read(self, path: str, default: Any = None) -> Any:
        return self._machine.swaps() if path == "/proc/swaps" else super().read(path, default)

    def _command(self, argv: Sequence[str], data: str | None) -> tuple[int, str, str]:
        machine, name = self._machine, os.path.basename(argv[0])
        machine.calls.append(" ".join([name, *argv[1:]]))
        if name in machine.fails:
            return 1, "", "made to fail"
        if name == "swapon":
            machine.active[argv[-1]] = int(argv[2]) if argv[1] == "-p" else -2
        elif name == "swapoff":
            del machine.active[argv[-1]]
        else:
            done: tuple[int, str, str] = self._real(argv, data)
            return done
        return 0, "", ""


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    if not possible(request.param):
        pytest.skip("needs root and %s" % request.param)
    monkeypatch.setattr(claims, "ephemeral", lambda host, block: [])  # a loop device is one
    with mounted(tmp_path, request.param) as (place, device):
        yield Machine(request.param, place, device)


def test_from_nothing_to_a_swap_file_and_back(machine: Machine) -> None:
    before = os.listdir(machine.place)
    changed, result = machine.present()
    assert changed
    found = target.find(machine.host, machine.path)
    assert result == {
        "path": machine.path, "block_device": machine.device, "offset": found.offset, "uuid": UUID, "label": "SWAP_FILE",
        "size": SIZE - PAGE, "active": True, "priority": 10, "signature": None, "warnings": [],
    }  # fmt: skip
    status = os.stat(machine.path)
    assert (stat.S_IMODE(status.st_mode), status.st_size, status.st_nlink) == (0o600, SIZE, 1)
    assert machine.header().uuid == UUID and machine.active == {machine.path: 10}
    assert sorted(os.listdir(machine.place)) == sorted([*before, "swapfile"])
    machine.calls.clear()
    assert machine.present() == (False, dict(result, signature="swap"))
    assert machine.calls == []
    assert machine.absent()[0]
    assert os.listdir(machine.place) == before and machine.active == {}
    assert not machine.absent()[0]


def test_check_mode_writes_nothing(machine: Machine) -> None:
    before = os.listdir(machine.place)
    changed, result = machine.present(check=True)
    assert changed and result["offset"] is None and result["priority"] == 10
    assert os.listdir(machine.place) == before and machine.calls == []


def test_a_file_that_is_too_small_is_enlarged_at_its_end(machine: Machine) -> None:
    _changed, small = machine.present()
    _changed, large = machine.present(size="60M")
    assert (large["size"], large["offset"]) == (60 * MIB - PAGE, small["offset"])
    assert machine.header().last_page == 60 * MIB // PAGE - 1 and machine.active == {machine.path: 10}
    assert not machine.present(size=SIZE)[0], "a larger one is kept"


def test_what_is_no_swap_area_is_never_touched(machine: Machine) -> None:
    path = Path(machine.path)
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    if machine.kind == "btrfs":
        nocow(handle)
    os.write(handle, b"letters to a friend".ljust(SIZE, b"."))
    os.close(handle)
    for force in (False, True):
        assert machine.refused(force=force) == "not_swap"
        assert not machine.absent(force=force)[0]
    assert path.read_bytes() == b"letters to a friend".ljust(SIZE, b".")


def test_an_image_is_kept(machine: Machine) -> None:
    machine.present()
    machine.hibernated()
    assert machine.refused() == "image_pending" == machine.refused("absent")
    assert "swap_file with force=true" in headers.image_pending(machine.path).remedy
    assert machine.header().type == "swsuspend"
    machine.present(force=True)
    assert machine.header().type == "swap"
    machine.hibernated()
    assert machine.absent(force=True)[0] and not os.path.exists(machine.path)


def test_another_uuid_or_label_is_written_without_formatting(machine: Machine) -> None:
    machine.present()
    machine.calls.clear()
    _changed, result = machine.present(uuid=OTHER, label="SECOND")
    assert (machine.header().uuid, machine.header().label, result["priority"]) == (OTHER, "SECOND", 10)
    assert not [call for call in machine.calls if call.startswith("mkswap")]
    assert machine.refused("absent") == "not_ours"
    assert machine.absent(uuid=OTHER)[0]


def test_a_file_that_others_can_read_is_made_private(machine: Machine) -> None:
    machine.present()
    os.chmod(machine.path, 0o644)
    assert machine.present()[0]
    assert stat.S_IMODE(os.stat(machine.path).st_mode) == 0o600


@pytest.mark.parametrize("command", ["mkswap", "swapon"])
def test_nothing_is_left_of_a_file_that_could_not_be_made(machine: Machine, command: str) -> None:
    before = os.listdir(machine.place)
    machine.fails.add(command)
    assert machine.refused() == "command_failed"
    assert os.listdir(machine.place) == before


def test_a_file_that_could_not_be_enlarged_is_as_before(machine: Machine) -> None:
    _changed, small = machine.present()
    machine.fails.add("mkswap")
    assert machine.refused(size="60M") == "command_failed"
    machine.fails.clear()
    assert os.stat(machine.path).st_size == SIZE and machine.active == {machine.path: 10}
    assert machine.present() == (False, dict(small, signature="swap"))


def test_what_an_interrupted_run_left_is_made_again(machine: Machine) -> None:
    left = machine.place / ".swapfile.nvm-fastboot-new"
    left.write_bytes(b"half")
    machine.present()
    assert not left.exists()


def test_no_space(machine: Machine) -> None:
    assert machine.refused(size="1G") == "no_space"
    assert not os.path.exists(machine.path)


def test_a_file_that_the_kernel_cannot_use_is_removed_and_made_again(machine: Machine) -> None:
    machine.present(active=False)
    content = Path(machine.path).read_bytes()[:PAGE]
    os.unlink(machine.path)
    with open(machine.path, "wb") as file:
        file.write(content)
        file.truncate(SIZE)
    os.chmod(machine.path, 0o600)
    assert machine.refused() == "swap_file_unusable"
    assert machine.absent()[0]
    assert machine.present()[0]


def test_the_wrong_paths(machine: Machine) -> None:
    for path in ("swapfile", "/dev/shm/swapfile", "/", machine.path + "/../swapfile"):
        assert machine.refused(path=path) == "swap_file_invalid"
    assert machine.refused(path=str(machine.place / "none" / "swapfile")) == "swap_file_invalid"
    os.symlink("elsewhere", machine.path)
    assert machine.refused() == "swap_file_invalid"
    assert machine.refused(path="/proc/swapfile") == "filesystem_unsupported"
    assert machine.refused(size="4k", path=str(machine.place / "small")) == "size_invalid"


def test_its_line_in_fstab(machine: Machine) -> None:
    machine.present()
    table = machine.place / "fstab"
    table.write_text("UUID=%s / ext4 defaults 0 1\nUUID=%s none swap sw 0 0\n" % (OTHER, UUID))
    before = table.read_text()
    for expected in (True, False):
        with Transaction(machine.host) as tx:
            line = fstab.present(tx, machine.path, path=str(table))["line"]
        assert line == "%s swap swap defaults,nofail,pri=10 0 0" % machine.path
        assert tx.changed is expected
    assert table.read_text() == before.splitlines()[0] + "\n" + line + "\n", "a UUID would not lead to a file"
    with Transaction(machine.host) as tx:
        fstab.absent(tx, machine.path, path=str(table))
    assert table.read_text() == before.splitlines()[0] + "\n"
    with pytest.raises(Refused) as caught, Transaction(machine.host) as tx:
        fstab.present(tx, str(machine.place / "none"), path=str(table))
    assert caught.value.code == "not_swap" and "swap_file" in caught.value.remedy


def test_btrfs_does_not_copy_it_on_write(machine: Machine) -> None:
    if machine.kind != "btrfs":
        pytest.skip("of btrfs")
    machine.present()
    with open(machine.path, "rb") as file:
        found = extents.of_file(file.fileno(), "btrfs", SIZE, PAGE)
    with open(machine.path, "r+b") as file:
        file.seek(10 * MIB)
        file.write(b"x" * MIB)
        os.fsync(file.fileno())
        assert extents.of_file(file.fileno(), "btrfs", SIZE, PAGE) == found
