# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of verbs, in the order of the help. A new verb is a module here and a line in it."""

from __future__ import annotations

from fuse_store.cli.parser import Verb
from fuse_store.cli.verbs import (
    completion,
    diff,
    gc,
    get,
    init,
    list,
    mount,
    prune,
    put,
    repair,
    select,
    show,
    stats,
    verify,
)

VERBS: tuple[Verb, ...] = (
    init.VERB,
    put.VERB,
    list.VERB,
    show.VERB,
    get.VERB,
    verify.VERB,
    stats.VERB,
    prune.VERB,
    gc.VERB,
    repair.VERB,
    select.VERB,
    diff.VERB,
    mount.VERB,
    completion.VERB,
)
