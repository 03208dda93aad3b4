# SPDX-License-Identifier: GPL-3.0-or-later
"""What was once found inside of images, so that the next run need not unpack them again.

Used by the initramfs classes. An entry counts only for exactly the file that was looked at: size, inode, and times in
nanoseconds, the time of change included, which nobody can set back. Anything else in the file counts as nothing known.
"""

from __future__ import annotations

import json
import os

FOLDER = "/var/lib/nvm-fastboot"
PATH = FOLDER + "/initramfs.json"


class Verified:
    """The images known to hold what resume needs. C(known) maps a path to {stat, resume, modules}."""

    def __init__(self, host):
        self.host = host
        self.known = self._load()
        self._stored = json.dumps(self.known, sort_keys=True)

    def holds(self, image, resume, modules):
        """Whether C(image) was looked into and held the settings for C(resume) and every one of C(modules)."""
        entry = self.known.get(image)
        return (
            entry is not None
            and entry["stat"] is not None
            and entry["stat"] == self._stat(image)
            and entry["resume"] == resume
            and set(modules) <= set(entry["modules"])
        )

    def learn(self, image, resume, modules):
        self.known[image] = {"stat": self._stat(image), "resume": resume, "modules": sorted(modules)}

    def expect(self, image):
        """Note that C(image) may hold something of ours, whatever it is."""
        self.known[image] = {"stat": None, "resume": None, "modules": []}

    def forget(self, image):
        self.known.pop(image, None)

    def store(self):
        """Write what changed; with nothing left to know the file goes, and the folder with it if it is empty."""
        now = json.dumps(self.known, sort_keys=True)
        if now == self._stored:
            return
        if self.known:
            self.host.replace(PATH, json.dumps({"version": 1, "images": self.known}, sort_keys=True) + "\n", mode=0o600)
        elif self.host.remove(PATH):
            try:
                os.rmdir(self.host.path(FOLDER))
            except OSError:
                pass  # not empty
        self._stored = now

    def _load(self):
        try:
            images = json.loads(self.host.read(PATH) or "{}").get("images", {})
            return {
                path: {"stat": entry["stat"], "resume": entry["resume"], "modules": list(entry["modules"])}
                for path, entry in images.items()
            }
        except (ValueError, AttributeError, KeyError, TypeError):
            return {}

    def _stat(self, image):
        try:
            status = os.stat(self.host.path(image))
        except OSError:
            return None
        return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
