# SPDX-License-Identifier: GPL-3.0-or-later
"""``snapshot``: write an image of the running system to a device; the system goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import text
from fuse_store.cli.parser import Verb, argument
from fuse_store.cli.values import seconds

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

RESTORED = 10  # exit code


def run(context: Context) -> int:
    from fuse_store.snapshot import take

    options = context.options
    taken = take(options.device, arm=options.arm, rearm=options.rearm, replace=options.replace, limit=options.time_limit)
    for warning in taken.warnings:
        context.warn(warning)
    result = "restored" if taken.restored else "created"
    record = {
        "result": result, "device": taken.device, "armed": taken.armed, "size": taken.size,
        "memory": taken.memory, "swapped": taken.swapped, "pause": round(taken.pause, 3),
    }  # fmt: skip
    context.emit(record, result)
    if taken.restored:
        context.remark(f"system restored from {taken.device}")
        return RESTORED
    armed = "armed" if taken.armed else "not armed"
    context.remark(f"snapshot of {text.size(taken.size)} on {taken.device}, {armed}; the system stood still for {taken.pause:.1f} s")
    return 0


VERB = Verb(
    name="snapshot",
    summary="write an image of the running system to a device, and go on",
    description="Stops all processes, writes the memory to DEVICE as a hibernation image, and lets the system go on. When a kernel resumes "
    "the image, the command returns a second time, as fork(2) does: it prints 'restored' in place of 'created', and its exit code is 10. "
    "Swap areas are taken out of use meanwhile. DEVICE is a block device that is not in use: another than the swap area of the system.",
    run=run,
    arguments=(
        argument("device", metavar="DEVICE", complete="file", help="unused block device for the image"),
        argument("--arm", action="store_true", help="resume it at the next boot; refused while a filesystem on a block device is writable"),
        argument("--rearm", action="store_true", help="like --arm, and again each time that it has been resumed"),
        argument("--replace", action="store_true", help="replace an armed image on the device"),
        argument("--time-limit", metavar="SECONDS", type=seconds, default=120, help="give up after SECONDS; default 120"),
    ),
    keys={
        "result": "created, or restored if the system was resumed from the image",
        "device": "persistent name of the device",
        "armed": "whether the kernel resumes the image at the next boot",
        "size": "bytes of the image; 0 if restored",
        "memory": "bytes of memory in use before, which the kernel cannot free; 0 if restored",
        "swapped": "bytes in swap before; 0 if restored",
        "pause": "seconds for which the system stood still; 0 if restored",
    },
    examples=(
        ("fuse-store snapshot --arm /dev/pmem1", "take a snapshot to which the machine returns when the power fails"),
    ),
    interrupted="No image is on the device; the system goes on.",
)
