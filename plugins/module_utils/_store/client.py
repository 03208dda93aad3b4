# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls of the command C(fuse-store), which answers in JSON.

Errors are passed on with their code, cause and fix. One object is used by one thread; a call may be killed at any time, as
the command itself may.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused, shown

SELECTION = ("machine", "application", "kind", "event", "before", "with_state")


class Program:
    """The command C(fuse-store), for verbs that need no store. C(warnings) collects those of all calls."""

    def __init__(self, host, executable="fuse-store"):
        self._host = host
        self._command = [_program(host, executable), "--json"]
        self.warnings = []

    def argv(self, *words):
        """The command line for a verb and its arguments."""
        return self._command + list(words)

    def call(self, *words, ok=(0,)):
        """Run a verb and return its answer, a dict. Refused with the code of its error if the exit code is not in C(ok)."""
        return self.answer(words[0], self._host.run(self.argv(*words), ok=None), ok)

    def answer(self, verb, done, ok=(0,)):
        """The answer of a finished call, a dict."""
        records = [record for record in map(_record, done.err.splitlines()) if record]
        self.warnings += [str(record["warning"]) for record in records if "warning" in record]
        answer = _record(done.out)
        if done.rc in ok and answer is not None:
            return answer
        errors = [record["error"] for record in records if isinstance(record.get("error"), dict)]
        raise _refusal(verb, done, errors[-1] if errors else {})


class Store(Program):
    """A store, in a directory on the machine the module runs on or at a URL."""

    def __init__(self, host, location, executable="fuse-store", key_file=None):
        super().__init__(host, executable)
        self._command += ["--store", _expanded(location)]
        if key_file:
            self._command += ["--key-file", key_file]

    def show(self, image):
        """The metadata of a version."""
        return self.call("show", image)

    def select(self, wanted, ok=(0,)):
        """The answer of C(select) for the options C(wanted). Exit code 3 means that no version matches."""
        return self.call("select", *flags(wanted, SELECTION), ok=ok)

    def inspect(self, device):
        """The image on a device, or None."""
        try:
            return self.call("inspect", device)
        except Refused as refused:
            if refused.code != "not_found":
                raise
            return None


def flags(values, names):
    """Command-line options for those of C(names) that are set in C(values)."""
    options = []
    for name in names:
        if values.get(name) not in (None, ""):
            options += ["--%s" % name.replace("with_", "").replace("_", "-"), values[name]]
    return options


def _expanded(location):
    """A directory with variables and C(~) replaced; a URL as it is. Refused if C(~) stands for no directory: a directory of that name
    would be used, or, with an empty C(HOME), one below the root."""
    if "://" in location:
        return location
    location = os.path.expandvars(location)
    if not location.startswith("~"):
        return location
    user, _slash, rest = location[1:].partition("/")
    try:
        home = os.environ.get("HOME", "") if not user else ""
        if not os.path.isabs(home):
            home = (pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())).pw_dir
    except KeyError:
        home = ""
    if not os.path.isabs(home):
        raise Refused(
            "home_missing",
            "store %s: the user %s has no home directory." % (location, user or os.geteuid()),
            "Give the store's whole path, or set HOME.",
        )
    return os.path.join(home, rest)


def _program(host, executable):
    path = host.which(executable) if "/" not in executable else executable
    path = path or shutil.which(executable)
    if not path or not os.access(host.path(path), os.X_OK):
        raise Refused(
            "executable_missing",
            "%s: command not found, or not executable." % executable,
            "Install fuse-store on the store's machine, or set the option executable to its path.",
        )
    return path


def _record(line):
    """The JSON object in C(line), or None."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _refusal(verb, done, error):
    """The error of a failed call."""
    if not error:
        output = shown((done.err or done.out).strip()) or "no output"
        return Refused(
            "command_failed",
            "fuse-store %s failed with exit code %d: %s" % (verb, done.rc, output),
            "Run the command by hand on the store's machine.",
        )
    cause = ": ".join(part for part in (error.get("thing"), error.get("cause")) if part)
    remedy = str(error.get("remedy") or "See fuse-store %s --help." % verb)
    return Refused(str(error.get("type", "command_failed")), cause, remedy)
