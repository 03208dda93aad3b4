# SPDX-License-Identifier: GPL-3.0-or-later
"""rEFInd: the command lines in refind_linux.conf, changed in place and brought back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.refind import CONFIGURATION
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.bootloaders.changing import (
    DROP,
    RESUME,
    detected,
    ensure,
    forget,
)
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.firmware_tree import numbers, option

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

NEW, OLD = "6.1.0-50-amd64", "6.1.0-48-amd64"
LINES = '''\
# mine
"Boot with standard options"  "ro root=UUID=0b4c quiet resume=/dev/sda5"
  "Boot to single-user mode"    "ro root=UUID=0b4c single"
"Boot another system"  "ro root=UUID=dead initrd=\\\\initrd.img"

#"Boot with minimal options"   "ro root=UUID=0b4c"
'''

loader = partial(detected, name="refind")


@pytest.fixture
def tree(host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)
    plant({
        "/proc/cmdline": "ro root=UUID=0b4c quiet initrd=boot\\\\initrd.img-6.1.0-50-amd64\n",
        "/sys/firmware/efi/fw_platform_size": "64\n", **numbers("BootCurrent", 1), **option(1, "rEFInd", "\\EFI\\refind\\refind_x64.efi"),
        **{f"/boot/{name}-{version}": "" for name in ("vmlinuz", "initrd.img") for version in (NEW, OLD)}, "/boot/vmlinuz-6.1.old": "",
    })  # fmt: skip
    return host


@pytest.mark.parametrize("text", [LINES, LINES.rstrip("\n"), None])
def test_changed_and_brought_back(tree: Host, plant: Plant, text: str | None) -> None:
    if text is not None:
        plant({CONFIGURATION: text})
    assert ensure(tree) and not ensure(tree)
    entries = loader(tree).entries()
    assert {each.kernel for each in entries} == {f"/boot/vmlinuz-{NEW}", f"/boot/vmlinuz-{OLD}"}
    assert all(each.arguments[-1] == RESUME and each.initrds for each in entries), entries
    assert loader(tree).check(entries, [RESUME], DROP) == []
    assert forget(tree) and not forget(tree)
    assert tree.read(CONFIGURATION) == text


def test_lines_of_other_systems_are_left_alone(tree: Host, plant: Plant) -> None:
    plant({CONFIGURATION: LINES})
    ensure(tree)
    assert '"Boot another system"  "ro root=UUID=dead initrd=\\\\initrd.img"\n' in tree.read(CONFIGURATION, "")


def test_any_kernel_may_start_next(tree: Host, plant: Plant) -> None:
    plant({CONFIGURATION: LINES})
    boot = loader(tree).next_boot()
    assert sorted(entries[0].kernel for _title, entries in boot.choices) == [f"/boot/vmlinuz-{OLD}", f"/boot/vmlinuz-{NEW}"]
    assert f"vmlinuz-{NEW}" in boot.remedy(f"/boot/vmlinuz-{NEW}")
