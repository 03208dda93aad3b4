# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys that open a header: a passphrase, a key file on the machine, the machine's TPM.

C(/var/lib/nvm-fastboot/luks.json) has, by the name of the mapping, what was done: C(made), the key file that was made here, C(created),
whether crypttab was, and C(tested), the state of the key file when it last opened the header.
"""

from __future__ import annotations

import os
import re
import stat

from ansible_collections.nvm.fastboot.plugins.module_utils._core import records
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted.cryptsetup import Key
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import luks

RECORD = "luks"
DIRECTORY = "/etc/cryptsetup-keys.d"  # where systemd-cryptsetup(8) looks for NAME.key
BYTES = 64
PATH = re.compile(r"^(/[A-Za-z0-9._@+=-]+)+$")  # what needs no escapes in crypttab and in scripts
PASSPHRASE_LIMIT = 512  # bytes that are read at a prompt
TPM2 = "systemd-tpm2"  # the type of the token in the header


def passphrase_key(passphrase):
    """The Key of the option C(passphrase), or None without one. Refused C(passphrase_invalid)."""
    if passphrase is None:
        return None
    content = passphrase.encode("utf-8", "surrogateescape")
    if not 0 < len(content) <= PASSPHRASE_LIMIT or b"\n" in content or b"\0" in content:
        raise Refused(
            "passphrase_invalid",
            "The passphrase could not be entered at the prompt of a boot: it is empty, has more than %d bytes, or has a line break."
            % PASSPHRASE_LIMIT,
            "Give another one, on one line.",
        )
    return Key(passphrase=content)


def path_for(name, given):
    """The path of the key file. Refused C(key_file_invalid)."""
    path = given or "%s/%s.key" % (DIRECTORY, name)
    if not PATH.match(path) or path.startswith(("/dev/", "/run/", "/tmp/", "/proc/", "/sys/")):
        raise Refused(
            "key_file_invalid",
            "%r cannot be the key file: it is no absolute path of letters, digits and ._@+=-, or does not outlast a boot." % path,
            "Give a path such as %s/%s.key." % (DIRECTORY, name),
        )
    return path


def file_key(host, path, made):
    """The Key in the file C(path), or None if it does not exist. Refused C(key_file_invalid) or C(key_exposed)."""
    try:
        status = os.stat(host.path(path))
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise Refused(
            "key_file_invalid", "%s is not a file with a key: it is empty, or not a regular file." % path,
            "Restore it from a copy, or give another path.",
        )
    problem = luks.exposed(host, path)
    if problem:
        raise problem
    return Key(file=path, random=made)


def make_file(host, path):
    """Write a new key file, for root alone."""
    directory = os.path.dirname(path)
    if not host.exists(directory):
        os.makedirs(host.path(directory), mode=0o700)
    host.replace(path, os.urandom(BYTES), mode=0o600)
    return Key(file=path, random=True)


def remove_file(host, path):
    """Remove a key file of ours, and its directory if nothing else is in it."""
    host.remove(path)
    try:
        os.rmdir(host.path(os.path.dirname(path)))
    except OSError:
        pass  # not empty


def state_of(host, path):
    """What tells that a file has changed, or None if it does not exist."""
    try:
        status = os.stat(host.path(path))
    except OSError:
        return None
    return [status.st_size, status.st_ino, status.st_mtime_ns]


def load(host, name):
    """The record for the mapping C(name), a dict."""
    found = records.load(host, RECORD).get(name)
    return found if isinstance(found, dict) else {}


def store(host, name, record):
    """Write the record for C(name), or remove it where C(record) is empty."""
    known = records.load(host, RECORD)
    if known.get(name, {}) != record:
        others = {each: value for each, value in known.items() if each != name}
        records.store(host, RECORD, {**others, name: record} if record else others)


def missing(path, block):
    return Refused(
        "key_missing",
        "The key file %s does not exist, and %s is encrypted with it." % (path, block),
        "Restore it from a copy. Or give a passphrase that opens the device: a new key file is then made, and added. Without any of them, "
        "what is on the device cannot be read again; to encrypt it with a new key, set force=true.",
    )


def wrong(what, block):
    """The error Refused C(passphrase_wrong) or C(key_wrong): C(what), "passphrase" or "key file", does not open C(block)."""
    code, remedy = {
        "passphrase": ("passphrase_wrong", "Give the one with which the device was encrypted, or that was set since (luksChangeKey)."),
        "key file": ("key_wrong", "Restore it from a copy. Or give a passphrase that opens the device: the key file is then added."),
    }[what]
    return Refused(
        code,
        "The %s does not open %s." % (what, block),
        "%s To give up what is on the device, and encrypt it with a new key, set force=true." % remedy,
    )


def passphrase_missing(block, why):
    return Refused("passphrase_missing", "%s needs a passphrase: %s." % (block, why), "Set the option passphrase.")
