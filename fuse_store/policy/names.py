# SPDX-License-Identifier: GPL-3.0-or-later
"""What machines, applications, events and tags may be called. Checked once, where they come in; ``store`` uses it.

They become folder names in the mount and go into references (``M/A/latest``), so neither a slash nor an ``@`` in them,
nothing that a terminal would take for a command, and not longer than any filesystem takes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from fuse_store.errors import UsageError
from fuse_store.image.kind import KINDS

LONGEST = 200  # bytes of UTF-8; a file name may have 255, and kinds/ puts a machine, an application and a version in one
TAGS = 64


def checked(what: str, name: str, empty: bool = False) -> str:
    """``name`` in Unicode's NFC, or UsageError. ``what`` says in the error what it is the name of."""
    name = unicodedata.normalize("NFC", name)
    for wrong, cause in (
        (not name and not empty, "is empty"),
        (len(name.encode(errors="surrogatepass")) > LONGEST, f"is longer than {LONGEST} bytes"),
        (name in (".", ".."), "is a name that every folder has"),
        ("/" in name or "@" in name, "has a slash or an @ in it"),
        (any(unicodedata.category(letter)[0] == "C" for letter in name), "has a control character in it"),
        (name != name.strip(), "begins or ends with a space"),
    ):
        if wrong:
            raise UsageError(f"{what} {name[:40]!r}", f"it {cause}.", "Choose another name.")
    return name


def checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    if len(tags) > TAGS:
        raise UsageError("tags", f"there are {len(tags)}, and {TAGS} is the most.")
    return {checked("the tag", key): checked(f"the value of tag {key}", value, empty=True) for key, value in tags.items()}


def checked_kind(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(f"kind {kind!r}", "there is no such kind.", f"There are {', '.join(KINDS)}.")
    return kind
