# SPDX-License-Identifier: GPL-3.0-or-later
"""A client for QEMU's machine protocol, as far as the laboratory needs it: one command, one answer."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, TextIO


class QmpError(Exception):
    """QEMU refused a command, or is not there."""


def execute(path: Path, command: str, **arguments: Any) -> Any:
    """Run ``command`` on the QEMU that listens at the socket ``path`` and return what it answers.

    Raises QmpError. Follows qemu's docs/interop/qmp-spec.
    """
    # The name of a UNIX socket is limited to 107 bytes, a folder's is not: reach the socket through an open folder.
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise QmpError(f"{command}: {error}") from error
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            stream = connection.makefile("rw")
            stream.readline()  # the greeting
            _ask(stream, {"execute": "qmp_capabilities"})
            return _ask(stream, {"execute": command, "arguments": arguments})
    except (OSError, ValueError) as error:
        raise QmpError(f"{command}: {error}") from error
    finally:
        os.close(directory)


def _ask(stream: TextIO, request: dict[str, Any]) -> Any:
    stream.write(json.dumps(request) + "\n")
    stream.flush()
    while line := stream.readline():
        message = json.loads(line)
        if "error" in message:
            raise QmpError(message["error"].get("desc", "refused"))
        if "return" in message:
            return message["return"]
    raise OSError("QEMU closed the connection")
