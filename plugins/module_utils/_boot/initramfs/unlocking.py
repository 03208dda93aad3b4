# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image needs to open the LUKS mappings that the resume device is on: programs, a line of crypttab, and key files.

An image without them finds no resume device: the machine boots afresh, and the image on the encrypted device is lost.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.archive import plain
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import luks

TPM2 = (r"lib/(.*/)?libtss2-esys\.so\.0", r"lib/(.*/)?libtss2-tcti-device\.so\.0", r"lib/(.*/)?libcryptsetup\.so")
PRIVATE = 0o077  # no bit of it may be set in the mode of an image with a key


@dataclass(frozen=True)
class Programs:
    """What a tool puts into an image to open mappings. C(table): the crypttab in it. C(needs): names that are all there, of a tuple one.
    C(remedy): what they come from."""

    table: str
    needs: tuple
    remedy: str


class Unlocking:
    """The C(mappings) (luks.Mapping) that an image opens, on C(host)."""

    def __init__(self, host, mappings=()):
        self.host = host
        self.mappings = tuple(mappings)

    @property
    def keys(self):
        """The Mappings with a key file, which has to be in the image."""
        return [mapping for mapping in self.mappings if mapping.key_file]

    @property
    def by_tpm2(self):
        return any(mapping.by_tpm2 for mapping in self.mappings)

    @property
    def record(self):
        """What identifies all this in a record of a verified image: no content of a key, but whether it is the same file."""
        return [
            [mapping.name, mapping.uuid, mapping.line.text if mapping.line else "", self._state(mapping.key_file)]
            for mapping in self.mappings
        ]

    def _state(self, path):
        try:
            status = os.stat(self.host.path(path)) if path else None
        except OSError:
            status = None
        return [status.st_size, status.st_ino, status.st_mtime_ns] if status else None

    def reads(self, name, programs):
        """Whether the content of the file C(name) of an image has to be looked at."""
        return name == programs.table or any(name in _places(mapping) for mapping in self.keys)

    def lacking(self, names, programs):
        """What is missing in an image with C(names), as a list of phrases, as far as names tell."""
        if not self.mappings:
            return []
        found = []
        for need in programs.needs:
            options = need if isinstance(need, tuple) else (need,)
            if not any(option in names for option in options):
                found.append("%s (%s)" % (options[0], programs.remedy))
        if self.by_tpm2:
            found += ["%s, for the TPM" % pattern.rpartition("/")[2].replace("\\", "").replace(")?", "") for pattern in TPM2
                      if not any(re.match(pattern, name) for name in names)]
        return found

    def unopened(self, contents, programs, mode, arguments):
        """What is missing in the C(contents), C({name: text}), of what reads() asks for, of an image with this C(mode). C(arguments): the
        words of the kernel command line, where they may say what is opened."""
        problems = []
        table = {fields[0]: fields for fields in map(str.split, contents.get(programs.table, "").splitlines()) if len(fields) > 2}
        for mapping in self.mappings:
            fields = table.get(mapping.name)
            if fields is None:
                if not luks.opened_by_argument(mapping, arguments):
                    problems.append("a line for %s in its %s" % (mapping.name, programs.table))
            elif mapping.key_file:
                problems += self._key_problems(mapping, fields[2], contents)
        if self.keys and mode & PRIVATE:
            problems.append("the mode 0600: it has a key, and other users can read it (%04o)" % (mode & 0o7777))
        return problems

    def _key_problems(self, mapping, path, contents):
        inside = contents.get(plain(path))
        if inside is None:
            return ["the key file of %s, %s" % (mapping.name, mapping.key_file)]
        content = self.host.read(mapping.key_file)
        return [] if content == inside else ["the key of %s: it has another one than %s" % (mapping.name, mapping.key_file)]


def arguments(host, mappings):
    """The kernel arguments that C(mappings) need: where others say which devices are opened, systemd opens those of crypttab no more."""
    words = host.read("/proc/cmdline", "").split()
    ours = {"rd.luks.uuid=%s" % mapping.uuid for mapping in mappings}
    others = [word for word in words if word.startswith(luks.OPENED_BY_ARGUMENT) and word not in ours]
    return sorted(ours) if others and not all(luks.opened_by_argument(mapping, others) for mapping in mappings) else []


def _places(mapping):
    """Where an image may have the key file of C(mapping)."""
    return plain(mapping.key_file), "cryptroot/keyfiles/%s.key" % mapping.name
