# SPDX-License-Identifier: GPL-3.0-or-later
"""A device with slots, and the directories of a machine in which the scripts of the initramfs run: /sys and /proc are files, everything
else is there. The commands are those of busybox, and no others."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import layout as swsusp
from fuse_store.hibernation.slots import table as tables
from fuse_store.hibernation.slots.layout import COPIES, COPY_SIZE, REPORT, Slot, Table
from fuse_store.hibernation.slots.manage import Slots, create
from fuse_store.hibernation.slots.text import unframed, unpack

SCRIPTS = Path(__file__).resolve().parents[3] / "fuse_store/boot/initramfs"
SHELLS = {"busybox": ("/usr/bin/busybox", "sh"), "dash": ("/usr/bin/dash",)}
PAGE = 4096
SIZE = 8 << 20  # bytes of a device
BLOCKS = 20  # of an image
NONE: list[str] = ["none"]  # no policy at all
LIMIT = 60  # seconds that a run may take at most, on a busy machine
RELEASE, VERSION = "6.1.0-1-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.1-1 (2026-01-01)"
KERNEL = f"{RELEASE} {VERSION}"
MEMORY = {
    "proc/zoneinfo": "Node 0, zone DMA\n        spanned  4095\n        present  711\nNode 0, zone DMA32\n        present  4000\n",
    **{f"sys/firmware/memmap/{number}/{name}": f"{number}{name}\n" for number in (0, 1, 10) for name in ("end", "start", "type")},
}
NEW = 1_795_900_000  # seconds since 1970
# In place of dd: counts what is written to the device, and ends the script before, in the middle of or after one write.
COUNTING_DD = """#!/bin/sh
case " $* " in
	*" of=$CUT_DEVICE "*) ;;
	*) exec {busybox} dd "$@" ;;
esac
number=$(($(cat "$CUT_COUNT" 2>/dev/null) + 1))
echo "$number" >"$CUT_COUNT"
if [ "$number" = "$CUT_AT" ] && [ "$CUT_HOW" = before ]; then kill -9 0; fi
if [ "$number" = "$CUT_AT" ] && [ "$CUT_HOW" = torn ]; then
	case " $* " in
		*" bs=10 "*) {busybox} dd "$@" bs=5 ;;
		*) {busybox} dd "$@" count=1 ;;
	esac
	kill -9 0
fi
{busybox} dd "$@"
code=$?
if [ "$number" = "$CUT_AT" ] && [ "$CUT_HOW" = after ]; then kill -9 0; fi
exit "$code"
"""


@dataclass(frozen=True)
class Outcome:
    """``resumed``: the block that /sys/power/resume_offset named when the kernel was told to resume, if it did; ``log``: what was written
    to the kernel's log; ``report``: the lines of the boot report; ``ended``: that the script came to its end."""

    resumed: int | None
    log: str
    report: list[str]
    ended: bool


