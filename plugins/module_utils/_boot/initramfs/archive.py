# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in an initramfs, read without unpacking it.

An image is a sequence of cpio archives (newc, Documentation/driver-api/early-userspace/buffer-format.rst of Linux), of which the last ones
are compressed together. Of two files with one name, the later one counts. Nothing is written, and no more is kept in memory than what is
asked for and the buffer of a decompressor.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import subprocess
import zlib

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

MAGICS = (b"070701", b"070702")
HEADER = 110
LAST = "TRAILER!!!"
NAME_LIMIT = 4096  # PATH_MAX, to which the kernel holds names
KEPT_LIMIT = 16 << 20  # bytes of all files that are asked for: settings and scripts
STEP = 1 << 16
OPENERS = ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ\0", lzma.open), (b"]\0\0", lzma.open), (b"BZh", bz2.open))
COMMANDS = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4"), (b"\x04\x22\x4d\x18", "lz4"), (b"\x89LZO\0", "lzop"))


def plain(name):
    """A name in an image in the form for comparison: on merged-usr systems C(lib) is C(usr/lib)."""
    for prefix in ("./", "/", "usr/"):
        if name.startswith(prefix):
            name = name[len(prefix) :]
    return name


def contents(host, image, wanted):
    """The files of C(image) for whose plain name C(wanted(name)) holds, as C({name: text}). A symbolic link has the text of its target.

    Refused C(initramfs_unreadable) if the image is damaged, or the command that decompresses it is missing.
    """
    found, links = _read(host, image, wanted)
    targets = {name: plain(os.path.normpath(os.path.join("/" + os.path.dirname(name), target))) for name, target in links.items()}
    absent = set(targets.values()) - set(found)
    more = _read(host, image, absent.__contains__)[0] if absent else {}
    found.update({name: more.get(target, found.get(target, "")) for name, target in targets.items()})
    return found


def _read(host, image, wanted):
    archive = _Archive(wanted)
    try:
        with open(host.path(image), "rb") as file:
            rest = archive.read(file)
            if rest:
                _read_compressed(host, image, archive, rest, archive.position - len(rest))
            elif not archive.whole:
                raise ValueError("it is empty or cut off")
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise Refused(
            "initramfs_unreadable",
            "%s cannot be read: %s." % (image, getattr(error, "strerror", None) or error),
            "Build it again, with update-initramfs -u -k all or dracut --regenerate-all --force.",
        ) from error
    return archive.found, archive.links


def _read_compressed(host, image, archive, magic, offset):
    """Read the part of the file C(image) that starts at C(offset) with C(magic)."""
    with open(host.path(image), "rb", buffering=0) as file:
        file.seek(offset)
        opener = next((opener for start, opener in OPENERS if magic.startswith(start)), None)
        command = next((command for start, command in COMMANDS if magic.startswith(start)), None)
        if opener is not None:
            with opener(file) as stream:
                _read_rest(archive, stream)
        elif command is None:
            raise ValueError("its compression is unknown (%s)" % magic.hex())
        elif host.which(command) is None:
            raise Refused("initramfs_unreadable", "%s is missing to read %s." % (command, image), "Install the package %s." % command)
        else:
            words = [host.path(host.which(command)), "-d", "-c"]
            # pylint: disable-next=ansible-bad-function  # run_command() of a module has no output in parts
            with subprocess.Popen(words, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                try:
                    _read_rest(archive, process.stdout)
                finally:
                    process.kill()


def _read_rest(archive, stream):
    """Read archives up to the end of C(stream). What follows a whole one and cannot be decompressed is not part of the image."""
    try:
        rest = archive.read(stream)
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        if not archive.whole:
            raise
        rest = b""
    if rest or not archive.whole:
        raise ValueError("it is damaged after the file %s" % (archive.name or "at its start"))


class _Archive:
    """What was found so far. C(position) is in the stream that is read, C(whole) between two archives."""

    def __init__(self, wanted):
        self.found = {}
        self.links = {}
        self.whole = False
        self.position = 0
        self.name = ""
        self._wanted = wanted
        self._kept = 0

    def read(self, stream):
        """Read archives from C(stream), up to its end or to something else, of which the first bytes are returned."""
        self.position = 0
        while True:
            magic = self._magic(stream)
            if magic not in MAGICS:
                return magic
            self._entry(stream)

    def _magic(self, stream):
        """The six bytes after zeros, which are between archives."""
        while True:
            start = self._some(stream, 1)
            if start != b"\0":
                return start + self._some(stream, 5) if start else b""

    def _entry(self, stream):
        self.whole = False
        fields = self._exactly(stream, HEADER - 6)
        mode, size, length = (int(fields[8 * index : 8 * index + 8], 16) for index in (1, 6, 11))
        if not 0 < length <= NAME_LIMIT:
            raise ValueError("a name in it has %d bytes" % length)
        self.name = self._exactly(stream, length).rstrip(b"\0").decode("utf-8", "surrogateescape")
        self._align(stream)
        if self.name == LAST:
            self.whole = True
            return
        name = plain(self.name)
        if not self._wanted(name) or stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFLNK):
            self._skip(stream, size)
        else:
            self._keep(stream, name, mode, size)
        self._align(stream)

    def _keep(self, stream, name, mode, size):
        self._kept += size
        if self._kept > KEPT_LIMIT:
            raise ValueError("the settings and scripts in it have more than %d MiB" % (KEPT_LIMIT >> 20))
        text = self._exactly(stream, size).decode("utf-8", "surrogateescape")
        (self.links if stat.S_ISLNK(mode) else self.found)[name] = text
        (self.found if stat.S_ISLNK(mode) else self.links).pop(name, None)

    def _align(self, stream):
        self._exactly(stream, -self.position % 4)

    def _skip(self, stream, size):
        while size:
            size -= len(self._exactly(stream, min(size, STEP)))

    def _exactly(self, stream, size):
        data = self._some(stream, size)
        if len(data) != size:
            raise ValueError("it ends in the file %s" % (self.name or "at its start"))
        return data

    def _some(self, stream, size):
        data = b""
        while len(data) < size:
            more = stream.read(size - len(data))
            if not more:
                break
            data += more
        self.position += len(data)
        return data
