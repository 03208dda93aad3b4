# SPDX-License-Identifier: GPL-3.0-or-later
"""Valid names of machines, applications, events and tags, and the one form in which they are stored and compared. Pure functions.

Names become directories in the mount and parts of references (``M/A/latest``). So they contain no slash, no ``@`` and no control
character, and are not longer than a file name may be. Values that come from images are no names.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from fuse_store.errors import UsageError
from fuse_store.image.kind import KINDS

MAX_NAME_SIZE = 200  # bytes of UTF-8; a file name has at most 255, and kinds/ joins machine, application and version
MAX_TAGS = 64  # of a version


def normal(text: str) -> str:
    """``text`` in Unicode's NFC. The same name may be typed in other forms: a Mac has é as e and an accent. Everything that names a
    version, and comes from outside, passes through here."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def checked(what: str, name: str, empty: bool = False) -> str:
    """``name`` in its normal form. ``what``: the thing that has the name, for the error. Raises UsageError."""
    name = normal(name)
    for wrong, cause in (
        (not name and not empty, "empty name."),
        (len(name.encode(errors="surrogatepass")) > MAX_NAME_SIZE, f"longer than {MAX_NAME_SIZE} bytes."),
        (name in (".", ".."), "reserved name."),
        ("/" in name or "@" in name, "contains a slash or an @."),
        (any("\ud800" <= letter <= "\udfff" for letter in name), "not text in the encoding of the locale, or in UTF-8."),
        (any(unicodedata.category(letter)[0] == "C" for letter in name), "contains a control character."),
        (name != name.strip(), "begins or ends with a space."),
    ):
        if wrong:
            raise UsageError(f"{what} {name[:40]!r}", cause, "Choose another name.")
    return name


def checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    if len(tags) > MAX_TAGS:
        raise UsageError("tags", f"too many tags ({len(tags)}).", f"Use at most {MAX_TAGS}.")
    return {checked("the tag", key): checked(f"the value of tag {key}", value, empty=True) for key, value in tags.items()}


def recorded_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that were read in an image or on a machine: data, not names. As they are, but for what has no place in a text, and cut
    to MAX_NAME_SIZE: nothing that a machine is called may stop its capture."""
    return {_cut(key): _cut(value) for key, value in tags.items()}


def _cut(text: str) -> str:
    encoded = text.encode("utf-8", "replace")  # a lone surrogate is no text
    return encoded[:MAX_NAME_SIZE].decode("utf-8", "ignore")


def checked_kind(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(f"kind {kind!r}", "no such kind.", f"Use one of {', '.join(KINDS)}.")
    return kind
