# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes versions of a memory image with the statistics of real ones; used by the benchmark and the tests of the store.

Seen on hibernation images of one machine, whose processes rewrote a tenth of their memory in between: a quarter of the
device is image; of a version's pages 85 % stand somewhere in the version before, 55 % at the same place, because pages
that come and go shift those after them by a few pages; equal runs are four pages long on average; zstd at level 1
makes 2.5 of the pages into one. The same seed gives the same versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
FILLED = 0.27  # of the device
NEW = 0.13  # of a version's pages, one by one
SHIFTED = 0.38  # of the pages, in stretches of STRETCH
STRETCH = 2048
ZERO = 0.03  # of the image

I64 = NDArray[np.int64]


def versions(folder: Path, count: int, size: int, seed: int = 1) -> list[Path]:
    """Files v0, v1, … of ``size`` bytes, sparse where they are zero."""
    paths = [folder / f"v{number}" for number in range(count)]
    for _path, _done in zip(paths, one_by_one(paths, size, seed), strict=True):
        pass
    return paths


def one_by_one(paths: Iterable[Path], size: int, seed: int = 1) -> Iterator[Path]:
    """The same, each written when it is asked for."""
    for path, pages in zip(paths, _page_numbers(size // PAGE, seed), strict=False):
        with open(path, "wb") as file:
            file.truncate(size)
            for at in range(0, len(pages), 4096):
                part = pages[at : at + 4096]
                content = _content(part, seed)
                for begin, end in _filled(part):
                    file.seek((1 + at + begin) * PAGE)
                    file.write(content[begin:end].tobytes())
        yield path


def _page_numbers(pages: int, seed: int) -> Iterator[I64]:
    """For one version after the other, which page stands where; 0 is a page of zeros."""
    random = np.random.default_rng(seed)
    used = max(8, int(pages * FILLED))
    now = np.arange(1, used + 1)
    now[random.random(used) < ZERO] = 0
    fresh = used + 1
    while True:
        yield now
        now = now.copy()
        changed = np.flatnonzero(random.random(used) < NEW)
        now[changed] = np.arange(fresh, fresh + len(changed))
        fresh += len(changed)
        for start in range(0, used - STRETCH, STRETCH):
            if random.random() < SHIFTED:
                by = int(random.integers(1, 9))
                now[start : start + STRETCH - by] = now[start + by : start + STRETCH]
                now[start + STRETCH - by : start + STRETCH] = np.arange(fresh, fresh + by)
                fresh += by


def _filled(pages: I64) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], pages != 0, [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@lru_cache(maxsize=1)
def _pool(seed: int) -> tuple[NDArray[np.uint8], I64]:
    """Bytes of which every page's noise is a stretch of its own, mixed with its number; and the order of the lines of a page."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, 64 << 20, np.uint8), random.permutation(PAGE // 64)


def _content(numbers: I64, seed: int) -> NDArray[np.uint8]:
    """The pages with these numbers. Two fifths of a page are noise; the rest repeats, as pointers and text do to a compressor."""
    noise = PAGE * 2 // 5 // 64 * 64
    pool, lines = _pool(seed)
    at = (numbers * 7919 * 64) % (len(pool) - noise)
    words = (pool[at[:, None] + np.arange(noise)]).view("<u8") ^ (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))[:, None]
    pages = np.empty((len(numbers), PAGE), np.uint8)
    pages[:, :noise] = words.view(np.uint8).reshape(len(numbers), noise)
    pages[:, noise:] = np.tile(words[:, :4], (1, PAGE // 32))[:, : (PAGE - noise) // 8].copy().view(np.uint8)
    pages = pages.reshape(len(numbers), PAGE // 64, 64)[:, lines].reshape(len(numbers), PAGE)
    pages[numbers == 0] = 0
    return pages
