# SPDX-License-Identifier: GPL-3.0-or-later
"""``snapshot``: write an image of the running system to a device; the system goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.parser import Verb, argument, see_help
from fuse_store.cli.values import name, seconds
from fuse_store.errors import Refused, StoreError, UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.snapshot import Snapshot
    from fuse_store.snapshot.client import Snapshot as Asked

RESTORED = 10  # exit code


def run(context: Context) -> int:
    options = context.options
    if bool(options.device) == bool(options.application):
        raise UsageError("snapshot", "needs either DEVICE or --application.", see_help("snapshot"))
    taken, record = _asked(context) if options.application else _taken(context)
    result = "restored" if taken.restored else "created"
    context.emit({"result": result, "id": taken.id, **record}, result)
    if taken.restored:
        context.remark(f"system restored from snapshot {taken.id[:12]}")
        return RESTORED
    context.remark(f"snapshot {taken.id[:12]}: {text.size(taken.size)}; the system stood still for {taken.pause:.1f} s")
    return 0


def _taken(context: Context) -> tuple[Snapshot, dict[str, object]]:
    """By this process."""
    from fuse_store.snapshot import take

    options = context.options
    taken = take(options.device, arm=options.arm, rearm=options.rearm, replace=options.replace, limit=options.time_limit)
    for warning in taken.warnings:
        context.warn(warning)
    record: dict[str, object] = {
        "device": taken.device, "armed": taken.armed, "size": taken.size, "memory": taken.memory, "swapped": taken.swapped,
        "pause": round(taken.pause, 3),
    }  # fmt: skip
    return taken, record


def _asked(context: Context) -> tuple[Asked, dict[str, object]]:
    """By the service. Raises StoreError."""
    from fuse_store.snapshot.client import SnapshotError, snapshot

    options = context.options
    try:
        taken = snapshot(options.application, options.event or "", path=options.socket)
    except SnapshotError as error:
        kind = Refused if error.name in ("NotAllowed", "TooSoon") else StoreError
        thing, _colon, cause = str(error).partition(": ")
        if error.name == "Failed":
            raise StoreError(*(str(error.parameters.get(name, "")) for name in ("thing", "cause", "remedy"))) from None
        raise (kind(thing, cause) if cause else kind("snapshot", thing)) from None
    return taken, {"size": taken.size, "pause": round(taken.pause, 3)}


VERB = Verb(
    name="snapshot",
    summary="write an image of the running system to a device, and go on",
    description="Stops all processes, writes the memory to DEVICE as a hibernation image, and lets the system go on. When a kernel resumes "
    "the image, the command returns a second time, as fork(2) does: it prints 'restored' in place of 'created', and its exit code is 10. "
    "Swap areas are taken out of use meanwhile. DEVICE is a block device that is not in use: another than the swap area of the system. "
    "With --application, the snapshot service takes it, as its policy says.",
    run=run,
    arguments=(
        argument("device", metavar="DEVICE", nargs="?", complete="file", help="unused block device for the image"),
        argument("--application", metavar="NAME", type=name, help="ask the snapshot service, for this application; without DEVICE"),
        argument("--event", metavar="TEXT", type=name, help="why, for the log of the service"),
        argument("--socket", metavar="PATH", default="/run/fuse-store/snapshot", help="of the service; default /run/fuse-store/snapshot"),
        argument("--arm", action="store_true", help="resume it at the next boot; refused while a filesystem on a block device is writable"),
        argument("--rearm", action="store_true", help="like --arm, and again each time that it has been resumed"),
        argument("--replace", action="store_true", help="replace an armed image on the device"),
        argument("--time-limit", metavar="SECONDS", type=seconds, default=120, help="give up after SECONDS; default 120"),
    ),
    keys={
        "result": "created, or restored if the system was resumed from the image",
        "id": "id of the image, the same in both results",
        "device": "persistent name of the device; missing with --application",
        "armed": "whether the kernel resumes the image at the next boot; missing with --application",
        "size": "bytes of the image; 0 if restored",
        "memory": "bytes of memory in use before, which the kernel cannot free; 0 if restored; missing with --application",
        "swapped": "bytes in swap before; 0 if restored; missing with --application",
        "pause": "seconds for which the system stood still; 0 if restored",
    },
    examples=(
        ("fuse-store snapshot --arm /dev/pmem1", "take a snapshot to which the machine returns when the power fails"),
        ("fuse-store snapshot --application shop --event ready", "ask the service for one, without being root"),
    ),
    interrupted="No image is on the device; the system goes on.",
)
