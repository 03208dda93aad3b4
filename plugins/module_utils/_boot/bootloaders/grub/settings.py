# SPDX-License-Identifier: GPL-3.0-or-later
"""Our settings for GRUB: one file per purpose in C(/etc/default/grub.d). Foreign files stay unchanged.

grub-mkconfig sources these files under C(/bin/sh) with C(set -e), after C(/etc/default/grub), in the order of their names
(Debian's patches mkconfig-nonexistent-loopback and C(default-grub-d)). Each of our files is therefore a shell script. The
script removes the arguments that must not reach the kernel from the variables that earlier files set, without changing
any other byte, and appends ours for all entries. That includes recovery entries: a boot without C(resume=) activates the
swap area, which destroys the image in it.
"""

from __future__ import annotations

import json
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.script import quote

DIRECTORY = "/etc/default/grub.d"
PREFIX = "zz-nvm-fastboot-"
RECORD = "# nvm-fastboot: "

HEADER = """\
# Written by the Ansible collection nvm.fastboot; changes here are overwritten.
# grub-mkconfig sources this file last. It removes the arguments listed under "drop" from the settings of other files.
"""

# Words are split as GRUB does: at white space outside of quotes. Nothing is evaluated, so quotes, backslashes, variables
# and tabs are kept. The script starts no command, and no line fails under set -e.
SCRIPT = """\
nvm_fastboot_word() {
    [ -n "$nvm_fastboot_raw" ] || return 0
    case $nvm_fastboot_bare in
    %(patterns)s) ;;
    *) nvm_fastboot_kept=$nvm_fastboot_kept$nvm_fastboot_gap$nvm_fastboot_raw ;;
    esac
    nvm_fastboot_gap='' nvm_fastboot_raw='' nvm_fastboot_bare=''
}
nvm_fastboot_strip() {
    nvm_fastboot_rest=$1
    nvm_fastboot_kept='' nvm_fastboot_gap='' nvm_fastboot_raw='' nvm_fastboot_bare='' nvm_fastboot_quote=''
    while [ -n "$nvm_fastboot_rest" ]; do
        nvm_fastboot_char=${nvm_fastboot_rest%%"${nvm_fastboot_rest#?}"}
        nvm_fastboot_rest=${nvm_fastboot_rest#?}
        case "$nvm_fastboot_quote|$nvm_fastboot_char" in
        '| ' | '|\t' | '|
')
            nvm_fastboot_word
            nvm_fastboot_gap=$nvm_fastboot_gap$nvm_fastboot_char
            ;;
        "|'" | '|"')
            nvm_fastboot_quote=$nvm_fastboot_char
            nvm_fastboot_raw=$nvm_fastboot_raw$nvm_fastboot_char
            ;;
        "'|'" | '"|"')
            nvm_fastboot_quote=''
            nvm_fastboot_raw=$nvm_fastboot_raw$nvm_fastboot_char
            ;;
        '|\\' | '"|\\')
            nvm_fastboot_next=${nvm_fastboot_rest%%"${nvm_fastboot_rest#?}"}
            nvm_fastboot_rest=${nvm_fastboot_rest#?}
            nvm_fastboot_raw=$nvm_fastboot_raw$nvm_fastboot_char$nvm_fastboot_next
            nvm_fastboot_bare=$nvm_fastboot_bare$nvm_fastboot_next
            ;;
        *)
            nvm_fastboot_raw=$nvm_fastboot_raw$nvm_fastboot_char
            nvm_fastboot_bare=$nvm_fastboot_bare$nvm_fastboot_char
            ;;
        esac
    done
    nvm_fastboot_word
    nvm_fastboot_kept=$nvm_fastboot_kept$nvm_fastboot_gap
}
"""

VARIABLES = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT", "GRUB_CMDLINE_LINUX_RECOVERY")
STRIP = """\
if [ -n "${%(name)s-}" ]; then
    nvm_fastboot_strip "$%(name)s"
    %(name)s=$nvm_fastboot_kept
fi
"""
APPEND = 'GRUB_CMDLINE_LINUX="${GRUB_CMDLINE_LINUX:+$GRUB_CMDLINE_LINUX }"%s\n'
CLEAN = """\
unset nvm_fastboot_rest nvm_fastboot_kept nvm_fastboot_gap nvm_fastboot_raw nvm_fastboot_bare nvm_fastboot_quote
unset nvm_fastboot_char nvm_fastboot_next
unset -f nvm_fastboot_word nvm_fastboot_strip
"""


def path(purpose):
    return "%s/%s%s.cfg" % (DIRECTORY, PREFIX, purpose)


def render(arguments, drop, made_directory):
    """The file for C(arguments). C(made_directory) records that the directory was created by us, to remove it later."""
    return "".join(
        [HEADER, _record(arguments, drop, made_directory), SCRIPT % {"patterns": _patterns(arguments, drop)}]
        + [STRIP % {"name": name} for name in VARIABLES]
        + [_append(arguments), CLEAN]
    )


def render_removed(made_directory):
    """The file after the removal of the settings and before the next generation. It sets nothing.

    While the file exists, the generated configuration may still have the arguments; the next run has to generate it.
    """
    return HEADER + _record([], [], made_directory)


def parse(text):
    """The record in one of our files, C({arguments, drop, directory}), or None if the script does not match the record."""
    line = next((each for each in text.splitlines() if each.startswith(RECORD)), RECORD)
    try:
        record = json.loads(line[len(RECORD) :])
        arguments, drop = record["arguments"], record["drop"]
        if not all(isinstance(word, str) for word in arguments + drop):
            return None
    except (TypeError, ValueError, KeyError):
        return None
    if arguments and text.count("\n" + _append(arguments)) != 1:
        return None
    if len(re.findall(r"^GRUB_CMDLINE_LINUX=", text, re.M)) != bool(arguments):
        return None
    return {"arguments": arguments, "drop": drop, "directory": bool(record.get("directory"))}


def _record(arguments, drop, made_directory):
    record = {"arguments": list(arguments), "drop": list(drop), "directory": bool(made_directory)}
    return "%s%s\n" % (RECORD, json.dumps(record, sort_keys=True))


def _append(arguments):
    return APPEND % _shell(" ".join(quote(word) for word in arguments))


def _patterns(arguments, drop):
    """The patterns of a shell C(case) for the words to remove: our own, and C(drop)."""
    exact = list(dict.fromkeys(list(arguments) + list(drop)))
    prefixes = [name for name in drop if "=" not in name]
    return " | ".join([_shell(word) for word in exact] + ["%s*" % _shell(name + "=") for name in prefixes])


def _shell(text):
    return "'%s'" % text.replace("'", "'\\''")
