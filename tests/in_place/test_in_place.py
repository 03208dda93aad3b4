# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that go on where they lie: nothing is restored, the programs read the store's mount.

A process, dumped by CRIU on one machine, goes on on another; a virtual machine goes on from its memory and the state of its devices; worlds
of Lisp run. The programs are Debian sid's.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.in_place.machines import Machines
from tests.vm.lab import images
from tests.vm.store import Store

# It has 64 MB on its heap, and says again and again what they are.
APPLICATION = """
import os, random, socket, time
random.seed(1)
heap = [random.random() for _ in range(2_000_000)]
tick = 0
while True:
    tick += 1
    with open("/work/log", "a") as log:
        log.write(f"{tick} {os.getpid()} {socket.gethostname()} {sum(heap)}\\n")
    time.sleep(0.2)
"""
START = """
import subprocess
nothing = subprocess.DEVNULL
started = subprocess.Popen(["python3", "/work/application.py"], stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
print(started.pid)
"""
WORLD = """
(defvar *world* (make-hash-table))
(dotimes (i 100500) (setf (gethash i *world*) (* i i)))
(defun answer () (format t "~a entries, ~a~%" (hash-table-count *world*) (gethash 500 *world*)) (finish-output) (exit))
"""
# The virtual machine's only program: counts on the console.
INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
exec >/dev/ttyS0 2>&1
read boot </proc/sys/kernel/random/boot_id
tick=0
while :; do tick=$((tick + 1)); echo "tick $tick of $boot"; /bin/busybox sleep 1; done
"""
MEMORY = 256  # MiB of the virtual machine
QEMU = (
    "qemu-system-x86_64 -accel tcg -cpu Nehalem,-cx16 -nodefaults -no-user-config -display none -machine q35,memory-backend=memory"
    f" -m {MEMORY} -kernel /work/vmlinuz -initrd /work/initrd -append 'console=ttyS0 mitigations=off tsc=reliable quiet'"
    " -serial file:/work/console -qmp unix:/run/qmp,server=on,wait=off"
)
# Sends commands to QEMU, a JSON object a line of its input, and waits for the answer of each; "WAIT status" waits for a migration.
QMP = """
import json, socket, sys, time
connection = socket.socket(socket.AF_UNIX)
connection.connect("/run/qmp")
lines = connection.makefile("rw")
lines.readline()
def asked(command, **arguments):
    lines.write(json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})}) + "\\n")
    lines.flush()
    while True:
        answer = json.loads(lines.readline())
        if "error" in answer:
            sys.exit(f"{command}: {answer}")
        if "return" in answer:
            return answer["return"]
