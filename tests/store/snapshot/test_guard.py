# SPDX-License-Identifier: GPL-3.0-or-later
"""A guard holds as long as its filesystem is as it was at the snapshot, and no longer: on real devices, with filesystems that their own
tools made and the kernel mounted. What is mounted where is told by a tree of /proc and /sys, because loop devices are not guarded."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fuse_store import boot
from fuse_store.formats.readable import File
from fuse_store.hibernation.filesystem_state import guard_holds as holds
from fuse_store.hibernation.machine import Machine
from fuse_store.snapshot.filesystems import FIFREEZE, FITHAW
from fuse_store.snapshot.guard import NONE, UNSAFE, Guard
from fuse_store.snapshot.guard.places import NotGuarded, places_of
from tests.store.hibernation.cases import make_filesystem, run, uuid_of
from tests.store.hibernation.test_stage import needs_root

SIZE = {"xfs": 320, "btrfs": 120}  # MiB
EXT4 = {
    "ext4": [], "ext4 of 4 KiB": ["-b", "4096"], "ext4 with a file of orphans": ["-O", "orphan_file"],
    "ext4 with a long journal": ["-J", "size=16"], "ext3": ["-O", "^extent"],
}  # fmt: skip
WRITABLE = (*EXT4, "xfs", "btrfs")


class Disk:
    """A file with a filesystem, its loop device, and a machine on which this is disk 8:1. It is mounted in a mount namespace of its own:
    a program that begins another one meanwhile, such as a build of a system, would keep it mounted."""

    def __init__(self, directory: Path, kind: str, options: list[str] | None = None) -> None:
        self.kind = kind
        self._stack = ExitStack()
        self._inside, self.point = self._namespace(directory / "mounted")
        self.file = directory / "disk"
        with open(self.file, "wb") as file:
            file.truncate(SIZE.get(kind, 64) << 20)
        run(f"mkfs.{kind}", "-q", *([] if kind == "btrfs" else ["-F" if kind.startswith("ext") else "-f"]), *(options or []), self.file)
        self.device = run("losetup", "--find", "--show", self.file).strip()
        self._stack.callback(run, "losetup", "--detach", self.device)
        self.root = tree(directory / "root", [mountinfo(kind)], {"8:1": self.device})

    def _namespace(self, place: Path) -> tuple[list[object], Path]:
        """How commands run in a namespace of its own, and where ``place`` is seen from outside."""
        place.mkdir()
        holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "infinity"])
        self._stack.callback(holder.wait)
        self._stack.callback(holder.kill)
        until = time.monotonic() + 30
        while os.readlink(f"/proc/{holder.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt") or not self._is_private(holder.pid):
            assert time.monotonic() < until
            time.sleep(0.01)
        return ["nsenter", "--target", str(holder.pid), "--mount"], Path(f"/proc/{holder.pid}/root{place}")

    @staticmethod
    def _is_private(process: int) -> bool:
        return "sleep" in Path(f"/proc/{process}/comm").read_text()

    @contextmanager
    def mounted(self, options: str = "rw") -> Iterator[Path]:
        place = self.file.with_name("mounted")
        run(*self._inside, "mount", "-t", self.kind, "-o", options, self.device, place)
        try:
            yield self.point
        finally:
            run(*self._inside, "umount", place)

    def guarded(self, options: str = "rw") -> dict[str, str]:
        """The tags of a snapshot now."""
        (self.root / "proc/self/mountinfo").write_text(mountinfo(self.kind, options) + "\n")
        with Guard(Machine(self.root)) as guard:
            guard.prepare()
            if "ro" in options.split(","):
                return guard.record()
            descriptor = os.open(self.point, os.O_RDONLY)
            fcntl.ioctl(descriptor, FIFREEZE, 0)
            try:
                tags = guard.record()
                assert guard.record() == tags
                return tags
            finally:
                fcntl.ioctl(descriptor, FITHAW, 0)
                os.close(descriptor)

    def close(self) -> None:
        self._stack.close()


def mountinfo(kind: str, options: str = "rw", number: str = "8:1", point: str = "/") -> str:
    number = "0:40" if kind == "btrfs" and number == "8:1" else number
    return f"20 1 {number} / {point} rw,relatime - {kind} /dev/disk {options}"


def tree(root: Path, mounts: list[str], devices: dict[str, str]) -> Path:
    (root / "proc/self/ns").mkdir(parents=True)
    (root / "proc/self/ns/mnt").symlink_to("mnt:[1]")
    (root / "proc/self/mountinfo").write_text("".join(f"{line}\n" for line in mounts))
    (root / "dev").mkdir()
    for number, device in devices.items():
        (root / "sys/dev/block" / number).mkdir(parents=True)
        (root / "sys/dev/block" / number / "uevent").write_text("DEVNAME=disk\n")
        (root / "dev/disk").symlink_to(device)
    return root


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    with ExitStack() as stack:

        def make(kind: str, options: list[str] | None = None) -> Disk:
            directory = tmp_path / f"disk{len(list(tmp_path.iterdir()))}"
            directory.mkdir()
            disk = Disk(directory, kind, options)
            stack.callback(disk.close)
            return disk

        yield make


def held(disk: Disk, tags: dict[str, str]) -> bool:
    """What the program finds; busybox finds the same. Without the kernel's cache of the device, which XFS passes by."""
    assert list(tags) == ["guard.0"], tags
    run("blockdev", "--flushbufs", disk.device)
    with File(disk.device) as device:
        found = holds(tags["guard.0"], device.read)
    assert by_shell(tags["guard.0"], disk.device) == found == at_boot(tags["guard.0"], disk)
    return found


