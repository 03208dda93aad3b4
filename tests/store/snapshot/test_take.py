# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of a snapshot: whatever fails, everything is undone, and the device holds no image, or a whole one."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_store.errors import Damaged, Refused, StoreError, UsageError
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation.machine import Machine
from fuse_store.hibernation.swap_device import SwapDevice, stable_name
from fuse_store.snapshot import filesystems, memory, swap, taking
from fuse_store.snapshot.guardian import Guardian
from fuse_store.snapshot.memory import Memory
from fuse_store.snapshot.recorder import Recorder
from fuse_store.snapshot.targets import Wishes
from tests.store.conftest import loop_device, needs_root, run
from tests.store.snapshot.fake_kernel import PAGE, STREAM, Kernel, install

SIZE = 4 << 20


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A device of 4 MiB on a machine whose memory is small, and nothing of which is mounted writable."""
    install(monkeypatch)
    with loop_device(tmp_path / "disk", SIZE) as device:
        yield device


def state(device: Path) -> str:
    """armed, disarmed or none, as the parser has it; the image must be whole."""
    try:
        with File(device) as file, HibernationImage(file) as image:
            assert image.map.read(0, image.map.count).tobytes() == b"".join(STREAM)
            return image.header.state
    except StoreError:
        return "none"


@pytest.mark.parametrize(("options", "expected"), [(Wishes(), "disarmed"), (Wishes(arm=True), "armed"), (Wishes(rearm=True), "armed")])
def test_created(device: Path, options: Wishes, expected: str) -> None:
    made = taking.take(device, options)
    assert (made.restored, made.armed, made.size) == (False, expected == "armed", len(STREAM) * PAGE)
    assert state(device) == expected
    assert [call for call in Kernel.calls if call != "read"] == ["freeze", "create", "free", "unfreeze", "close"]
    assert run("blkid", "-p", "-s", "TYPE", "-o", "value", str(device)).strip() == ("swsuspend" if expected == "armed" else "swap")


def test_restored(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gave the signature of the swap area back; with ``rearm`` the image is armed again."""
    taking.take(device, Wishes(rearm=True))
    with open(device, "r+b") as file:
        file.seek(PAGE - 10)
        file.write(b"SWAPSPACE2")
    monkeypatch.setattr(Kernel, "resumed", True)
    resumed = device.read_bytes()
    create = Kernel.create

    def back(self: Kernel) -> bool:
        """In the memory that came back the device was just prepared; on the device is the image."""
        device.write_bytes(resumed)
        return create(self)

    monkeypatch.setattr(Kernel, "create", back)
    restored = taking.take(device)
    assert (restored.restored, restored.armed, restored.device, restored.size) == (True, False, stable_name(device), 0)
    assert device.read_bytes() == resumed
    again = taking.take(device, Wishes(rearm=True))
    assert again.restored and again.armed and again.id != restored.id
    assert state(device) == "armed"


def test_restored_and_not_armed_again(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is there, and the program has to be told so."""
    monkeypatch.setattr(Kernel, "resumed", True)

    def write_checked(self: SwapDevice, offset: int, content: bytes) -> None:
        if b"S1SUSPEND" in content:
            raise StoreError("device", "no.")

    monkeypatch.setattr(SwapDevice, "write_checked", write_checked)
    restored = taking.take(device, Wishes(rearm=True))
    assert restored.restored and not restored.armed and "the image is not armed again: device: no." in restored.warnings


@pytest.mark.parametrize("step", ["create", "read", "free", "unfreeze"])
def test_everything_is_undone(device: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(Kernel, "fails", step)
    with pytest.raises(StoreError, match=r"Input/output error|made no image"):
        taking.take(device, Wishes(arm=True))
    assert Kernel.calls[-3:] == ["free", "unfreeze", "close"]
    assert state(device) == "none"
    score = Path("/proc/self/oom_score_adj").read_text()
    assert score.strip() != "-1000"
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    monkeypatch.setattr(Kernel, "fails", "")
    taking.take(device, Wishes(arm=True))
    assert state(device) == "armed"


def test_what_takes_too_long_is_given_up(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: Kernel) -> bool:
        time.sleep(30)
        return True

    monkeypatch.setattr(Kernel, "create", slow)
    begun = time.monotonic()
    with pytest.raises(StoreError, match="given up after 1 seconds"):
        taking.take(device, Wishes(limit=1))
    assert time.monotonic() - begun < 20
    assert Kernel.calls == ["freeze", "free", "unfreeze", "close"]


def test_the_size_that_the_kernel_prefers_stays(device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = tmp_path / "image_size"
    size.write_text("4711\n")
    monkeypatch.setattr(memory, "_IMAGE_SIZE", size)
    monkeypatch.setattr(Kernel, "prefer", lambda self, preferred: size.write_text(str(preferred)))
    for fails in ("", "read"):
        monkeypatch.setattr(Kernel, "fails", fails)
        with contextlib.suppress(StoreError):
            taking.take(device)
        assert size.read_text() == "4711\n"


def test_the_process_stays_in_memory() -> None:
    """And no longer than the system stands still. In a process of its own: that of the tests is large."""
    needs_root()
    program = """
import re
from fuse_store.snapshot.standstill import locked_in_memory
status = lambda: [int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) for name in ("VmLck", "VmSize")]
with locked_in_memory():
    print(*status(), open("/proc/self/oom_score_adj").read().strip())
