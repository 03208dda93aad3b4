# SPDX-License-Identifier: GPL-3.0-or-later
"""``report``: record whether an armed version was resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE, Verb, argument

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    options = context.options
    with context.open_store() as store:
        from fuse_store.hibernation import history

        version = context.find(store, options.image)
        history.report(store, version, options.result, options.detail, options.device or "")
        context.done = "The result was recorded."
    context.emit({"id": version.id, "state": options.result}, "")
    context.remark(f"{label(version)}: recorded as {options.result}")
    return 0


VERB = Verb(
    name="report",
    summary="record whether an armed version resumed or failed to resume",
    description="An armed version counts as resumed until it is reported as failed. A failed version can be armed again. Refuses "
    "versions that were never armed, unless their state log was lost.",
    run=run,
    arguments=(
        IMAGE,
        argument("result", metavar="resumed|failed", choices=("resumed", "failed"), help="result of the last boot"),
        argument("--device", metavar="DEVICE", complete="file", help="device it was armed on, if that were several"),
        argument("--detail", metavar="TEXT", default="", empty=True, help="reason, for the state log"),
    ),
    keys={"id": "version id", "state": "resumed or failed"},
    examples=(
        ("fuse-store report web01/system/latest resumed", "the machine resumed"),
        ("fuse-store report web01/system/latest failed --detail memory-size", "the machine booted from scratch instead"),
        ("fuse-store report web01/system/latest failed --device /dev/pmem0", "it was armed on two devices"),
    ),
)
