# SPDX-License-Identifier: GPL-3.0-or-later
"""``boot``: have a machine select at boot which image it resumes; say what the next boot is to do, and what the last one did."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from fuse_store import times
from fuse_store.cli import values
from fuse_store.cli.parser import Verb, argument
from fuse_store.errors import StoreError, UsageError, failed

if TYPE_CHECKING:
    from fuse_store.boot.install import Installed
    from fuse_store.boot.report import Report
    from fuse_store.cli.context import Context
    from fuse_store.snapshot.service.policy import Policy

POLICY = "/etc/fuse-store/snapshots.toml"
SESSIONS = ("ended", "running")


def run(context: Context) -> int:
    options = context.options
    actions = {
        "install": _install, "remove": _remove, "check": _check, "report": _report, "select": _select, "session": _session, "menu": _menu,
    }  # fmt: skip
    if options.argument is not None and options.action not in ("report", "select", "session", "menu"):
        raise UsageError(f"boot {options.action}", f"{options.argument} is not expected.", "See 'fuse-store boot --help'.")
    actions[options.action](context)
    return 0


def _policy(context: Context) -> Policy:
    from fuse_store.snapshot.service.policy import load

    return load(context.options.policy)


def _device(context: Context) -> str:
    """The one in the arguments, else that of the policy."""
    return str(context.options.argument or _policy(context).device)


def _install(context: Context) -> None:
    from fuse_store.boot.install import install, own_command

    _policy(context)  # a wrong one would make the build of the initramfs fail
    done = install(own_command(), dry_run=context.options.dry_run)
    _tell(context, done, "installed")


def _remove(context: Context) -> None:
    from fuse_store.boot.install import remove

    _tell(context, remove(dry_run=context.options.dry_run), "removed")


def _tell(context: Context, done: Installed, what: str) -> None:
    options = context.options
    if done.changed and not options.dry_run:
        context.done = f"The selection at boot was {what}."
    record = {
        "action": options.action, "tool": done.tool, "changed": done.changed, "files": list(done.files), "removed": list(done.removed),
        "commands": [list(command) for command in done.commands],
    }  # fmt: skip
    if options.update and not options.dry_run:
        for command in done.commands:
            _execute(command)
        context.emit(record, "")
        return
    context.emit(record, "\n".join(shlex.join(command) for command in done.commands))
    if done.commands:
        context.remark(f"{'would be ' if options.dry_run else ''}{what}; for it to take effect, run the commands above, or use --update")


def _execute(command: tuple[str, ...]) -> None:
    """Run a command, whose output goes to standard error, in a directory that programs which SELinux confines may enter. Raises
    StoreError."""
    import subprocess

    try:
        code = subprocess.run(command, cwd="/", stdout=2, check=False).returncode
    except OSError as error:
        raise failed(f"command {command[0]}", error) from None
    if code:
        raise StoreError(f"command '{shlex.join(command)}'", f"exit code {code}.", "Correct what it names, and run it again.")


def _check(context: Context) -> None:
    from pathlib import Path

    from fuse_store.boot import modules
    from fuse_store.boot.policy import EVENTS, compiled, summary
    from fuse_store.hibernation.swap_device import stable_name

    options, policy = context.options, _policy(context)
    device = policy.device if policy.device.startswith("/dev/disk/") else stable_name(Path(policy.device))
    needed = modules.needed(policy.device)
    if options.compiled:
        text = compiled(policy.boot, tuple(dict.fromkeys((device, policy.device))), needed)
        try:
            Path(options.compiled).write_text(text, encoding="utf-8")
        except OSError as error:
            raise failed(f"file {options.compiled}", error) from None
    said = summary(policy.boot)
    record = {"action": "check", "device": device, "modules": list(needed), **said}
    lines = [f"{event}: {', '.join(said[event]) or 'cold'}" for event in EVENTS]
    context.emit(record, "\n".join([f"{options.policy}: {device}", *lines]))


def _report(context: Context) -> None:
    from fuse_store.boot.report import read

    device = _device(context)
    report = read(device)
    context.emit(_report_record(device, report), "\n".join(report.lines))


def _report_record(device: str, report: Report) -> dict[str, Any]:
    taken = None if report.time is None else times.at(report.time).isoformat()
    return {
        "action": "report", "device": device, "time": taken, "kernel": report.kernel, "event": report.event, "selected": report.selected,
        "image": report.image, "passed_over": [{"slot": slot, "reason": reason} for slot, reason in report.passed], "reason": report.reason,
        "records": list(report.records), "text": list(report.lines),
    }  # fmt: skip


def _select(context: Context) -> None:
    from fuse_store.boot.choice import select

    options = context.options
    if (options.slot is None) == (not options.cold):
        raise UsageError("boot select", "no slot specified, or two choices.", "Use --slot N, or --cold for a normal boot.")
    choice = select(_device(context), options.slot)
    context.done = "The choice for the next boot was made."
    slot = choice.slot
    record = {"action": "select", "device": choice.device, "slot": slot and slot.number, "image": slot.image if slot else ""}
    context.emit(record, "")
    context.remark(f"the next boot: {'normal' if slot is None else f'slot {slot.number}, image {slot.image[:12]}'}")


def _session(context: Context) -> None:
    from fuse_store.boot.choice import record_session

    if context.options.argument not in SESSIONS:
        raise UsageError("boot session", "not told what the system does.", f"Use one of {', '.join(SESSIONS)}.")
    device = _policy(context).device
    changed = record_session(device, context.options.argument)
    context.emit({"action": "session", "device": device, "session": context.options.argument, "changed": changed}, "")


def _menu(context: Context) -> None:
    from fuse_store.boot.menu import write
    from fuse_store.hibernation.slots.manage import listing

    device = _device(context)
    path, changed = write(listing(device).table)
    context.done = f"{path} was written."
    context.emit({"action": "menu", "device": device, "file": str(path), "changed": changed}, "")
    context.remark(f"{path}: {'written' if changed else 'as it was'}")


VERB = Verb(
    name="boot",
    summary="have a machine select at boot which image it resumes",
    description="install writes what initramfs-tools or dracut, systemd and GRUB need, and prints the commands to run; remove undoes that. "
    "check reads the policy, [boot] in the file of the snapshot service. report tells what the last boot did. select chooses for the next "
    "boot alone. session notes that the system ended in order, or runs. menu writes the slots into GRUB's menu. docs/boot-selection.md has "
    "the policy.",
    run=run,
    arguments=(
        argument("action", metavar="ACTION", choices=("install", "remove", "check", "report", "select", "session", "menu"),
                 help="install, remove, check, report, select, session or menu"),
        argument("argument", metavar="DEVICE|SESSION", nargs="?", complete="file",
                 help="report, select, menu: device with slots (default: that of the policy); session: ended or running"),
        argument("--policy", metavar="FILE", default=POLICY, complete="file", help=f"default: {POLICY}"),
        argument("--slot", metavar="N", type=values.number, help="with select: the slot to resume"),
        argument("--cold", action="store_true", help="with select: a normal boot"),
        argument("--compiled", metavar="FILE", complete="file", help="with check: write what the initramfs needs of the policy"),
        argument("--update", action="store_true", help="with install and remove: run the commands as well"),
        argument("--dry-run", action="store_true", help="with install and remove: show what would be done, change nothing"),
    ),
    keys={
        "action": "as it was given; what else there is depends on it",
        "device": "device with the slots (not with install and remove)",
        "tool": "with install, remove: initramfs-tools or dracut",
        "changed": "with install, remove, session, menu: whether anything changed, or would with --dry-run",
        "files": "with install: paths that belong to it", "removed": "with remove: paths that are gone",
        "commands": "with install, remove: what to run for it to take effect, lists of words",
        "modules": "with check: of the kernel, needed before the device and what happened can be seen; beside the settings of [boot]",
        "time": "with report: of the boot, in UTC (ISO 8601)", "kernel": "with report: release and version",
        "event": "with report: power_loss, panic, watchdog, shutdown, unknown, or hibernated",
        "selected": "with report: slot that was to be resumed; null for a normal boot",
        "image": "with report and select: id of the image in it; empty without one",
        "passed_over": "with report: one object for each slot that was not resumed:",
        "  slot": "its number", "  reason": "why not",
        "reason": "with report: why a normal boot followed; empty otherwise",
        "records": "with report: names of what kernels had left in pstore", "text": "with report: its lines",
        "slot": "with select: its number; null for a normal boot",
        "session": "with session: as it was given",
        "file": "with menu: path of what GRUB reads",
    },
    examples=(
        ("fuse-store boot install --update", "set up the selection at boot"),
        ("fuse-store boot report", "print what the last boot did"),
        ("fuse-store boot select --slot 2 && systemctl reboot", "resume an older image, once"),
    ),
    interrupted="What was written is whole; run the command again.",
)  # fmt: skip
