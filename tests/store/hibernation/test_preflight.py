# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight refuses images that the kernel would refuse and those that would destroy a filesystem, each with its code, and no
others. Machines are recorded trees of /proc and /sys; filesystems are made by their own tools."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fuse_store.cli import main
from fuse_store.errors import NotFound, Refused
from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation import filesystem_state
from fuse_store.hibernation.filesystems import identify
from fuse_store.hibernation.kind import HibernationInput
from fuse_store.hibernation.machine import Machine
from fuse_store.hibernation.preflight import CHECKS, CODES, Report, TargetMachine, preflight
from fuse_store.image import kind as kinds
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT
from fuse_store.store import Label
from tests.fuzz.swsusp_encoder import machine
from tests.store.hibernation.cases import SIZE, Case, cpio, make_case, make_machine
from tests.store.hibernation.test_initramfs import MODULES
from tests.store.hibernation.test_stage import loop, needs_root, write

__all__ = ["loop"]
LZO, PLAIN, LZ4 = range(3)
KIND = kinds.load("hibernation")
READ_ONLY = {filesystem_state.SOURCE_TAG: filesystem_state.MACHINE}  # nothing was mounted writable


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("preflight") / "case", tags=READ_ONLY)


def memory_of(case: Case, index: int) -> int:
    with HibernationImage(case.image(index)) as image:
        return image.info.memory


def checked(case: Case, index: int, root: Path, **more: object) -> Report:
    return preflight(case.store, case.image(index), TargetMachine(Machine(root), **more))  # type: ignore[arg-type]


def codes(report: Report) -> list[str]:
    assert all(finding.message and finding.remedy for finding in report.refusals)
    return [finding.code for finding in report.refusals]


def same_machine(case: Case, index: int, root: Path, **files: str) -> Path:
    return make_machine(root, memory_of(case, index), **files)


# the machine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [LZO, PLAIN])
def test_the_same_machine_accepts(case: Case, tmp_path: Path, index: int) -> None:
    assert checked(case, index, same_machine(case, index, tmp_path)) == Report(case.ids[index], (), ())


REFUSED = {
    "memory_map": {"sys__firmware__memmap__2__end": "0x7ffdefff\n"},
    "memory_size": {"proc__zoneinfo": "Node 0, zone DMA\n        present  5\n"},
    "architecture": {"proc__sys__kernel__arch": "aarch64\n"},
    "zero_pages": {"proc__sys__kernel__osrelease": "6.1.0-56-amd64\n"},
    "kernel_differs": {"proc__sys__kernel__osrelease": "5.10.0-30-amd64\n"},
    "kernel_lockdown": {"sys__kernel__security__lockdown": "none [integrity] confidentiality\n"},
    "nohibernate": {"proc__cmdline": "root=/dev/vda1 noresume ro\n"},
}


@pytest.mark.parametrize("code", REFUSED)
def test_another_machine_is_refused_by_code(case: Case, tmp_path: Path, code: str) -> None:
    wanted = [code] if code != "kernel_differs" else ["kernel_differs", "zero_pages"]
    assert codes(checked(case, PLAIN, same_machine(case, PLAIN, tmp_path, **REFUSED[code]))) == wanted


def test_pages_of_another_size(case: Case, tmp_path: Path) -> None:
    root = same_machine(case, PLAIN, tmp_path, proc__self__smaps="KernelPageSize:       16 kB\n")
    assert codes(checked(case, PLAIN, root)) == ["architecture"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("sys/firmware/memmap", "memory_map"), ("proc/zoneinfo", "memory_size"), ("proc/sys/kernel/arch", "architecture"),
        ("proc/sys/kernel/osrelease", "zero_pages"),
    ],
)  # fmt: skip
def test_what_a_machine_does_not_tell_is_said(case: Case, tmp_path: Path, path: str, code: str) -> None:
    root = same_machine(case, PLAIN, tmp_path)
    shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    report = checked(case, PLAIN, root)
    assert report.refusals == () and code in [finding.code for finding in report.not_checked]


