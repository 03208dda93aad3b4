# SPDX-License-Identifier: GPL-3.0-or-later
"""What C(/etc/default/grub) and the files of others in C(/etc/default/grub.d) set, as grub-mkconfig sees it.

grub-mkconfig sources them under C(/bin/sh), in this order. They are read here, not run: assignments in their order, variables
that occur in them, comments left out. Both branches of an C(if) count, and no C(unset) in one.
"""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import settings
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.script import statements

FILE = "/etc/default/grub"
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.S)
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?[-+=?][^}]*)?\}|(\w+))")
LEADING = {"then", "else", "elif", "if", "do", "export", "readonly"}
RECOVERY = "GRUB_CMDLINE_LINUX_RECOVERY"


class Defaults:
    """The variables of one Host: C(values) as C({name: text})."""

    def __init__(self, host):
        self.values: dict = {}
        self._given: dict = {}  # name: [(path, text as assigned there)]
        for path in [FILE] + host.glob(settings.DIRECTORY + "/*.cfg"):
            if not os.path.basename(path).startswith(settings.PREFIX):
                self._source(path, host.read(path, ""))

    def true(self, name):
        """Whether the variable is exactly C(true), which is what grub-mkconfig asks for."""
        return self.values.get(name) == "true"

    def file(self, name):
        """The file that set the variable last, or None."""
        return self._given[name][-1][0] if name in self._given else None

    def find(self, words):
        """The first of C(words) among the arguments of entries that are generated, as C((file, word)), or None."""
        for name in settings.VARIABLES:
            if name == RECOVERY and self.true("GRUB_DISABLE_RECOVERY"):
                continue
            for word in _words(self.values.get(name, "")):
                if word in words:
                    return self._origin(name, word), word
        return None

    def _origin(self, name, word):
        """The file whose assignment brings C(word) into the variable C(name), or the one that set C(name) last."""
        for path, text in reversed(self._given[name]):
            if word in _words(text):
                return path
        others = [path for given in self._given.values() for path, text in given if word in _words(text)]
        return (others or [self.file(name)])[-1]

    def _source(self, path, text):
        depth = 0  # of conditions
        for statement in statements(text):
            while statement and statement[0] in LEADING:
                depth += statement[0] == "if"
                statement = statement[1:]
            depth -= statement[:1] == ["fi"]
            if statement[:1] == ["unset"] and not depth:
                for name in statement[1:]:
                    self.values.pop(name, None)
            for word in statement:
                match = ASSIGNMENT.fullmatch(word)
                if not match:
                    break  # the words after a command are its arguments
                name, value = match.groups()
                before = self.values.get(name, "") if word[len(name)] == "+" else ""
                self.values[name] = before + VARIABLE.sub(self._value, value)
                self._given.setdefault(name, []).append((path, value))

    def _value(self, match):
        return self.values.get(match.group(1) or match.group(2), "")


def scripts_mention(host, name):
    """Whether a script of grub-mkconfig on C(host) has C(name), and so may act on a setting of that name."""
    return any(name in host.read(path, "") for path in host.glob("/etc/grub.d/*"))


def _words(text):
    return [word for statement in statements(text) for word in statement]
