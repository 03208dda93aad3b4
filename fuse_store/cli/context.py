# SPDX-License-Identifier: GPL-3.0-or-later
"""What a verb gets: its options, the store, and where results, remarks and progress go. Made by ``run``, one per command.

Results go to standard output, for people or as one JSON object; everything else to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from fuse_store.cli.text import printable
from fuse_store.errors import StoreError, UsageError
from fuse_store.progress import Progress, Silent, Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fuse_store.repository.manifest import Summary
    from fuse_store.store import Store


class Context:
    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.json: bool = options.json
        self.quiet: bool = options.quiet
        self.progress: Progress = Terminal() if sys.stderr.isatty() and not options.quiet else Silent()

    @property
    def store_place(self) -> str:
        """Raises UsageError if nobody said which store."""
        named = self.options.store or os.environ.get("FUSE_STORE")
        if not named:
            raise UsageError("store", "none is named.", "Say --store DIR or --store s3://BUCKET/PREFIX, or set FUSE_STORE.")
        return str(named)

    @property
    def key_file(self) -> str | None:
        return self.options.key_file or os.environ.get("FUSE_STORE_KEY_FILE") or None

    def open_store(self) -> Store:
        """The store, a context manager. Raises StoreError."""
        from fuse_store.store import Store

        return Store.open(self.store_place, key_file=self.options.key_file)

    def summaries(self, store: Store) -> list[Summary]:
        """Every version of the store; a remark tells of manifests that can't be read."""
        before = set(store.ids())
        found = store.summaries()
        lost = before - {one.id for one in found}
        if lost and (lost := lost & set(store.ids())):  # else somebody removed them meanwhile
            names = ", ".join(sorted(lost)[:3])
            self.warn(f"{len(lost)} manifests can't be read and are left out ({names}); fuse-store verify tells why")
        return found

    def record(self, store: Store, ids: Sequence[str], state: str, detail: str = "") -> bool:
        """Note in the state log what happened to versions. Whether that worked: the store may be read-only, or in use."""
        try:
            store.record(ids, state, detail)
        except StoreError as error:
            self.remark(f"Not recorded as {state}: {error}")
            return False
        return True

    def emit(self, record: dict[str, Any], text: str) -> None:
        """The result: ``record`` with --json, else ``text``."""
        if self.json:
            print(json.dumps(record, ensure_ascii=True, separators=(",", ":")))
        elif text:
            print(text)

    def remark(self, text: str) -> None:
        """Something worth knowing, for people only."""
        if not self.quiet and not self.json:
            print(printable(text), file=sys.stderr)

    def complain(self, text: str) -> None:
        """A detail of what is wrong, for people; with --json it is in the result."""
        if not self.json:
            print(f"fuse-store: {printable(text)}", file=sys.stderr)

    def warn(self, text: str) -> None:
        """Something that should not be."""
        self.progress.finish()
        print(
            json.dumps({"warning": text}) if self.json else f"fuse-store: warning: {printable(text)}", file=sys.stderr
        )
