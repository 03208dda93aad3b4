# -*- coding: utf-8 -*-
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module may do to the machine it runs on: run commands, read files, replace files.

Used by every module and backend of the collection; nothing else touches the machine. A C(Host) can stand on another
root directory, so that unit tests run the same code over a recorded C(/sys), C(/proc) and C(/etc). One module run is
one thread: nothing here is shared.
"""
from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from dataclasses import dataclass

FIFREEZE = 0xC0045877  # include/uapi/linux/fs.h: _IOWR('X', 119, int)
FITHAW = 0xC0045878  # _IOWR('X', 120, int)


class Refused(Exception):
    """A thing that must not or cannot be done: what (code), why (message) and what helps (remedy).

    C(code) is a stable word for programs, C(message) names the thing and the cause, C(remedy) says what to do.
    """

    def __init__(self, code, message, remedy):
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy

    def as_dict(self):
        """The form in which modules return it: C({code, message, remedy})."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}


@dataclass(frozen=True)
class Result:
    """A finished command: exit code, standard output and standard error as text."""

    rc: int
    out: str
    err: str


class Host:
    """The machine, as commands and files below C(root)."""

    def __init__(self, run, move=os.replace, root="/"):
        """C(run(argv, data)) returns (rc, out, err); C(move(source, target)) replaces a file keeping its attributes."""
        self._run = run
        self._move = move
        self.root = root

    @classmethod
    def of(cls, module):
        """The host an C(AnsibleModule) runs on: its own command runner and its C(atomic_move) (owner, mode, SELinux)."""
        module.run_command_environ_update = {"LC_ALL": "C", "LANGUAGE": "C"}
        return cls(lambda argv, data: module.run_command(argv, data=data), module.atomic_move)

    def run(self, argv, data=None, ok=(0,)):
        """Run C(argv) (a list; no shell) in the C locale and return its Result.

        Raises Refused C(command_failed) when the exit code is not in C(ok); C(ok=None) accepts any.
        """
        rc, out, err = self._run(list(argv), data)
        if ok is not None and rc not in ok:
            raise Refused(
                "command_failed",
                "%s exited with %d: %s" % (" ".join(argv), rc, (err or out).strip() or "it printed nothing"),
                "Run it by hand on the machine; what it prints says what it lacks.",
            )
        return Result(rc, out, err)

    def which(self, command):
        """The path of C(command), or None. C(/sbin) and C(/usr/sbin) are looked in, on PATH or not."""
        for directory in ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"):
            candidate = os.path.join(directory, command)
            if os.access(self.path(candidate), os.X_OK):
                return candidate
        return None

    def tool(self, command):
        """C(command) with its directory, which is not always on PATH, or unchanged where it is not found."""
        return self.which(command) or command

    # files -----------------------------------------------------------------------------------------------------------

    def path(self, path):
        """Where C(path) is below the root."""
        return path if self.root == "/" else os.path.join(self.root, path.lstrip("/"))

    def exists(self, path):
        return os.path.lexists(self.path(path))

    def real(self, path):
        """C(path) with its symbolic links resolved, in the host's own terms."""
        real = os.path.realpath(self.path(path))
        if self.root == "/":
            return real
        root = os.path.realpath(self.root)
        return real[len(root):] if real.startswith(root + os.sep) else real

    def read_bytes(self, path, default=None, size=-1):
        """The content of C(path) (at most C(size) bytes of it), or C(default) where it cannot be read."""
        try:
            with open(self.path(path), "rb") as file:
                return file.read(size)
        except OSError:
            return default

    def read(self, path, default=None):
        """The text of C(path), or C(default). Bytes that are not UTF-8 survive a round trip (surrogateescape)."""
        content = self.read_bytes(path)
        return default if content is None else content.decode("utf-8", "surrogateescape")

    def attribute(self, path, default=None):
        """The text of a one-line file such as a sysfs attribute, without white space around it."""
        text = self.read(path)
        return default if text is None else text.strip()

    def glob(self, pattern):
        """The paths that match, sorted, in the host's own terms."""
        prefix = "" if self.root == "/" else self.root.rstrip("/")
        return sorted(found[len(prefix):] for found in glob.glob(self.path(pattern)))

    def replace(self, path, content, mode=0o644):
        """Make C(path) hold C(content) (text or bytes): whole or not at all, and durable when this returns.

        Owner, mode and SELinux context of a file that was there are kept; a symbolic link stays one.
        """
        target = os.path.realpath(self.path(path))
        directory = os.path.dirname(target)
        os.makedirs(directory, exist_ok=True)
        existed = os.path.exists(target)
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogateescape")
        handle, temporary = tempfile.mkstemp(prefix=".nvm-fastboot-", dir=directory)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            self._move(temporary, target)
            if not existed:
                os.chmod(target, mode)
        except BaseException:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
        _sync_directory(directory)

    def rename(self, source, target):
        """C(source) takes the place of C(target), durably. Both stand in one directory."""
        os.rename(self.path(source), self.path(target))
        _sync_directory(os.path.dirname(self.path(target)))

    def link(self, source, target):
        """A second name for a file. Returns False where the filesystem has no hard links and copies it instead."""
        if self.exists(target):
            os.unlink(self.path(target))
        try:
            os.link(self.path(source), self.path(target))
            return True
        except OSError:
            shutil.copy2(self.path(source), self.path(target))
            return False

    def remove(self, path):
        """Remove a file, durably. Returns whether it was there."""
        try:
            os.unlink(self.path(path))
        except FileNotFoundError:
            return False
        _sync_directory(os.path.dirname(self.path(path)))
        return True

    def flush_filesystem(self, path):
        """Bring everything of the filesystem that holds C(path) to its place on the disk, journal included.

        A bootloader reads the filesystem without replaying its journal, and neither hibernation nor a power cut writes
        the journal back: without this it would read the files of before. Freezing and thawing does it (ext4, XFS,
        btrfs); a filesystem that cannot be frozen (vfat) is synced, and has no journal.
        """
        handle = os.open(self.path(path), os.O_RDONLY)
        try:
            os.fsync(handle)
            os.sync()
            try:
                fcntl.ioctl(handle, FIFREEZE, 0)
            except OSError:
                return
            fcntl.ioctl(handle, FITHAW, 0)
        finally:
            os.close(handle)


