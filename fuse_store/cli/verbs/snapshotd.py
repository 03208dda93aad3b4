# SPDX-License-Identifier: GPL-3.0-or-later
"""``snapshotd``: take snapshots for programs that ask over a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.parser import Verb, argument
from fuse_store.cli.values import seconds

if TYPE_CHECKING:
    from fuse_store.cli.context import Context


def run(context: Context) -> int:
    import math
    import signal

    from fuse_store.snapshot.service.policy import load
    from fuse_store.snapshot.service.server import Server, listen

    options = context.options
    policy = load(options.policy)
    if options.check:
        record = {"device": policy.device, "arm": policy.arm, "applications": sorted(policy.applications)}
        context.emit(record, f"{options.policy}: {policy.device}, applications: {', '.join(sorted(policy.applications)) or 'none'}")
        return 0
    with listen(options.socket) as listener:
        try:
            Server(listener, options.policy).serve(options.idle if options.idle is not None else math.inf)
        except KeyboardInterrupt as interrupt:
            if getattr(interrupt, "number", None) != signal.SIGTERM:
                raise
            return 0  # as systemd ends a service
    context.emit({"device": policy.device, "arm": policy.arm, "applications": sorted(policy.applications)}, "")
    return 0


VERB = Verb(
    name="snapshotd",
    summary="take snapshots for programs that ask over a socket",
    description="Answers programs that ask for snapshots over a Varlink socket, one after the other, as its policy says. Runs as root, "
    "usually started by systemd when a program asks.",
    run=run,
    arguments=(
        argument("--policy", metavar="FILE", default="/etc/fuse-store/snapshots.toml", complete="file",
                 help="who may ask for what; default /etc/fuse-store/snapshots.toml"),
        argument("--socket", metavar="PATH", default="/run/fuse-store/snapshot", help="without systemd; default /run/fuse-store/snapshot"),
        argument("--idle", metavar="SECONDS", type=seconds, help="end when no program has been connected for SECONDS"),
        argument("--check", action="store_true", help="check the policy, and end"),
    ),
    keys={"device": "where images are written", "arm": "no, once or always", "applications": "names of the applications that may ask"},
    examples=(("fuse-store snapshotd --check", "check the policy"),),
    interrupted="Images that were complete are as they were.",
)  # fmt: skip
