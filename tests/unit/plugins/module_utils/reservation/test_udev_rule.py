# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule file for /dev/NVM_SWAP: what it matches, and that it is taken back where udev does not follow it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import nvm
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import udev_rule
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.nvm_tree import Tree

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Transcript

UUID = "5b2f7d0c-1d8e-4f58-9c57-2b1d2f3f7c11"
PATH = "/etc/udev/rules.d/61-nvm-fastboot-NVM_SWAP.rules"
RELOAD = "udevadm control --reload"
TRIGGER = "udevadm trigger --action=change --settle /sys/class/block/pmem0"
RULE = udev_rule.Rule("resource", "0x100000000", {"method": "ndctl"})


@pytest.fixture
def tree(host: Host) -> Tree:
    return Tree(host)


@pytest.fixture
def udevadm(tree: Tree, transcript: Transcript) -> None:
    """A udevd that makes the link the rule asks for, if it is there."""

    def follow() -> None:
        link = tree.root / "dev/NVM_SWAP"
        if os.path.exists(tree.host.path(PATH)):
            tree.link("/dev/NVM_SWAP", "/dev/pmem0")
        elif link.is_symlink():
            link.unlink()

    tree.namespace(tree.region())
    transcript.record(RELOAD)
    transcript.record(TRIGGER, effect=follow)


@pytest.mark.parametrize("name", ["NVM_SWAP", "a", "swap-2.old", "x" * 63])
def test_names(host: Host, name: str) -> None:
    udev_rule.check_name(host, name)


@pytest.mark.parametrize("name", ["", "x" * 64, "a/b", "..", ".", "a b", 'a"', "ü", "a\n", None])
def test_names_that_are_none(host: Host, name: str | None) -> None:
    with pytest.raises(Refused) as caught:
        udev_rule.check_name(host, name)
    assert caught.value.code == "name_invalid"


def test_a_name_that_belongs_to_something_else(host: Host, tree: Tree) -> None:
    tree.write("/dev/sda", "")
    with pytest.raises(Refused) as caught:
        udev_rule.check_name(host, "sda")
    assert caught.value.code == "name_taken"


def test_a_link_of_that_name_is_no_obstacle(host: Host, tree: Tree) -> None:
    tree.link("/dev/NVM_SWAP", "/dev/pmem0")
    udev_rule.check_name(host, "NVM_SWAP")


def test_rules_by_uuid_and_by_address(host: Host, tree: Tree) -> None:
    tree.namespace(tree.region(labelled=True, available=0), name="NVM_SWAP", uuid=UUID)
    tree.namespace(tree.region(1, resource=0x200000000), resource=0x200000000)
    labelled, labelless = nvm.read_regions(host)
    assert udev_rule.rule_for(labelled.namespaces[0], labelled, {}) == udev_rule.Rule("uuid", UUID, {})
    rule = udev_rule.rule_for(labelless.namespaces[0], labelless, {})
    assert rule == udev_rule.Rule("resource", "0x200000000", {})
    assert rule.matches(labelless.namespaces[0], labelless)
    assert not rule.matches(labelled.namespaces[0], labelled)


def test_a_namespace_that_cannot_be_told_is_refused(host: Host, tree: Tree) -> None:
    tree.namespace(tree.region())
    for name in ("region0", "namespace0.0"):
        os.unlink(host.path("/sys/bus/nd/devices/%s/resource" % name))
    (region,) = nvm.read_regions(host)
    with pytest.raises(Refused) as caught:
        udev_rule.rule_for(region.namespaces[0], region, {})
    assert caught.value.code == "address_unknown"
    assert not RULE.matches(region.namespaces[0], region)


def test_a_rule_is_written_and_read_back() -> None:
    rule = udev_rule.Rule("resource", "0x18000000", {"method": "memmap", "range": "memmap=512M!384M"})
    text = udev_rule.render("NVM_SWAP", rule)
    assert text.splitlines()[-1] == (
        'SUBSYSTEM=="block", KERNEL=="pmem*", ENV{DEVTYPE}=="disk", SUBSYSTEMS=="nd", '
        'ATTRS{resource}=="0x18000000", SYMLINK+="NVM_SWAP"'
    )
    assert udev_rule.parse(text) == rule
    assert udev_rule.parse("") is None and udev_rule.parse('# ATTRS{uuid}=="1"\n') is None


def test_the_link_is_made_once(host: Host, udevadm: None, transcript: Transcript) -> None:
    tx = Transaction(host)
    udev_rule.apply(tx, "NVM_SWAP", RULE, "pmem0")
    assert tx.changed and transcript.calls == [RELOAD, TRIGGER]
    again = Transaction(host)
    udev_rule.apply(again, "NVM_SWAP", RULE, "pmem0")
    assert not again.changed and len(transcript.calls) == 2


def test_a_link_that_went_missing_is_made_again(host: Host, udevadm: None, transcript: Transcript) -> None:
    udev_rule.apply(Transaction(host), "NVM_SWAP", RULE, "pmem0")
    os.unlink(host.path("/dev/NVM_SWAP"))
    tx = Transaction(host)
    udev_rule.apply(tx, "NVM_SWAP", RULE, "pmem0")
    assert tx.changed and host.real("/dev/NVM_SWAP") == "/dev/pmem0"


def test_a_device_that_is_not_there_yet_is_not_waited_for(host: Host, tree: Tree, transcript: Transcript) -> None:
    transcript.record(RELOAD)
    udev_rule.apply(Transaction(host), "NVM_SWAP", RULE, None)
    assert host.exists(PATH) and transcript.calls == [RELOAD]


def test_check_mode_writes_nothing(host: Host, udevadm: None, transcript: Transcript) -> None:
    tx = Transaction(host, check_mode=True)
    udev_rule.apply(tx, "NVM_SWAP", RULE, "pmem0")
    assert tx.changed and not host.exists(PATH) and transcript.calls == []


def test_a_rule_that_udev_does_not_follow_is_taken_back(host: Host, tree: Tree, transcript: Transcript) -> None:
    tree.namespace(tree.region())
    tree.write(PATH, "# of before\n")
    transcript.record(RELOAD)
    transcript.record(TRIGGER)
    with pytest.raises(Refused) as caught, Transaction(host) as tx:
        udev_rule.apply(tx, "NVM_SWAP", RULE, "pmem0")
    assert caught.value.code == "link_failed"
    assert host.read(PATH) == "# of before\n"
    assert transcript.calls == [RELOAD, TRIGGER, RELOAD, TRIGGER], "udev has to forget the rule, too"


def test_the_rule_is_withdrawn(host: Host, udevadm: None, transcript: Transcript) -> None:
    udev_rule.apply(Transaction(host), "NVM_SWAP", RULE, "pmem0")
    assert udev_rule.remove(Transaction(host), "NVM_SWAP", "pmem0")
    assert not host.exists(PATH) and not host.exists("/dev/NVM_SWAP")
    assert not udev_rule.remove(Transaction(host), "NVM_SWAP", "pmem0")
