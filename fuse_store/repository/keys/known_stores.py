# SPDX-License-Identifier: GPL-3.0-or-later
"""The stores that a user has seen, and where: so that an attacker who can change a store cannot put another one, or one without encryption,
in its place (docs/format.md, "Known stores"; docs/decisions/0098-remember-which-store-is-where.md).

A text file in the user's configuration directory, one line for each location. It is replaced atomically; processes that add to it
take turns. Safe in threads and processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuse_store.errors import Refused, StoreError
from fuse_store.repository.atomic import write_file
from fuse_store.repository.keys.private_file import read_private
from fuse_store.user_directories import config_home

NAME = "stores"
FIRST_LINE = "fuse-store stores 1"
SERVERS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")  # of the environment: where a bucket is
MAX_WAIT = 10.0  # seconds for other processes that write the file
_LINE = re.compile(r'(?P<id>[0-9a-f]{32}) (?P<encryption>encrypted|unencrypted) (?P<location>".*")')


@dataclass(frozen=True)
class Known:
    """A store: its id, 32 hex digits, and whether it is encrypted."""

    id: str
    encrypted: bool


def path() -> Path:
    """Raises Refused if the user has no home directory."""
    return config_home() / NAME


def admit(url: str, store: Known, *, told: bool) -> None:
    """Make sure that ``store`` may be used at ``url``, by what is known. ``told``: the user has said that this store is meant there:
    named its key file, or, of one without encryption, said that it has none. Raises Refused."""
    stores, names = _known(), _names(url)
    earlier = [stores[name] for name in names if name in stores]
    if store.encrypted:
        other = next((known for known in earlier if known.id != store.id), None)
        if other is not None and not told:
            raise Refused(
                f"store {url}", f"is another store than before: {store.id}, not {other.id}.",
                "If you replaced it, name the key file of the new one with --key-file; if not, its store.json was damaged or "
                "tampered with: restore it from the key file.",
            )  # fmt: skip
        return
    if any(known.encrypted for known in earlier):
        raise Refused(
            f"store {url}", "was encrypted, and its store.json says now that it is not: it may have been tampered with.",
            f"Restore store.json from the key file. If you replaced the store, delete its line in {path()}.",
        )  # fmt: skip
    if set(earlier) != {store} and not told:
        cause = "is another store than before, and not encrypted." if earlier else "is not encrypted, and is not known here."
        raise Refused(f"store {url}", cause, "If it should not be encrypted, add --unencrypted or set FUSE_STORE_UNENCRYPTED=1.")


def remember(url: str, store: Known) -> None:
    """Note that ``store`` is at ``url``; does nothing if that is known. Raises Refused, OSError."""
    names = _names(url)
    stores = _known()
    if all(stores.get(name) == store for name in names):
        return
    with _changing() as place:
        write_file(place, _text(_known() | dict.fromkeys(names, store)).encode(), sync=True)


def check_writable() -> None:
    """Raises Refused, OSError if nothing can be remembered."""
    with _changing():
        pass


def _names(url: str) -> list[str]:
    """What a location is known as: of a directory, its path as given, made absolute, and without links: neither may change unnoticed;
    of a bucket, the URL and its server."""
    if "://" in url:
        servers = (os.environ.get(name, "").rstrip("/") for name in SERVERS)
        return [" ".join((url.rstrip("/"), *filter(None, servers)))]
    return list(dict.fromkeys((os.path.abspath(url), os.path.realpath(url))))


def _known() -> dict[str, Known]:
    """By location; empty if this user has no such file. Raises Refused, StoreError."""
    try:
        place = path()
    except Refused:
        return {}  # a user without a home directory knows no store
    thing = f"list of stores {place}"
    try:
        owners = (place.parent.stat().st_uid,)
        first, *lines = read_private(place, "list of stores", owners).decode().splitlines() or [""]
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # or this is another user's home directory, as after runuser(1)
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(thing, f"cannot be read ({getattr(error, 'strerror', 'not text')}).", "Correct or delete it.") from None
    if first != FIRST_LINE:
        raise Refused(thing, "not such a list.", "Correct or delete it.")
    stores = {}
    for number, line in enumerate(lines, 2):
        match = _LINE.fullmatch(line)
        try:
            location = json.loads(match["location"]) if match else None
        except ValueError:
            location = None
        if match is None or location is None:
            raise Refused(thing, f"line {number} is damaged.", "Correct or delete it.")
        stores[location] = Known(match["id"], match["encryption"] == "encrypted")
    return stores


def _is_own(directory: Path) -> bool:
    """Whether this user owns the directory, or would: root that kept another user's HOME must leave no files there."""
    while not directory.exists():
        directory = directory.parent
    return directory.stat().st_uid == os.geteuid()


def _text(stores: dict[str, Known]) -> str:
    rows = (
        f"{known.id} {'encrypted' if known.encrypted else 'unencrypted'} {json.dumps(location)}"
        for location, known in sorted(stores.items())
    )
    return "\n".join((FIRST_LINE, *rows)) + "\n"


@contextlib.contextmanager
def _changing() -> Iterator[Path]:
    """The path of the list, for the one process that may replace it now. Raises Refused, OSError."""
    place = path()
    if not _is_own(place.parent):
        raise PermissionError(errno.EPERM, "the directory belongs to another user", str(place.parent))
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _turn(place.with_name(f"{NAME}.lock")):
        yield place


@contextlib.contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Hold the lock of the file. Raises OSError, also if another process holds it for MAX_WAIT."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + MAX_WAIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
