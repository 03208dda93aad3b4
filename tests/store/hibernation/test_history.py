# SPDX-License-Identifier: GPL-3.0-or-later
"""The resume history of an image, from the entries of its state log; a log of any other form is not known, which is not "never"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest

from fuse_store.errors import NotFound
from fuse_store.hibernation.history import checksum_was_right, newest_on, resume_history, staged_on
from fuse_store.image.kind import RIGHT
from fuse_store.repository.state_log import DISARMED, Log, StateEntry, on_devices, usage
from fuse_store.store import Label, Store
from tests.store.conftest import entries_of, state_of

SECOND = 10**9  # ns
ONE, TWO = "1" * 32, "2" * 32


def entry(state: str, at: int = 0, image: str = ONE, /, **fields: str) -> StateEntry:
    return {"state": state, "time": at * SECOND, "image": image, "detail": "", "fields": fields}


ARMED = "armed 1970-01-01 00:00:07 UTC on /dev/a;b and may have been resumed since"
ON_C = "armed 1970-01-01 00:00:08 UTC on /dev/c and may have been resumed since"
RESUMED = "resumed (recorded 1970-01-01 00:01:01 UTC)"
A, C = {"device": "/dev/a;b"}, {"device": "/dev/c"}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], ""),
        ([entry("staged", **A)], ""),
        ([entry("armed", 7, **A)], ARMED),
        ([entry("armed", 7, **A), entry("verified")], ARMED),
        ([entry("armed", 7, **A), entry("staged", device=DISARMED)], ARMED),
        ([entry("armed", 7, **A), entry("staged", **A)], ARMED),
        ([entry("armed", 7, **A), entry("staged", **A, action=DISARMED)], ""),
        ([entry("armed", 7, **A), entry("staged", **C, action=DISARMED)], ARMED),
        ([entry("armed", 7, **A), entry("failed")], ""),
        ([entry("armed", 7, **A), entry("failed", **A)], ""),
        ([entry("armed", 7, **A), entry("failed", **C)], ARMED),
        ([entry("armed", 7, **A), entry("resumed", 61)], RESUMED),
        ([entry("resumed", 61), entry("armed", 99), entry("failed")], RESUMED),
        ([entry("armed", 7, **A), entry("armed", 8, **C)], f"{ARMED}; {ON_C}"),
        ([entry("armed", 7, **A), entry("armed", 8, **C), entry("failed", **A)], ON_C),
        ([entry("armed", 7, **A), entry("armed", 8, **C), entry("resumed", 61, **A)], ON_C),
        ([entry("armed", 7, **A), entry("armed", 8, **C), entry("resumed", 61, **A), entry("failed", **C)], RESUMED),
    ],
)
def test_resume_history(entries: list[StateEntry], expected: str) -> None:
    assert resume_history(usage(entries)) == expected


@pytest.mark.parametrize(
    ("entries", "state"),
    [
        ([], "captured"),
        ([entry("verified")], "verified"),
        ([entry("verified", 0, TWO)], "captured"),
        ([entry("staged", **A), entry("verified")], "staged"),
        ([entry("staged", 0, TWO, **A)], "staged"),
        ([entry("unknown")], "unknown"),
        ([entry("unknown"), entry("verified")], "unknown"),
        ([entry("unknown"), entry("staged", **A)], "unknown"),
        ([entry("unknown"), entry("armed", **A)], "armed"),
        ([entry("unknown"), entry("failed")], "failed"),
        ([entry("unknown"), entry("resumed")], "resumed"),
        ([entry("armed", **A), entry("armed", **C), entry("failed", **A)], "armed"),
        ([entry("armed", **A), entry("armed", **C), entry("staged", **A, action=DISARMED)], "armed"),
        ([entry("armed", **A), entry("staged", **A, action=DISARMED)], "staged"),
    ],
)
def test_state(entries: list[StateEntry], state: str) -> None:
    assert Log((entry("captured"), *entries)).state(ONE) == state
    assert Log(tuple(entries)).state(ONE) == Log((entry("captured", 0, TWO), *entries)).state(ONE) == "unknown"
    assert Log(problem="is missing").state(ONE) == "unknown"


def test_on_devices() -> None:
    """The last one on each device, until it is told how it went."""
    first = Log((entry("captured"), entry("staged", 1, **A), entry("armed", 2, **A), entry("staged", 3, **C)))
    second = Log((entry("captured", 0, TWO), entry("staged", 4, TWO, **C)))
    assert on_devices([first]) == {ONE: "armed"}
    assert on_devices([first, second]) == on_devices([second, first]) == {ONE: "armed", TWO: "staged"}
    for ended in (entry("failed", 5, **A), entry("resumed", 5, **A)):
        assert on_devices([Log((*first.entries, ended)), second]) == {TWO: "staged"}
    assert on_devices([Log((*first.entries, entry("failed", 5)))]) == {}
    assert on_devices([Log((*first.entries, entry("staged", 5, **A, action=DISARMED)))]) == {ONE: "staged"}


def test_checksum() -> None:
    assert checksum_was_right([entry("verified", checksum=RIGHT), entry("staged")])
    assert not checksum_was_right([entry("verified"), entry("staged", checksum=RIGHT)])
    assert not checksum_was_right([{**entry("verified"), "detail": "checksum right"}])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", durability="none", key_file=tmp_path / "key")


def put(store: Store, page: bytes = b"x") -> str:
    source = store.path.parent / "image"
    source.write_bytes(page * 4096)
    return store.put(str(source), Label("m", kind="file")).id


def test_version_that_was_staged_last(store: Store) -> None:
    first, second = put(store), put(store, b"y")
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
    store.remove([second], force=True)
    assert staged_on(store, "/dev/a; armed") == first


def test_the_order_on_a_device_is_not_that_of_the_clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one was staged while the clock was years ahead."""
    first, second = put(store), put(store, b"y")
    with monkeypatch.context() as patch:
        patch.setattr("time.time_ns", lambda: 4 * 10**18)
        store.record([first], "staged", device="/dev/a")
    store.record([second], "staged", after=newest_on(store, "/dev/a"), device="/dev/a")
    assert staged_on(store, "/dev/a") == second
    contents = [store.open_image(image_id).head.content for image_id in (first, second)]
    assert store.staged(contents) == {second: "staged"}


@pytest.mark.parametrize(
    "change",
    [
        {"state": "gone"}, {"state": None}, {"time": "1"}, {"time": 1.5}, {"image": b"x"}, {"image": None}, {"detail": b"x"},
        {"fields": None}, {"fields": ["device"]}, {"fields": {"device": 1}}, {"fields": {b"device": "x"}},
    ],
)  # fmt: skip
def test_entries_of_another_form_are_no_log(store: Store, change: dict[str, Any]) -> None:
    image_id, log = put(store), store.state_log
    content = store.open_image(image_id).head.content
    whole = entry("armed", 1, device="/dev/a")
    for entries in ([whole, {**whole, **change}], [7], 7, {"x": 1}):
        stored = store.aead.encrypt(b"state" + content, msgpack.packb(entries))
        store.backend.write(f"states/{content.hex()[:2]}/{content.hex()}.log", stored, False)
        assert log.read(content).problem == "is damaged" and state_of(store, image_id) == "unknown"
    stored = store.aead.encrypt(b"state" + content, msgpack.packb([entry("captured", 0, image_id), whole]))
    store.backend.write(f"states/{content.hex()[:2]}/{content.hex()}.log", stored, False)
    assert entries_of(store, image_id)[1:] == [whole] and state_of(store, image_id) == "armed"
