# SPDX-License-Identifier: GPL-3.0-or-later
"""The resume history of a version, from the entries of its state log; a log of any other form counts as lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest

from fuse_store.errors import NotFound
from fuse_store.hibernation.history import DISARMED, checksum_was_right, resume_history, staged_on
from fuse_store.image.kind import RIGHT
from fuse_store.repository.state_log import StateEntry
from fuse_store.store import Label, Store

SECOND = 10**9  # ns


def entry(state: str, at: int = 0, **fields: str) -> StateEntry:
    return {"state": state, "time": at * SECOND, "detail": "", "fields": fields}


ARMED = "armed 1970-01-01 00:00:07 UTC on /dev/a;b and may have been resumed since"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], ""),
        ([entry("staged", device="/dev/a;b")], ""),
        ([entry("armed", 7, device="/dev/a;b")], ARMED),
        ([entry("armed", 7, device="/dev/a;b"), entry("verified")], ARMED),
        ([entry("armed", 7, device="/dev/a;b"), entry("staged", device=DISARMED)], ARMED),
        ([entry("armed", 7, device="/dev/a;b"), entry("staged", device="/dev/a;b", action=DISARMED)], ""),
        ([entry("armed", 7, device="/dev/a;b"), entry("failed")], ""),
        ([entry("armed", 7, device="/dev/a;b"), entry("resumed", 61)], "resumed (recorded 1970-01-01 00:01:01 UTC)"),
        ([entry("resumed", 61), entry("armed", 99), entry("failed")], "resumed (recorded 1970-01-01 00:01:01 UTC)"),
    ],
)
def test_resume_history(entries: list[StateEntry], expected: str) -> None:
    assert resume_history(entries) == expected


def test_checksum() -> None:
    assert checksum_was_right([entry("verified", checksum=RIGHT), entry("staged")])
    assert not checksum_was_right([entry("verified"), entry("staged", checksum=RIGHT)])
    assert not checksum_was_right([{**entry("verified"), "detail": "checksum right"}])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "store", durability="none", key_file=tmp_path / "key")
    (tmp_path / "image").write_bytes(b"x" * 4096)
    return store


def put(store: Store) -> str:
    return store.put(str(store.path.parent / "image"), Label("m", kind="file")).id


def test_version_that_was_staged_last(store: Store) -> None:
    first, second = put(store), put(store)
    with pytest.raises(NotFound):
        staged_on(store, "/dev/a")
    store.record([first], "staged", device="/dev/a; armed")
    store.record([second], "staged", device="/dev/b")
    store.record([second], "failed", device="/dev/a; armed")
    assert staged_on(store, "/dev/a; armed") == first and staged_on(store, "/dev/b") == second
    with pytest.raises(NotFound):
        staged_on(store, "/dev/a")
    store.record([second], "armed", device="/dev/a; armed")
    assert staged_on(store, "/dev/a; armed") == second
    store.remove([second])
    assert staged_on(store, "/dev/a; armed") == first


@pytest.mark.parametrize(
    "change",
    [
        {"state": "gone"}, {"state": None}, {"time": "1"}, {"time": 1.5}, {"detail": b"x"}, {"fields": None}, {"fields": ["device"]},
        {"fields": {"device": 1}}, {"fields": {b"device": "x"}},
    ],
)  # fmt: skip
def test_entries_of_another_form_are_no_log(store: Store, change: dict[str, Any]) -> None:
    image_id, log = put(store), store.state_log
    whole = entry("armed", 1, device="/dev/a")
    for entries, read in (([whole], [whole]), ([whole, {**whole, **change}], []), ([7], []), (7, [])):
        content = log._aead.encrypt(log._name(image_id), msgpack.packb(entries))
        store.backend.write(f"states/{image_id}.log", content, False)
        assert log.entries(image_id) == read
