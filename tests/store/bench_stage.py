# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to stage a version: onto an empty device, and over an older version. Run it in a folder with room:

    python -m tests.store.bench_stage [--size MIB] [--folder DIR] [--block]

Two pairs of versions. ``scattered``: 15 % of the pages of the second are others, in stretches of four; ``shifted``: as
tests/store/corpus.py makes them, where 15 % are new and a third of the rest stand elsewhere. ``--block``: on a loop device.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from fuse_store import targets
from fuse_store.device.stage import stage
from fuse_store.formats.swsusp import armed, layout, swap_header
from fuse_store.image import Image
from fuse_store.progress import SILENT
from fuse_store.store import Store
from tests.store import corpus

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


def timed(what: str, image: Image, device: Path) -> float:
    began = time.monotonic()
    done = stage(image, device, force=True)
    seconds = time.monotonic() - began
    print(f"  {what:34} {seconds:6.2f} s  {done.differed >> 20:6} MiB written")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--block", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        first, shifted = corpus.versions(folder, 2, options.size << 20)
        other = scattered(folder, first)
        device = folder / "device"
        with Store.create(folder / "store", key_file=folder / "key") as store:
            ids = [store.put(str(with_header(path)), machine="m", kind="hibernation").id for path in (first, shifted, other)]
        for path in (first, shifted, other):
            path.unlink()
        for what, image_id in (("scattered", ids[2]), ("shifted", ids[1])):
            print(f"{what}, {options.size} MiB, {'loop device' if options.block else 'file'}:")
            seconds = [run(folder, device, store_and, image_id, options.block) for store_and in ((None, "whole"), (ids[0], "over"))]
            print(f"  {'stage over the older version':34} {seconds[0] / seconds[1]:6.1f} times as fast")


def run(folder: Path, file: Path, kind: tuple[str | None, str], image_id: str, block: bool) -> float:
    """Seconds, with a store that was opened for it: nothing is in its cache."""
    older, what = kind
    with open(file, "wb") as made, Store.open(folder / "store", key_file=folder / "key") as store:
        made.truncate(store.open_image(image_id).size)
    device = file
    if block:
        device = Path(subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True, check=True).stdout.strip())
    try:
        if older:
            with Store.open(folder / "store", key_file=folder / "key") as store:
                stage(store.open_image(older), device, force=True)
        with Store.open(folder / "store", key_file=folder / "key") as store:
            name = {"whole": "stage onto an empty device", "over": "stage over the older version"}[what]
            seconds = timed(name, store.open_image(image_id), device)
        if not older:
            with Store.open(folder / "store", key_file=folder / "key") as store:
                began = time.monotonic()
                targets.get(store.open_image(image_id), str(device), SILENT, force=True)
                print(f"  {'get, all of it':34} {time.monotonic() - began:6.2f} s")
    finally:
        if block:
            subprocess.run(["losetup", "-d", device], check=True)
    return seconds


if __name__ == "__main__":
    main()
