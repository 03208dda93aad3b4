# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of slots as text: what is written is read again, and anything else is ValueError, in bounded time and memory."""

from __future__ import annotations

import hashlib
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_store.hibernation.slots.layout import COPY_SIZE, KEPT, SECTOR, SESSIONS, STATES, SWAP, Slot, Table
from fuse_store.hibernation.slots.text import framed, pack, unframed, unpack

FIRST = 256  # the first block of a slot, with blocks of 4 KiB
hexadecimal = st.text("0123456789abcdef", min_size=32, max_size=32)
names = st.text(st.characters(exclude_categories=["C"]), max_size=12)
numbers = st.integers(0, (1 << 48) - 1)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Any valid table: slots one after the other, in any number of extents, in any order."""
    at, slots = FIRST, []
    for number in draw(st.lists(st.integers(1, 64), max_size=5, unique=True)):
        extents = []
        for gap, count in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 99)), min_size=1, max_size=4)):
            extents.append((at + gap, count))
            at += gap + count
        slots.append(
            Slot(
                number, draw(st.sampled_from(STATES)), draw(names), draw(names), draw(names), draw(hexadecimal),
                draw(st.just("") | hexadecimal), draw(numbers), draw(numbers), draw(numbers), tuple(draw(st.permutations(extents))),
                draw(st.sampled_from(["", "0f" * 32])), draw(numbers), draw(st.sampled_from(KEPT)), draw(st.sampled_from(SWAP)),
                draw(st.dictionaries(names.filter(bool), names, max_size=3)),
            )
        )  # fmt: skip
    slots.sort(key=lambda slot: slot.number)
    blocks = at + 256 + draw(st.integers(0, 99))
    replaced, session = draw(st.sampled_from(["", "0-1f"])), draw(st.sampled_from(SESSIONS))
    return Table(draw(hexadecimal), 4096, blocks, draw(numbers), replaced, session, tuple(slots))


def example() -> Table:
    slots = tuple(
        Slot(number, "complete", "m", "a b", "e", "0" * 32, "1" * 32, 5, 6, 7, ((FIRST + 10 * number, 8), (FIRST + 500 + number, 1)),
             "f" * 64, tags={"fs.source": "disks", "fs.1-2": "ext4 mounts=3 log=77"})
        for number in (1, 2, 7)
    )  # fmt: skip
    return Table("2" * 32, 4096, 4096, 9, "", "running", slots)


def signed(body: bytes) -> bytes:
    """A copy with this body, and the right checksum."""
    body += b"\n" * (-len(body) % SECTOR)
    head = f"fuse-store-slots 1 {len(body) // SECTOR} {hashlib.sha256(body).hexdigest()}\n".encode()
    return (head + b"\n" * (SECTOR - len(head)) + body).ljust(COPY_SIZE, b"\0")[:COPY_SIZE]


def body_of(table: Table) -> bytes:
    return pack(table)[SECTOR:].rstrip(b"\n") + b"\n"


@settings(max_examples=80, deadline=None, derandomize=True)
@given(tables())
def test_what_is_written_is_read(table: Table) -> None:
    packed = pack(table)
    assert unpack(packed.ljust(COPY_SIZE, b"\xff")) == table and packed.isascii() and len(packed) % SECTOR == 0
    assert not any(line != line.strip() for line in packed.decode().splitlines())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tables(), st.randoms(use_true_random=False))
def test_anything_else_is_an_error(table: Table, source: random.Random) -> None:
    """With a right checksum: bytes, lines and numbers are changed, and what is still a table is in its one form."""
    lines = body_of(table).split(b"\n")
    for _change in range(source.randint(1, 3)):
        at = source.randrange(len(lines))
        match source.randrange(6):
            case 0:
                lines[at] = source.randbytes(source.randrange(40))
            case 1:
                del lines[at : at + source.randint(1, 3)]
            case 2:
                lines.insert(at, lines[source.randrange(len(lines))])
            case 3:
                value = source.choice([b"-1", b"0", b"99999999999999999999", b"281474976710655", b"1+1", b"", b"%00", b"x" * 1000])
                lines[at] = lines[at].partition(b" ")[0] + b" " + value
            case 4:
                lines[at] = lines[at][: source.randrange(len(lines[at]) + 1)]
            case _:
                lines[at] = lines[at] + source.choice([b" ", b"\0", b"+1", b" 1+1", b"\xff", b"%41"])
        lines = lines or [b""]
    content = signed(b"\n".join(lines))
    try:
        found = unpack(content)
    except ValueError:
        return
    assert content.startswith(pack(found))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=3000))
def test_bytes(content: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(content)
    with pytest.raises(ValueError):
        unpack(signed(content))


def test_each_bit_counts() -> None:
    """Of the text; what is behind it does not."""
    packed = pack(example())
    for at in range(0, len(packed) * 8, 7):
        changed = bytearray(packed.ljust(COPY_SIZE, b"\0"))
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError):
            unpack(bytes(changed))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("slot 2", "slot 1"), ("slot 7", "slot 65"), ("slot 7", "slot 0"), ("extents 266+8", "extents 255+8"),
        ("extents 276+8", "extents 266+8"), ("header 266", "header 267"), ("page_size 4096", "page_size 8192"),
        ("blocks 4096", "blocks 700"), ("blocks 4096", "blocks 1"),
        ("state complete", "state whole"), ("session running", "session run"), ("session running", "session"),
        ("session running\n", ""), ("replaced\nsession running", "session running\nreplaced"), ("content 1", "content g"),
        ("tag fs.source disks", "tag fs.source disks\ntag fs.source disks"),
        ("generation 9", "generation 09"), ("extents 266+8 757+1", "extents 266+8 757+0"), ("machine m", "machine m\nmachine m"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be(before: str, after: str) -> None:
    body = body_of(example())
    assert before.encode() in body
    with pytest.raises(ValueError):
        unpack(signed(body.replace(before.encode(), after.encode(), 1)))


@given(st.binary(max_size=2000).map(lambda content: content.rstrip(b"\n")))
def test_a_frame_holds_any_text(body: bytes) -> None:
    """Of the same form for the table and what else is in the first mebibyte, told apart by its name."""
    content = framed("fuse-store-boot 1", body, 4096)
    assert unframed("fuse-store-boot 1", content.ljust(8192, b"x")) == body.ljust(len(content) - SECTOR, b"\n")
    for name, wrong in (("fuse-store-slots 1", content), ("fuse-store-boot 1", content[:-1]), ("fuse-store-boot 1", b"")):
        with pytest.raises(ValueError):
            unframed(name, wrong)
    with pytest.raises(ValueError, match="there is space for 512"):
        framed("fuse-store-boot 1", b"x", 512)


def test_a_large_table_takes_little_memory() -> None:
    line = b"extents " + b" ".join(b"%d+1" % number for number in range(30_000))
    content = signed(body_of(example()).replace(b"extents 266+8 757+1", line, 1))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            unpack(content)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
