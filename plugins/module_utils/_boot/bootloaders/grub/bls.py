# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of the Boot Loader Specification in GRUB's menu, as GRUB 2.14 takes them from files (grub-core/commands/blsuki.c).

C(blscfg) makes an entry of each file in C(/loader/entries) on the filesystem C($root), or in the directory that it is told; C(uki)
does so with unified kernel images. Their ids are the names of the files, and their order is that of versions, the newest first.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass

DIRECTORIES = {"blscfg": ("/loader/entries", ".conf"), "uki": ("/EFI/Linux", ".efi")}
COMMANDS = tuple(DIRECTORIES)
SUFFIXES = re.compile(r"(\.[A-Za-z~][A-Za-z0-9~]*)*$")
OPTIONS = re.compile(r"(?m)^[ \t]*options[ \t]+(.*?)[ \t]*$")
END = re.compile(r"(?m)^[ \t]*([^\s#]\S*)?[ \t]*$")  # nothing after a line that is empty or a key alone is read


@dataclass(frozen=True)
class Snippet:
    """The file C(path) on this machine, as an entry."""

    path: str
    title: str
    commands: str

    @property
    def name(self):
        return os.path.basename(self.path)

    @property
    def identifier(self):
        return self.name[: -len(".conf")] if self.name.endswith(".conf") else self.name


def directory(words):
    """The directory that the command C(words) is told, with its device; the default without."""
    for at, word in enumerate(words):
        if word.startswith("--path="):
            return word[len("--path="):]
        if word in ("--path", "-p") and at + 1 < len(words):
            return words[at + 1]
    return DIRECTORIES[words[0]][0]


def snippet(path, text):
    """The Snippet of the file C(path) with the content C(text), or None if it starts nothing."""
    if path.endswith(".efi"):
        return Snippet(path, os.path.basename(path), "chainloader %s\n" % path)
    values = keys(text)
    linux = next((value for key, value in values if key == "linux"), None)
    if linux is None:
        return None
    title = next((value for key, value in values if key == "title"), linux)
    options = next((value for key, value in values if key == "options"), "")
    initrds = " ".join(value for key, value in values if key == "initrd")
    return Snippet(path, title, "linux %s %s\n%s" % (linux, options, "initrd %s\n" % initrds if initrds else ""))


def keys(text):
    """The keys of an entry with their values, in their order."""
    lines = (line.split(None, 1) for line in text[: _end(text)].splitlines() if not line.lstrip().startswith("#"))
    return [(words[0], words[1].rstrip()) for words in lines if len(words) == 2]


def options(text):
    """The place of the command line in an entry, as for command_lines.rewritten. GRUB takes the first C(options) alone."""
    match = OPTIONS.search(text, 0, _end(text))
    return [[match.span(1)]] if match else []


def _end(text):
    match = END.search(text)
    return match.start() if match else len(text)


def selected(words, snippets, defaults):
    """Those of C(snippets) that the command C(words) shows. C(defaults) are the possible values of GRUB's C(default)."""
    flags = {word for word in words[1:] if word.startswith("-")}
    shown, hidden = flags & {"-d", "--show-default"}, flags & {"-n", "--show-non-default"}
    named = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-e", "--entry")]
    named += [word[len("--entry="):] for word in words if word.startswith("--entry=")]
    ordered = sorted(snippets, key=lambda each: _ORDER(each.name), reverse=True)
    if not shown and not hidden and not named:
        return ordered
    found = []
    for index, each in enumerate(ordered):
        default = bool({each.name, each.title, str(index)} & set(defaults))
        if (shown and default) or (hidden and (not default or len(defaults) > 1)) or each.name in named:
            found.append(each)
    return found


def _compare(one, other):
    """As filevercmp() of gnulib: by version, without suffixes such as .conf first."""
    return _versions(SUFFIXES.sub("", one), SUFFIXES.sub("", other)) or _versions(one, other)


def _versions(one, other):
    """Less than, equal to or greater than 0, as Debian compares versions: numbers by value, letters before other characters."""
    for left, right in zip(_parts(one, other), _parts(other, one)):
        if left != right:
            return -1 if left < right else 1
    return 0


def _parts(text, other):
    """C(text) as comparable parts, in turn what is no number and a number; as many as the longer of the two texts has."""
    count = max(len(re.findall(r"\d+|\D+", each)) for each in (text, other)) + 2
    parts, rest = [], text
    for at in range(count):
        length = len(rest) - len(rest.lstrip("0123456789")) if at % 2 else len(re.split(r"\d", rest, maxsplit=1)[0])
        part, rest = rest[:length], rest[length:]
        parts.append(int(part or 0) if at % 2 else tuple(_order(each) for each in part) + (0,))
    return parts


def _order(letter):
    if letter == "~":
        return -1
    return ord(letter) + (0 if letter.isalpha() else 256)


_ORDER = functools.cmp_to_key(_compare)
