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
from fuse_store.formats import describe
from fuse_store.formats.swsusp import HibernationImage
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


def mutate(encoded: Encoded, source: random.Random) -> bytes:
    """The device of a valid image, with up to four random changes."""
    device, size = bytearray(encoded.device), encoded.page_size

    def number() -> int:
        near = source.choice((len(device) // size, source.choice(encoded.stream), source.choice(encoded.maps)))
        return source.choice((source.choice(NUMBERS), near, near + 1, max(0, near - 1), source.getrandbits(source.randrange(1, 65))))

    def put(at: int, content: bytes) -> None:
        device[at : at + len(content)] = content[: max(0, len(device) - at)]

    def header() -> None:
        at, length = source.choice(((40, 4), (36, 4), (32, 8), (24, 4), (20, 10), (10, 10)))
        value = number().to_bytes(8, "little") if length != 10 else source.choice((b"S1SUSPEND\0", b"SWAPSPACE2", b"ULSUSPEND\0"))
        put(encoded.header + size - at, value.ljust(10, b"\0")[:length])

    def swap_map() -> None:
        page = source.choice(encoded.maps) * size
        for _change in range(source.choice((1, 1, 1, 5))):
            put(page + 8 * source.choice((source.randrange(size // 8), size // 8 - 1)), struct.pack("<Q", number()))

    def counts() -> None:
        at = source.choice((392, 400, 408, 416, 424, 432, 8 * source.randrange(64)))
        put(encoded.stream[0] * size + at, struct.pack("<Q", number()))
        if source.random() < 0.5:  # numbers that agree with each other
            pages = source.choice((number() & 0xFFFFFF, len(encoded.stream) + source.randrange(-3, 4), 1 << 33))
            stored = max(0, pages - source.choice((0, 1, 2, 3, 9, pages // 512, pages)))
            put(encoded.stream[0] * size + 400, struct.pack("<QQQQQ", source.choice((number(), pages)), 0, stored, pages, pages * size))

    def lists() -> None:
        page = source.choice(encoded.stream[1:4]) * size
        for _change in range(source.choice((1, 1, 20))):
            put(page + 8 * source.randrange(size // 8), struct.pack("<Q", number()))

    def chunk() -> None:
        place = encoded.stream[source.choice(encoded.chunks)] if encoded.chunks else source.choice(encoded.stream)
        put(place * size + source.choice((0, 0, 8, source.randrange(size - 8))), struct.pack("<Q", number()))

    def vmcoreinfo() -> None:
        items = ["OSRELEASE=6.12.7-test", "SYMBOL(init_uts_ns)=ffffffff81000480", "NUMBER(phys_base)=-14680064"]
        for key in ("NUMBER(phys_base)", "SYMBOL(init_top_pgt)", "OFFSET(uts_namespace.name)", "NUMBER(kimage_voffset)",
                    "NUMBER(pgtable_l5_enabled)", "NUMBER(VA_BITS)", "SYMBOL(init_uts_ns)", "OSRELEASE"):  # fmt: skip
            if source.random() < 0.5:
                value = source.choice((str(number()), f"{number():x}", f"-{number()}", "zz", "", "9" * 5000, "\x1b[2J", "0x"))
                items.append(f"{key}={value}")
        source.shuffle(items)
        content = bytearray(note("\n".join(items).encode()))
        if source.random() < 0.3:
            content[4:8] = struct.pack("<I", number() & 0xFFFFFFFF)
        put(source.choice(encoded.stream[1:]) * size, bytes(content)[:size])

    def noise() -> None:
        for _change in range(source.choice((1, 3, 100))):
            put(source.randrange(len(device)), source.randbytes(source.choice((1, 8, 64))))

    def swapped() -> None:
        one, other = (source.randrange(len(device) // size) * size for _ in range(2))
        device[one : one + size], device[other : other + size] = device[other : other + size], device[one : one + size]

    def cut() -> None:
        del device[source.choice((source.randrange(len(device)), source.randrange(len(device) // size) * size)) :]

    changes = (header, swap_map, counts, lists, chunk, vmcoreinfo, noise, swapped)
    for _change in range(source.choice((1, 1, 1, 2, 4))):
        source.choice(changes)()
    if source.random() < 0.08:
        cut()
    return bytes(device)


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
