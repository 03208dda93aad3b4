# SPDX-License-Identifier: GPL-3.0-or-later
"""``outcome``: what became of an armed image, told by whoever saw the machine boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE, Verb, argument

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    with context.open_store() as store:
        version = store.find(options.image)
        store.record([version.id], options.outcome, options.detail)
    context.emit({"id": version.id, "state": options.outcome}, "")
    context.remark(f"{label(version)}: {options.outcome}")
    return 0


VERB = Verb(
    name="outcome",
    summary="note whether an armed image was resumed, or the attempt failed",
    description="An image that was armed counts as resumed until this says that the attempt failed; then it may be armed again.",
    run=run,
    arguments=(
        IMAGE,
        argument("outcome", metavar="OUTCOME", choices=("resumed", "failed"), help="resumed or failed"),
        argument("--detail", metavar="TEXT", default="", help="why, for the state log"),
    ),
    keys={"id": "of the version", "state": "resumed or failed"},
    examples=(("fuse-store outcome web01/system/latest failed --detail memory-size", "the machine booted afresh"),),
)
