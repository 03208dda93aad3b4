# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of the hibernation image of one machine, for the benchmark of the store, which takes them from ``build/corpus``.

A machine of the laboratory, configured by the role, hibernates again and again, and does something in between: reads files,
starts and ends programs, and changes a part of what a process holds. Each time its NVDIMM is copied. ``make bench-corpus``.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import time

from tests.vm.conftest import off
from tests.vm.lab import Lab, LabError
from tests.vm.play import REPOSITORY, play
from tests.vm.restoring import hibernate, wake

FOLDER = REPOSITORY / "build" / "corpus"
# Holds memory, half of it text as programs have it, and changes some of it whenever it is told to.
_HOLDER = """
import os, random, signal, time
pages = [os.urandom(4096) if number % 2 else (b"page %d of a process; " % number * 200)[:4096] for number in range(PAGES)]
def change(*signal):
    for number in random.sample(range(len(pages)), len(pages) // 8):
        pages[number] = os.urandom(2048) + pages[number][:2048]
signal.signal(signal.SIGUSR1, change)
open("/run/holder.ready", "w").close()
while True:
    time.sleep(3600)
"""
_READY = "timeout 300 sh -c 'until [ -e /run/holder.ready ]; do sleep 1; done'"  # the signal would end it before
_BETWEEN = """
set -e
systemctl kill --signal=USR1 holder
find /usr -xdev -type f -size -200k | shuf -n 400 | tr '\\n' '\\0' | xargs -0 cat >/dev/null
python3 -c 'import json, xml.dom.minidom; print(len(str([json.loads(json.dumps(list(range(n)))) for n in range(500)])))' >/dev/null
journalctl -b | tail -n 200 >/dev/null
sleep 2
systemctl is-active --quiet holder
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="corpus", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--versions", type=int, default=8, help="how many (default 8)")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="of the machine (default 1024)")
    parser.add_argument("--compression", default="none", help="of the kernel: none or lzo (default none)")
    arguments = parser.parse_args()
    lab = Lab(say=lambda text: print(text, flush=True))
    with contextlib.suppress(LabError):
        lab.machine("corpus").destroy()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    machine = lab.create("corpus", "debian12", memory=arguments.memory, nvdimm=arguments.memory * 5 // 4)
    wake(machine)
    play(lab, [machine], "nvm.fastboot.configure", {"nvm_compression": arguments.compression}).ok()
    off(machine)
    wake(machine)
    holder = _HOLDER.replace("PAGES", str((arguments.memory << 20) // 4 // 4096))
    machine.ssh("cat >/run/holder.py && systemd-run --quiet --unit=holder python3 /run/holder.py", stdin=holder)
    machine.ssh(_READY)
    for number in range(arguments.versions):
        machine.ssh(_BETWEEN)
        began = time.monotonic()
        hibernate(machine)
        path = FOLDER / f"v{number:02}.img"
        subprocess.run(["cp", "--sparse=always", machine.folder / "nvdimm.img", path], check=True)
        print(f"{path.name}: {path.stat().st_blocks >> 11} MiB, {time.monotonic() - began:.0f} s", flush=True)
        wake(machine)
    machine.power_cut()
    machine.destroy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
