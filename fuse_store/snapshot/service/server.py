# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers calls on a socket. Calls are answered in the order in which they arrive, one snapshot at a time; a caller who says nothing,
or too much, holds up no other. One thread, because it stops all others.
"""

from __future__ import annotations

import contextlib
import math
import os
import pwd
import selectors
import socket
import stat
import struct
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fuse_store import __version__
from fuse_store.errors import NotFound, Refused, StoreError, UsageError
from fuse_store.hibernation.slots.manage import has_slots
from fuse_store.snapshot.client import SOCKET
from fuse_store.snapshot.service import policy as policies
from fuse_store.snapshot.service import upload, varlink
from fuse_store.snapshot.service.policy import Policy
from fuse_store.snapshot.service.varlink import INTERFACE, Call, CallError
from fuse_store.snapshot.taking import Snapshot, take
from fuse_store.snapshot.targets import Wishes, wrong_name

MAX_CALLERS = 64
_ACTIVATED = 3  # SD_LISTEN_FDS_START
_PEER_GROUPS = 59  # SO_PEERGROUPS of include/uapi/asm-generic/socket.h
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid

Take = Callable[[Policy, Wishes], Snapshot]


def take_as(policy: Policy, wishes: Wishes) -> Snapshot:
    """A snapshot as a policy says. Raises StoreError."""
    if not has_slots(policy.device):
        wishes = replace(wishes, replace=True, keep=None)  # it has space for one
    return take(policy.device, wishes)


class Server:
    """``path`` of the policy is read for each call, so that changes count at once."""

    def __init__(self, listener: socket.socket, policy: Path | str, taking: Take = take_as) -> None:
        self._listener, self._policy, self._taking = listener, policy, taking
        self._selector = selectors.DefaultSelector()
        self._received: dict[socket.socket, bytearray] = {}
        self._last: dict[str, float] = {}
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def serve(self, idle: float = math.inf) -> None:
        """Until no program was connected for ``idle`` seconds."""
        while events := self._selector.select(None if self._received or math.isinf(idle) else idle):
            for key, _mask in events:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._received:  # not dropped meanwhile
                    self._receive(key.fileobj)
        self._selector.close()

    def _accept(self) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError:  # the caller has gone
            return
        if len(self._received) >= MAX_CALLERS:  # who has waited longest without a complete call
            self._drop(next(iter(self._received)))
        connection.setblocking(False)
        self._received[connection] = bytearray()
        self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, connection: socket.socket) -> None:
        received = self._received[connection]
        try:
            part = connection.recv(varlink.MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        received += part
        while part and (end := received.find(b"\0")) >= 0:
            message = bytes(received[:end])
            del received[: end + 1]
            if not self._answer(connection, message):
                part = b""
        if not part or len(received) > varlink.MAX_MESSAGE:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._received[connection]
        connection.close()

    def _answer(self, connection: socket.socket, message: bytes) -> bool:
        """Whether the caller took the answer."""
        call = None
        try:
            call = varlink.parse(message)
            if call.method == f"{INTERFACE}.Take":
                answer = self._take(call, connection)
            else:
                answer = varlink.reply(**varlink.service(call, __version__))
        except CallError as error:
            answer = varlink.failure(error)
        except StoreError as error:
            _log(f"snapshot failed: {error}")
            for note in getattr(error, "__notes__", ()):
                _log(f"warning: {note}")
            parameters = {"thing": error.thing, "cause": error.cause, "remedy": error.remedy, "exit_code": error.exit_code}
            answer = varlink.failure(CallError(f"{INTERFACE}.Failed", **parameters))
        if call is not None and call.oneway:
            return True
        try:
            return connection.send(answer) == len(answer)
        except OSError:
            return False

    def _take(self, call: Call, connection: socket.socket) -> bytes:
        """Raises CallError, StoreError."""
        application, event = call.text("application"), call.text("event", "")
        newer, keep = call.flag("replace"), call.number("keep")
        if name := wrong_name(application, event):
            raise varlink.invalid(name)
        policy = policies.load(self._policy)
        user, groups = _caller(connection)
        if not policy.allows(application, user, groups):
            raise CallError(f"{INTERFACE}.NotAllowed", user=_name(user), application=application)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        known = policy.applications.get(application)
        wait = self._last.get(application, -math.inf) + (known.interval if known else 0) - now
        if wait > 0:
            raise CallError(f"{INTERFACE}.TooSoon", application=application, seconds=math.ceil(wait))
        before = dict(self._last)
        if application in policy.applications:
            self._last[application] = now
        try:
            taken = self._taking(policy, policy.wishes(application, event, newer, keep))
        except (Refused, UsageError, NotFound):  # the system did not stand still
            self._last = before
            raise
        not_asked = upload.ask(taken.id if taken.restored else "") if policy.stores(taken) else ""
        for warning in filter(None, (*taken.warnings, not_asked)):
            _log(f"warning: {warning}")
        result = "restored" if taken.restored else "created"
        _log(f"{result}: {application} {event}, asked for by {_name(user)}, {taken.size >> 20} MiB, pause {taken.pause:.1f} s")
        return varlink.reply(result=result, id=taken.id, size=taken.size, pause=taken.pause, slot=taken.slot)


def _caller(connection: socket.socket) -> tuple[int, frozenset[int]]:
    """User and groups of the process that connected, as the kernel knows them."""
    _pid, user, group = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    groups = array("I", [group])
    with contextlib.suppress(OSError):  # more than 256
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _PEER_GROUPS, 1024))
    return user, frozenset(groups)


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def listen(path: Path | str = SOCKET) -> socket.socket:
    """The socket that systemd has opened, or a new one. Raises Refused, StoreError."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=_ACTIVATED)
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
            raise Refused(f"socket {path}", "another service answers there.", "Stop it first.")
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        listener.bind(str(path))
        os.chmod(path, 0o666)  # the policy says who may ask
        listener.listen(MAX_CALLERS)
    except OSError as error:
        listener.close()
        raise StoreError(f"socket {path}", f"{error.strerror or error}.", "Run the command as root.") from None
    return listener
