# SPDX-License-Identifier: GPL-3.0-or-later
"""fstab: our line alone comes and goes; every other byte stays."""

from __future__ import annotations

import errno
import json
import os
import random
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import fstab, identity

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

OURS = "6f1c1e1e-9d4b-8a57-9f0e-2f6d0a6f2b11"
OTHER = "0b7b6c2e-5a0d-4e8f-8a7e-8c1f6a2d9e34"
DERIVED = "125d6841-693e-8d5c-94ee-543373e18bd8"  # of the machine id below and NVM_SWAP
LINE = "UUID=%s swap swap defaults,nofail,pri=10 0 0" % OURS
DEBIAN = """\
# /etc/fstab: static file system information.
#
# <file system> <mount point>   <type>  <options>       <dump>  <pass>
UUID=0b7b6c2e-5a0d-4e8f-8a7e-8c1f6a2d9e34 /               ext4    errors=remount-ro 0       1
# swap was on /dev/vda5 during installation
UUID=1d8f0a61-7e0b-4d5c-8b0c-5f1e2a3b4c5d none            swap    sw              0       0
/dev/sr0\t/media/cdrom0\tudf,iso9660 user,noauto\t0\t0
"""
IDENTITY = fstab.Identity(frozenset((OURS,)), frozenset(("NVM_SWAP",)), frozenset(("/dev/NVM_SWAP",)))
OWNED = [
    LINE,
    "/dev/NVM_SWAP swap swap defaults 0 0",
    "\t /dev/NVM_SWAP\tnone\tswap",
    "UUID=%s none swap sw,pri=3 0 0 # ours" % OURS.upper(),
    'UUID="%s" none swap sw' % OURS,
    "LABEL=NVM_SWAP none swap sw 0 0\r",
    "/dev/disk/by-uuid/%s none swap sw" % OURS,
    "/dev/disk/by-label/NVM_SWAP none swap sw",
    "/dev/NVM\\137SWAP none swap sw",
]
FOREIGN = [
    "",
    " \t",
    "# " + LINE,
    "#UUID=%s none swap sw 0 0" % OURS,
    "UUID=%s none swap sw 0 0" % OTHER,
    "UUID=%s /mnt ext4 defaults 0 2" % OURS,
    "/dev/NVM_SWAP swap",
    "/dev/NVM_SWAP2 none swap sw",
    "PARTUUID=%s none swap sw" % OURS,
    "LABEL=NVM none swap sw",
    "/swapfile none swap sw 0 0",
    "/data/%s none swap sw" % OURS,
    "tmpfs /tmp tmpfs",
    "one\x0btwo\u2028three swap swap \u00a0",
    "server:/with\\040space /mnt nfs4 _netdev 0 0\r",
    "caf\udce9 \udcff\udcfe none",
]


@pytest.mark.parametrize("line", OWNED)
def test_our_line_in_every_form(line: str) -> None:
    assert IDENTITY.owns(line)
    assert fstab.without("a\n%s\nb\n" % line, IDENTITY.owns) == "a\nb\n"


@pytest.mark.parametrize("line", FOREIGN)
def test_lines_that_are_not_ours(line: str) -> None:
    assert not IDENTITY.owns(line)


def test_the_fields_of_a_line() -> None:
    assert fstab.parse_line("# a none swap") is None and fstab.parse_line("a b") is None
    assert fstab.parse_line("a\\040b  /c\tswap\n") == fstab.FstabEntry("a b", "/c", "swap", "defaults", "0", "0")
    assert fstab.parse_line("a /c swap sw 1 2 # more") == fstab.FstabEntry("a", "/c", "swap", "sw", "1", "2")


