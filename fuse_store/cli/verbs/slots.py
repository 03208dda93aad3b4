# SPDX-License-Identifier: GPL-3.0-or-later
"""``slots``: create, list and remove the slots of a device, each of which holds one staged hibernation image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fuse_store import times
from fuse_store.cli import text, values
from fuse_store.cli.parser import Verb, argument
from fuse_store.errors import Damaged, UsageError

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.hibernation.slots.layout import Slot, Table

ACTIONS = ("init", "list", "verify", "remove", "identity")
COLUMNS = ("SLOT", "STATE", "TAKEN (UTC)", "MACHINE", "APPLICATION", "EVENT", "IMAGE", "STORED", "SIZE", "ATTEMPTS", "KEPT", "OFFSET")
SLOT_KEYS = {
    "slot": "number",
    "state": "writing, complete, armed, used or failed, as the table says",
    "armed": "whether the kernel would resume it",
    "resume_offset": "block of its header, for the kernel's resume_offset=",
    "machine": "machine name", "application": "application name", "event": "reason for the capture; may be empty",
    "image": "id of the version, or of the snapshot",
    "content": "content digest of its version; empty if it is in no store", "taken": "time of capture in UTC (ISO 8601)",
    "size": "bytes that it takes", "extents": "[first block, number of blocks] of each part",
    "sha256": "checksum of its blocks in order, not armed; empty until it is complete",
    "attempts": "how often it was armed",
    "kept": "replaceable or golden",
    "swap": "swap areas of the machine at capture: inactive, unused, or unknown",
}  # fmt: skip


def slot_number(options: Any, verb: str) -> int:
    """The number that --slot gives. Raises UsageError."""
    if options.slot is None or options.slot < 1:
        raise UsageError(verb, "no slot specified.", "Name one with --slot; 'fuse-store slots list DEVICE' shows them.")
    return int(options.slot)


def run(context: Context) -> int:
    options = context.options
    action = {"init": _init, "list": _list, "verify": _verify, "remove": _remove, "identity": _identity}[options.action]
    if options.action != "identity" and (options.file or options.remove):
        raise UsageError(f"slots {options.action}", f"{options.file or '--remove'} is for identity alone.", "Omit it.")
    for option, given, actions in (
        ("--slot", options.slot is not None, ("verify", "remove")), ("--force", options.force, ("init", "remove")),
    ):  # fmt: skip
        if given and options.action not in actions:
            raise UsageError(f"slots {options.action}", f"{option} is for {' and '.join(actions)}.", "Omit it.")
    action(context)
    return 0


def _init(context: Context) -> None:
    from fuse_store.hibernation.slots.manage import create

    options = context.options
    device, table = create(options.device, page_size=options.page_size, force=options.force)
    context.done = f"{device} has a table of slots."
    free = (table.end - table.first) * table.page_size
    context.emit(_record(device, page_size=table.page_size, free=free), "")
    context.remark(f"{device}: {text.size(free)} for slots")


def _list(context: Context) -> None:
    from fuse_store.hibernation.slots.allocate import free_runs
    from fuse_store.hibernation.slots.manage import listing

    found = listing(context.options.device)
    table = found.table
    free = sum(count for _first, count in free_runs(table)) * table.page_size
    _warn(context, found.problem)
    records = [slot_record(table, slot, slot.number in found.armed) for slot in table.slots]
    rows = [_row(table, slot, slot.number in found.armed) for slot in table.slots]
    shown = text.table(COLUMNS, rows, right=frozenset((0, 8, 9, 11))) if rows else ""
    context.emit(_record(context.options.device, page_size=table.page_size, free=free, slots=records), shown)
    context.remark(f"{text.count(len(rows), 'slot')}, {text.size(free)} free")


def _warn(context: Context, problem: str) -> None:
    if problem:
        context.warn(f"a part of the table of slots is not valid ({problem}); the next change replaces it")


def _remove(context: Context) -> None:
    from fuse_store.hibernation.slots.manage import remove

    options = context.options
    number = slot_number(options, "slots remove")
    device, slot = remove(options.device, number, force=options.force)
    context.done = f"Slot {number} was removed."
    context.emit(_record(device, slot=number, image=slot.image), "")
    context.remark(f"{device}: slot {number} removed (version {slot.image[:12]})")


def _verify(context: Context) -> None:
    from fuse_store.hibernation.slots.manage import listing, verify

    options = context.options
    checked = verify(options.device, options.slot, context.progress)
    found = listing(options.device)
    _warn(context, found.problem)
    records = [{**slot_record(found.table, one.slot, one.slot.number in found.armed), "sound": one.sound} for one in checked]
    rows = [(str(one.slot.number), "sound" if one.sound else "damaged", one.slot.image[:12]) for one in checked]
    shown = text.table(("SLOT", "CONTENT", "IMAGE"), rows, right=frozenset((0,))) if rows else ""
    context.emit(_record(options.device, slots=records), shown)
    damaged = [str(one.slot.number) for one in checked if not one.sound]
    if damaged:
        raise Damaged(
            f"device {options.device}", f"slots whose content differs from the checksum in the table: {', '.join(damaged)}.",
            "They are not resumed. Remove them, and stage their images from the store.",
        )  # fmt: skip
    context.remark(f"{text.count(len(checked), 'slot')} sound")


def _identity(context: Context) -> None:
    from fuse_store.hibernation.slots.manage import listing
    from fuse_store.snapshot.golden import region
    from fuse_store.snapshot.golden.identity import load
    from fuse_store.snapshot.golden.identity import text as in_toml

    options = context.options
    if options.remove and options.file:
        raise UsageError("slots identity", "either FILE or --remove is possible.", "Omit one of them.")
    identity = None
    if options.remove:
        region.remove(options.device)
        context.done = "The identity was removed."
        context.remark(f"{options.device}: no identity")
    elif options.file:
        identity = region.write(options.device, load(options.file))
        context.done = "The identity was written."
        context.remark(f"{options.device}: identity of {identity.hostname or 'a machine without a name'}")
    else:
        listing(options.device)  # is there a table of slots?
        identity = region.read(options.device)
        if identity is None:
            context.remark(f"{options.device}: no identity")
    shown = in_toml(identity, secret=False) if identity else ""
    context.emit(_record(options.device, identity=shown or None), "" if options.file else shown.rstrip("\n"))


def _record(device: str, **values: Any) -> dict[str, Any]:
    """The keys of ``--json``, the same for all actions."""
    return {"device": device, "page_size": None, "free": None, "slots": [], "slot": None, "image": None, "identity": None, **values}


def slot_record(table: Table, slot: Slot, armed: bool) -> dict[str, Any]:
    """The keys of SLOT_KEYS."""
    return {
        "slot": slot.number, "state": slot.state, "armed": armed, "resume_offset": slot.header, "machine": slot.machine,
        "application": slot.application, "event": slot.event, "image": slot.image, "content": slot.content,
        "taken": times.at(slot.taken).isoformat(), "size": slot.blocks * table.page_size,
        "extents": [list(extent) for extent in slot.extents], "sha256": slot.sha256, "attempts": slot.attempts, "kept": slot.kept,
        "swap": slot.swap,
    }  # fmt: skip


def _row(table: Table, slot: Slot, armed: bool) -> tuple[str, ...]:
    state = slot.state if armed == (slot.state == "armed") else f"{slot.state}, {'armed' if armed else 'not armed'}"
    return (
        str(slot.number), state, text.when(times.at(slot.taken)), slot.machine, slot.application, slot.event,
        slot.image[:12], "yes" if slot.content else "no", text.size(slot.blocks * table.page_size), str(slot.attempts), slot.kept,
        str(slot.header),
    )  # fmt: skip


VERB = Verb(
    name="slots",
    summary="create, list, verify or remove the slots of a device, each of which holds one image, or write a machine's identity",
    description="init makes a table of slots at the start of a device; list prints it; verify compares slots with their checksums there; "
    "remove frees a slot. Then run stage --slot and "
    "arm --slot: the kernel resumes any of the images with resume= and resume_offset=. identity FILE writes what a machine is called that "
    "is restored from a golden image on the device (docs/golden-images.md); without FILE it prints what is there. init refuses a device in "
    "use and, without --force, one with data; remove refuses an armed or golden slot without --force.",
    run=run,
    arguments=(
        argument("action", metavar="init|list|verify|remove|identity", choices=ACTIONS, help="what to do"),
        argument("device", metavar="DEVICE", complete="file", help="block device, or file that acts as one; list reads one in use as well"),
        argument("file", metavar="FILE", nargs="?", complete="file", help="with identity: that of the machine with the device, in TOML"),
        argument("--slot", metavar="N", type=values.number, help="slot to remove, or to verify (default: all)"),
        argument(
            "--page-size", type=values.page_size, default=4096, metavar="SIZE", complete="page size",
            help="page size of the machines that resume from it: 4KiB, 16KiB or 64KiB (default: 4KiB)",
        ),
        argument("--remove", action="store_true", help="with identity: remove it"),
        argument("--force", action="store_true", help="overwrite existing data; remove an armed or golden slot"),
    ),
    keys={
        "device": "persistent name of the device with init and remove; else as it was given",
        "page_size": "bytes of a block, with init and list; else null",
        "free": "bytes that no slot has, with init and list; else null",
        "slots": "one object for each slot, with list and verify:",
        **{f"  {key}": meaning for key, meaning in SLOT_KEYS.items()},
        "  sound": "with verify: whether its blocks have the checksum in the table",
        "slot": "number of the removed slot; null without one",
        "image": "id of the version that was in it; null without one",
        "identity": "that on the device, in TOML, without its secrets; null without one",
    },
    examples=(
        ("fuse-store slots init /dev/pmem1", "prepare a device"),
        ("fuse-store slots list /dev/pmem1", "print what is on it"),
        ("fuse-store slots verify /dev/pmem1", "compare all images with their checksums"),
        ("fuse-store slots remove /dev/pmem1 --slot 2", "free a slot"),
        ("fuse-store slots identity /dev/pmem1 web07.toml", "name the machine that a golden image makes of this one"),
    ),
    interrupted="The table of slots is as it was, or changed; run 'fuse-store slots list DEVICE'.",
)
