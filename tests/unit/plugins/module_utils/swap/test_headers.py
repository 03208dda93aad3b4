# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading swap headers and images, derived UUIDs, active swap areas."""

from __future__ import annotations

import os
import uuid

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import devices, headers, identity
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.swap.swap_machine import (
    EXT4,
    GPT,
    MACHINE,
    OURS,
    SIZE,
    SWAPS,
    Machine,
    header,
)

# headers


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_a_swap_header_is_read_for_every_page_size(page: int) -> None:
    found = headers.parse_any(header(page=page))
    assert (found.type, found.uuid, found.label, found.page_size) == ("swap", OURS, "NVM_SWAP", page)
    assert (found.version, found.last_page, found.size) == (1, SIZE // page - 1, SIZE - page)


@pytest.mark.parametrize("page", [4096, 16384, 65536])
@pytest.mark.parametrize("magic", list(headers.SUSPEND))
def test_every_suspend_signature_is_one(page: int, magic: bytes) -> None:
    found = headers.parse_any(header(page=page, magic=magic))
    assert (found.type, found.uuid, found.format) == ("swsuspend", OURS, headers.SUSPEND[magic])


def test_the_kernels_own_image_header() -> None:
    found = headers.parse_any(header(magic=b"S1SUSPEND"))
    assert (found.image, found.flags, found.orig) == (16384, 4, b"SWAPSPACE2")


@pytest.mark.parametrize("content", [b"", b"SWAPSPACE2", bytes(4095), bytes(65536), header()[:-1], os.urandom(3000)])
def test_nothing_is_found_in_what_is_no_header(content: bytes) -> None:
    assert headers.parse_any(content) is None


def test_a_label_without_end_or_encoding_does_no_harm() -> None:
    content = bytearray(header())
    content[1052:1068] = b"\xff" * 16
    assert headers.parse_any(bytes(content)).label == "\\xff" * 16


def test_only_the_start_of_the_device_is_read(machine: Machine) -> None:
    machine.write(bytes(65536) + header())
    assert headers.read_header(machine.host, "/dev/NVM_SWAP") is None


def test_a_header_of_a_missing_device(machine: Machine) -> None:
    with pytest.raises(Refused) as caught:
        headers.read_header(machine.host, "/dev/pmem7")
    assert caught.value.code == "device_missing"


def test_pending_image(machine: Machine) -> None:
    machine.write(header())
    assert not headers.pending_image(machine.host, "/dev/NVM_SWAP")
    machine.write(header(magic=b"S1SUSPEND"))
    assert headers.pending_image(machine.host, "/dev/NVM_SWAP")
    assert machine.transcript.calls == []


@pytest.mark.parametrize(
    ("out", "rc", "kind"),
    [(EXT4, 0, "ext4"), (GPT, 0, "partition table (gpt)"), ("", 2, None), ("", 8, "several signatures")],
)
def test_blkid_identifies_other_contents(machine: Machine, out: str, rc: int, kind: str | None) -> None:
    machine.transcript.record("blkid -p -o export /dev/NVM_SWAP", out=out, rc=rc)
    assert headers.contents(machine.host, "/dev/NVM_SWAP") == kind


# identity, devices


def test_the_derived_uuid_is_lasting_and_of_version_8(machine: Machine) -> None:
    found = identity.swap_uuid(machine.host, "NVM_SWAP")
    assert found == identity.swap_uuid(machine.host, "NVM_SWAP") == "125d6841-693e-8d5c-94ee-543373e18bd8"
    assert (uuid.UUID(found).version, uuid.UUID(found).variant) == (8, uuid.RFC_4122)
    assert found != identity.swap_uuid(machine.host, "NVM_SLOT")
    machine.plant({"/etc/machine-id": MACHINE[::-1] + "\n"})
    assert found != identity.swap_uuid(machine.host, "NVM_SWAP")


@pytest.mark.parametrize("content", ["", "uninitialized\n", "00"])
def test_no_uuid_without_a_machine_id(machine: Machine, content: str) -> None:
    machine.plant({"/etc/machine-id": content})
    assert machine.refused(uuid=None) == "machine_id_missing"


@pytest.mark.parametrize("given", ["", "NVM_SWAP", OURS[:-1], "0" * 32])
def test_what_is_no_uuid_is_refused(machine: Machine, given: str) -> None:
    assert machine.refused(uuid=given) == "uuid_invalid"


def test_uuids_are_written_one_way(machine: Machine) -> None:
    assert identity.chosen_uuid(machine.host, "/dev/x", OURS.upper()) == OURS


def test_active_swaps(machine: Machine) -> None:
    machine.plant(
        {
            "/proc/swaps": SWAPS
            + "/swap\\040file                            file\t\t1048572\t\t5120\t\t-2\n"
            + "/dev/pmem0\\040(deleted)                  partition\t2097148\t\t0\t\t10\n"
        }
    )
    file, nvm = devices.active_swaps(machine.host)
    assert file == devices.ActiveSwap("/swap file", "file", 1048572 * 1024, 5120 * 1024, -2)
    block = devices.block_device(machine.host, "/dev/NVM_SWAP")
    assert devices.active_swap(machine.host, block) == nvm
