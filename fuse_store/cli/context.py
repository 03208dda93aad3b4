# SPDX-License-Identifier: GPL-3.0-or-later
"""What a verb works with: its options, the store, and functions that print results, remarks and warnings. One for each command;
for the main thread.

Results go to standard output, as text or as one JSON object; everything else goes to standard error.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from argparse import Namespace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fuse_store.cli.output import print_json, print_result
from fuse_store.cli.parser import PROGRAM
from fuse_store.cli.text import count, printable
from fuse_store.errors import Damaged, Locked, StoreError, UsageError
from fuse_store.progress import Progress, Silent, Terminal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from fuse_store.repository.manifest import Summary
    from fuse_store.store import Store

WAIT_INTERVAL = (0.2, 1.0)  # seconds between two attempts to get the lock, at random: others wait as well
CLOCK_TOLERANCE = timedelta(minutes=5)  # clocks of machines differ
GC_HINT = f"Run '{PROGRAM} gc' to reclaim disk space."


class Context:
    """``json`` and ``quiet`` are the options of that name; ``progress`` is silent unless standard error is a terminal. ``done`` is a
    sentence on what the command has changed, for an error or Ctrl-C that comes after it."""

    done = ""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.json: bool = options.json
        self.quiet: bool = options.quiet
        self._waits = False
        self._soon = datetime.now(UTC) + CLOCK_TOLERANCE
        self.progress: Progress = Terminal() if sys.stderr.isatty() and not options.quiet else Silent()

    def note_done(self, text: str) -> None:
        """Have ``done`` say so."""
        self.done = text

    @property
    def store_named(self) -> bool:
        """Whether --store or $FUSE_STORE names a store."""
        return bool(self.options.store or os.environ.get("FUSE_STORE"))

    @property
    def store_location(self) -> str:
        """Directory or URL of the store. Raises UsageError if none is named."""
        location = self.options.store or os.environ.get("FUSE_STORE")
        if not location:
            raise UsageError("store", "no store specified.", "Use --store DIR or --store s3://BUCKET/PREFIX, or set FUSE_STORE.")
        return str(location)

    @property
    def key_file(self) -> str | None:
        return self.options.key_file or os.environ.get("FUSE_STORE_KEY_FILE") or None

    @property
    def unencrypted(self) -> bool:
        """Whether --unencrypted or $FUSE_STORE_UNENCRYPTED says that the store is meant to have no encryption."""
        return self.options.unencrypted or os.environ.get("FUSE_STORE_UNENCRYPTED") == "1"

    def open_store(self) -> Store:
        """The store, a context manager. Raises StoreError."""
        from fuse_store.store import Store

        store = Store.open(self.store_location, key_file=self.options.key_file, unencrypted=self.options.unencrypted)
        store.wait = self.wait
        return store

    def wait(self, locked: Locked, waited: float) -> bool:
        """``Store.wait``, as --wait says."""
        limit = self.options.wait
        if limit is None or waited >= limit:
            return False
        if not self._waits:
            self._waits = True
            self.remark(f"Waiting: {locked.thing} is {locked.cause}")
            self.progress.start("waiting", None if limit == math.inf else int(limit), unit="seconds")
        self.progress.at(int(waited))
        time.sleep(min(random.uniform(*WAIT_INTERVAL), limit - waited))
        return True

    def versions(self, store: Store, machine: str | None = None, application: str | None = None) -> Iterator[Summary]:
        """The versions of the store, or of a machine, an application; one machine is in memory at a time. Warns at the end of
        manifests that can't be read, and of times in the future."""
        unreadable: dict[str, Damaged] = {}
        ahead = 0
        for version in store.versions.each(machine, application, unreadable):
            ahead += version.taken > self._soon
            yield version
        self.warn_of_unreadable(unreadable)
        if ahead:
            self.warn(f"{count(ahead, 'version')} taken in the future: a clock was wrong, or is. Versions are listed as they were stored.")

    def find(self, store: Store, reference: str) -> Summary:
        """``Store.find``. Warns of manifests that can't be read: the newest version may be one of them. Raises NotFound, UsageError,
        Damaged."""
        unreadable: dict[str, Damaged] = {}
        version = store.find(reference, unreadable)
        self.warn_of_unreadable(unreadable)
        return version

    def warn_of_unreadable(self, unreadable: Collection[str]) -> None:
        if unreadable:
            examples = ", ".join(sorted(unreadable)[:3])
            self.warn(
                f"not shown: {count(len(unreadable), 'version')} with an unreadable manifest ({examples}). Run '{PROGRAM} verify'."
            )

    def record(self, store: Store, ids: Sequence[str], state: str, detail: str = "", *, after: int = 0, **fields: str) -> bool:
        """Append a state of versions to the state log. False, with a remark, if that fails: the store may be read-only or locked."""
        try:
            store.record(ids, state, detail, after=after, **fields)
        except StoreError as error:
            self.remark(f"Not recorded as {state}: {error}")
            return False
        return True

    def emit(self, record: dict[str, Any], text: str) -> None:
        """Print the result: ``record`` with --json, else ``text``. An iterator in ``record`` is printed item by item, as a list."""
        if self.json:
            print_json(record)
        elif text:
            print_result(text)

    def remark(self, text: str) -> None:
        """Print additional information; not with --quiet or --json."""
        if not self.quiet and not self.json:
            print(printable(text), file=sys.stderr)

    def complain(self, text: str) -> None:
        """Print one of several problems; not with --json, where the result has it."""
        if not self.json:
            print(f"{PROGRAM}: {printable(text)}", file=sys.stderr)

    def warn(self, text: str) -> None:
        """Print a warning, with --json as an object."""
        self.progress.finish()
        print(json.dumps({"warning": text}) if self.json else f"{PROGRAM}: warning: {printable(text)}", file=sys.stderr)
