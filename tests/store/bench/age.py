# SPDX-License-Identifier: GPL-3.0-or-later
"""What the newest of many versions costs to read: ``python -m tests.store.bench.age --versions 300 --size 128``.

Puts one version after the other, each of which has about an eighth of new pages, and measures at some of them how many blocks the
newest needs and how long a ``get`` of it takes (seconds of a processor; the median of five), beside one of the same image from a
store that has no other version. ``written`` is what all puts wrote. Needs twice the size below ``--folder``, and what is stored.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from fuse_store.repository.aead import DIGEST
from fuse_store.store import Label, Store
from tests.store.bench import corpus
from tests.store.bench.versions import measured

ROUNDS = 5
SHOWN = (1, 2, 5, 10, 20, 30, 50, 100, 200, 300)


def blocks_of(store: Store, image_id: str) -> int:
    """How many blocks a version needs."""
    digests = b"".join(part for part, _located, _first_pages in store.open_image(image_id).blocks())
    return len({digests[at : at + DIGEST] for at in range(0, len(digests), DIGEST)})


def processor_of_get(store: Store, image_id: str, target: Path) -> float:
    command = [sys.executable, "-m", "fuse_store.cli", "--store", store.url, "get", image_id, str(target)]
    seconds = []
    for _round in range(ROUNDS):
        target.unlink(missing_ok=True)
        seconds.append(measured(command)[1])
    target.unlink()
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=100)
    parser.add_argument("--size", type=int, default=128, help="MiB of an image, of which a quarter is not zero")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="age.", dir=options.folder))
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    try:
        source, written = folder / "image", 0
        print(f"{'version':>8}{'blocks':>9}{'alone':>8}{'':>7}{'get':>9}{'alone':>9}{'':>7}{'written':>11}")
        with Store.create(folder / "store", durability="none") as store:
            images = corpus.one_by_one(itertools.repeat(source), options.size << 20)
            for number, path in enumerate(itertools.islice(images, options.versions), start=1):
                newest = store.put(str(path), Label("m"))
                written += newest.stored
                if number not in SHOWN:
                    continue
                with Store.create(folder / f"only{number}", durability="none") as only:
                    alone = only.put(str(path), Label("m"))
                    blocks = blocks_of(store, newest.id), blocks_of(only, alone.id)
                    times = [processor_of_get(*one, folder / "back") for one in ((store, newest.id), (only, alone.id))]
                shutil.rmtree(folder / f"only{number}")
                print(
                    f"{number:8}{blocks[0]:9}{blocks[1]:8}{blocks[0] / blocks[1]:6.2f}x{times[0]:8.3f}s{times[1]:8.3f}s"
                    f"{times[0] / times[1]:6.2f}x{written / (1 << 20):7.1f} MiB", flush=True,
                )  # fmt: skip
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
