# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of verified images, so that the next run need not list their content again.

A record is valid only for the same file: size, inode, and times in nanoseconds, including ctime, which cannot be set. A
file of records that cannot be parsed counts as empty.
"""

from __future__ import annotations

import json
import os

from ansible_collections.nvm.fastboot.plugins.module_utils._core import records

RECORD = "initramfs"
VERSION = 2  # of what is verified: the records of an earlier version say only that an image was built with our settings


class Verified:
    """The images that were verified. C(known) maps a path to C({stat, resume, modules})."""

    def __init__(self, host):
        self.host = host
        self.known = self._load()
        self._stored = json.dumps(self.known, sort_keys=True)

    def holds(self, image, resume, modules, unlocking=()):
        """Whether C(image) was verified with the settings for C(resume), all of C(modules), and C(unlocking) (Unlocking.record)."""
        entry = self.known.get(image)
        return (
            entry is not None
            and entry["stat"] is not None
            and entry["stat"] == self._stat(image)
            and entry["resume"] == resume
            and entry["unlocking"] == list(unlocking)
            and set(modules) <= set(entry["modules"])
        )

    def learn(self, image, resume, modules, unlocking=()):
        self.known[image] = {
            "stat": self._stat(image), "resume": resume, "modules": sorted(modules), "unlocking": list(unlocking)
        }

    def expect(self, image):
        """Record that C(image) may contain settings of ours, without details."""
        self.known[image] = {"stat": None, "resume": None, "modules": [], "unlocking": []}

    def forget(self, image):
        self.known.pop(image, None)

    def store(self):
        """Write the records if they changed."""
        now = json.dumps(self.known, sort_keys=True)
        if now != self._stored:
            records.store(self.host, RECORD, {"version": VERSION, "images": self.known} if self.known else {})
            self._stored = now

    def _load(self):
        found = records.load(self.host, RECORD)
        try:
            images = found.get("images", {})
            current = found.get("version") == VERSION
            return {
                path: {
                    "stat": entry["stat"] if current else None,
                    "resume": entry["resume"],
                    "modules": list(entry["modules"]),
                    "unlocking": list(entry.get("unlocking", ())),
                }
                for path, entry in images.items()
            }
        except (AttributeError, KeyError, TypeError):
            return {}

    def _stat(self, image):
        try:
            status = os.stat(self.host.path(image))
        except OSError:
            return None
        return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