def test_kernels_of_other_architectures_have_to_be_the_same(tmp_path: Path) -> None:
    arm = make_case(tmp_path / "arm", compressions=("none",), architecture="arm64", tags=READ_ONLY)
    generic = make_case(tmp_path / "generic", compressions=("none",), architecture="generic", tags=READ_ONLY)
    same = {"proc__sys__kernel__arch": "aarch64\n"}
    assert codes(checked(arm, 0, same_machine(arm, 0, tmp_path / "a", **same))) == []
    other = {**same, "proc__sys__kernel__version": "#2 SMP test\n"}
    assert codes(checked(arm, 0, same_machine(arm, 0, tmp_path / "b", **other))) == ["kernel_differs"]
    same = {"proc__sys__kernel__arch": "loongarch64\n", "proc__sys__kernel__osrelease": "6.12.7-test\n"}
    assert codes(checked(generic, 0, same_machine(generic, 0, tmp_path / "c", **same))) == []
    same["proc__sys__kernel__osrelease"] = "6.12.8-test\n"
    assert codes(checked(generic, 0, same_machine(generic, 0, tmp_path / "d", **same))) == ["kernel_differs"]


def test_machine_of_a_file_is_unknown(case: Case) -> None:
    assert codes(preflight(case.store, case.image(PLAIN), TargetMachine(None))) == ["machine_unknown"]


def test_device_too_small(case: Case, tmp_path: Path) -> None:
    root = same_machine(case, PLAIN, tmp_path)
    assert codes(checked(case, PLAIN, root, size=SIZE - 1)) == ["device_too_small"]
    assert codes(checked(case, PLAIN, root, size=SIZE)) == []


def test_this_machine_is_read() -> None:
    """Of a kernel that runs: the numbers that others tell."""
    here = Machine()
    assert here.release and os.uname().release.startswith("%d.%d" % here.release)
    assert here.page_size == os.sysconf("SC_PAGESIZE") and here.architecture == os.uname().machine
    assert here.present_pages and here.present_pages >= os.sysconf("SC_PHYS_PAGES")
    assert here.mounts and any(kind == "proc" for _number, kind, _source, _writable in here.mounts)


# the initramfs --------------------------------------------------------------------------------------------------------

def test_lz4_at_hand(case: Case, tmp_path: Path) -> None:
    root = same_machine(case, LZ4, tmp_path)
    assert "compression" in [finding.code for finding in checked(case, LZ4, root).not_checked]  # there is no initramfs to look at
    (root / "boot").mkdir()
    initramfs = root / "boot/initrd.img-6.12.7-amd64"
    initramfs.write_bytes(gzip.compress(cpio(dict(list(MODULES.items())[1:]))))
    assert codes(checked(case, LZ4, root)) == ["compression"]
    initramfs.write_bytes(gzip.compress(cpio(MODULES)))
    assert checked(case, LZ4, root) == Report(case.ids[LZ4], (), ())
    initramfs.unlink()
    write(root / "lib/modules/6.12.7-amd64/modules.builtin", 0, b"kernel/crypto/lz4.ko\n")
    assert checked(case, LZ4, root) == Report(case.ids[LZ4], (), ())
    (root / "proc/sys/kernel/osrelease").write_text("6.6.3\n")
    assert "unknown_flags" in codes(checked(case, LZ4, root))


