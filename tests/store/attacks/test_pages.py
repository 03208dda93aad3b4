# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest, or an unprivileged process in it, that shapes pages which are stored gets no other page in their place.

XXH3 was the page digest once. Its long hash adds to an accumulator, for each lane of 8 bytes, the product of the two halves of
(data XOR a word of the secret). Bit 63 of a lane changes the product by the low half, shifted: so flipped in two stripes of one
lane, it changes nothing where those low halves are equal, and bit 63 is set in one and not in the other. A seed is added to each
word of the public secret, or subtracted from it: that the low halves are equal needs no more than a guess at the carries.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xxhash

from fuse_store.repository.aead import Aead
from fuse_store.store import Label, Store
from tests.store.conftest import PAGE, content, read_whole, write_sparse

SECRET = struct.unpack(
    "<24Q",
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364ea"
        "c5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
)
LANES, STRIPES = 8, 16  # of 8 bytes in a stripe; stripes that are added before the accumulator is scrambled
UNIT = 32  # pages of a block
GUESSES = 1024


def guesses() -> list[tuple[int, int, int]]:
    """(one word of the secret, another, XOR of their low halves), the likeliest first: made from the public secret alone."""
    seeds = np.random.default_rng(5).integers(0, 1 << 32, 4000, np.uint32)  # their low halves
    found: Counter[tuple[int, int, int]] = Counter()
    for one in range(STRIPES + LANES - 1):
        for other in range(one + 2, STRIPES + LANES - 1, 2):  # the seed goes into both in the same way
            first, second = (np.uint32(SECRET[word] & 0xFFFFFFFF) + (seeds if word % 2 == 0 else -seeds) for word in (one, other))
            found.update((one, other, low) for low in (first ^ second).tolist())
    return [guess for guess, _count in found.most_common(GUESSES)]


def pairs() -> tuple[list[bytes], list[bytes]]:
    """Pages, and for each another one with which it may have a digest in common."""
    ones, others = [], []
    for number, (first, second, low) in enumerate(guesses()):
        lane = max(0, second - STRIPES + 1)
        one, other = first - lane, second - lane
        for high in (0, 1 << 63):  # bit 63 is set in one of the two: which, the attacker does not know
            words = [0] * (PAGE // 8)
            words[256] = 2 * number + (high > 0) + 1  # in another part of the page: all pages differ
            words[one * LANES + lane], words[other * LANES + lane] = 0, low | high
            ones.append(struct.pack("<512Q", *words))
            words[one * LANES + lane] ^= 1 << 63
            words[other * LANES + lane] ^= 1 << 63
            others.append(struct.pack("<512Q", *words))
    return ones, others


ONES, OTHERS = pairs()


def test_the_pairs_collide_where_the_attack_works() -> None:
    """Else the tests below could not fail."""
    source, digest = random.Random(9), xxhash.xxh3_128_digest
    seeds = [source.getrandbits(64) for _seed in range(64)]
    broken = [seed for seed in seeds if any(digest(one, seed) == digest(other, seed) for one, other in zip(ONES, OTHERS, strict=True))]
    assert len(broken) > 32


@pytest.mark.parametrize("encrypted", [True, False])
def test_the_pairs_have_different_digests(encrypted: bool) -> None:
    for number in range(8):
        aead = Aead(bytes(16), bytes([number]) * 32, encrypted)
        digests = aead.page_digests([*ONES, *OTHERS])
        assert len({digests[at : at + 16] for at in range(0, len(digests), 16)}) == len(ONES) + len(OTHERS)


def test_digests_cover_every_bit_and_the_length() -> None:
    for encrypted in (True, False):
        aead = Aead(bytes(16), bytes(32), encrypted)
        page = content([5])
        changed = [page[:at] + bytes([page[at] ^ 1 << at % 8]) + page[at + 1 :] for at in range(0, PAGE, 37)]
        digests = aead.page_digests([page, *changed, page[:-1], bytes(PAGE), bytes(PAGE - 16), b""])
        assert len({digests[at : at + 16] for at in range(0, len(digests), 16)}) == len(changed) + 5
        assert aead.page_digests([page]) == digests[:16] != Aead(bytes(16), b"k" * 32, encrypted).page_digests([page])


@pytest.mark.parametrize("encryption", [True, False])
def test_a_version_with_the_other_pages_is_read_as_it_was_put(tmp_path: Path, encryption: bool) -> None:
    """On one machine, and on another one that shares a unit with it."""
    unit = content(range(1, UNIT + 1))
    with Store.create(tmp_path / "store", durability="none", encryption=encryption) as store:

        def put(machine: str, data: bytes) -> str:
            return store.put(str(write_sparse(tmp_path / "source", data)), Label(machine)).id

        put("a", unit + b"".join(ONES))
        same = put("a", unit + b"".join(OTHERS))
        put("b", unit)
        shared = put("b", unit + b"".join(OTHERS))
        put("c", unit)
        between = b"".join(content([500 + number]) + other for number, other in enumerate(OTHERS))
        scattered = put("c", between)
        assert read_whole(store, same) == read_whole(store, shared) == unit + b"".join(OTHERS)
        assert read_whole(store, scattered) == between


def test_pages_of_another_machine_are_not_known_because_a_block_is_shared(tmp_path: Path) -> None:
    """Only whole blocks are; pages of another machine's blocks when it is named with --base."""
    unit, theirs = content(range(1, UNIT + 1)), content(range(200, 216))
    scattered = b"".join(theirs[at : at + PAGE] + content([900 + at // PAGE]) for at in range(0, len(theirs), PAGE))
    with Store.create(tmp_path / "store", durability="none") as store:

        def put(machine: str, data: bytes, bases: list[str] | None = None) -> int:
            return store.put(str(write_sparse(tmp_path / "source", data)), Label(machine), bases=bases).new

        put("a", unit + content(range(300, 348)) + theirs)
        put("b", unit)
        assert put("b", unit + scattered) == len(scattered)
        assert put("b", unit + scattered) == 0
        put("c", unit)
        assert put("c", unit + scattered, bases=["a/system/latest"]) == len(scattered) - len(theirs)
