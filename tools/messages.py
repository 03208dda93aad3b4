# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects every message of the project into one file, for reviewers: ``python tools/messages.py --write`` renews it.

Reads the sources of fuse_store and plugins, and runs nothing: errors with thing, cause and remedy, warnings, remarks, the help of the
command line, and every other text with two words in a row; of roles and playbooks the names and messages of tasks. Shows the fields of
templates as {name}. Leaves out documentation: docstrings, DOCUMENTATION, doc fragments. Without --write, prints how the file differs
from the sources, and exits with 1 if it does.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests/store/cli/messages.txt"
LICENSE = Path(__file__).read_text(encoding="utf-8").partition("\n")[0]  # that of this file
HEADER = (
    f"{LICENSE}\n"
    "# Every message of the project, by file. Made by tools/messages.py --write; a test compares.\n"
    "# An error of the store is shown as on the terminal, <thing>: <cause> <remedy>; one of the collection as <code>: <message> <remedy>.\n"
    "# (a|b) is one of both, {name} a field.\n"
)
SOURCES = ("fuse_store/**/*.py", "plugins/**/*.py")
NOT_SOURCES = ("plugins/doc_fragments/",)
TASKS = ("roles/*/tasks/*.yml", "roles/*/handlers/*.yml", "playbooks/*.yml")
DOCUMENTATION = {"DOCUMENTATION", "EXAMPLES", "RETURN"}
PRINTS = {"remark", "complain", "warn", "print_error", "fail_json", "warning", "info", "error", "debug", "exception", "critical"}
NO_MESSAGES = {"fault_point", "TypeVar"}
HELP = {"help", "summary", "description", "epilog", "interrupted", "title"}
MESSAGES = ("msg", "fail_msg", "success_msg", "prompt")  # of Ansible's modules debug, fail, assert, pause
PROSE = re.compile(r"[A-Za-z]{2,}[,;:)'\"]* ['\"({]?[A-Za-z]")
NOT_PROSE = re.compile(
    r"\n|^\W*\w+=\S|^[#<\[]|^\.[A-Z]{2}|^\.(?:\\\"|ad )|\\[.dsw]|\.\*|^(?:set|echo|if|test|exec|exit|case|export|local|mount|menuentry) "
)
FORMATS = {"filter", "float", "int", "len", "list", "map", "max", "min", "next", "repr", "shown", "sorted", "str", "sum", "tuple", "type"}
SAME = {"strip", "rstrip", "lstrip", "lower", "upper", "encode", "capitalize", "format"}  # methods that leave a template what it is
ERROR_TEXTS = {"thing", "cause", "remedy", "message", "msg"}  # keyword arguments of errors


# templates -----------------------------------------------------------------------------------------------------------------