@needs_root
def test_drivers_in_the_initramfs(case: Case, tmp_path: Path, loop: Path) -> None:
    root = same_machine(case, PLAIN, tmp_path / "root")
    device = root / f"sys/devices/ndbus0/region0/namespace0.0/block/{loop.name}"
    for directory, module in (("ndbus0", "nfit"), ("ndbus0/region0/namespace0.0", "nd_pmem")):
        (root / f"sys/module/{module}").mkdir(parents=True)
        driver = root / f"sys/bus/nd/drivers/{module}"
        driver.mkdir(parents=True)
        (driver / "module").symlink_to(root / f"sys/module/{module}")
        (root / "sys/devices" / directory).mkdir(parents=True, exist_ok=True)
        (root / "sys/devices" / directory / "driver").symlink_to(driver)
    device.mkdir(parents=True)
    (root / "sys/class/block").mkdir(parents=True)
    (root / "sys/class/block" / loop.name).symlink_to(device)
    (root / "boot").mkdir()
    initramfs = root / "boot/initrd.img-6.12.7-amd64"
    initramfs.write_bytes(cpio(MODULES))
    report = checked(case, PLAIN, root, device=loop)
    assert codes(report) == ["initramfs_drivers"] and "nfit" in report.refusals[0].message
    assert "nd_pmem" not in report.refusals[0].message
    initramfs.write_bytes(cpio({**MODULES, "lib/modules/x/nfit.ko": b""}))
    assert codes(checked(case, PLAIN, root, device=loop)) == []


# the image ------------------------------------------------------------------------------------------------------------


def test_no_hibernation_image(case: Case, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(65536))
    version = case.store.put(str(tmp_path / "noise"), Label("x", kind="hibernation"))
    report = preflight(case.store, case.store.open_image(version.id), TargetMachine(None))
    assert codes(report) == ["not_hibernation"]
    assert KIND.checksum(case.store.open_image(version.id), SILENT) == "none"
    assert KIND.describe(case.store.open_image(version.id)) is None


@pytest.mark.parametrize("where", ["checksum", "map", "list"])
def test_damaged_images(case: Case, tmp_path: Path, where: str) -> None:
    content = bytearray(case.content(LZO))
    first = int.from_bytes(content[4064:4072], "little") * 4096
    info = int.from_bytes(content[first : first + 8], "little") * 4096
    at, what = {"checksum": (4060, b"\1\2\3\4"), "map": (first, bytes(4096)), "list": (info + 424, bytes(8))}[where]
    content[at : at + len(what)] = what
    (tmp_path / "bad").write_bytes(content)
    version = case.store.put(str(tmp_path / "bad"), Label("y", kind="hibernation", tags=READ_ONLY))
    report = preflight(case.store, case.store.open_image(version.id), TargetMachine(Machine(same_machine(case, LZO, tmp_path / "r"))))
    assert codes(report) == ["damaged"]


def described(case: Case, image: Image) -> dict[str, Any]:
    description = KIND.describe(image)
    assert description is not None
    return KIND.shown(description, case.store.state_log.entries(image.id), brief=False)


def test_kernel_checksum_and_description(case: Case) -> None:
    assert [KIND.checksum(case.image(index), SILENT) for index in (LZO, PLAIN, LZ4)] == ["right", "none", "right"]
    found = described(case, case.image(LZO))
    assert found and (found["kernel"], found["host"], found["crc"]) == ("6.12.7-test", "web01", "not checked")
    options = ["--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key")]
    assert main(["verify", case.ids[LZO], *options]) == 0
    found = described(case, case.image(LZO))
    assert found and found["crc"] == "right"


def test_documented_codes() -> None:
    guide = (Path(__file__).resolve().parents[3] / "docs/staging.md").read_text()
    assert [code for code in CODES if f"`{code}`" not in guide] == []
    assert len(set(CODES)) == len(CODES) == len(CHECKS) + 1


# filesystems ----------------------------------------------------------------------------------------------------------


def run(*command: object, **settings: str) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True, **settings).stdout  # type: ignore[call-overload,no-any-return]


def make(kind: str, path: Path) -> Path:
    size = {"xfs": 320, "btrfs": 120}.get(kind, 40) << 20
    with open(path, "wb") as file:
        file.truncate(size)
    options = {"ext4": ["-q", "-F", "-O", "^resize_inode"], "xfs": ["-q", "-f"], "btrfs": ["-q"], "vfat": ["-F", "32"], "f2fs": []}[kind]
    run(f"mkfs.{kind}", *options, path)
    return path


