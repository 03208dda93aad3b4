# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of machines that cannot hibernate into their NVM: the role refuses them by name, and changes nothing.

``make reach`` runs it after the others; ``make reach CELLS=secure-boot`` one kind.
"""

from __future__ import annotations

import pytest

from tests.vm import play
from tests.vm.conftest import off
from tests.vm.lab import Lab
from tests.vm.reach.cells import REFUSED, Cell, chosen
from tests.vm.reach.resumed import CONFIGURATION, made, prepare
from tests.vm.restoring import wake


@pytest.mark.parametrize("cell", chosen(REFUSED), ids=lambda cell: cell.name)
def test_it_is_refused(cell: Cell, lab: Lab) -> None:
    with made(cell, lab) as machine:
        prepare(cell, machine)
        if cell.name == "secure-boot":
            off(machine)
            machine = machine.secure_boot()
            wake(machine)
            assert "[integrity]" in machine.ssh("cat /sys/kernel/security/lockdown")
        before = machine.ssh(CONFIGURATION)
        refused = play.play(lab, [machine], "nvm.fastboot.configure", {"nvm_reboot": True})
        assert refused.code != 0 and "Nothing was changed" in refused.output, refused.output
        blockers = play.module(lab, machine, "nvm_info")["blockers"]
        assert cell.bootloader in [each["code"] for each in blockers], blockers
        assert machine.ssh(CONFIGURATION) == before
