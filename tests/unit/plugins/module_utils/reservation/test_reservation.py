# SPDX-License-Identifier: GPL-3.0-or-later
"""nvm_reservation on recorded machines: labelled, label-less, e820 and none, with ndctl, udev and bootloader faked."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import settings as grub_settings
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import reservation, udev_rule
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import headers, luks
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.encrypted.encrypted_machine import (
    luks_header,
)
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.nvm_tree import (
    DRAM,
    FIRMWARE_1G,
    GIB,
    MIB,
    Tree,
)

UUID = "5b2f7d0c-1d8e-4f58-9c57-2b1d2f3f7c11"
OTHER = "0b7b6c2e-5a0d-4e8f-8a7e-8c1f6a2d9e34"
RULES = "/etc/udev/rules.d/61-nvm-fastboot-NVM_SWAP.rules"
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
DEFAULTS = {
    "name": "NVM_SWAP",
    "size": "auto",
    "dram_multiple": 1,
    "method": "auto",
    "mode": "raw",
    "volatile_ok": False,
    "force": False,
}


def swap_header(magic: bytes = b"SWAPSPACE2", label: str = "NVM_SWAP") -> bytes:
    content = bytearray(8192)
    struct.pack_into("=III", content, 1024, 1, 255, 0)
    content[1036:1052] = uuid.UUID(UUID).bytes
    content[1052:1068] = label.encode().ljust(16, b"\0")
    content[4086:4096] = magic.ljust(10, b"\0")
    return bytes(content)


class Bootloader:
    """Settings in files of their own, and a generated configuration with two entries."""

    name = "grub"

    def __init__(self, host: Host) -> None:
        self.host = host

    def _path(self, purpose: str) -> str:
        return "/etc/boot.d/%s" % purpose

    def owned(self, purpose: str) -> list[str] | None:
        text = self.host.read(self._path(purpose))
        return text.split() if text else None

    def entries(self) -> list[SimpleNamespace]:
        text = self.host.read("/boot/config", "ro quiet")
        return [SimpleNamespace(title=title, arguments=text.split()) for title in ("normal", "recovery")]

    def ensure(self, tx: Transaction, purpose: str, arguments: list[str], drop: tuple[str, ...] = ()) -> bool:
        changed = tx.write(self._path(purpose), " ".join(arguments))
        if not changed and all(word in self.entries()[0].arguments for word in arguments):
            return False
        self._generate(tx, self.host.read("/boot/config", "ro quiet") + " " + " ".join(arguments))
        return True

    def forget(self, tx: Transaction, purpose: str, leftovers: tuple[str, ...] = ()) -> bool:
        owned = self.owned(purpose) or []
        if not tx.write(self._path(purpose), None):
            return False
        self._generate(tx, " ".join(word for word in self.entries()[0].arguments if word not in owned))
        return True

    def _generate(self, tx: Transaction, text: str) -> None:
        if not tx.check_mode:
            tx.write("/boot/config", text)


class Machine:
    """A host whose ndctl, udevadm, wipefs and blkid work on the recorded tree."""

    def __init__(self, root: Path) -> None:
        self.calls: list[str] = []
        self.contents: dict[str, str] = {}  # what blkid finds, by device
        self.fails: dict[str, str] = {}  # what a command prints to standard error before it exits with 1
        self.follows = True  # whether udev makes the link
        self.host = Host(self.run, root=str(root))
        self.tree = Tree(self.host)
        self.tree.write("/usr/bin/ndctl", "")
        self.tree.write("/sys/bus/nd/drivers/nd_pmem/bind", "")
        os.chmod(self.host.path("/usr/bin/ndctl"), 0o755)
        self.paths: dict[str, str] = {}

    def region(self, number: int = 0, **more: Any) -> str:
        self.paths["region%d" % number] = self.tree.region(number, **more)
        return self.paths["region%d" % number]

    def run(self, argv: list[str], data: str | None = None) -> tuple[int, str, str]:
        command = " ".join(os.path.basename(word) if at == 0 else word for at, word in enumerate(argv))
        self.calls.append(command)
        for start, message in self.fails.items():
            if command.startswith(start):
                return 1, "", message
        name, verb = os.path.basename(argv[0]), argv[1]
        options = dict(word[2:].partition("=")[::2] for word in argv[2:] if word.startswith("--"))
        if name == "blkid":
            found = self.contents.get(argv[-1])
            return (0, "DEVNAME=%s\nTYPE=%s\n" % (argv[-1], found), "") if found else (2, "", "")
        if name == "udevadm" and verb == "trigger":
            self.link()
        elif name == "ndctl":
            getattr(self, verb.replace("-", "_"))(argv[-1], options)
        elif name not in ("udevadm", "wipefs"):
            raise AssertionError("unexpected command: %s" % command)
        return 0, "", ""

    def link(self) -> None:
        """What udev does on an event: the rule matched against every block device of NVM."""
        place = self.tree.root / "dev/NVM_SWAP"
        if place.is_symlink():
            place.unlink()
        rule = udev_rule.read(self.host, "NVM_SWAP")
        if rule is None or not self.follows:
            return
        for path in self.host.glob("/sys/class/block/pmem*"):
            parent = os.path.dirname(os.path.dirname(self.host.real(path)))
            parents = (parent, os.path.dirname(parent))
            if rule.value in [self.host.attribute("%s/%s" % (each, rule.attribute)) for each in parents]:
                self.tree.link("/dev/NVM_SWAP", "/dev/%s" % os.path.basename(path))

    def create_namespace(self, _last: str, options: dict[str, str]) -> None:
        if "reconfig" in options:
            region = self.paths["region" + options["reconfig"][len("namespace"):].split(".")[0]]
            number = region.rpartition("region")[2]
            size = int(self.host.attribute("/sys/bus/nd/devices/%s/size" % options["reconfig"]))
            self._gone(options["reconfig"])
            for stale in self.host.glob("/sys/class/block/pmem%s*" % number):
                os.unlink(self.host.path(stale))
            self.tree.namespace(region, 0, size, options["mode"], uuid=OTHER if options["mode"] == "sector" else None)
            return
        region = self.paths[options["region"]]
        size = int(options["size"])
        taken = self.host.glob("/sys/bus/nd/devices/namespace%s.*" % region.rpartition("region")[2])
        taken = [path for path in taken if self.host.attribute(path + "/size") != "0"]
        index = next(at for at in range(9) if not any(path.endswith(".%d" % at) for path in taken))
        self.tree.namespace(region, index, size, options["mode"], options["name"], UUID, 0x100000000 + index * size)
        self._take(region, size)

    def disable_namespace(self, dev: str, _options: dict[str, str]) -> None:
        for path in self.host.glob("/sys/devices/*/*/*/*/*/%s/block/*" % dev):
            os.unlink(self.host.path("/sys/class/block/%s" % os.path.basename(path)))

    def enable_namespace(self, dev: str, _options: dict[str, str]) -> None:
        path = self.host.real("/sys/bus/nd/devices/%s" % dev)[len("/sys/devices/"):]
        self.tree.block("%s/block/pmem0" % path, "pmem0", GIB)

    def destroy_namespace(self, dev: str, _options: dict[str, str]) -> None:
        region = self.paths["region" + dev[len("namespace"):].split(".", maxsplit=1)[0]]
        self._take(region, -int(self.host.attribute("/sys/bus/nd/devices/%s/size" % dev)))
        self._gone(dev)

    def disable_region(self, *_arguments: object) -> None:
        pass

    def init_labels(self, dimm: str, _options: dict[str, str]) -> None:
        self._gone("namespace0.0")
        for name, value in (("nstype", 5), ("available_size", 2 * GIB), ("max_available_extent", 2 * GIB)):
            self.tree.write("/sys/bus/nd/devices/region0/%s" % name, "%d\n" % value)

    enable_region = disable_region

    def _gone(self, dev: str) -> None:
        self.tree.forget(dev)

    def _take(self, region: str, size: int) -> None:
        for name in ("available_size", "max_available_extent"):
            before = int(self.host.attribute("/sys/devices/%s/%s" % (region, name)))
            self.tree.write("/sys/devices/%s/%s" % (region, name), "%d\n" % (before - size))

    # the module's calls

    def options(self, **params: Any) -> reservation.Options:
        options: reservation.Options = reservation.Options.of({**DEFAULTS, **params})
        return options

    def present(self, check_mode: bool = False, **params: Any) -> SimpleNamespace:
        with Transaction(self.host, check_mode) as tx:
            found = reservation.present(tx, self.options(**params), Bootloader)
        return SimpleNamespace(changed=tx.changed, diff=tx.diff, **found)

    def absent(self, check_mode: bool = False, **params: Any) -> SimpleNamespace:
        with Transaction(self.host, check_mode) as tx:
            found = reservation.absent(tx, self.options(**params), Bootloader)
        return SimpleNamespace(changed=tx.changed, diff=tx.diff, **found)

    def refused(self, code: str, act: Callable[..., SimpleNamespace] | None = None, **params: Any) -> Refused:
        before = len([call for call in self.calls if not call.startswith("blkid")])
        with pytest.raises(Refused) as caught:
            (act or self.present)(**params)
        assert caught.value.code == code, caught.value.message
        assert len([call for call in self.calls if not call.startswith("blkid")]) == before, "refused after it began"
        return caught.value

    def activate(self, device: str = "/dev/pmem0") -> None:
        self.tree.write("/proc/swaps", SWAPS + "%s\tpartition\t1048572\t0\t10\n" % device)

    @property
    def ndctl_calls(self) -> list[Any | str]:
        return [call for call in self.calls if call.startswith("ndctl")]


@pytest.fixture(autouse=True)
def pages_of_4k(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "page_size", lambda: 4096)
    monkeypatch.setattr(os, "sysconf", lambda name: 4096)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def labelled(machine: Machine) -> Machine:
    """2 GiB with labels, all of it free but a seed."""
    machine.region(labelled=True, available=2 * GIB - 128 * 1024, slots=500, persistence_domain="memory_controller")
    machine.tree.namespace(machine.paths["region0"], 0, 0, name="", uuid="")
    return machine


@pytest.fixture
def labelless(machine: Machine) -> Machine:
    """2 GiB without labels."""
    machine.tree.namespace(machine.region())
    return machine


@pytest.fixture
def plain(machine: Machine) -> Machine:
    """1 GiB of ordinary memory and no NVM."""
    machine.tree.firmware(*FIRMWARE_1G)
    return machine


def e820(machine: Machine, number: int = 0, size: int = 512 * MIB, start: int = 384 * MIB) -> None:
    machine.region(number, size=size, provider="e820", parent="platform/e820_pmem", dimms=(), resource=start)
    machine.tree.namespace(machine.paths["region%d" % number], 0, size, resource=start)


def boot(machine: Machine, *words: Any) -> None:
    machine.tree.write("/proc/cmdline", " ".join(("BOOT_IMAGE=/vmlinuz", "ro") + words) + "\n")


# labelled ------------------------------------------------------------------------------------------------------------


def test_a_namespace_of_our_own_is_made_by_size(labelled: Machine) -> None:
    found = labelled.present()
    assert found.changed
    assert labelled.ndctl_calls == [
        "ndctl create-namespace --region=region0 --mode=raw --name=NVM_SWAP --size=%d" % GIB
    ]
    assert (found.device, found.block_device, found.size) == ("/dev/NVM_SWAP", "/dev/pmem0", GIB)
    assert (found.method, found.region, found.namespace, found.uuid) == ("ndctl", "region0", "namespace0.0", UUID)
    assert found.resizable and found.why_not_resizable is None and not found.reboot_required
    assert found.dram == DRAM and "1 x 1023.5 MiB" in found.explanation and "16.0 MiB" in found.explanation
    assert labelled.host.real("/dev/NVM_SWAP") == "/dev/pmem0"
    assert 'ATTRS{uuid}=="%s"' % UUID in labelled.host.read(RULES)


def test_a_second_run_changes_and_runs_nothing(labelled: Machine) -> None:
    labelled.present()
    calls = list(labelled.calls)
    found = labelled.present()
    assert not found.changed and labelled.calls == calls
    assert found.block_device == "/dev/pmem0" and found.namespace == "namespace0.0"


def test_stale_signatures_in_the_new_namespace_are_wiped(labelled: Machine) -> None:
    labelled.present()
    assert "wipefs --all /dev/pmem0" in labelled.calls


def test_the_namespace_of_others_beside_ours(machine: Machine) -> None:
    path = machine.region(size=4 * GIB, labelled=True, available=3 * GIB, slots=500)
    machine.tree.namespace(path, 0, GIB, "fsdax", "data", OTHER)
    found = machine.present()
    assert found.namespace == "namespace0.1" and found.block_device == "/dev/pmem0.1"
    assert machine.absent().changed
    assert not any("namespace0.0" in call for call in machine.calls)


def test_sector_mode(labelled: Machine) -> None:
    found = labelled.present(mode="sector")
    assert (found.mode, found.block_device) == ("sector", "/dev/pmem0s")
    assert labelled.host.real("/dev/NVM_SWAP") == "/dev/pmem0s"
    assert not labelled.present(mode="sector").changed


def test_check_mode_says_what_would_be(labelled: Machine) -> None:
    found = labelled.present(check_mode=True)
    assert found.changed and labelled.calls == [] and not labelled.host.exists(RULES)
    assert (found.size, found.block_device, found.namespace) == (GIB, None, None)
    assert any("region0" in each["after_header"] for each in found.diff)


def test_a_larger_one_is_fine(labelled: Machine) -> None:
    labelled.present(size="1536M")
    assert not labelled.present(size="1G").changed
    assert not labelled.present().changed


def test_another_size_or_mode_needs_force(labelled: Machine) -> None:
    labelled.present(size="512M")
    assert "destroys" in labelled.refused("reservation_differs", size="1G").message
    labelled.refused("reservation_differs", size="512M", mode="sector")
    found = labelled.present(size="1G", force=True)
    assert found.changed and found.size == GIB
    assert labelled.ndctl_calls[-3:] == [
        "ndctl disable-namespace namespace0.0",
        "ndctl destroy-namespace namespace0.0",
        "ndctl create-namespace --region=region0 --mode=raw --name=NVM_SWAP --size=%d" % GIB,
    ]
    assert not labelled.present(size="1G", force=True).changed


def test_what_can_never_fit_is_refused_before_anything_is_destroyed(labelled: Machine) -> None:
    labelled.present(size="512M")
    labelled.refused("nvm_too_small", size="4G", force=True)


def test_too_little_room_is_explained(labelled: Machine) -> None:
    refused = labelled.refused("nvm_too_small", dram_multiple=2)
    for text in ("2.0 GiB", "2 x 1023.5 MiB of ordinary memory", "region0 of 2.0 GiB", "free"):
        assert text in refused.message
    assert "dram_multiple=1" in refused.remedy


def test_the_region_that_just_fits_is_taken(machine: Machine) -> None:
    machine.region(0, size=8 * GIB, labelled=True, available=8 * GIB, slots=500)
    machine.region(1, labelled=True, available=2 * GIB, slots=500, dimms=("nmem1",), resource=0x400000000)
    assert machine.present().region == "region1"


def test_ndctl_is_needed_only_to_change(labelled: Machine) -> None:
    labelled.present()
    os.unlink(labelled.host.path("/usr/bin/ndctl"))
    assert not labelled.present().changed
    labelled.refused("ndctl_missing", act=labelled.present, size="1536M", force=True)
    labelled.refused("ndctl_missing", act=labelled.absent)


def test_check_mode_does_without_ndctl(labelled: Machine) -> None:
    assert labelled.present(check_mode=True).ndctl_missing is False
    os.unlink(labelled.host.path("/usr/bin/ndctl"))
    found = labelled.present(check_mode=True)
    assert found.changed and found.ndctl_missing is True and "NVM_SWAP" in found.diff[0]["after"]


def test_two_of_one_name_are_refused(machine: Machine) -> None:
    path = machine.region(labelled=True, available=0, slots=500)
    for index, identity in enumerate((UUID, OTHER)):
        machine.tree.namespace(path, index, GIB, name="NVM_SWAP", uuid=identity)
    machine.refused("name_ambiguous")


def test_a_disabled_namespace_of_ours_is_enabled(machine: Machine) -> None:
    path = machine.region(labelled=True, available=0, slots=500)
    machine.tree.namespace(path, 0, GIB, name="NVM_SWAP", uuid=UUID, enabled=False)
    assert machine.present(check_mode=True).diff and machine.ndctl_calls == []
    assert machine.present().block_device == "/dev/pmem0"
    assert machine.ndctl_calls == ["ndctl enable-namespace namespace0.0"]


def test_a_namespace_whose_link_fails_is_taken_back(labelled: Machine) -> None:
    labelled.follows = False
    with pytest.raises(Refused) as caught:
        labelled.present()
    assert caught.value.code == "link_failed"
    assert labelled.ndctl_calls[-1] == "ndctl destroy-namespace namespace0.0"
    assert not labelled.host.exists(RULES)


def test_what_ndctl_says_is_passed_on(labelled: Machine) -> None:
    labelled.fails["ndctl create"] = "failed to create namespace: No space left on device"
    with pytest.raises(Refused, match="No space left on device"):
        labelled.present()
    assert not labelled.host.exists(RULES)


def test_destroyed_on_absent(labelled: Machine) -> None:
    labelled.present()
    labelled.tree.write("/dev/pmem0", swap_header())
    found = labelled.absent()
    assert found.changed and not labelled.host.exists(RULES)
    assert labelled.ndctl_calls[-2:] == ["ndctl disable-namespace namespace0.0", "ndctl destroy-namespace namespace0.0"]
    assert not labelled.absent().changed


def test_absent_in_check_mode(labelled: Machine) -> None:
    labelled.present()
    calls = list(labelled.calls)
    assert labelled.absent(check_mode=True).changed
    assert labelled.host.exists(RULES) and [c for c in labelled.calls if not c.startswith("blkid")] == calls


def test_an_encrypted_swap_area_is_the_matter_of_nvm_swap(labelled: Machine) -> None:
    """In check mode, it would have been removed; really, it is in use as long as it is there."""
    labelled.present()
    labelled.tree.write("/etc/machine-id", "8e7b3b3f2c0d4c2f9a52f0f4f8a3c1d6\n")
    labelled.tree.write("/dev/pmem0", luks_header(luks.luks_uuid(labelled.host, "NVM_SWAP")))
    labelled.tree.write("/sys/class/block/pmem0/holders/dm-0/x", "")
    assert labelled.absent(check_mode=True).changed and not labelled.present().changed
    assert "dm-0" in labelled.refused("device_in_use", act=labelled.absent).message
    labelled.tree.write("/dev/pmem0", luks_header(OTHER))
    with pytest.raises(Refused) as caught:
        labelled.absent(check_mode=True)
    assert caught.value.code == "device_in_use"


@pytest.mark.parametrize("force", [False, True])
def test_in_use_is_never_destroyed(labelled: Machine, force: bool) -> None:
    labelled.present()
    labelled.activate()
    assert "nvm_swap" in labelled.refused("device_in_use", act=labelled.absent, force=force).remedy
    assert labelled.absent(check_mode=True, force=force).changed, "nvm_swap would have deactivated it"
    labelled.refused("device_in_use", size="1536M", force=True)
    labelled.tree.write("/proc/swaps", SWAPS)
    number = labelled.host.attribute("/sys/class/block/pmem0/dev")
    labelled.tree.write("/proc/self/mountinfo", "30 1 %s / /mnt/x rw - ext4 /dev/pmem0 rw\n" % number)
    assert "/mnt/x" in labelled.refused("device_in_use", act=labelled.absent, force=force).message


def test_a_pending_image_is_kept_without_force(labelled: Machine) -> None:
    labelled.present()
    labelled.tree.write("/dev/pmem0", swap_header(b"S1SUSPEND"))
    labelled.refused("image_pending", act=labelled.absent)
    assert labelled.absent(force=True).changed


def test_a_filesystem_in_our_namespace_is_kept_without_force(labelled: Machine) -> None:
    labelled.present()
    labelled.contents["/dev/pmem0"] = "ext4"
    assert "ext4" in labelled.refused("holds_filesystem", act=labelled.absent).message
    assert labelled.absent(force=True).changed


def test_a_destruction_that_fails_leaves_the_link(labelled: Machine) -> None:
    labelled.present()
    labelled.fails["ndctl disable-namespace"] = "namespace0.0: has an active mount"
    with pytest.raises(Refused):
        labelled.absent()
    assert labelled.host.exists(RULES) and labelled.host.real("/dev/NVM_SWAP") == "/dev/pmem0"


# label-less ----------------------------------------------------------------------------------------------------------


def test_the_namespace_that_is_there_is_used(labelless: Machine) -> None:
    found = labelless.present()
    assert found.changed and labelless.ndctl_calls == []
    assert (found.size, found.uuid, found.resizable) == (2 * GIB, None, False)
    assert "no labels" in found.why_not_resizable and "takes all of region0" in found.explanation
    assert 'ATTRS{resource}=="0x100000000"' in labelless.host.read(RULES)
    assert labelless.host.real("/dev/NVM_SWAP") == "/dev/pmem0"
    calls = list(labelless.calls)
    assert not labelless.present().changed and labelless.calls == calls


def test_a_smaller_one_only_by_explicit_size(labelless: Machine) -> None:
    refused = labelless.refused("nvm_too_small", dram_multiple=2, size="3G")
    assert "no labels to divide it" in refused.message
    assert labelless.present(size="512M").changed


def test_uninitialised_labels_are_mentioned_and_left_alone(machine: Machine) -> None:
    machine.tree.namespace(machine.region(slots=500))
    assert "ndctl init-labels" in machine.refused("nvm_too_small", size="4G").remedy
    assert "ndctl init-labels" in machine.present().why_not_resizable
    assert machine.ndctl_calls == []


def test_labels_are_made_for_a_blank_region_by_force(machine: Machine) -> None:
    machine.tree.namespace(machine.region(slots=500))
    found = machine.present(force=True)
    assert machine.ndctl_calls[:3] == [
        "ndctl disable-region region0",
        "ndctl init-labels nmem0",
        "ndctl enable-region region0",
    ]
    assert found.size == GIB and found.resizable
    assert not machine.present(force=True).changed


def test_labels_are_not_made_where_something_is(machine: Machine) -> None:
    machine.tree.namespace(machine.region(slots=500))
    machine.contents["/dev/pmem0"] = "xfs"
    machine.present(force=True)
    assert machine.ndctl_calls == []


def test_labels_are_not_made_on_dimms_that_other_regions_share(machine: Machine) -> None:
    machine.tree.namespace(machine.region(0, slots=500))
    machine.tree.namespace(machine.region(1, size=GIB, slots=500, resource=0x200000000), size=GIB, resource=0x200000000)
    machine.present(force=True)
    assert machine.ndctl_calls == []


def test_labels_stay_unmade_once_the_reservation_is_there(machine: Machine) -> None:
    machine.tree.namespace(machine.region(slots=500))
    machine.present()
    assert not machine.present(force=True).changed
    assert machine.ndctl_calls == []


@pytest.mark.parametrize("what", ["ext4", "crypto_LUKS", "partition table (gpt)"])
def test_what_holds_something_is_refused(labelless: Machine, what: str) -> None:
    labelless.contents["/dev/pmem0"] = what
    assert what in labelless.refused("holds_filesystem").message
    assert labelless.present(force=True).changed


@pytest.mark.parametrize("force", [False, True])
def test_a_namespace_that_crypttab_claims_is_refused(labelless: Machine, force: bool) -> None:
    labelless.tree.write("/etc/crypttab", "cs /dev/pmem0 /dev/urandom swap\n")
    assert "crypttab, line 1" in labelless.refused("device_claimed", force=force).message


@pytest.mark.parametrize("force", [False, True])
def test_other_active_swap_is_refused(labelless: Machine, force: bool) -> None:
    labelless.tree.write("/dev/pmem0", swap_header(label="data"))
    labelless.activate()
    labelless.refused("device_in_use", force=force)


def test_our_swap_is_known_by_its_label_without_the_rule(labelless: Machine) -> None:
    labelless.tree.write("/dev/pmem0", swap_header())
    labelless.activate()
    assert labelless.present().changed


def test_an_unused_swap_area_may_be_taken(labelless: Machine) -> None:
    labelless.tree.write("/dev/pmem0", swap_header(label=""))
    assert labelless.present().changed


def test_another_image_is_refused(labelless: Machine) -> None:
    labelless.tree.write("/dev/pmem0", swap_header(b"S1SUSPEND", label="other"))
    labelless.refused("image_pending")


def test_our_own_image_is_no_obstacle(labelless: Machine) -> None:
    labelless.present()
    labelless.tree.write("/dev/pmem0", swap_header(b"S1SUSPEND"))
    assert not labelless.present().changed


def test_the_unused_one_of_several_is_taken(machine: Machine) -> None:
    for number in (0, 1):
        start = 0x100000000 + number * 2 * GIB
        machine.tree.namespace(machine.region(number, resource=start, dimms=("nmem%d" % number,)), resource=start)
    machine.contents["/dev/pmem0"] = "ext4"
    assert machine.present().block_device == "/dev/pmem1"


def test_labelled_room_is_preferred(machine: Machine) -> None:
    machine.tree.namespace(machine.region(0))
    machine.region(1, labelled=True, available=2 * GIB, slots=500, dimms=("nmem1",), resource=0x400000000)
    assert machine.present().region == "region1"


@pytest.mark.parametrize("options", [{}, {"force": True}, {"size": "512M"}, {"mode": "sector"}, {"size": "32G"}])
@pytest.mark.parametrize("mode", ["fsdax", "devdax"])
def test_dax_namespaces_of_others_are_never_used(machine: Machine, mode: str, options: dict[str, Any]) -> None:
    """32 GiB without labels: what is in the way is the mode, whatever is asked, not the size."""
    machine.tree.namespace(machine.region(size=32 * GIB), size=32 * GIB, mode=mode, uuid=OTHER)
    refused = machine.refused("nvm_unusable", **options)
    assert "32.0 GiB" in refused.message and "has mode %s" % mode in refused.message
    command = "ndctl create-namespace --force --reconfig=namespace0.0 --mode=raw --no-autolabel"
    assert refused.remedy.endswith(command)
    machine.run(command.split())  # the remedy, to the letter
    assert machine.present(**options).changed


def test_a_dax_namespace_that_is_mounted(machine: Machine) -> None:
    machine.tree.namespace(machine.region(), mode="fsdax", uuid=OTHER)
    machine.tree.write("/proc/self/mountinfo", "22 1 259:0 / /srv/files rw - ext4 /dev/pmem0 rw\n")
    assert "mounted at /srv/files" in machine.refused("nvm_unusable").message


def test_a_namespace_that_is_too_small_in_any_mode(machine: Machine) -> None:
    machine.tree.namespace(machine.region(), mode="fsdax", uuid=OTHER)
    refused = machine.refused("nvm_too_small", size="4G")
    assert "fsdax" in refused.message and "destroy" not in refused.remedy


@pytest.mark.parametrize("installed", [False, True])
def test_a_namespace_without_a_driver(machine: Machine, installed: bool) -> None:
    machine.tree.namespace(machine.region(size=32 * GIB), size=32 * GIB, enabled=False)
    assert "ndctl enable-namespace namespace0.0" in machine.refused("nvm_unusable").remedy
    os.unlink(machine.host.path("/sys/bus/nd/drivers/nd_pmem/bind"))
    os.rmdir(machine.host.path("/sys/bus/nd/drivers/nd_pmem"))
    machine.tree.write("/proc/sys/kernel/osrelease", "6.1.0-9-cloud-amd64\n")
    if installed:
        machine.tree.write("/lib/modules/6.1.0-9-cloud-amd64/kernel/drivers/nvdimm/nd_pmem.ko", "")
    refused = machine.refused("nvm_unusable", force=True)
    assert "nd_pmem is not loaded" in refused.message
    assert ("modprobe nd_pmem" if installed else "linux-modules-extra-6.1.0-9-cloud-amd64") in refused.remedy


def test_ours_without_a_driver(machine: Machine) -> None:
    machine.tree.namespace(machine.region(labelled=True), 0, GIB, name="NVM_SWAP", uuid=UUID, enabled=False)
    os.unlink(machine.host.path("/sys/bus/nd/drivers/nd_pmem/bind"))
    os.rmdir(machine.host.path("/sys/bus/nd/drivers/nd_pmem"))
    machine.refused("nvm_unusable")


def test_nvdimms_without_a_driver(plain: Machine) -> None:
    plain.tree.write("/sys/firmware/acpi/tables/NFIT", "")
    assert "driver nfit" in plain.refused("nvm_unusable").message
    plain.tree.write("/sys/bus/acpi/drivers/nfit/bind", "")
    plain.refused("no_nvm")


def test_a_region_that_is_not_enabled(machine: Machine) -> None:
    machine.region()
    assert "ndctl enable-region region0" in machine.refused("nvm_unusable").remedy


def test_dimms_that_are_locked(machine: Machine) -> None:
    machine.region()
    machine.tree.write("/sys/bus/nd/devices/nmem0/security", "locked\n")
    refused = machine.refused("nvm_unusable", force=True)
    assert "nmem0" in refused.message and "ndctl load-keys" in refused.remedy and "ndctl remove-passphrase nmem0" in refused.remedy


def test_a_read_only_region_is_not_used(labelless: Machine) -> None:
    labelless.tree.write("/sys/bus/nd/devices/region0/read_only", "1\n")
    refused = labelless.refused("nvm_unusable")
    assert "read-only" in refused.message
    labelless.tree.write("/sys/bus/nd/devices/region0/read_only", "0\n")
    assert "/sys/bus/nd/devices/region0/read_only" in refused.remedy and labelless.present().changed


def test_sector_mode_of_a_blank_one(labelless: Machine) -> None:
    found = labelless.present(mode="sector")
    assert labelless.ndctl_calls == [
        "ndctl create-namespace --force --reconfig=namespace0.0 --mode=sector --no-autolabel"
    ]
    assert (found.mode, found.block_device, found.uuid) == ("sector", "/dev/pmem0s", OTHER)
    assert not labelless.present(mode="sector").changed


def test_sector_mode_of_one_that_holds_something(labelless: Machine) -> None:
    labelless.present()
    labelless.tree.write("/dev/pmem0", swap_header())
    labelless.refused("holds_filesystem", mode="sector")
    labelless.activate()
    labelless.refused("device_in_use", mode="sector", force=True)


def test_sector_mode_in_check_mode(labelless: Machine) -> None:
    found = labelless.present(mode="sector", check_mode=True)
    assert found.changed and labelless.ndctl_calls == [] and found.mode == "sector"


def test_absent_takes_the_link_alone(labelless: Machine) -> None:
    labelless.present()
    labelless.contents["/dev/pmem0"] = "ext4"
    found = labelless.absent()
    assert found.changed and "namespace0.0 remains" in found.explanation
    assert labelless.ndctl_calls == [] and not labelless.host.exists("/dev/NVM_SWAP")
    assert not labelless.absent().changed


def test_legacy_nvm_of_the_firmware_needs_no_acknowledgement(machine: Machine) -> None:
    e820(machine, size=2 * GIB, start=0x100000000)
    machine.tree.firmware(*FIRMWARE_1G, (0x100000000, 0x17FFFFFFF, "Persistent Memory (legacy)"))
    found = machine.present()
    assert found.method == "ndctl" and not found.reboot_required


# memmap --------------------------------------------------------------------------------------------------------------


def test_nothing_there(plain: Machine) -> None:
    assert "volatile_ok" in plain.refused("no_nvm").remedy
    assert "power-off" in plain.refused("volatile", method="memmap").message
    plain.refused("mode_unsupported", method="memmap", volatile_ok=True, mode="sector")


def test_real_nvm_is_not_replaced_by_memory_when_it_was_asked_for(plain: Machine) -> None:
    plain.refused("no_nvm", method="ndctl", volatile_ok=True)


def test_one_method_at_a_time(plain: Machine) -> None:
    plain.present(volatile_ok=True)
    plain.tree.namespace(plain.region(1, dimms=("nmem0",)))
    assert not plain.present(volatile_ok=True).changed, "the range that is configured is kept"
    assert "state=absent" in plain.refused("reservation_differs", method="ndctl").remedy


def test_memmap_beside_a_namespace_of_ours(labelled: Machine) -> None:
    labelled.present()
    labelled.tree.firmware(*FIRMWARE_1G)
    labelled.refused("reservation_differs", method="memmap", volatile_ok=True)


def test_a_range_is_chosen_and_configured(plain: Machine) -> None:
    found = plain.present(volatile_ok=True)
    assert found.changed and found.reboot_required
    assert (found.method, found.range, found.size) == ("memmap", "memmap=512M!384M", 512 * MIB)
    assert found.block_device is None and not found.resizable and "reboot" in found.why_not_resizable
    assert plain.host.read("/etc/boot.d/memmap-NVM_SWAP") == "memmap=512M!384M"
    assert 'ATTRS{resource}=="0x18000000"' in plain.host.read(RULES)
    again = plain.present(volatile_ok=True)
    assert not again.changed and again.reboot_required, "not booted yet"


def test_a_reboot_that_did_not_help(plain: Machine) -> None:
    boot_id = "/proc/sys/kernel/random/boot_id"
    plain.tree.write(boot_id, "first\n")
    assert plain.present(volatile_ok=True).reboot_in_vain is None
    plain.tree.write(boot_id, "second\n")
    assert "lacks memmap=512M!384M" in plain.present(volatile_ok=True).reboot_in_vain
    plain.absent()
    assert not plain.host.exists("/var/lib/nvm-fastboot")


def test_after_the_reboot(plain: Machine) -> None:
    plain.present(volatile_ok=True)
    boot(plain, "memmap=512M!384M")
    e820(plain)
    plain.link()
    calls = list(plain.calls)
    found = plain.present(volatile_ok=True)
    assert not found.changed and not found.reboot_required and plain.calls == calls
    assert (found.block_device, found.size, found.region) == ("/dev/pmem0", 512 * MIB, "region0")


def test_memory_that_became_nvm_does_not_change_the_size(plain: Machine) -> None:
    plain.present(volatile_ok=True)
    boot(plain, "memmap=512M!384M")
    e820(plain)
    plain.link()
    plain.tree.write("/proc/zoneinfo", plain.host.read("/proc/zoneinfo").replace("258014", "126942"))
    assert plain.present(volatile_ok=True, dram_multiple=2).size == 512 * MIB


def test_an_interrupted_run_is_completed(plain: Machine) -> None:
    plain.present(volatile_ok=True)
    plain.tree.write("/boot/config", "ro quiet")
    assert plain.present(volatile_ok=True).changed
    assert "memmap=512M!384M" in plain.host.read("/boot/config")


def test_check_mode_of_memmap(plain: Machine) -> None:
    found = plain.present(volatile_ok=True, check_mode=True)
    assert found.changed and found.range == "memmap=512M!384M"
    assert not plain.host.exists(RULES) and not plain.host.exists("/etc/boot.d/memmap-NVM_SWAP")


def test_an_explicit_size(plain: Machine) -> None:
    assert plain.present(volatile_ok=True, size="200M").range == "memmap=256M!640M"
    refused = plain.refused("reservation_differs", volatile_ok=True, size="300M")
    assert "force=true" in refused.remedy
    assert not plain.present(volatile_ok=True, size="100M").changed
    assert plain.present(volatile_ok=True, size="300M", force=True).range == "memmap=384M!512M"
    assert not plain.present(volatile_ok=True, size="300M").changed


def test_more_than_half_is_refused(plain: Machine) -> None:
    plain.refused("nvm_too_small", volatile_ok=True, size="1G")


def test_twice_what_remains_ends_at_half(plain: Machine) -> None:
    found = plain.present(volatile_ok=True, dram_multiple=2)
    assert found.size == 512 * MIB and "half of the memory stays" in found.explanation


def test_configured_ranges_of_others_are_kept_away_from(plain: Machine) -> None:
    plain.tree.write("/boot/config", "ro memmap=128M!768M")
    assert plain.present(volatile_ok=True, size="256M").range == "memmap=256M!384M"


def test_the_users_own_range_is_used_as_it_is(plain: Machine) -> None:
    boot(plain, "memmap=512M!384M")
    plain.tree.write("/boot/config", "ro memmap=512M!384M")
    e820(plain)
    found = plain.present(volatile_ok=True)
    assert found.changed and not found.reboot_required and "not configured by this module" in found.explanation
    assert not plain.host.exists("/etc/boot.d/memmap-NVM_SWAP")
    plain.tree.write("/dev/pmem0", swap_header(label="FAST"))
    plain.activate()
    calls = list(plain.calls)
    assert not plain.present(volatile_ok=True).changed and plain.calls == calls
    plain.tree.write("/proc/swaps", SWAPS)
    plain.absent()
    assert plain.host.read("/boot/config") == "ro memmap=512M!384M"


def test_the_users_own_range_without_a_known_bootloader(plain: Machine) -> None:
    boot(plain, "memmap=512M!384M")
    e820(plain)

    def unknown(host: Host) -> None:
        raise Refused("bootloader_unknown", "", "")

    with Transaction(plain.host) as tx:
        assert reservation.present(tx, plain.options(volatile_ok=True), unknown)["method"] == "memmap"


def test_the_users_own_range_may_be_too_small_or_in_use(plain: Machine) -> None:
    boot(plain, "memmap=512M!384M")
    plain.tree.write("/boot/config", "ro memmap=512M!384M")
    e820(plain)
    plain.refused("volatile")
    plain.refused("nvm_too_small", volatile_ok=True, size="1G")
    plain.contents["/dev/pmem0"] = "ext4"
    plain.refused("holds_filesystem", volatile_ok=True)


def test_a_range_that_would_go_with_the_next_boot_is_kept(plain: Machine) -> None:
    """present, reboot, absent, present: the range is still there and is configured again as it is."""
    boot(plain, "memmap=512M!384M")
    e820(plain)
    found = plain.present(volatile_ok=True)
    assert found.range == "memmap=512M!384M" and not found.reboot_required
    assert plain.host.read("/etc/boot.d/memmap-NVM_SWAP") == "memmap=512M!384M"


@pytest.mark.parametrize("where", ["kernel", "cmdline", "udev"])
def test_no_other_memory_map_while_an_image_waits(plain: Machine, where: str) -> None:
    plain.tree.block("pci0000:00/block/vdb", "vdb", GIB)
    plain.tree.write("/dev/vdb", swap_header(b"S1SUSPEND"))
    if where == "kernel":
        plain.tree.write("/sys/power/resume", "259:0\n")
    elif where == "cmdline":
        plain.tree.link("/dev/disk/by-uuid/%s" % UUID, "/dev/vdb")
        boot(plain, "resume=UUID=%s" % UUID)
    else:
        plain.tree.write("/run/udev/data/b259:0", "S:disk/by-uuid/%s\nE:ID_FS_TYPE=swsuspend\n" % UUID)
    plain.refused("image_pending", volatile_ok=True)
    plain.tree.write("/dev/vdb", swap_header())
    assert plain.present(volatile_ok=True).changed


def test_a_range_the_kernel_made_nothing_of(plain: Machine) -> None:
    plain.present(volatile_ok=True)
    boot(plain, "memmap=512M!384M")
    assert "nd_e820" in plain.refused("region_missing", volatile_ok=True).remedy


def test_memmap_absent(plain: Machine) -> None:
    plain.present(volatile_ok=True)
    boot(plain, "memmap=512M!384M")
    e820(plain)
    plain.link()
    plain.activate()
    plain.refused("device_in_use", act=plain.absent)
    assert plain.absent(check_mode=True).changed, "nvm_swap would have deactivated it"
    plain.tree.write("/proc/swaps", SWAPS)
    plain.tree.write("/dev/pmem0", swap_header(b"S1SUSPEND"))
    plain.refused("image_pending", act=plain.absent)
    plain.tree.write("/dev/pmem0", swap_header())
    assert plain.absent(check_mode=True).changed and plain.host.exists(RULES)
    found = plain.absent()
    assert found.changed and found.reboot_required and "until the next reboot" in found.explanation
    assert not plain.host.exists(RULES) and plain.host.read("/boot/config") == "ro quiet"
    assert not plain.absent().changed


@pytest.mark.parametrize("rule", [True, False])
def test_memmap_settings_that_cannot_be_removed(plain: Machine, rule: bool) -> None:
    """GRUB's settings are there, and GRUB is not recognised now: /boot is not mounted."""
    plain.present(volatile_ok=True)
    path = grub_settings.path("memmap-NVM_SWAP")
    plain.tree.write(path, grub_settings.render(["memmap=512M!384M"], (), False))
    if not rule:  # an interrupted removal
        os.unlink(plain.host.path(RULES))
    for check_mode in (True, False):
        with Transaction(plain.host, check_mode) as tx, pytest.raises(Refused) as caught:
            reservation.absent(tx, plain.options())
        assert caught.value.code == "settings_remain" and path in caught.value.message
    assert plain.host.exists(RULES) == rule and plain.host.exists(path)
    os.unlink(plain.host.path(path))
    with Transaction(plain.host, False) as tx:
        reservation.absent(tx, plain.options())
    assert not plain.host.exists(RULES)


def test_absent_without_anything(plain: Machine) -> None:
    assert not plain.absent().changed and plain.calls == []


# options -------------------------------------------------------------------------------------------------------------


def test_options() -> None:
    assert reservation.Options.of({**DEFAULTS, "size": "1.5G"}).size == 3 * GIB // 2
    assert reservation.Options.of({**DEFAULTS, "size": "Auto"}).size is None
    with pytest.raises(Refused):
        reservation.Options.of({**DEFAULTS, "size": "much"})


def test_an_invalid_name(labelless: Machine) -> None:
    labelless.refused("name_invalid", name="../x")
    labelless.refused("name_taken", name="pmem0")


def test_dram_that_cannot_be_known(labelless: Machine) -> None:
    labelless.tree.write("/proc/zoneinfo", "")
    labelless.refused("dram_unknown")