CHANGES = {
    "ext4": lambda path: run("debugfs", "-w", "-R", "set_super_value mnt_count 7", path),
    "xfs": lambda path: run("xfs_db", "-x", "-c", "sb 0", "-c", "write fname \"other\"", path),
    "btrfs": lambda path: run("btrfstune", "-r", path),
    "vfat": lambda path: run("mcopy", "-i", path, __file__, "::test"),
}  # fmt: skip


def uuid_of(path: Path) -> str:
    return run("blkid", "-p", "-s", "UUID", "-o", "value", path).strip()


def put(case: Case, tags: dict[str, str]) -> str:
    return case.store.put(str(case.sources[PLAIN]), Label("fs", kind="hibernation", tags=tags)).id


def judged(case: Case, image_id: str, disks: list[Path], root: Path) -> Report:
    return preflight(case.store, case.store.open_image(image_id), TargetMachine(Machine(root), disks))


@pytest.mark.parametrize("kind", CHANGES)
def test_filesystems_that_changed(case: Case, tmp_path: Path, kind: str) -> None:
    disk = make(kind, tmp_path / "disk")
    tags = filesystem_state.tags_of_disks([disk])
    assert set(tags) == {"fs.source", f"fs.{uuid_of(disk)}"} and tags["fs.source"] == "disks"
    image_id, root = put(case, tags), same_machine(case, PLAIN, tmp_path / "root")
    assert codes(judged(case, image_id, [disk], root)) == []
    CHANGES[kind](disk)
    report = judged(case, image_id, [disk], root)
    assert codes(report) == ["filesystems_changed"]
    assert f"{kind} {uuid_of(disk)} has been written to since" in report.refusals[0].message


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_only_the_log_has_changed(case: Case, tmp_path: Path, kind: str) -> None:
    """As on a filesystem that is mounted: the superblock stays for hours."""
    disk = make(kind, tmp_path / "disk")
    before = filesystem_state.tags_of_disks([disk])
    if kind == "ext4":
        block = int(run("debugfs", "-R", "bmap <8> 3", disk).strip())
        size = int(next(line for line in run("dumpe2fs", "-h", disk).splitlines() if line.startswith("Block size")).split()[-1])
    else:
        told = run("xfs_db", "-r", "-c", "sb 0", "-c", "p logstart agblklog agblocks", disk)
        info = dict(line.split(" = ") for line in told.splitlines())
        group, within = divmod(int(info["logstart"]), 1 << int(info["agblklog"]))
        block, size = group * int(info["agblocks"]) + within + 50, 4096
    write(disk, block * size, b"x")
    after = filesystem_state.tags_of_disks([disk])
    (key,) = set(before) - {filesystem_state.SOURCE_TAG}
    changed = [old for old, new in zip(before[key].split(), after[key].split(), strict=True) if old != new]
    assert [field.partition("=")[0] for field in changed] == ["log"]


def test_journal_in_many_extents(tmp_path: Path) -> None:
    """Its tree has a second level then."""
    disk = tmp_path / "disk"
    with open(disk, "wb") as file:
        file.truncate(900 << 20)
    run("mkfs.ext4", "-q", "-F", "-b", "1024", "-J", "size=200", "-g", "8192", "-O", "^flex_bg,^resize_inode", disk)
    assert "ETB0" in run("debugfs", "-R", "stat <8>", disk)
    before = filesystem_state.tags_of_disks([disk])[f"fs.{uuid_of(disk)}"]
    assert " log=" in before
    write(disk, int(run("debugfs", "-R", "bmap <8> 199999", disk).strip()) * 1024, b"x")
    assert filesystem_state.tags_of_disks([disk])[f"fs.{uuid_of(disk)}"] != before


