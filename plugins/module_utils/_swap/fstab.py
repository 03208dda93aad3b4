# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps one line of fstab for one swap area and every other byte of the file unchanged (C(fstab_swap)).

The functions on text do not access the machine: they split the file at its newlines and look only at lines that fstab(5)
and C(libmount/src/tab_parse.c) read as entries. Comments, blank lines and lines that neither accepts stay unchanged.
Adding and removing a line are inverse: C(without(with_line(text))) is C(text), with or without a newline at its end.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused, shown
from ansible_collections.nvm.fastboot.plugins.module_utils._core.names import path_of, unescape
from ansible_collections.nvm.fastboot.plugins.module_utils._core.part import STATE, Part, by_state
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import target
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.headers import read_header
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.identity import (
    DEFAULT_DEVICE,
    DEFAULT_PRIORITY,
    check_priority,
    chosen_uuid,
    derived_uuids,
    swap_uuid,
)

DEFAULT_PATH = "/etc/fstab"
# systemd waits for the device before swap.target, 90 s by default, whether or not the swap is wanted (nofail).
DEFAULT_OPTIONS = ("defaults", "nofail")
FORMER = re.compile(r"UUID=([0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})$", re.IGNORECASE)
UNITS = "/etc/systemd/system/*.swap"
FIELDS = re.compile(r"[ \t\r\n]+")


@dataclass(frozen=True)
class FstabEntry:
    """The six fields of a line, as text; escapes resolved in the first two, defaults for missing fields."""

    spec: str
    file: str
    vfstype: str
    options: str = "defaults"
    freq: str = "0"
    passno: str = "0"


@dataclass(frozen=True)
class Identity:
    """Names that refer to our swap area: UUIDs in lower case, labels, paths of the device."""

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
    """The FstabEntry on C(line), or None for a comment, a blank line, or fewer than three fields."""
    fields = [field for field in FIELDS.split(line) if field]
    if len(fields) < 3 or fields[0].startswith("#"):
        return None
    return FstabEntry(unescape(fields[0]), unescape(fields[1]), *fields[2:6])


def render(spec, options):
    """Our line, without a newline."""
    return "%s swap swap %s 0 0" % (spec, ",".join(options))


def same(line, other):
    """Whether two lines are equivalent, apart from the order of options, white space and omitted defaults."""
    return _meaning(line) == _meaning(other)


def with_line(text, line, owns):
    """C(text) with C(line) as the only line for which C(owns(line)) is true.

    An owned line that is equivalent stays unchanged; otherwise the first owned line is replaced. Further ones are removed.
    Without an owned line, C(line) is appended; a text without a final newline still has none.
    """
    lines = split(text)
    owned = [index for index, each in enumerate(lines) if owns(each)]
    if not owned:
        return "%s\n%s" % (text, line) if text and not text.endswith("\n") else "%s%s\n" % (text, line)
    kept = next((index for index in owned if same(lines[index], line)), None)
    if kept is None:
        kept = owned[0]
        lines[kept] = line + lines[kept][len(lines[kept].rstrip("\r\n")) :]
    return "".join(each for index, each in enumerate(lines) if index == kept or index not in owned)


def without(text, owns):
    """C(text) without the owned lines, and without the newline that with_line() added before the last of them."""
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
    """Keep exactly one line for the swap area on C(device) in C(path). Returns what C(fstab_swap) returns."""
    host = tx.host
    place = _place(host, device)
    if place is not None:
        place.check(host)
    header = _header(host, device, place)
    uuid = _line_uuid(tx, device, uuid, header)
    line = render(_spec(device, uuid), _options(options, priority))
    before = _read(host, path)
    text = before or ""
    identity, former = _identity(host, device, uuid, header, text)
    after = with_line(text, line, identity.owns)
    result = {
        "path": path,
        "uuid": uuid,
        "line": _line_of(after, identity),
        "warnings": _warnings(host, device, after, identity),
    }
    result["warnings"] += [
        "%s has a line for the swap area of another machine id, as in a cloned template (UUID=%s); it is replaced." % (path, each)
        for each in former
    ]
    ours = sum(1 for each in split(text) if identity.owns(each))
    if ours > 1:
        result["warnings"].append("%s had %d lines for this swap area; all but one are removed." % (path, ours))
    if _replace(tx, path, before, after):
        _verify(host, path, identity, line)
        _reload(host, path)
    return result


def absent(tx, device, uuid=None, path=DEFAULT_PATH):
    """Remove all lines for the swap area on C(device) from C(path). Returns what C(fstab_swap) returns."""
    host = tx.host
    header = _header(host, device, _place(host, device))
    if uuid is not None:
        uuid = chosen_uuid(host, device, uuid)
    elif header is not None:
        uuid = header.uuid
    before = _read(host, path)
    identity, _former = _identity(host, device, uuid, header, before or "")
    result = {"path": path, "uuid": uuid, "line": None, "warnings": []}
    if before is not None and _replace(tx, path, before, without(before, identity.owns)):
        _verify(host, path, identity, None)
        _reload(host, path)
    return result


def _place(host, device):
    """The Target that C(device) names, or None where there is no block device and no swap file."""
    try:
        return target.find(host, device)
    except Refused:
        return None


def _header(host, device, place):
    """The header on C(device), or None where the device or a swap header is missing."""
    if place is None and (target.is_file(device) or not os.path.exists(host.path(device))):
        return None
    return place.header(host) if place else read_header(host, device)


