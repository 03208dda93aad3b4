# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounting: what has to be there, foreground and background, telling systemd, logging. Used by ``cli`` through ``mount``."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse_store import streams
from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError, WrongKey
from fuse_store.store import Store

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)

DEVICE = Path("/dev/fuse")
HELPER = "fusermount3"
PACKAGE = "Install the package fuse3."
SETTINGS = Path("/etc/fuse.conf")
SYSLOG = "/dev/log"
READ_AHEAD = 1024  # KiB; the kernel's own 128 makes eight requests of one
ENDED = 8  # libfuse's code for: it was mounted, and a signal or an error ended it
CAUSES = {3: "libfuse would not start", 4: "it could not be mounted", 6: "signals could not be caught"}


def mount(
    store: Store | Callable[[], Store], directory: str | Path, *, foreground: bool, writable: bool, allow_other: bool = False
) -> None:
    """Show ``store`` as files in ``directory``, an empty folder of the caller's.

    In the foreground it returns when the mount has ended: by ``umount``, SIGTERM, SIGINT or SIGHUP. It tells systemd
    when the mount answers (sd_notify, READY=1; a unit may be Type=notify or exec). In the background it returns once
    the mount answers, and another process serves it, which logs to syslog. ``writable`` adds ``incoming/``. Only who
    mounted it may look into it, unless ``allow_other``. The store stays the caller's to close. No thread may run that the
    caller started; so a store whose client has some is given as what opens it, in the process that serves it. Raises
    NotFound, UsageError, Refused, StoreError.
    """
    point = _checked(Path(directory), store.path if isinstance(store, Store) else None, allow_other)
    adapter = _adapter()
    if foreground:
        _serve(adapter, store if isinstance(store, Store) else store(), point, writable, allow_other, _tell_systemd)
    else:
        _in_background(adapter, store, point, writable, allow_other)


def _checked(directory: Path, store: Path | None, allow_other: bool) -> Path:
    """The folder, absolute; raises StoreError if it can't be mounted there."""
    try:
        point = directory.resolve(strict=True)
        empty = not any(point.iterdir())
    except FileNotFoundError:
        raise NotFound(f"folder {directory}", "it does not exist.", "Make it.") from None
    except NotADirectoryError:
        raise UsageError(f"folder {directory}", "it is not a folder.") from None
    except PermissionError:
        raise Refused(f"folder {directory}", "this user may not look into it.", "Name a folder of your own.") from None
    except OSError as error:  # ENOTCONN: who served it is gone
        raise StoreError(f"folder {directory}", f"{error.strerror}.", f"If it is mounted: {HELPER} -u {directory}.") from None
    if not empty:
        raise Refused(f"folder {directory}", "there is something in it.", "Name an empty folder.")
    if store and (point == store.resolve() or store.resolve() in point.parents):
        raise Refused(f"folder {directory}", "it is inside the store.", "Name a folder outside.")
    if os.geteuid() != 0:
        if not os.access(point, os.W_OK):
            raise Refused(f"folder {directory}", "this user may not write to it.", "Name a folder of your own.")
        if not any(os.access(Path(folder) / HELPER, os.X_OK) for folder in os.environ.get("PATH", "").split(os.pathsep)):
            raise StoreError("mount", f"{HELPER} is not here, which mounts for users other than root.", PACKAGE)
        if allow_other and not _allows_other():
            raise Refused("mount", f"{SETTINGS} does not allow it to be open to others.", "Put user_allow_other into it.")
    if not DEVICE.exists():
        raise StoreError("mount", f"{DEVICE} is not here.", "Load the kernel's module: modprobe fuse.")
    return point


def _allows_other() -> bool:
    try:
        return any(line.strip() == "user_allow_other" for line in SETTINGS.read_text().splitlines())
    except OSError:
        return False


