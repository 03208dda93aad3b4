# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole store against a model of it, with an adversary at work in between.

Files of the store lose bits, are cut off, vanish, or come back as they were; writers are killed and run into a full disk; the clock
jumps; machines are cloned with their random numbers. What the store still gives out is right, what it cannot give is an error of
its own, and a version that a put has just acknowledged can be read.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fuse_store.errors import StoreError
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.repository.atomic import FAULT_POINT
from fuse_store.store import Label, Store
from tests.store.conftest import fork, make_small, page, read_whole, wait, write_sparse

pytestmark = pytest.mark.long

PAGES = [page(number) for number in range(40)]
KEPT = frozenset({"store.json"})  # without it there is no store; tests of it are elsewhere
NUMBERS = st.lists(st.integers(0, len(PAGES) - 1), min_size=1, max_size=90)
PICK = st.integers(0, 1 << 20)  # not a choice among what there is: names in a store are random, and hypothesis repeats its choices
CLOCK = time.time_ns  # before any test replaces it
DAY = 86_400 * 10**9


class Adversary(RuleBasedStateMachine):
    """``model``: the content of each version by id; ``maybe``: of those that a killed put may have made. ``damaged``: whether the
    adversary has touched a file since the store was known to be whole."""

    patched: pytest.MonkeyPatch

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="adversary"))
        self.model: dict[str, bytes] = {}
        self.maybe: list[bytes] = []
        self.damaged = False
        self.former: dict[str, bytes] = {}  # files as they were, by name
        self.offset = 0
        self.patched.setattr(time, "time_ns", lambda: CLOCK() + self.offset)

    @initialize(encryption=st.booleans(), durability=st.sampled_from(["full", "batch", "none"]))
    def create(self, **options: Any) -> None:
        Store.create(self.path, key_file=self.directory / "key", **options).close()

    def teardown(self) -> None:
        self.patched.setattr(time, "time_ns", CLOCK)
        shutil.rmtree(self.directory)

    @property
    def path(self) -> Path:
        return self.directory / "store"

    def opened(self) -> Store:
        return Store.open(self.path, key_file=self.directory / "key")

    def files(self) -> list[str]:
        paths = (path for path in self.path.rglob("*") if path.is_file() and "locks" not in path.parts)
        return sorted(str(path.relative_to(self.path)) for path in paths if path.name not in KEPT)

    # what users do -----------------------------------------------------------------------------------------------------

    @rule(machine=st.sampled_from("ab"), numbers=NUMBERS, replace=st.booleans())
    def put(self, machine: str, numbers: list[int], replace: bool) -> None:
        data = b"".join(PAGES[number] for number in numbers)
        with self.opened() as store:
            before = set(store.ids())
            try:
                made = store.put(str(write_sparse(self.directory / "source", data)), Label(machine), replace=replace)
            except StoreError:
                assert self.damaged, "a put failed in a store that no one had touched"
                return
            self.model[made.id] = data
            for image_id in before - set(store.ids()):
                assert replace, "a put removed a version"
                self.model.pop(image_id, None)
        with self.opened() as store:
            assert read_whole(store, made.id) == data, "what was acknowledged is not there"

    @rule(which=PICK)
    @precondition(lambda self: self.model)
    def remove(self, which: int) -> None:
        image_id = list(self.model)[which % len(self.model)]
        with self.opened() as store:
            try:
                store.remove([image_id])
            except StoreError:
                assert self.damaged
                return
        del self.model[image_id]

    @rule(work=st.sampled_from(["gc", "repair", "verify"]))
    def maintain(self, work: str) -> None:
        readable = self.readable()
        with self.opened() as store:
            try:
                if work == "gc":
                    collect(store, dry_run=False, progress=SILENT, grace=0)
                elif work == "repair":
                    repair(store, SILENT)
                else:
                    sound = {verdict.id for verdict in verify(store, store.ids(), 100, SILENT) if verdict.state == "sound"}
                    assert sound <= readable, "verify calls a version sound that cannot be read"
            except StoreError:
                assert self.damaged
        assert readable <= self.readable(), f"{work} made versions unreadable"

    # what happens to them ----------------------------------------------------------------------------------------------

    @rule(which=PICK, at=PICK, how=st.sampled_from(["flip", "cut", "lose", "empty", "former"]))
    def touch(self, which: int, at: int, how: str) -> None:
        files = self.files()
        if not files:
            return
        name = files[which % len(files)]
        path = self.path / name
        content = bytearray(path.read_bytes())
        if how == "former":
            name = sorted(self.former or [name])[which % len(self.former or [name])]
            content = bytearray(self.former.get(name, bytes(content)))
            path = self.path / name
            path.parent.mkdir(exist_ok=True, parents=True)
        elif how == "flip" and content:
            content[at % len(content)] ^= 1 << which % 8
        elif how == "cut":
            del content[at % (len(content) + 1) :]
        elif how == "empty":
            content.clear()
        path.unlink(missing_ok=True)
        if how != "lose":
            path.write_bytes(content)
        self.damaged = True

    @rule()
    def remember(self) -> None:
        """The adversary keeps a copy of every file, to bring one back later."""
        self.former.update({name: (self.path / name).read_bytes() for name in self.files()})

    @rule(numbers=NUMBERS, step=st.integers(1, 40))
    def killed(self, numbers: list[int], step: int) -> None:
        """A put is killed at one of its steps."""
        data = b"".join(PAGES[number] for number in numbers)
        self.in_child(data, lambda: os.environ.update({FAULT_POINT: str(step)}))

    @rule(numbers=NUMBERS, size=st.integers(0, 60_000))
    def full(self, numbers: list[int], size: int) -> None:
        """A put cannot write more than so many bytes to a file."""

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        self.in_child(b"".join(PAGES[number] for number in numbers), limit)

    def in_child(self, data: bytes, before: Callable[[], None]) -> None:
        source = write_sparse(self.directory / "source", data)

        def work() -> None:
            before()
            with self.opened() as store:
                try:
                    store.put(str(source), Label("a"))
                except StoreError:
                    pass

        code = wait(fork(work))
        assert code in (0, -signal.SIGKILL), "a put ended with something that is no error of the store"
        self.maybe.append(data)

    @rule(days=st.integers(-400, 400))
    def clock(self, days: int) -> None:
        self.offset += days * DAY

    @rule(numbers=NUMBERS, others=NUMBERS)
    def clones(self, numbers: list[int], others: list[int]) -> None:
        """Two machines that were restored from one image, and have the same random numbers."""
        with pytest.MonkeyPatch.context() as patch:
            for machine, chosen in (("a", numbers), ("b", others)):
                patch.setattr(os, "urandom", random.Random(1).randbytes)
                self.put(machine, chosen, False)

    # what holds --------------------------------------------------------------------------------------------------------

    def readable(self) -> set[str]:
        readable = set()
        with self.opened() as store:
            for image_id, data in self.model.items():
                try:
                    got = read_whole(store, image_id)
                except StoreError:
                    continue
                assert got == data, "wrong bytes"
                readable.add(image_id)
        return readable

    @invariant()
    def nothing_is_wrong(self) -> None:
        if not self.path.exists():
            return
        readable = self.readable()
        assert self.damaged or readable == self.model.keys(), "a version is lost in a store that no one had touched"
        with self.opened() as store:
            for version in store.summaries():
                if version.id not in self.model:
                    self.adopt(store, version.id)

    def adopt(self, store: Store, image_id: str) -> None:
        """A version that a killed put has made after all, or that the adversary brought back."""
        try:
            data = read_whole(store, image_id)
        except StoreError:
            assert self.damaged
            return
        assert self.damaged or data in self.maybe, "a version that was never put"
        self.model[image_id] = data


def test_the_store_withstands_the_adversary(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch, full=24 << 10)
    Adversary.patched = monkeypatch
    steps = int(os.environ.get("ADVERSARY_EXAMPLES", "15"))
    slow = settings(
        max_examples=steps, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), database=None,
        derandomize="ADVERSARY_EXAMPLES" not in os.environ, print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(Adversary, settings=slow)


