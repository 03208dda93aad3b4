# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounts and unmounts: checks of the mount point, foreground and background, notification of systemd, logging to syslog.

``mount`` may be called once at a time in a process, from its main thread.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import logging.handlers
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse_store import streams
from fuse_store.errors import Damaged, NotFound, Refused, StoreError, UsageError, WrongKey, failed
from fuse_store.mount.tree import Access
from fuse_store.paths import checked_path, is_inside
from fuse_store.store import Store

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)

FUSE_DEVICE = Path("/dev/fuse")
MOUNT_HELPER = "fusermount3"  # the setuid program that mounts for users other than root
INSTALL_FUSE = "Install the package fuse3."
FUSE_CONF = Path("/etc/fuse.conf")
SYSLOG_SOCKET = "/dev/log"
KERNEL_READ_AHEAD = 1024  # KiB; with the kernel's default of 128 a window takes eight times the requests
MNT_DETACH = 2  # umount2(2)
DETACH_SECONDS = 5
READ_ONLY = Access()
LIBFUSE_ENDED = 8  # libfuse's exit code if the mount answered, and was ended by a signal or an error
LIBFUSE_ERRORS = {3: "libfuse did not start", 4: "mounting failed", 6: "signal handlers could not be set"}  # by exit code


def mount(
    store: Store | Callable[[], Store], directory: str | Path, *, foreground: bool, access: Access = READ_ONLY
) -> None:
    """Show ``store`` as files in ``directory``, an empty directory of the caller's.

    In the foreground, returns when the mount has ended: by ``umount``, SIGTERM, SIGINT or SIGHUP; systemd is notified when
    the mount answers (sd_notify, READY=1; a unit may be Type=notify or exec). In the background, returns when the mount
    answers, and another process serves it and logs to syslog. Requests that have not ended seconds after the mount are abandoned,
    with the process. The caller closes the store. No thread that the caller started may be running: for a store whose client has
    threads, pass a function that opens it, which is called in the process that serves the mount.
    Raises NotFound, UsageError, Refused, StoreError.
    """
    point = _checked(checked_path("directory", directory), store.path if isinstance(store, Store) else None, access)
    adapter = _adapter()
    if foreground:
        _serve(adapter, store if isinstance(store, Store) else store(), point, access, _notify_systemd)
    else:
        _in_background(adapter, store, point, access)


def _checked(directory: Path, store: Path | None, access: Access) -> Path:
    """The mount point as an absolute path. Raises StoreError if nothing can be mounted there."""
    thing = f"directory {directory}"
    try:
        point = Path(os.path.realpath(directory, strict=True))
        empty = not any(point.iterdir())
    except FileNotFoundError:
        raise NotFound(thing, "does not exist.", "Create it.") from None
    except NotADirectoryError:
        raise UsageError(thing, "not a directory.", "Name an empty directory.") from None
    except PermissionError:
        raise StoreError(thing, "permission denied.", "Choose a directory of your own.") from None
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # the process that served a mount here has died
            raise failed(thing, error) from None
        raise StoreError(thing, f"{error.strerror}.", f"If a dead mount is left, run '{MOUNT_HELPER} -u {directory}'.") from None
    if not empty:
        raise Refused(thing, "not empty.", "Choose an empty directory.")
    if store and is_inside(point, store):
        raise Refused(thing, "inside the store.", "Choose a directory outside of the store.")
    if os.geteuid() != 0:
        if not os.access(point, os.W_OK):
            raise StoreError(thing, "permission denied.", "Choose a directory of your own.")
        if not any(os.access(Path(path) / MOUNT_HELPER, os.X_OK) for path in os.environ.get("PATH", "").split(os.pathsep)):
            raise StoreError("mount", f"{MOUNT_HELPER} not found; users other than root need it.", INSTALL_FUSE)
        if access.allow_other and not _allows_other():
            raise Refused("mount", f"{FUSE_CONF} does not permit access by other users.", f"Add user_allow_other to {FUSE_CONF}.")
    if not FUSE_DEVICE.exists():
        raise StoreError("mount", f"{FUSE_DEVICE} does not exist.", "Load the kernel module: modprobe fuse.")
    return point


def _allows_other() -> bool:
    try:
        return any(line.strip() == "user_allow_other" for line in FUSE_CONF.read_text().splitlines())
    except OSError:
        return False


def _adapter() -> ModuleType:
    """The module that uses libfuse. mfusepy loads the library when it is imported, and would prefer libfuse 2."""
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    try:
        from fuse_store.mount import fuse_adapter

        version = fuse_adapter.LIBFUSE_VERSION
    except (ImportError, OSError, AttributeError) as error:
        raise StoreError("mount", f"cannot load libfuse 3: {error}.", INSTALL_FUSE) from None
    if version != 3:
        raise StoreError("mount", f"libfuse {version} is installed, but version 3 is required.", INSTALL_FUSE)
    return fuse_adapter


