# SPDX-License-Identifier: GPL-3.0-or-later
"""What a verb is, and the parser made from all of them. Used by ``verbs``, ``run``, ``completion`` and ``manpage``.

A verb is one module in ``verbs`` that ends in one Verb, and its name in the table ``verbs.NAMES``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import fuse_store
from fuse_store.errors import UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

PROGRAM = "fuse-store"
SAFE = "The store is whole; nothing half-written was left."


@dataclass(frozen=True)
class Argument:
    """One argument of a verb: what ``add_argument`` takes, and ``complete``: file, directory or nothing."""

    flags: tuple[str, ...]
    settings: Mapping[str, Any]
    complete: str = ""


def argument(*flags: str, complete: str = "", **settings: Any) -> Argument:
    return Argument(flags, settings, complete)


@dataclass(frozen=True)
class Verb:
    """``run`` does it and returns the exit code. ``keys`` are those of the object that ``--json`` prints, with their meaning.
    ``examples`` are pairs of a command and what it is for. ``interrupted`` is said after Ctrl-C."""

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
        help="the store: a folder, or s3://BUCKET/PREFIX; by default $FUSE_STORE",
    ),
    argument(
        "--key-file", metavar="FILE", complete="file",
        help="the key of the store; by default $FUSE_STORE_KEY_FILE, then ~/.config/fuse-store/keys/<id of the store>.key",
    ),
    argument("--json", action="store_true", help="print one JSON object for programs; errors as well, on standard error"),
    argument("-q", "--quiet", action="store_true", help="no progress and no remarks, only results and errors"),
)  # fmt: skip

IMAGE_HELP = "an id, the start of one, MACHINE/APPLICATION/latest, or MACHINE/APPLICATION@2026-11-22"
IMAGE = argument("image", metavar="IMAGE", help=IMAGE_HELP)
OF_MACHINE = argument("--machine", metavar="M", help="only versions of this machine")
OF_APPLICATION = argument("--application", metavar="A", help="only versions of this application")
DRY_RUN = argument("--dry-run", action="store_true", help="only say what would be done")


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing a page and exiting."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        verb = self.prog.removeprefix(PROGRAM).strip()
        raise UsageError(verb or "command line", f"{message}.", f"See {self.prog} --help.")


def build(verbs: Sequence[Verb], completions: Mapping[str, Any] | None = None) -> Parser:
    """The parser. ``completions`` maps file and directory to what shtab wants to be told."""
    parser = Parser(
        prog=PROGRAM,
        description="Versions of boot images and other large files: deduplicated, checked, encrypted, mounted as files.",
        epilog=f"{PROGRAM} VERB --help tells more, with examples. Exit codes: 0 done, 1 failed, 2 usage, 3 not found, "
        "4 integrity,\n5 refused for safety, 6 locked, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {fuse_store.__version__}")
    for one in GENERAL:
        _add(parser, one, completions)
    verb_parsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for verb in verbs:
        own = verb_parsers.add_parser(
            verb.name,
            help=verb.summary,
            description=f"{capital(verb.summary)}. {verb.description}".strip(),
            epilog=_epilog(verb),
        )
        for one in verb.arguments:
            _add(own, one, completions)
        general = own.add_argument_group("general options")
        for one in GENERAL:  # before and after the verb; here without defaults, which would undo what stands before it
            _add(general, one, completions, default=argparse.SUPPRESS)
    return parser


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _add(parser: Any, one: Argument, completions: Mapping[str, Any] | None, **more: Any) -> None:
    action = parser.add_argument(*one.flags, **one.settings, **more)
    if completions and one.complete:
        action.complete = completions[one.complete]


def _epilog(verb: Verb) -> str:
    parts = []
    if verb.examples:
        parts.append("examples:\n" + "\n".join(f"  # {what}\n  {command}" for command, what in verb.examples))
    if verb.keys:
        longest = max(map(len, verb.keys))
        parts.append("keys with --json:\n" + "\n".join(f"  {key:{longest}}  {what}" for key, what in verb.keys.items()))
    return "\n\n".join(parts).replace("%", "%%")