print(*status())
"""
    during, after = run(sys.executable, "-c", program).splitlines()
    locked, size, score = map(int, during.split())
    assert locked > size // 2 and score in (-1000, 0) and after.split()[0] == "0"  # 0: without CAP_SYS_RESOURCE


def test_caches_are_freed_before_the_system_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kernel would have to while it does."""
    caches = tmp_path / "drop_caches"
    monkeypatch.setattr(memory, "_CACHES", caches)
    monkeypatch.setattr(Memory, "of", lambda machine, swapped=0: Memory(8 << 20, 1 << 20, 3 << 20))
    memory.free_caches(Machine(), 3 << 20)
    assert not caches.exists()
    memory.free_caches(Machine(), (3 << 20) - 1)
    assert caches.read_text() == "1"


@pytest.mark.parametrize(("used", "filled", "swapped"), [(1, 1, 0), (3, 90, 0), (40, 60, 9), (49, 100, 1), (50, 50, 0)])
def test_how_much_space_an_image_gets(used: int, filled: int, swapped: int) -> None:
    """Enough, and at most half of the memory and the margin; the image that the kernel is asked for fits."""
    sizes = Memory(100 << 20, used << 20, filled << 20, swapped << 20)
    sizes.check_half()
    assert sizes.needed + sizes.margin == sizes.least <= sizes.most <= sizes.total // 2 + sizes.margin
    for space in (sizes.least, sizes.most, 10 * sizes.total):
        assert sizes.needed <= sizes.preferred(space) <= space


def test_an_armed_image_stays_unless_it_may_be_replaced(device: Path) -> None:
    taking.take(device, Wishes(arm=True))
    before = device.read_bytes()
    with pytest.raises(Refused, match="contains an armed hibernation image"):
        taking.take(device)
    assert device.read_bytes() == before
    taking.take(device, Wishes(replace=True))
    assert state(device) == "disarmed"