class Renderer:
    """Renders expressions of one function as templates, and remembers in ``seen`` which string literals were rendered."""

    def __init__(self, values: dict[str, list[ast.expr]]) -> None:
        self.values = values
        self.seen: set[int] = set()
        self.inlined: set[int] = set()  # parts of what was assigned to a variable, and shown where that is used
        self._open: list[str] = []

    def template(self, node: ast.expr) -> str:
        """Text, with fields for what is not known before it runs."""
        if isinstance(node, ast.Constant):
            self.seen.add(id(node))
            return node.value if isinstance(node.value, str) else str(node.value)
        if isinstance(node, ast.JoinedStr):
            self.seen.add(id(node))
            return "".join(map(self.template, node.values))
        if isinstance(node, ast.FormattedValue):
            return self._field(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.template(node.left) + self.template(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and _has_text(node.left):
            return self._percent(node)
        if isinstance(node, ast.IfExp):
            return f"({self.template(node.body)}|{self.template(node.orelse)})"
        if isinstance(node, ast.BoolOp):
            return f"({'|'.join(map(self.template, node.values))})"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SAME and _has_text(node.func.value):
            return self.template(node.func.value)
        if isinstance(node, ast.Name) and node.id in self.values and node.id not in self._open:
            self._open.append(node.id)
            texts = [self.template(value) for value in self.values[node.id] if _has_text(value)]
            self.inlined.update(id(inner) for value in self.values[node.id] for inner in ast.walk(value))
            self._open.pop()
            if texts:
                return texts[0] if len(texts) == 1 else f"({'|'.join(dict.fromkeys(texts))})"
        return f"{{{_name(node)}}}"

    def _field(self, node: ast.expr) -> str:
        """What stands for a value in a template: the texts it chooses from, or its name."""
        if isinstance(node, ast.IfExp | ast.BoolOp) and _has_text(node):
            return self.template(node)
        if isinstance(node, ast.Name) and node.id in self.values:
            return self.template(node)
        if isinstance(node, ast.Call) and _callee(node) == "count" and len(node.args) == 2 and _has_text(node.args[1]):
            return f"{{{_name(node.args[0])}}} {self.template(node.args[1])}(s)"
        return f"{{{_name(node)}}}"

    def _percent(self, node: ast.BinOp) -> str:
        values = iter(node.right.elts if isinstance(node.right, ast.Tuple) else [node.right])

        def field(match: re.Match[str]) -> str:
            if match[0] == "%%":
                return "%"
            value = None if match[1] else next(values, None)
            return f"{{{match[1][1:-1]}}}" if match[1] else "{?}" if value is None else self._field(value)

        return re.sub(r"%(\(\w+\))?[-#0-9.]*[sdrxXfgi%]", field, self.template(node.left))


def _has_text(node: ast.expr) -> bool:
    return any(isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value.strip() for inner in ast.walk(node))


def _name(node: ast.expr) -> str:
    """A short name for an expression: that of its variable or attribute, or of the first one in a call."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        if node.attr.startswith("__"):
            return _name(node.value)
        return node.attr if isinstance(node.value, ast.Name) and node.value.id == "self" else f"{_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Subscript):
        key = node.slice
        return f"{_name(node.value)}.{key.value}" if isinstance(key, ast.Constant) and isinstance(key.value, str) else _name(node.value)
    if isinstance(node, ast.Call):
        formats = isinstance(node.func, ast.Attribute) or (isinstance(node.func, ast.Name) and node.func.id in FORMATS)
        known = [argument for argument in node.args if not isinstance(argument, ast.Constant)]
        return _name(known[0]) if known and formats else _name(node.func)
    if isinstance(node, ast.GeneratorExp | ast.ListComp | ast.SetComp):
        return _name(node.generators[0].iter)
    if isinstance(node, ast.Starred | ast.Await | ast.UnaryOp):
        return _name(node.operand if isinstance(node, ast.UnaryOp) else node.value)
    if isinstance(node, ast.BinOp):
        return _name(node.left) if not isinstance(node.left, ast.Constant) else _name(node.right)
    if isinstance(node, ast.BoolOp):
        return _name(node.values[0])
    if isinstance(node, ast.IfExp):
        return _name(node.body) if not isinstance(node.body, ast.Constant) else _name(node.orelse)
    return "…"


# Python --------------------------------------------------------------------------------------------------------------------


class Collector(ast.NodeVisitor):
    """The messages of one module, in the order of the source."""

    def __init__(self, errors: frozenset[str], constants: dict[str, list[ast.expr]]) -> None:
        self.errors = errors
        self.constants = constants
        self._found: list[tuple[int, int, int, str]] = []
        self._renderers = [Renderer(constants)]

    @property
    def renderer(self) -> Renderer:
        return self._renderers[-1]

    def add(self, node: ast.expr, label: str, text: str) -> None:
        """Collect one message, unless it has no text of its own."""
        if text.strip(" {}:…"):
            line = text.strip().replace("\n", "\\n")
            self._found.append((node.lineno, node.col_offset, id(node), f"{label}: {line}"))

    def messages(self) -> list[str]:
        """All of them, without texts that are shown as a part of another message."""
        inlined = self.renderer.inlined
        ordered = sorted(self._found, key=lambda message: message[:2])  # stable: messages at one place stay in the order of the visit
        return [text for _line, _column, node, text in ordered if node not in inlined or not text.startswith("text: ")]

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        renderer = Renderer({**self.constants, **_assigned(node.body)})
        renderer.seen, renderer.inlined = self.renderer.seen, self.renderer.inlined
        self._renderers.append(renderer)
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self._renderers.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id in DOCUMENTATION for target in node.targets):
            self.visit(node.value)

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_Raise(self, node: ast.Raise) -> None:
        if isinstance(node.exc, ast.Call):
            self._error(node.exc)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _callee(node)
        if name in NO_MESSAGES or (isinstance(node.func, ast.Attribute) and _name(node.func.value) == "re"):
            return
        if name in self.errors:
            self._error(node)
        elif name in PRINTS:
            values = [keyword.value for keyword in node.keywords if keyword.arg == "msg"] or node.args
            if len(values) > 1 and _has_text(values[0]) and "%s" in self._peek(values[0]):  # logging
                values = [ast.BinOp(values[0], ast.Mod(), ast.Tuple(values[1:]))]
            self.add(node, name, " ".join(map(self.renderer.template, filter(self._is_text, values))))
        elif name == "start" and node.args and _has_text(node.args[0]):
            self.add(node, "progress", self.renderer.template(node.args[0]))
        self._help(node)
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                self.renderer.seen.add(id(key))
            if isinstance(key, ast.Constant) and id(value) not in self.renderer.seen and _is_prose(self._peek(value)):
                self.add(value, "text", f"{key.value!s}: {self.renderer.template(value)}")
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._text(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self._text(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Add | ast.Mod) and _has_text(node):
            self._text(node)
        self.generic_visit(node)

    def _text(self, node: ast.expr) -> None:
        """Any other text that people may read."""
        if id(node) not in self.renderer.seen and not self._rendered(node) and _is_prose(self._peek(node)):
            self.add(node, "text", self.renderer.template(node))

    def _rendered(self, node: ast.expr) -> bool:
        return any(id(inner) in self.renderer.seen for inner in ast.walk(node) if isinstance(inner, ast.Constant | ast.JoinedStr))

    def _peek(self, node: ast.expr) -> str:
        return Renderer({}).template(node)

    def _is_text(self, node: ast.expr) -> bool:
        return (_has_text(node) and not isinstance(node, ast.Dict)) or (isinstance(node, ast.Name) and node.id in self.renderer.values)

    def _error(self, node: ast.Call) -> None:
        values = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg in ERROR_TEXTS)]
        if not values or not any(map(_has_text, values)) or self._rendered(node):
            return
        first, *rest = map(self.renderer.template, values)
        self.add(node, _callee(node), f"{first}: {' '.join(rest)}" if rest else first)

    def _help(self, node: ast.Call) -> None:
        flags = [argument.value for argument in node.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]
        for keyword in node.keywords:
            if keyword.arg in HELP and _has_text(keyword.value) and id(keyword.value) not in self.renderer.seen:
                label = f"{keyword.arg} {flags[-1]}" if keyword.arg == "help" and flags else keyword.arg
                self.add(keyword.value, label, self.renderer.template(keyword.value))
            elif keyword.arg == "keys" and isinstance(keyword.value, ast.Dict):
                for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        self.renderer.seen.add(id(key))
                        self.add(value, f"key {key.value.strip()}", self.renderer.template(value))
            elif keyword.arg == "examples" and isinstance(keyword.value, ast.Tuple):
                for example in keyword.value.elts:
                    if isinstance(example, ast.Tuple):
                        command, purpose = map(self.renderer.template, example.elts)
                        self.add(example, "example", f"{command}  # {purpose}")


def _callee(node: ast.Call) -> str:
    """The name of the function or method that is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""


def _is_prose(text: str) -> bool:
    return bool(PROSE.search(text)) and not NOT_PROSE.search(text)


def _assigned(body: Sequence[ast.stmt]) -> dict[str, list[ast.expr]]:
    """The texts that are assigned to the variables of a function, which its messages are put together from."""
    values: dict[str, list[ast.expr]] = {}
    for node in (inner for statement in body for inner in ast.walk(statement)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                _pair(target, node.value, values)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign) and node.value is not None:
            _pair(node.target, node.value, values)
    return {name: texts for name, texts in values.items() if any(_has_text(text) and isinstance(text, TEMPLATES) for text in texts)}


TEMPLATES = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.IfExp)


def _pair(target: ast.expr, value: ast.expr, values: dict[str, list[ast.expr]]) -> None:
    if isinstance(target, ast.Name):
        if isinstance(value, TEMPLATES):
            values.setdefault(target.id, []).append(value)
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for name, text in zip(target.elts, value.elts, strict=True):
            _pair(name, text, values)


def _error_names(trees: Iterable[ast.Module]) -> frozenset[str]:
    """The classes that derive from an exception, by name."""
    bases = {
        node.name: {base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    names = {"Exception", "RuntimeError", "ValueError", "OSError", "AnsibleError", "AnsibleActionFail", "ArgumentTypeError"}
    while more := {name for name, of in bases.items() if of & names} - names:
        names |= more
    return frozenset(names - {"Exception", "OSError"})


# YAML ----------------------------------------------------------------------------------------------------------------------


def _task_messages(node: Any) -> Iterator[str]:
    """Names of plays and tasks, and the messages of their modules."""
    if isinstance(node, list):
        for inner in node:
            yield from _task_messages(inner)
    elif isinstance(node, dict):
        if isinstance(node.get("name"), str) and len(node) > 1 and any(isinstance(value, dict | list) for value in node.values()):
            yield f"{'play' if 'hosts' in node else 'task'}: {node['name']}"
        for key, value in node.items():
            if key in MESSAGES:
                for text in value if isinstance(value, list) else [value]:
                    yield f"{key}: {' '.join(str(text).split())}"
            else:
                yield from _task_messages(value)


# the file ------------------------------------------------------------------------------------------------------------------


@cache
def collect() -> dict[str, list[str]]:
    """The messages of each file that has any."""
    paths = sorted(path for pattern in SOURCES for path in ROOT.glob(pattern))
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    trees = {
        name: ast.parse(path.read_bytes())
        for name, path in zip(names, paths, strict=True)
        if not name.startswith(NOT_SOURCES) and "__pycache__" not in name
    }
    errors = _error_names(trees.values())
    messages = {}
    for name, tree in trees.items():
        constants = [statement for statement in tree.body if isinstance(statement, ast.Assign | ast.AnnAssign)]
        collector = Collector(errors, _assigned(constants))
        collector.visit(tree)
        messages[name] = collector.messages()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in sorted(path for pattern in TASKS for path in ROOT.glob(pattern)):
        messages[path.relative_to(ROOT).as_posix()] = [*_task_messages(yaml.load(path.read_bytes(), Loader=loader))]
    return {name: [*dict.fromkeys(texts)] for name, texts in sorted(messages.items()) if texts}


def golden() -> str:
    """What the file has to be."""
    parts = (f"\n== {name}\n" + "".join(f"{text}\n" for text in texts) for name, texts in collect().items())
    return HEADER + "".join(parts)


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        GOLDEN.write_text(golden(), encoding="utf-8")
        return 0
    if arguments:
        print(f"usage: {sys.argv[0]} [--write]", file=sys.stderr)
        return 2
    before = GOLDEN.read_text(encoding="utf-8") if GOLDEN.exists() else ""
    changes = [*difflib.unified_diff(before.splitlines(), golden().splitlines(), "recorded", "now", lineterm="", n=0)]
    print(*changes, sep="\n" if changes else "")
    return bool(changes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
