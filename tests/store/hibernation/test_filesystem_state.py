# SPDX-License-Identifier: GPL-3.0-or-later
"""The recorded state of a filesystem changes with the first write to it and with nothing else; hostile filesystems are read within
bounds. Filesystems are made by their own tools."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation import filesystem_state
from fuse_store.hibernation.filesystems import identify
from fuse_store.hibernation.machine import Machine
from fuse_store.hibernation.preflight import Report, TargetMachine, preflight
from fuse_store.store import Label
from tests.store.hibernation.cases import Case, make_filesystem, run, uuid_of
from tests.store.hibernation.test_preflight import PLAIN, case, codes, same_machine
from tests.store.hibernation.test_stage import loop, needs_root, write

__all__ = ["case", "loop"]


CHANGES = {
    "ext4": lambda path: run("debugfs", "-w", "-R", "set_super_value mnt_count 7", path),
    "xfs": lambda path: run("xfs_db", "-x", "-c", "sb 0", "-c", "write fname \"other\"", path),
    "btrfs": lambda path: run("btrfstune", "-r", path),
    "vfat": lambda path: run("mcopy", "-i", path, __file__, "::test"),
}  # fmt: skip


def put(case: Case, tags: dict[str, str]) -> str:
    return case.store.put(str(case.sources[PLAIN]), Label("fs", kind="hibernation", tags=tags)).id


def judged(case: Case, image_id: str, disks: list[Path], root: Path) -> Report:
    return preflight(case.store, case.store.open_image(image_id), TargetMachine(Machine(root), disks))


@pytest.mark.parametrize("kind", CHANGES)
def test_filesystems_that_changed(case: Case, tmp_path: Path, kind: str) -> None:
    disk = make_filesystem(kind, tmp_path / "disk")
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
    disk = make_filesystem(kind, tmp_path / "disk")
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


def test_guards_of_a_snapshot(case: Case, tmp_path: Path) -> None:
    """In place of the filesystem state: they hold on a disk of the machine, or on one of its partitions."""
    disk, root = make_filesystem("ext4", tmp_path / "disk"), same_machine(case, PLAIN, tmp_path / "root")
    with open(disk, "rb") as file:
        digest = hashlib.sha256(file.read(2048)[1024:]).hexdigest()
    guard = f"{uuid_of(disk)} 1024+1024 {digest}"
    parted = tmp_path / "parted"
    with open(parted, "wb") as out:
        out.truncate(100 << 20)
    run("sfdisk", "-q", parted, input="label: gpt\n,42M\n,20M\n")
    write(parted, 2048 * 512, disk.read_bytes())
    for tags, disks, expected in (
        ({"guard.0": guard}, [disk], []),
        ({"guard.0": guard}, [parted], []),
        ({"guard.0": guard, "guard.1": f"any 0+1024 {'0' * 64}"}, [disk], ["filesystems_changed"]),
        ({"guard.none": "1"}, [disk], []),
        ({"guard.0": guard, "unsafe": "f2fs cannot be watched"}, [disk], ["filesystems_unknown"]),
        ({"unsafe": "f2fs cannot be watched"}, [disk], ["filesystems_unknown"]),
    ):
        assert codes(judged(case, put(case, tags), disks, root)) == expected, tags
    CHANGES["ext4"](disk)
    report = judged(case, put(case, {"guard.0": guard}), [disk], root)
    assert codes(report) == ["filesystems_changed"] and uuid_of(disk) in report.refusals[0].message
    elsewhere = preflight(case.store, case.store.open_image(report.id), TargetMachine(None))
    assert codes(elsewhere) == ["machine_unknown", "filesystems_changed"]


@needs_root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_mounted_and_written_to_by_the_kernel(tmp_path: Path, kind: str) -> None:
    disk, directory = make_filesystem(kind, tmp_path / "disk"), tmp_path / "mounted"
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
        filesystem, swap, other = make_filesystem("ext4", tmp_path / "a"), tmp_path / "b", tmp_path / "c"
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
    disk, other = make_filesystem("ext4", tmp_path / "disk"), make_filesystem("ext4", tmp_path / "other")
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
    ext4, btrfs, xfs = (make_filesystem(kind, tmp_path / kind) for kind in ("ext4", "btrfs", "xfs"))
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
    ext4, lvm = make_filesystem("ext4", tmp_path / "ext4"), tmp_path / "lvm"
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
        disk = make_filesystem(kind, tmp_path / kind)
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
