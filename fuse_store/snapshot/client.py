# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the snapshot service: one function, for programs without rights. Needs no more than the standard library.

    from fuse_store.snapshot.client import snapshot
    if snapshot("shop").restored:
        connect_again()
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass

SOCKET = "/run/fuse-store/snapshot"
METHOD = "io.github.nvm_fastboot.Snapshot.Take"
MAX_ANSWER = 1 << 20  # bytes
RETRY_SECONDS = 0.1


class SnapshotError(Exception):
    """No snapshot was made. ``name``: of the error, such as ``NotAllowed``; ``parameters``: what the service says of it."""

    def __init__(self, message: str, name: str = "", parameters: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.name, self.parameters = name, parameters or {}


@dataclass(frozen=True)
class Snapshot:
    """``restored``: the system was resumed from the image, and the program goes on from the same call. ``id``: of the image, the same
    both times; ``size``: its bytes; ``pause``: seconds for which the system stood still. Both are 0 if restored. ``slot``: the number of
    its slot; None on a device without slots."""

    restored: bool
    id: str
    size: int
    pause: float
    slot: int | None = None


def snapshot(
    application: str, event: str = "", *, replace: bool = False, keep: int | None = None, path: str = SOCKET,
    timeout: float | None = None,
) -> Snapshot:  # fmt: skip
    """Have an image of the whole system made. Returns when it is there, and once more each time that the system is resumed from it.

    On a device with slots, when the image is complete: ``replace`` drops older ones of the same application and event, ``keep`` all but
    the so many newest of the application; both within what the policy says. ``timeout``: seconds to wait for others who asked before, and
    for the image. Raises SnapshotError.
    """
    parameters: dict[str, object] = {"application": application, "event": event, "replace": replace, "keep": keep}
    call = {"method": METHOD, "parameters": parameters}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            _connect(connection, path, timeout)
            connection.sendall(json.dumps(call).encode() + b"\0")
            answer = b""
            while not answer.endswith(b"\0"):
                part = connection.recv(65536)
                if not part or len(answer) > MAX_ANSWER:
                    raise SnapshotError(f"{path}: the service ended the connection. Look at its log: journalctl -u fuse-store-snapshot")
                answer += part
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror or error}. Start the service: systemctl start fuse-store-snapshot.socket") from None
    try:
        message = json.loads(answer[:-1])
        answered = message.get("parameters") or {}
        if name := message.get("error"):
            raise SnapshotError(_sentence(name.rpartition(".")[2], answered), name.rpartition(".")[2], answered)
        result, slot = answered["result"], answered.get("slot")
        return Snapshot(result == "restored", answered["id"], answered["size"], answered["pause"], slot)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise SnapshotError(f"{path}: the answer is not that of a snapshot service.") from None


def _connect(connection: socket.socket, path: str, timeout: float | None) -> None:
    """Raises OSError. Where many wait already, a connection with a time limit is refused at once (EAGAIN), and tried again."""
    connection.settimeout(timeout)
    end = time.monotonic() + (timeout or 0)
    while True:
        try:
            return connection.connect(path)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(RETRY_SECONDS)


def _sentence(name: str, parameters: dict[str, object]) -> str:
    match name:
        case "NotAllowed":
            return (
                f"user {parameters.get('user')} may not ask for snapshots of {parameters.get('application')}. "
                "Add it to /etc/fuse-store/snapshots.toml."
            )
        case "TooSoon":
            return f"{parameters.get('application')} had a snapshot just now. Ask again in {parameters.get('seconds')} seconds."
        case "Failed":
            return f"{parameters.get('thing')}: {parameters.get('cause')} {parameters.get('remedy')}".strip()
    return f"the service answers {name} {json.dumps(parameters)}"
