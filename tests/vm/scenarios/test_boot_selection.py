# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that selects at boot, by itself, which of its snapshots it resumes: the newest that is sound, or none, and says why.

tests/vm/boot has a whole day of it: panics, a watchdog, a choice, a store; dracut; the power cut while it selects.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm.boot.selecting import change, cut, damage, exhausted, is_resumed, prepare, report, slots_of, taken, wake
from tests.vm.conftest import switched_on
from tests.vm.lab import Lab, Machine

MEMORY = 768


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("selection", memory=MEMORY, nvdimm=0, disk=1024)) as machine:
        prepare(machine)
        yield machine


def test_after_a_power_cut_at_the_newest_that_is_sound(machine: Machine) -> None:
    """Then one is damaged, and the other was tried too often."""
    (older, first), (newer, second) = taken(machine, "first"), taken(machine, "second")
    cut(machine)
    is_resumed(machine, newer, second, "second", "power_loss")
    states = {number: (one.state, one.attempts) for number, one in slots_of(machine).items()}
    assert states[second] == ("complete", 0), "the restored system has not said that the image came up"
    machine.power_cut()
    damage(machine, second)
    wake(machine)
    found = is_resumed(machine, older, first, "first", "power_loss")
    assert found["passed_over"] == [{"slot": second, "reason": "its checksum is wrong"}]
    machine.power_cut()
    change(machine, lambda table: exhausted(table, first))
    wake(machine)
    found = report(machine)
    assert found["selected"] is None and found["reason"] == "after power_loss no slot can be resumed"
    reasons = {one["slot"]: one["reason"] for one in found["passed_over"]}
    assert reasons == {first: "it was tried 2 times, and did not come up", second: "its checksum is wrong"}
