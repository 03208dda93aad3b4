# SPDX-License-Identifier: GPL-3.0-or-later
"""Bootloaders whose configuration people or several tools write: no command generates it, so its command lines are changed in place.

Subclasses say where the command lines are, and what the entries are. See command_lines for what is recorded and undone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Callable

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders import command_lines
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import Bootloader
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.other_systems import System


@dataclass(frozen=True)
class Place:
    """A file with command lines of this system. C(lines(text)) is a list of them, as for command_lines.rewritten; C(missing) is the text
    that it starts as where it is not there yet."""

    path: str
    lines: Callable
    missing: str = ""


class InPlace(Bootloader):
    """See Bootloader. C(configuration) is the main file."""

    configuration = ""
    texts = command_lines.Files  # how the command lines are read and written
    recorded = ""  # the name in the record, if it is another one

    def __init__(self, host):
        self.host = host
        self._system = System(host)
        self._texts = self.texts(host)
        self._record = command_lines.Record(host, self.recorded or self.name, self._texts)
        self._without: dict = {}  # path: its command lines after forget

    def places(self):
        """The Places, the files that the next boot reads first."""
        raise NotImplementedError

    @classmethod
    def find_for_removal(cls, host):
        found = cls.find(host)
        return cls(host) if found is None and command_lines.Record(host, cls.recorded or cls.name).files else found

    @classmethod
    def remains(cls, host, purpose, leftovers=()):
        files = command_lines.Record(host, cls.recorded or cls.name).files
        return [path for path, each in files.items() if purpose in each["purposes"] and host.exists(path)]

    def owned(self, purpose):
        return self._record.owned(purpose)

    def set(self, tx, purpose, arguments, drop=()):
        change = {"arguments": list(arguments), "drop": list(drop)}
        return self._change(tx, purpose, change)

    def unset(self, tx, purpose):
        return self._change(tx, purpose, None)

    def _change(self, tx, purpose, change):
        self._record.forget_missing(tx)
        changed = [self._record.set(tx, place.path, place.lines, purpose, change, place.missing) for place in self.places()]
        return any(changed)

    def forget(self, tx, purpose, leftovers=()):
        changed = self.unset(tx, purpose)
        for place in self.places() if self._left_over(leftovers) else []:
            text = self._texts.read(place.path)
            if text is not None:
                words = {"arguments": [], "drop": list(leftovers)}
                changed = self._texts.write(tx, place.path, command_lines.rewritten(text, place.lines(text), {"": words})) or changed
        if changed:
            self.regenerate(tx)
        self._without = {place.path: self._lines(place) for place in self.places()}
        return changed

    def after_hooks(self, tx):
        for place in self.places():
            now, before = self._lines(place), self._without.get(place.path, [])
            if now == before or [len(line) for line in now] != [len(line) for line in before]:
                continue
            text = self._text(place)
            parts = zip([span for line in place.lines(text) for span in line], [part for line in before for part in line])
            for (start, end), part in sorted(parts, reverse=True):
                text = text[:start] + part + text[end:]
            self._texts.write(tx, place.path, text)

    def _text(self, place):
        return self._texts.read(place.path) or ""

    def _lines(self, place):
        """The text of each command line in a Place."""
        text = self._text(place)
        return [[text[start:end] for start, end in line] for line in place.lines(text)]

    def regenerate(self, tx):
        """Nothing is generated. The files are flushed, because a bootloader does not replay a journal."""
        if not tx.check_mode:
            for directory in dict.fromkeys(os.path.dirname(place.path) for place in self.places() if self.host.exists(place.path)):
                self.host.flush_filesystem(directory)

    def find_setting(self, words):
        """Also in lines that were there before; what our purposes pass does not count."""
        for place in self.places():
            text = self._text(place)
            ours = {word for each in self._record.purposes(place.path).values() for word in each["arguments"]}
            spans = [span for line in place.lines(text) for span in line]
            for word in [word for start, end in spans for word in command_lines.words_of(text[start:end])]:
                if word in words and word not in ours:
                    return place.path, word
        return None

    def _left_over(self, words):
        """Whether an entry has one of C(words). Whose it is cannot be told; the device that it names is given up."""
        return any(set(words) & set(entry.arguments) for entry in self.entries())

    def find_initrdless(self):
        return None  # an entry says itself what it loads
