# SPDX-License-Identifier: GPL-3.0-or-later
"""Records from what content of its sources a file was built, such as an initramfs.

A record is valid for the same file only: size, inode, and times in nanoseconds. A file without a record counts as built from the present
content if all sources are older: so a new kernel's image is not built twice.
"""

from __future__ import annotations

import hashlib
import os

from ansible_collections.nvm.fastboot.plugins.module_utils._core import records

RECORD = "built"


class Built:
    """What was built from C(sources), paths of files of which some may be missing."""

    def __init__(self, host, sources):
        self.host = host
        self.sources = sorted({path for path in sources if path and host.exists(path)})
        digest = hashlib.sha256()
        for path in self.sources:
            content = host.read_bytes(path, b"")
            digest.update(b"%d %d " % (len(path), len(content)) + path.encode("utf-8", "surrogateescape") + content)
        self.digest = digest.hexdigest() if self.sources else ""
        self._known = self._load()

    def holds(self, path):
        """Whether C(path) was built from the present content of the sources. Without sources: unless it was built from some before."""
        entry = self._known.get(path)
        if entry is not None and entry["digest"] == self.digest and entry["stat"] == self._stat(path):
            return True
        if not self.sources:
            return entry is None
        return entry is None and self._newer(path)

    def is_known(self, path):
        """Whether there is a record of C(path)."""
        return path in self._known

    def learn(self, paths):
        """Record C(paths) as built from the present content; without sources, forget them."""
        known = {path: {"stat": self._stat(path), "digest": self.digest} for path in paths} if self.sources else {}
        if known == self._known:
            return
        self._known = known
        records.store(self.host, RECORD, {"version": 1, "built": known} if known else {})

    def _newer(self, path):
        try:
            built = os.stat(self.host.path(path)).st_mtime_ns
            return all(os.stat(self.host.path(source)).st_ctime_ns < built for source in self.sources)
        except OSError:
            return False

    def _load(self):
        try:
            found = records.load(self.host, RECORD).get("built", {})
            return {path: {"stat": entry["stat"], "digest": entry["digest"]} for path, entry in found.items()}
        except (AttributeError, KeyError, TypeError):
            return {}

    def _stat(self, path):
        try:
            status = os.stat(self.host.path(path))
        except OSError:
            return None
        return [status.st_size, status.st_ino, status.st_mtime_ns]
