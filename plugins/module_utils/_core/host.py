# SPDX-License-Identifier: GPL-3.0-or-later
"""Access to the machine that a module runs on: commands, reading files, replacing files atomically, undoing changes.

All other code of the collection accesses the machine through a C(Host). Its root can be another directory, so that unit
tests run the same code on a recorded C(/sys), C(/proc) and C(/etc). A module run has one thread, and nothing here is
shared.
"""
from __future__ import annotations

import fcntl
import glob
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.mounts import (
    memory_holding,
    read_only_holding,
    writable_boot,
)

FIFREEZE = 0xC0045877  # include/uapi/linux/fs.h: _IOWR('X', 119, int)
FITHAW = 0xC0045878  # _IOWR('X', 120, int)
GETFLAGS = 0x80086601  # FS_IOC_GETFLAGS
LOCKED = ((0x10, "i"), (0x20, "a"))  # FS_IMMUTABLE_FL and FS_APPEND_FL, as chattr(1) has them
ACL = "system.posix_acl_access"  # acl(5)


class Refused(Exception):
    """An error of a module: C(code) is a stable word, C(message) names the object and the cause, C(remedy) the fix."""

    def __init__(self, code, message, remedy):
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy

    def as_dict(self):
        """The dict that modules return: C({code, message, remedy})."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}


@dataclass(frozen=True)
class Result:
    """A finished command: exit code, standard output and standard error as text."""

    rc: int
    out: str
    err: str


class Host:
    """The machine: commands, and files below C(root)."""

    def __init__(self, run, move=os.replace, root="/"):
        """C(run(argv, data)) returns (rc, out, err); C(move(source, target)) replaces a file and keeps its attributes."""
        self._run = run
        self._move = move
        self.root = root

    @classmethod
    def of(cls, module, directory="/"):
        """The host an C(AnsibleModule) runs on: its own command runner and its C(atomic_move) (owner, mode, SELinux).

        Commands run in C(directory), by default in one that also programs which SELinux confines may enter; with C(None) in that of
        the module, where paths may be relative.
        """
        module.run_command_environ_update = {"LC_ALL": "C", "LANGUAGE": "C"}

        def run(argv, data):
            return module.run_command(argv, data=data, binary_data=isinstance(data, bytes), cwd=directory)

        return cls(run, module.atomic_move)

    def run(self, argv, data=None, ok=(0,)):
        """Run C(argv) (a list; no shell) in the C locale and return its Result. C(data) is its input: a text, to which a newline is
        added, or bytes as they are.

        Raises Refused C(command_failed) when the exit code is not in C(ok); C(ok=None) accepts any.
        """
        rc, out, err = self._run(list(argv), data)
        if ok is not None and rc not in ok:
            raise Refused(
                "command_failed",
                "%s exited with status %d: %s" % (" ".join(argv), rc, (err or out).strip() or "no output"),
                "Run the command by hand on the machine to find the cause.",
            )
        return Result(rc, out, err)

    def which(self, command):
        """The path of C(command), or None. Searches C(/sbin) and C(/usr/sbin) as well, whatever PATH is."""
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
        """The real path of C(path), which is below the root."""
        return path if self.root == "/" else os.path.join(self.root, path.lstrip("/"))

    def exists(self, path):
        return os.path.lexists(self.path(path))

    def real(self, path):
        """C(path) with its symbolic links resolved, relative to the root."""
        real = os.path.realpath(self.path(path))
        if self.root == "/":
            return real
        root = os.path.realpath(self.root)
        return real[len(root):] if real.startswith(root + os.sep) else real

    def read_bytes(self, path, default=None, size=-1):
        """The content of C(path) (at most C(size) bytes), or C(default) if it cannot be read."""
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
        """The text of a one-line file such as a sysfs attribute, stripped."""
        text = self.read(path)
        return default if text is None else text.strip()

    def locked(self, path):
        """The attribute of chattr(1) that keeps the file or directory C(path) from being replaced, or None."""
        try:
            handle = os.open(self.path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            flags = struct.unpack_from("=L", fcntl.ioctl(handle, GETFLAGS, bytes(8)))[0]
        except OSError:
            return None  # a filesystem without attributes
        finally:
            os.close(handle)
        return next((letter for flag, letter in LOCKED if flags & flag), None)

    def glob(self, pattern):
        """The matching paths, sorted, relative to the root."""
        prefix = "" if self.root == "/" else self.root.rstrip("/")
        return sorted(path[len(prefix):] for path in glob.glob(self.path(pattern)))

    def replace(self, path, content, mode=0o644):
        """Write C(content) (text or bytes) to C(path) atomically; synced when this returns.

        An existing file keeps its owner, mode, ACL and SELinux context; through a symbolic link, the target is replaced.
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
            _keep_acl(target, temporary)
            self._move(temporary, target)
            if not existed:
                os.chmod(target, mode)
        except BaseException:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
        _sync_directory(directory)

    def rename(self, source, target):
        """Rename C(source) to C(target), in the same directory, and sync the directory."""
        os.rename(self.path(source), self.path(target))
        _sync_directory(os.path.dirname(self.path(target)))

    def link(self, source, target):
        """Hard-link C(source) to C(target). Returns False if the filesystem has no hard links and the file was copied.

        A copy is at no time readable for more users than C(source).
        """
        if self.exists(target):
            os.unlink(self.path(target))
        try:
            os.link(self.path(source), self.path(target))
            return True
        except OSError:
            os.close(os.open(self.path(target), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            shutil.copy2(self.path(source), self.path(target))
            return False

    def remove(self, path):
        """Remove a file and sync the directory. Returns whether the file existed."""
        try:
            os.unlink(self.path(path))
        except FileNotFoundError:
            return False
        _sync_directory(os.path.dirname(self.path(path)))
        return True

    def flush_filesystem(self, path):
        """Write back the filesystem that holds C(path), journal included.

        A bootloader reads the filesystem without replaying its journal, and neither hibernation nor a power failure
        writes the journal back: without this, it would read the old files. Freezing and thawing writes it back (ext4,
        XFS, btrfs); a filesystem that cannot be frozen (vfat) is synced, and has no journal.
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
    """A group of changes that are undone together if a later step fails.

    As a context manager, rolls back if the block raises. In check mode nothing is written; C(changed) and C(diff) then
    describe what would change.
    """

    def __init__(self, host, check_mode=False, kept=True):
        """C(kept): refuse a change that is in memory only, and lost at the next boot."""
        self.host = host
        self.check_mode = check_mode
        self.diff = []
        self._kept = kept
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

    def note(self, header, before, after):
        """Add a change that is described (of a namespace, a swap area, an image) to the diff, in lines. Changes nothing."""
        self._note(header, *(text + "\n" if text and not text.endswith("\n") else text for text in (before, after)))

    def _note(self, header, before, after):
        self.diff.append({"before_header": header, "after_header": header, "before": before, "after": after})

    def write(self, path, content, mode=0o644):
        """Write C(content) to C(path), or remove C(path) if C(content) is None. Returns whether that is a change.

        Refused C(root_is_overlay), C(filesystem_read_only) or C(not_writable), also in check mode, if the change would be lost at the next
        boot, or fail.
        """
        before = self.host.read(path)
        if before == content:
            return False
        self.check_kept(path)
        self._note(path, shown(before or ""), shown(content or ""))
        if self.check_mode:
            return True
        self.on_failure(lambda: self._restore(path, before, mode))
        self._put(path, content, mode)
        return True

    def check_kept(self, path):
        """Refused C(root_is_overlay) if a change of C(path) would be in memory only, C(filesystem_read_only) or C(not_writable) if none is
        possible."""
        if not self._kept:
            return
        mount = read_only_holding(self.host, path)
        if mount is not None:
            raise Refused(
                "filesystem_read_only",
                "%s cannot be changed: the filesystem at %s is mounted read-only." % (path, mount.place),
                "Run: mount -o remount,rw %s. Then run the module again, and mount it read-only again afterwards. If the kernel made it "
                "read-only because of an error (dmesg says so), check the filesystem first." % mount.place,
            )
        real = self.host.real(path)
        for place, letter in ((each, self.host.locked(each)) for each in (real, os.path.dirname(real))):
            if letter:
                raise Refused(
                    "not_writable",
                    "%s cannot be changed: %s has the attribute %s of chattr." % (path, place, letter),
                    "Run: chattr -%s %s. Then run the module again, and set the attribute again afterwards, if it is to stay." % (
                        letter, place),
                )
        mount = memory_holding(self.host, path)
        if mount is not None:
            raise Refused(
                "root_is_overlay",
                "%s is in memory: the filesystem at %s is an overlay or a %s there, and a change would be lost at the next boot."
                % (path, mount.place, "tmpfs" if mount.kind == "overlay" else mount.kind),
                writable_boot(self.host),
            )

    def on_failure(self, undo):
        """Call C(undo()) if the transaction fails later. The last registered is called first."""
        self._undo.append(undo)

    def rollback(self):
        while self._undo:
            self._undo.pop()()

    def _restore(self, path, before, mode):
        """Restore C(before), unless the write failed: a second write would fail again and hide the cause."""
        if self.host.read(path) != before:
            self._put(path, before, mode)

    def _put(self, path, content, mode):
        if content is None:
            self.host.remove(path)
        else:
            self.host.replace(path, content, mode)


def shown(text):
    """C(text) with bytes that are not UTF-8 escaped, because Ansible rejects them in the result of a module."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _keep_acl(old, new):
    """Give the file C(new) the access control list of C(old), if it has one."""
    try:
        os.setxattr(new, ACL, os.getxattr(old, ACL))
    except OSError:
        pass  # none there, or none on this filesystem


def _sync_directory(directory):
    handle = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
