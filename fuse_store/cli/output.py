# SPDX-License-Identifier: GPL-3.0-or-later
"""A version as ``--json`` shows it. Used by every verb that prints one; its keys are promised to programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuse_store.repository.manifest import Summary

VERSION_KEYS = {
    "id": "the id of the version: 32 hexadecimal digits",
    "version": "its name in the mount: time and start of the id",
    "machine": "the machine it belongs to",
    "application": "what asked for it",
    "kind": "hibernation, memory, disk, process, vm, core, language, iso or file",
    "event": "why it was taken; may be empty",
    "tags": "object of its tags",
    "taken": "when, in UTC (ISO 8601)",
    "state": "captured, verified, staged, armed, resumed or failed",
    "size": "bytes of all its files",
    "allocated": "bytes of its pages that are not zero",
    "new": "bytes of its pages that none of its bases had; of chunks, of the pages they hold",
    "stored": "bytes that were written for it",
    "files": "how many files it has",
    "bases": "ids of the versions whose pages it was compared with",
    "chunks": "how many compressed chunks of a hibernation image are stored as the pages they hold",
}
NAME_KEYS = {key: VERSION_KEYS[key] for key in ("id", "version", "machine", "application", "taken")}


def version_record(version: Summary) -> dict[str, Any]:
    """The keys of VERSION_KEYS. No deep copies: lists of ten thousand versions are made of it."""
    values = vars(version)
    record = {key: values.get(key) for key in VERSION_KEYS}
    record["version"] = version.version
    record["taken"] = version.taken.isoformat(timespec="milliseconds")
    return record


def name_record(version: Summary) -> dict[str, Any]:
    """The keys of NAME_KEYS: enough to tell which version is meant."""
    taken = version.taken.isoformat(timespec="milliseconds")
    return {
        "id": version.id, "version": version.version, "machine": version.machine, "application": version.application, "taken": taken,
    }  # fmt: skip


def label(version: Summary) -> str:
    """For remarks: which version is meant."""
    return f"{version.machine}/{version.application}/{version.version}"
