# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to understand a large hibernation image, and how fast its memory is read through the mount:

    python -m tests.store.bench.views [--large GIB] [--pages N] [--folder DIR]

The large image is a sparse file whose header, map and list of pages are all there, once in one run and once with its pages
in as many runs as there are; its memory is a hole. What is read through the mount is a machine's memory of N pages; ``image``
and ``memory.elf`` of it hold nearly the same bytes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fuse_store.formats.readable import File
from fuse_store.formats.swsusp import HibernationImage
from fuse_store.store import Label, Store
from tests.fuzz import swsusp_encoder as encoder
from tests.store.bench.store import mounted

PAGE = 4096
ENTRIES = PAGE // 8 - 1
ROUNDS = 3


def large(path: Path, size: int, scattered: bool) -> None:
    """A device with an image of ``size`` bytes, without compression; if ``scattered``, no two of its pages are neighbours."""
    count = size // PAGE
    lists = -(-count // (PAGE // 8))
    pages = 1 + lists + count
    maps = pages // ENTRIES + 1
    block = 1 + maps + np.arange(pages, dtype="<u8") * (2 if scattered else 1)
    words = np.zeros((maps, ENTRIES + 1), "<u8")  # of the map; the last one of each page leads to the next
    flat = np.zeros(maps * ENTRIES, "<u8")
    flat[:pages] = block
    words[:, :ENTRIES] = flat.reshape(maps, ENTRIES)
    words[:-1, ENTRIES] = np.arange(2, maps + 1)
    pfn = np.full(lists * (PAGE // 8), 0, "<u8")
    pfn[:count] = np.arange(count) + np.arange(count) // 1000  # a gap now and then
    if count < len(pfn):
        pfn[count] = 0xFFFFFFFFFFFFFFFF
    small = encoder.encode(encoder.machine(pages=400))
    header = bytearray(small.device[:PAGE])
    header[PAGE - 32 : PAGE - 24] = (1).to_bytes(8, "little")
    with open(path, "wb") as file:
        file.write(header)
        file.write(words.tobytes())
        for number, content in enumerate([encoder.info("x86", PAGE, count * 2, count, pages), *pfn.reshape(lists, -1)]):
            file.seek(int(block[number]) * PAGE)
            file.write(bytes(content))
        file.truncate((int(block[-1]) + 1) * PAGE)


def understood(path: Path) -> float:
    """Seconds until header, map and list of pages are known."""
    started = time.monotonic()
    with File(path) as file, HibernationImage(file) as image:
        pages = len(image.pages.within(0, 1 << 40)[0])
    assert pages == image.info.stored
    return time.monotonic() - started


def rate(path: Path, size: int) -> float:
    """Bytes per second of a sequential read."""
    started = time.monotonic()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], check=True)
    return size / (time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench_views", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=16, metavar="GIB", help="of the large image (default 16)")
    parser.add_argument("--pages", type=int, default=100_000, help="of the memory that is read (default 100000)")
    parser.add_argument("--folder", type=Path, help="where everything is put, and removed (default: in $TMPDIR)")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="fuse-store-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        for scattered in (False, True):
            large(folder / "large", arguments.large << 30, scattered)
            seconds = statistics.median(understood(folder / "large") for _ in range(ROUNDS))
            print(f"{arguments.large} GiB, {'scattered' if scattered else 'in one run'}: understood in {seconds:.2f} s", flush=True)
        (folder / "large").unlink()
        for compression in ("none", "lzo"):
            made = encoder.encode(encoder.machine(pages=arguments.pages, zeros=0.1), compression=compression)
            (folder / "device").write_bytes(made.device)
            key = folder / f"key-{compression}"
            with Store.create(folder / compression, key_file=key) as store:
                store.put(str(folder / "device"), Label("m", kind="hibernation"))
            command = [sys.executable, "-m", "fuse_store.cli", "--store", str(folder / compression), "--key-file", str(key), "mount", "-f"]
            rates: dict[str, list[float]] = {"image": [], "memory.elf": []}
            for _round in range(ROUNDS):
                for file, found in rates.items():
                    with mounted([*command, str(folder / "mnt")], folder / "mnt"):
                        path = folder / "mnt/machines/m/system/latest" / file
                        found.append(rate(path, path.stat().st_size))
            image, elf = (statistics.median(found) / 1e6 for found in rates.values())
            print(f"compressed {compression}: image {image:.0f} MB/s, memory.elf {elf:.0f} MB/s, {elf / image:.2f} ×", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
