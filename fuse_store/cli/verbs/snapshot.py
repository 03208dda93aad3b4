# SPDX-License-Identifier: GPL-3.0-or-later
"""``snapshot``: write an image of the running system to a device; the system goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.parser import Verb, argument, see_help
from fuse_store.cli.values import name, number, seconds
from fuse_store.errors import Damaged, Locked, NotFound, Refused, StoreError, UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.snapshot import Snapshot
    from fuse_store.snapshot.client import Snapshot as Asked

RESTORED = 10  # exit code


def run(context: Context) -> int:
    options = context.options
    if not options.device and not options.application:
        raise UsageError("snapshot", "needs DEVICE or --application.", see_help("snapshot"))
    taken, record = _taken(context) if options.device else _asked(context)
    result = "restored" if taken.restored else "created"
    context.emit({"result": result, "id": taken.id, **record}, result)
    if taken.restored:
        context.remark(f"system restored from snapshot {taken.id[:12]}")
        return RESTORED
    place = f" in slot {taken.slot}" if taken.slot else ""
    context.remark(f"snapshot {taken.id[:12]}{place}: {text.size(taken.size)}; the system stood still for {taken.pause:.1f} s")
    return 0


def _taken(context: Context) -> tuple[Snapshot, dict[str, object]]:
    """By this process."""
    from fuse_store.snapshot import Wishes, take
    from fuse_store.snapshot.service import upload
    from fuse_store.snapshot.service.policy import of_this_machine

    options = context.options
    policy, problem = of_this_machine()
    if problem:
        context.warn(f"{problem} The snapshot is taken without it.")
    wishes = Wishes(
        options.application or "system", options.event or "", golden=options.golden, keep=options.keep, replace=options.replace,
        arm=options.arm, rearm=options.rearm, limit=options.time_limit,
    )  # fmt: skip
    if policy:
        wishes = replace(wishes, hook_limit=policy.hook_time_limit)
    taken = take(options.device, wishes)
    if policy and policy.stores(taken) and (not_asked := upload.ask(taken.id if taken.restored else "")):
        context.warn(not_asked)
    for warning in taken.warnings:
        context.warn(warning)
    record: dict[str, object] = {
        "device": taken.device, "slot": taken.slot, "armed": taken.armed, "size": taken.size, "memory": taken.memory,
        "swapped": taken.swapped, "pause": round(taken.pause, 3),
    }  # fmt: skip
    return taken, record


def _asked(context: Context) -> tuple[Asked, dict[str, object]]:
    """By the service. Raises StoreError."""
    from fuse_store.snapshot.client import SnapshotError, snapshot

    options = context.options
    for option in ("golden", "arm", "rearm"):
        if getattr(options, option):
            raise UsageError(f"--{option}", "only possible with DEVICE.", "Name the device, or omit it: the policy of the service says.")
    try:
        taken = snapshot(options.application, options.event or "", replace=options.replace, keep=options.keep, path=options.socket)
    except SnapshotError as error:
        kind = Refused if error.name in ("NotAllowed", "TooSoon") else StoreError
        thing, _colon, cause = str(error).partition(": ")
        if error.name == "Failed":
            kinds: dict[int, type[StoreError]] = {kind.exit_code: kind for kind in (UsageError, NotFound, Damaged, Refused, Locked)}
            code = error.parameters.get("exit_code")
            failed = kinds.get(code, StoreError) if isinstance(code, int) else StoreError
            raise failed(*(str(error.parameters.get(name, "")) for name in ("thing", "cause", "remedy"))) from None
        raise (kind(thing, cause) if cause else kind("snapshot", thing)) from None
    return taken, {"slot": taken.slot, "size": taken.size, "pause": round(taken.pause, 3)}


VERB = Verb(
    name="snapshot",
    summary="write an image of the running system to a device, and go on",
    description="Stops all processes, writes the memory to DEVICE as a hibernation image, and lets the system go on. When a kernel resumes "
    "the image, the command returns a second time, as fork(2) does: it prints 'restored' in place of 'created', and its exit code is 10. "
    "Swap areas are taken out of use meanwhile. DEVICE is a block device that is not in use: another than the swap area of the system. On "
    "a device with slots, the image goes into a slot beside others. Without DEVICE, the snapshot service takes it, as its policy says.",
    run=run,
    arguments=(
        argument("device", metavar="DEVICE", nargs="?", complete="file", help="unused block device for the image"),
        argument("--application", metavar="NAME", type=name, help="who asks, for the slot; without DEVICE: ask the service for this one"),
        argument("--event", metavar="TEXT", type=name, help="why, for the slot and the log of the service"),
        argument("--socket", metavar="PATH", default="/run/fuse-store/snapshot", help="of the service; default /run/fuse-store/snapshot"),
        argument("--arm", action="store_true",
                 help="resume it at the next boot; refused with slots, and while a filesystem on a block device is writable"),
        argument("--rearm", action="store_true", help="like --arm, and again each time that it has been resumed"),
        argument(
            "--replace", action="store_true",
            help="when it is complete, drop older replaceable images of the same application and event; without slots: an armed image",
        ),
        argument("--keep", metavar="N", type=number, help="when it is complete, keep the N newest replaceable images of the application"),
        argument("--golden", action="store_true", help="never drop this image for another one"),
        argument("--time-limit", metavar="SECONDS", type=seconds, default=120, help="give up after SECONDS; default 120"),
    ),
    keys={
        "result": "created, or restored if the system was resumed from the image",
        "id": "id of the image, the same in both results",
        "device": "persistent name of the device; missing if the service took it",
        "slot": "number of the slot; null on a device without slots",
        "armed": "whether the kernel resumes the image at the next boot; missing if the service took it",
        "size": "bytes of the image; 0 if restored",
        "memory": "bytes of memory in use before, which the kernel cannot free; 0 if restored; missing if the service took it",
        "swapped": "bytes in swap before; 0 if restored; missing if the service took it",
        "pause": "seconds for which the system stood still; 0 if restored",
    },
    examples=(
        ("fuse-store snapshot --arm /dev/pmem1", "take a snapshot to which the machine returns when the power fails"),
        ("fuse-store snapshot --keep 3 /dev/pmem1", "take one beside the two newest, on a device with slots"),
        ("fuse-store snapshot --application shop --event ready", "ask the service for one, without being root"),
    ),
    interrupted="The image is not on the device; the system goes on. Complete slots are as they were.",
)
