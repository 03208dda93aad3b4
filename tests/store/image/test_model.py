# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole store against a model of it, a dict: whatever is done in whatever order, both have the same versions.

A failing example prints the steps; they are plain calls that can be pasted into a test.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from fuse_store.errors import NotFound, StoreError
from fuse_store.image import restore
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import repair
from fuse_store.maintenance.verify import verify
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
from tests.store.conftest import PAGE, make_small, packs_of, page, write_sparse

pytestmark = pytest.mark.long

PAGES = [page(number) for number in range(24)]  # few: so that versions have much in common
RUN = st.tuples(st.integers(0, len(PAGES) - 1), st.integers(1, 40), st.booleans())
CUT = st.sampled_from([0, 0, 1, 4095, PAGE // 2])


def image_of(runs: list[tuple[int, int, bool]], cut: int) -> bytes:
    """Runs of pages: of consecutive ones, or of one page again and again."""
    parts = [PAGES[(first + step * number) % len(PAGES)] for first, count, step in runs for number in range(count)]
    whole = b"".join(parts)
    return whole[: len(whole) - cut] if len(whole) > cut else b"x" * cut


class Machine(RuleBasedStateMachine):
    """``model`` has what each version must read as; ``indexed`` is false from the loss of a fragment to the next repair."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="model"))
        self.model: dict[str, tuple[str, bytes]] = {}
        self.indexed = True
        self.store: Store | None = None

    @rule(page_size=st.sampled_from([4096, 16384, 65536]), encryption=st.booleans(), compression=st.sampled_from(["zstd", "lz4", "none"]))
    @precondition(lambda self: self.store is None)
    def create(self, **options: Any) -> None:
        self.store = Store.create(self.folder / "store", key_file=self.folder / "key", durability="none", **options)

    def opened(self) -> Store:
        assert self.store is not None
        return self.store

    def teardown(self) -> None:
        if self.store is not None:
            self.reopen_store()
            repair(self.store, SILENT)
            for image_id, (_machine, data) in self.model.items():
                self.compare(image_id, 0, len(data) + 1)
            assert all(verdict.state == "sound" for verdict in verify(self.store, list(self.model), 100, SILENT))
            self.store.close()
        shutil.rmtree(self.folder)

    def reopen_store(self) -> None:
        self.opened().close()
        self.store = Store.open(self.folder / "store", key_file=self.folder / "key")

    def compare(self, image_id: str, at: int, length: int) -> None:
        data = self.model[image_id][1]
        assert self.opened().open_image(image_id).read(at, length) == data[at : at + length]

    def put(self, machine: str, data: bytes, **options: Any) -> None:
        earlier = [image_id for image_id, (owner, _data) in self.model.items() if owner == machine]
        made = self.opened().put(str(write_sparse(self.folder / "source", data)), Label(machine), **options)
        assert made.id not in self.model and made.size == len(data)
        self.model[made.id] = (machine, data)
        if options.get("replace") and earlier:
            del self.model[earlier[-1]]

    @rule(machine=st.sampled_from("ab"), runs=st.lists(RUN, max_size=4), cut=CUT, replace=st.booleans())
    @precondition(lambda self: self.store is not None)
    def put_new(self, machine: str, runs: list[tuple[int, int, bool]], cut: int, replace: bool) -> None:
        self.put(machine, image_of(runs, cut), replace=replace)

    @rule(choice=st.randoms(use_true_random=False), shift=st.integers(0, 9), fresh=st.integers(0, len(PAGES) - 1))
    @precondition(lambda self: self.model)
    def put_next(self, choice: Any, shift: int, fresh: int) -> None:
        """A version much like an earlier one: shifted by some pages, one page otherwise, with any versions as bases."""
        _machine, data = self.model[choice.choice(list(self.model))]
        at = choice.randrange(len(data) // PAGE + 1) * PAGE
        bases = choice.sample(list(self.model), min(len(self.model), choice.randrange(3)))
        self.put("a", PAGES[fresh] * shift + data[:at] + PAGES[fresh] + data[at + PAGE :], bases=bases)

    @rule(size=st.sampled_from([0, 1, 4095, 4096, 4097, 65535, 65536, 65537]), fill=st.sampled_from([b"\0", b"x"]))
    @precondition(lambda self: self.store is not None)
    def put_size(self, size: int, fill: bytes) -> None:
        self.put("b", fill * size)

    @rule(choice=st.randoms(use_true_random=False))
    @precondition(lambda self: self.model)
    def remove(self, choice: Any) -> None:
        gone = choice.sample(list(self.model), choice.randrange(1, 3) if len(self.model) > 1 else 1)
        self.opened().remove(gone)
        for image_id in gone:
            del self.model[image_id]
            with pytest.raises(NotFound):
                self.opened().open_image(image_id)

    @rule(grace=st.sampled_from([0.0, 3600.0]))
    @precondition(lambda self: self.store is not None)
    def collect(self, grace: float) -> None:
        try:
            collect(self.opened(), dry_run=False, progress=SILENT, grace=grace)
        except StoreError as error:
            assert not self.indexed and "Nothing was freed" in str(error)
            return
        if not self.model:
            assert packs_of(self.folder / "store") == set()

    @rule()
    @precondition(lambda self: self.store is not None)
    def repair(self) -> None:
        done = repair(self.opened(), SILENT)
        assert not done.lost and not done.packs_bad
        self.indexed = True

    @rule(which=st.integers(0, 5))
    @precondition(lambda self: self.model)
    def lose_index(self, which: int) -> None:
        fragments = sorted((self.folder / "store" / "index").iterdir(), key=os.path.getmtime)
        for path in fragments if which == 0 else fragments[which - 1 : which]:
            path.unlink()
            self.indexed = False

    @rule()
    @precondition(lambda self: self.store is not None)
    def reopen(self) -> None:
        self.reopen_store()

    @rule(choice=st.randoms(use_true_random=False), at=st.integers(0, 400_000), length=st.integers(0, 100_000))
    @precondition(lambda self: self.model and self.indexed)
    def read(self, choice: Any, at: int, length: int) -> None:
        self.compare(choice.choice(list(self.model)), at, length)

    @rule(choice=st.randoms(use_true_random=False))
    @precondition(lambda self: self.model and self.indexed)
    def get(self, choice: Any) -> None:
        image_id = choice.choice(list(self.model))
        restore.get(self.opened().open_image(image_id), str(self.folder / "got"), SILENT)
        assert (self.folder / "got").read_bytes() == self.model[image_id][1]

    @rule()
    @precondition(lambda self: self.model and self.indexed)
    def verify(self) -> None:
        assert all(not verdict.problems for verdict in verify(self.opened(), list(self.model), 100, SILENT))

    @rule(choice=st.randoms(use_true_random=False))
    @precondition(lambda self: self.model)
    def record(self, choice: Any) -> None:
        image_id = choice.choice(list(self.model))
        self.opened().record([image_id], "verified")
        assert {one.id: one.state for one in self.opened().summaries()}[image_id] == "verified"

    @invariant()
    def both_have_the_same_versions(self) -> None:
        if self.store is None:
            return
        found = {one.id: (one.machine, one.size) for one in self.store.summaries()}
        assert found == {image_id: (machine, len(data)) for image_id, (machine, data) in self.model.items()}
        for machine in "ab":
            own = [image_id for image_id, (owner, _data) in self.model.items() if owner == machine]
            if own:
                assert self.store.find(f"{machine}/system/latest").id == own[-1]
        assert not list((self.folder / "store").rglob("*.partial"))


def test_the_store_is_as_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch, full=8 << 10)
    slow_and_repeatable = settings(
        max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True,
        database=None,
    )  # fmt: skip
    run_state_machine_as_test(Machine, settings=slow_and_repeatable)
