# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens around a snapshot: before it, after it, and in a system that was restored from it.

``before_snapshot`` comes first, and then exactly one of ``after_created``, ``after_restored`` and ``after_failed``. What fails after a
restore is a message, and does not end the rest; nothing takes longer than its limit. Needs the standard library alone, and root.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuse_store.errors import StoreError
from fuse_store.hibernation.machine import Machine
from fuse_store.snapshot.golden import apply, links, region
from fuse_store.snapshot.golden.identity import Identity
from fuse_store.snapshot.restored import clock, hooks, mounts, network, random
from fuse_store.snapshot.targets import HOOK_TIME_LIMIT

REPORT = Path("/run/fuse-store/restored")
_GENERATION_DRIVERS = ("sys/bus/platform/drivers/vmgenid", "sys/bus/acpi/drivers/vmgenid")  # since Linux 6.10, and 5.18


@dataclass
class Context:
    """A snapshot. ``device``: its path; ``slot``: the number of its slot, if there are slots; ``image``: id; ``application`` and
    ``event``: as asked; ``golden``: an image for many machines; ``limit``: seconds for a hook. The others are found out before the
    snapshot: ``taken``, in seconds since 1970, and how far the hardware clock was ahead; ``network``: what was taken down for a golden
    image."""

    device: str
    slot: int | None = None
    image: str = ""
    application: str = ""
    event: str = ""
    golden: bool = False
    limit: float = HOOK_TIME_LIMIT
    taken: float = 0.0
    clock_ahead: float | None = None
    network: links.Network | None = None

    def environment(self, result: str = "") -> dict[str, str]:
        """What hooks are told."""
        told = {
            "EVENT": self.event, "APPLICATION": self.application, "IMAGE": self.image, "DEVICE": self.device,
            "SLOT": str(self.slot or ""), "RESULT": result,
        }  # fmt: skip
        return {f"FUSE_STORE_{name}": value for name, value in told.items()}


def before_snapshot(context: Context) -> None:
    """Raises Refused if a hook fails, StoreError if the network cannot be taken down for a golden image; then what came before is undone,
    and no other function is to be called."""
    context.taken, context.clock_ahead = time.time(), clock.difference()
    try:
        hooks.run_before(context.environment(), context.limit)
        if context.golden:
            context.network = links.down()
    except StoreError:
        after_failed(context)
        raise


def after_created(context: Context) -> tuple[str, ...]:
    """The system goes on. Messages of what could not be done."""
    return _gone_on(context, "created")


def after_failed(context: Context) -> tuple[str, ...]:
    """The system goes on, and there is no image. Messages of what could not be done."""
    return _gone_on(context, "failed")


def _gone_on(context: Context, result: str) -> tuple[str, ...]:
    steps = _Steps()
    steps.also("hardware addresses", network.set_addresses_again)
    if context.network:
        steps.also("network", context.network.up)
    return steps.also("hooks", lambda: hooks.run_after(context.environment(result), context.limit)).messages


def after_restored(context: Context, machine: Machine | None = None) -> tuple[str, ...]:
    """The system was resumed from the image. Messages of what could not be done."""
    machine = machine or Machine()
    steps = _Steps()
    steps.also("random numbers", random.reseed_again)
    steps.also("clock", lambda: clock.correct(0 if context.golden else context.clock_ahead, context.taken))
    steps.note(f"VM generation id: {generation(machine)}")
    if context.network is None:
        steps.also("network", network.renew)
    else:
        identity = _identity(context, steps)
        for name, step in apply.Golden(identity, context.network).steps():
            steps.also(name, step)
    steps.also("programs that keep the time", clock.tell)
    steps.also("network filesystems", lambda: mounts.try_again(machine))
    steps.also("hooks", lambda: hooks.run_after(context.environment("restored"), context.limit))
    steps.write(f"image {context.image}\ndevice {context.device}\nslot {context.slot or ''}\n")
    return steps.messages


def _identity(context: Context, steps: _Steps) -> Identity:
    """That of this machine; without one that is whole, one that no other machine has."""
    identity = None
    try:
        identity = region.read(context.device) if context.slot else None
        problem = "" if identity else f"none is on {context.device}"
    except StoreError as error:
        problem = str(error)
    if problem:
        told = "the machine-id, host name and SSH host keys are new ones, and interfaces have what DHCP gives them"
        steps.also("identity", lambda: [f"{problem}; {told}"])
    return identity or Identity()


def generation(machine: Machine) -> str:
    """What becomes of the VM generation id. The kernel heeds a change that the hypervisor tells; of a restore that tells nothing, the
    reseeding is ours."""
    found = any((machine.root / driver).is_dir() and list((machine.root / driver).glob("*:*")) for driver in _GENERATION_DRIVERS)
    return "the kernel reseeds by itself when the hypervisor tells of a change" if found else "none"


@dataclass
class _Steps:
    """One after the other, whatever fails."""

    problems: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def messages(self) -> tuple[str, ...]:
        return tuple(self.problems)

    def also(self, name: str, step: Callable[[], list[str]]) -> _Steps:
        with self._timed(name):
            try:
                found = step()
            except (OSError, ValueError, StoreError) as error:
                found = [f"{getattr(error, 'strerror', None) or error}"]
            self.problems += [f"{name}: {problem}" for problem in found]
        return self

    def note(self, text: str) -> None:
        self.lines.append(text)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun, before = time.monotonic(), len(self.problems)
        yield
        failed = "; ".join(self.problems[before:])
        self.note(f"{name}: {time.monotonic() - begun:.1f} s{', ' + failed if failed else ''}")

    def write(self, head: str) -> None:
        """For those who look at the machine later."""
        with contextlib.suppress(OSError):
            REPORT.parent.mkdir(parents=True, exist_ok=True)
            REPORT.write_text(head + "".join(f"{line}\n" for line in self.lines))
