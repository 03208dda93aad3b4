# SPDX-License-Identifier: GPL-3.0-or-later
"""Trigger conditions that are really met: the image is saved, the power goes off, and the machine resumes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.vm import evidence, play
from tests.vm.conftest import switched_on
from tests.vm.lab import Lab, Machine


@pytest.fixture(scope="module")
def machine(lab: Lab, configured: Machine) -> Iterator[Machine]:
    with switched_on(lab.copy(configured, "triggers")) as machine:
        yield machine


def sleeps_and_resumes(machine: Machine, before: evidence.Memory, within: float) -> None:
    """Assert that the machine goes off with an image on its NVDIMM, and comes back with its memory when switched on."""
    machine.wait_off(within)
    assert evidence.signature(machine) == evidence.IMAGE, "it went off without having saved an image"
    machine.power_on()
    machine.wait_up()
    evidence.same_memory(before, machine, power_was_off=True)


def test_power_key(lab: Lab, machine: Machine) -> None:
    trigger = {"condition": "power_key"}
    made = play.module(lab, machine, "hibernate_trigger", trigger)
    assert made["changed"] and not made["failed"], made
    before = evidence.remember(machine)
    machine.power_button()
    sleeps_and_resumes(machine, before, within=120)
    assert not play.module(lab, machine, "hibernate_trigger", trigger)["changed"]
    assert play.module(lab, machine, "hibernate_trigger", {**trigger, "state": "absent"})["changed"]


def test_schedule(lab: Lab, machine: Machine) -> None:
    """Every minute: so the time passes again while the machine is off, and again right after it resumed."""
    trigger = {"condition": "schedule", "schedule": "*-*-* *:*:00"}
    before = evidence.remember(machine)
    made = play.module(lab, machine, "hibernate_trigger", trigger)
    assert made["changed"] and not made["failed"], made
    sleeps_and_resumes(machine, before, within=200)
    deadline = time.monotonic() + 90
    while not (skipped := "has just resumed: not hibernating" in machine.ssh("journalctl -b -u nvm-fastboot-schedule")):
        assert machine.is_on() and time.monotonic() < deadline, "the condition was not looked at again after the resume"
        time.sleep(2)
    assert skipped and machine.is_on()
    assert play.module(lab, machine, "hibernate_trigger", {**trigger, "state": "absent"})["changed"]
    evidence.same_memory(before, machine, power_was_off=True)
    assert machine.ssh("ls /etc/systemd/system | grep nvm-fastboot", check=False) == "", "something of the trigger is left"
