# -*- coding: utf-8 -*-
# SPDX-License-Identifier: GPL-3.0-or-later
"""One line of fstab for one swap area, and every other byte of the file as it was.

Used by C(fstab_swap). The functions on text know nothing of the machine: they cut the file at its newlines and look
only at lines that fstab(5) and C(libmount/src/tab_parse.c) read as entries; comments, blank lines and what neither of
them would understand pass through untouched. A line that was added goes away without a trace:
C(without(with_line(text))) is C(text), with or without a newline at its end.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused, shown
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.devices import unescape
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.headers import read_header
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.identity import (
    DEFAULT_PRIORITY,
    check_priority,
    chosen_uuid,
    swap_uuid,
)

DEFAULT_PATH = "/etc/fstab"
# systemd waits for the device before swap.target, 90 s by default, whether or not the swap is wanted (nofail).
DEFAULT_OPTIONS = ("defaults", "nofail")
FIELDS = re.compile(r"[ \t\r\n]+")


@dataclass(frozen=True)
class Entry:
    """The six fields of a line, as text, escapes resolved in the first two; what is missing has its default."""

    spec: str
    file: str
    vfstype: str
    options: str = "defaults"
    freq: str = "0"
    passno: str = "0"


@dataclass(frozen=True)
class Identity:
    """The names by which a line means our swap area: UUIDs in lower case, labels, paths of the device."""

    uuids: frozenset
    labels: frozenset
    paths: frozenset

    def owns(self, line):
        """Whether C(line) is an entry for our swap area."""
        entry = parse_line(line)
        if entry is None or entry.vfstype != "swap":
            return False
        tag, equals, value = entry.spec.partition("=")
        if equals and not tag.startswith("/"):
            value = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
            return {"UUID": value.lower() in self.uuids, "LABEL": value in self.labels}.get(tag, False)
        directory, name = os.path.split(entry.spec)
        return entry.spec in self.paths or {
            "/dev/disk/by-uuid": name.lower() in self.uuids,
            "/dev/disk/by-label": name in self.labels,
        }.get(directory, False)


# text ----------------------------------------------------------------------------------------------------------------


def split(text):
    """The lines of C(text), each with its newline; nothing else ends a line."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def parse_line(line):
    """The Entry on C(line), or None where it is a comment, blank, or has fewer than three fields."""
    fields = [field for field in FIELDS.split(line) if field]
    if len(fields) < 3 or fields[0].startswith("#"):
        return None
    return Entry(unescape(fields[0]), unescape(fields[1]), *fields[2:6])


def render(uuid, options):
    """Our line, without a newline."""
    return "UUID=%s swap swap %s 0 0" % (uuid, ",".join(options))


def same(line, other):
    """Whether two lines say the same: order of options, white space and defaults left out do not matter."""
    return _meaning(line) == _meaning(other)


def with_line(text, line, owns):
    """C(text) in which C(line) is the only one that C(owns(line)) says is ours.

    One of ours that says the same already stays as it is; else the first is replaced in its place; the others go. Where
    there is none, C(line) is appended, and what lacked a newline at its end lacks it afterwards.
    """
    lines = split(text)
    ours = [number for number, each in enumerate(lines) if owns(each)]
    if not ours:
        return "%s\n%s" % (text, line) if text and not text.endswith("\n") else "%s%s\n" % (text, line)
    kept = next((number for number in ours if same(lines[number], line)), None)
    if kept is None:
        kept = ours[0]
        lines[kept] = line + lines[kept][len(lines[kept].rstrip("\r\n")) :]
    return "".join(each for number, each in enumerate(lines) if number == kept or number not in ours)


def without(text, owns):
    """C(text) without the lines that are ours, and without the newline that was added to make room for the last."""
    lines = split(text)
    kept = [each for each in lines if not owns(each)]
    if kept and len(kept) < len(lines) and owns(lines[-1]) and not lines[-1].endswith("\n"):
        kept[-1] = kept[-1][:-1]
    return "".join(kept)


def _meaning(line):
    entry = parse_line(line)
    if entry is None:
        return None
    tag, equals, value = entry.spec.partition("=")
    spec = "%s%s%s" % (tag, equals, value.lower()) if tag == "UUID" else entry.spec
    file = "swap" if entry.file == "none" else entry.file
    return spec, file, entry.vfstype, frozenset(entry.options.split(",")), entry.freq, entry.passno


# the machine ---------------------------------------------------------------------------------------------------------