def test_what_is_on_the_device_stays(device: Path, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", str(device))
    with pytest.raises(Refused, match="contains ext4"):
        taking.take(device, Wishes(replace=True))
    (tmp_path / "file").write_bytes(bytes(SIZE))
    begun = time.monotonic()
    with pytest.raises(UsageError, match="not a block device"):
        taking.take(tmp_path / "file")
    assert time.monotonic() - begun < 30, "it waited for its own lease"


def test_a_device_that_is_too_small(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Memory, "of", lambda machine, swapped=0: Memory(8 << 20, SIZE, SIZE))
        with pytest.raises(Refused, match="too small: it has space for 3 MiB, and 4 MiB are in use"):
            taking.take(device)
        patched.setattr(Memory, "of", lambda machine, swapped=0: Memory(4 << 20, 5 << 19, 5 << 19))
        with pytest.raises(Refused, match="2 of 4 MiB of memory are in use"):
            taking.take(device)
    assert not any(device.read_bytes()), "changed although it was refused"
    monkeypatch.setattr(Kernel, "stream", STREAM * 6)
    monkeypatch.setattr(Kernel, "prefer", lambda self, size: None)
    with pytest.raises(Refused, match="and there is space for"):
        taking.take(device)
    assert Kernel.calls[-3:] == ["free", "unfreeze", "close"]


def test_not_armed_where_a_filesystem_is_writable(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "writable", lambda machine: ["/", "/home"])
    for wishes in (Wishes(arm=True), Wishes(rearm=True)):
        with pytest.raises(Refused, match="mounted writable, and changing after it: /, /home"):
            taking.take(device, wishes)
    assert not any(device.read_bytes())


def test_a_device_that_does_not_keep_what_is_written(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "read_back", lambda self, read, header: (self.checksum ^ 1, ""))
    with pytest.raises(Damaged):
        taking.take(device, Wishes(arm=True))
    assert state(device) == "none"


# filesystems and swap ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    needs_root()
    (tmp_path / "mount").mkdir()
    with loop_device(tmp_path / "ext4", 16 << 20) as device:
        run("mkfs.ext4", "-q", str(device))
        run("mount", str(device), str(tmp_path / "mount"))
        try:
            yield tmp_path / "mount"
        finally:
            subprocess.run(["fsfreeze", "-u", str(tmp_path / "mount")], capture_output=True, check=False)
            deadline = time.monotonic() + 60
            while subprocess.run(["umount", str(tmp_path / "mount")], capture_output=True, check=False).returncode:
                assert time.monotonic() < deadline, "a process has it open"
                time.sleep(0.1)


def is_frozen(mount: Path) -> bool:
    """Whether a process that writes there waits."""
    with subprocess.Popen(["touch", str(mount / "file")]) as writer:
        try:
            writer.wait(0.5)
        except subprocess.TimeoutExpired:
            frozen = True
            subprocess.run(["fsfreeze", "-u", str(mount)], check=True)
        else:
            frozen = False
    return frozen


def test_the_writable_filesystems(mounted: Path) -> None:
    assert str(mounted) in filesystems.writable(Machine())
    run("mount", "-o", "remount,ro", str(mounted))
    assert str(mounted) not in filesystems.writable(Machine())


def test_a_filesystem_that_only_another_mount_namespace_has(mounted: Path) -> None:
    """It counts, and is frozen by way of a process that sees it."""
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", 'echo; read _line'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout and process.stdout.readline() == b"\n"
    run("umount", str(mounted))
    try:
        (point,) = [point for point in filesystems.writable(Machine()) if point.endswith(str(mounted))]
        assert point == f"/proc/{process.pid}/root{mounted}"
        with filesystems.Filesystems([point]) as quiet:
            quiet.freeze()
            assert is_frozen(Path(point))
    finally:
        process.communicate(b"\n")
        device = run("losetup", "--noheadings", "--output", "NAME", "--associated", str(mounted.parent / "ext4")).strip()
        run("mount", device, str(mounted))


def test_a_filesystem_that_cannot_be_frozen_is_no_obstacle(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT, such as the EFI system partition."""

    def ioctl(descriptor: int, request: int, argument: int) -> None:
        assert request == filesystems.FIFREEZE, "thawed although it was not frozen"
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with monkeypatch.context() as patched, filesystems.Filesystems([str(mounted)]) as quiet:
        patched.setattr("fuse_store.snapshot.filesystems.fcntl.ioctl", ioctl)
        quiet.freeze()


def test_filesystems_are_frozen_and_thawed(mounted: Path) -> None:
    with filesystems.Filesystems([str(mounted)]) as quiet:
        quiet.freeze()
        assert is_frozen(mounted)
    with filesystems.Filesystems([str(mounted)]) as quiet:
        quiet.freeze()
    assert not is_frozen(mounted)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_filesystems_are_thawed_if_the_process_is_killed(mounted: Path, number: signal.Signals) -> None:
    process = os.fork()
    if not process:
        try:
            told = mounted.parent / "told"
            quiet = filesystems.Filesystems([str(mounted)])
            Guardian((quiet.thaw_all, lambda: 1 // 0, told.touch), quiet.descriptors)
            quiet.freeze()
            os.kill(os.getpid(), number)
        finally:
            os._exit(9)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == number
    deadline = time.monotonic() + 60
    while is_frozen(mounted):
        assert time.monotonic() < deadline, "nobody thawed it"
    while not (mounted.parent / "told").exists():
        assert time.monotonic() < deadline, "nothing else was done"


def test_swap_areas_are_put_back_as_they_were(tmp_path: Path) -> None:
    needs_root()
    files = [Path(tmp_path / name) for name in ("first", "second two")]
    for priority, file in enumerate(files, 5):
        file.write_bytes(bytes(1 << 20))
        file.chmod(0o600)
        run("mkswap", str(file))
        run("swapon", "-p", str(priority), str(file))
    try:
        ours = [area for area in swap.in_use(Machine()) if Path(area.path) in files]
        assert [(area.path, area.priority) for area in ours] == [(str(files[1]), 6), (str(files[0]), 5)]
        with swap.out_of_use(ours, Machine()) as problems:
            assert not [area for area in swap.in_use(Machine()) if Path(area.path) in files]
        assert not problems
        assert [area for area in swap.in_use(Machine()) if Path(area.path) in files] == ours
        with swap.out_of_use(ours, Machine()) as problems:
            files[0].unlink()
        assert len(problems) == 1 and "first cannot be taken into use again: No such file" in problems[0]
        with pytest.raises(StoreError, match="cannot be taken out of use"):
            swap.take_out([*ours[:1], swap.SwapArea("/nowhere", 0, 1)], Machine())
        assert ours[0] in swap.in_use(Machine()), "not put back"
    finally:
        for file in files:
            subprocess.run(["swapoff", str(file)], capture_output=True, check=False)
