# SPDX-License-Identifier: GPL-3.0-or-later
"""What a C(grub.cfg) does: the entries of its menu, what each of them starts, and the variables at its end.

Commands are followed in their order, with the variables of GRUB's environment. A condition is judged where it asks for variables
and files; both branches are followed where it cannot be known (a key that is pressed, a device that is searched for). A variable
therefore has a set of possible values, and an entry may start a kernel in several ways. Functions and loops are not followed.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import bls
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.script import (
    LINUX_COMMANDS,
    identifier,
    statements,
)

INITRD_COMMANDS = ("initrd", "initrd16", "initrdefi")
ELSEWHERE = ("chainloader", "multiboot", "multiboot2", "xen_hypervisor", "configfile", "legacy_configfile", "kfreebsd", "gnumach")
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
ASSIGNMENT = re.compile(r"(\w+)=(.*)", re.S)
DEVICE = re.compile(r"\(([^)]*)\)")
FOUND = frozenset(["(a device that is searched for)"])
MOST = 16  # possible values of one text; more are not told apart
DEEPEST = 8  # files that source one another


@dataclass(frozen=True)
class Start:
    """One way in which an entry starts Linux. C(loop) is whether the kernel is in an image file (C(loopback)). C(beside) is the file on
    this machine that names the kernel, on the same filesystem, for an entry that C(blscfg) makes."""

    kernel: str
    arguments: tuple
    initrds: tuple = ()
    loop: bool = False
    beside: str | None = None


@dataclass
class Item:
    """An entry of the menu, or with C(submenu) a menu below it. C(body) are its commands."""

    title: str
    identifier: str
    submenu: bool
    body: list
    beside: str | None = None


@dataclass
class Program:
    """One run. C(files) answers for files: C(files.size(path)) in bytes or None, C(files.text(path)), C(files.block(path)) as its
    variables, and C(files.snippets(command, roots, directory)) as bls.Snippets.

    C(variables) is C({name: possible values}), C(items) the menu, C(starts) what the commands themselves start, without None for
    what is not Linux. C(environment) is what C(load_env) reads without C(--file).
    """

    files: Any
    environment: dict
    variables: dict
    items: list = field(default_factory=list)
    starts: list = field(default_factory=list)
    loops: set = field(default_factory=set)
    depth: int = 0
    beside: str | None = None

    def run(self, text):
        self.execute(_tree(text))
        return self

    def inside(self, item):
        """The Program after the commands of C(item), which begin with the variables of now."""
        inner = Program(self.files, self.environment, dict(self.variables), loops=set(self.loops), depth=self.depth, beside=item.beside)
        inner.execute(item.body)
        return inner

    def execute(self, body):
        for node in body:
            if isinstance(node, Item):
                self.items.append(node)
            elif isinstance(node, _If):
                self._branch(node.branches)
            else:
                self._command(node)

    def _branch(self, branches):
        """Follow each branch that may be taken, and unite what they lead to. A branch without condition is always taken."""
        before, results = (dict(self.variables), list(self.starts)), []
        for condition, body in branches:
            self.variables, self.starts = dict(before[0]), list(before[1])
            truth = True if condition is None else self._truth(condition)
            if truth is not False:
                self.execute(body)
                results.append((self.variables, self.starts))
            if truth is True:
                break
        else:
            results.append(before)
        names = {name for variables, _starts in results for name in variables}
        self.variables = {name: frozenset().union(*(variables.get(name, {""}) for variables, _starts in results)) for name in names}
        self.starts = list(dict.fromkeys(start for _variables, starts in results for start in starts))

    # commands ----------------------------------------------------------------------------------------------------------

    def _command(self, words):
        assignment = ASSIGNMENT.fullmatch(words[1] if words[0] == "set" and len(words) > 1 else words[0])
        if assignment:
            self.variables[assignment.group(1)] = self._values(assignment.group(2))
        elif words[0] == "unset":
            for name in words[1:]:
                self.variables.pop(name, None)
        elif words[0] == "load_env":
            block, names = self._block(words[1:])
            self.variables.update({name: frozenset([value]) for name, value in block.items() if not names or name in names})
        elif words[0] == "search":
            found = frozenset(["UUID=" + words[-1]]) if {"--fs-uuid", "-u"} & set(words) else FOUND
            self.variables.update({word[len("--set=") :] or "root": found for word in words if word.startswith("--set=")})
        elif words[0] in bls.COMMANDS:
            snippets = self.files.snippets(words[0], self.variables.get("root", ()), bls.directory(words))
            self.items += [Item(each.title, each.identifier, False, _tree(each.commands), each.path)
                           for each in bls.selected(words, snippets, self.variables.get("default", ()))]
        elif words[0] == "loopback":
            self.loops.update(word for word in words[1:-1] if not word.startswith("-"))
        elif words[0] in ("source", ".") and len(words) > 1 and self.depth < DEEPEST:
            for path in self._values(words[1]):
                self.depth += 1
                self.execute(_tree(self.files.text(path) or ""))
                self.depth -= 1
        elif words[0] in LINUX_COMMANDS and len(words) > 1:
            self.starts = [self._start(words[1], self._arguments(words[2:]))]
        elif words[0] in INITRD_COMMANDS:
            initrds = tuple(_path(word)[1] for word in self._arguments(words[1:]))
            self.starts = [start and Start(start.kernel, start.arguments, initrds, start.loop, start.beside) for start in self.starts]
        elif words[0] in ELSEWHERE:
            self.starts = [None]

    def _start(self, word, arguments):
        device, path = _path(self._first(word))
        devices = [device] if device else [each.strip("()") for each in self.variables.get("root", ())]
        return Start(path, arguments, loop=any(each in self.loops for each in devices), beside=self.beside)

    # values ------------------------------------------------------------------------------------------------------------

    def _block(self, words):
        """What C(load_env) with the arguments C(words) reads, and the names that it takes of that, all without one."""
        block, names, rest = self.environment, [], iter(words)
        for word in rest:
            if word in ("-f", "--file") or word.startswith("--file="):
                paths = self._values(word[len("--file="):] or next(rest, ""))
                block = self.files.block(*paths) if len(paths) == 1 else {}
            elif not word.startswith("-"):
                names.append(word)
        return block, names

    def _values(self, text):
        """The possible values of C(text), with its variables replaced."""
        names = list(dict.fromkeys(match.group(1) or match.group(2) for match in VARIABLE.finditer(text)))
        choices = [sorted(self.variables.get(name, {""})) for name in names]
        values = set()
        for choice in itertools.islice(itertools.product(*choices), MOST):
            values.add(_replaced(text, dict(zip(names, choice))))
        return frozenset(values)

    def _first(self, text):
        """C(text) with the variables replaced that have one value; others stay as written."""
        def value(match):
            values = self.variables.get(match.group(1) or match.group(2), ())
            return next(iter(values)) if len(values) == 1 else match.group()

        return VARIABLE.sub(value, text)

    def _arguments(self, words):
        """C(words) as GRUB passes them: a variable that is a word of its own becomes the words in it."""
        arguments: list[str] = []
        for word in words:
            value = self._first(word)
            arguments += value.split() if VARIABLE.fullmatch(word) and value != word else [value]
        return tuple(arguments)

    # conditions --------------------------------------------------------------------------------------------------------

    def _truth(self, words):
        """Whether the command C(words) succeeds: True, False, or None where that cannot be known."""
        if words[0] in ("true", "false"):
            return words[0] == "true"
        if words[0] == "!":
            return _not(self._truth(words[1:]))
        if words[0] == "[" and words[-1] == "]":
            return self._test(words[1:-1])
        return self._test(words[1:]) if words[0] == "test" else None

    def _test(self, words):
        for word, stop in (("-o", True), ("-a", False)):
            if word in words[1:-1]:
                at = words.index(word, 1)
                results = [self._test(words[:at]), self._test(words[at + 1 :])]
                return stop if stop in results else None if None in results else not stop
        if words[:1] == ["!"]:
            return _not(self._test(words[1:]))
        answers = {self._answer(choice) for choice in itertools.product(*(sorted(self._values(word)) for word in words))}
        return answers.pop() if len(answers) == 1 else None

    def _answer(self, words):
        if len(words) == 1:
            return words[0] != ""
        if len(words) == 2 and words[0] in ("-n", "-z"):
            return (words[1] != "") == (words[0] == "-n")
        if len(words) == 2 and words[0] in ("-s", "-f", "-e") and words[1].startswith("/"):
            size = self.files.size(words[1])
            return bool(size) if words[0] == "-s" else size is not None
        if len(words) == 3 and words[1] in ("=", "==", "!="):
            return (words[0] == words[2]) == (words[1] != "!=")
        return None


@dataclass
class _If:
    branches: list  # [(condition as words or None, body)]


def _replaced(text, values):
    """C(text) with the values of its variables."""
    return VARIABLE.sub(lambda match: values[match.group(1) or match.group(2)], text)


def _not(truth):
    return None if truth is None else not truth


def _path(word):
    """C((device, path)): C((hd0,gpt2)/vmlinuz) is a file on that device."""
    match = DEVICE.match(word)
    return (match.group(1), word[match.end() :]) if match else ("", word)


# the tree of commands ---------------------------------------------------------------------------------------------------

LOOPS = {"while", "until", "for"}
KEYWORDS = {"if", "then", "elif", "else", "fi", "do", "done"} | LOOPS


def _tree(text):
    """The commands of C(text): lists of words, Items and _Ifs. Bodies of functions and loops are left out."""
    tokens = []
    for words in statements(text):
        while words and words[0] in KEYWORDS:
            tokens.append(words[:1])
            words = words[1:]
        if words:
            tokens.append(words)
    return _Reader(tokens).body(())


class _Reader:
    """Reads a list of statements, in which keywords stand alone. An end that is missing is at the end of the text."""

    def __init__(self, tokens):
        self._tokens = tokens
        self._at = 0

    def body(self, ends):
        """The commands up to one of C(ends), which stays to be read."""
        nodes = []
        while self._at < len(self._tokens) and self._tokens[self._at][0] not in ends:
            words = self._take()
            if words == ["if"]:
                nodes.append(self._if())
            elif words[0] in LOOPS and len(words) == 1:
                self.body(("done",))
                self._take()
            elif self._next() == ["{"]:
                self._take()
                body = self.body(("}",))
                self._take()
                if words[0] in ("menuentry", "submenu") and len(words) > 1:
                    nodes.append(Item(words[1], identifier(words), words[0] == "submenu", body))
                elif words[0] not in ("function", "menuentry", "submenu", "hiddenentry"):
                    nodes += [words, *body]
            elif words not in (["{"], ["}"]):
                nodes.append(words)
        return nodes

    def _if(self):
        branches, condition = [], self._condition()
        while True:
            branches.append((condition, self.body(("elif", "else", "fi"))))
            end = self._take()
            if end == ["elif"]:
                condition = self._condition()
            elif end == ["else"]:
                condition = None
            else:
                return _If(branches)

    def _condition(self):
        """The last command before C(then)."""
        commands = [command for command in self.body(("then",)) if isinstance(command, list)]
        self._take()
        return commands[-1] if commands else ["unknown"]

    def _next(self):
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self):
        token = self._next() or ["fi"]
        self._at += 1
        return token
