# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel command lines in files that no other file generates, which are therefore changed in place.

A record keeps what such a file held before, what was written, and the arguments of each purpose. So removing the last purpose brings the
file back byte for byte. If the file was changed since, only our words are taken out of it. Pure functions, but for C(Record).
"""

from __future__ import annotations

import contextlib
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.base import matches
from ansible_collections.nvm.fastboot.plugins.module_utils._core import records

RECORD = "command-lines"
WORD = re.compile(r'(\s*)((?:"[^"]*"?|[^\s"])+)')  # lib/cmdline.c, next_arg(): white space within quotes is part of a word


def words_of(line):
    """The words of a kernel command line, as the kernel takes them."""
    return [word.strip('"') if word.startswith('"') else word for _gap, word in WORD.findall(line)]


def running(host):
    """The command line of the running kernel, without what its loader added."""
    words = host.read("/proc/cmdline", "").split()
    return " ".join(word for word in words if word.split("=", 1)[0] not in ("BOOT_IMAGE", "initrd"))


def slashes(path):
    """A path as loaders write it, which may have backslashes, with slashes, and one at its start."""
    return "/" + re.sub(r"[\\/]+", "/", path).lstrip("/")


def changed(line, arguments, drop):
    """The command line C(line) with C(arguments) at its end, without what C(drop) names before them (Bootloader.set)."""
    body = line.rstrip()
    kept = "".join(gap + word for gap, word in WORD.findall(body) if not matches(word.replace('"', ""), drop))
    if not re.match(r"\s", body):
        kept = kept.lstrip()
    joined = " ".join(([kept] if kept.strip() else []) + list(arguments))
    return joined + line[len(body):]


def rewritten(text, lines, purposes):
    """C(text) whose command lines have the arguments of C(purposes), as in a record.

    C(lines) is a list of command lines, each a list of C((start, end)) in the text, which are one line to the bootloader; arguments go
    to the end of the last one.
    """
    arguments = [word for each in purposes.values() for word in each["arguments"]]
    drop = [word for each in purposes.values() for word in each["drop"]]
    parts = [(span, arguments if span == line[-1] else []) for line in lines for span in line]
    for (start, end), more in sorted(parts, reverse=True):
        text = text[:start] + changed(text[start:end], more, arguments + drop) + text[end:]
    return text


def follows(text, lines, purposes, earlier):
    """Whether each command line of C(text) has the arguments of C(purposes), nothing else that these drop, and none of the purposes
    C(earlier). As rewritten."""
    arguments = [word for each in purposes.values() for word in each["arguments"]]
    names = arguments + [word for each in purposes.values() for word in each["drop"]]
    names += [word for each in earlier.values() for word in each["arguments"]]
    found = [[word for start, end in line for word in words_of(text[start:end]) if matches(word, names)] for line in lines]
    return bool(lines) and all(words == arguments for words in found)


class Files:
    """Where command lines are: in files of one Host. A subclass may keep some of them elsewhere, under a path that names the place."""

    def __init__(self, host):
        self.host = host

    def read(self, path):
        """The text, or None if it is not there."""
        return self.host.read(path)

    def write(self, tx, path, text):
        """As Transaction.write."""
        return tx.write(path, text)


class Record:
    """What was changed in which file of the bootloader C(name) on one Host: C({path: {bootloader, before, after, purposes}}), where
    C(purposes) is C({purpose: {arguments, drop}}) and C(before) None for a file that was not there."""

    def __init__(self, host, name, texts=None):
        """C(texts): the Files with the command lines, if they are not all in files."""
        self.host = host
        self.name = name
        self.texts = texts or Files(host)
        self.files = self._load()

    def purposes(self, path):
        return dict(self.files.get(path, {}).get("purposes", {}))

    def owned(self, purpose):
        """The arguments for C(purpose), or None if no file has any."""
        found = [each["purposes"][purpose]["arguments"] for each in self.files.values() if purpose in each["purposes"]]
        return found[0] if found else None

    def set(self, tx, path, lines_of, purpose, change, missing=""):
        """Have the command lines of C(path) follow C(change), C({arguments, drop}), for C(purpose); None removes the purpose.

        C(lines_of(text)) finds them (see rewritten). A file that is not there begins as C(missing). Returns whether the file changes.
        """
        current = self.texts.read(path)
        before, purposes = self._base(path, current, lines_of), self.purposes(path)
        if change is None:
            purposes.pop(purpose, None)
        else:
            purposes[purpose] = change
        if purposes and current is not None and follows(current, lines_of(current), purposes, self.purposes(path)):
            after = current  # a tool may have written it from settings of ours, and another argument behind them
        elif purposes:
            text = missing if before is None else before
            after = rewritten(text, lines_of(text), purposes)
        else:
            after = before
        entry = {"bootloader": self.name, "before": before, "after": after, "purposes": purposes} if purposes else None
        if entry and before is None:
            entry["missing"] = missing
        if entry and not tx.check_mode:
            self._keep(tx, path, entry)  # first, so that an interrupted run leaves no word that is not in the record
        different = self.texts.write(tx, path, after)
        if not entry and not tx.check_mode:
            self._keep(tx, path, None)
        return different

    @contextlib.contextmanager
    def lent(self, path, text):
        """Have C(text) in the file C(path), which is not there, for a while. If this is interrupted, the next change removes it."""
        old = self.files
        self._store({**old, path: {"bootloader": self.name, "before": None, "after": text, "purposes": {}}})
        try:
            self.host.replace(path, text)
            yield
        finally:
            self.host.remove(path)
            self._store(old)

    def forget_missing(self, tx):
        """Remove what is known of files that are gone."""
        for path in [path for path in self.files if not self.host.exists(path)]:
            if not tx.check_mode:
                self._keep(tx, path, None)

    def _base(self, path, current, lines_of):
        """What C(path) held before any purpose, or would hold now if there were none."""
        known = self.files.get(path)
        if known is None:
            return current
        if current == known["after"]:
            return known["before"]
        if current is None:
            return None
        ours = [word for each in known["purposes"].values() for word in each["arguments"]]
        return rewritten(current, lines_of(current), {"": {"arguments": [], "drop": ours}})

    def _keep(self, tx, path, entry):
        old = dict(self.files)
        self.files = {name: each for name, each in old.items() if name != path}
        if entry:
            self.files[path] = entry
        if self.files != old:
            tx.on_failure(lambda: self._store(old))
            self._store(self.files)

    def _store(self, files):
        self.files = files
        others = {path: each for path, each in records.load(self.host, RECORD).items()
                  if isinstance(each, dict) and each.get("bootloader") not in (None, self.name)}
        records.store(self.host, RECORD, {**others, **files})

    def _load(self):
        """What cannot be parsed counts as not known: our words are then found in the files, and taken out by their names."""
        try:
            return {path: each for path, each in records.load(self.host, RECORD).items()
                    if each["bootloader"] == self.name and isinstance(each["after"], str) and isinstance(each["purposes"], dict)
                    and isinstance(each["before"], (str, type(None)))}
        except (TypeError, KeyError):
            return {}
