# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands print: versions as JSON objects and as labels, and errors as one line or one JSON object.

The keys of JSON objects are a promise to programs: add keys, never rename them. Results go to standard output, errors to standard
error. For the main thread.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from fuse_store.cli.parser import PROGRAM
from fuse_store.cli.text import one_of, printable
from fuse_store.errors import Damaged, StoreError, advice
from fuse_store.image.kind import KINDS

if TYPE_CHECKING:
    from fuse_store.repository.manifest import Summary

VERSION_KEYS = {
    "id": "version id, 32 hexadecimal digits",
    "version": "name in the mount: time and start of the id",
    "machine": "machine name",
    "application": "application name",
    "kind": one_of(KINDS),
    "event": "reason for the capture; may be empty",
    "tags": "object of tags",
    "taken": "time of capture in UTC (ISO 8601), by the clock of the machine that stored the version",
    "number": "place in the order of the machine's versions, which does not go by the clock",
    "state": "captured, verified, staged, armed, resumed, failed or unknown",
    "size": "bytes of all files, holes included",
    "allocated": "bytes of pages that are not all zero",
    "new": "bytes of pages that no base has; of LZO chunks, the uncompressed pages",
    "stored": "bytes written to the store",
    "files": "number of files",
    "directory": "whether it is the image of a directory, with all its directories and symbolic links",
    "bases": "ids of the versions that pages were shared with",
    "recognised": "kind of image that was found in the bytes, whatever kind says; empty if none",
    "chunks": "number of LZO chunks of a hibernation image that are stored as uncompressed pages",
}
NAME_KEYS = {key: VERSION_KEYS[key] for key in ("id", "version", "machine", "application", "taken")}
STDOUT = "standard output"
_ENDLESS = re.compile(r"(\S{200})\S{4096,}(\S{50})")  # PATH_MAX
REPORT_BUG = "This is a bug in fuse-store. Please report it with the output of FUSE_STORE_DEBUG=1."


def version_record(version: Summary) -> dict[str, Any]:
    """The keys of VERSION_KEYS. Makes no deep copies: lists have ten thousand versions."""
    values = vars(version)
    record = {key: values.get(key) for key in VERSION_KEYS}
    record["version"] = version.version
    record["taken"] = version.taken.isoformat(timespec="milliseconds")
    return record


def name_record(version: Summary) -> dict[str, Any]:
    """The keys of NAME_KEYS, which identify a version."""
    taken = version.taken.isoformat(timespec="milliseconds")
    return {
        "id": version.id, "version": version.version, "machine": version.machine, "application": version.application, "taken": taken,
    }  # fmt: skip


def label(version: Summary) -> str:
    """The name of a version in remarks."""
    return f"{version.machine}/{version.application}/{version.version}"


def print_result(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print to standard output, or a file. An OSError names it."""
    try:
        print(text, end=end, file=file)
    except OSError as error:
        error.filename = STDOUT
        raise


def print_json(record: dict[str, Any], file: TextIO | None = None) -> None:
    """Print an object in one line. Values that are iterators are printed item by item, as lists: they may not fit into memory."""
    before = "{"
    for key, value in record.items():
        print_result(f"{before}{_json(key)}:", end="", file=file)
        before = ","
        if not isinstance(value, Iterator):
            print_result(_json(value), end="", file=file)
            continue
        between = "["
        for item in value:
            print_result(between + _json(item), end="", file=file)
            between = ","
        print_result("]" if between == "," else "[]", end="", file=file)
    print_result("}", file=file)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def print_error(as_json: bool, record: dict[str, Any], text: str) -> None:
    """Print an error: ``record`` as JSON, or ``text`` in one line, without the middle of words that are longer than any path. Does
    nothing if standard error is closed."""
    line = json.dumps({"error": record}) if as_json else f"{PROGRAM}: " + printable(_ENDLESS.sub(r"\1…\2", text))
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        pass


def explain(error: Exception, as_json: bool, done: str = "") -> int:
    """Print an error that ended a command; its exit code. ``done``: what the command had done before."""
    error = _of_a_library(error) or error
    if isinstance(error, StoreError):
        record: dict[str, Any] = {
            "type": _snake_case(type(error).__name__), "exit_code": error.exit_code,
            "thing": error.thing, "cause": error.cause, "remedy": error.remedy,
        }  # fmt: skip
        if isinstance(error, Damaged):
            record |= {"image": error.image, "extent": error.extent, "pack": error.pack}
        print_error(as_json, record, str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        stdout_failed = not flush_or_abandon_stdout()
        paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
        where = " → ".join(paths) or (STDOUT if stdout_failed else "input or output")
        cause = f"{os.strerror(error.errno)}."
        remedy = " ".join(filter(None, (done, advice(error.errno))))
        record = {"type": "os_error", "exit_code": 1, "errno": error.errno, "thing": where, "cause": cause, "remedy": remedy}
        print_error(as_json, record, " ".join(filter(None, (f"{where}: {cause}", remedy))))
        return 1
    if _is_memory(error):
        cause, remedy = "out of memory.", " ".join(filter(None, (done, advice(errno.ENOMEM))))
        record = {"type": "memory", "exit_code": 1, "thing": "memory", "cause": cause, "remedy": remedy}
        print_error(as_json, record, f"{cause} {remedy}")
        return 1
    text = f"{type(error).__name__}: {error}"
    record = {"type": "defect", "exit_code": 1, "thing": "fuse-store", "cause": text, "remedy": REPORT_BUG}
    print_error(as_json, record, f"{text}. {REPORT_BUG}")
    return 1


def _of_a_library(error: Exception) -> StoreError | None:
    """What the error means if a library is missing, or does not run here; else None. numpy has no class for what it says of processors."""
    if isinstance(error, RuntimeError) and "baseline optimizations" in str(error):
        return StoreError("numpy", "it was built for newer processors than this one.", "Install an older one: pip install 'numpy<2.4'.")
    library = (error.name or "").partition(".")[0] if isinstance(error, ImportError) and not _is_memory(error) else ""
    if library in ("", __package__.partition(".")[0]):
        return None
    return StoreError(library, f"cannot be loaded: {error}.", "Install fuse-store again, with pip or pipx: both bring what it needs.")


def _is_memory(error: Exception) -> bool:
    """Whether memory, or what a thread needs, ran out: Python and the linker have no class for the last two."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    if isinstance(error, ImportError):
        return "failed to map segment" in text or "annot allocate memory" in text
    return isinstance(error, RuntimeError) and "can't start new thread" in text


def flush_stdout() -> None:
    """An OSError names standard output."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = STDOUT
        raise


def flush_or_abandon_stdout() -> bool:
    """Flush standard output. If that fails, redirect it to /dev/null, so that the interpreter's last flush does not fail again;
    False then."""
    try:
        sys.stdout.flush()
    except OSError:
        if isinstance(sys.stdout, io.TextIOWrapper):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        return False
    return True


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
