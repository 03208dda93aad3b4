# SPDX-License-Identifier: GPL-3.0-or-later
"""What many versions cost: ``python -m tests.store.bench.versions --versions 1000000 --machines 1000``.

Makes a store of that many versions, each with a manifest and nothing else, and measures a put of 12 bytes, lists, look-ups, a
collection and a first look into a mount: seconds, those of them of a processor, and the most memory of one process, each in a new
one. The first run of a verb finds no cache; the other ones do. Needs 4 KiB of disk and an inode a version below ``--folder``, and
removes them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import msgpack

from fuse_store.repository.manifest import FORMAT, Head, ImageFile, encrypt_head, image_directory, machine_tag
from fuse_store.store import Store

ROUNDS = 3
EVERYTHING = ("list", "list --json", "stats", "prune --dry-run", "gc --dry-run", "gc")  # these look at every version: two runs are enough
TAKEN = 1_700_000_000_000_000_000  # ns since 1970


def fill(store: Store, machines: int, each: int) -> list[str]:
    """Give a store so many versions of ``machine0`` and so on, quickly: the id of the newest of each."""
    newest = []
    for number in range(machines):
        machine = f"machine{number}"
        store.versions.name_machine(machine, sync=False)
        directory = store.path / image_directory(machine_tag(machine, store.aead))
        directory.mkdir(mode=0o700, exist_ok=True)
        empty = ImageFile("image", 0, 0)
        head = Head(machine, "system", "file", "nightly", {"ticket": "4711"}, TAKEN, 0, 0, 0, 0, 0, 4096, (), (empty,), ())
        values = {"format": FORMAT, **asdict(head)}
        for row in range(each):
            values |= {"taken": TAKEN + (row * 3600 + number) * 10**9, "number": row + 1}
            image_id, content = encrypt_head(msgpack.packb(values), machine, store.aead)
            with open(directory / f"{image_id}.img", "xb", 0, opener=_private) as file:
                file.write(content)
        newest.append(image_id)
    return newest


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def measured(command: list[str]) -> tuple[float, float, int]:
    """(seconds, seconds of a processor, KiB of memory at most) of a process."""
    with tempfile.TemporaryFile() as out:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE)
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}: {errors}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


LOOK = """
import sys
from fuse_store.mount.tree import Tree
from fuse_store.store import Store
shown = Tree(Store.open(sys.argv[1]))
for path in ((), ("machines",), ("machines", "machine7"), ("machines", "machine7", "system"), ("machines", "machine7", "system", "latest")):
    node = shown.node(path)
    if hasattr(node, "names"):
        for name, _kind in node.names():
            if len(path) < 2:
                shown.node((*path, name))
shown.close()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--machines", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", help="the verbs whose names begin so")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="versions.", dir=options.folder))
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    try:
        place, twelve = folder / "store", folder / "twelve"
        twelve.write_bytes(b"twelve bytes")
        started = time.monotonic()
        with Store.create(place) as store:
            newest = fill(store, options.machines, options.versions // options.machines)[7]
        print(f"{options.versions:,} versions of {options.machines:,} machines, made in {time.monotonic() - started:.0f} s")
        program = [sys.executable, "-m", "fuse_store.cli", "--store", str(place)]
        verbs = {
            "put of 12 bytes": [*program, "put", str(twelve), "--machine", "machine7"],
            "list of one machine": [*program, "list", "--machine", "machine7"],
            "latest": [*program, "show", "machine7/system/latest"],
            "find by id": [*program, "show", newest],
            "find by prefix": [*program, "show", newest[:12]],
            "first look into a mount": [sys.executable, "-c", LOOK, str(place)],
            "list": [*program, "list"],
            "list --json": [*program, "list", "--json"],
            "stats": [*program, "stats"],
            "prune --dry-run": [*program, "prune", "--keep-daily", "7", "--dry-run", "--json"],
            "gc --dry-run": [*program, "gc", "--dry-run"],
            "gc": [*program, "gc"],
        }
        print(f"{'':26}{'first':>9}{'then':>9}{'processor':>11}{'memory':>11}")
        for name, command in verbs.items():
            if options.only and not name.startswith(options.only):
                continue
            runs = [measured(command) for _round in range(2 if name in EVERYTHING else ROUNDS + 1)]
            then, processor = (statistics.median(run[column] for run in runs[1:]) for column in (0, 1))
            memory = max(run[2] for run in runs) >> 10
            print(f"{name:26}{runs[0][0]:7.2f} s{then:7.2f} s{processor:9.2f} s{memory:7} MiB", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
