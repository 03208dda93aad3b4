# SPDX-License-Identifier: GPL-3.0-or-later
"""Identities as text and on a device: what is written is read again, and anything else is a named error."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuse_store.cli import main
from fuse_store.errors import Damaged, NotFound, StoreError, UsageError
from fuse_store.hibernation.slots.layout import EDGE, MACHINE
from fuse_store.hibernation.slots.manage import create, listing
from fuse_store.snapshot.golden import region
from fuse_store.snapshot.golden.identity import MAX_SIZE, Identity, InterfaceIdentity, load, parse, text

WEB07 = """
hostname = "web07.example.com"
machine_id = "0123456789abcdef0123456789abcdef"
ssh_host_keys = "keys"

[[interfaces]]
match = "enp1s0"
mac = "52:54:00:AB:00:07"
addresses = ["192.0.2.7/24", "2001:db8::7/64"]
gateway = ["192.0.2.1", "2001:db8::1"]
dns = "192.0.2.53"

[[interfaces]]
match = "virtio_net"
"""
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n"
KEYS = {"ssh_host_ed25519_key": PRIVATE, "ssh_host_ed25519_key.pub": "ssh-ed25519 AAAA \t\x7f\n"}


@pytest.fixture
def web07(tmp_path: Path) -> Path:
    """A file with an identity, and its keys."""
    (tmp_path / "keys").mkdir()
    for name, content in KEYS.items():
        (tmp_path / "keys" / name).write_text(content)
    (tmp_path / "web07.toml").write_text(WEB07)
    return tmp_path / "web07.toml"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A file with a table of slots."""
    with open(tmp_path / "device", "wb") as file:
        file.truncate(4 << 20)
    create(tmp_path / "device")
    yield tmp_path / "device"


def test_a_file_says_all_of_it(web07: Path) -> None:
    identity = load(web07)
    assert (identity.hostname, identity.machine_id, identity.ssh_host_keys) == ("web07.example.com", "0123456789abcdef" * 2, KEYS)
    first = InterfaceIdentity(
        "enp1s0", "52:54:00:ab:00:07", ("192.0.2.7/24", "2001:db8::7/64"), ("192.0.2.1", "2001:db8::1"), ("192.0.2.53",)
    )  # fmt: skip
    assert identity.interfaces == (first, InterfaceIdentity("virtio_net"))
    assert parse(text(identity).encode()) == identity
    assert "secret" not in text(identity, secret=False) and "# ssh_host_keys: ssh_host_ed25519_key, " in text(identity, secret=False)
    assert parse(b"") == parse(b'machine_id = "new"\nssh_host_keys = "new"') == Identity()


