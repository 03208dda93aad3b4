# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to stage a version: onto an empty device, and over an older version. Run it in a folder with room:

    python -m tests.store.bench.stage [--size MIB] [--folder DIR] [--block]

Two pairs of versions. ``scattered``: 15 % of the pages of the second are others, in stretches of four; ``shifted``: as
tests/store/bench/corpus.py makes them, where 15 % are new and a third of the rest stand elsewhere. ``--block``: on a loop device.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fuse_store.formats.swsusp import armed, layout
from fuse_store.hibernation.stage import stage
from fuse_store.hibernation.swap_device import SwapDevice
from fuse_store.image import page_io
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import swap_header
from tests.store.bench import corpus

PAGE = corpus.PAGE


def scattered(folder: Path, source: Path) -> Path:
    """A copy in which 15 % of the pages that are not zero are others."""
    path = folder / "scattered"
    shutil.copy(source, path)
    chance = np.random.default_rng(5)
    used = int(source.stat().st_size // PAGE * corpus.FILLED)
    with open(path, "r+b") as file:
        for start in range(1, used - 4, 4):
            if chance.random() < 0.15:
                file.seek(start * PAGE)
                old = np.frombuffer(file.read(4 * PAGE), np.uint8)
                file.seek(start * PAGE)
                file.write((old ^ np.uint8(1 + start % 251)).tobytes())
    return path


def with_header(path: Path) -> Path:
    """Page 0 of a corpus file is free: make it that of an armed image."""
    block = swap_header(PAGE, path.stat().st_size // PAGE, bytes(16))
    tail = layout.TAIL.pack(0, 0, 1, layout.NOCOMPRESS, layout.SWAP_SIGNATURES[0], layout.SIGNATURE)
    with open(path, "r+b") as file:
        file.write(armed(block[: -layout.TAIL.size] + tail))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB")
    parser.add_argument("--filled", type=float, default=corpus.FILLED, help="share of the device that is not zeros")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--block", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    options = parser.parse_args()
    corpus.FILLED = options.filled
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        first, shifted = corpus.versions(folder, 2, options.size << 20)
        other = scattered(folder, first)
        with Store.create(folder / "store", key_file=folder / "key") as store:
            ids = [store.put(str(with_header(path)), Label("m", kind="hibernation")).id for path in (first, shifted, other)]
        for path in (first, shifted, other):
            path.unlink()
        with device(folder, options.size, options.block) as path:
            for what, image_id in (("scattered", ids[2]), ("shifted", ids[1])):
                print(f"{what}, {options.size} MiB, {options.filled:.0%} of it filled, {'loop device' if options.block else 'file'}:")
                best = {"whole": 1e9, "empty": 1e9, "over": 1e9}
                for _round in range(options.rounds):
                    emptied(path)
                    best["empty"] = min(best["empty"], staged(folder, path, image_id))
                    staged(folder, path, ids[0])
                    best["over"] = min(best["over"], staged(folder, path, image_id))
                    best["whole"] = min(best["whole"], whole(folder, path, image_id))
                for kind, seconds in best.items():
                    print(f"  {NAMES[kind]:36} {seconds:6.2f} s  {seconds / best['over']:4.1f}")


NAMES = {
    "whole": "all of it written and read back", "empty": "stage onto an empty device", "over": "stage over the older version",
}  # fmt: skip


@contextlib.contextmanager
def device(folder: Path, size: int, block: bool) -> Iterator[Path]:
    file = folder / "device"
    with open(file, "wb") as made:
        made.truncate(size << 20)
    if not block:
        yield file
        return
    path = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield Path(path)
    finally:
        subprocess.run(["losetup", "-d", path], check=True)


def emptied(path: Path) -> None:
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
    subprocess.run(["fallocate", "-p", "-o", "0", "-l", str(size), path], check=True)


def staged(folder: Path, path: Path, image_id: str) -> float:
    """Seconds, with a store that was opened for it: nothing is in its cache."""
    with Store.open(folder / "store", key_file=folder / "key") as store:
        image = store.open_image(image_id)
        began = time.monotonic()
        stage(image, path, force=True)
        return time.monotonic() - began


def whole(folder: Path, path: Path, image_id: str) -> float:
    """Seconds to write each byte, whatever stands there, and to read all of it back."""
    with Store.open(folder / "store", key_file=folder / "key") as store, SwapDevice(path) as target:
        image = store.open_image(image_id)
        began = time.monotonic()
        page_io.write(image, image.files[0], target.descriptor, SILENT, compare=False, zeros=True)
        target.sync()
        page_io.read_back(image, target.direct, path, SILENT)
        return time.monotonic() - began


if __name__ == "__main__":
    main()
