# SPDX-License-Identifier: GPL-3.0-or-later
"""What many versions cost: ``python -m tests.store.bench.versions --versions 1000000 --machines 1000``.

Makes a store of that many versions, each with a manifest and nothing else, or with ``--blocks`` extents and an index, too, and measures
a put of 12 bytes, lists, look-ups, a collection and a first look into a mount: seconds, those of them of a processor, and the most memory
of one process, each in a new one. The first run of a verb finds no cache; the other ones do. Needs 4 KiB of disk and an inode a
version below ``--folder``, and removes them.
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
import numpy as np
from numpy.typing import NDArray

from fuse_store.repository.block import MAX_BLOCK_SIZE
from fuse_store.repository.extents import Extents, encrypt_segment, no_rows
from fuse_store.repository.index import Rows
from fuse_store.repository.index.fragment import write_fragment
from fuse_store.repository.index.merge import Merge
from fuse_store.repository.manifest import (
    Head,
    ImageFile,
    Segment,
    encrypt_head,
    image_directory,
    machine_tag,
    pack_head,
)
from fuse_store.repository.pack import pack_name
from fuse_store.store import Store

ROUNDS = 3
BLOCKS_PER_PACK = 2048
CHANGED = 50  # one block in so many is another one in the next version
EVERYTHING = ("list", "list --json", "stats", "prune --dry-run", "gc --dry-run", "gc")  # these look at every version: two runs are enough
TAKEN = 1_700_000_000_000_000_000  # ns since 1970


def fill(store: Store, machines: int, each: int, blocks: int = 0) -> list[str]:
    """Give a store so many versions of ``machine0`` and so on, quickly: the id of the newest of each. Each has so many blocks, of
    which one in CHANGED is not in the version before it; they are in the index, and in packs that are empty."""
    newest = []
    random = np.random.default_rng(0)
    every = []
    for number in range(machines):
        machine = f"machine{number}"
        store.versions.name_machine(machine, sync=False)
        directory = store.path / image_directory(machine_tag(machine, store.aead))
        directory.mkdir(mode=0o700, exist_ok=True)
        image = ImageFile("image", blocks * MAX_BLOCK_SIZE // 2, 0)
        head = Head(machine, "system", "file", "nightly", {"ticket": "4711"}, TAKEN, 0, 0, 0, 0, 0, 4096, (), (image,), ())
        values = msgpack.unpackb(pack_head(head, machine))
        digests = random.integers(0, 1 << 63, (blocks, 2), np.uint64)
        every.append(digests.copy())
        for row in range(each):
            if row and blocks:
                changed = random.integers(0, blocks, max(1, blocks // CHANGED))
                digests[changed] = random.integers(0, 1 << 63, (len(changed), 2), np.uint64)
                every.append(digests[changed])
            segments = [_segment(digests, store)] if blocks else []
            values |= {"segments": [asdict(segment) for segment, _encrypted in segments]}
            values |= {"taken": TAKEN + (row * 3600 + number) * 10**9, "number": row + 1}
            image_id, content = encrypt_head(msgpack.packb(values), machine, store.aead)
            with open(directory / f"{image_id}.img", "xb", 0, opener=_private) as file:
                file.write(content + b"".join(encrypted for _segment, encrypted in segments))
        newest.append(image_id)
    if blocks:
        _index(store, np.concatenate(every))
    return newest


def _segment(digests: NDArray[np.uint64], store: Store) -> tuple[Segment, bytes]:
    number = np.arange(len(digests))
    pages = np.full(len(digests), MAX_BLOCK_SIZE // 2 // 4096)
    return encrypt_segment(Extents(number * pages, pages, number, 0 * number, digests.tobytes(), no_rows()), 0, store.aead)


def _index(store: Store, digests: NDArray[np.uint64]) -> None:
    """An index of these blocks, and as many files as they have packs."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    packs = os.urandom(16 * -(-len(order) // BLOCKS_PER_PACK))
    size = np.full(len(order), MAX_BLOCK_SIZE // 4, "u4")
    rows = Rows(
        digests[order, 0], digests[order, 1], (order % BLOCKS_PER_PACK * (MAX_BLOCK_SIZE // 4) + 64).astype("u8"),
        (order // BLOCKS_PER_PACK).astype("u4"), size, size, packs,
    )  # fmt: skip
    merge = Merge([rows])
    write_fragment(store.backend, store.aead, merge.parts, merge.packs, 1, sync=False)
    for at in range(0, len(packs), 16):
        path = store.path / pack_name(packs[at : at + 16])
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with open(path, "xb", 0, opener=_private) as file:
            file.truncate(min(BLOCKS_PER_PACK, len(order) - at // 16 * BLOCKS_PER_PACK) * (MAX_BLOCK_SIZE // 4) + 64)


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
    parser.add_argument("--only", help="the verbs whose names begin with one of these, with commas between them")
    parser.add_argument("--blocks", type=int, default=0, help="of each version")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="versions.", dir=options.folder))
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    try:
        place, twelve = folder / "store", folder / "twelve"
        twelve.write_bytes(b"twelve bytes")
        started = time.monotonic()
        with Store.create(place) as store:
            newest = fill(store, options.machines, options.versions // options.machines, options.blocks)[7]
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
            if options.only and not name.startswith(tuple(options.only.split(","))):
                continue
            runs = [measured(command) for _round in range(2 if name in EVERYTHING else ROUNDS + 1)]
            then, processor = (statistics.median(run[column] for run in runs[1:]) for column in (0, 1))
            memory = max(run[2] for run in runs) >> 10
            print(f"{name:26}{runs[0][0]:7.2f} s{then:7.2f} s{processor:9.2f} s{memory:7} MiB", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
