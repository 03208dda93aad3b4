# SPDX-License-Identifier: GPL-3.0-or-later
"""The machines of the VM tests.

Booting is what costs: one machine is configured once for all tests, and each file works on a copy of it, or on a plain
machine of its own, that stays on from test to test. At most one is on at a time. What a failing test leaves on the
console of its machine is kept in ``build/logs``. With ``$KEEP`` set the configured machine stays for the next run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import play
from tests.vm.lab import Lab, LabError, Machine

FOLDER = play.REPOSITORY / "build" / os.environ.get("VM_TESTS", "vm-tests")
LOGS = play.REPOSITORY / "build" / "logs"
MEMORY = 768
NVDIMM = MEMORY * 5 // 4

# What administrators leave in such files. Only the line for / means anything to this machine.
ODD_FILES = {
    "/etc/fstab": (
        "# <file system>\t<mount point>   <type>  <options>\t<dump>  <pass>\n"
        "LABEL=root\t/               ext4    errors=remount-ro 0       1\n"
        "\n"
        "  # the archive, when it is plugged in:\n"
        "UUID=0a1b2c3d-0000-4000-8000-00000000cafe\t/srv/the\\040archive\text4\tnoauto,nofail,x-systemd.device-timeout=1s\t0\t2\n"
        "#UUID=0a1b2c3d-0000-4000-8000-00000000beef none swap sw 0 0\n"
        "tmpfs /mnt tmpfs size=1M,noauto"
    ),
    "/etc/default/grub.d/50-cloudimg-settings.cfg": (
        "# Of the image this machine was made from\n"
        'GRUB_CMDLINE_LINUX="dyndbg=\\"file nothing.c +p\\" secretmem.enable=1 $GRUB_CMDLINE_LINUX"\n'
        'GRUB_CMDLINE_LINUX="resume=UUID=0a1b2c3d-0000-4000-8000-00000000dead $GRUB_CMDLINE_LINUX"\n'
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vm)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        LOGS.mkdir(parents=True, exist_ok=True)
        for machine in Lab(FOLDER).machines() if FOLDER.exists() else []:
            for log in machine.folder.glob("console*.log"):
                shutil.copy(log, LOGS / f"{item.name}-{machine.name}-{log.name}")
    return report


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A laboratory of the tests' own, empty."""
    lab = Lab(FOLDER, say=lambda text: print(text, flush=True))
    _clear(lab, but="configured" if os.environ.get("KEEP") else "")
    yield lab
    if not os.environ.get("KEEP"):
        _clear(lab)


@pytest.fixture(scope="session")
def configured(lab: Lab) -> Machine:
    """A machine that hibernates into its NVDIMM, off. To be copied, not to be used."""
    if os.environ.get("KEEP") and (FOLDER / "configured" / "machine.json").exists():
        return lab.machine("configured")
    with timed("configured"):
        machine = lab.create("configured", memory=MEMORY, nvdimm=NVDIMM, files=ODD_FILES)
        machine.power_on()
        machine.wait_up()
        play.play(lab, [machine], "nvm.fastboot.configure", {"nvm_reboot": True}).ok()
        off(machine)
    return machine


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Say on the terminal how long something that is no test of its own took."""
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.0f} s", flush=True)


@contextlib.contextmanager
def switched_on(machine: Machine) -> Iterator[Machine]:
    """The machine, answering; off and gone afterwards, or only off if it could not be switched on."""
    try:
        machine.power_on()
        machine.wait_up()
        yield machine
    except BaseException:
        machine.power_cut()
        raise
    machine.destroy()


def off(machine: Machine) -> None:
    """Shut the machine down as its administrator would."""
    machine.ssh("systemctl poweroff", check=False)
    machine.wait_off()


def _clear(lab: Lab, but: str = "") -> None:
    """Remove all machines ``but`` one, and what an interrupted run left of others."""
    for folder in (path for path in lab.folder.glob("*/") if path.name != but):
        with contextlib.suppress(LabError):
            lab.machine(folder.name).power_cut()
        shutil.rmtree(folder)
