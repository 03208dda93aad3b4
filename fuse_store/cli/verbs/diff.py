# SPDX-License-Identifier: GPL-3.0-or-later
"""``diff``: print the page ranges that differ between two versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.output import print_result
from fuse_store.cli.parser import IMAGE_HELP, Verb, argument

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fuse_store.cli.context import Context
    from fuse_store.image.diff import Range


def run(context: Context) -> int:
    options = context.options
    with context.open_store() as store:
        from fuse_store.image import diff

        a, b = (store.open_image(context.find(store, reference).id) for reference in (options.a, options.b))
        pages = dict.fromkeys(diff.CHANGES, 0)
        names = diff.names(a, b)
        ranges = _counted(diff.diff(a, b, context.progress), pages, a.head.page_size)
        # Printed one by one: there may be more ranges than fit into memory.
        if context.json:
            print_result(f'{{"a":"{a.id}","b":"{b.id}","page_size":{a.head.page_size},"ranges":[', end="")
            for row, range_ in enumerate(ranges):
                print_result(("," if row else "") + json.dumps(vars(range_), separators=(",", ":")), end="")
            identical = not any(pages.values()) and not names
            totals = json.dumps({"names": [vars(one) for one in names], **pages, "identical": identical}, separators=(",", ":"))
            print_result(f"],{totals[1:]}")
            return 0
        several = len(a.files) > 1 or len(b.files) > 1
        for range_ in ranges:
            file = f"  {text.printable(range_.file)}" if several else ""
            print_result(f"{range_.change:8} {range_.offset:#014x} {text.size(range_.length):>9}{file}")
        for one in names:
            print_result(f"{one.change:8} {one.type:<14} {'':9}  {text.printable(one.name or '.')}")
    counts = ", ".join(f"{number} {change}" for change, number in pages.items())
    context.remark(f"Pages of {text.size(a.head.page_size)}: {counts}" + (f"; {len(names)} names differ" if names else ""))
    return 0


def _counted(ranges: Iterable[Range], pages: dict[str, int], page_size: int) -> Iterable[Range]:
    """``ranges``; adds their pages to ``pages``, by kind of change."""
    for range_ in ranges:
        pages[range_.change] += -(-range_.length // page_size)
        yield range_


VERB = Verb(
    name="diff",
    summary="print the page ranges that were added, changed or zeroed between two versions",
    description="added: zero or missing in A, not zero in B. gone: not zero in A, zero or missing in B. changed: not zero in both, "
    "and different. Files of images with several files are compared by name; names that one version lacks, and files, directories and "
    "links that differ in size, permissions or target, are listed too. Exits with 0 also if the versions differ.",
    run=run,
    arguments=(
        argument("a", metavar="A", help=IMAGE_HELP, empty=True),
        argument("b", metavar="B", help=IMAGE_HELP, empty=True),
    ),
    keys={
        "a, b": "version ids",
        "page_size": "bytes per page",
        "ranges": "one object for each page range:",
        "  file": "name of the file in the image",
        "  change": "added, changed or gone",
        "  offset, length": "bytes from the start of the file, and bytes",
        "names": "one object for each file, directory or symbolic link that one version lacks, or that differs:",
        "  name, type": "path in the image, and file, directory or link",
        "  change ": "added, gone, or changed: another type, size, target or other permissions",
        "added, changed, gone": "number of pages",
        "identical": "whether the versions have the same content: pages and names; times do not count",
    },
    examples=(("fuse-store diff web01/system@2026-11-21 web01/system/latest", "what changed since that day"),),
    interrupted="Nothing was changed.",
)
