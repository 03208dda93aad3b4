# SPDX-License-Identifier: GPL-3.0-or-later
"""What a verb is, and the argument parser built from the table of verbs. Immutable data and pure functions.

A verb is one module in ``verbs`` with one ``VERB``, and its name in the table ``verbs.NAMES``. Help, man page and completion are
generated from it.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

import fuse_store
from fuse_store.cli import values
from fuse_store.errors import UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

PROGRAM = "fuse-store"
TAGLINE = "deduplicated, verified and encrypted versions of boot images and other large files"
MIN_COLUMN = 16  # in which text is wrapped, however narrow the terminal is
SAFE = "The store is consistent."


@dataclass(frozen=True)
class Argument:
    """One argument of a verb: ``flags`` and ``settings`` of ``add_argument``; ``complete``: file, directory, code (of a
    refusal), page size or nothing, which are the choices if there are any; ``empty``: whether an empty string is a valid value."""

    flags: tuple[str, ...]
    settings: Mapping[str, Any]
    complete: str = ""
    empty: bool = False

    @property
    def metavar(self) -> str:
        return str(self.settings.get("metavar", ""))

    @property
    def is_option(self) -> bool:
        return self.flags[0].startswith("-")

    @property
    def name(self) -> str:
        """What an error calls it: the long flag, or the name in the usage line."""
        return self.flags[-1] if self.is_option else self.metavar

    @property
    def attribute(self) -> str:
        """Where the parsed value is in the namespace."""
        return self.flags[-1].lstrip("-").replace("-", "_")


def argument(*flags: str, complete: str = "", empty: bool = False, **settings: Any) -> Argument:
    return Argument(flags, settings, complete, empty)


@dataclass(frozen=True)
class Verb:
    """``run`` executes the verb and returns the exit code. ``keys`` describes the object that ``--json`` prints. ``examples`` are
    pairs of a command and its purpose. ``interrupted`` is printed after Ctrl-C."""

    name: str
    summary: str
    run: Callable[[Context], int]
    arguments: tuple[Argument, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[tuple[str, str], ...] = ()
    description: str = ""
    interrupted: str = SAFE


GENERAL = (
    argument(
        "--store", metavar="DIR|URL", complete="directory",
        help="store to use: a directory or s3://BUCKET/PREFIX (default: $FUSE_STORE)",
    ),
    argument(
        "--key-file", metavar="FILE", complete="file",
        help="key file of the store (default: $FUSE_STORE_KEY_FILE, then ~/.config/fuse-store/keys/STORE_ID.key)",
    ),
    argument(
        "--unencrypted", action="store_true",
        help="open a store without encryption where this user did not create it (default: $FUSE_STORE_UNENCRYPTED)",
    ),
    argument("--json", action="store_true", help="print one JSON object; print errors as JSON on standard error"),
    argument(
        "--wait", metavar="SECONDS", nargs="?", type=values.seconds, const=math.inf,
        help="if another process writes to the store, wait until it is done, or for SECONDS at most (default: do not wait)",
    ),
    argument("-q", "--quiet", action="store_true", help="print results, warnings and errors only"),
)  # fmt: skip

IMAGE_HELP = "version: an id, a unique prefix of one, MACHINE/APPLICATION/latest or …/latest-verified, or MACHINE/APPLICATION@2026-11-22"
IMAGE = argument("image", metavar="IMAGE", help=IMAGE_HELP, empty=True)  # an empty reference matches no version
OF_MACHINE = argument("--machine", metavar="M", type=values.name, help="only versions of this machine")
OF_APPLICATION = argument("--application", metavar="A", type=values.name, help="only versions of this application")
DRY_RUN = argument("--dry-run", action="store_true", help="show what would be done, change nothing")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Wraps everything at spaces but examples, which are to be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(chain.from_iterable(_wrapped(line, width) for line in text.splitlines()))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrapped(" ".join(text.split()), width)


def _wrapped(line: str, width: int) -> list[str]:
    """A line in several, those after the first below its last column, which two spaces or a ``#`` begin. A command is one line."""
    if len(line) <= width or (line.startswith("  ") and f"{PROGRAM} " in line):
        return [line]
    start = re.match(r"\s*(?:# |\S.*?\s{2,})?", line)
    column = start.end() if start and start.end() < width - MIN_COLUMN else 2
    after = "  # " if line.startswith("  # ") else " " * column if line[:1] == " " else ""
    import textwrap

    return textwrap.wrap(line, max(width, MIN_COLUMN), subsequent_indent=after, break_long_words=False, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing the usage and exiting."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **settings)

    def error(self, message: str) -> NoReturn:
        verb = self.prog.removeprefix(PROGRAM).strip()
        raise UsageError(verb or "command line", f"{message}.", see_help(verb))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Where the help and the version are printed. argparse passes over errors, so that a help that does not fit into the
        buffer would be lost in part without notice. An OSError names standard output."""
        try:
            (file or sys.stdout).write(message)
        except OSError as error:
            error.filename = "standard output"
            raise


def build(verbs: Sequence[Verb], completions: Mapping[str, Any] | None = None) -> Parser:
    """The parser. ``completions`` maps what an argument's ``complete`` may say to what shtab has for it, or to the words."""
    parser = Parser(
        prog=PROGRAM,
        description=f"{capital(TAGLINE)}.",
        epilog=f"Run '{PROGRAM} VERB --help' for the options of a verb, with examples.\nExit codes: 0 success, 1 failure, 2 usage error, "
        "3 not found, 4 damaged, 5 refused, 6 locked, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {fuse_store.__version__}", help="print the version and exit")
    for general in GENERAL:
        _add(parser, general, completions)
    verb_parsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for verb in verbs:
        verb_parser = verb_parsers.add_parser(
            verb.name, help=verb.summary, description=f"{capital(verb.summary)}. {verb.description}".strip(), epilog=_epilog(verb)
        )
        for own in verb.arguments:
            _add(verb_parser, own, completions)
        group = verb_parser.add_argument_group("general options")
        for general in GENERAL:  # before and after the verb; here without defaults, which would overwrite what was set before it
            _add(group, general, completions, default=argparse.SUPPRESS)
    return parser


def without_ambiguity(arguments: Sequence[str]) -> list[str]:
    """The arguments, with ``--wait`` in one word with its value: SECONDS may be left out, and what follows be a verb or a file."""
    result: list[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            return [*result, *arguments[position:]]
        after = arguments[position + 1] if position + 1 < len(arguments) else ""
        result.append(f"--wait={values.FOREVER}" if word == "--wait" and not after.isdecimal() else word)
    return result


def split_command(verbs: Sequence[Verb], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the arguments to parse, the words of a command that an option gives after them): argparse ends a command at ``--``."""
    flags = {flag for verb in verbs for own in verb.arguments if own.settings.get("nargs") == argparse.REMAINDER for flag in own.flags}
    for at, word in enumerate(arguments):
        if word == "--":
            break
        if word in flags:
            return list(arguments[: at + 1]), list(arguments[at + 1 :])
    return list(arguments), []


def reject_empty(verb: Verb, options: argparse.Namespace) -> None:
    """Raises UsageError for an empty string where a path or a name is expected: the likely cause is an unset variable in a script."""
    for argument_ in (*GENERAL, *verb.arguments):
        value = getattr(options, argument_.attribute, None)
        if not argument_.empty and (value == "" or (isinstance(value, list) and "" in value)):
            raise UsageError(verb.name, f"{argument_.name} is empty.", see_help(verb.name))


def see_help(verb: str = "") -> str:
    return f"See '{' '.join(filter(None, (PROGRAM, verb, '--help')))}'."


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _add(parser: Any, argument_: Argument, completions: Mapping[str, Any] | None, **more: Any) -> None:
    action = parser.add_argument(*argument_.flags, **argument_.settings, **more)
    if completions and argument_.complete:
        offered = completions[argument_.complete]
        if isinstance(offered, tuple):
            action.choices = offered
        else:
            action.complete = offered


def _epilog(verb: Verb) -> str:
    parts = []
    if verb.examples:
        parts.append("examples:\n" + "\n".join(f"  # {purpose}\n  {command}" for command, purpose in verb.examples))
    if verb.keys:
        longest = max(map(len, verb.keys))
        parts.append("keys with --json:\n" + "\n".join(f"  {key:{longest}}  {meaning}" for key, meaning in verb.keys.items()))
    return "\n\n".join(parts).replace("%", "%%")
