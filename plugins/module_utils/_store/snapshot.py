# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks for a snapshot of the running system, and waits for it. The command C(fuse-store) does it.

One run is one thread. When the system is resumed from the image, the run goes on from the same place, on a connection that is gone.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._store.client import Program, flags

RESTORED = 10  # exit code of fuse-store


def take(transaction, options):
    """The module's result. In check mode nothing is asked."""
    program = Program(transaction.host, options["executable"])
    words = ["snapshot"] + ([options["device"]] if options["device"] else [])
    words += flags(options, ("application", "event"))
    words += ["--keep", str(options["keep"])] if options["keep"] else []
    words += ["--%s" % name for name in ("golden", "replace") if options[name]]
    name = "%s %s" % (options["application"] or options["device"], options["event"] or "")
    transaction.note("snapshots", "", name.strip() + "\n")
    if transaction.check_mode:
        return {"result": None, "id": None, "slot": None, "size": None, "pause": None, "warnings": []}
    answer = program.call(*words, ok=(0, RESTORED))
    found = {key: answer.get(key) for key in ("result", "id", "slot", "size", "pause")}
    return dict(found, warnings=program.warnings)
