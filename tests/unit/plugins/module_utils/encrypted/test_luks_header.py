# SPDX-License-Identifier: GPL-3.0-or-later
"""LUKS headers: recorded ones, damaged ones, and those of the real cryptsetup with the commands that are given to it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted import cryptsetup
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted.cryptsetup import Key
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.devices import Block
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks import crypttab
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks.header import Header, read
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.encrypted.encrypted_machine import (
    OTHER,
    luks_header,
)

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
CRYPTSETUP = shutil.which("cryptsetup", path=PATH)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return tmp_path / "device"


def found(device: Path, content: bytes) -> Header | None:
    device.write_bytes(content.ljust(1 << 20, b"\0"))
    header: Header | None = read(Host(None), str(device))
    return header


def test_what_is_in_a_header(device: Path) -> None:
    for size in (16384, 1 << 22):
        header = found(device, luks_header(OTHER, tokens=["systemd-tpm2"], size=size))
        assert header == Header(2, OTHER, "NVM_SWAP", 1 << 20, "aes-xts-plain64", ("systemd-tpm2",), "")


def test_no_header(device: Path) -> None:
    assert found(device, b"") is None and found(device, os.urandom(65536)) is None
    assert read(Host(None), str(device) + ".missing") is None


def test_luks1(device: Path) -> None:
    content = (b"LUKS\xba\xbe\0\1" + bytes(160)) + OTHER.encode()
    assert found(device, content) == Header(1, OTHER)


@pytest.mark.parametrize(
    ("change", "damage"),
    [
        ({100: b"\xff"}, "the first header has another checksum than its content"),
        ({0: bytes(4096)}, "the first header is missing"),
        ({16384 + 5000: b"\xff"}, "the second header has another checksum than its content"),
        ({8: b"\xff" * 8}, "the first header has the size 18446744073709551615"),
        ({72: b"md5".ljust(32, b"\0")}, "the first header has an unknown checksum"),
    ],
)
def test_a_header_of_which_one_copy_is_damaged(device: Path, change: dict[int, bytes], damage: str) -> None:
    content = bytearray(luks_header(OTHER))
    for place, value in change.items():
        content[place : place + len(value)] = value
    header = found(device, bytes(content))
    assert header is not None and (header.uuid, header.damage) == (OTHER, damage)


def test_a_header_that_is_damaged(device: Path) -> None:
    content = bytearray(luks_header(OTHER))
    content[200] = content[16384 + 200] = 1
    header = found(device, bytes(content))
    assert header is not None and header.uuid == "" and "first" in header.damage and "second" in header.damage
    device.write_bytes(luks_header(OTHER)[:9000])  # the device ends in it
    cut: Header | None = read(Host(None), str(device))
    assert cut is not None and cut.damage


def test_content_that_is_not_understood(device: Path) -> None:
    for data in (0, -1, 1 << 40):
        header = found(device, luks_header(OTHER, data=data))
        assert header is not None and "JSON" in header.damage and header.data == 0


# the real cryptsetup -----------------------------------------------------------------------------------------------------


def run(argv: Sequence[str], data: bytes | None) -> tuple[int, str, str]:
    done = subprocess.run(list(argv), input=data, capture_output=True, check=False, env={"PATH": PATH, "LC_ALL": "C"})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def block(device: Path) -> Block:
    if CRYPTSETUP is None:
        pytest.skip("cryptsetup is not installed")
    device.write_bytes(b"")
    os.truncate(device, 64 << 20)
    return Block(str(device), str(device), "", "", 64 << 20, False)


def test_a_header_of_the_real_program(block: Block, tmp_path: Path) -> None:
    host, file = Host(run), tmp_path / "key"
    file.write_bytes(os.urandom(63) + b"\n")
    key, passphrase = Key(file=str(file), random=True), Key(passphrase=b"of several words")
    cryptsetup.make(host, block, OTHER, "NVM_SWAP", key)
    header = read(host, block.path)
    assert header == Header(2, OTHER, "NVM_SWAP", 16 << 20, "aes-xts-plain64", (), "")
    assert cryptsetup.opens(host, block, key) and not cryptsetup.opens(host, block, passphrase)
    new = tmp_path / "new"
    new.write_bytes(passphrase.passphrase)
    cryptsetup.add_file(host, block, key, Key(file=str(new), random=True))
    assert cryptsetup.opens(host, block, passphrase)
    third = tmp_path / "third"
    third.write_bytes(b"third")
    cryptsetup.add_file(host, block, passphrase, Key(file=str(third), random=True))
    assert cryptsetup.opens(host, block, Key(file=str(third)))
    with pytest.raises(Refused) as caught:
        cryptsetup.add_file(host, block, Key(passphrase=b"wrong"), Key(file=str(third), random=True))
    assert caught.value.code == "command_failed" and "wrong" not in caught.value.message


def test_a_passphrase_on_standard_input_of_the_real_program(block: Block) -> None:
    host, key = Host(run), Key(passphrase=b"without a newline", random=True)  # or this test would wait for its derivation
    cryptsetup.make(host, block, OTHER, "NVM_SWAP", key)
    assert cryptsetup.opens(host, block, key) and not cryptsetup.opens(host, block, Key(passphrase=key.passphrase + b"\n"))


# crypttab ----------------------------------------------------------------------------------------------------------------

LINE = crypttab.render("NVM_SWAP", OTHER, "", ("luks", "nofail"))


@pytest.mark.parametrize("text", ["", "\n", "a b", "a b\n", "# NVM_SWAP x\n\ta b c d\n\n", "NVM_SWAP_2 UUID=1 none luks\n"])
def test_adding_and_removing_are_inverse(text: str) -> None:
    added = crypttab.with_line(text, LINE, "NVM_SWAP")
    assert crypttab.fields_of(added, "NVM_SWAP") == ["NVM_SWAP", "UUID=" + OTHER, "none", "luks,nofail"]
    assert crypttab.with_line(added, LINE, "NVM_SWAP") == added
    assert crypttab.without(added, "NVM_SWAP") == text


def test_one_line_stays() -> None:
    text = "a b\r\n  NVM_SWAP UUID=1 none swap\nNVM_SWAP x\n# end"
    assert crypttab.with_line(text, LINE, "NVM_SWAP") == "a b\r\n%s\n# end" % LINE
    spaced = LINE.replace(" ", "\t  ") + "\n"
    assert crypttab.with_line(spaced, LINE, "NVM_SWAP") == spaced
