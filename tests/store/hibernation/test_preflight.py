# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight refuses images that the kernel would refuse and those that would destroy a filesystem, each with its code, and no
others. Machines are recorded trees of /proc and /sys."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fuse_store.cli import main
from fuse_store.errors import NotFound, Refused
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation import filesystem_state
from fuse_store.hibernation.kind import HibernationInput
from fuse_store.hibernation.machine import Machine
from fuse_store.hibernation.preflight import CHECKS, CODES, Report, TargetMachine, preflight
from fuse_store.image import kind as kinds
from fuse_store.image.reader import Image
from fuse_store.progress import SILENT
from fuse_store.store import Label
from tests.fuzz.swsusp_encoder import machine
from tests.store.conftest import entries_of
from tests.store.hibernation.cases import SIZE, Case, cpio, make_case, make_filesystem, make_machine, uuid_of
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
    return KIND.shown(description, entries_of(case.store, image.id), brief=False)


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


# what put records -----------------------------------------------------------------------------------------------------


def test_put_records_what_is_known(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    disk = make_filesystem("ext4", tmp_path / "disk")
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
        filesystem_state.tags_of_disks([make_filesystem("ext4", tmp_path / "disk")])
