# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks for the snapshots in slots to be put into the store, in the background: another process does it, at low priority
(``fuse-store put --slots``), which systemd starts because there is a file. It also notes in the store which of them was restored.
docs/snapshots.md has the units."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

DIRECTORY = Path("/run/fuse-store")
WANTED = "put-wanted"
RESTORED = "restored-images"  # an id of an image in each line
MAX_RESTORED = 1 << 16  # bytes that are read of it


def begin() -> None:
    """A put begins now: what asked for it so far is answered."""
    with contextlib.suppress(OSError):
        (DIRECTORY / WANTED).unlink(missing_ok=True)


def ask(restored: str = "") -> str:
    """Have it done soon, also if it is being done now: the snapshot may have come too late for that. ``restored``: the id of the image
    that the system has just been restored from. Returns why not; empty if it is."""
    try:
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        if restored:
            with open(DIRECTORY / RESTORED, "a", encoding="ascii") as file:
                file.write(f"{restored}\n")
        (DIRECTORY / WANTED).touch()
    except OSError as error:
        return f"the store is not told of the snapshot: {error.filename}: {error.strerror}"
    return ""


def restored_images() -> list[str]:
    """The ids of the images that the system was restored from, and that no put has noted in the store."""
    try:
        with open(DIRECTORY / RESTORED, "rb") as file:
            words = file.read(MAX_RESTORED).decode("ascii", "replace").split()
    except OSError:
        return []
    return list(dict.fromkeys(word for word in words if re.fullmatch("[0-9a-f]{32}", word)))


def noted(images: Iterable[str]) -> None:
    """These are in the store's state log."""
    done = set(images)
    left = [image for image in restored_images() if image not in done]
    new = DIRECTORY / f"{RESTORED}.new"
    with contextlib.suppress(OSError):
        new.write_text("".join(f"{image}\n" for image in left), encoding="ascii")
        os.replace(new, DIRECTORY / RESTORED)