def texts() -> Iterator[str]:
    """Files of every shape, by hand and at random (the same ones in every run)."""
    yield from ("", "\n", "\n\n", "a", "a\n", "\r\n", "a\r", DEBIAN, DEBIAN[:-1], DEBIAN.replace("\n", "\r\n"), "#")
    chance = random.Random(2026)
    for _each in range(300):
        lines = [chance.choice(FOREIGN) + chance.choice(["\n", "\n", "\n", "\r\n", "\n\n"]) for _line in range(8)]
        text = "".join(lines[: chance.randrange(9)])
        yield text if chance.random() < 0.5 else text + chance.choice(FOREIGN)
    for _each in range(300):
        yield "".join(chance.choice("a #\t\n\r\\\x00=\"'/") for _char in range(chance.randrange(40)))


def test_what_was_added_goes_without_a_trace() -> None:
    for text in texts():
        added = fstab.with_line(text, LINE, IDENTITY.owns)
        assert added.startswith(text)
        assert [each for each in fstab.split(added) if IDENTITY.owns(each)] == [fstab.split(added)[-1]]
        assert fstab.with_line(added, LINE, IDENTITY.owns) == added
        assert fstab.without(added, IDENTITY.owns) == text
        assert fstab.without(text, IDENTITY.owns) == text


def test_only_our_line_changes_in_its_place() -> None:
    for owned in OWNED:
        for text in texts():
            if text and not text.endswith("\n"):
                text += "\n"
            changed = fstab.with_line(text + owned + "\n" + DEBIAN, LINE, IDENTITY.owns)
            assert changed.startswith(text) and changed.endswith("\n" + DEBIAN)
            assert fstab.same(changed[len(text) : -len(DEBIAN)], LINE)


@pytest.mark.parametrize(
    "line",
    [
        "UUID=%s\tnone\tswap\tpri=10,nofail,defaults" % OURS,
        "  " + LINE.replace(OURS, OURS.upper()),
        LINE[:-4],
        LINE + "\r",
    ],
)
def test_a_line_that_says_the_same_stays(line: str) -> None:
    text = "a\n%s\nb" % line
    assert fstab.with_line(text, LINE, IDENTITY.owns) == text


def test_several_lines_become_one() -> None:
    text = "a\n/dev/NVM_SWAP swap swap defaults 0 0\n%s\nb\nLABEL=NVM_SWAP none swap sw" % LINE
    assert fstab.with_line(text, LINE, IDENTITY.owns) == "a\n%s\nb\n" % LINE
    text = "LABEL=NVM_SWAP none swap sw\r\nb\n/dev/NVM_SWAP none swap sw\n"
    assert fstab.with_line(text, LINE, IDENTITY.owns) == LINE + "\r\nb\n"


# on a machine


@pytest.fixture
def machine(host: Host, plant: Plant) -> Host:
    content = bytearray(4096)
    struct.pack_into("=III", content, 1024, 1, 255, 0)
    content[1036:1052] = uuid.UUID(OURS).bytes
    content[1052:1060] = b"NVM_SWAP"
    content[4086:] = b"SWAPSPACE2"
    plant(
        {
            "/dev/pmem0": bytes(content),
            "/etc/machine-id": "8e7b3b3f2c0d4c2f9a52f0f4f8a3c1d6\n",
            "/etc/fstab": DEBIAN,
        }
    )
    os.symlink("pmem0", host.path("/dev/NVM_SWAP"))
    return host


def present(host: Host, check: bool = False, **options: Any) -> tuple[Transaction, dict[str, Any]]:
    with Transaction(host, check) as transaction:
        return transaction, fstab.present(transaction, "/dev/NVM_SWAP", **options)


def absent(host: Host, check: bool = False, **options: Any) -> tuple[Transaction, dict[str, Any]]:
    with Transaction(host, check) as transaction:
        return transaction, fstab.absent(transaction, "/dev/NVM_SWAP", **options)


def refused(host: Host, verb: Callable[..., tuple[Transaction, dict[str, Any]]] = present, **options: Any) -> str:
    before = host.read_bytes("/etc/fstab")
    with pytest.raises(Refused) as caught:
        verb(host, **options)
    assert host.read_bytes("/etc/fstab") == before
    assert caught.value.message and caught.value.remedy
    return str(caught.value.code)


