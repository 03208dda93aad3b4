# SPDX-License-Identifier: GPL-3.0-or-later
"""Stage writes a hibernation image to a device as it was captured, not armed; after any failure the device holds its former
contents, an empty swap area, or the whole image; and data is not overwritten without force."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuse_store.cli import main
from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError
from fuse_store.hibernation import stage as stage_module
from fuse_store.hibernation.stage import stage
from fuse_store.hibernation.swap_device import SwapDevice
from fuse_store.image import devices
from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import UUID, swap_header
from tests.store.conftest import busy, entries_of, fork, mapped, opened, opened_to_read, wait
from tests.store.hibernation.cases import SIZE, Case, blank, differing, kind_on, make_case, signature, unarmed

ROOT = Path(__file__).resolve().parents[3]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("stage") / "case")


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A block device."""
    file = blank(tmp_path / "disk")
    device = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True, check=True).stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "-d", device], check=True)


def write(path: Path, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


# what is on the device afterwards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2])
def test_what_was_captured_comes_back_unarmed(case: Case, tmp_path: Path, index: int) -> None:
    device = blank(tmp_path / "device")
    done = stage(case.image(index), device)
    content = device.read_bytes()
    assert content[:SIZE] == unarmed(case.content(index)) and not any(content[SIZE:])
    assert (done.held, done.uuid_before, done.device) == ("nothing", None, str(device))


@pytest.mark.parametrize(("page_size", "store_page_size"), [(4096, 65536), (65536, 4096), (16384, 16384)])
def test_pages_of_other_sizes(tmp_path: Path, page_size: int, store_page_size: int) -> None:
    small = make_case(
        tmp_path / "c", page_size=page_size, store_page_size=store_page_size, architecture="arm64", pages=60, compressions=("lzo", "none")
    )  # fmt: skip
    device = blank(tmp_path / "device")
    for index in (0, 1, 0):
        stage(small.image(index), device)
        assert device.read_bytes()[:SIZE] == unarmed(small.content(index), page_size)


def test_only_what_differs_is_written(case: Case, tmp_path: Path) -> None:
    device = blank(tmp_path / "device")
    stage(case.image(0), device)
    expected = differing(unarmed(case.content(0)), unarmed(case.content(1)))
    done = stage(case.image(1), device)
    assert done.differed == expected * 4096
    assert device.read_bytes()[:SIZE] == unarmed(case.content(1))
    stamp = device.stat().st_mtime_ns
    assert stage(case.image(1), device).differed == 0
    assert device.stat().st_mtime_ns == stamp


def test_zeros_of_the_image_are_zeros_on_the_device(case: Case, tmp_path: Path) -> None:
    device = blank(tmp_path / "device")
    write(device, 0, swap_header(4096, SIZE // 4096, UUID))
    write(device, 4096, os.urandom(SIZE - 4096))
    stage(case.image(0), device)
    assert device.read_bytes()[:SIZE] == unarmed(case.content(0))


def test_the_image_that_the_kernel_resumed_from_is_staged_over(case: Case, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(unarmed(case.content(2)))
    assert stage(case.image(1), device).held == "a hibernation image that is not armed"
    assert device.read_bytes() == unarmed(case.content(1))


def test_another_uuid_of_the_swap_area_is_told(case: Case, tmp_path: Path) -> None:
    device = blank(tmp_path / "device")
    write(device, 0, swap_header(4096, SIZE // 4096, bytes(16)))
    done = stage(case.image(0), device)
    assert done.uuid_before == "00000000-0000-0000-0000-000000000000"
    assert done.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"


@needs_root
def test_block_device(case: Case, loop: Path) -> None:
    stage(case.image(0), loop)
    assert loop.read_bytes()[:SIZE] == unarmed(case.content(0))
    assert kind_on(loop) == "swap"


# what is refused --------------------------------------------------------------------------------------------------------


def filesystem(path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)


HELD: dict[str, Callable[[Path], object]] = {
    "ext4": filesystem,
    "an armed hibernation image": lambda path: write(path, 4076, b"SWAPSPACE2S1SUSPEND\0"),
    "an image of s2disk": lambda path: write(path, 4086, b"ULSUSPEND\0"),
    "data of an unknown kind": lambda path: write(path, 5000, b"x"),
    "gpt": lambda path: subprocess.run(["sfdisk", "-q", path], input="label: gpt\n,4M\n", text=True, check=True),
}


@pytest.mark.parametrize("what", HELD)
def test_what_a_device_holds_is_not_written_over(case: Case, tmp_path: Path, what: str) -> None:
    device = blank(tmp_path / "device")
    HELD[what](device)
    before = device.read_bytes()
    with pytest.raises(Refused, match=what) as caught:
        stage(case.image(0), device)
    assert "--force" in caught.value.remedy and device.read_bytes() == before
    stage(case.image(0), device, force=True)
    assert device.read_bytes()[:SIZE] == unarmed(case.content(0))


def test_data_at_the_end_is_not_written_over(case: Case, tmp_path: Path) -> None:
    device = blank(tmp_path / "device")
    write(device, device.stat().st_size - 1, b"x")
    with pytest.raises(Refused, match="data of an unknown kind"):
        stage(case.image(0), device)


def test_too_small(case: Case, tmp_path: Path) -> None:
    device = blank(tmp_path / "device", SIZE - 4096)
    with pytest.raises(Refused, match=f"too small: {SIZE - 4096} bytes, and the image has {SIZE}"):
        stage(case.image(0), device, force=True)
    assert not any(device.read_bytes())


def test_no_device(case: Case, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        stage(case.image(0), tmp_path / "nothing")
    with pytest.raises(UsageError):
        stage(case.image(0), tmp_path)


def test_no_hibernation_image(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store", durability="none", key_file=tmp_path / "key") as store:
        (tmp_path / "directory").mkdir()
        for name in ("a", "directory/b", "directory/c"):
            (tmp_path / name).write_bytes(os.urandom(8192))
        for source in ("a", "directory"):
            version = store.put(str(tmp_path / source), Label("m", kind="hibernation"))
            with pytest.raises(NotFound, match="hibernation image"):
                stage(store.open_image(version.id), blank(tmp_path / "device"))


def test_file_that_another_fuse_store_uses(case: Case, tmp_path: Path) -> None:
    device = blank(tmp_path / "device")
    with SwapDevice(device), pytest.raises(Locked):
        stage(case.image(0), device)


@needs_root
def test_devices_in_use(case: Case, loop: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="behind the loop device"):
        stage(case.image(0), tmp_path / "disk", force=True)
    filesystem(loop)
    directory = tmp_path / "mounted"
    directory.mkdir()
    subprocess.run(["mount", loop, directory], check=True)
    try:
        with pytest.raises(Refused, match="busy"):
            stage(case.image(0), loop, force=True)
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("act", [opened, opened_to_read, mapped])
def test_file_that_a_program_has_open(case: Case, tmp_path: Path, act: Callable[[Path], object]) -> None:
    device = blank(tmp_path / "device")
    with busy(lambda: act(device)), pytest.raises(Refused, match="open in ") as caught:
        stage(case.image(0), device, force=True)
    assert caught.value.exit_code == 5 and not any(device.read_bytes())
    stage(case.image(0), device)


@pytest.mark.parametrize("share", ["on", "off"])
def test_file_that_a_virtual_machine_has(case: Case, tmp_path: Path, share: str) -> None:
    """As the memory of an NVDIMM, and as a disk; the machine does not run (-S)."""
    assert shutil.which("qemu-system-x86_64"), "this test needs qemu-system-x86_64 (Debian: qemu-system-x86)"
    for options in (
        ["-object", f"memory-backend-file,id=nvm,mem-path={tmp_path / 'device'},size={SIZE},share={share}"],
        ["-drive", f"file={tmp_path / 'device'},format=raw,if=none,id=disk,readonly={'off' if share == 'on' else 'on'}"],
    ):
        device = blank(tmp_path / "device", SIZE)
        machine = ["qemu-system-x86_64", "-S", "-machine", "none", "-nodefaults", "-display", "none", "-monitor", "stdio"]
        with subprocess.Popen([*machine, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
            assert qemu.stdin is not None and qemu.stdout is not None and "QEMU" in qemu.stdout.readline()
            try:
                with pytest.raises(Refused, match="open in "):
                    stage(case.image(0), device, force=True)
            finally:
                qemu.kill()
        stage(case.image(0), device)


def test_program_that_opens_the_file_meanwhile(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits; when it is let in, nothing is written any more, and the device does not lead to an image."""
    device = blank(tmp_path / "device")
    (tmp_path / "said").touch()

    def waits() -> None:
        with open(device, "rb"):
            (tmp_path / "said").write_text("in")
            signal.pause()

    real = SwapDevice.sync
    waiting: list[int] = []

    def sync(target: SwapDevice) -> None:
        real(target)
        if not waiting:
            waiting.append(fork(waits))
            until = time.monotonic() + 20
            while fcntl.fcntl(target.descriptor, fcntl.F_GETLEASE) == fcntl.F_WRLCK and time.monotonic() < until:
                time.sleep(0.01)
            assert (tmp_path / "said").read_text() == ""

    monkeypatch.setattr(SwapDevice, "sync", sync)
    with pytest.raises(Refused, match="open in "):
        stage(case.image(0), device)
    os.kill(waiting[0], signal.SIGKILL)
    wait(waiting[0])
    assert (tmp_path / "said").read_text() == "in"
    assert not leads_to_image(device.read_bytes())


def test_another_fuse_store_that_is_refused_meanwhile_does_no_harm(case: Case, tmp_path: Path) -> None:
    device = blank(tmp_path / "device")
    with SwapDevice(device) as target:
        with pytest.raises(Locked):
            SwapDevice(device)
        target.write_checked(0, bytes(4096))


@needs_root
def test_file_of_another_user(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Who may write to it, but is not told by the kernel whether it is in use."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        device = blank(Path(directory) / "device")
        device.chmod(0o666)

        def work() -> None:
            os.setgroups([])
            os.setuid(65534)
            with pytest.raises(Refused, match="belongs to another user"):
                SwapDevice(device)

        assert wait(fork(work)) == 0


def test_filesystem_without_leases(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of NFS and CephFS; what fcntl says there."""
    real = fcntl.fcntl

    def without(descriptor: int, command: int, *argument: int) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, command, *argument)

    monkeypatch.setattr(fcntl, "fcntl", without)
    with pytest.raises(Refused, match="has no file leases"):
        stage(case.image(0), blank(tmp_path / "device"), force=True)


@needs_root
def test_device_that_a_program_has_open(case: Case, loop: Path) -> None:
    with busy(lambda: opened(loop)), pytest.raises(Refused, match="open for writing in"):
        stage(case.image(0), loop, force=True)
    assert not any(loop.read_bytes())


@needs_root
def test_swap_file_in_use(case: Case, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(bytes(SIZE))
    subprocess.run(["mkswap", device], check=True, capture_output=True)
    device.chmod(0o600)
    subprocess.run(["swapon", device], check=True)
    try:
        with pytest.raises(Refused, match="in use as swap"):
            stage(case.image(0), device, force=True)
    finally:
        subprocess.run(["swapoff", device], check=True)


@needs_root
def test_swap_in_use(case: Case, loop: Path) -> None:
    subprocess.run(["mkswap", loop], check=True, capture_output=True)
    subprocess.run(["swapon", loop], check=True)
    try:
        with pytest.raises(Refused, match="busy"):
            stage(case.image(0), loop, force=True)
    finally:
        subprocess.run(["swapoff", loop], check=True)
    stage(case.image(0), loop)


# what happens on the way --------------------------------------------------------------------------------------------------


def leads_to_image(device: bytes) -> bool:
    return any(device[4064:4072])


def check_after_cut(device: bytes, before: bytes, whole: bytes) -> None:
    """What the kernel sees is as it was, an empty swap area, or whole: the last sector of the header decides, and what it
    leads to."""
    if device[3584:4096] == before[3584:4096]:
        assert device[4096:] == before[4096:]
        return
    assert signature(device) == b"SWAPSPACE2"
    if leads_to_image(device):
        assert device[3584:] == whole[3584:]


@pytest.mark.parametrize("first", ["blank", "armed"])
def test_killed_at_every_step(case: Case, tmp_path: Path, first: str) -> None:
    device = blank(tmp_path / "device", SIZE)
    if first != "blank":
        device.write_bytes(case.content(2) if first == "armed" else unarmed(case.content(2)))
    before, whole = device.read_bytes(), unarmed(case.content(0))
    script = (
        "from fuse_store.store import Store; from fuse_store.hibernation.stage import stage; import sys\n"
        "store = Store.open(sys.argv[1], key_file=sys.argv[2])\n"
        "stage(store.open_image(sys.argv[3]), sys.argv[4], force=True)\n"
    )
    command = [sys.executable, "-c", script, str(case.store.path), str(case.store.path.parent / "key"), case.ids[0], str(device)]
    for step in range(1, 100):
        device.write_bytes(before)
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "FUSE_STORE_FAULT_POINT": str(step)}, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -9
        check_after_cut(device.read_bytes(), before, whole)
    assert step > 6 and device.read_bytes() == whole
    # One of the cuts, and then again: without force, because what is left is nothing that matters.
    device.write_bytes(before)
    subprocess.run(command, cwd=ROOT, env={**os.environ, "FUSE_STORE_FAULT_POINT": "stage pages"}, check=False)
    stage(case.image(0), device)
    assert device.read_bytes() == whole


class Recorded:
    """The writes to a device, in order; None where it was synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[int, bytes] | None] = []
        real_write, real_sync = devices.write_at, SwapDevice.sync

        def write_at(descriptor: int, data: memoryview, at: int) -> None:
            self.log.append((at, bytes(data)))
            real_write(descriptor, data, at)

        def sync(target: SwapDevice) -> None:
            real_sync(target)
            self.log.append(None)

        monkeypatch.setattr(devices, "write_at", write_at)
        monkeypatch.setattr(SwapDevice, "sync", sync)

    def after_cut(self, before: bytes, at: int, chance: random.Random) -> bytes:
        """The device if the power goes after ``at`` entries: of what was not synced, any sectors are there, others not."""
        device = bytearray(before)
        synced = max((index for index in range(at) if self.log[index] is None), default=-1)
        for index in range(at):
            entry = self.log[index]
            if entry is None:
                continue
            offset, content = entry
            if index < synced:
                device[offset : offset + len(content)] = content
                continue
            share = chance.choice((0.0, 0.5, 1.0))
            for sector in range(0, len(content), 512):
                if chance.random() < share:
                    device[offset + sector : offset + sector + 512] = content[sector : sector + 512]
        return bytes(device)


@pytest.mark.parametrize("first", ["blank", "older", "armed"])
def test_power_cut_loses_any_writes_that_were_not_synced(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    device = blank(tmp_path / "device", SIZE)
    if first != "blank":
        device.write_bytes(case.content(2) if first == "armed" else unarmed(case.content(2)))
    before, whole = device.read_bytes(), unarmed(case.content(0))
    recorded = Recorded(monkeypatch)
    stage(case.image(0), device, force=True)
    assert device.read_bytes() == whole and recorded.log.count(None) >= 3
    chance = random.Random(7)
    barriers = [index for index, entry in enumerate(recorded.log) if entry is None]
    moments = {*barriers, *(index + 1 for index in barriers), *chance.sample(range(len(recorded.log)), min(40, len(recorded.log)))}
    for moment in sorted(moments):
        check_after_cut(recorded.after_cut(before, moment, chance), before, whole)
    assert recorded.after_cut(before, len(recorded.log), chance) == whole


def test_flipped_bit_in_the_store_is_found_before_anything_leads_to_it(tmp_path: Path) -> None:
    own = make_case(tmp_path / "c", compressions=("none",), pages=2500)
    pack = max((own.store.path / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    at = pack.stat().st_size // 3
    byte = pack.read_bytes()[at]
    write(pack, at, bytes([byte ^ 4]))
    device = blank(tmp_path / "device")
    with pytest.raises(Damaged, match=own.ids[0]):
        stage(own.image(0), device)
    assert not leads_to_image(device.read_bytes()) and signature(device.read_bytes()) in (b"SWAPSPACE2", bytes(10))


def test_device_that_does_not_keep_what_is_written(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = blank(tmp_path / "device")
    real = devices.write_at

    def flips(descriptor: int, data: memoryview, at: int) -> None:
        content = bytearray(data)
        if at <= 1 << 20 < at + len(content):
            content[(1 << 20) - at] ^= 1
        real(descriptor, memoryview(content), at)

    monkeypatch.setattr(devices, "write_at", flips)
    with pytest.raises(Damaged, match="at 0x100000 reads back differently"):
        stage(case.image(0), device)
    assert not leads_to_image(device.read_bytes())


def test_device_that_keeps_no_zeros(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = blank(tmp_path / "device")
    write(device, 0, swap_header(4096, SIZE // 4096, UUID))
    write(device, SIZE - 8192, b"\x01" * 4096)
    real = devices.write_at
    monkeypatch.setattr(devices, "write_at", lambda *write: real(*write) if write[2] < SIZE - 65536 else None)
    with pytest.raises(Damaged, match="reads back differently"):
        stage(case.image(0), device)


def test_device_that_fails(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = blank(tmp_path / "device")

    def fails(descriptor: int, data: memoryview, at: int) -> None:
        if at + len(data) > 1 << 20:
            raise OSError(5, "Input/output error")
        targets_write(descriptor, data, at)

    targets_write = devices.write_at
    monkeypatch.setattr(devices, "write_at", fails)
    with pytest.raises(StoreError, match="Input/output error"):
        stage(case.image(0), device)
    assert not leads_to_image(device.read_bytes())


def test_synced_in_between(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "SYNC_INTERVAL", 1)
    device = blank(tmp_path / "device")
    stage(case.image(0), device)
    assert device.read_bytes()[:SIZE] == unarmed(case.content(0))


# the command --------------------------------------------------------------------------------------------------------------


def test_command(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    device = blank(tmp_path / "device")
    store = ["--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key"), "--json"]
    assert main(["stage", case.ids[1], str(device), *store]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["id"] == case.ids[1] and record["device"] == str(device) and record["recorded"] is True
    assert entries_of(case.store, case.ids[1])[-1]["state"] == "staged"
    write(device, 4086, b"S1SUSPEND\0")
    assert main(["stage", case.ids[1], str(device), *store]) == 5
    error = json.loads(capfd.readouterr().err)["error"]
    assert error["type"] == "refused" and "armed hibernation image" in error["cause"]
