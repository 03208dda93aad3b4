# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of verbs, in the order of the help. A new verb is a module here and a line in it."""

from __future__ import annotations

from fuse_store.cli.parser import Verb
from fuse_store.cli.verbs import (
    arm,
    completion,
    diff,
    disarm,
    gc,
    get,
    init,
    inspect,
    list,
    mount,
    outcome,
    preflight,
    prune,
    put,
    remove,
    repair,
    select,
    show,
    stage,
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
    remove.VERB,
    gc.VERB,
    repair.VERB,
    select.VERB,
    diff.VERB,
    mount.VERB,
    inspect.VERB,
    preflight.VERB,
    stage.VERB,
    arm.VERB,
    disarm.VERB,
    outcome.VERB,
    completion.VERB,
)
