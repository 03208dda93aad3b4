# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's u-boot-menu, which writes C(/boot/extlinux/extlinux.conf) again with each new kernel, from settings of shell syntax.

A file of ours in C(/etc/u-boot-menu/conf.d) has C(U_BOOT_PARAMETERS) end with our arguments then, and without those that are dropped.
It begins as u-boot-update goes on where nothing else has set the variable. The file that is there now is changed in place, not
generated, so that removal brings it back whatever it was.
"""

from __future__ import annotations

import os
import re

COMMAND = "u-boot-update"
GENERATED = "/boot/extlinux/extlinux.conf"
DEFAULTS = "/etc/default/u-boot"
ROOT = "/etc/u-boot-menu"
DIRECTORY = ROOT + "/conf.d"
SOURCES = ("/usr/share/u-boot-menu/conf.d/*.conf", DIRECTORY + "/*.conf")
PREFIX = DIRECTORY + "/zz-nvm-fastboot-"
MADE = "# Directories of this file: "
TEMPLATE = """\
# Written by the Ansible collection nvm.fastboot; changes here are overwritten.
%(made)s
if [ -z "${U_BOOT_PARAMETERS:-}" ] && [ -f /etc/kernel/cmdline ]; then
    U_BOOT_PARAMETERS=$(sed -e 's/root=[^[:space:]]*//' -e 's/^[[:space:]]*//' /etc/kernel/cmdline)
    U_BOOT_ROOT=${U_BOOT_ROOT:-$(sed -re 's/.*(root=[^[:space:]]*).*/\\1/' /etc/kernel/cmdline)}
fi
U_BOOT_PARAMETERS="$(printf '%%s\\n' "${U_BOOT_PARAMETERS:-ro quiet}" | sed -E %(drop)s) "%(arguments)s
"""
STRIP = r":a; s/(^|[[:space:]]+)(%s)(=[^[:space:]]*)?([[:space:]]|$)/\4/; ta; s/^[[:space:]]+//; s/[[:space:]]+$//"
DISABLED = re.compile(r"""(?m)^[ \t]*U_BOOT_UPDATE=["']?(?!true\b)\w""")


def generates(host, configuration):
    """Whether u-boot-update writes C(configuration)."""
    return host.real(configuration) == host.real(GENERATED) and host.which(COMMAND) is not None and not any(
        DISABLED.search(host.read(each, "")) for each in _sources(host))


def path(purpose):
    return "%s%s.conf" % (PREFIX, purpose)


def files(host):
    """Our files."""
    return host.glob(PREFIX + "*.conf")


def set_(tx, purpose, arguments, drop):
    """Have the arguments in each file that is written from now on. Returns whether that is a change."""
    host, file = tx.host, path(purpose)
    found = re.search(r"(?m)^%s(.*)$" % MADE, host.read(file, ""))
    made = found.group(1).split() if found else [each for each in (ROOT, DIRECTORY) if not host.exists(each)]
    if not found:
        tx.on_failure(lambda: _remove_directories(host, made))
    words = "|".join(_escaped(each) for each in dict.fromkeys([*drop, *arguments]))
    return tx.write(file, TEMPLATE % {
        "made": MADE + " ".join(made),
        "drop": _shell(STRIP % words),
        "arguments": _shell(" ".join(arguments)),
    })


def unset(tx, purpose):
    """Remove our file. Returns whether there was one."""
    file = path(purpose)
    found = re.search(r"(?m)^%s(.*)$" % MADE, tx.host.read(file, ""))
    changed = tx.write(file, None)
    if found and not tx.check_mode:
        _remove_directories(tx.host, found.group(1).split())
    return changed


def find(host, word):
    """The file that sets C(word) as C((file, word)), or None."""
    for each in _sources(host):
        lines = [line.partition("#")[0] for line in host.read(each, "").splitlines()]
        if any(re.search(r"(^|[\s\"'=])%s($|[\s\"'])" % re.escape(word), line) for line in lines):
            return each, word
    return None


def _sources(host):
    ours = files(host)
    return [each for each in [DEFAULTS] + [path for pattern in SOURCES for path in host.glob(pattern)] if each not in ours]


def _remove_directories(host, made):
    for directory in reversed(made):
        try:
            os.rmdir(host.path(directory))
        except OSError:
            pass  # not empty


def _escaped(text):
    return re.sub(r"([][\\/.*^$(){}+?|])", r"\\\1", text)


def _shell(text):
    return "'%s'" % text.replace("'", "'\\''")
