# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job, shown: a virtual machine is configured by the collection's playbooks, hibernates into NVM, loses power, and
comes back as it was; and loses it without a warning, and comes back to a snapshot of itself. ``make demo`` runs it; with ``KEEP=1`` the
machine is left running. Without it, the machines end with this process, and with the make that runs it (LAB_PARENT), however those end.

Two machines of one kind take part; each runs an application server (Tomcat). The first hibernates into its NVDIMM, and then takes a
snapshot into it; the second, for comparison, hibernates into an ordinary disk. They are configured side by side, and measured one after
the other with nothing else running.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.vm import ram_root, snapshots, workload
from tests.vm.lab import Lab, LabError, Machine, images, lease
from tests.vm.play import REPOSITORY, play
from tests.vm.powercycle import hibernate

RECIPE = "debian12-server"
MEMORY_MIB = 1024
NVDIMM_MIB = 1280
DISK_MIB = 1280
DISK = "/dev/disk/by-id/virtio-lab-disk"
NVM_SWAP = "/dev/NVM_SWAP"
CONVERGE_TURNS = 2
PLAYBOOKS = Path(__file__).parent / "playbooks"
RESULT = REPOSITORY / "build" / "demo.json"


class Steps:
    """Says on the terminal what is going on, and how long each step took."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()
        self._now = ""

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        started = time.monotonic()
        stop = threading.Event()
        self._now = ""

        def show() -> None:
            while not stop.wait(0.5):
                seconds = time.monotonic() - started
                sys.stdout.write(f"\r\033[K  … {text}  {seconds:.0f} s  {self._now}"[:130])
                sys.stdout.flush()

        if self._live:
            threading.Thread(target=show, daemon=True).start()
        else:
            print(f"  … {text}", flush=True)
        try:
            yield
        except BaseException:
            stop.set()
            print(f"{self._home()}  ✗ {text}  ({time.monotonic() - started:.1f} s)", flush=True)
            raise
        stop.set()
        print(f"{self._home()}  ✓ {text}  ({time.monotonic() - started:.1f} s)", flush=True)

    def doing(self, text: str) -> None:
        """What the step is at."""
        self._now = text

    def event(self, event: dict[str, Any]) -> None:
        """A task of a playbook starts or ends (see tests.vm.play)."""
        if event["event"] == "start":
            self.doing(event["task"])
        elif event["module"].startswith("nvm.fastboot."):
            word = "changed" if event["result"].get("changed") else event["status"]
            print(f"{self._home()}      {event['task']}: {word}  ({event['seconds']:.1f} s)", flush=True)

    def say(self, text: str) -> None:
        print(f"{self._home()}    {text}", flush=True)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def _home(self) -> str:
        return "\r\033[K" if self._live else ""


def main() -> int:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    if os.environ.get("LAB_PARENT"):
        lease.end_with(int(os.environ["LAB_PARENT"]))
    steps = Steps()
    keep = os.environ.get("KEEP", "") not in ("", "0")
    lab = Lab(say=steps.doing, keep=keep)
    machines: list[Machine] = []
    try:
        result = _demonstrate(steps, lab, machines)
    except (LabError, images.BuildError, AssertionError) as error:
        how = "" if keep else ", switched off; KEEP=1 leaves them running"
        print(f"\nThe demonstration failed: {error}\nThe machines are left for inspection{how}: {lab.folder}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nThe demonstration was stopped." + (" KEEP=1: its machines run on." if keep else ""), file=sys.stderr)
        for machine in () if keep else machines:
            machine.destroy()
        return 130
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(_table(result))
    print(f"  The whole demonstration took {steps.elapsed / 60:.1f} minutes. The figures are in {RESULT.relative_to(REPOSITORY)}.")
    if keep:
        command, name = f"{sys.executable} -m tests.vm.lab", machines[0].name
        print(f"\n  The machine runs on. Log in:   {command} ssh {name}")
        print(f"  Hibernate it from there:       systemctl hibernate; and switch it on with  {command} on {name}")
        print(f"  Remove it:                     {command} destroy {name}")
    for machine in machines[1 if keep else 0 :]:
        machine.destroy()
    return 0 if result["resumed"] else 1


def _stop(number: int, frame: object) -> None:
    for each in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt


def _demonstrate(steps: Steps, lab: Lab, machines: list[Machine]) -> dict[str, Any]:
    with steps.step(f"guest image: {RECIPE}, from Debian packages (kept in {images.cache_directory()})"):
        images.ensure(RECIPE, steps.doing)
    with steps.step("two machines: one to hibernate into its NVDIMM, one into a disk"):
        for name in ("demo", "demo-disk"):
            with contextlib.suppress(LabError):
                lab.machine(name).destroy()
            machines.append(lab.create(name, RECIPE, memory=MEMORY_MIB, nvdimm=NVDIMM_MIB, disk=DISK_MIB))
            machines[-1].power_on()
        nvm, disk = machines
        for machine in machines:
            machine.wait_up()

    other = _Background(lambda: _configure_disk(lab, disk))
    with steps.step("look: nvm_info"):
        info = play(lab, [nvm], str(PLAYBOOKS / "look.yml")).ok().result("nvm_info")
        steps.say(f"DRAM {info['dram'] >> 20} MiB, NVM {info['nvm'] >> 20} MiB, {info['bootloader']}, {info['initramfs']}")
        for blocker in info["blockers"]:
            steps.say(f"not ready: {blocker['message']}")
    with steps.step("configure: ansible-playbook nvm.fastboot.configure"):
        play(lab, [nvm], "nvm.fastboot.configure", on_event=steps.event).ok()
    with steps.step("the second machine, for the comparison"):
        other.wait()
    with steps.step("power off, power on, boot through GRUB"):
        nvm.ssh("systemctl poweroff", check=False)
        nvm.wait_off()
        nvm.power_on()
        up = nvm.wait_up()
        cold = {"up": up, "served": up + nvm.wait_served()}
        _settle(nvm)
    with steps.step("again: a converge that changes nothing, against ansible.builtin.setup, in turn"):
        setups, agains = [], []
        for _turn in range(CONVERGE_TURNS):
            setups.append(play(lab, [nvm], str(PLAYBOOKS / "setup.yml")).ok())
            agains.append(play(lab, [nvm], "nvm.fastboot.configure").ok())
    with steps.step("hibernate into NVM: ansible-playbook nvm.fastboot.hibernate"):
        on_nvm = _hibernate(lab, nvm, "nvdimm.img", {})
    nvm.freeze()
    with steps.step("the same from an ordinary disk"):
        disk.power_on()
        disk.wait_up()
        _settle(disk)
        on_disk = _hibernate(lab, disk, "disk2.img", {"nvm_device": DISK})
    disk.power_cut()
    nvm.thaw()
    with steps.step("a root filesystem whose changes stay in memory: any image of such a machine can be resumed"):
        snapshots.bring(nvm)
        ram_root.adopt(nvm)
        nvm.ssh("systemctl poweroff", check=False)
        nvm.wait_off()
        nvm.power_on()
        nvm.wait_up()
        _settle(nvm)
    with steps.step("a snapshot while it runs: fuse-store snapshot --arm; then the power is cut"):
        snapshot = _snapshot(nvm)
    return {
        "guest": {"recipe": RECIPE, "memory_mib": MEMORY_MIB, "accelerator": nvm.accelerator()},
        "cold_boot": cold,
        "nvm": on_nvm,
        "disk": on_disk,
        "snapshot": snapshot,
        "converge_again": {
            "seconds": min(play.seconds for play in agains),
            "setup_seconds": min(play.seconds for play in setups),
            "changed": sum(play.changed for play in agains),
        },
        "resumed": on_nvm["resumed"] and on_disk["resumed"] and snapshot["resumed"],
    }


def _settle(machine: Machine) -> None:
    """Wait until all that starts at boot has started, whether all of it could or not."""
    machine.wait_served()
    machine.ssh("systemctl is-system-running --wait", check=False)


def _configure_disk(lab: Lab, disk: Machine) -> None:
    play(lab, [disk], str(PLAYBOOKS / "disk_swap.yml"), {"nvm_compression": "none"}).ok()
    disk.ssh("systemctl poweroff", check=False)
    disk.wait_off()


def _hibernate(lab: Lab, machine: Machine, image_on: str, variables: dict[str, Any]) -> dict[str, Any]:
    before = workload.start(machine)
    played, cycle = hibernate(lab, machine, variables, image_on, serves=True)
    verdict = played.result("hibernate")
    after = workload.ask(machine)
    return {
        **{name: getattr(cycle, name) for name in ("hibernate", "resume", "served", "image", "power_was_off")},
        "verdict": verdict["verdict"],
        "seconds": verdict["seconds"],
        "same_boot_id": after.boot_id == before.boot_id,
        "process_alive": before.lives_on_in(after),
        "resumed": verdict["verdict"] == "resumed" and cycle.power_was_off and before.lives_on_in(after),
    }


def _snapshot(machine: Machine) -> dict[str, Any]:
    """It takes a snapshot of itself and goes on; the power fails; it comes back to the snapshot."""
    before = workload.start(machine)
    machine.ssh(f"swapoff {NVM_SWAP}")
    taken = snapshots.take(machine, NVM_SWAP, "--arm")
    goes_on = before.lives_on_in(workload.ask(machine))
    machine.power_cut()
    power_was_off = machine.pid() is None
    machine.power_on()
    resume = machine.wait_up()
    served = resume + machine.wait_served()
    after = workload.ask(machine)
    resumed = goes_on and power_was_off and before.lives_on_in(after)
    return {
        "verdict": "restored" if resumed else "lost",
        "resume": resume,
        "served": served,
        "pause": taken["pause"],
        "image": taken["size"],
        "power_was_off": power_was_off,
        "same_boot_id": after.boot_id == before.boot_id,
        "process_alive": before.lives_on_in(after),
        "resumed": resumed,
    }


def _table(result: dict[str, Any]) -> str:
    cold, resumes = result["cold_boot"], (result["nvm"], result["disk"], result["snapshot"])
    yes = {True: "yes", False: "NO"}
    rows = [
        ("", "cold boot", "resume from NVM", "resume from disk", "own snapshot"),
        ("power on until it answers on SSH", *_seconds("up", cold), *_seconds("resume", *resumes)),
        ("  times as fast as the cold boot", "1", *(f"{cold['up'] / one['resume']:.1f}" for one in resumes)),
        ("power on until its application answers", *_seconds("served", cold, *resumes)),
        ("  times as fast as the cold boot", "1", *(f"{cold['served'] / one['served']:.1f}" for one in resumes)),
        ("told to hibernate until off", "", *_seconds("hibernate", *resumes[:2]), "power cut"),
        ("stood still for the snapshot", "", "", "", *_seconds("pause", resumes[2])),
        ("memory in the image", "", *(f"{(one['image'] or 0) >> 20} MiB" for one in resumes)),
        *((text, "", *(yes[one[key]] for one in resumes)) for text, key in (
            ("power was off", "power_was_off"), ("boot id unchanged", "same_boot_id"), ("process alive with its state", "process_alive"),
        )),
        ("verdict", "", *(one["verdict"] for one in resumes)),
    ]  # fmt: skip
    lines = ["", *("  {:38} {:>10} {:>17} {:>18} {:>14}".format(*row) for row in rows), ""]
    again = result["converge_again"]
    ratio = again["seconds"] / again["setup_seconds"]
    lines.append(
        f"  A converge that changes nothing ({again['changed']} changed): {again['seconds']:.1f} s, {ratio:.1f} × "
        f"ansible.builtin.setup ({again['setup_seconds']:.1f} s)."
    )
    lines.append(f"  Guest: {result['guest']['recipe']}, {result['guest']['memory_mib']} MiB, under {result['guest']['accelerator']}.")
    return "\n".join(lines)


def _seconds(key: str, *results: dict[str, Any]) -> list[str]:
    return [f"{one[key]:.1f} s" for one in results]


class _Background:
    """Runs a function beside the main thread; ``wait`` returns when it has ended and raises what it raised."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        self._thread.join()
        if self._error:
            raise self._error


if __name__ == "__main__":
    sys.exit(main())