def test_there_and_back(machine: Host, transcript: Transcript) -> None:
    transaction, result = present(machine)
    assert transaction.changed and result == {"path": "/etc/fstab", "uuid": OURS, "line": LINE, "warnings": []}
    assert machine.read("/etc/fstab") == DEBIAN + LINE + "\n"
    assert transaction.diff[0]["before"] == DEBIAN
    assert not present(machine)[0].changed
    transaction, result = absent(machine)
    assert transaction.changed and result["line"] is None
    assert machine.read("/etc/fstab") == DEBIAN
    assert not absent(machine)[0].changed
    assert transcript.calls == []


def test_bytes_of_no_encoding_survive(machine: Host, plant: Plant) -> None:
    content = b"# caf\xe9 \xff\xfe\n" + DEBIAN.encode()[:-1]
    content += b"\n/dev/pmem0 none swap x=\xfe"
    plant({"/etc/fstab": content})
    transaction, result = present(machine)
    assert machine.read_bytes("/etc/fstab") == content + b"\n" + LINE.encode()
    returned = json.dumps([transaction.diff, result], ensure_ascii=False)
    assert returned.encode("utf-8") and "caf\\\\xe9" in returned and "x=\\\\xfe" in returned
    absent(machine)
    assert machine.read_bytes("/etc/fstab") == content


def test_systemd_is_told_of_a_change_only(machine: Host, plant: Plant, transcript: Transcript) -> None:
    plant({"/run/systemd/system/x": ""})
    transcript.record("systemctl daemon-reload")
    present(machine)
    assert transcript.calls == ["systemctl daemon-reload"]
    present(machine)
    absent(machine, check=True)
    present(machine, path="/etc/fstab.other")
    assert transcript.calls == ["systemctl daemon-reload"]


def test_the_file_comes_back_if_systemd_cannot_be_told(machine: Host, plant: Plant, transcript: Transcript) -> None:
    plant({"/run/systemd/system/x": ""})
    transcript.record("systemctl daemon-reload", rc=1, err="Failed to reload")
    assert refused(machine) == "command_failed"


def test_check_mode_writes_nothing(machine: Host) -> None:
    transaction, result = present(machine, check=True)
    assert transaction.changed and result["line"] == LINE
    assert transaction.diff[0]["after"] == DEBIAN + LINE + "\n"
    assert machine.read("/etc/fstab") == DEBIAN


def test_check_mode_before_the_swap_area_is_made(machine: Host) -> None:
    os.unlink(machine.path("/dev/pmem0"))
    assert present(machine, check=True)[1]["uuid"] == DERIVED
    assert refused(machine) == "not_swap"


def test_a_device_without_swap(machine: Host, plant: Plant) -> None:
    plant({"/dev/pmem0": bytes(65536)})
    assert refused(machine) == "not_swap"
    assert present(machine, uuid=OTHER.upper())[1]["uuid"] == OTHER


def test_the_line_of_an_earlier_uuid_is_replaced(machine: Host, plant: Plant) -> None:
    plant({"/etc/fstab": DEBIAN + LINE.replace(OURS, DERIVED) + "\n"})
    present(machine)
    assert machine.read("/etc/fstab") == DEBIAN + LINE + "\n"


def test_the_line_goes_after_the_device_has_gone(machine: Host, plant: Plant) -> None:
    plant({"/etc/fstab": DEBIAN + LINE.replace(OURS, DERIVED) + "\n"})
    os.unlink(machine.path("/dev/pmem0"))
    os.unlink(machine.path("/dev/NVM_SWAP"))
    absent(machine)
    assert machine.read("/etc/fstab") == DEBIAN


TEMPLATE = "8f0d1d1e-23a9-8b1c-9c7e-0d5a4b3c2e1f"  # of the machine id that the template had


