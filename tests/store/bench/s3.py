# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a store in a bucket takes, beside one in a folder: ``python -m tests.store.bench.s3 [MiB]``.

The server is on this machine, with its folder on the same disk: what a network adds is not in it. Each command is a process
of its own; the first ``list`` and ``get`` of a bucket find nothing kept here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.store.repository import s3_server

STEPS: tuple[tuple[str, ...], ...] = (
    ("init",), ("put", "first", "--machine", "m"), ("put", "second", "--machine", "m"), ("list",), ("list", "again"),
    ("get", "m/system/latest", "out"), ("verify",), ("remove", "m/system/latest"), ("gc", "--now"),
)  # fmt: skip


def _measure(place: str, folder: Path) -> list[float]:
    seconds = []
    for step in STEPS:
        if step == ("list",) or step[0] == "get":
            shutil.rmtree(folder / "cache", ignore_errors=True)
        arguments = [one for one in step if one != "again"]
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", "fuse_store.cli", "-q", "--store", place, *arguments], cwd=folder, check=True, stdout=-3)
        seconds.append(time.monotonic() - begin)
        if step[0] == "get":
            assert subprocess.run(["cmp", "second", "out"], cwd=folder, check=False).returncode == 0
            (folder / "out").unlink()
    return seconds


def main(size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server").mkdir()
        numbers = np.random.default_rng(1)
        with open(folder / "first", "wb") as file:
            for _ in range(size):  # every other page is noise, as in the memory of a machine that works
                file.write(b"".join(numbers.bytes(4096) if at % 2 else bytes(numbers.bytes(64)) * 64 for at in range(256)))
        shutil.copy(folder / "first", folder / "second")
        with open(folder / "second", "r+b") as file:
            for at in range(0, size << 20, 40 << 20):  # a tenth of it is new
                file.seek(at)
                file.write(numbers.bytes(4 << 20))
        os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config"), "PYTHONPATH": os.getcwd()}
        posix = _measure(str(folder / "store"), folder)
        with s3_server.server(folder / "server") as endpoint:
            os.environ |= s3_server.environment(endpoint)
            far = _measure(f"s3://{s3_server.BUCKET}/store", folder)
    print("| command | directory | bucket |\n|---|---|---|")
    for step, *both in zip(STEPS, posix, far, strict=True):
        print(f"| {' '.join(step)} | {both[0]:.2f} s | {both[1]:.2f} s |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