def _spec(device, uuid):
    """How a line names the swap area. A UUID leads to devices alone."""
    if not target.is_file(device):
        return "UUID=%s" % uuid
    return "".join("\\%03o" % ord(letter) if letter in " \t\n\\#" else letter for letter in device)


def _line_uuid(tx, device, uuid, header):
    """The option C(uuid), else the UUID in the swap header, else in check mode the UUID that nvm_swap would set."""
    if uuid is not None:
        return chosen_uuid(tx.host, device, uuid)
    if header is not None and header.uuid:
        return header.uuid
    if tx.check_mode:
        return swap_uuid(tx.host, os.path.basename(device))
    raise Refused(
        "not_swap",
        "%s holds no swap area with a UUID, which its line in fstab needs." % device,
        "Create the swap area with %s first, or set the option uuid." % ("swap_file" if target.is_file(device) else "nvm_swap"),
    )


def _identity(host, device, uuid, header, text):
    """The Identity of our swap area, and the UUIDs in it that belong to a former machine id (a sorted list)."""
    uuids = {uuid} if uuid else set()
    try:
        uuids.add(swap_uuid(host, os.path.basename(device)))
    except Refused:
        pass  # without a machine id, no line with the derived UUID can exist
    labels = {header.label} if header is not None and header.label and header.uuid in uuids else set()
    former = sorted({each for line in split(text) for each in [_former_uuid(host, device, line)] if each} - uuids)
    return Identity(frozenset(uuids | set(former)), frozenset(labels), frozenset((device,))), former


def _former_uuid(host, device, line):
    """The UUID in C(line), if this module wrote it for the machine id that a cloned template had; else None.

    Such a line has the form of C(render), a derived UUID (version 8, which mkswap never makes), and leads to no other device. It is
    not one of this machine id, of another reservation whose device is missing now.
    """
    entry = parse_line(line)
    match = entry and FORMER.match(entry.spec)
    if not match or (entry.file, entry.vfstype) != ("swap", "swap"):
        return None
    uuid = match.group(1).lower()
    link = "/dev/disk/by-uuid/%s" % uuid
    if host.exists(link) and host.real(link) != host.real(device):
        return None
    return None if uuid in derived_uuids(host) else uuid


def _options(options, priority):
    words = list(options) or ["defaults"]
    for word in words:
        if not word or re.search(r"[\s,#]", word):
            raise Refused(
                "options_invalid",
                "%r is not a valid option of a line in fstab." % word,
                "Give a list of single options such as nofail, without white space.",
            )
        if word == "pri" or word.startswith("pri="):
            raise Refused(
                "options_invalid", "options must not set the priority (pri=).", "Set the option priority instead."
            )
    check_priority(priority)
    return words + (["pri=%d" % priority] if priority >= 0 else [])


def _read(host, path):
    """The text of C(path), or None if the file does not exist. Refused C(file_unreadable)."""
    text = host.read(path)
    if text is None and os.path.exists(host.path(path)):
        raise Refused("file_unreadable", "%s cannot be read." % path, "Run as root, and check that it is a plain file.")
    return text


def _line_of(text, identity):
    return shown(next(each for each in split(text) if identity.owns(each)).rstrip("\r\n"))


def _warnings(host, device, text, identity):
    """One warning for each other line, or unit of systemd, that activates the same device a second time, maybe with another priority."""
    warnings = []
    own = host.real(device)
    for number, each in enumerate(split(text), 1):
        entry = parse_line(each)
        if entry is None or entry.vfstype != "swap" or identity.owns(each):
            continue
        if host.real(path_of(entry.spec)) == own:
            warnings.append("Line %d uses the same device: %s" % (number, shown(each.strip())))
    for unit in host.glob(UNITS):
        for what in re.findall(r"(?m)^[ \t]*What[ \t]*=[ \t]*(\S+)", host.read(unit, "")):
            if host.real(path_of(what)) == own or identity.owns(render(what, ("sw",))):
                warnings.append("The unit %s uses the same device, with a priority of its own: remove it (systemctl disable --now %s)." % (
                    unit, shlex.quote(os.path.basename(unit))))
    return warnings


def _replace(tx, path, before, after):
    """Write C(after) if it differs. Returns whether the file was written (never in check mode)."""
    if (before or "") == after:
        return False
    try:
        return tx.write(path, after) and not tx.check_mode
    except OSError as error:
        raise Refused(
            "file_not_writable",
            "%s cannot be replaced: %s." % (path, error.strerror),
            "Run as root, and make its filesystem writable (mount -o remount,rw).",
        ) from error


def _verify(host, path, identity, line):
    owned = [each for each in split(host.read(path, "")) if identity.owns(each)]
    if len(owned) != (line is not None) or any(not same(each, line) for each in owned):
        raise Refused(
            "verify_failed",
            "%s differs from what was written; the old content was restored." % path,
            "Check that no other program writes to the file, and check the kernel log for errors of its filesystem.",
        )


def _reload(host, path):
    """Make systemd generate the swap unit from the new line; it reads fstab again only on request."""
    if path == DEFAULT_PATH and host.exists("/run/systemd/system"):
        host.run([host.tool("systemctl"), "daemon-reload"])


PART = Part(
    {
        "device": {"type": "str", "default": DEFAULT_DEVICE},
        "uuid": {"type": "str"},
        "options": {"type": "list", "elements": "str", "default": list(DEFAULT_OPTIONS)},
        "priority": {"type": "int", "default": DEFAULT_PRIORITY},
        "path": {"type": "path", "default": DEFAULT_PATH},
        "state": STATE,
    },
    by_state(present, absent, absent_options=("device", "uuid", "path")),
)
