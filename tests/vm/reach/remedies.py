# SPDX-License-Identifier: GPL-3.0-or-later
"""Each blocker of a machine that a test can bring about: its remedy, followed to the letter, makes the machine ready again.

``make remedies`` runs it; ``make remedies REMEDIES="masked lockdown"`` some of them. What is in a remedy and is not done here has no test:
hardware to replace, and devices to choose.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm import play
from tests.vm.conftest import MEMORY, NVDIMM, off
from tests.vm.lab import Lab, Machine
from tests.vm.reach.blockers import NVM, SPOILED, Spoiled, Step
from tests.vm.restoring import wake

WANTED = [spoiled for spoiled in SPOILED if spoiled.name in os.environ.get("REMEDIES", "").split()] or list(SPOILED)
DISK = "/dev/disk/by-id/virtio-lab-disk"


class Bench:
    """One machine, on and ready, for one case after another; another one in its place after a failure."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._original = lab.create("original", memory=MEMORY, nvdimm=NVDIMM, disk=256)
        wake(self._original)
        self._original.ssh(
            "echo 'GRUB_CMDLINE_LINUX=\"secretmem.enable=1\"' >/etc/default/grub.d/50-secret.cfg && update-grub"
        )
        play.play(lab, [self._original], "nvm.fastboot.configure", {"nvm_reboot": True}).ok()
        off(self._original)
        self._machine: Machine | None = None
        self._number = 0

    @property
    def machine(self) -> Machine:
        if self._machine is None:
            self._number += 1
            self._machine = self.lab.copy(self._original, f"copy{self._number}")
            wake(self._machine)
        return self._machine

    def reject(self) -> None:
        if self._machine is not None:
            self._machine.power_cut()
            self._machine = None

    def blockers(self, *options: str) -> list[dict[str, str]]:
        task = {"nvm.fastboot.nvm_info": {"device": NVM}}
        found: list[dict[str, str]] = (
            play.tasks(self.lab, self.machine, [task], "--check", *options).ok().result("nvm_info")["blockers"]
        )
        return found

    def shell(self, text: str, values: dict[str, str]) -> None:
        for name, value in values.items():
            text = text.replace("{%s}" % name, value)
        self.machine.ssh("sh -s", stdin=text, timeout=900)

    def reboot(self) -> None:
        off(self.machine)
        wake(self.machine)

    def follow(self, step: Step, remedy: str, values: dict[str, str]) -> None:
        says = step.says
        for name, value in values.items():
            says = says.replace("{%s}" % name, value)
        assert says in remedy, remedy
        if step.reboot:
            self.reboot()
        elif step.module:
            options: dict[str, Any] = {"device": NVM, **step.options}
            assert not play.module(self.lab, self.machine, step.module, options)["failed"]
        else:
            self.shell(step.run or says, values)


@pytest.fixture(scope="module")
def bench(lab: Lab) -> Iterator[Bench]:
    bench = Bench(lab)
    yield bench
    bench.reject()


@pytest.mark.parametrize("spoiled", WANTED, ids=lambda spoiled: spoiled.name)
def test_the_remedy_helps(bench: Bench, spoiled: Spoiled) -> None:
    try:
        _try(bench, spoiled)
    except BaseException:
        bench.reject()
        raise


def _try(bench: Bench, spoiled: Spoiled) -> None:
    names = bench.machine.ssh(f"readlink -f {NVM} && blkid -p -s UUID -o value {NVM} && readlink -f {DISK} && uname -r").split()
    values = dict(zip(("real", "uuid", "disk", "kernel"), names, strict=True), device=NVM)
    bench.shell(spoiled.spoil, values)
    if spoiled.reboot:
        bench.reboot()
    blockers = bench.blockers() if spoiled.become else _unprivileged(bench)
    found = [each for each in blockers if each["code"] == spoiled.code]
    assert found, f"no blocker {spoiled.code}"
    says = [step.says for step in spoiled.steps]
    found.sort(key=lambda each: -sum(part in each["remedy"] for part in says))
    setting = re.search(r"Set (GRUB_DEFAULT=(?:'[^']*'|\S+)) in (\S+), and run", found[0]["remedy"])
    if setting:
        values["setting"] = f"""sed -i '/^GRUB_DEFAULT=/d' {setting[2]}; echo {setting[1]!r} >>{setting[2]}"""
    for step in spoiled.steps:
        bench.follow(step, found[0]["remedy"], values)
    left = bench.blockers()
    assert [each["code"] for each in left] == list(spoiled.leads_to), left
    bench.shell(spoiled.clean, values)


def _unprivileged(bench: Bench) -> list[dict[str, str]]:
    """What a user who is not root is told."""
    bench.machine.ssh("id admin || useradd -m admin")
    return bench.blockers("-e", '{"ansible_become_user": "admin"}')