def by_shell(tag: str, device: str) -> bool:
    text = (Path(__file__).parents[3] / "docs/snapshots.md").read_text()
    functions = text.split("```sh\nguard_holds()")[1].split("```")[0]
    script = f"guard_holds() {functions}\nguard_holds \"$1\" {tag}"
    return subprocess.run(["busybox", "sh", "-euc", script, "sh", device], check=False).returncode == 0


def at_boot(tag: str, disk: Disk) -> bool:
    """What the script finds that selects a slot at boot."""
    _uuid, places, digest = tag.split()
    (disk.root / "places").write_text(places.replace(",", "\n") + "\n")
    script = f'. {Path(boot.__file__).parent / "initramfs/slots.sh"}\nWORK={disk.root}\nhas_bytes "$1" {digest}'
    return subprocess.run(["busybox", "sh", "-uc", script, "sh", disk.device], check=False).returncode == 0


def disk_for(disk_of: Callable[..., Disk], name: str) -> Disk:
    return disk_of("ext3" if name == "ext3" else name.split(maxsplit=1)[0], EXT4.get(name))


def overwrite(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(b"y" * 4096)
        os.fsync(file)


def create(path: Path) -> None:
    path.with_name("new").write_text("x")
    os.sync()


def remove(path: Path) -> None:
    path.unlink()
    os.sync()


def mode(path: Path) -> None:
    path.chmod(0o600)
    os.sync()


@needs_root
@pytest.mark.parametrize("change", [overwrite, create, remove, mode])
@pytest.mark.parametrize("name", WRITABLE)
def test_writable(disk_of: Callable[..., Disk], name: str, change: Callable[[Path], None]) -> None:
    disk = disk_for(disk_of, name)
    with disk.mounted() as point:
        (point / "old").write_bytes(b"x" * 100_000)
        os.sync()
        tags = disk.guarded()
        assert uuid_of(disk.file) in tags["guard.0"]
        assert held(disk, tags), "thawed, it is as it was"
        os.sync()
        assert held(disk, tags)
        change(point / "old")
        assert not held(disk, tags)
        assert held(disk, disk.guarded())
    assert not held(disk, tags), "unmounted, it has the change all the same"


@needs_root
@pytest.mark.parametrize("name", WRITABLE)
def test_unmounted_by_a_system_that_went_on(disk_of: Callable[..., Disk], name: str) -> None:
    """As at an orderly shutdown. What was on the disk may be equal to what it was; if so, nothing was changed."""
    disk = disk_for(disk_of, name)
    with disk.mounted() as point:
        (point / "old").write_bytes(b"x" * 100_000)
        tags = disk.guarded()
        (point / "old").write_bytes(b"y" * 100_000)
    assert not held(disk, tags)


@needs_root
def test_xfs_whose_log_has_gone_round(disk_of: Callable[..., Disk]) -> None:
    """Records of 256 KiB fill its 64 MiB."""
    disk = disk_of("xfs", ["-l", "size=64m,su=256k"])
    places = []
    with disk.mounted() as point:
        for _snapshot in range(12):
            for number in range(40):
                create(point / f"{number}")
                os.rename(point / "new", point / str(number))
            tags = disk.guarded()
            assert held(disk, tags)
            create(point / "x")
            assert not held(disk, tags)
            places.append(int(tags["guard.0"].split()[1].rpartition(",")[2].partition("+")[0]))
    assert places != sorted(places)


@needs_root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_power_was_cut_and_another_system_wrote(disk_of: Callable[..., Disk], tmp_path: Path, kind: str) -> None:
    """The disk as it was when nothing had been written since the snapshot; then it is mounted by another boot."""
    disk = disk_of(kind)
    copy = tmp_path / "copy"
    with disk.mounted() as point:
        (point / "old").write_bytes(b"x" * 100_000)
        tags = disk.guarded()
        run("cp", "--sparse=always", disk.device, copy)
    for options, same in (("ro", kind != "xfs"), ("rw", False)):
        run("dd", f"if={copy}", f"of={disk.device}", "bs=1M", "conv=fsync,sparse")
        assert held(disk, tags), "the power was cut"
        with disk.mounted(options) as point:
            if options == "rw" and kind == "btrfs":  # of which a mount alone changes nothing
                (point / "old").write_bytes(b"y")
        assert held(disk, tags) is same, options


@needs_root
def test_nothing_is_written_by_itself(disk_of: Callable[..., Disk]) -> None:
    """Longer than the intervals in which ext4 commits (5 s)."""
    disk = disk_of("ext4")
    with disk.mounted() as point:
        (point / "old").write_bytes(b"x" * 100_000)
        os.sync()
        tags = disk.guarded()
        time.sleep(8)
        assert held(disk, tags)


@needs_root
@pytest.mark.parametrize(("kind", "options"), [("ext4", "ro"), ("ext4", "ro,noload"), ("xfs", "ro,norecovery"), ("btrfs", "ro")])
def test_read_only(disk_of: Callable[..., Disk], kind: str, options: str) -> None:
    disk = disk_of(kind)
    with disk.mounted() as point:
        (point / "old").write_text("x")
    with disk.mounted(options):
        tags = disk.guarded(options)
        assert held(disk, tags)
    for _again in range(2):
        with disk.mounted(options):
            assert held(disk, tags)
    with disk.mounted() as point:
        if kind == "btrfs":
            (point / "old").write_text("y")
        assert kind == "btrfs" or not held(disk, tags), "noticed while it is mounted"
    assert not held(disk, tags)


@pytest.mark.parametrize("kind", ["squashfs", "erofs", "iso9660"])
def test_images_that_nothing_writes_to(tmp_path: Path, kind: str) -> None:
    makers = {
        "squashfs": lambda source, to: run("mksquashfs", source, to, "-quiet", "-no-progress"),
        "erofs": lambda source, to: run("mkfs.erofs", to, source),
        "iso9660": lambda source, to: run("xorriso", "-as", "mkisofs", "-quiet", "-o", to, source),
    }
    images = []
    for number in range(2):
        source = tmp_path / f"source{number}"
        source.mkdir()
        (source / "file").write_bytes(os.urandom(9000 + number))
        images.append(tmp_path / f"image{number}")
        makers[kind](source, images[-1])
        time.sleep(1.1 if kind == "iso9660" else 0)  # its times are of seconds
    with Guard(Machine(tree(tmp_path / "root", [mountinfo(kind, "ro")], {"8:1": str(images[0])}))) as guard:
        guard.prepare()
        tags = guard.record()
    uuid = tags["guard.0"].split()[0]
    assert uuid == ("any" if kind == "squashfs" else uuid_of(images[0]))
    for image, same in zip(images, (True, False), strict=True):
        with File(image) as file:
            assert holds(tags["guard.0"], file.read) is same
        assert by_shell(tags["guard.0"], str(image)) is same


def test_fat(tmp_path: Path) -> None:
    disk = make_filesystem("vfat", tmp_path / "disk")
    with Guard(Machine(tree(tmp_path / "root", [mountinfo("vfat", "ro")], {"8:1": str(disk)}))) as guard:
        guard.prepare()
        tags = guard.record()
    assert tags["guard.0"].startswith(uuid_of(disk))
    for change, same in (("", True), ("file", False)):
        if change:
            run("mcopy", "-i", disk, __file__, f"::{change}")
        with File(disk) as file:
            assert holds(tags["guard.0"], file.read) is same
        assert by_shell(tags["guard.0"], str(disk)) is same


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-O", "^has_journal"], "ext4 has no journal"),
        (["-O", "fast_commit"], "ext4 has fast commits"),
        (["-O", "mmp"], "ext4 has the protection against multiple mounts"),
    ],
)  # fmt: skip
def test_writable_ext4_that_does_not_tell(tmp_path: Path, options: list[str], reason: str) -> None:
    disk = tmp_path / "disk"
    with open(disk, "wb") as file:
        file.truncate(64 << 20)
    run("mkfs.ext4", "-q", "-F", *options, disk)
    with Guard(Machine(tree(tmp_path / "root", [mountinfo("ext4")], {"8:1": str(disk)}))) as guard:
        guard.prepare()
        assert guard.record() == {UNSAFE: f"{reason} (/)"}


