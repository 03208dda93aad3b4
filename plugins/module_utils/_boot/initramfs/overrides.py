# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of others in an image that keep it from resuming as C(resume=) on the kernel command line says. Pure functions on texts.

Nothing is run: an assignment counts wherever it stands, and a value that is computed counts as one that differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

COMMENT = re.compile(r"(?m)(^|\s)#.*$")
ASSIGNMENT = r"(?:^|[\s;&|(%s])(%s)=(\"[^\"]*\"|'[^']*'|[^\s;&|)]*)"
# A redirection to, or tee of, the kernel's own setting
WRITES = re.compile(r"(?:>\s*|\btee\b[^|;&\n]*\s)[\"']?(?:\$\{?\w+\}?)?(/sys/power/resume(?:_offset)?)\b")
PARAMETERS = "conf/param.conf"  # sourced after each script (scripts/functions, call_scripts)


@dataclass(frozen=True)
class Override:
    """A setting C(what) in the file C(name) of an image, and what it does, as a clause."""

    name: str
    what: str
    effect: str

    def __str__(self):
        return "%s has %s, %s" % (self.name, self.what, self.effect)


def bare(text):
    """C(text) without comments."""
    return COMMENT.sub(r"\1", text)


def assigned(files, names, variables):
    """What the shell files C(names), sourced in this order, assign to C(variables) in the end: C({variable: (file, value)})."""
    found = {}
    for name in names:
        for variable, value in re.findall(ASSIGNMENT % ("", "|".join(variables)), bare(files[name]), re.M):
            found[variable] = (name, value.strip("\"'"))
    return found


def script_overrides(name, text):
    """What the script C(name), which runs in the initramfs, changes."""
    text = bare(text)
    found = [Override(name, "a command that writes to %s" % path, "so that the kernel looks for the image there")
             for path in dict.fromkeys(WRITES.findall(text))]
    if PARAMETERS in text:
        for line in text.splitlines():
            names = "resume_offset|noresume" + ("|resume" if PARAMETERS in line else "")  # resume= may be a variable of the script alone
            for variable, value in re.findall(ASSIGNMENT % ("\"'", names), line, re.M):
                found.append(Override(name, "%s=%s" % (variable, value.strip("\"'")), "which replaces what the kernel command line says"))
    return found


def module_overrides(name, text, modules, needed, blacklist):
    """What the file C(name) of modprobe.d(5) keeps from being loaded: one of C(needed) by an C(install) command that does nothing, one of
    C(modules) by C(blacklist), where that is heeded."""
    found = []
    for line in bare(text).splitlines():
        words = line.split()
        module = words[1].replace("-", "_") if len(words) > 1 else ""
        disabled = words[:1] == ["install"] and module in needed and words[2:3] and re.fullmatch(r"(/usr)?/bin/(true|false)|:", words[2])
        if disabled or (blacklist and words[:1] == ["blacklist"] and module in modules):
            found.append(Override(name, "'%s'" % " ".join(words), "so that the driver is not loaded"))
    return found
