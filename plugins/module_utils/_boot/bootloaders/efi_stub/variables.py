# SPDX-License-Identifier: GPL-3.0-or-later
"""The text that a boot option of the firmware hands to its program, which is the command line where that is a kernel.

It is the end of the variable C(Boot####), as UTF-16 (UEFI specification, 3.1.3). The variable is set as a whole by one call of
SetVariable(), which either takes effect or leaves the old value (8.2): number, order, title and path of the option stay as they are.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.command_lines import Files
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.detection.efi import LARGEST, VARIABLES
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

DIRECTORY = os.path.dirname(VARIABLES) + "/"
GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602  # include/uapi/linux/fs.h: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
IMMUTABLE = 0x10  # FS_IMMUTABLE_FL; efivarfs sets it on variables that it does not know
ATTRIBUTES = 4
REMEDIES = {
    errno.EROFS: "Run: mount -o remount,rw /sys/firmware/efi/efivars.",
    errno.ENOSPC: "Its memory is full: remove boot options that are no longer used (efibootmgr --bootnum NUMBER --delete-bootnum), or what "
                  "crashes left (/sys/firmware/efi/efivars/dump-*).",
}  # fmt: skip


def text_of(data):
    """The text in C(data), the bytes for the program, or None if it is none."""
    try:
        return data.decode("utf-16-le")
    except UnicodeDecodeError:
        return None


class Variables(Files):
    """See Files: under the path of a boot option's variable, the text in it. Everything else is a file."""

    def read(self, path):
        if not path.startswith(DIRECTORY):
            return super().read(path)
        content = self._content(path)
        start = _start(content) if content else None
        return text_of(content[start:]) if start is not None else None

    def write(self, tx, path, text):
        if not path.startswith(DIRECTORY):
            return super().write(tx, path, text)
        before = self.read(path)
        if before is None or text is None or text == before:
            return False
        tx.note(path, before.rstrip("\0"), text.rstrip("\0"))
        if tx.check_mode:
            return True
        content = self._content(path)
        tx.on_failure(lambda: self._put(path, content))
        self._put(path, content[: _start(content)] + text.encode("utf-16-le"))
        return True

    def _content(self, path):
        return self.host.read_bytes(path, None, LARGEST)

    def _put(self, path, content):
        """Set the variable, unless it is so, and read it back: some firmware stores what it thinks right."""
        before = self._content(path)
        if before == content:
            return
        reason = remedy = None
        try:
            _set(self.host.path(path), content)
        except OSError as error:
            reason, remedy = os.strerror(error.errno or 0), REMEDIES.get(error.errno or 0)
        after = self._content(path)
        if after == content:
            return
        if after != before:
            reason = "it stored something else"
            try:
                _set(self.host.path(path), before)
            except OSError as error:
                reason += ", and did not take back what was there: %s" % os.strerror(error.errno or 0)
        raise Refused(
            "firmware_refused",
            "The firmware did not change the boot option %s: %s." % (os.path.basename(path).split("-")[0], reason),
            remedy or "Update the firmware, or start the machine by a bootloader that is a program of its own, such as systemd-boot.",
        )


def _set(path, content):
    """One write is one call of SetVariable(). C(path) is a real one."""
    flags = _flags(path)
    if flags & IMMUTABLE:
        _flags(path, flags & ~IMMUTABLE)
    try:
        handle = os.open(path, os.O_WRONLY)
        try:
            os.write(handle, content)
            if os.fstat(handle).st_size > len(content):
                os.ftruncate(handle, len(content))  # not on efivarfs, where a variable is as long as what was written
        finally:
            os.close(handle)
    finally:
        if flags & IMMUTABLE:
            _flags(path, flags)


def _flags(path, wanted=None):
    """The flags of a file (ext2), set to C(wanted) if that is given; 0 on a filesystem without."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if wanted is not None:
            fcntl.ioctl(handle, SET_FLAGS, struct.pack("l", wanted))
        return struct.unpack("l", fcntl.ioctl(handle, GET_FLAGS, struct.pack("l", 0)))[0]
    except OSError:
        return 0
    finally:
        os.close(handle)


def _start(content):
    """Where the data for the program begins in the variable C(content), or None if that is no boot option."""
    title = ATTRIBUTES + struct.calcsize("<IH")
    end = next((at for at in range(title, len(content) - 1, 2) if content[at : at + 2] == b"\0\0"), None)
    if end is None:
        return None
    start = end + 2 + struct.unpack_from("<H", content, ATTRIBUTES + 4)[0]
    return start if start <= len(content) else None
