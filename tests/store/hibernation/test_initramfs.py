# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules in an initramfs, of any compression that kernels are given; and no file takes endless time or memory."""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from fuse_store.hibernation import initramfs
from fuse_store.hibernation.initramfs import modules_in
from tests.store.hibernation.cases import cpio

MEGABYTE = 1 << 20
MODULES = {"usr/lib/modules/6.12.7-amd64/kernel/" + name: os.urandom(5000) for name in ("crypto/lz4.ko.xz", "drivers/nvdimm/nd-pmem.ko")}
PACKED = {
    "plain": lambda raw: raw, "gzip": gzip.compress, "xz": lambda raw: lzma.compress(raw, check=lzma.CHECK_CRC32),
    "zstd": lambda raw: zstandard.ZstdCompressor().compress(raw), "lz4": lz4.frame.compress,
}  # fmt: skip


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("early", [b"", cpio({"kernel/x86/microcode/x.bin": b"m" * 999}) + bytes(700)])
def test_modules_of_an_initramfs(tmp_path: Path, packed: str, early: bytes) -> None:
    path = tmp_path / "initrd"
    whole = early + PACKED[packed](cpio(MODULES))
    path.write_bytes(whole)
    assert modules_in(path) == {"lz4", "nd_pmem"}
    path.write_bytes(whole[: len(whole) // 2])
    assert modules_in(path) is None


def test_what_is_no_initramfs(tmp_path: Path) -> None:
    for content in (b"MZ" + bytes(5000), b"070701" + b"f" * 5000, b"\x1f\x8b" + os.urandom(500), b"\x02!L\x18" + bytes(100)):
        (tmp_path / "initrd").write_bytes(content)
        assert modules_in(tmp_path / "initrd") is None
    assert modules_in(tmp_path / "nothing") is None


def header(size: bytes = b"00000000", path_size: bytes = b"00000003") -> bytes:
    """The header of a file in a cpio archive."""
    return b"070701" + b"0" * 48 + size + b"0" * 32 + path_size + b"0" * 8


HOSTILE = {
    "negative size": header(size=b"-0000004") + b"x\0\0" + bytes(400),
    "negative path": header(path_size=b"-0000074") + bytes(400),
    "signed size": header(size=b"+0000004") + b"x\0\0" + bytes(400),
    "path of 4 GiB": header(path_size=b"ffffffff") + bytes(400),
    "file of 4 GiB": header(size=b"fffffffc") + b"x\0\0" + bytes(400),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "initrd").write_bytes(content)
    assert modules_in(tmp_path / "initrd") is None  # and returns at all


def test_bounds_hold_for_all_archives_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "initrd"
    archive = cpio({"a.ko": bytes(MEGABYTE), "b.ko": b""})
    path.write_bytes(archive * 3)
    assert modules_in(path) == {"a", "b"}
    monkeypatch.setattr(initramfs, "MAX_FILES", 8)  # each archive has three, with its end
    assert modules_in(path) is None
    monkeypatch.setattr(initramfs, "MAX_FILES", 9)
    assert modules_in(path) == {"a", "b"}
    monkeypatch.setattr(initramfs, "MAX_UNPACKED", len(archive) * 3 - 1)
    assert modules_in(path) is None
    monkeypatch.setattr(initramfs, "MAX_UNPACKED", len(archive) * 3)
    assert modules_in(path) == {"a", "b"}


@pytest.mark.parametrize("packed", ["gzip", "xz", "zstd", "lz4"])
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: str) -> None:
    monkeypatch.setattr(initramfs, "MAX_UNPACKED", 20 * MEGABYTE)
    path = tmp_path / "initrd"
    path.write_bytes(PACKED[packed](cpio({"a.ko": bytes(19 * MEGABYTE)})))
    assert modules_in(path) == {"a"}
    path.write_bytes(PACKED[packed](cpio({"a.ko": bytes(20 * MEGABYTE)})))
    assert modules_in(path) is None


@pytest.mark.parametrize(("container", "lzma_filter"), [(lzma.FORMAT_XZ, lzma.FILTER_LZMA2), (lzma.FORMAT_ALONE, lzma.FILTER_LZMA1)])
@pytest.mark.parametrize(("dictionary", "expected"), [(8 * MEGABYTE, {"lz4", "nd_pmem"}), (512 * MEGABYTE, None)])
def test_size_of_the_dictionary(tmp_path: Path, container: int, lzma_filter: int, dictionary: int, expected: set[str] | None) -> None:
    """The memory for it is allocated before the first byte is unpacked."""
    fast = {"id": lzma_filter, "dict_size": dictionary, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3, "nice_len": 3}
    check = lzma.CHECK_CRC32 if container == lzma.FORMAT_XZ else -1
    (tmp_path / "initrd").write_bytes(lzma.compress(cpio(MODULES), container, check, filters=[fast]))
    assert modules_in(tmp_path / "initrd") == expected


def names() -> Iterator[bytes]:
    yield b"/" * 4000 + b"x.ko"
    yield b"x" * 256 + b".ko"
    yield b"\xff.ko"


def test_names_of_any_kind(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(cpio({os.fsdecode(name): b"" for name in names()}))
    assert modules_in(tmp_path / "initrd") == {"x", "\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize("behind", range(0, 113, 4))
def test_archives_at_any_offset(tmp_path: Path, behind: int) -> None:
    """Also across what is read at once."""
    early = cpio({"early.ko": b""})
    path = tmp_path / "initrd"
    path.write_bytes(early.ljust(initramfs.READ_SIZE - behind, b"\0") + gzip.compress(cpio(MODULES)))
    assert modules_in(path) == {"early", "lz4", "nd_pmem"}
    path.write_bytes(early.ljust(initramfs.READ_SIZE - behind, b"\0") + cpio(MODULES))
    assert modules_in(path) == {"early", "lz4", "nd_pmem"}
