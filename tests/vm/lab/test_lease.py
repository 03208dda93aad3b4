# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines end with the process that made them: the real make demo, and others, killed. Of QEMU there is only a stand-in, which never ends
by itself; no machine is started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm.lab import Lab, LabError, images
from tests.vm.lab.recipes import RECIPES

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).resolve().parents[3]
SECONDS = 60  # for what takes one or two on an idle machine
QEMU = """\
#!/usr/bin/python3
import os, sys, time
pid_file = sys.argv[sys.argv.index("-pidfile") + 1]
if os.fork():
    while not os.path.exists(pid_file):
        time.sleep(0.01)
    os._exit(0)
os.setsid()
for handle in range(3):
    os.dup2(os.open("/dev/null", os.O_RDWR), handle)
with open(pid_file + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(pid_file + ".new", pid_file)
while True:
    time.sleep(60)
"""
PROGRAM = """\
import sys, time
from tests.vm.lab import Lab
machine = Lab(sys.argv[1], keep=sys.argv[2] == "keep").create("one", nvdimm=0)
machine.power_on()
print("on", flush=True)
time.sleep(0 if sys.argv[3] == "ends" else 600)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a process that uses the laboratory: a QEMU that is none, and guest images with nothing in them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("qemu-system-x86_64", QEMU), ("qemu-img", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("debian12", "debian12-server"):
        image = tmp_path / "cache" / "nvm-fastboot" / "guests" / f"{name}-{images.key(RECIPES[name])}"
        image.mkdir(parents=True)
        for part in ("base.qcow2", "vmlinuz"):
            (image / part).touch()
    mine = {name: value for name, value in os.environ.items() if name not in ("KEEP", "LAB_PARENT", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return {
        **mine,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "LAB_ACCELERATOR": "tcg",
        "LAB_DIR": str(tmp_path / "lab"),
    }


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """The machines of the process; none of them outlives a test."""
    lab = Lab(tmp_path / "lab")
    yield lab
    for machine in lab.machines():
        machine.destroy()


def until(done: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@contextlib.contextmanager
def demo(environment: dict[str, str], lab: Lab, *variables: str) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """The process of make demo, and those of its two machines and of the demonstration, which is the last one."""
    output = lab.folder.parent / "output"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            ["make", "demo", *variables], cwd=REPOSITORY, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        until(lambda: len(lab.machines()) == 2 and all(machine.is_on() for machine in lab.machines()), output.read_text())
        pids = [machine.pid() or 0 for machine in lab.machines()]
        owner = int((lab.folder / "demo" / "owner").read_text().partition(" ")[0]) if not variables else 0
        yield process, [*pids, owner]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_make_demo_that_is_killed(environment: dict[str, str], lab: Lab, number: signal.Signals) -> None:
    with demo(environment, lab) as (make, pids):
        make.send_signal(number)  # make alone, not its children
        for pid in pids:
            until(lambda pid=pid: ended(pid), "still runs: " + str(pid))  # type: ignore[misc]
        make.wait(SECONDS)
        assert make.returncode != 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_demonstration_that_is_killed(environment: dict[str, str], lab: Lab, number: signal.Signals) -> None:
    with demo(environment, lab) as (make, pids):
        if number == signal.SIGINT:
            os.killpg(make.pid, number)  # as a terminal does
        else:
            os.kill(pids[-1], number)
        for pid in pids:
            until(lambda pid=pid: ended(pid), "still runs: " + str(pid))  # type: ignore[misc]
        make.wait(SECONDS)
        assert make.returncode != 0
    names = [machine.name for machine in lab.machines()]
    assert names == ([] if number == signal.SIGINT else ["demo", "demo-disk"]), "off, and removed where a process could"


def test_make_demo_with_keep_leaves_them_running(environment: dict[str, str], lab: Lab) -> None:
    with demo(environment, lab, "KEEP=1") as (make, pids):
        make.kill()
        make.wait(SECONDS)
        time.sleep(2)
        assert not any(ended(pid) for pid in pids[:2])


@pytest.mark.parametrize(("keep", "ends"), [("", "ends"), ("", "is killed"), ("keep", "ends"), ("keep", "is killed")])
def test_a_process_that_uses_the_laboratory(environment: dict[str, str], lab: Lab, keep: str, ends: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(lab.folder), keep, ends]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        if ends == "is killed":
            process.kill()
        process.wait(SECONDS)
    machine = lab.machine("one")
    if keep:
        time.sleep(1)
        assert machine.is_on()
        return
    until(lambda: not machine.is_on(), "is still on")
    wake = [sys.executable, "-m", "tests.vm.lab", "--lab", str(lab.folder), "wake", "one"]
    done = subprocess.run(wake, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "'lab on one' switches it on and keeps it" in done.stderr, "a wake_command outlives its playbook"
    on = [sys.executable, "-m", "tests.vm.lab", "--lab", str(lab.folder), "on", "one"]
    subprocess.run(on, env=environment, check=True)
    assert machine.is_on(), "switched on by hand"


def test_a_machine_that_does_not_start(environment: dict[str, str], lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    qemu = Path(environment["PATH"].split(":")[0], "qemu-system-x86_64")
    qemu.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    machine = lab.create("one", nvdimm=0)
    with pytest.raises(LabError, match=r"one does not start: .*qemu-system-x86_64 exited with 3: out of memory"):
        machine.power_on()
    qemu.unlink()
    monkeypatch.setenv("PATH", str(qemu.parent))
    with pytest.raises(LabError, match=r"qemu-system-x86_64 is not installed; 'make setup'"):
        machine.power_on()
