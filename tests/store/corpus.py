# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes versions of a memory image with the statistics of real ones; used by the benchmark and the tests of the store.

Seen on hibernation images of one machine, whose processes rewrote a tenth of their memory in between: a quarter of the
pages is not zero; of a version's pages 85 % stand somewhere in the version before, 55 % at the same place; equal runs are
four pages long on average; zstd at level 1 makes 2.5 of the pages into one. The same seed gives the same versions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
RUN = 4
NEW = 0.13  # of a version's pages
MOVED = 0.35  # of the runs that stay
FILLED = 0.27  # of the image


def versions(folder: Path, count: int, size: int, seed: int = 1) -> list[Path]:
    """Files v0, v1, … of ``size`` bytes, sparse where they are zero."""
    random = np.random.default_rng(seed)
    slots = size // PAGE // RUN
    used = int(slots * FILLED)
    place = np.sort(random.choice(slots, used, replace=False))
    content = _pages(random, used * RUN).reshape(used, RUN, PAGE)
    paths = []
    for number in range(count):
        if number:
            fresh = random.choice(used, int(used * NEW), replace=False)
            content[fresh] = _pages(random, len(fresh) * RUN).reshape(len(fresh), RUN, PAGE)
            moved = random.choice(used, int(used * MOVED), replace=False)
            place[np.sort(moved)] = place[random.permutation(np.sort(moved))]
        path = folder / f"v{number}"
        with open(path, "wb") as file:
            file.truncate(size)
            for row in np.argsort(place):
                file.seek(int(place[row]) * RUN * PAGE)
                file.write(content[row].tobytes())
        paths.append(path)
    return paths


def _pages(random: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Pages of which two fifths are noise, and the rest repeats: pointers and text, to a compressor."""
    pages = np.zeros((count, PAGE), np.uint8)
    noise = PAGE * 2 // 5 // 64 * 64
    pages[:, :noise] = random.integers(0, 256, (count, noise), np.uint8)
    words = random.integers(0, 1 << 62, (count, 4), np.int64)
    pages[:, noise:] = np.tile(words, (1, PAGE // 32))[:, : (PAGE - noise) // 8].copy().view(np.uint8)
    # Shuffle the lines of 64 bytes, alike in every page, so that noise and order alternate.
    lines = random.permutation(PAGE // 64)
    return pages.reshape(count, PAGE // 64, 64)[:, lines].reshape(count, PAGE).copy()
