# SPDX-License-Identifier: GPL-3.0-or-later
"""The power goes at a random moment, while a machine is configured: it boots, and another run finishes the work.

A cut while an image is written is in test_verdicts.py. The seed of the moments is printed, see ``evidence.moments``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm import evidence, play
from tests.vm.conftest import MEMORY, NVDIMM, ODD_FILES, switched_on
from tests.vm.lab import Lab, Machine

# (the task after whose start the power goes, and at most how many seconds after)
ROUNDS = (("nvm_reservation", 40), ("boot_resume", 60))
_SOUND = """
set -e
grub-script-check /boot/grub/grub.cfg
tail -n 1 /boot/grub/grub.cfg | grep -q '^### END /etc/grub.d/'
for image in /boot/initrd.img-*[!a-z]; do lsinitramfs "$image" >/dev/null; done
! dmesg | grep -i 'EXT4-fs error'
systemctl is-system-running --wait || systemctl --failed --no-legend
"""
# With the settings that the machine was given; removing does the same in the end. GRUB reads the disk without replaying
# its journal, and update-grub writes grub.cfg in place: without the freeze a power cut soon after may leave GRUB with nothing.
_UPDATE_GRUB = """
update-grub
python3 - <<'END'
import fcntl, os
boot = os.open("/boot", os.O_RDONLY)
fcntl.ioctl(boot, 0xC0045877, 0)  # FIFREEZE
fcntl.ioctl(boot, 0xC0045878, 0)  # FITHAW
END
"""
# By path: mode, owner and digest of each file that configuring may change, and of all the files around them.
_FILES = r"find /etc /boot -type f ! -name 'initrd.img-*' -printf '%m %U:%G ' -exec sha256sum {} \; | sort -k 4"


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    with switched_on(lab.create("cut", memory=MEMORY, nvdimm=NVDIMM, files=ODD_FILES)) as machine:
        yield machine


def configure_and_cut(lab: Lab, machine: Machine, task: str, delay: float) -> str:
    """Start configuring and pull the plug ``delay`` seconds after the start of the task; what it was doing then."""
    started: list[str] = []

    def cut() -> None:
        machine.power_cut()
        started.append("the power was cut")

    timer = threading.Timer(delay, cut)

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            started.append(event["task"])
            if event["module"].endswith(task) and timer.ident is None:
                timer.start()

    play.play(lab, [machine], "nvm.fastboot.configure", {"nvm_reboot": False}, on_event=watch)
    assert timer.ident is not None, f"no task ran {task}: {started}"
    timer.join()
    assert not machine.is_on()
    return started[started.index("the power was cut") - 1]


def test_power_cut_while_configuring(lab: Lab, machine: Machine) -> None:
    moments = evidence.moments("configuring")
    machine.ssh(_UPDATE_GRUB)
    before = machine.ssh(_FILES)
    for task, longest in ROUNDS:
        delay = moments.uniform(1, longest)
        moment = configure_and_cut(lab, machine, task, delay)
        machine.power_on()
        up = machine.wait_up()
        sound = machine.ssh(_SOUND).strip()
        print(f"power cut {delay:.1f} s after the start of {task}, in '{moment}'; up in {up:.0f} s: {sound}", flush=True)

    play.play(lab, [machine], "nvm.fastboot.configure", {"nvm_reboot": True}).ok()
    info = play.module(lab, machine, "nvm_info")
    assert info["ready"], info["blockers"]
    again = play.play(lab, [machine], "nvm.fastboot.configure", {"nvm_reboot": True}).ok()
    assert again.changed == 0, again.output

    play.play(lab, [machine], "nvm.fastboot.remove").ok()
    after = machine.ssh(_FILES)
    assert after == before, "\n".join(sorted(set(before.splitlines()) ^ set(after.splitlines())))
    assert play.play(lab, [machine], "nvm.fastboot.remove").ok().changed == 0
