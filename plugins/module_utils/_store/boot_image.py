# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of boot images in a store: captured, verified, staged, armed, disarmed, removed.

Used by C(boot_image) and C(boot_image_info). The store is the business of the command C(fuse-store), which is told what to
do and answers in JSON; its errors are passed on with their code, cause and remedy. One run is one thread, and as safe to
kill as that command is.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused, Result, shown
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.devices import active_swaps

NOT_FOUND, REFUSED = 3, 5  # exit codes of fuse-store
_POLL = 0.05  # seconds
_LEDGER = ["captured", "verified", "staged", "armed", "resumed", "failed"]

# Options that both modules have; their documentation is the fragment image_store.
COMMON = {
    "store": {"type": "str", "required": True},
    "key_file": {"type": "path", "no_log": False},
    "executable": {"type": "str", "default": "fuse-store"},
    "image": {"type": "str"},
    "machine": {"type": "str"},
    "application": {"type": "str"},
    "kind": {"type": "str"},
    "event": {"type": "str"},
    "before": {"type": "str"},
    "with_state": {"type": "str", "choices": _LEDGER},
    "device": {"type": "path"},
    "root": {"type": "path"},
    "evidence_disks": {"type": "list", "elements": "path"},
}


class Store:
    """A store, a folder on the machine the module runs on or the URL of a bucket, as calls of C(fuse-store). C(warnings) are
    what it warned of."""

    def __init__(self, host, path, executable="fuse-store", key_file=None):
        self._host = host
        where = path if "://" in path else os.path.expanduser(os.path.expandvars(path))
        self._command = [_program(host, executable), "--json", "--store", where]
        if key_file:
            self._command += ["--key-file", key_file]
        self.warnings = []

    def argv(self, *words):
        """The command line for a verb and its arguments."""
        return self._command + list(words)

    def call(self, *words, ok=(0,)):
        """Run a verb and return its answer, a dict. Refused where its exit code is not in C(ok), with the code of its error."""
        return self.answer(words[0], self._host.run(self.argv(*words), ok=None), ok)

    def answer(self, verb, done, ok=(0,)):
        """What a finished call says."""
        said = [record for record in map(_record, done.err.splitlines()) if record]
        self.warnings += [str(record["warning"]) for record in said if "warning" in record]
        answer = _record(done.out)
        if done.rc in ok and answer is not None:
            return answer
        errors = [record["error"] for record in said if isinstance(record.get("error"), dict)]
        raise _refusal(verb, done, errors[-1] if errors else {})

    def show(self, image):
        """All that the store knows of a version."""
        return self.call("show", image)

    def select(self, wanted, ok=(0,)):
        """The answer of C(select) for the options C(wanted); with exit code 3 none fits."""
        return self.call("select", *_flags(wanted, ("machine", "application", "kind", "event", "before", "with_state")), ok=ok)

    def inspect(self, device):
        """What image a device holds, or None."""
        try:
            return self.call("inspect", device)
        except Refused as refused:
            if refused.code != "not_found":
                raise
            return None


def _program(host, executable):
    found = host.which(executable) if "/" not in executable else executable
    found = found or shutil.which(executable)
    if not found or not os.access(host.path(found), os.X_OK):
        raise Refused(
            "executable_missing",
            "The command %s is not there, or may not be run." % executable,
            "Install fuse_store where the store is, or say with executable where its command is.",
        )
    return found


