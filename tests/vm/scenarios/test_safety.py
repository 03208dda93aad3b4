# SPDX-License-Identifier: GPL-3.0-or-later
"""What must not be touched is not: on a machine that was never configured, with odd files and something precious on its NVM.

Every refusal is checked against the bytes: those of the NVDIMM are read on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.vm import evidence, play
from tests.vm.conftest import MEMORY, NVDIMM, ODD_FILES, off, switched_on
from tests.vm.lab import Lab, Machine

# Everything of each file but its content, then the content; directories too, so that a file that came and went shows.
_FILES = (
    r"find /etc /boot -printf '%p %M %U %G %T@ %l\n' | sort; find /etc /boot -type f -print0 | sort -z | xargs -0 sha256sum"
)
_ARM = "printf 'S1SUSPEND\\0' | dd of={0} bs=1 seek=4086 conv=notrunc,fsync status=none"


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("plain", memory=MEMORY, nvdimm=NVDIMM, disk=64, files=ODD_FILES)) as machine:
        yield machine


@pytest.fixture
def nvm(machine: Machine) -> Iterator[str]:
    """The NVM's device, empty before and after."""
    machine.ssh("wipefs -qa /dev/pmem0")
    yield "/dev/pmem0"
    machine.ssh(
        "umount -q /dev/pmem0; swapoff /dev/pmem0 2>/dev/null; wipefs -qa /dev/pmem0;"
        " rm -f /etc/udev/rules.d/*nvm-fastboot* /dev/NVM_SWAP; udevadm control --reload", check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def disk(machine: Machine) -> str:
    """The second, ordinary disk."""
    return "/dev/" + machine.ssh("lsblk -bdno NAME,SIZE | awk '$2 == 64 * 1024 * 1024 { print $1 }'").strip()


def everything_refuses(lab: Lab, machine: Machine, device: str, code: str) -> None:
    """The modules that would write to the device, and the role, fail with ``code``."""
    reserved = play.module(lab, machine, "nvm_reservation")
    assert reserved.get("failed") and reserved.get("code") == code, reserved
    swap = play.module(lab, machine, "nvm_swap", {"device": device})
    assert swap.get("failed") and swap.get("code") == code, swap
    for result in (reserved, swap):
        assert device in result["msg"] and result["remedy"], result
    played = play.play(lab, [machine], "nvm.fastboot.configure", {"nvm_reboot": True})
    assert played.code != 0 and played.changed == 0, played.output
    assert played.result("nvm_plan").get("code") == code, played.output


def test_a_filesystem_is_not_touched(lab: Lab, machine: Machine, nvm: str) -> None:
    machine.ssh(f"mkfs.ext4 -q {nvm} && mount {nvm} /srv && echo precious >/srv/file && sync")
    mounted = play.module(lab, machine, "nvm_reservation", {"force": True})
    assert mounted.get("code") == "device_in_use" and "/srv" in mounted["msg"], mounted
    machine.ssh("umount /srv")
    before = evidence.digest(machine)
    everything_refuses(lab, machine, nvm, "holds_filesystem")
    assert evidence.digest(machine) == before, "bytes on the NVM changed"
    assert machine.ssh(f"mount -o ro {nvm} /srv && cat /srv/file && umount /srv") == "precious\n"


def test_a_pending_image_is_not_touched(lab: Lab, machine: Machine, nvm: str) -> None:
    machine.ssh(f"mkswap -q {nvm} && {_ARM.format(nvm)}")
    before = evidence.digest(machine)
    assert evidence.signature(machine) == evidence.IMAGE
    everything_refuses(lab, machine, nvm, "image_pending")
    assert evidence.digest(machine) == before, "bytes on the NVM changed"
    info = play.module(lab, machine, "nvm_info", {"device": nvm})
    codes = {blocker["code"] for blocker in info["blockers"]}
    # A machine that was never configured: all of it is in the way.
    assert {"image_pending", "swap_inactive", "resume_unset", "initramfs_drivers"} <= codes and not info["ready"], info["blockers"]


def test_an_image_on_an_ordinary_disk_is_not_touched(lab: Lab, machine: Machine, disk: str) -> None:
    machine.ssh(f"mkswap -q {disk} && {_ARM.format(disk)}")
    before = machine.ssh(f"sha256sum {disk}")
    for state in ("present", "absent"):
        result = play.module(lab, machine, "nvm_swap", {"device": disk, "state": state})
        assert result.get("failed") and result["code"] in ("image_pending", "not_ours"), result
    assert machine.ssh(f"sha256sum {disk}") == before, f"bytes on {disk} changed"
    machine.ssh(f"wipefs -qa {disk}")


def test_a_swap_area_in_use_is_not_taken(lab: Lab, machine: Machine, nvm: str) -> None:
    machine.ssh(f"mkswap -q -L other {nvm} && swapon {nvm}")
    result = play.module(lab, machine, "nvm_reservation", {"mode": "sector"})
    assert result.get("failed") and result["code"] == "device_in_use", result
    assert nvm in machine.ssh("cat /proc/swaps")


def test_check_mode_changes_nothing(lab: Lab, machine: Machine, nvm: str) -> None:
    """The whole of configure on a machine where everything is still to be done."""
    machine.ssh("sync")
    files, bytes_before = machine.ssh(_FILES), evidence.digest(machine)
    played = play.play(lab, [machine], "nvm.fastboot.configure", None, "--check", "--diff").ok()
    plan = played.result("nvm_plan")
    assert plan["changed"] and plan["would_change"] == ["nvm_reservation", "nvm_swap", "fstab_swap", "boot_resume"], played.output
    after = machine.ssh(_FILES)
    assert after == files, "\n".join(sorted(set(files.splitlines()) ^ set(after.splitlines())))
    assert evidence.digest(machine) == bytes_before, "bytes on the NVM changed"


def refuses(lab: Lab, machine: Machine, code: str, ignored: list[str], **options: str) -> None:
    """``hibernate`` does nothing because of ``code`` when the blockers ``ignored`` are left aside."""
    result = play.module(lab, machine, "hibernate", {"ignore_blockers": ignored, **options})
    assert (result.get("verdict"), result.get("code")) == ("never_slept", code), result
    assert [blocker["code"] for blocker in result["blockers"]] == [code] and result["remedy"], result


def test_another_swap_area_would_be_chosen(lab: Lab, machine: Machine, nvm: str, disk: str) -> None:
    """Nothing names a device to resume from, and systemd takes the swap area of the higher priority."""
    machine.ssh(f"mkswap -q {nvm} && swapon -p 10 {nvm} && mkswap -q {disk} && swapon -p 20 {disk}")
    try:
        info = play.module(lab, machine, "nvm_info", {"device": nvm})
        (blocker,) = [each for each in info["blockers"] if each["code"] == "other_swap_first"]
        assert disk in blocker["message"], blocker
        unconfigured = ["resume_running", "resume_configured", "initramfs_drivers"]
        refuses(lab, machine, "other_swap_first", unconfigured, device=nvm)
    finally:
        machine.ssh(f"swapoff {disk}; wipefs -qa {disk}")


def test_without_nvm_and_with_nohibernate(lab: Lab, machine: Machine) -> None:
    """The last test of this machine: it is booted without its NVDIMM, by a kernel that was told not to hibernate."""
    machine.ssh(r"sed -i '/^\s*linux\s/s/$/ nohibernate/' /boot/grub/grub.cfg && sync && fsfreeze -f / && fsfreeze -u /")
    off(machine)
    machine.settings = replace(machine.settings, nvdimm=0)
    machine.power_on()
    machine.wait_up()
    assert machine.ssh("cat /sys/power/disk") == "[disabled]\n"
    info = play.module(lab, machine, "nvm_info")
    codes = [blocker["code"] for blocker in info["blockers"]]
    assert {"no_nvm", "nohibernate"} <= set(codes) and not info["ready"], info["blockers"]
    assert info["nvm"] == 0
    for code in ("no_nvm", "nohibernate"):
        refuses(lab, machine, code, [each for each in codes if each != code])