@needs_root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_mounted_and_written_to_by_the_kernel(tmp_path: Path, kind: str) -> None:
    disk, directory = make(kind, tmp_path / "disk"), tmp_path / "mounted"
    directory.mkdir()
    run("mount", "-o", "loop,ro" + {"ext4": ",noload", "xfs": ",norecovery"}.get(kind, ""), disk, directory)
    try:
        states = [filesystem_state.tags_of_disks([disk])]
        run("umount", directory)
        until = time.monotonic() + 30
        while run("losetup", "--associated", disk):  # a loop device that is not gone yet would be used again, read-only
            assert time.monotonic() < until
            time.sleep(0.05)
        assert filesystem_state.tags_of_disks([disk]) == states[0], "mounted read-only, it is as it was"
        run("mount", "-o", "loop", disk, directory)
        for name in ("a", "b"):
            (directory / name).write_text("x")
            run("sync", "-f", directory)
            states.append(filesystem_state.tags_of_disks([disk]))
    finally:
        run("umount", directory)
    assert len({str(state) for state in states}) == 3


def test_disk_with_partitions(case: Case, tmp_path: Path) -> None:
    for label in ("gpt", "dos"):
        disk = tmp_path / label
        with open(disk, "wb") as file:
            file.truncate(100 << 20)
        run("sfdisk", "-q", disk, input=f"label: {label}\n,42M\n,20M\n,10M\n")
        filesystem, swap, other = make("ext4", tmp_path / "a"), tmp_path / "b", tmp_path / "c"
        for path, tool in ((swap, "mkswap"), (other, "mkfs.minix")):
            with open(path, "wb") as file:
                file.truncate(10 << 20)
            run(tool, path)
        for index, part in enumerate((filesystem, swap, other)):
            begin = json.loads(run("sfdisk", "--json", disk))["partitiontable"]["partitions"][index]["start"] * 512
            write(disk, begin, part.read_bytes())
        tags = filesystem_state.tags_of_disks([disk])
        assert tags[f"fs.{uuid_of(filesystem)}"].startswith("ext4 mounts=0")
        assert [value for value in tags.values() if "unreadable" in value] == ["minix unreadable"] and len(tags) == 3
        report = judged(case, put(case, tags), [disk], same_machine(case, PLAIN, tmp_path / f"r{label}"))
        assert codes(report) == ["filesystems_unknown"] and "minix" in report.refusals[0].message


def test_filesystem_that_is_gone(case: Case, tmp_path: Path) -> None:
    disk, other = make("ext4", tmp_path / "disk"), make("ext4", tmp_path / "other")
    image_id, root = put(case, filesystem_state.tags_of_disks([disk])), same_machine(case, PLAIN, tmp_path / "root")
    report = judged(case, image_id, [other], root)
    assert codes(report) == ["filesystems_changed"] and "is missing" in report.refusals[0].message
    report = preflight(case.store, case.store.open_image(image_id), TargetMachine(None))
    assert codes(report) == ["machine_unknown", "filesystems_changed"]


def test_filesystem_state_that_was_not_recorded(case: Case, tmp_path: Path) -> None:
    assert codes(judged(case, put(case, {}), [], same_machine(case, PLAIN, tmp_path))) == ["filesystems_unknown"]


def machine_with_disks(case: Case, root: Path, disks: dict[str, Path], mounts: list[str]) -> Machine:
    files = {"proc__1__mountinfo": "".join(line + "\n" for line in mounts)}
    same_machine(case, PLAIN, root, **files)
    for index, (name, disk) in enumerate(disks.items()):
        for directory in (f"sys/class/block/{name}", f"sys/dev/block/254:{index}"):
            (root / directory).mkdir(parents=True)
            (root / directory / "uevent").write_text(f"MAJOR=254\nMINOR={index}\nDEVNAME={name}\n")
            (root / directory / "size").write_text(f"{disk.stat().st_size // 512}\n")
        (root / "dev").mkdir(exist_ok=True)
        disk.rename(root / "dev" / name)
    return Machine(root)


