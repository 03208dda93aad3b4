# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs, one module each, and their table in the order of the help. To add a verb, add a module and its name in NAMES."""

from __future__ import annotations

from importlib import import_module

from fuse_store.cli.parser import GENERAL, PROGRAM, Verb, see_help
from fuse_store.errors import UsageError

NAMES = (
    "init",
    "put",
    "list",
    "show",
    "get",
    "verify",
    "stats",
    "prune",
    "remove",
    "gc",
    "repair",
    "select",
    "diff",
    "mount",
    "inspect",
    "snapshot",
    "snapshotd",
    "preflight",
    "stage",
    "arm",
    "disarm",
    "slots",
    "boot",
    "report",
    "completion",
)
_SWITCHES = {flag for option in GENERAL if "action" in option.settings for flag in option.flags}
_OTHERS = {"--help", "--version"}
_WITH_VALUE = {flag for option in GENERAL if "action" not in option.settings for flag in option.flags}


def load(*names: str) -> tuple[Verb, ...]:
    """The verbs with these names, or all verbs."""
    return tuple(import_module(f"{__name__}.{name}").VERB for name in names or NAMES)


def needed(arguments: list[str]) -> tuple[Verb, ...]:
    """The verbs to load for a command line: one if it is general options and a verb, else all, for the help or the error. Loading
    all of them takes as long as many a command. Raises UsageError for an unknown verb, or an unknown option before the verb."""
    rest = iter(arguments)
    for word in rest:
        if word in NAMES:
            return load(word)
        flag, equals, _value = word.partition("=")
        if flag in _WITH_VALUE:
            if not equals:
                next(rest, None)
        elif word not in _SWITCHES:
            if not word.startswith("-"):
                raise UsageError(word, "no such verb.", _suggestion(word))
            if flag.startswith("--") and flag not in _OTHERS:
                raise UsageError(flag, "no such option.", see_help())
            break
    return load()


def _suggestion(word: str) -> str:
    from difflib import get_close_matches

    closest = get_close_matches(word, NAMES, n=1, cutoff=0.7)
    hint = f"Did you mean '{PROGRAM} {closest[0]}'? " if closest else ""
    return hint + see_help()