@pytest.mark.parametrize("device", ["same", "cloned", "missing"])
def test_a_clone_with_a_new_machine_id_keeps_one_line(machine: Host, plant: Plant, device: str) -> None:
    former = LINE.replace(OURS, TEMPLATE)
    plant({"/etc/fstab": DEBIAN.replace("/dev/sr0", former + "\n/dev/sr0")})
    if device == "cloned":  # the NVM was cloned as well, and has not been renamed
        os.makedirs(machine.path("/dev/disk/by-uuid"))
        os.symlink("../../pmem0", machine.path("/dev/disk/by-uuid/" + TEMPLATE))
    elif device == "missing":
        os.unlink(machine.path("/dev/pmem0"))
    transaction, result = present(machine, check=device == "missing")
    uuid = DERIVED if device == "missing" else OURS
    expected = DEBIAN.replace("/dev/sr0", LINE.replace(OURS, uuid) + "\n/dev/sr0")
    assert transaction.diff[0]["after"] == expected
    assert [TEMPLATE in text for text in result["warnings"]] == [True]
    if device != "missing":
        assert machine.read("/etc/fstab") == expected
        assert not present(machine)[0].changed and present(machine)[1]["warnings"] == []


def test_lines_of_several_former_machine_ids_become_one(machine: Host, plant: Plant) -> None:
    older = LINE.replace(OURS, TEMPLATE.replace("8f0d", "7f0d"))
    plant({"/etc/fstab": DEBIAN + older + "\n" + LINE.replace(OURS, TEMPLATE) + "\n" + LINE + "\n"})
    present(machine)
    assert machine.read("/etc/fstab") == DEBIAN + LINE + "\n"


def test_the_line_of_a_former_machine_id_is_removed_too(machine: Host, plant: Plant) -> None:
    plant({"/etc/fstab": DEBIAN + LINE.replace(OURS, TEMPLATE) + "\n"})
    assert absent(machine)[0].changed
    assert machine.read("/etc/fstab") == DEBIAN


@pytest.mark.parametrize("line", [
    LINE.replace(OURS, OTHER),  # version 4: mkswap made it
    LINE.replace(OURS, TEMPLATE).replace(" swap swap ", " none swap "),  # not as we write it
    LINE.replace(OURS, TEMPLATE).replace(" swap swap ", " /mnt ext4 "),
    "UUID=%s0 swap swap defaults 0 0" % TEMPLATE,
    "PARTUUID=%s swap swap defaults 0 0" % TEMPLATE,
])
def test_lines_of_others_are_not_taken_for_former_ones(machine: Host, plant: Plant, line: str) -> None:
    plant({"/etc/fstab": DEBIAN + line + "\n"})
    present(machine)
    assert machine.read("/etc/fstab") == DEBIAN + line + "\n" + LINE + "\n"
    absent(machine)
    assert machine.read("/etc/fstab") == DEBIAN + line + "\n"


@pytest.mark.parametrize("name", ["OTHER", "pmem1"])
def test_the_line_of_another_reservation_of_this_machine_stays(machine: Host, plant: Plant, name: str) -> None:
    """Its device may be missing now."""
    line = LINE.replace(OURS, identity.swap_uuid(machine, name))
    plant({"/etc/fstab": DEBIAN + line + "\n", "/etc/udev/rules.d/61-nvm-fastboot-OTHER.rules": ""})
    present(machine)
    assert machine.read("/etc/fstab") == DEBIAN + line + "\n" + LINE + "\n"


def test_the_line_of_another_device_stays(machine: Host, plant: Plant) -> None:
    line = LINE.replace(OURS, TEMPLATE)
    plant({"/etc/fstab": DEBIAN + line + "\n", "/dev/vdb": "", "/dev/disk/by-uuid/x": ""})
    os.symlink("../../vdb", machine.path("/dev/disk/by-uuid/" + TEMPLATE))
    present(machine)
    assert machine.read("/etc/fstab") == DEBIAN + line + "\n" + LINE + "\n"


def test_several_lines_are_said(machine: Host, plant: Plant) -> None:
    plant({"/etc/fstab": DEBIAN + LINE + "\n/dev/NVM_SWAP swap swap defaults 0 0\n"})
    assert "had 2 lines" in present(machine)[1]["warnings"][0]
    assert machine.read("/etc/fstab") == DEBIAN + LINE + "\n"


