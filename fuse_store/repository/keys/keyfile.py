# SPDX-License-Identifier: GPL-3.0-or-later
"""Key files: the secret key of an encrypted store, kept outside of it, with a copy of its ``store.json``. A text file
(docs/format.md, "Key file"). Functions of paths; safe in threads.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from fuse_store.errors import NotFound, Refused, StoreError, WrongKey
from fuse_store.repository.keys.private_file import read_private
from fuse_store.user_directories import config_home

KEY_SIZE = 32  # bytes
FIRST_LINE = "fuse-store key 1"


def default_key_file(store_id: bytes) -> Path:
    """The path of a store's key file if no other is named: in the user's configuration directory. Raises Refused."""
    try:
        return config_home() / "keys" / f"{store_id.hex()}.key"
    except Refused as homeless:
        raise Refused(homeless.thing, homeless.cause, f"{homeless.remedy} Or name the key file with --key-file.") from None


def new_key() -> bytes:
    return os.urandom(KEY_SIZE)


def write_key(path: Path, store_id: bytes, key: bytes, config: bytes) -> None:
    """Write a new key file, readable by its owner only. ``config``: the ``store.json`` in one line. Raises Refused if the file exists,
    OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Refused(f"key file {path}", "file exists.", "Name another file, or move this one away.") from None
    with open(descriptor, "w") as file:
        file.write(f"{FIRST_LINE}\nstore {store_id.hex()}\nstore.json {config.decode()}\nkey {key.hex()}\n")
        file.flush()
        os.fsync(file.fileno())


def read_key(path: Path, store_id: bytes, owners: Collection[int] = ()) -> bytes:
    """The key in a key file, 32 bytes. ``owners``: user ids that may own the file besides this user and root. Raises Refused (no such
    file, or others have access), StoreError (permission denied), NotFound (a directory), WrongKey (the key of another store, or not a
    key file)."""
    remedy = "Name the key file with --key-file or $FUSE_STORE_KEY_FILE; without the key the store cannot be read."
    try:
        text = read_private(path, "key file", owners).decode()
    except FileNotFoundError:
        raise Refused(f"key file {path}", "no such file, and the store is encrypted.", remedy) from None
    except IsADirectoryError:
        raise NotFound(f"key file {path}", "is a directory.", remedy) from None
    except OSError as error:
        raise StoreError(f"key file {path}", f"{error.strerror}.", remedy) from None
    except UnicodeDecodeError:
        raise WrongKey(f"key file {path}", "not a key file.", remedy) from None
    fields = dict(line.split(" ", 1) for line in text.splitlines()[1:] if " " in line)
    try:
        key, owner = bytes.fromhex(fields["key"]), bytes.fromhex(fields["store"])
    except (KeyError, ValueError):
        key, owner = b"", b""
    if not text.startswith(FIRST_LINE + "\n") or len(key) != KEY_SIZE:
        raise WrongKey(f"key file {path}", "not a key file.", remedy)
    if owner != store_id:
        raise WrongKey(f"key file {path}", "belongs to another store.", remedy)
    return key
