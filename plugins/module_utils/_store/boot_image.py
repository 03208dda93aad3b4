# SPDX-License-Identifier: GPL-3.0-or-later
"""The states of a boot image in a store: captured, verified, staged, armed, disarmed, resumed, failed, absent.

Each state is a function that calls C(fuse-store). One run is one thread, and as safe to kill as that command.
"""

from __future__ import annotations

import os

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused, shown
from ansible_collections.nvm.fastboot.plugins.module_utils._store.client import Store, flags
from ansible_collections.nvm.fastboot.plugins.module_utils._store.pipe import TERMINATED, pipe
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.devices import active_swaps

NOT_FOUND, REFUSED = 3, 5  # exit codes of fuse-store
_VERSION_STATES = ["captured", "verified", "staged", "armed", "resumed", "failed", "unknown"]

# Options of both modules; documented in the fragment image_store.
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
    "with_state": {"type": "str", "choices": _VERSION_STATES},
    "device": {"type": "path"},
    "root": {"type": "path"},
    "machine_disks": {"type": "list", "elements": "path"},
}


# states ------------------------------------------------------------------------------------------------------------------


def apply(transaction, options):
    """Bring the image into the state C(options["state"]), and return the module's result."""
    store = Store(transaction.host, options["store"], options["executable"], options["key_file"])
    image, answer = _STATES[options["state"]](transaction, store, options)
    return {"image": image, "answer": answer, "warnings": store.warnings}


def _captured(transaction, store, options):
    host, device, source = transaction.host, options["device"], options["source_command"]
    if device:
        _not_in_use(host, device)
    words = ["put", "-" if source else device, "--machine", options["machine"], "--application", options["application"] or "system"]
    if source and options["replace"]:  # a pipe replaces nothing: it does not tell whether it is complete
        words.remove("-")
    words += ["--kind", options["kind"] or "hibernation"] + flags(options, ("event",)) + _disks(options)
    for key, value in sorted((options["tags"] or {}).items()):
        words += ["--tag", "%s=%s" % (key, value)]
    words += ["--replace"] if options["replace"] else []
    name = "%s/%s in %s" % (options["machine"], options["application"] or "system", options["store"])
    transaction.note(name, "", "a version of %s\n" % (device or " ".join(source)))
    if transaction.check_mode:
        return None, None
    if source and options["replace"]:
        answer = store.call(*words, "--command", *source)
    else:
        answer = _put_output(store, words, source) if source else store.call(*words)
    return store.show(answer["id"]), answer


def _put_output(store, words, source):
    """Store the output of the command C(source)."""
    given, done = pipe(source, store.argv(*words))
    if given.rc and done.rc in TERMINATED:
        raise Refused(
            "source_failed",
            "%s failed with exit code %d: %s" % (source[0], given.rc, shown(given.err.strip()) or "no output"),
            "Nothing was stored. Run the command by hand on the store's machine.",
        )
    return store.answer("put", done)


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
    words = ["--slot"] if options["into_slot"] else []
    answer = store.call("stage", image["id"], options["device"], *words, *(["--force"] if options["force"] else []))
    if answer["written"]:
        transaction.note(options["device"], "", _name(image) + ", staged\n")
    return store.show(image["id"]), answer


def _armed(transaction, store, options):
    words = ["arm", options["device"], *_target_machine(options)]
    if options["image"] or options["machine"]:
        words += ["--image", _version(store, options)["id"]]
    for code in options["ignore_refusals"] or ():
        words += ["--force", code]
    return _signature(transaction, store, options, words, "armed")


def _disarmed(transaction, store, options):
    return _signature(transaction, store, options, ["disarm", options["device"]], "disarmed")


def _signature(transaction, store, options, words, state):
    """Call C(arm) or C(disarm), which report whether the device changed."""
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


def _reported(transaction, store, options):
    """Report the outcome of an armed image."""
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
    answer = None if transaction.check_mode else store.call("remove", image["id"], *(["--force"] if options["force"] else []))
    return image, answer


_STATES = {
    "captured": _captured, "verified": _verified, "staged": _staged, "armed": _armed, "disarmed": _disarmed,
    "resumed": _reported, "failed": _reported, "absent": _absent,
}
STATES = tuple(_STATES)


def _version(store, options):
    """The version C(image), or the newest one that matches the other options."""
    return store.show(options["image"] or store.select(options)["id"])


def _name(image):
    return "%s/%s/%s" % (image["machine"], image["application"], image["version"])


def _disks(options):
    return [word for disk in options["machine_disks"] or () for word in ("--machine-disk", disk)]


def _target_machine(options):
    """Options of fuse-store for the machine that will resume the image, if the module runs on another one."""
    return flags(options, ("root",)) + _disks(options)


def _not_in_use(host, device):
    """Refused if C(device) is in use as swap, because it changes while it is read."""
    path = host.real(device)
    if not os.path.exists(host.path(path)):
        raise Refused("device_missing", "%s does not exist." % device, "Set the option device to the device or file with the image.")
    if path in [host.real(swap.path) for swap in active_swaps(host)]:
        raise Refused(
            "device_in_use",
            "%s is in use as swap, and changes while it is read." % device,
            "Deactivate the swap area first (nvm_swap with active: false), and activate it again afterwards.",
        )


# information -------------------------------------------------------------------------------------------------------------


def look(host, options):
    """The result of C(boot_image_info)."""
    store = Store(host, options["store"], options["executable"], options["key_file"])
    result = dict.fromkeys(("images", "selected", "passed_over", "device", "preflight"))
    result["images"] = store.call("list", *flags(options, ("machine", "application")))["versions"]
    if options["machine"]:
        selection = store.select(options, ok=(0, NOT_FOUND))
        result["selected"], result["passed_over"] = selection["chosen"], selection["passed_over"]
    if options["device"]:
        result["device"] = store.inspect(options["device"])
    if options["image"]:
        words = ["preflight", options["image"], *flags(options, ("device",)), *_target_machine(options)]
        result["preflight"] = store.call(*words, ok=(0, REFUSED))
    return dict(result, warnings=store.warnings)
