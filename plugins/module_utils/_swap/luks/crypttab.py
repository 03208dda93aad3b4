# SPDX-License-Identifier: GPL-3.0-or-later
"""One line of crypttab(5), and every other byte of the file unchanged. Pure functions on texts.

As in fstab: C(without(with_line(text, line), name)) is C(text).
"""

from __future__ import annotations

import re


def render(name, uuid, key, options):
    """Our line, without a newline. C(key) "" is no key file."""
    return "%s UUID=%s %s %s" % (name, uuid, key or "none", ",".join(options))


def fields_of(text, name):
    """The fields of the line for the mapping C(name), or None."""
    return next((line.split() for line in text.splitlines() if _is_for(line, name)), None)


def with_line(text, line, name):
    """C(text) with C(line) as the only one for the mapping C(name)."""
    lines = _split(text)
    ours = [index for index, each in enumerate(lines) if _is_for(each, name)]
    if not ours:
        return "%s\n%s" % (text, line) if text and not text.endswith("\n") else "%s%s\n" % (text, line)
    if lines[ours[0]].split() != line.split():
        lines[ours[0]] = line + lines[ours[0]][len(lines[ours[0]].rstrip("\r\n")) :]
    return "".join(each for index, each in enumerate(lines) if index == ours[0] or index not in ours)


def without(text, name):
    """C(text) without the lines for the mapping C(name), and without the newline that with_line() added before the last of them."""
    lines = _split(text)
    kept = [each for each in lines if not _is_for(each, name)]
    if kept and len(kept) < len(lines) and _is_for(lines[-1], name) and not lines[-1].endswith("\n"):
        kept[-1] = kept[-1][:-1]
    return "".join(kept)


def _split(text):
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _is_for(line, name):
    fields = line.split()
    return len(fields) > 1 and fields[0] == name
