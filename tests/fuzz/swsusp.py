# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzzer of the parser of hibernation images: for any input, only errors of ``fuse_store.errors``, in bounded time and memory.

    python -m tests.fuzz.swsusp --seconds 600 [--seed N]

runs until the time is over or another exception is raised; then it prints the seed that reproduces it. A short run is in
tests/store/formats/test_swsusp_fuzz.py. Both use ``mutate`` and ``exercise``.
"""

from __future__ import annotations

import argparse
import functools
import random
import struct
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable

from fuse_store.errors import StoreError
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.formats.swsusp.describe import describe
from fuse_store.formats.swsusp.views import DerivedFile, derived
from tests.fuzz.swsusp_encoder import Encoded, encode, machine, note

MAX_SECONDS = 10.0  # for one image of about a megabyte, on a busy machine
MAX_MEMORY = 96 << 20  # bytes, for the same
KINDS = [
    (4096, "x86", "none"), (4096, "x86", "lzo"), (4096, "x86", "lz4"), (4096, "arm64", "lz4"), (4096, "generic", "none"),
    (16384, "arm64", "none"), (4096, "riscv", "lzo"),
]  # fmt: skip
NUMBERS = [
    0, 1, 2, 7, 8, 511, 512, 4095, 4096, 131072, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 52) - 1, (1 << 63) - 1,
    1 << 63, (1 << 64) - 4096, (1 << 64) - 2, (1 << 64) - 1,
]  # fmt: skip


class Bytes:
    """Bytes as a Readable that checks each read: none is longer than the whole."""

    def __init__(self, content: bytes) -> None:
        self.content, self.size = content, len(content)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0, f"read at {offset}"
        assert 0 <= length <= self.size, f"read of {length} bytes at once"
        return self.content[offset : offset + length]


@functools.cache
def valid(kind: int, seed: int) -> Encoded:
    page_size, architecture, compression = KINDS[kind]
    memory = machine(page_size, architecture, 120 if page_size > 4096 else 700, seed=seed)
    return encode(memory, page_size, architecture, compression, scattered=seed % 3, armed=seed % 4 != 0)


class Mutator:
    """Random changes of the device of a valid image, one method for each part of it."""

    def __init__(self, encoded: Encoded, source: random.Random) -> None:
        self.encoded, self.source = encoded, source
        self.choice, self.below = source.choice, source.randrange
        self.device, self.size = bytearray(encoded.device), encoded.page_size

    def number(self) -> int:
        near = self.choice((len(self.device) // self.size, self.choice(self.encoded.stream), self.choice(self.encoded.maps)))
        return self.choice(
            (self.choice(NUMBERS), near, near + 1, max(0, near - 1), self.source.getrandbits(self.below(1, 65)))
        )

    def put(self, at: int, content: bytes) -> None:
        self.device[at : at + len(content)] = content[: max(0, len(self.device) - at)]

    def put_number(self, at: int) -> None:
        self.put(at, struct.pack("<Q", self.number()))

    def header(self) -> None:
        at, length = self.choice(((40, 4), (36, 4), (32, 8), (24, 4), (20, 10), (10, 10)))
        signatures = (b"S1SUSPEND\0", b"SWAPSPACE2", b"ULSUSPEND\0")
        value = self.number().to_bytes(8, "little") if length != 10 else self.choice(signatures)
        self.put(self.encoded.header + self.size - at, value.ljust(10, b"\0")[:length])

    def swap_map(self) -> None:
        page = self.choice(self.encoded.maps) * self.size
        for _change in range(self.choice((1, 1, 1, 5))):
            self.put_number(page + 8 * self.choice((self.below(self.size // 8), self.size // 8 - 1)))

    def counts(self) -> None:
        page = self.encoded.stream[0] * self.size
        self.put_number(page + self.choice((392, 400, 408, 416, 424, 432, 8 * self.below(64))))
        if self.source.random() < 0.5:  # numbers that agree with each other
            pages = self.choice((self.number() & 0xFFFFFF, len(self.encoded.stream) + self.below(-3, 4), 1 << 33))
            stored = max(0, pages - self.choice((0, 1, 2, 3, 9, pages // 512, pages)))
            memory = self.choice((self.number(), pages))
            self.put(page + 400, struct.pack("<QQQQQ", memory, 0, stored, pages, pages * self.size))

    def lists(self) -> None:
        page = self.choice(self.encoded.stream[1:4]) * self.size
        for _change in range(self.choice((1, 1, 20))):
            self.put_number(page + 8 * self.below(self.size // 8))

    def chunk(self) -> None:
        stream, chunks = self.encoded.stream, self.encoded.chunks
        block = stream[self.choice(chunks)] if chunks else self.choice(stream)
        self.put_number(block * self.size + self.choice((0, 0, 8, self.below(self.size - 8))))

    def vmcoreinfo(self) -> None:
        items = ["OSRELEASE=6.12.7-test", "SYMBOL(init_uts_ns)=ffffffff81000480", "NUMBER(phys_base)=-14680064"]
        for key in ("NUMBER(phys_base)", "SYMBOL(init_top_pgt)", "OFFSET(uts_namespace.name)", "NUMBER(kimage_voffset)",
                    "NUMBER(pgtable_l5_enabled)", "NUMBER(VA_BITS)", "SYMBOL(init_uts_ns)", "OSRELEASE"):  # fmt: skip
            if self.source.random() < 0.5:
                numbers = (str(self.number()), f"{self.number():x}", f"-{self.number()}")
                items.append(f"{key}={self.choice((*numbers, 'zz', '', '9' * 5000, chr(27) + '[2J', '0x'))}")
        self.source.shuffle(items)
        content = bytearray(note("\n".join(items).encode()))
        if self.source.random() < 0.3:
            content[4:8] = struct.pack("<I", self.number() & 0xFFFFFFFF)
        self.put(self.choice(self.encoded.stream[1:]) * self.size, bytes(content)[: self.size])

    def noise(self) -> None:
        for _change in range(self.choice((1, 3, 100))):
            self.put(self.below(len(self.device)), self.source.randbytes(self.choice((1, 8, 64))))

    def swapped(self) -> None:
        first, second = (self.below(len(self.device) // self.size) * self.size for _ in range(2))
        here, there = slice(first, first + self.size), slice(second, second + self.size)
        self.device[here], self.device[there] = self.device[there], self.device[here]

    def cut(self) -> None:
        del self.device[self.choice((self.below(len(self.device)), self.below(len(self.device) // self.size) * self.size)) :]


def mutate(encoded: Encoded, source: random.Random) -> bytes:
    """The device of a valid image, with up to four random changes, or cut off."""
    mutator = Mutator(encoded, source)
    changes = (
        mutator.header, mutator.swap_map, mutator.counts, mutator.lists, mutator.chunk, mutator.vmcoreinfo, mutator.noise,
        mutator.swapped,
    )  # fmt: skip
    for _change in range(source.choice((1, 1, 1, 2, 4))):
        source.choice(changes)()
    if source.random() < 0.08:
        mutator.cut()
    return bytes(mutator.device)


def exercise(device: bytes) -> str:
    """Use an image in all ways. Returns the name of the error that ended it, or ``fine``; raises what must not be raised."""
    readable, outcome = Bytes(device), "fine"

    def attempt(action: Callable[[], object]) -> None:
        nonlocal outcome
        try:
            action()
        except StoreError as error:
            outcome = type(error).__name__
            text = str(error)
            assert len(text) < 500, f"an error of {len(text)} letters"
            assert text.isprintable(), f"an error with control characters: {text!r}"

    def read_parts(file: DerivedFile) -> None:
        file.read(0, 100_000)
        file.read(file.size() - 5000, 9000)
        file.read(file.size() // 2, 70_000)

    attempt(lambda: describe(readable, check=True))
    for file in derived(readable):
        attempt(functools.partial(read_parts, file))
    try:
        image = HibernationImage(readable)
    except StoreError as error:
        return type(error).__name__
    with image:
        attempt(lambda: read_all(image))
    return outcome


def read_all(image: HibernationImage) -> None:
    """All stored pages in order, as raw pages and by their place in memory."""
    for first in range(0, image.info.stored, 300):
        image.stored(first, min(300, image.info.stored - first))
    for pfns in image.pages.batches():
        for pfn in pfns[:: max(1, len(pfns) // 50)].tolist():
            image.memory(pfn * image.page_size + 5, 100)


def run_case(seed: int) -> str:
    """One case; the same seed is the same case. Raises an exception that shows a fault of the parser."""
    source = random.Random(seed)
    device = mutate(valid(source.randrange(len(KINDS)), source.randrange(6)), source)
    tracemalloc.reset_peak()
    before, began = tracemalloc.get_traced_memory()[0], time.monotonic()
    outcome = exercise(device)
    took, peak = time.monotonic() - began, tracemalloc.get_traced_memory()[1] - before
    assert took < MAX_SECONDS, f"took {took:.1f} s"
    assert peak < MAX_MEMORY, f"took {peak >> 20} MiB"  # 0 if memory is not traced
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="swsusp", description="Fuzzes the parser of hibernation images.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()) << 20, help="seed of the first case; the next ones count up")
    parser.add_argument("--memory", action="store_true", help="measure memory too; several times slower")
    arguments = parser.parse_args()
    end, seed, outcomes = time.monotonic() + arguments.seconds, arguments.seed, Counter[str]()
    if arguments.memory:
        tracemalloc.start()
    while time.monotonic() < end:
        try:
            outcomes[run_case(seed)] += 1
        except Exception:
            print(f"reproduce with --seed {seed}", file=sys.stderr)
            raise
        seed += 1
    print(f"{sum(outcomes.values())} images: {', '.join(f'{count} {name}' for name, count in outcomes.most_common())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