def _adapter() -> ModuleType:
    """The module that talks to libfuse. mfusepy looks for it when it is imported, and would take libfuse 2 first."""
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    try:
        from fuse_store.mount import fuse_adapter

        found = fuse_adapter.LIBRARY
    except (ImportError, OSError, AttributeError) as error:
        raise StoreError("mount", f"libfuse 3 can't be used: {error}.", PACKAGE) from None
    if found != 3:
        raise StoreError("mount", f"libfuse {found} was found, and 3 is needed.", PACKAGE)
    return fuse_adapter


def _serve(
    adapter: Any, store: Store, point: Path, writable: bool, allow_other: bool, mounted: Callable[[], None]
) -> None:  # fmt: skip
    """Mount and answer until it ends."""
    answering = False
    cause = ""

    def answers() -> None:
        nonlocal answering, cause
        try:
            _read_ahead(point)
            answering = True
            log.info("store %s is mounted at %s", store.url, point)
            mounted()
        except OSError as error:
            cause = f"it does not answer: {error.strerror}"
            os.kill(os.getpid(), signal.SIGTERM)

    options: dict[str, str | int | bool] = {
        "fsname": store.url.replace("\\", "\\\\").replace(",", "\\,"), "subtype": "fuse_store",
        "default_permissions": True, "nosuid": True, "nodev": True, "noexec": True, "noatime": True,
        "ro": not writable, "allow_other": allow_other,
    }  # fmt: skip
    if store.path.is_absolute():
        os.chdir("/")  # nor keep the folder busy from which it was started
    operations = adapter.Operations(store, writable=writable, allow_other=allow_other, mounted=answers)
    # libfuse takes only the signals that nobody has taken.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        adapter.serve(operations, str(point), options)
    except RuntimeError as error:
        code = int(error.args[0])
        if not answering or code != ENDED:
            cause = cause or CAUSES.get(code, f"libfuse ended with {code}")
            raise StoreError(f"folder {point}", f"{cause}.", "What libfuse wrote before this says more.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        operations.close()


def _in_background(
    adapter: Any, store: Store | Callable[[], Store], point: Path, writable: bool, allow_other: bool
) -> None:
    """Have a process of its own serve it; returns when it answers."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with open(reader, encoding="utf-8") as pipe:
            message = pipe.read()
        if message == "mounted":
            return
        os.waitpid(child, 0)
        kind, *parts = json.loads(message) if message else ["StoreError", "mount", "the process that serves it has died.", ""]
        raise {one.__name__: one for one in (NotFound, Refused, UsageError, Damaged, WrongKey)}.get(kind, StoreError)(*parts)
    os.close(reader)
    status = 1
    try:
        os.setsid()

        def mounted() -> None:
            _to_syslog()
            streams.let_go()
            os.write(writer, b"mounted")
            os.close(writer)

        opened = store if isinstance(store, Store) else store()
        _serve(adapter, opened, point, writable, allow_other, mounted)
        opened.close()
        status = 0
    except StoreError as error:
        os.write(writer, json.dumps([type(error).__name__, error.thing, error.cause, error.remedy]).encode())
    except BaseException:
        log.exception("the mount at %s has ended", point)
    finally:
        logging.shutdown()
        os._exit(status)


def _to_syslog() -> None:
    root = logging.getLogger("fuse_store")
    try:
        handler = logging.handlers.SysLogHandler(SYSLOG, facility=logging.handlers.SysLogHandler.LOG_DAEMON)
    except OSError:
        return  # nobody listens
    handler.setFormatter(logging.Formatter(f"fuse-store[{os.getpid()}]: %(message)s"))
    root.addHandler(handler)


def _read_ahead(point: Path) -> None:
    """Wait until the mount answers, and have the kernel read more at once than its 128 KiB, which only root may."""
    device = os.stat(point).st_dev
    try:
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(f"{READ_AHEAD}\n")
    except OSError:
        pass  # slower, and right


def _tell_systemd() -> None:
    """sd_notify(3): READY=1 to the socket in NOTIFY_SOCKET, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(b"READY=1\n", address.replace("@", "\0", 1) if address.startswith("@") else address)
        except OSError as error:
            log.warning("systemd could not be told: %s", error)
