# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the index takes, and how much memory, in a store of a given size: ``python -m tests.store.bench.index --rows 50``.

The fragments are made up: random digests, packs of 2048 blocks. Each step runs in a process of its own, so that its memory can be
told: the most that was resident, mapped pages of the fragments included. Times are those of the processor.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuse_store.repository.aead import DIGEST, Aead
from fuse_store.repository.backends import PosixBackend
from fuse_store.repository.index import Index, Rows
from fuse_store.repository.index.fragment import write_fragment
from fuse_store.repository.index.marks import Marks
from fuse_store.repository.index.merge import PART_ROWS

AEAD = Aead(bytes(16), bytes(32), True)
BLOCKS_PER_PACK = 2048
SEGMENT = 1 << 16  # digests that gc looks up at once
SHARES = (16, 8, 4, 2, 1, 1)  # of the rows in each fragment, oldest first; they are worth merging


def digests(fragment: int, part: int, rows: int, count: int) -> NDArray[np.uint64]:
    """Sorted digests, shape (count, 2): those of one part of a fragment of so many rows, the same each time; evenly spread."""
    random = np.random.default_rng((fragment, part))
    begin, end = (((part * PART_ROWS + at) << 64) // rows for at in (0, count))
    high = np.sort(random.integers(0, end - begin, count, np.uint64)) + np.uint64(begin)
    return np.stack((high, random.integers(0, 1 << 63, count, np.uint64)), 1)


def parts(fragment: int, rows: int) -> Iterator[Rows]:
    packs = -(-rows // BLOCKS_PER_PACK)
    ids = np.random.default_rng(fragment).bytes(packs * DIGEST)
    count = -(-rows // PART_ROWS)
    for part in range(count):
        here = min(PART_ROWS, rows - part * PART_ROWS)
        both = digests(fragment, part, rows, here)
        random = np.random.default_rng((fragment, part, 1))
        stored = random.integers(1000, 130_000, here).astype("u4")
        pack = random.integers(0, packs, here).astype("u4")
        yield Rows(both[:, 0], both[:, 1], random.integers(0, 1 << 28, here).astype("u8"), pack, stored, stored, ids)


def fill(backend: PosixBackend, rows: int) -> None:
    """An index of so many rows."""
    backend.prepare()
    for number, share in enumerate(SHARES):
        source = partial(parts, number, rows * share // sum(SHARES))
        write_fragment(backend, AEAD, source, next(source()).packs, number, sync=False)


def step_open(index: Index) -> str:
    return f"{len(index.fragments())} fragments"


def step_locate(index: Index) -> str:
    """Digests all over the index, eight at a time, as a put asks, and a segment at a time, as a reader does."""
    largest = max(index.fragments().values(), key=len)
    known = np.empty((SEGMENT, 2), np.uint64)
    random = np.random.default_rng(0)
    for part in np.array_split(known, SEGMENT // 8):  # the memory of this is not to count
        rows = random.integers(0, len(largest), len(part))
        part[:, 0], part[:, 1] = largest.high[rows], largest.low[rows]
        largest.release()
    start = time.process_time()
    for begin in range(0, 1 << 13, 8):
        assert (index.locate(known[begin : begin + 8].tobytes()).pack >= 0).all()
    eight = time.process_time() - start
    start = time.process_time()
    for _round in range(16):
        assert (index.locate(known.tobytes()).pack >= 0).all()
    return f"8 at a time {eight / (1 << 10) * 1e6:.0f} µs each, {SEGMENT} at a time {(time.process_time() - start) / 16 * 1e3:.0f} ms each"


def step_check(index: Index) -> str:
    return f"{len(index.check()[0])} sound"


def step_mark(index: Index) -> str:
    """What gc does: every block is asked for, a segment at a time, then the bytes that are needed in each pack are summed."""
    marks = Marks(index.fragments().values())
    asked = 0
    for fragment in marks.fragments:
        for begin in range(0, len(fragment), SEGMENT):
            digests = fragment.part(begin, min(begin + SEGMENT, len(fragment)))
            order = np.random.default_rng(begin).permutation(len(digests))
            number, _several = marks.find(digests.high[order], digests.low[order])
            marks.set(number)
            asked += len(digests)
    used = sum(len(rows) for _fragment, rows in marks.marked())
    assert used == asked
    return f"{asked} blocks"


def step_merge(index: Index) -> str:
    index.compact(False, lambda: None)
    return f"{len(index.fragments())} fragment, {sum(map(len, index.fragments().values()))} rows"


STEPS: dict[str, Callable[[Index], str]] = {
    "open": step_open, "locate": step_locate, "check": step_check, "mark": step_mark, "merge": step_merge,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10, help="millions of rows")
    parser.add_argument("--dir", type=Path, help="where to make the index")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        index = Index(PosixBackend(options.dir), AEAD)
        begin = time.process_time()
        text = STEPS[options.step](index)
        seconds = time.process_time() - begin
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"{options.step:8} {seconds:8.2f} s  {memory:5} MiB  {text}")
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        fill(PosixBackend(Path(directory)), options.rows * 1_000_000)
        for step in STEPS:
            subprocess.run([sys.executable, "-m", "tests.store.bench.index", "--dir", directory, "--step", step], check=True)


if __name__ == "__main__":
    main()