@needs_root
def test_machine_that_went_on_after_it_was_captured(case: Case, tmp_path: Path, loop: Path) -> None:
    ext4, btrfs, xfs = (make(kind, tmp_path / kind) for kind in ("ext4", "btrfs", "xfs"))
    uuids = [uuid_of(path) for path in (ext4, btrfs, xfs)]
    mounts = [
        "20 1 254:0 / / ro,relatime shared:1 - ext4 /dev/vda ro", "21 20 0:30 / /data rw - btrfs /dev/vdb rw,subvol=/",
        "22 20 0:21 / /proc rw - proc proc rw", "23 20 0:31 / /run rw - tmpfs tmpfs rw", "24 20 254:2 / /srv ro - xfs /dev/vdc ro",
    ]  # fmt: skip
    here = machine_with_disks(case, tmp_path / "root", {"vda": ext4, "vdb": btrfs, "vdc": xfs}, mounts)
    consumed = bytearray(case.content(PLAIN))
    consumed[4086:4096] = b"SWAPSPACE2"
    (tmp_path / "device").write_bytes(consumed)
    with File(tmp_path / "device") as file, HibernationImage(file) as image:
        tags = filesystem_state.tags_of_machine(image, loop, here)
        assert filesystem_state.tags_of_machine(image, tmp_path / "device", here) == {}, "a file is of another machine"
        assert filesystem_state.tags_of_machine(image, loop, Machine()) == {}, "the image is of another machine"
    assert tags["fs.source"] == "machine" and tags[f"fs.{uuids[1]}"] == "btrfs in-use"
    assert tags[f"fs.{uuids[0]}"].startswith("ext4 mounts=") and set(tags) == {"fs.source", *(f"fs.{uuid}" for uuid in uuids)}
    report = judged(case, put(case, tags), [], here.root)
    assert codes(report) == ["filesystems_changed"] and "while the machine went on" in report.refusals[0].message
    del tags[f"fs.{uuids[1]}"]
    assert codes(judged(case, put(case, tags), [], here.root)) == []
    CHANGES["ext4"](here.root / "dev/vda")
    assert codes(judged(case, put(case, tags), [], here.root)) == ["filesystems_changed"]


@needs_root
def test_image_that_is_captured_before_it_resumes(case: Case, tmp_path: Path, loop: Path) -> None:
    """From the machine's rescue system: nothing is mounted, and what is on its disks is what the image knows of them."""
    ext4, lvm = make("ext4", tmp_path / "ext4"), tmp_path / "lvm"
    uuid = uuid_of(ext4)
    lvm.write_bytes(bytes(512) + b"LABELONE" + (1).to_bytes(8, "little") + bytes(4 << 20))
    here = machine_with_disks(case, tmp_path / "root", {"vda": ext4, "vdb": lvm}, [])
    (here.root / "sys/class/block/vdb/holders/dm-0").mkdir(parents=True)
    with File(case.sources[PLAIN]) as file, HibernationImage(file) as image:
        tags = filesystem_state.tags_of_machine(image, loop, here)
    assert set(tags) == {"fs.source", f"fs.{uuid}"} and tags["fs.source"] == "disks"
    assert codes(judged(case, put(case, tags), [], here.root)) == []


def test_hostile_filesystems(tmp_path: Path) -> None:
    """Whatever stands in a superblock: no traceback, no endless reading."""
    from random import Random

    chance = Random(3)
    for kind, area in (("ext4", (1024, 2048)), ("xfs", (0, 512)), ("btrfs", (0x10000, 0x10400)), ("vfat", (0, 512))):
        disk = make(kind, tmp_path / kind)
        original = disk.read_bytes()[area[0] : area[1]]
        for _round in range(20):
            content = bytearray(original)
            for _byte in range(chance.randrange(1, 30)):
                content[chance.randrange(len(content))] = chance.choice((0, 255, chance.randrange(256)))
            write(disk, area[0], bytes(content))
            with ExitStack() as stack:
                for volume in filesystem_state.disk_volumes(disk, stack):
                    assert len(volume.state()) < 200


