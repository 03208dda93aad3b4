# SPDX-License-Identifier: GPL-3.0-or-later
"""Digests and sealing: how stored bytes are named, kept secret, and recognised. Used by packs, index, manifest, store.

An encrypted store seals with AES-256-GCM (NIST SP 800-38D), under a key of its own for each content: it is derived from
the store's key, the object's name and the keyed digest of exactly what is encrypted, as synthetic IVs are (RFC 5297). So
no key sees two contents, and a machine that was restored from an old image, and repeats its random numbers, gives
nothing away. A store that is not encrypted has a BLAKE3 checksum instead. Either covers the object's name as well, so
that one valid object can't stand in for another. Threads may share a Aead.
"""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fuse_store.errors import NotFound, Refused, WrongKey

DIGEST = 16  # bytes of every digest that names something
TAG = 16
NONCE = bytes(12)  # each key seals one object
KEY = 32
KEY_HEADER = "fuse-store key 1"


class Aead:
    """What one store digests and seals with. ``root`` is its secret key, or what is in its ``store.json`` if it has none."""

    def __init__(self, store_id: bytes, root: bytes, encrypted: bool) -> None:
        self.encrypted = encrypted
        self._store_id = store_id
        self._digest_key = self._derive("digest", root)
        self._encryption_key = self._derive("encrypt", root)
        self.page_seed = int.from_bytes(self._derive("page seed", root)[:8], "little")
        self.check = self._derive("check", root)[:DIGEST]  # tells a wrong key from damage; says nothing about the key

    def _derive(self, purpose: str, root: bytes) -> bytes:
        context = f"fuse_store 2026-11-24 {purpose}"
        return blake3(root + self._store_id, derive_key_context=context).digest()

    def digest(self, content: bytes | memoryview) -> bytes:
        """16 bytes: keyed BLAKE3. Without the key nobody can tell whether some known content is stored."""
        return blake3(content, key=self._digest_key).digest(DIGEST)

    def encrypt(self, name: bytes, content: bytes) -> bytes:
        """``content`` encrypted as the object ``name``: salt, ciphertext, tag; or content, checksum."""
        return b"".join(self.encrypt_parts(name, content))

    def encrypt_parts(self, name: bytes, content: bytes) -> tuple[bytes, bytes]:
        """The two parts of the same, for who puts more together: salt, ciphertext and tag; or content, checksum."""
        if not self.encrypted:
            return content, self._checksum(name, content)
        salt = self.digest(content)
        return salt, AESGCM(self._key_of(name, salt)).encrypt(NONCE, content, self._store_id + name)

    def decrypt(self, name: bytes, encrypted: bytes | memoryview) -> bytes:
        """The content. Raises ValueError if it is not what was encrypted under that name in this store."""
        if self.encrypted:
            try:
                key = self._key_of(name, bytes(encrypted[:DIGEST]))
                return AESGCM(key).decrypt(NONCE, encrypted[DIGEST:], self._store_id + name)
            except (InvalidTag, ValueError):
                raise ValueError("it does not decrypt") from None
        content, tag = bytes(encrypted[:-TAG]), bytes(encrypted[-TAG:])
        if len(tag) != TAG or self._checksum(name, content) != tag:
            raise ValueError("its checksum is wrong")
        return content

    def _key_of(self, name: bytes, salt: bytes) -> bytes:
        return blake3(salt + name, key=self._encryption_key).digest(KEY)

    def _checksum(self, name: bytes, content: bytes) -> bytes:
        hasher = blake3(name, key=self._encryption_key)
        hasher.update(content)
        return hasher.digest(TAG)


def default_key_file(store_id: bytes) -> Path:
    """Where a key is kept unless somebody says otherwise: beside the user's settings, not in the store."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "fuse-store" / "keys" / f"{store_id.hex()}.key"


def new_key() -> bytes:
    return os.urandom(KEY)


def write_key(path: Path, store_id: bytes, key: bytes) -> None:
    """Write a new key file, readable by its owner only. Raises Refused if it exists, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Refused(f"key file {path}", "it exists already.", "Choose another one, or move it away.") from None
    with open(descriptor, "w") as file:
        file.write(f"{KEY_HEADER}\nstore {store_id.hex()}\nkey {key.hex()}\n")
        file.flush()
        os.fsync(file.fileno())


def read_key(path: Path, store_id: bytes) -> bytes:
    """The key in a key file. Raises NotFound, Refused (no right to read it), WrongKey (of another store, or no key)."""
    remedy = "Name the key file with --key-file or $FUSE_STORE_KEY_FILE; without it nobody can read the store."
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise Refused(f"key file {path}", "it does not exist, and the store is encrypted.", remedy) from None
    except IsADirectoryError:
        raise NotFound(f"key file {path}", "it is a directory.", remedy) from None
    except PermissionError:
        raise Refused(f"key file {path}", "this user may not read it.", remedy) from None
    except UnicodeDecodeError:
        raise WrongKey(f"key file {path}", "it is not a key file.", remedy) from None
    fields = dict(line.split(" ", 1) for line in text.splitlines()[1:] if " " in line)
    try:
        key, owner = bytes.fromhex(fields["key"]), bytes.fromhex(fields["store"])
    except (KeyError, ValueError):
        key, owner = b"", b""
    if not text.startswith(KEY_HEADER + "\n") or len(key) != KEY:
        raise WrongKey(f"key file {path}", "it is not a key file.", remedy)
    if owner != store_id:
        raise WrongKey(f"key file {path}", "it is the key of another store.", remedy)
    return key
