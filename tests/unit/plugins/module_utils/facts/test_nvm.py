# SPDX-License-Identifier: GPL-3.0-or-later
"""Regions and namespaces as recorded sysfs trees show them, and the ndctl commands that change them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import nvm
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.nvm_tree import GIB, MIB, Tree

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

UUID = "5b2f7d0c-1d8e-4f58-9c57-2b1d2f3f7c11"


@pytest.fixture
def tree(host: Host) -> Tree:
    return Tree(host)


def test_a_machine_without_nvm_has_no_regions(host: Host) -> None:
    assert nvm.read_regions(host) == []


def test_a_label_less_nfit_region(host: Host, tree: Tree) -> None:
    tree.namespace(tree.region(persistence_domain="memory_controller"))
    (region,) = nvm.read_regions(host)
    assert (region.dev, region.provider, region.labelled, region.available) == ("region0", "nfit", False, 0)
    assert (region.size, region.resource, region.persistence) == (2 * GIB, 0x100000000, "memory_controller")
    assert not region.initialisable and not region.volatile and not region.read_only
    (namespace,) = region.namespaces
    assert (namespace.dev, namespace.mode, namespace.size) == ("namespace0.0", "raw", 2 * GIB)
    assert (namespace.blockdev, namespace.path, namespace.uuid) == ("pmem0", "/dev/pmem0", None)
    assert (namespace.name, namespace.labelled, namespace.resource) == ("", False, 0x100000000)


def test_an_uninitialised_label_area_is_seen(host: Host, tree: Tree) -> None:
    tree.namespace(tree.region(slots=500))
    assert nvm.read_regions(host)[0].initialisable


def test_a_labelled_region_and_its_seed(host: Host, tree: Tree) -> None:
    path = tree.region(labelled=True, available=1 * GIB, slots=500)
    tree.namespace(path, 0, GIB, name="data", uuid=UUID, mode="fsdax")
    tree.namespace(path, 1, 0, name="", uuid="")
    (region,) = nvm.read_regions(host)
    assert region.labelled and region.available == GIB and not region.initialisable
    assert [(each.dev, each.name, each.mode) for each in region.namespaces] == [("namespace0.0", "data", "fsdax")]


def test_a_sector_namespace_is_known_by_its_btt(host: Host, tree: Tree) -> None:
    tree.namespace(tree.region(), mode="sector", uuid=UUID)
    (namespace,) = nvm.read_regions(host)[0].namespaces
    assert (namespace.mode, namespace.blockdev, namespace.uuid) == ("sector", "pmem0s", UUID)


def test_a_disabled_namespace_keeps_its_mode(host: Host, tree: Tree) -> None:
    tree.namespace(tree.region(labelled=True), mode="sector", name="NVM_SWAP", uuid=UUID, enabled=False)
    tree.write("/sys/bus/nd/devices/namespace0.0/holder", "\n")
    (namespace,) = nvm.read_regions(host)[0].namespaces
    assert (namespace.mode, namespace.blockdev) == ("sector", None)


def test_an_e820_namespace_is_raw_although_its_mode_says_memory(host: Host, tree: Tree) -> None:
    tree.namespace(tree.region(provider="e820", parent="platform/e820_pmem", dimms=()))
    tree.write("/sys/bus/nd/devices/namespace0.0/mode", "memory\n")
    (region,) = nvm.read_regions(host)
    assert region.provider == "e820"
    assert region.namespaces[0].mode == "raw"


@pytest.mark.parametrize(("provider", "kind"), [("virtio-pmem", "virtio"), ("CXL", "other"), ("papr_scm", "other")])
def test_other_providers(host: Host, tree: Tree, provider: str, kind: str) -> None:
    tree.region(provider=provider)
    assert nvm.read_regions(host)[0].provider == kind


def test_the_security_of_dimms(host: Host, tree: Tree) -> None:
    tree.region(dimms=("nmem0", "nmem1", "nmem2"))
    for dimm, state in (("nmem0", "disabled"), ("nmem1", "unlocked")):
        tree.write("/sys/bus/nd/devices/%s/security" % dimm, state + "\n")
    assert nvm.read_regions(host)[0].security == {"nmem0": "disabled", "nmem1": "unlocked"}


def test_regions_come_in_the_order_of_their_numbers(host: Host, tree: Tree) -> None:
    for number in (10, 2):
        tree.region(number, dimms=("nmem%d" % number,))
    assert [region.dev for region in nvm.read_regions(host)] == ["region2", "region10"]


def test_an_unreadable_address_is_no_address(host: Host, tree: Tree) -> None:
    tree.namespace(tree.region())
    tree.write("/sys/bus/nd/devices/region0/resource", "0xffffffffffffffff\n")
    os.unlink(host.path("/sys/bus/nd/devices/namespace0.0/resource"))
    (region,) = nvm.read_regions(host)
    assert region.resource is None and region.namespaces[0].resource is None


def test_interleaved_dimms_want_their_own_multiple(host: Host, tree: Tree) -> None:
    tree.region(dimms=("nmem0", "nmem1", "nmem2"))
    os.unlink(host.path("/sys/bus/nd/devices/region0/align"))
    (region,) = nvm.read_regions(host)
    assert region.dimms == ["nmem0", "nmem1", "nmem2"]
    assert region.align == 48 * MIB


def test_the_largest_piece_counts_not_the_sum(host: Host, tree: Tree) -> None:
    tree.region(labelled=True, available=GIB)
    tree.write("/sys/bus/nd/devices/region0/max_available_extent", "%d\n" % (512 * MIB))
    assert nvm.read_regions(host)[0].available == 512 * MIB


def test_commands(host: Host, tree: Tree, plant: Plant, transcript: Transcript) -> None:
    plant({"/usr/bin/ndctl": ""})
    os.chmod(host.path("/usr/bin/ndctl"), 0o755)
    tree.namespace(tree.region(dimms=("nmem0", "nmem1")))
    (region,) = nvm.read_regions(host)
    expected = [
        "/usr/bin/ndctl create-namespace --region=region0 --mode=raw --name=NVM_SWAP --size=1073741824",
        "/usr/bin/ndctl disable-namespace namespace0.0",
        "/usr/bin/ndctl destroy-namespace namespace0.0",
        "/usr/bin/ndctl create-namespace --force --reconfig=namespace0.0 --mode=sector --no-autolabel",
        "/usr/bin/ndctl disable-region region0",
        "/usr/bin/ndctl init-labels nmem0 nmem1",
        "/usr/bin/ndctl enable-region region0",
    ]
    for command in expected:
        transcript.record(command)
    nvm.create_namespace(host, region, "NVM_SWAP", "raw", GIB)
    nvm.destroy_namespace(host, region.namespaces[0])
    nvm.change_mode(host, region.namespaces[0], "sector")
    nvm.initialise_labels(host, region)
    assert transcript.calls == expected


def test_a_region_is_enabled_again_when_its_labels_could_not_be_made(host: Host, tree: Tree, plant: Plant, transcript: Transcript) -> None:
    plant({"/usr/bin/ndctl": ""})
    os.chmod(host.path("/usr/bin/ndctl"), 0o755)
    tree.region()
    transcript.record("/usr/bin/ndctl disable-region region0")
    transcript.record("/usr/bin/ndctl init-labels nmem0", rc=1, err="error initializing labels: Input/output error")
    transcript.record("/usr/bin/ndctl enable-region region0")
    with pytest.raises(Refused, match="Input/output error"):
        nvm.initialise_labels(host, nvm.read_regions(host)[0])
    assert transcript.calls[-1] == "/usr/bin/ndctl enable-region region0"


def test_ndctl_is_missed_only_when_it_is_needed(host: Host, tree: Tree) -> None:
    tree.region()
    (region,) = nvm.read_regions(host)
    with pytest.raises(Refused) as caught:
        nvm.create_namespace(host, region, "NVM_SWAP", "raw", GIB)
    assert caught.value.code == "ndctl_missing" and "package ndctl" in caught.value.remedy