asked("qmp_capabilities")
asked("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
if sys.argv[1] == "save":
    asked("stop")
    asked("migrate", uri="file:/work/vm/state")
    while (status := asked("query-migrate")["status"]) not in ("completed", "failed"):
        time.sleep(0.1)
    print(status)
    asked("quit")
else:
    asked("migrate-incoming", uri=f"file:{sys.argv[2]}")
    while asked("query-status")["status"] in ("inmigrate", "paused"):
        asked("cont") if asked("query-status")["status"] == "paused" else time.sleep(0.1)
"""


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "images").mkdir()
    return Store(tmp_path / "images")


@contextlib.contextmanager
def mounted(store: Store, *options: str) -> Iterator[Path]:
    point = store.folder.parent / "mount"
    point.mkdir(exist_ok=True)
    store.done("mount", point, *options)
    try:
        yield point
    finally:
        subprocess.run(["fusermount3", "-u", point], check=True)


def test_a_process_goes_on_on_another_machine(machines: Machines, store: Store) -> None:
    (machines.work / "application.py").write_text(APPLICATION)
    (machines.work / "start.py").write_text(START)
    machines.run(
        "one",
        "mkdir dump; echo 500 >/proc/sys/kernel/ns_last_pid; pid=$(python3 start.py)\n"
        "until grep -q '^8 ' log; do sleep 0.1; done; criu dump --tree $pid --images-dir dump --shell-job",
    )
    before = [line.split() for line in (machines.work / "log").read_text().splitlines()]
    store.done("put", machines.work / "dump", "--machine", "one", "--application", "counter", "--kind", "process")
    shutil.rmtree(machines.work / "dump")
    with mounted(store) as point:
        machines.run(
            "two",
            "criu restore --images-dir /images/machines/one/counter/latest/image --work-dir /run --restore-detached --shell-job\n"
            f"until grep -q '^{len(before) + 3} ' log; do sleep 0.1; done",
            point,
        )
    after = [line.split() for line in (machines.work / "log").read_text().splitlines()][len(before) :]
    assert {line[2] for line in before} == {"one"} and {line[2] for line in after} == {"two"}
    assert len({(line[1], line[3]) for line in before + after}) == 1, "another process, or another heap"
    assert [int(line[0]) for line in before + after] == list(range(1, len(before + after) + 1))


def test_a_virtual_machine_goes_on(machines: Machines, store: Store) -> None:
    """Its memory is mapped from the mount, and what it changes is its own: nothing is copied before it runs."""
    image = images.ensure("debian12", print)
    shutil.copy(image / "vmlinuz", machines.work)
    _make_initrd(machines.work)
    (machines.work / "qmp.py").write_text(QMP)
    backend = f"-object memory-backend-file,id=memory,size={MEMORY}M,mem-path="
    machines.run(
        "one",
        f"mkdir vm; {QEMU} {backend}vm/memory,share=on &\nuntil grep -q 'tick 3 ' console; do sleep 0.2; done; python3 qmp.py save; wait",
    )
    before = re.findall(r"tick (\d+) of (\S+)", (machines.work / "console").read_text())
    store.done("put", machines.work / "vm", "--machine", "one", "--application", "counter", "--kind", "vm")
    shutil.rmtree(machines.work / "vm")
    (machines.work / "console").unlink()
    with mounted(store) as point:
        place = "/images/machines/one/counter/latest/image"
        machines.run(
            "two",
            f"{QEMU} {backend}{place}/memory,share=off,readonly=on,rom=off -incoming defer & qemu=$!\n"
            f"until [ -S /run/qmp ]; do sleep 0.1; done; python3 qmp.py restore {place}/state\n"
            "until grep -q tick console; do sleep 0.1; done; sleep 3; kill $qemu",
            point,
        )
    after = re.findall(r"tick (\d+) of (\S+)", (machines.work / "console").read_text())
    assert len({boot for _tick, boot in before + after}) == 1, "it has booted"
    assert int(after[0][0]) == int(before[-1][0]) + 1 and len(after) >= 2


def test_a_disk_takes_changes_beside_it(machines: Machines, store: Store) -> None:
    """The version stays as it is."""
    disk = machines.work / "disk.raw"
    disk.write_bytes(b"\x11" * (1 << 20) + b"\x22" * (1 << 20))
    store.done("put", disk, "--machine", "one", "--application", "disk", "--kind", "disk")
    with mounted(store) as point:
        image = point / "machines/one/disk/latest/image"
        changes = machines.work / "changes.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", changes], check=True)
        for command in ("read -P 0x11 0 1M", "write -P 0x33 512k 1M", "read -P 0x33 512k 1M", "read -P 0x22 1536k 512k"):
            done = subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, changes], capture_output=True, text=True, check=True)
            assert "failed" not in done.stdout, (command, done.stdout)
        assert image.read_bytes() == disk.read_bytes()


def test_worlds_of_lisp_run(machines: Machines, store: Store) -> None:
    for name, options in (("world", ""), ("program", ":executable t :toplevel #'answer")):
        (machines.work / f"{name}.lisp").write_text(f'{WORLD}(save-lisp-and-die "{name}" {options})')
    machines.run("one", "sbcl --non-interactive --load world.lisp\nsbcl --non-interactive --load program.lisp")
    for name in ("world", "program"):
        store.done("put", machines.work / name, "--machine", "one", "--application", name, "--kind", "language")
    image = "/images/machines/one/{}/latest/image"
    run = (f"sbcl --core {image.format('world')} --non-interactive --eval '(answer)'", image.format("program"))
    with mounted(store, "--exec") as point:
        for command in run:
            assert "100500 entries, 250000\n" in machines.run("two", command, point)
    with mounted(store) as point:
        for command in run:
            with pytest.raises(subprocess.CalledProcessError):
                machines.run("two", command, point)


def _make_initrd(work: Path) -> None:
    """Busybox, its libraries, and INIT."""
    tree = work / "initrd.d"
    for directory in ("bin", "dev", "proc"):
        (tree / directory).mkdir(parents=True)
    libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", "/bin/busybox"], capture_output=True, text=True, check=True).stdout)
    for file in ("/bin/busybox", *libraries):
        (tree / file[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tree / file[1:])
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    subprocess.run(f"cd {tree} && find . | busybox cpio -o -H newc >{work}/initrd", shell=True, stderr=subprocess.DEVNULL, check=True)
    shutil.rmtree(tree)
