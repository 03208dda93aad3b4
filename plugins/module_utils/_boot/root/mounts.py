# SPDX-License-Identifier: GPL-3.0-or-later
"""Read-only mounts of the filesystems beside the root, as additions to systemd's units, so that /etc/fstab stays as it is."""

from __future__ import annotations

import os
import string

from ansible_collections.nvm.fastboot.plugins.module_utils._core.mounts import mounts

DIRECTORY = "/etc/systemd/system"
NAME = "nvm-fastboot.conf"
NOTE = "# Written by the Ansible collection nvm.fastboot; changes here are overwritten.\n"
REMOUNT = "systemd-remount-fs.service"
REMOUNT_TEXT = NOTE + """\
# The overlay does not know the options that /etc/fstab has for the filesystem below it.
[Unit]
ConditionKernelCommandLine=!%s
"""
MOUNT_TEXT = NOTE + """\
# A snapshot may be resumed only if no filesystem on a block device is mounted writable.
[Mount]
Options=%s
"""
UNGUARDED = ("vfat", "msdos", "exfat", "ntfs", "ntfs3")  # snapshots of a system that has one mounted writable are never resumed
DEVICES = ("/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID=")
PLAIN = string.ascii_letters + string.digits + ":_."
ESCAPES = {"040": " ", "011": "\t", "012": "\n", "134": "\\"}  # of fstab(5)


def configure(tx, mode, data_mounts, kind):
    """Have filesystems in /etc/fstab mounted read-only: with the mode C(overlay) all but the root and C(data_mounts), with C(guarded) those
    of UNGUARDED, with C(writable) none. Where the root stays writable, those that are mounted follow at once, if they are not busy."""
    host, wanted, places = tx.host, {}, {}
    left = [os.path.normpath(each) for each in data_mounts]
    for place, filesystem, options in _filesystems(host.read("/etc/fstab", "")):
        path = _path(unit(place))
        places[path] = place
        if os.path.normpath(place) not in left and (mode == "overlay" or (mode == "guarded" and filesystem in UNGUARDED)):
            wanted[path] = MOUNT_TEXT % (options.replace("%", "%%") + ",ro")
    if mode == "overlay" and kind.remounts:
        wanted[_path(REMOUNT)] = REMOUNT_TEXT % kind.argument.split("=")[0]
    for path in host.glob("%s/*.d/%s" % (DIRECTORY, NAME)):
        if path not in wanted:
            _remove(tx, path)
            _remount(tx, places.get(path), "rw")
    for path, content in sorted(wanted.items()):
        if tx.write(path, content) and mode == "guarded":
            _remount(tx, places.get(path), "ro")


def _remount(tx, place, access):
    if place and not tx.check_mode and any(mount.place == place for mount in mounts(tx.host)):
        tx.host.run(["mount", "-o", "remount," + access, place], ok=None)


def unit(place):
    """The name of the mount unit of a directory (systemd-escape --path --suffix=mount)."""
    parts = [part for part in place.split("/") if part]
    return "-".join(_escaped(part, index == 0) for index, part in enumerate(parts)) + ".mount"


def _escaped(part, first):
    letters = []
    for index, byte in enumerate(part.encode("utf-8", "surrogateescape")):
        letter = chr(byte)
        plain = letter in PLAIN and not (first and index == 0 and letter == ".")
        letters.append(letter if plain else "\\x%02x" % byte)
    return "".join(letters)


def _filesystems(fstab):
    """C((mount point, type, options)) of each filesystem on a block device, without the root, that is mounted writable at boot."""
    for line in fstab.splitlines():
        words = line.split()
        if len(words) < 4 or words[0].startswith("#") or not words[0].startswith(DEVICES):
            continue
        place, kind, options = _plain(words[1]), words[2], words[3].split(",")
        if place.startswith("/") and place != "/" and kind != "swap" and not {"ro", "noauto", "bind"} & set(options):
            yield place, kind, words[3]


def _plain(word):
    for code, letter in ESCAPES.items():
        word = word.replace("\\" + code, letter)
    return word


def _path(name):
    return "%s/%s.d/%s" % (DIRECTORY, name, NAME)


def _remove(tx, path):
    tx.write(path, None)
    if not tx.check_mode:
        try:
            os.rmdir(tx.host.path(os.path.dirname(path)))
        except OSError:
            pass  # not empty