@dataclass
class Stand:
    """One machine. ``policy``: lines of the compiled policy beside the device."""

    folder: Path
    device: Path
    shell: str = "busybox"
    policy: list[str] = field(default_factory=lambda: ["attempts 2", "check 1", "wait 0", "ask 1", "power_loss any|||"])

    @classmethod
    def made(cls, folder: Path, shell: str = "busybox") -> Stand:
        """On an empty device, after a power cut."""
        device = folder / "device"
        with open(device, "wb") as file:
            file.truncate(SIZE)
        create(device)
        stand = cls(folder, device, shell)
        stand.change(lambda table: replace(table, session="running"))
        for path, content in {
            "sys/power/resume_offset": "0\n", "sys/power/disk": "[platform] shutdown\n", "sys/class/block/device/dev": "7:9\n",
            "proc/cmdline": "root=/dev/vda1 quiet\n", "proc/mounts": "pstore /sys/fs/pstore pstore rw 0 0\n",
            **MEMORY,
            "proc/sys/kernel/osrelease": f"{RELEASE}\n",
            "proc/sys/kernel/version": f"{VERSION}\n",
        }.items():  # fmt: skip
            stand.write(path, content)
        (folder / "bin").mkdir()
        for applet in [line for line in (SCRIPTS / "applets").read_text().splitlines() if not line.startswith("#")]:
            (folder / "bin" / applet).symlink_to(SHELLS["busybox"][0])
        return stand

    def write(self, path: str, content: str | bytes) -> None:
        """A file of /sys or /proc."""
        place = self.folder / "root" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())

    # the device --------------------------------------------------------------------------------------------------------

    def change(self, change: Any) -> None:
        """Have the table be what ``change`` makes of it."""
        with Slots(self.device) as slots:
            slots.save(change(slots.table))

    def add(self, application: str = "shop", *, tags: Mapping[str, str] | None = None, **values: Any) -> Slot:
        """A slot with the image of a snapshot, the newest."""
        table = self.table()
        number = table.free_number()
        first = table.first + number * 2 * BLOCKS
        extents = ((first, BLOCKS - 6), (first + BLOCKS, 6))
        content = bytearray(hashlib.shake_256(f"{number}{application}".encode()).digest(BLOCKS * PAGE))
        content[PAGE - swsusp.TAIL.size : PAGE] = swsusp.TAIL.pack(0, 0, first + 1, swsusp.NOCOMPRESS, *2 * swsusp.SWAP_SIGNATURES[:1])
        slot = Slot(
            number, "complete", "web01", application, "", f"{number:032x}", "", NEW + number, table.generation + 1, BLOCKS - 2, extents,
            hashlib.sha256(content).hexdigest(), tags={"guard.none": "1", "kernel": KERNEL} if tags is None else tags,
        )  # fmt: skip
        with open(self.device, "r+b") as file:
            at = 0
            for begin, count in extents:
                file.seek(begin * PAGE)
                file.write(content[at : at + count * PAGE])
                at += count * PAGE
        slot = replace(slot, **values)
        self.change(lambda table: table.with_slot(slot))
        return slot

    def table(self) -> Table:
        """The table, which must be valid."""
        with File(self.device) as file:
            return tables.load(file, "device").table

    def copies(self) -> list[Table | None]:
        """What is in both copies; None where one is not valid."""
        content = self.device.read_bytes()
        found: list[Table | None] = []
        for at in COPIES:
            try:
                found.append(unpack(content[at : at + COPY_SIZE]))
            except ValueError:
                found.append(None)
        return found

    def signatures(self) -> dict[int, bytes]:
        """Slot → signature in its header."""
        content = self.device.read_bytes()
        return {slot.number: content[(slot.header + 1) * PAGE - 10 : (slot.header + 1) * PAGE] for slot in self.table().slots}

    def armed(self) -> list[int]:
        return [number for number, found in self.signatures().items() if found == swsusp.SIGNATURE]

    def sign(self, slot: Slot, signature: bytes) -> None:
        with open(self.device, "r+b") as file:
            file.seek((slot.header + 1) * PAGE - len(signature))
            file.write(signature)

    def damage(self, at: int) -> None:
        """Flip a bit."""
        with open(self.device, "r+b") as file:
            file.seek(at)
            value = file.read(1)[0]
            file.seek(at)
            file.write(bytes([value ^ 1]))

    def report(self) -> list[str]:
        """The lines of the boot report on the device."""
        content = self.device.read_bytes()[REPORT[0] : sum(REPORT)]
        return unframed("fuse-store-boot 1", content).decode("ascii").rstrip("\n").splitlines()

    # running -----------------------------------------------------------------------------------------------------------

    def boot(self, words: str = "", *, resumes: bool = True, cut: tuple[int, str] = (0, ""), answer: str = "") -> Outcome:
        """Run the script. ``words``: more of the kernel's command line; ``resumes``: whether the kernel resumes what it is told; ``cut``:
        end the script at a write to the device, ``before``, ``torn`` or ``after``."""
        self.write("proc/cmdline", f"root=/dev/vda1 quiet {words}\n")
        (self.folder / "policy").unlink(missing_ok=True)
        if self.policy is not NONE:
            named = [] if "device" in "".join(self.policy) else [f"device {self.device}"]
            (self.folder / "policy").write_text("".join(f"{line}\n" for line in [*named, *self.policy]))
        console, log = self.folder / "console", self.folder / "log"
        console.write_text(answer)
        log.write_text("")
        kernel = self.folder / "root/sys/power/resume"
        kernel.unlink(missing_ok=True)
        shutdown = contextlib.ExitStack()
        if resumes:
            os.mkfifo(kernel)
            shutdown.callback(os.close, _full(kernel))
        else:
            kernel.write_text("")
        environment = {
            "PATH": str(self.folder / "bin"), "LIB": str(SCRIPTS), "SYS": str(self.folder / "root"), "POLICY": str(self.folder / "policy"),
            "RUN": str(self.folder / "run"), "KMSG": str(log), "CONSOLE": str(console),
        }  # fmt: skip
        if cut[0]:
            (self.folder / "bin/dd").unlink()
            (self.folder / "bin/dd").write_text(COUNTING_DD.format(busybox=SHELLS["busybox"][0]))
            (self.folder / "bin/dd").chmod(0o755)
            (self.folder / "count").unlink(missing_ok=True)
            environment |= {
                "CUT_DEVICE": str(self.device), "CUT_COUNT": str(self.folder / "count"), "CUT_AT": str(cut[0]), "CUT_HOW": cut[1],
            }  # fmt: skip
        with shutdown:
            resumed, ended = self._run([*SHELLS[self.shell], str(SCRIPTS / "select.sh")], environment, kernel if resumes else None)
        lines = log.read_text()
        report = self.folder / "run/boot-report"
        return Outcome(resumed, lines, report.read_text().splitlines() if report.exists() else [], ended)

    def writes(self) -> int:
        """How often the last run with a cut wrote to the device."""
        return int((self.folder / "count").read_text())

    def _run(self, command: Sequence[str], environment: dict[str, str], kernel: Path | None) -> tuple[int | None, bool]:
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:  # fmt: skip
            deadline = time.monotonic() + LIMIT
            while process.poll() is None:
                if kernel is not None and _waits_for(process.pid, kernel):  # it would sleep in there until the memory is another one
                    os.killpg(process.pid, signal.SIGKILL)
                    return int((self.folder / "root/sys/power/resume_offset").read_text()), False
                if time.monotonic() > deadline:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise AssertionError("the script hangs")
                time.sleep(0.005)
            output = process.stdout.read().decode() if process.stdout else ""
            assert process.returncode in (0, -signal.SIGKILL) and not output, output
            return None, process.returncode == 0


def _full(fifo: Path) -> int:
    """A descriptor of a pipe that takes nothing more."""
    descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    os.write(descriptor, bytes(fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096) - 1))
    return descriptor


def _waits_for(process: int, file: Path) -> bool:
    try:
        return os.readlink(f"/proc/{process}/fd/1") == str(file)
    except OSError:  # it has just ended
        return False
