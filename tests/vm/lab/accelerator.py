# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides whether guests run under KVM or under software emulation (TCG).

``/dev/kvm`` can exist, open, and still hang a guest for ever (nested or para-virtualised hosts), so it counts only after
it has run one: the probe boots a real kernel under KVM and waits for its first line on the console.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

PROBE_SECONDS = 8


def choose(kernel: Path, verdict_file: Path) -> str:
    """``"kvm"`` if a probe with ``kernel`` printed something under KVM, else ``"tcg"``.

    The verdict is kept in ``verdict_file`` for this boot of the host. ``LAB_ACCELERATOR`` overrides it.
    """
    forced = os.environ.get("LAB_ACCELERATOR")
    if forced:
        return forced
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        known, verdict = verdict_file.read_text().split()
        if known == boot_id:
            return verdict
    except (OSError, ValueError):
        pass
    verdict = "kvm" if _runs_a_guest(kernel) else "tcg"
    verdict_file.parent.mkdir(parents=True, exist_ok=True)
    verdict_file.write_text(f"{boot_id} {verdict}\n")
    return verdict


def options(name: str) -> list[str]:
    """QEMU's options for the accelerator ``name``.

    A processor without the newest features is emulated faster. A small buffer of translations is dropped often, and with
    it those of code that is long gone: with the default of 1 GiB a warm restart can take minutes, because every byte that
    GRUB writes to where code once was looks for them. Without cx16 the kernel does without cmpxchg16b, after which QEMU 7.2
    was seen to leave part of an address in the flags: panics and hangs of Linux 6.12 in kmalloc.
    """
    return {
        "kvm": ["-accel", "kvm", "-cpu", "host"],
        "tcg": ["-accel", "tcg,tb-size=128", "-cpu", "Nehalem,-cx16"],
    }[name]


def _runs_a_guest(kernel: Path) -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL",  # it may hang, and ends with this process
         "qemu-system-x86_64", "-M", "q35,accel=kvm", "-cpu", "host", "-m", "256", "-display", "none", "-no-reboot",
         "-nic", "none", "-serial", "stdio", "-monitor", "none", "-kernel", str(kernel),
         "-append", "console=ttyS0 earlyprintk=serial panic=-1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    deadline = time.monotonic() + PROBE_SECONDS
    seen = b""
    try:
        while time.monotonic() < deadline and process.poll() is None and b"Linux version" not in seen:
            seen += process.stdout.read() or b""
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    return b"Linux version" in seen