def test_a_line_of_others_for_the_same_device_stays_and_is_said(machine: Host, plant: Plant) -> None:
    text = DEBIAN + "/dev/pmem0 none swap sw 0 0\n"
    plant({"/etc/fstab": text})
    assert present(machine)[1]["warnings"] == ["Line 8 uses the same device: /dev/pmem0 none swap sw 0 0"]
    absent(machine)
    assert machine.read("/etc/fstab") == text


def test_other_names_and_units_for_the_same_device_are_said(machine: Host, plant: Plant) -> None:
    """As guides to swap units have them: their priority counts if systemd is first to start them."""
    by_uuid = "dev-disk-by\\x2duuid-x.swap"
    plant({"/etc/fstab": DEBIAN + "PARTUUID=aa-01 none swap sw 0 0\n", "/dev/disk/by-partuuid/.keep": "",
           "/etc/systemd/system/dev-pmem0.swap": "[Swap]\nWhat=/dev/pmem0\nPriority=100\n",
           "/etc/systemd/system/" + by_uuid: "[Swap]\nWhat=/dev/disk/by-uuid/%s\n" % OURS,
           "/etc/systemd/system/dev-vdb.swap": "[Swap]\nWhat=/dev/vdb\n"})  # fmt: skip
    os.symlink("../../pmem0", machine.path("/dev/disk/by-partuuid/aa-01"))
    os.symlink("/dev/null", machine.path("/etc/systemd/system/dev-masked.swap"))
    line, one, other = present(machine)[1]["warnings"]
    assert line == "Line 8 uses the same device: PARTUUID=aa-01 none swap sw 0 0"
    assert "disable --now '%s'" % by_uuid in one and "/etc/systemd/system/dev-pmem0.swap uses the same device" in other


def test_options_and_priority(machine: Host) -> None:
    assert present(machine, options=["sw"], priority=-1)[1]["line"] == "UUID=%s swap swap sw 0 0" % OURS
    assert present(machine, options=[], priority=0)[1]["line"] == "UUID=%s swap swap defaults,pri=0 0 0" % OURS
    assert machine.read("/etc/fstab").count(OURS) == 1
    for options in (["a b"], ["a,b"], [""], ["pri=3"], ["x#"]):
        assert refused(machine, options=options) == "options_invalid"
    assert refused(machine, priority=40000) == "priority_invalid"
    assert refused(machine, uuid="x") == "uuid_invalid"
    assert refused(machine, absent, uuid="x") == "uuid_invalid"


def test_a_missing_file_is_made(machine: Host) -> None:
    os.unlink(machine.path("/etc/fstab"))
    assert not absent(machine)[0].changed
    present(machine)
    assert machine.read("/etc/fstab") == LINE + "\n"
    assert os.stat(machine.path("/etc/fstab")).st_mode & 0o7777 == 0o644


def test_a_symbolic_link_stays_one(machine: Host) -> None:
    os.rename(machine.path("/etc/fstab"), machine.path("/etc/fstab.real"))
    os.symlink("fstab.real", machine.path("/etc/fstab"))
    present(machine)
    assert os.readlink(machine.path("/etc/fstab")) == "fstab.real"
    assert machine.read("/etc/fstab.real") == DEBIAN + LINE + "\n"


def test_what_is_no_file_is_refused(machine: Host) -> None:
    os.unlink(machine.path("/etc/fstab"))
    os.mkdir(machine.path("/etc/fstab"))
    for verb in (present, absent):
        with pytest.raises(Refused) as caught:
            verb(machine)
        assert caught.value.code == "file_unreadable"


def test_a_read_only_filesystem_is_refused(machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**_options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    assert refused(machine) == "file_not_writable"


def test_a_file_that_another_program_changes_back_is_noticed(machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    replace: Callable[[str, str, int], None] = machine.replace

    def interfering(path: str, content: str, mode: int = 0o644) -> None:
        replace(path, content.replace("nofail", "fail"), mode)

    monkeypatch.setattr(machine, "replace", interfering)
    assert refused(machine) == "verify_failed"
