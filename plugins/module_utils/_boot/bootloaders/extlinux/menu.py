# SPDX-License-Identifier: GPL-3.0-or-later
"""The menu in C(extlinux.conf), as Syslinux (com32/menu/readconfig.c) and U-Boot (boot/pxe_utils.c) read it.

A line is a keyword, in any case, and its value. Files that others include belong to the menu. Paths start at the root of the filesystem
with the file, or at the directory of the file. What is not understood is left out.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.command_lines import words_of
from ansible_collections.nvm.fastboot.plugins.module_utils._core import mounts

LINE = re.compile(r"(?m)^[ \t]*([A-Za-z]\w*)(?:[ \t]+([^\r\n]*?))?[ \t]*\r?$")
MENU = re.compile(r"([A-Za-z]\w*)(?:[ \t]+(.*))?")
PROGRAM = re.compile(r"\.(c32|com|cbt|bs|bin|bss|0|img)$|(^|/)memdisk$", re.I)  # Syslinux starts it as something else than Linux
DEEPEST = 8  # files that include one another
# ldlinux.sys ends with two copies of the auxiliary data vector (libinstaller/syslxint.h): a tag, a length, a text, and so on
LOADER, COPY = "ldlinux.sys", 512
HEAD, SUM, TAIL = 0x5A2D2FA5, 0xA3041767, 0xDD28BF64
ONCE, SAVED = 1, 2


@dataclass
class Label:
    """An entry: C(path) is the file it is in. C(kernel) and C(initrds) are as written; C(append) is the command line and C(span) its
    place in the file, None without one of its own."""

    name: str
    path: str
    title: str = ""
    kernel: str = ""
    initrds: list = field(default_factory=list)
    append: str | None = None
    span: tuple | None = None
    chosen: bool = False  # MENU DEFAULT


class Menu:
    """The menu whose main file is C(path). C(files) are the files it is read from; C(texts) are what some would hold, by path."""

    def __init__(self, host, path, texts=None):
        self._host = host
        self._texts = texts or {}
        self.path = path
        self.files: list = []
        self.labels: list = []
        self.default = self.on_timeout = ""
        self.saves = False
        self.append: Label | None = None  # the command line of entries that have none
        self._read(path, 0)

    def _read(self, path, depth):
        text = self._texts.get(path, self._host.read(path))
        if text is None or path in self.files or depth > DEEPEST:
            return
        self.files.append(path)
        for match in LINE.finditer(text):
            word, value = match.group(1).lower(), match.group(2) or ""
            if word == "include":
                self._read(self.local(value) or "", depth + 1)
            elif word == "menu":
                self._menu(value, depth)
            else:
                self._line(path, word, value, match.span(2))

    def _menu(self, value, depth):
        match = MENU.match(value)
        word, rest = (match.group(1).lower(), match.group(2) or "") if match else ("", "")
        if word == "include":
            self._read(self.local(rest.split()[0] if rest.split() else "") or "", depth + 1)
        elif word == "save":
            self.saves = True
        elif word == "default" and self.labels:
            self.labels[-1].chosen = True
        elif word == "label" and self.labels:
            self.labels[-1].title = rest.replace("^", "")

    def _line(self, path, word, value, span):
        label = self.labels[-1] if self.labels else None
        if word == "label":
            self.labels.append(Label(value, path))
        elif word in ("default", "ontimeout"):
            setattr(self, "default" if word == "default" else "on_timeout", value)
        elif word == "append":
            own = label or Label("", path)
            own.append, own.span = ("", None) if value == "-" else (value, span)
            if label is None:
                self.append = own
        elif label is not None and word in ("linux", "kernel"):
            label.kernel = value
        elif label is not None and word == "initrd":
            label.initrds = [each for each in value.split(",") if each]

    def local(self, path):
        """The path on this machine of C(path) in the menu, or None."""
        if not path.startswith("/"):
            return os.path.normpath(os.path.join(os.path.dirname(self.path), path)) if path else None
        return mounts.local(self._host, self.path, path)

    def words(self, label):
        """The words of the command line of C(label), with those of Syslinux itself."""
        own = label if label.append is not None else self.append
        return words_of(own.append) if own else []

    def holder(self, label):
        """The Label with the line that has the command line of C(label), or None."""
        own = label if label.append is not None else self.append
        return own if own and own.span else None

    def kernel(self, label):
        """The kernel of C(label) on this machine, or None if it starts no Linux that is there."""
        path = None if PROGRAM.search(label.kernel) else self.local(label.kernel.partition("#")[0])
        return path if path and self._host.exists(path) else None

    def initrds(self, label):
        """What C(label) loads as initramfs, on this machine: by INITRD, or by C(initrd=)."""
        named = [word[len("initrd="):].split(",") for word in self.words(label) if word.startswith("initrd=")]
        paths = [self.local(path) for path in label.initrds or (named[-1] if named else [])]
        return tuple(path for path in paths if path and self._host.exists(path))

    # what starts when no person chooses ------------------------------------------------------------------------------

    def starts(self):
        """C((Label or None, more words, reason)). None: the words are no label."""
        stored = _stored(self._host, os.path.join(os.path.dirname(self.path), LOADER))
        choices = (
            (stored.get(ONCE), "extlinux --once"),
            (self.on_timeout, "ONTIMEOUT"),
            (stored.get(SAVED) if self.saves else "", "MENU SAVE"),
            (self.default if self._named(self.default) else "", "DEFAULT"),
            (next((label.name for label in reversed(self.labels) if label.chosen), ""), "MENU DEFAULT"),
            (self.default, "DEFAULT"),
        )
        for command, reason in choices:
            words = (command or "").split()
            if words and not PROGRAM.search(words[0]):  # DEFAULT vesamenu.c32
                return self._named(command), words[1:], "%s %s" % (reason, command)
        return (self.labels[0] if self.labels else None), [], "the first entry of the menu"

    def _named(self, command):
        """The Label that the first word of C(command) names, or None."""
        return next((label for label in self.labels if label.name.split()[:1] == command.split()[:1] != []), None)


def _stored(host, path):
    """The texts in the auxiliary data vector at the end of C(path), by tag; the first copy that is whole."""
    content = host.read_bytes(path, b"", 1 << 20)[-2 * COPY:]
    for start in range(0, len(content) - COPY + 1, COPY):
        copy = content[start : start + COPY]
        first, _checksum = struct.unpack_from("<II", copy)
        if (first, struct.unpack_from("<I", copy, COPY - 4)[0]) != (HEAD, TAIL):
            continue
        if sum(struct.unpack_from("<%dI" % (COPY // 4 - 2), copy, 4)) & 0xFFFFFFFF == SUM:
            return dict(_items(copy[8 : COPY - 4]))
    return {}


def _items(data):
    at = 0
    while at + 2 <= len(data) and data[at]:
        length = data[at + 1]
        yield data[at], data[at + 2 : at + 2 + length].decode("utf-8", "replace")
        at += 2 + length