def extent_node(depth: int, blocks: list[int]) -> bytes:
    """A node of an ext4 extent tree: the blocks of its children, or of its extents of one block each (struct ext4_extent)."""
    entries = [struct.pack("<IHHI", 0, 1, 0, block) if depth == 0 else struct.pack("<IIHH", 0, block, 0, 0) for block in blocks]
    return struct.pack("<HHHHI", 0xF30A, len(blocks), len(blocks), depth, 0) + b"".join(entries)


@pytest.mark.parametrize(("depth", "read_nodes"), [(1, 4), (2, 1364), (5, 1 << 16)])
def test_journal_whose_tree_is_hostile(depth: int, read_nodes: int) -> None:
    """Each node of a level is the same block, with as many children as it can have: few blocks, and a tree without end."""
    blocks = {level: extent_node(level, [10 + level - 1 if level else 99] * 340).ljust(4096, b"\0") for level in range(depth)}
    superblock = bytearray(1024)
    superblock[0x38:0x3A], superblock[0x18], superblock[0x5C], superblock[0xFD] = b"\x53\xef", 2, 4, 1
    superblock[0x10C : 0x10C + 60] = extent_node(depth, [10 + depth - 1] * 4)
    struct.pack_into("<II", superblock, 0x10C + 60, 0, 4096 * 340)
    reads: list[int] = []

    def read(offset: int, length: int) -> bytes:
        reads.append(offset)
        return bytes(superblock) if offset == 1024 else blocks.get(offset // 4096 - 10, bytes(4096))[:length]

    found = identify(read, 1 << 30)
    assert found
    assert ("log=" in found.state()) == (depth == 1)
    assert len([at for at in reads if at // 4096 != 99 and at != 1024]) <= read_nodes


# what put records -----------------------------------------------------------------------------------------------------


def test_put_records_what_is_known(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    disk = make("ext4", tmp_path / "disk")
    options = ["--store", str(case.store.path), "--key-file", str(case.store.path.parent / "key"), "--json"]
    source = str(case.sources[LZ4])
    assert main(["put", source, "--machine", "p", "--kind", "hibernation", "--machine-disk", str(disk), "--tag", "a=b", *options]) == 0
    tags = json.loads(capfd.readouterr().out)["tags"]
    memory = memory_of(case, LZ4)
    assert tags.items() >= {"kernel": "6.12.7-test", "host": "web01", "memory": str(memory * 4096), "compression": "lz4", "a": "b"}.items()
    assert tags[f"fs.{uuid_of(disk)}"].startswith("ext4 ") and tags["fs.source"] == "disks" and tags["memory_map"].startswith("0x")
    assert int(tags["vmcoreinfo_page"]) in machine(pages=1200, seed=LZ4)
    assert main(["put", source, "--machine", "p", "--kind", "file", "--machine-disk", str(disk), *options]) == 2
    (tmp_path / "noise").write_bytes(os.urandom(8192))
    capfd.readouterr()
    assert main(["put", str(tmp_path / "noise"), "--machine", "p", "--kind", "hibernation", *options]) == 0
    done = capfd.readouterr()
    assert "no hibernation image found" in done.err and json.loads(done.out)["tags"] == {}


def test_filesystem_state_that_can_not_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        HibernationInput(None, {}, [tmp_path / "nothing"])
    stream = HibernationInput(None, {}, [])
    assert (stream.tags, stream.problem) == ({}, "")
    monkeypatch.setattr(filesystem_state, "MAX_TAGS", 1)
    with pytest.raises(Refused, match="2 tags are needed, and a version has at most 1"):
        filesystem_state.tags_of_disks([make("ext4", tmp_path / "disk")])
