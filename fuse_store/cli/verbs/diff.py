# SPDX-License-Identifier: GPL-3.0-or-later
"""``diff``: what changed between two versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.parser import IMAGE_HELP, Verb, argument

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fuse_store.cli.context import Context
    from fuse_store.image.diff import Range


def run(context: Context) -> int:
    options = context.options
    with context.open_store() as store:
        from fuse_store.image import diff

        a, b = (store.open_image(store.find(one).id) for one in (options.a, options.b))
        pages = dict.fromkeys(diff.CHANGES, 0)
        ranges = _counted(diff.diff(a, b, context.progress), pages, a.head.page_size)
        # As they come: there may be more ranges than fit into memory.
        if context.json:
            print(f'{{"a":"{a.id}","b":"{b.id}","page_size":{a.head.page_size},"ranges":[', end="")
            for number, one in enumerate(ranges):
                print("," if number else "", json.dumps(vars(one), separators=(",", ":")), sep="", end="")
            end = json.dumps({**pages, "identical": not any(pages.values())}, separators=(",", ":"))
            print("],", end[1:], sep="")
            return 0
        several = len(a.files) > 1 or len(b.files) > 1
        for one in ranges:
            print(
                f"{one.change:8} {one.offset:#014x} {text.size(one.length):>9}{'  ' + text.printable(one.file) if several else ''}"
            )
    context.remark(
        ", ".join(f"{number} pages {change}" for change, number in pages.items())
        + f", of {text.size(a.head.page_size)}"
    )
    return 0


def _counted(ranges: Iterable[Range], pages: dict[str, int], page_size: int) -> Iterable[Range]:
    for one in ranges:
        pages[one.change] += -(-one.length // page_size)
        yield one


VERB = Verb(
    name="diff",
    summary="show which pages were added, changed and gone between two versions, by range",
    description="Added: zero or not there in A, and other than zero in B. Gone: the other way round. Changed: other than zero in "
    "both, and different.",
    run=run,
    arguments=(argument("a", metavar="A", help=IMAGE_HELP), argument("b", metavar="B", help=IMAGE_HELP)),
    keys={
        "a, b": "the ids",
        "page_size": "in bytes",
        "ranges": "one object for each run of pages:",
        "  file": "in which file of the image",
        "  change": "added, changed or gone",
        "  offset, length": "in bytes from the start of the file",
        "added, changed, gone": "how many pages in all",
        "identical": "whether there is no difference",
    },
    examples=(("fuse-store diff web01/system@2026-11-21 web01/system/latest", "what a day changed"),),
    interrupted="Nothing was changed.",
)
