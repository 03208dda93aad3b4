# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of verbs, in the order of the help. A new verb is a module here, named like it, and its name in the table."""

from __future__ import annotations

from importlib import import_module

from fuse_store.cli.parser import GENERAL, Verb

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
    "preflight",
    "stage",
    "arm",
    "disarm",
    "outcome",
    "completion",
)
_PLAIN = {flag for one in GENERAL if "action" in one.settings for flag in one.flags}
_WITH_VALUE = {flag for one in GENERAL if "action" not in one.settings for flag in one.flags}


def load(*names: str) -> tuple[Verb, ...]:
    """The verbs with these names; all of them unless some are named."""
    return tuple(import_module(f"{__name__}.{name}").VERB for name in names or NAMES)


def wanted(arguments: list[str]) -> tuple[Verb, ...]:
    """Those that a command line needs: one, if it begins with general options and a verb, and otherwise all, for the help or
    the error. Loading all and making their parsers takes as long as many a command."""
    rest = iter(arguments)
    for one in rest:
        if one in NAMES:
            return load(one)
        flag, is_, _value = one.partition("=")
        if flag in _WITH_VALUE:
            if not is_:
                next(rest, None)
        elif one not in _PLAIN:
            break
    return load()