class Transaction:
    """Changes to files that take effect together: put back as they were if a later step fails.

    As a context manager it rolls back when the block raises. In check mode nothing is written; C(changed) and C(diff)
    say what would be.
    """

    def __init__(self, host, check_mode=False):
        self.host = host
        self.check_mode = check_mode
        self.diff = []
        self._undo = []

    @property
    def changed(self):
        return bool(self.diff)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            self.rollback()
        return False

    def note(self, what, before, after):
        """Record a change (to a namespace, a swap area; C(write) does it for files), for the diff alone."""
        self.diff.append({"before_header": what, "after_header": what, "before": before, "after": after})

    def write(self, path, content, mode=0o644):
        """Make C(path) hold C(content), or be absent where C(content) is None. Returns whether that is a change."""
        before = self.host.read(path)
        if before == content:
            return False
        self.note(path, shown(before or ""), shown(content or ""))
        if self.check_mode:
            return True
        self.on_failure(lambda: self._restore(path, before, mode))
        self._put(path, content, mode)
        return True

    def on_failure(self, undo):
        """Call C(undo()) if the transaction fails from here on; the last registered is called first."""
        self._undo.append(undo)

    def rollback(self):
        while self._undo:
            self._undo.pop()()

    def _restore(self, path, before, mode):
        """Put back what was written; a write that failed would fail again, and hide why."""
        if self.host.read(path) != before:
            self._put(path, before, mode)

    def _put(self, path, content, mode):
        if content is None:
            self.host.remove(path)
        else:
            self.host.replace(path, content, mode)


def shown(text):
    """C(text) as a module may return it: bytes that are not UTF-8 written out, because Ansible refuses such answers."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _sync_directory(directory):
    handle = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