def _record(line):
    """The dict that a line holds, or None."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _refusal(verb, done, error):
    """The error of a call that failed."""
    if not error:
        said = shown((done.err or done.out).strip()) or "it printed nothing"
        return Refused(
            "command_failed",
            "fuse-store %s exited with %d: %s" % (verb, done.rc, said),
            "Run it by hand where the store is.",
        )
    cause = ": ".join(part for part in (error.get("thing"), error.get("cause")) if part)
    return Refused(str(error.get("type", "command_failed")), cause, str(error.get("remedy") or "See fuse-store %s --help." % verb))


def _flags(values, names):
    """Command-line options for those of C(names) that C(values) has."""
    flags = []
    for name in names:
        if values.get(name) not in (None, ""):
            flags += ["--%s" % name.replace("with_", "").replace("_", "-"), values[name]]
    return flags


# two processes, one pipe ---------------------------------------------------------------------------------------------------


def pipe(source, sink):
    """Run C(source), its output being the input of C(sink), and return the Result of both (of the first without output).

    C(sink) sees the end of its input only after C(source) has exited with 0; otherwise it is told to end (SIGTERM) before
    that. So whoever stores what comes until the end stores nothing of what broke off.
    """
    environment = dict(os.environ, LC_ALL="C", LANGUAGE="C")
    reading, writing = os.pipe()
    started = []
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            try:
                started.append(subprocess.Popen(sink, stdin=reading, stdout=out, stderr=err, env=environment))
            finally:
                os.close(reading)
            last = started[0]
            started.append(subprocess.Popen(source, stdin=subprocess.DEVNULL, stdout=writing, stderr=said, env=environment))
            first = started[1]
            while first.poll() is None and last.poll() is None:
                time.sleep(_POLL)
            if first.poll() is None:  # nobody takes what it gives
                first.terminate()
                first.wait()
            elif first.returncode != 0 and last.poll() is None:
                last.terminate()
        except BaseException:
            for process in started:
                process.kill()
            raise
        finally:
            os.close(writing)
        last.wait()
        return Result(first.returncode, "", _text(said)), Result(last.returncode, _text(out), _text(err))


def _text(file):
    file.seek(0)
    return file.read().decode("utf-8", "replace")


# states --------------------------------------------------------------------------------------------------------------------


def apply(transaction, options):
    """Bring about C(options["state"]) and return what the module returns."""
    store = Store(transaction.host, options["store"], options["executable"], options["key_file"])
    image, answer = _STATES[options["state"]](transaction, store, options)
    return {"image": image, "answer": answer, "warnings": store.warnings}


def _captured(transaction, store, options):
    host, device, source = transaction.host, options["device"], options["source_command"]
    if device:
        _not_in_use(host, device)
    words = ["put", "-" if source else device, "--machine", options["machine"], "--application", options["application"] or "system"]
    words += ["--kind", options["kind"] or "hibernation"] + _flags(options, ("event",)) + _disks(options)
    for key, value in sorted((options["tags"] or {}).items()):
        words += ["--tag", "%s=%s" % (key, value)]
    words += ["--replace"] if options["replace"] else []
    what = "%s/%s in %s" % (options["machine"], options["application"] or "system", options["store"])
    transaction.note(what, "", "a version of %s\n" % (device or " ".join(source)))
    if transaction.check_mode:
        return None, None
    if not source:
        answer = store.call(*words)
    else:
        given, done = pipe(source, store.argv(*words))
        if given.rc and done.rc in _TOLD_TO_END:
            raise Refused(
                "source_failed",
                "%s exited with %d: %s" % (source[0], given.rc, shown(given.err.strip()) or "it printed nothing"),
                "Nothing was stored. Run it by hand where the store is.",
            )
        answer = store.answer("put", done)
    return store.show(answer["id"]), answer


def _verified(transaction, store, options):
    image = _version(store, options)
    if transaction.check_mode:
        if image["state"] == "captured":
            transaction.note(_name(image), "captured\n", "verified\n")
        return image, None
    answer = store.call("verify", image["id"])
    after = store.show(image["id"])
    if after["state"] != image["state"]:
        transaction.note(_name(image), image["state"] + "\n", after["state"] + "\n")
    return after, answer


def _staged(transaction, store, options):
    image = _version(store, options)
    if transaction.check_mode:
        transaction.note(options["device"], "", _name(image) + ", staged\n")
        return image, None
    answer = store.call("stage", image["id"], options["device"], *(["--force"] if options["force"] else []))
    if answer["written"]:
        transaction.note(options["device"], "", _name(image) + ", staged\n")
    return store.show(image["id"]), answer


def _armed(transaction, store, options):
    words = ["arm", options["device"], *_situation(options)]
    if options["image"] or options["machine"]:
        words += ["--image", _version(store, options)["id"]]
    for code in options["ignore_refusals"] or ():
        words += ["--force", code]
    return _signature(transaction, store, options, words, "armed")


def _disarmed(transaction, store, options):
    return _signature(transaction, store, options, ["disarm", options["device"]], "disarmed")


def _signature(transaction, store, options, words, state):
    """Call C(arm) or C(disarm), which say whether that changed the device."""
    if transaction.check_mode:
        held = store.inspect(options["device"]) or {"state": "disarmed"}
        if held["state"] != state:
            transaction.note(options["device"], held["state"] + "\n", state + "\n")
        return None, None
    answer = store.call(*words)
    if answer["changed"]:
        before = {"armed": "disarmed", "disarmed": "armed"}[state]
        transaction.note(options["device"], before + "\n", state + "\n")
    return (store.show(answer["id"]) if answer.get("id") else None), answer


def _told(transaction, store, options):
    """What became of an armed image."""
    image, outcome = _version(store, options), options["state"]
    if image["state"] == outcome:
        return image, None
    transaction.note(_name(image), image["state"] + "\n", outcome + "\n")
    if transaction.check_mode:
        return image, None
    answer = store.call("report", image["id"], outcome)
    return store.show(image["id"]), answer


def _absent(transaction, store, options):
    try:
        image = _version(store, options)
    except Refused as refused:
        if refused.code == "not_found":
            return None, None
        raise
    transaction.note(_name(image), image["state"] + "\n", "")
    answer = None if transaction.check_mode else store.call("remove", image["id"])
    return image, answer


_STATES = {
    "captured": _captured, "verified": _verified, "staged": _staged, "armed": _armed, "disarmed": _disarmed,
    "resumed": _told, "failed": _told, "absent": _absent,
}
STATES = tuple(_STATES)
_TOLD_TO_END = (-15, 128 + 15)


def _version(store, options):
    """The version that C(image) names, or the newest that fits the other options."""
    return store.show(options["image"] or store.select(options)["id"])


def _name(image):
    return "%s/%s/%s" % (image["machine"], image["application"], image["version"])


def _disks(options):
    return [word for disk in options["evidence_disks"] or () for word in ("--machine-disk", disk)]


def _situation(options):
    """What tells where an image is to be resumed, if that is not the machine the module runs on."""
    return _flags(options, ("root",)) + _disks(options)


def _not_in_use(host, device):
    """Refused where the machine is swapping to C(device), so that reading it would give no state that ever was."""
    path = host.real(device)
    if not os.path.exists(host.path(path)):
        raise Refused("device_missing", "%s does not exist." % device, "Give the device or the file that the image is on.")
    if path in [host.real(swap.path) for swap in active_swaps(host)]:
        raise Refused(
            "device_in_use",
            "%s is in use as swap; what is on it changes while it is read." % device,
            "Take it out of use first (nvm_swap with active: false), and put it back afterwards.",
        )


# looking -------------------------------------------------------------------------------------------------------------------


def look(host, options):
    """What C(boot_image_info) returns."""
    store = Store(host, options["store"], options["executable"], options["key_file"])
    found = dict.fromkeys(("images", "selected", "passed_over", "device", "preflight"))
    found["images"] = store.call("list", *_flags(options, ("machine", "application")))["versions"]
    if options["machine"]:
        selection = store.select(options, ok=(0, NOT_FOUND))
        found["selected"], found["passed_over"] = selection["chosen"], selection["passed_over"]
    if options["device"]:
        found["device"] = store.inspect(options["device"])
    if options["image"]:
        found["preflight"] = store.call("preflight", options["image"], *_flags(options, ("device",)), *_situation(options), ok=(0, REFUSED))
    return dict(found, warnings=store.warnings)
