# SPDX-License-Identifier: GPL-3.0-or-later
"""Digests and authenticated encryption (AEAD) of stored bytes. Threads may share an Aead.

An encrypted store uses AES-256-GCM (NIST SP 800-38D) with a separate key for each content: the key is derived from the
store's key, the object's name and the keyed digest of the plaintext, as synthetic IVs are (RFC 5297). So no key encrypts
two contents, and a machine that was restored from an old image, and repeats its random numbers, reveals nothing. A store
without encryption has a BLAKE3 checksum instead. Both cover the object's name as well, so that one valid object cannot
replace another.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DIGEST = 16  # bytes of every digest that names something
TAG = 16  # bytes
NONCE = bytes(12)  # each key encrypts one object
KEY_SIZE = 32  # bytes


class Aead:
    """The digests and the encryption of one store. ``root``: its secret key, 32 bytes; of a store without encryption the value in
    its ``store.json``."""

    def __init__(self, store_id: bytes, root: bytes, encrypted: bool) -> None:
        self.encrypted = encrypted
        self.overhead = DIGEST + TAG if encrypted else TAG  # bytes that ``encrypt`` adds
        self._store_id = store_id
        self._digest_key = self._derive("digest", root)
        self._encryption_key = self._derive("encrypt", root)
        self._page_key = self._derive("page digest", root)
        self._page_mac = AESGCM(self._page_key)
        self._page_lock = threading.Lock()  # each call lets other threads run: two that make digests would take turns at every page
        self._config_key = self._derive("store.json", root)
        self.check = self._derive("check", root)[:DIGEST]  # tells a wrong key from damage; reveals nothing about the key

    def _derive(self, purpose: str, root: bytes) -> bytes:
        context = f"fuse_store 2026-11-24 {purpose}"
        return blake3(root + self._store_id, derive_key_context=context).digest()

    def digest(self, content: bytes | memoryview) -> bytes:
        """Keyed BLAKE3, 16 bytes. Without the key, a digest does not tell whether a known content is stored."""
        return blake3(content, key=self._digest_key).digest(DIGEST)

    def page_digests(self, pages: Sequence[bytes | memoryview]) -> bytes:
        """16 bytes for each page.

        Encrypted store: AES-256-GMAC (NIST SP 800-38D) with a fixed nonce, which is a universal hash: two pages have one digest for
        one key in 2^115, also those of an attacker who sees no digest: they are in encrypted tables only. Without encryption
        the key can be read: keyed BLAKE3, for which two pages with one digest take 2^64 tries.
        """
        if self.encrypted:
            digest = self._page_mac.encrypt
            with self._page_lock:
                return b"".join([digest(NONCE, b"", page) for page in pages])
        return b"".join([blake3(page, key=self._page_key).digest(DIGEST) for page in pages])

    def config_mac(self, content: bytes) -> bytes:
        """Authenticates ``store.json``. In a store without encryption, whose key is in that file, a checksum."""
        return blake3(content, key=self._config_key).digest(DIGEST)

    def hasher(self) -> blake3:
        """The digest of content that comes in parts: ``update`` and ``digest(DIGEST)``."""
        return blake3(key=self._digest_key)

    def key(self, name: bytes, salt: bytes) -> bytes:
        """The key of the object ``name`` with this salt (16 bytes), for those who encrypt it in another way."""
        return self._key_of(name, salt)

    def encrypt(self, name: bytes, content: bytes) -> bytes:
        """``content``, encrypted as the object ``name``: salt, ciphertext, tag; without encryption: content, checksum."""
        return b"".join(self.encrypt_parts(name, content))

    def encrypt_parts(self, name: bytes, content: bytes) -> tuple[bytes, bytes]:
        """The two parts of ``encrypt``, to be joined by the caller: (salt, ciphertext and tag), or (content, checksum)."""
        if not self.encrypted:
            return content, self._checksum(name, content)
        salt = self.digest(content)
        return salt, AESGCM(self._key_of(name, salt)).encrypt(NONCE, content, self._store_id + name)

    def encrypt_into(self, name: bytes, content: bytes, out: memoryview) -> int:
        """Have ``encrypt`` of ``content`` at the start of ``out``, without memory of its own; how many bytes."""
        size = len(content) + self.overhead
        if self.encrypted:
            salt = out[:DIGEST] = self.digest(content)
            AESGCM(self._key_of(name, salt)).encrypt_into(NONCE, content, self._store_id + name, out[DIGEST:size])
        else:
            out[: len(content)], out[len(content) : size] = content, self._checksum(name, content)
        return size

    def decrypt(self, name: bytes, encrypted: bytes | memoryview) -> bytes:
        """The content. Raises ValueError if this is not what was encrypted under that name in this store."""
        if self.encrypted:
            try:
                key = self._key_of(name, bytes(encrypted[:DIGEST]))
                return AESGCM(key).decrypt(NONCE, encrypted[DIGEST:], self._store_id + name)
            except (InvalidTag, ValueError):
                raise ValueError("decryption failed") from None
        content, tag = bytes(encrypted[:-TAG]), bytes(encrypted[-TAG:])
        if len(tag) != TAG or self._checksum(name, content) != tag:
            raise ValueError("checksum mismatch")
        return content

    def decrypt_into(self, name: bytes, encrypted: memoryview, out: memoryview) -> int:
        """Have the content at the start of ``out``, without memory of its own; how many bytes. Raises ValueError as ``decrypt`` does,
        and if there is no space for it."""
        size = len(encrypted) - self.overhead
        if not 0 <= size <= len(out):
            raise ValueError("decryption failed")
        if not self.encrypted:
            out[:size] = encrypted[:size]
            if self._checksum(name, out[:size]) != encrypted[size:]:
                raise ValueError("checksum mismatch")
            return size
        try:
            key = self._key_of(name, bytes(encrypted[:DIGEST]))
            AESGCM(key).decrypt_into(NONCE, encrypted[DIGEST:], self._store_id + name, out[:size])
        except InvalidTag:
            raise ValueError("decryption failed") from None
        return size

    def _key_of(self, name: bytes, salt: bytes) -> bytes:
        return blake3(salt + name, key=self._encryption_key).digest(KEY_SIZE)

    def _checksum(self, name: bytes, content: bytes | memoryview) -> bytes:
        hasher = blake3(name, key=self._encryption_key)
        hasher.update(content)
        return hasher.digest(TAG)
