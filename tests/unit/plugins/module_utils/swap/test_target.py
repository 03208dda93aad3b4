# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a swap file is on its block device, on real filesystems; and what cannot be one."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import extents, headers, target
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.swap.mounted import (
    KINDS,
    MIB,
    allocate,
    mounted,
    possible,
    real_host,
)

FICLONE = 0x40049409
PAGE = os.sysconf("SC_PAGE_SIZE")

Filesystem = tuple[str, Path, str]


@pytest.fixture(params=KINDS)
def filesystem(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Filesystem]:
    """(kind, place, device)."""
    kind: str = request.param
    if not possible(kind):
        pytest.skip("needs root and %s" % kind)
    with mounted(tmp_path, kind) as (place, device):
        yield kind, place, device


def swap_file(filesystem: Filesystem, size: int = 40 * MIB, name: str = "swapfile") -> Path:
    kind, place, _device = filesystem
    path = place / name
    allocate(path, kind, size)
    subprocess.run(["mkswap", "--quiet", "--label", "FILE", str(path)], check=True)
    return path


def refused(path: Path | str, host: Host | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        target.find(host or real_host(), str(path))
    assert caught.value.message and caught.value.remedy
    return caught.value


def test_the_kernel_finds_each_page_where_it_is_said_to_be(filesystem: Filesystem) -> None:
    """Each page of the file is written through the filesystem, and read from the device."""
    kind, place, device = filesystem
    for number in range(40):  # holes between files, so that the file has several extents
        (place / str(number)).write_bytes(bytes(2 * MIB))
    os.sync()
    for number in range(0, 40, 2):
        (place / str(number)).unlink()
    os.sync()
    size = 180 * MIB
    path = place / "swapfile"
    allocate(path, kind, size)
    with path.open("r+b") as file:
        found = extents.of_file(file.fileno(), kind, size, PAGE)
        file.write(b"".join(number.to_bytes(8, "little") * (PAGE // 8) for number in range(size // PAGE)))
        os.fsync(file.fileno())
        assert extents.of_file(file.fileno(), kind, size, PAGE) == found
    subprocess.run(["umount", str(place)], check=True)
    try:
        with open(device, "rb") as file:
            for extent in found:
                file.seek(extent.physical)
                length = min(extent.length, size - extent.logical)
                content = file.read(length)
                first = extent.logical // PAGE
                assert content == b"".join((first + at).to_bytes(8, "little") * (PAGE // 8) for at in range(length // PAGE))
    finally:
        subprocess.run(["mount", device, str(place)], check=True)
    assert sum(extent.length for extent in found) >= size


def test_a_swap_file_is_found_by_its_filesystem_and_its_first_page(filesystem: Filesystem) -> None:
    kind, _place, device = filesystem
    path = swap_file(filesystem)
    host = real_host()
    found = target.find(host, str(path))
    assert (found.block.path, found.file, found.size) == (device, str(path), 40 * MIB)
    header = found.header(host)
    assert header.type == "swap" and header.label == "FILE" and header.last_page == 40 * MIB // PAGE - 1
    told = subprocess.run(["blkid", "-p", "-s", "UUID", "-o", "value", device], check=True, capture_output=True, text=True).stdout
    assert found.uuid(host, header) == told.strip() != header.uuid
    if kind == "btrfs":
        command = ["btrfs", "inspect-internal", "map-swapfile", "-r", str(path)]
        assert found.offset == int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_header_is_read_from_the_device_after_the_file_was_written(filesystem: Filesystem) -> None:
    """The kernel's cache of the device has the page as it was."""
    path = swap_file(filesystem)
    host = real_host()
    found = target.find(host, str(path))
    with open(found.block.path, "rb") as kept:
        kept.seek(found.offset * PAGE)
        assert kept.read(PAGE)
        subprocess.run(["swaplabel", "--label", "OTHER", str(path)], check=True)
        subprocess.run(["sync", str(path)], check=True)
        assert found.header(host).label == "OTHER"


def test_a_file_with_a_hole(filesystem: Filesystem) -> None:
    path = filesystem[1] / "swapfile"
    with path.open("wb") as file:
        file.truncate(40 * MIB)
    if filesystem[0] == "btrfs":
        assert "copied on write" in refused(path).message
    else:
        assert refused(path).code == "swap_file_unusable" and "hole at byte 0" in refused(path).message


def test_a_file_that_shares_blocks(filesystem: Filesystem) -> None:
    kind, place, _device = filesystem
    if kind == "ext4":
        pytest.skip("ext4 has none")
    path = swap_file(filesystem)
    copy = place / "copy"
    allocate(copy, kind, 4096)
    with path.open("rb") as source, copy.open("r+b") as file:
        fcntl.ioctl(file.fileno(), FICLONE, source.fileno())
    assert "shares blocks" in refused(path).message


def test_btrfs_refuses_what_is_copied_on_write_or_stored_twice(tmp_path: Path) -> None:
    if not possible("btrfs"):
        pytest.skip("needs root and btrfs")
    with mounted(tmp_path, "btrfs", 400 * MIB, "--data", "dup") as (place, _device):
        allocate(place / "swapfile", "btrfs", 40 * MIB)
        assert "profile is not single" in refused(place / "swapfile").message
        with (place / "cow").open("wb") as file:
            file.write(bytes(40 * MIB))
        assert "copied on write" in refused(place / "cow").message


def test_blocks_smaller_than_a_page(tmp_path: Path) -> None:
    if not possible("ext4"):
        pytest.skip("needs root and ext4")
    with mounted(tmp_path, "ext4", 100 * MIB, "-b", "1024") as (place, _device):
        (place / "odd").write_bytes(bytes(1024))
        os.sync()
        allocate(place / "swapfile", "ext4", 40 * MIB)
        assert "whole pages" in refused(place / "swapfile").message


def test_a_loop_device_keeps_no_image(filesystem: Filesystem) -> None:
    path = swap_file(filesystem)
    with pytest.raises(Refused) as caught:
        target.find(real_host(), str(path)).check(real_host())
    assert caught.value.code == "device_ephemeral"


def test_what_is_no_plain_file(host: Host, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("missing")
    (tmp_path / "directory").mkdir()
    assert [refused("/" + name, host).code for name in ("fifo", "link", "directory", "missing", "none/at/all")] == [
        "swap_file_invalid", "swap_file_invalid", "swap_file_invalid", "swap_file_missing", "swap_file_missing"]  # fmt: skip


def test_a_filesystem_without_a_block_device(host: Host, plant: Callable[[dict[str, object]], None]) -> None:
    plant({"/swapfile": bytes(40 * headers.LEAST_PAGES * PAGE)})
    for line, named in (
        ("22 1 0:21 / / rw - tmpfs tmpfs rw\n", "tmpfs"),
        ("22 1 0:21 / / rw - nfs4 server:/ rw\n", "nfs4 (server:/)"),
        ("22 1 0:21 / / rw - zfs pool/root rw\n", "zfs"),
        ("", "an unknown filesystem"),
    ):
        plant({"/proc/self/mountinfo": line})
        reason = refused("/swapfile", host)
        assert reason.code == "filesystem_unsupported" and named in reason.message


@pytest.mark.parametrize(("device", "file"), [("/swapfile", True), ("/dev/NVM_SWAP", False), ("/device", True), ("NVM_SWAP", False)])
def test_what_the_path_of_a_swap_file_is(device: str, file: bool) -> None:
    assert target.is_file(device) is file