def test_a_journal_on_another_device(tmp_path: Path) -> None:
    disk = make_filesystem("ext4", tmp_path / "disk")
    run("debugfs", "-w", "-R", "set_super_value journal_inum 0", disk)
    assert reason_of(tmp_path, disk, "ext4") == "ext4 has its journal on another device (/)"


@needs_root
def test_a_filesystem_that_is_not_frozen(disk_of: Callable[..., Disk]) -> None:
    """Its journal is not empty, so nothing tells for certain."""
    disk = disk_of("ext4")
    with disk.mounted() as point:
        (point / "file").write_text("x")
        os.sync()
        with Guard(Machine(disk.root)) as guard:
            guard.prepare()
            assert guard.record() == {UNSAFE: "the journal of ext4 is not empty (/)"}


def reason_of(tmp_path: Path, disk: Path, kind: str, options: str = "rw", number: str = "8:1", **files: str) -> str:
    root = tree(tmp_path / f"root-{len(list(tmp_path.iterdir()))}", [mountinfo(kind, options, number)], {number: str(disk)})
    for path, text in files.items():
        target = root / path.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    with Guard(Machine(root)) as guard:
        guard.prepare()
        return guard.record().get(UNSAFE, "")


def test_what_cannot_be_guarded(tmp_path: Path) -> None:
    disk = make_filesystem("ext4", tmp_path / "disk")
    fat = make_filesystem("vfat", tmp_path / "fat")
    assert reason_of(tmp_path, fat, "vfat") == "vfat cannot be watched while it is mounted writable (/)"
    assert reason_of(tmp_path, disk, "f2fs", "ro") == "f2fs cannot be watched (/)"
    assert reason_of(tmp_path, fat, "ext4") == "no ext4 is on its device (/)"
    assert reason_of(tmp_path, disk, "ext4", "rw,lazytime") == "ext4 is mounted with lazytime (/)"
    assert reason_of(tmp_path, disk, "ext4", "rw,commit=300") == "ext4 is mounted with commit=300 (/)"
    assert reason_of(tmp_path, tmp_path / "gone", "ext4", "ro") == "ext4 cannot be read: No such file or directory (/)"
    assert reason_of(tmp_path, disk, "zfs", number="0:50") == "zfs cannot be watched (/)"
    assert "is mounted where it cannot be seen" in reason_of(
        tmp_path, disk, "ext4", "ro", sys__fs__ext4__sdb1="", sys__class__block__sdb1__dev="8:17"
    )