def _serve(adapter: Any, store: Store, point: Path, access: Access, mounted: Callable[[], None]) -> None:
    """Mount, and answer until the mount ends. ``mounted`` is called when it answers."""
    answering = False
    cause = ""

    def on_mounted() -> None:
        nonlocal answering, cause
        try:
            _set_kernel_read_ahead(point)
            answering = True
            log.info("mounted store %s at %s", store.url, point)
            mounted()
        except OSError as error:
            cause = f"the mount does not answer: {error.strerror}"
            os.kill(os.getpid(), signal.SIGTERM)

    options: dict[str, str | int | bool] = {
        "fsname": store.url.replace("\\", "\\\\").replace(",", "\\,"), "subtype": "fuse_store",
        "default_permissions": True, "nosuid": True, "nodev": True, "noexec": not access.exec, "noatime": True,
        "ro": not access.writable, "allow_other": access.allow_other,
    }  # fmt: skip
    if store.path.is_absolute():
        os.chdir("/")  # so that the directory it was started from is not busy

    def abandon() -> None:
        _detach(point)
        logging.shutdown()
        os._exit(0)

    operations = adapter.Operations(store, access, mounted=on_mounted, abandon=abandon)
    # libfuse handles only signals that have no handler yet.
    ending = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    handlers = {signal_number: signal.signal(signal_number, signal.SIG_DFL) for signal_number in ending}
    try:
        adapter.serve(operations, str(point), options)
    except RuntimeError as error:
        code = int(error.args[0])
        if not answering or code != LIBFUSE_ENDED:
            cause = cause or LIBFUSE_ERRORS.get(code, f"libfuse exited with code {code}")
            raise StoreError(f"directory {point}", f"{cause}.", "See the messages of libfuse above.") from None
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)
        operations.close()


def _detach(point: Path) -> None:
    """Unmount, though requests are waiting."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).umount2(os.fsencode(point), MNT_DETACH)
    else:
        subprocess.run([MOUNT_HELPER, "-u", "-z", "--", str(point)], stderr=subprocess.DEVNULL, timeout=DETACH_SECONDS, check=False)


def _in_background(adapter: Any, store: Store | Callable[[], Store], point: Path, access: Access) -> None:
    """Start a process that serves the mount; returns when the mount answers."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with open(reader, encoding="utf-8") as pipe:
            message = pipe.read()
        if message == "mounted":
            return
        os.waitpid(child, 0)
        kind, *texts = json.loads(message) if message else ["StoreError", "mount", "the process that serves the mount has died.", ""]
        raise {error.__name__: error for error in (NotFound, Refused, UsageError, Damaged, WrongKey)}.get(kind, StoreError)(*texts)
    os.close(reader)
    status = 1
    try:
        os.setsid()

        def mounted() -> None:
            _to_syslog()
            streams.redirect_to_null()
            os.write(writer, b"mounted")
            os.close(writer)

        opened = store if isinstance(store, Store) else store()
        _serve(adapter, opened, point, access, mounted)
        opened.close()
        status = 0
    except StoreError as error:
        os.write(writer, json.dumps([type(error).__name__, error.thing, error.cause, error.remedy]).encode())
    except BaseException:
        log.exception("mount %s ended unexpectedly", point)
    finally:
        logging.shutdown()
        os._exit(status)


def _to_syslog() -> None:
    root = logging.getLogger("fuse_store")
    try:
        handler = logging.handlers.SysLogHandler(SYSLOG_SOCKET, facility=logging.handlers.SysLogHandler.LOG_DAEMON)
    except OSError:
        return  # no syslog daemon
    handler.setFormatter(logging.Formatter(f"fuse-store[{os.getpid()}]: %(message)s"))
    root.addHandler(handler)


def _set_kernel_read_ahead(point: Path) -> None:
    """Wait until the mount answers, then have the kernel read KERNEL_READ_AHEAD at once. Only root may set that."""
    device = os.stat(point).st_dev
    try:
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(f"{KERNEL_READ_AHEAD}\n")
    except OSError:
        pass  # reads are slower then, and as correct


def _notify_systemd() -> None:
    """Send READY=1 to the socket in NOTIFY_SOCKET, if it is set (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(b"READY=1\n", address.replace("@", "\0", 1) if address.startswith("@") else address)
        except OSError as error:
            log.warning("cannot notify systemd: %s", error)
