# SPDX-License-Identifier: GPL-3.0-or-later
"""An NVDIMM with labels that somebody else has data on: what is reserved stands beside it, and goes without a trace."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.vm import play
from tests.vm.conftest import MEMORY, switched_on
from tests.vm.lab import Lab, Machine

FOREIGN = 256  # MiB
_FOREIGN = f"""
set -e
ndctl disable-region all; ndctl init-labels all; ndctl enable-region all
ndctl create-namespace --mode=raw --size={FOREIGN}M --name=foreign
udevadm settle
dd if=/dev/urandom of=/dev/pmem0 bs=1M count=16 conv=fsync status=none
"""


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("labelled", memory=MEMORY, nvdimm=2 * MEMORY, labels=True)) as machine:
        machine.ssh(_FOREIGN)
        yield machine


@pytest.fixture
def foreign(machine: Machine) -> Iterator[None]:
    """The foreign namespace; asserts afterwards that it is as it was, to the byte."""
    before = _look(machine)
    yield
    assert _look(machine) == before, "the foreign namespace is not what it was"


def _look(machine: Machine) -> str:
    namespaces = json.loads(machine.ssh("ndctl list --namespaces"))
    (namespace,) = [each for each in namespaces if each.get("name") == "foreign"]
    return machine.ssh(f"sha256sum </dev/{namespace['blockdev']}") + json.dumps(namespace, sort_keys=True)


def _names(machine: Machine) -> list[str]:
    """Of all namespaces; the kernel keeps one without a name for the next that is made."""
    namespaces = json.loads(machine.ssh("ndctl list --namespaces --idle"))
    return sorted(each["name"] for each in namespaces if each.get("name"))


@pytest.mark.usefixtures("foreign")
def test_too_large_is_refused_with_the_numbers(lab: Lab, machine: Machine) -> None:
    result = play.module(lab, machine, "nvm_reservation", {"size": "8G"})
    assert result.get("failed") and result["code"] == "nvm_too_small", result
    assert "8.0 GiB" in result["msg"] and f"{FOREIGN}.0 MiB" in result["msg"], result["msg"]
    assert re.search(r"of \d+\.\d [MG]iB has \d+\.\d [MG]iB free", result["msg"]), result["msg"]
    assert _names(machine) == ["foreign"]


@pytest.mark.usefixtures("foreign")
def test_made_beside_it_and_destroyed(lab: Lab, machine: Machine) -> None:
    """Sized from the ordinary memory, in sector mode, whose block device is another one than the namespace's."""
    info = play.module(lab, machine, "nvm_info")
    options = {"mode": "sector"}
    made = play.module(lab, machine, "nvm_reservation", options)
    assert made["changed"] and made["resizable"] and made["mode"] == "sector", made
    assert info["dram"] <= made["size"] < info["dram"] + (64 << 20), (info["dram"], made["size"])
    assert _names(machine) == ["NVM_SWAP", "foreign"]
    again = play.module(lab, machine, "nvm_reservation", options)
    assert not again.get("failed") and not again["changed"], again

    assert play.module(lab, machine, "nvm_swap")["changed"]
    in_use = play.module(lab, machine, "nvm_reservation", {"state": "absent", "force": True})
    assert in_use.get("failed") and in_use["code"] == "device_in_use", in_use
    assert play.module(lab, machine, "nvm_swap", {"state": "absent"})["changed"]
    assert play.module(lab, machine, "nvm_reservation", {"state": "absent"})["changed"]
    assert _names(machine) == ["foreign"]
    assert machine.ssh("ls /dev/NVM_SWAP /etc/udev/rules.d/*nvm-fastboot* 2>/dev/null", check=False) == ""