def test_files_behind_loop_devices(tmp_path: Path) -> None:
    """One that is read-only is shown by the filesystem that its file is on; one in memory is part of the image."""
    disk = make_filesystem("ext4", tmp_path / "disk")
    cases = (("ro", "ext4", ""), ("rw", "ext4", "ext4 is writable in a file"), ("rw", "tmpfs", ""), ("ro", "nfs4", "in a file"))
    for options, on, expected in cases:
        root = tree(
            tmp_path / f"root-{options}-{on}",
            [mountinfo(on, "rw", "0:60" if on != "ext4" else "8:1", str(tmp_path)), mountinfo("ext4", options, "7:3", "/mnt")],
            {"7:3": str(disk)},
        )
        (root / "sys/dev/block/7:3/loop").mkdir()
        (root / "sys/dev/block/7:3/loop/backing_file").write_text(f"{disk}\n")
        (root / "sys/dev/block/8:1").mkdir()
        (root / "sys/dev/block/8:1/uevent").write_text("DEVNAME=disk\n")
        with Guard(Machine(root)) as guard:
            guard.prepare()
            reason = guard.record().get(UNSAFE, "")
        assert expected in reason if expected else "in a file" not in reason, (options, on)


def test_nothing_is_mounted(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", ["20 1 0:5 / / rw - tmpfs none rw", "21 1 0:6 / /net rw - nfs4 server:/ rw"], {})
    with Guard(Machine(root)) as guard:
        guard.prepare()
        assert guard.record() == {NONE: "1"}


def test_mounted_twice_counts_once(tmp_path: Path) -> None:
    disk = make_filesystem("ext4", tmp_path / "disk")
    root = tree(tmp_path / "root", [mountinfo("ext4", "ro"), mountinfo("ext4", "ro", point="/again")], {"8:1": str(disk)})
    with Guard(Machine(root)) as guard:
        guard.prepare()
        assert list(guard.record()) == ["guard.0"]


def test_memory_is_part_of_the_image(tmp_path: Path) -> None:
    disk = make_filesystem("ext4", tmp_path / "disk")
    root = tree(tmp_path / "root", [mountinfo("ext4", "rw", "1:0")], {"1:0": str(disk)})
    with Guard(Machine(root)) as guard:
        guard.prepare()
        assert guard.record() == {NONE: "1"}


@pytest.mark.parametrize("tag", ["", "x", *(f"any {at} {'0' * 64}" for at in ("0+x", "0+999999999999999", "0+512,"))])
def test_a_tag_that_is_none(tmp_path: Path, tag: str) -> None:
    disk = make_filesystem("vfat", tmp_path / "disk")
    with File(disk) as file:
        assert not holds(tag, file.read)


def test_damaged_filesystems_are_read_within_bounds(tmp_path: Path) -> None:
    """Whatever stands in their fields, they are guarded, or named as what cannot be."""
    fields = {
        "ext4": [(1024 + 0x14, 8), (1024 + 0x58, 2), (2048 + 8, 4)], "xfs": [(4, 4), (48, 8), (84, 16)],
        "vfat": [(11, 8), (22, 2), (36, 12)],
    }  # fmt: skip
    for kind, places in fields.items():
        content = make_filesystem(kind, tmp_path / kind).read_bytes()[: 16 << 20]
        for at, length in places:
            for value in (b"\0", b"\xff", b"\x7f"):
                damaged = content[:at] + value * length + content[at + length :]

                def read(offset: int, count: int, image: bytes = damaged) -> bytes:
                    assert 0 <= count <= 64 << 20
                    return image[offset : offset + count] if offset >= 0 else b""

                for writable in (False, True):
                    try:
                        found = places_of(kind, read, len(damaged), writable)
                        found.when_frozen(read)
                    except NotGuarded:
                        continue