def present(tx, device, uuid=None, options=DEFAULT_OPTIONS, priority=DEFAULT_PRIORITY, path=DEFAULT_PATH):
    """Have exactly one line for the swap area on C(device) in C(path). Returns what C(fstab_swap) returns."""
    host = tx.host
    found = _header(host, device)
    uuid = _line_uuid(tx, device, uuid, found)
    line = render(uuid, _options(options, priority))
    identity = _identity(host, device, uuid, found)
    before = _read(host, path)
    text = before or ""
    after = with_line(text, line, identity.owns)
    result = {
        "path": path,
        "uuid": uuid,
        "line": _line_of(after, identity),
        "warnings": _warnings(host, device, after, identity),
    }
    ours = sum(1 for each in split(text) if identity.owns(each))
    if ours > 1:
        result["warnings"].append("%s had %d lines for this swap area; one is left." % (path, ours))
    if _replace(tx, path, before, after):
        _verify(host, path, identity, line)
        _reload(host, path)
    return result


def absent(tx, device, uuid=None, path=DEFAULT_PATH):
    """Have no line for the swap area on C(device) in C(path). Returns what C(fstab_swap) returns."""
    host = tx.host
    found = _header(host, device)
    if uuid is not None:
        uuid = chosen_uuid(host, device, uuid)
    elif found is not None:
        uuid = found.uuid
    identity = _identity(host, device, uuid, found)
    before = _read(host, path)
    result = {"path": path, "uuid": uuid, "line": None, "warnings": []}
    if before is not None and _replace(tx, path, before, without(before, identity.owns)):
        _verify(host, path, identity, None)
        _reload(host, path)
    return result


def _header(host, device):
    """The header on C(device), or None where the device or a swap header is missing."""
    try:
        return read_header(host, device)
    except Refused as refused:
        if refused.code == "device_missing":
            return None
        raise


def _line_uuid(tx, device, uuid, found):
    """The UUID given, or the one of the swap header; in check mode, failing both, the one nvm_swap would give it."""
    if uuid is not None:
        return chosen_uuid(tx.host, device, uuid)
    if found is not None and found.uuid:
        return found.uuid
    if tx.check_mode:
        return swap_uuid(tx.host, os.path.basename(device))
    raise Refused(
        "not_swap",
        "%s holds no swap area with a UUID, by which its line in fstab would name it." % device,
        "Make the swap area with nvm_swap first, or give the UUID with the option uuid.",
    )


def _identity(host, device, uuid, found):
    uuids = {uuid} if uuid else set()
    try:
        uuids.add(swap_uuid(host, os.path.basename(device)))
    except Refused:
        pass  # without a machine id no line can have been written by the derived UUID
    labels = {found.label} if found is not None and found.label and found.uuid in uuids else set()
    return Identity(frozenset(uuids), frozenset(labels), frozenset((device,)))


def _options(options, priority):
    words = list(options) or ["defaults"]
    for word in words:
        if not word or re.search(r"[\s,#]", word):
            raise Refused(
                "options_invalid",
                "%r cannot be an option of a line in fstab." % word,
                "Give a list of single options such as nofail, without white space.",
            )
        if word == "pri" or word.startswith("pri="):
            raise Refused(
                "options_invalid", "The priority of a swap area is no free option here.", "Use the option priority."
            )
    check_priority(priority)
    return words + (["pri=%d" % priority] if priority >= 0 else [])


def _read(host, path):
    """The text of C(path), or None where there is no such file. Refused C(file_unreadable) where there is one."""
    text = host.read(path)
    if text is None and os.path.exists(host.path(path)):
        raise Refused("file_unreadable", "%s cannot be read." % path, "Run as root; check that it is a plain file.")
    return text


def _line_of(text, identity):
    return shown(next(each for each in split(text) if identity.owns(each)).rstrip("\r\n"))


def _warnings(host, device, text, identity):
    """Lines of others that would use the same device a second time."""
    found = []
    target = host.real(device)
    for number, each in enumerate(split(text), 1):
        entry = parse_line(each)
        if entry is None or entry.vfstype != "swap" or identity.owns(each) or not entry.spec.startswith("/"):
            continue
        if host.real(entry.spec) == target:
            found.append("Line %d names the same device: %s" % (number, shown(each.strip())))
    return found


def _replace(tx, path, before, after):
    """Write C(after) where it differs. Returns whether the file was written (never in check mode)."""
    if (before or "") == after:
        return False
    try:
        return tx.write(path, after) and not tx.check_mode
    except OSError as error:
        raise Refused(
            "file_not_writable",
            "%s cannot be replaced: %s." % (path, error.strerror),
            "Make its filesystem writable (mount -o remount,rw), and run as root.",
        ) from error


def _verify(host, path, identity, line):
    ours = [each for each in split(host.read(path, "")) if identity.owns(each)]
    if len(ours) != (line is not None) or any(not same(each, line) for each in ours):
        raise Refused(
            "verify_failed",
            "%s was replaced, but does not read back as it was written; it has been put back." % path,
            "Check that nothing else writes to it, and look into the kernel log for errors of its filesystem.",
        )


def _reload(host, path):
    """Have systemd make the swap unit from the new line; its generator reads fstab only when told to."""
    if path == DEFAULT_PATH and host.exists("/run/systemd/system"):
        host.run([host.which("systemctl") or "systemctl", "daemon-reload"])