@pytest.mark.parametrize(("content", "cause"), [
    ('host = "x"', "host: no such setting; there are hostname, machine_id"), ("hostname = 1", "hostname: not a text"),
    ('hostname = "a_b"', "hostname: letters, digits and hyphens"), ('hostname = "-a"', "hostname: letters"),
    (f'hostname = "{"a" * 65}"', "64 at most"), ('machine_id = "New"', "machine_id: 32 hexadecimal digits"),
    (f'machine_id = "{"0" * 32}"', "machine_id: 32"), ('seed = "00"', "seed: 64 hexadecimal digits"),
    ("interfaces = 1", r"interfaces: at most 64 tables"), ("interfaces = [1]", "interfaces: at most 64 tables"),
    ("[[interfaces]]", r"interfaces\[0\].match: the name of an interface"), ('[[interfaces]]\nmatch = "a b"', "match: the name"),
    ('[[interfaces]]\nmatch = "a"\nip = "x"', r"interfaces\[0\].ip: no such setting; there are match, mac, addresses, gateway, dns"),
    ('[[interfaces]]\nmatch = "a"\nmac = "01:00:5e:00:00:01"', "mac: the hardware address of one machine"),
    ('[[interfaces]]\nmatch = "a"\nmac = "00:00:00:00:00:00"', "mac: the hardware address of one machine"),
    ('[[interfaces]]\nmatch = "a"\naddresses = ["192.0.2.7"]', "addresses: the length of the prefix is missing"),
    ('[[interfaces]]\nmatch = "a"\naddresses = ["192.0.2.777/24"]', "addresses: '192.0.2.777/24' is not an address"),
    ('[[interfaces]]\nmatch = "a"\naddresses = ["fe80::1%a/64"]', "addresses: 'fe80::1%a/64' is not an address"),
    ('[[interfaces]]\nmatch = "a"\naddresses = [7]', "addresses: '7' is not an address"),
    ('[[interfaces]]\nmatch = "a"\naddresses = ["192.0.2.7/24"]\ngateway = ["192.0.2.1", "192.0.2.2"]', "gateway: more than one of a kind"),
    ('[[interfaces]]\nmatch = "a"\ngateway = "192.0.2.1"', "gateway: there are no addresses"),
    ('[[interfaces]]\nmatch = "a"\n[[interfaces]]\nmatch = "a"', "two have the same match"),
    ("ssh_host_keys = 5", 'ssh_host_keys: "new", a directory, or a table'), ("[ssh_host_keys]", 'ssh_host_keys: "new", a directory'),
    ('ssh_host_keys = "nowhere"', "ssh_host_keys: .*nowhere: No such file"), ('ssh_host_keys = "empty"', "no files such as ssh_host_ed"),
    ('[ssh_host_keys]\n"../x" = "y"', r"ssh_host_keys\.\.\./x: not the name of a host key"),
    ('[ssh_host_keys]\nssh_host_rsa_key = "y"\n"ssh_host_rsa_key.pub" = "ssh-rsa AAAA"', "ssh_host_rsa_key: not an SSH key"),
    ('[ssh_host_keys]\nssh_host_rsa_key = "y"', "ssh_host_rsa_key: the other half of the pair is missing"),
    ("a = " + "[" * 60000, "nested too deeply"), ("x", "Expected"), ("# " + "x" * MAX_SIZE, f"more than {MAX_SIZE} bytes"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, content: str, cause: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text(content)
    with pytest.raises(UsageError, match=f"identity .*/file: .*({cause})"):
        load(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        load(tmp_path / "file")
    with pytest.raises(NotFound):
        load(tmp_path / "none")
    for irregular in (tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match=f"identity {irregular}: not a regular file"):
            load(irregular)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**9))
@example(0)
def test_a_changed_text_is_read_or_refused(seed: int) -> None:
    """Nothing but ValueError comes out, and what is read can be written and read again."""
    chance = random.Random(seed)
    content = bytearray(WEB07.replace('ssh_host_keys = "keys"', 'seed = "' + "ab" * 32 + '"').encode())
    for _change in range(chance.randrange(1, 6)):
        at = chance.randrange(len(content))
        match chance.randrange(4):
            case 0:
                content[at] = chance.randrange(256)
            case 1:
                del content[at : at + chance.randrange(1, 20)]
            case 2:
                content[at:at] = chance.choice([b'"', b"[", b"]]", b"\n", b"=", b"\0", b"'''", b"1e999", b"\\u0000", b"inf"])
            case 3:
                content[at:at] = content[: chance.randrange(len(content))]
    try:
        identity = parse(bytes(content))
    except ValueError:
        return
    assert parse(text(identity).encode()) == identity


def test_on_a_device(device: Path, web07: Path) -> None:
    """It has a seed of its own; the table stays; and it goes without a trace."""
    before = device.read_bytes()
    assert region.read(device) is None
    written = region.write(device, load(web07))
    assert len(written.seed) == 64 and replace(written, seed="") == load(web07)
    assert region.read(device) == written != region.write(device, load(web07))
    assert not listing(device).problem
    after = device.read_bytes()
    assert after[: MACHINE[0]] == before[: MACHINE[0]] and after[EDGE:] == before[EDGE:]
    region.remove(device)
    assert device.read_bytes() == before


@pytest.mark.parametrize("damage", ["torn", "bit", "text", "format", "length"])
def test_a_damaged_one_is_named(device: Path, web07: Path, damage: str) -> None:
    region.write(device, load(web07))
    with open(device, "r+b") as file:
        file.seek(MACHINE[0])
        content = bytearray(file.read(MACHINE[1]))
        if damage == "torn":
            content[512:] = bytes(len(content) - 512)
        elif damage == "bit":
            content[700] ^= 1
        elif damage == "text":
            content = bytearray(b"\xff" * len(content))
        elif damage == "format":
            content[: len("fuse-store-identity 1")] = b"fuse-store-identity 2"
        else:
            content = content.replace(b" 1 ", b" 1 9", 1)
        file.seek(MACHINE[0])
        file.write(content[: MACHINE[1]])
    with pytest.raises(Damaged, match=r"device .*/device: its identity is damaged: .*slots identity DEVICE FILE"):
        region.read(device)


def test_the_verb(device: Path, web07: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def ran(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(("slots", *words))
        return code, *capfd.readouterr()

    assert ran("identity", str(device)) == (0, "", f"{device}: no identity\n")
    assert ran("identity", str(device), str(web07))[::2] == (0, f"{device}: identity of web07.example.com\n")
    code, out, _err = ran("identity", str(device))
    assert code == 0 and 'hostname = "web07.example.com"' in out and "secret" not in out and "seed" not in out
    assert ran("identity", str(device), "--remove") == (0, "", f"{device}: no identity\n")
    for words, cause in (
        (("identity", str(device), str(web07), "--remove"), "either FILE or --remove is possible"),
        (("list", str(device), str(web07)), "is for identity alone"), (("list", str(device), "--remove"), "--remove is for identity alone"),
    ):  # fmt: skip
        code, _out, err = ran(*words)
        assert code == 2 and cause in err
    os.truncate(device, 1 << 20)
    with open(device, "r+b") as file:
        file.write(bytes(1 << 20))
    code, _out, err = ran("identity", str(device))
    assert code == 3 and "has no table of slots" in err
    with pytest.raises(StoreError):
        region.read(device.parent)
