# SPDX-License-Identifier: GPL-3.0-or-later
"""What it saves, and costs, to store the chunks of compressed hibernation images as the pages they hold. Run it in a folder
with room, with an image that a machine has written:

    python -m tests.store.bench.lzo_chunks IMAGE [--versions N] [--folder DIR]

The first version has the pages of IMAGE. In each of the others 12 % of the pages of the one before are otherwise, in stretches of
one to four: half of them in 64 bytes, half by what is in another page, an eighth of it noise; and one page in 200 is new, so
that all behind it stands elsewhere in its chunk. They are written with LZO, by three threads, as the kernel does; and, to
compare, without compression. The compressed ones are stored as pages, and as the bytes they are.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.hibernation.lzo_chunks import lzo
from fuse_store.image import restore
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import encode

PAGE = 4096


def versions(image: Path, count: int) -> Iterator[dict[int, bytes]]:
    """Memory, version by version: PFN → page."""
    with File(image) as file, HibernationImage(file) as opened:
        step = 1024
        lists, stored = opened.info.lists, opened.info.stored
        parts = [opened.stream.read(lists + at, min(step, stored - at)) for at in range(0, stored, step)]
    content = np.concatenate(parts)
    memory = {number * 2 + 1: page.tobytes() for number, page in enumerate(content)}
    chance = np.random.default_rng(1)
    for _version in range(count):
        yield memory
        pfns = np.array(sorted(memory))
        starts = chance.choice(len(pfns), int(len(pfns) * 0.12 / 2.5), replace=False)
        for start, length in zip(starts.tolist(), chance.integers(1, 5, len(starts)).tolist(), strict=True):
            for pfn in pfns[start : start + length].tolist():
                if chance.random() < 0.5:
                    at = int(chance.integers(0, PAGE - 64))
                    memory[pfn] = memory[pfn][:at] + chance.bytes(64) + memory[pfn][at + 64 :]
                else:
                    memory[pfn] = chance.bytes(PAGE // 8) + content[chance.integers(len(content))].tobytes()[PAGE // 8 :]
        for pfn in chance.choice(pfns, len(pfns) // 200, replace=False).tolist():
            memory[pfn + 1] = chance.bytes(PAGE // 8) + content[chance.integers(len(content))].tobytes()[PAGE // 8 :]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(folder: Path, sources: list[Path], as_pages: bool) -> tuple[list[int], list[float], list[float], int]:
    """(size of the store after each version, seconds of each put, of each get, chunks stored as pages)."""
    sizes, puts, gets, chunks = [], [], [], 0
    with Store.create(folder / "store", key_file=folder / "key") as store:
        for source in sources:
            begun = time.monotonic()
            with mock.patch.object(lzo, "available", lambda: as_pages):
                version = store.put(str(source), Label("m", kind="hibernation"))
            puts.append(time.monotonic() - begun)
            sizes.append(size_of(store.path))
            chunks += version.chunks
    for source in sources:  # another store object: nothing is open
        with Store.open(folder / "store", key_file=folder / "key") as store:
            image = store.open_image(sorted(store.summaries(), key=lambda one: one.taken)[sources.index(source)].id)
            begun = time.monotonic()
            restore.get(image, str(folder / "target"), SILENT)
            gets.append(time.monotonic() - begun)
        if (folder / "target").read_bytes() != source.read_bytes():
            raise SystemExit("what came back is not what was stored")
    return sizes, puts, gets, chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--versions", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sources: dict[str, list[Path]] = {"lzo": [], "none": []}
        for number, memory in enumerate(versions(options.image, options.versions)):
            for compression, paths in sources.items():
                paths.append(folder / f"{compression}{number}")
                paths[-1].write_bytes(encode(memory, compression=compression, threads=3).device)
        print("| | image | store, 1 version | 2 | all | put, first | next | get |")
        for title, compression, as_pages in (
            ("LZO, as its bytes", "lzo", False), ("LZO, as the pages it holds", "lzo", True), ("not compressed", "none", False),
        ):  # fmt: skip
            (folder / title).mkdir()
            sizes, puts, gets, chunks = measure(folder / title, sources[compression], as_pages)
            image = sources[compression][0].stat().st_size
            cells = [f"{one / 1e6:.1f} MB" for one in (image, sizes[0], sizes[1], sizes[-1])]
            cells += [f"{one:.2f} s" for one in (puts[0], statistics.median(puts[1:]), statistics.median(gets))]
            print(f"| {title} ({chunks} chunks) | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
