# SPDX-License-Identifier: GPL-3.0-or-later
"""Blockers of a machine whose swap area is encrypted, and what other modules make of the device."""

from __future__ import annotations

import os

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import readiness
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.survey import Survey
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import fstab
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.encrypted.encrypted_machine import (
    KEY_FILE,
    MAPPER,
    OTHER,
    Machine,
    luks_header,
)

ABOUT_THE_DEVICE = (
    "device_ephemeral", "device_claimed", "device_in_use", "mapping_closed", "not_in_crypttab", "key_exposed", "holds_filesystem",
    "uuid_elsewhere", "swap_inactive",
)  # fmt: skip
CHECKS = {check.code: check for check in readiness.CHECKS}


def codes(machine: Machine, device: str = "/dev/NVM_SWAP") -> list[str]:
    survey, found = Survey(machine.host, device, 0), list[str]()
    for code in ABOUT_THE_DEVICE:
        if not set(found).intersection(CHECKS[code].unless):
            for blocker in CHECKS[code].run(survey):
                assert blocker.message and blocker.remedy
                found.append(blocker.code)
    return found


def test_an_encrypted_swap_area_is_none(machine: Machine) -> None:
    machine.encrypted(b"x")
    for device in ("/dev/NVM_SWAP", MAPPER, "/dev/pmem0"):
        assert codes(machine, device) == []
        survey = Survey(machine.host, device, 0)
        assert survey.block.name == "dm-0" and survey.swap is not None and [each.name for each in survey.mappings] == ["NVM_SWAP"]


def test_a_random_key(machine: Machine) -> None:
    machine.encrypted(b"x", line="/dev/urandom swap")
    assert codes(machine) == ["device_ephemeral"]


def test_a_mapping_that_is_closed(machine: Machine) -> None:
    machine.encrypted(b"x", is_open=False)
    machine.write("/run/udev/data/b259:0", b"E:ID_FS_TYPE=crypto_LUKS\n")
    os.makedirs(machine.host.path("/dev/disk/by-uuid"))
    os.symlink("../../pmem0", machine.host.path("/dev/disk/by-uuid/" + machine.luks_uuid))
    assert codes(machine) == ["mapping_closed"], "the line that opens it is no other use"
    with pytest.raises(Refused) as caught:
        fstab.present(Transaction(machine.host, check_mode=False), "/dev/NVM_SWAP")
    assert caught.value.code == "not_swap"


def test_a_mapping_that_nothing_opens(machine: Machine) -> None:
    machine.encrypted(b"x")
    machine.write("/etc/crypttab", b"")
    assert codes(machine) == ["not_in_crypttab"]
    machine.write("/proc/cmdline", b"rd.luks.name=%s=NVM_SWAP\n" % machine.luks_uuid.encode())
    assert codes(machine) == []


def test_luks_of_another_program_is_as_good(machine: Machine) -> None:
    machine.encrypted(b"x", uuid=OTHER)
    assert machine.start("pmem0", 32768) == luks_header(OTHER) and codes(machine) == []


def test_a_key_that_others_can_read(machine: Machine) -> None:
    machine.encrypted(b"x", line=KEY_FILE + " luks")
    machine.write(KEY_FILE, b"x", 0o644)
    assert codes(machine) == ["key_exposed"]


def test_the_line_in_fstab(machine: Machine) -> None:
    """The UUID is that of the swap area, with and without encryption: a conversion keeps the line."""
    line = "UUID=%s swap swap defaults,nofail,pri=10 0 0" % machine.swap_uuid
    with Transaction(machine.host, check_mode=True) as tx:
        assert fstab.present(tx, "/dev/NVM_SWAP")["line"] == fstab.present(tx, MAPPER)["line"] == line
    machine.encrypted(b"x")
    with Transaction(machine.host) as tx:
        assert fstab.present(tx, "/dev/NVM_SWAP")["line"] == line
    with Transaction(machine.host) as tx:
        assert fstab.present(tx, MAPPER)["line"] == line and not tx.changed
    os.unlink(machine.host.path("/etc/fstab"))
