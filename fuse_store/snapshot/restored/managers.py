# SPDX-License-Identifier: GPL-3.0-or-later
"""What configures the network of this machine: how each is told to renew a lease, and to take an interface down and up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse_store.snapshot.restored import commands

_LINKS = Path("/run/systemd/netif/links")
_RELEASE_SECONDS = 0.5  # for a packet to leave


@dataclass(frozen=True)
class Interface:
    """``up``: as the administrator wants it; ``link``: its hardware address, in hexadecimal digits; ``changed``: whether that is another
    than the hardware has; ``addresses``: of IPv4 and IPv6 that are valid beyond the link; ``static``: whether one of these is not from a
    lease."""

    name: str
    number: int
    up: bool
    link: str
    addresses: tuple[str, ...]
    static: bool
    changed: bool = False


def interfaces() -> list[Interface]:
    """Those of this machine but the loopback, in the order in which they appeared. Raises OSError."""
    done = commands.run(["ip", "-json", "address", "show"], keep=1 << 22)
    try:
        if done.problem:
            raise ValueError(done.problem)
        return [_interface(link) for link in json.loads(done.output) if link and "LOOPBACK" not in link["flags"]]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(0, f"ip address: {error}") from None


def _interface(link: dict[str, Any]) -> Interface:
    found = [one for one in link["addr_info"] if one.get("scope") == "global" and "local" in one]
    addresses = tuple(f"{one['local']}/{one['prefixlen']}" for one in found)
    hardware = str(link.get("address", "")).replace(":", "")
    static = any(not one.get("dynamic") for one in found)
    return Interface(link["ifname"], link["ifindex"], "UP" in link["flags"], hardware, addresses, static, "permaddr" in link)


@dataclass(frozen=True)
class Manager:
    """``manages``: whether an interface is its own; the others are its commands, ``{}`` the interface; ``renew`` are tried in order
    until one works. ``restart``: what makes it read files and the machine-id again."""

    name: str
    manages: Callable[[Interface], bool]
    renew: tuple[tuple[str, ...], ...]
    down: tuple[str, ...]
    up: tuple[str, ...]
    restart: tuple[str, ...] = ()

    def is_running(self) -> bool:
        return not self.restart or bool(commands.running(self.name))


def _of_networkd(interface: Interface) -> bool:
    with contextlib.suppress(OSError):
        return re.search(r"^ADMIN_STATE=(?!unmanaged)", (_LINKS / str(interface.number)).read_text(), re.MULTILINE) is not None
    return False


def _of_network_manager(interface: Interface) -> bool:
    done = commands.run(["nmcli", "-g", "GENERAL.STATE", "device", "show", interface.name])
    return done.code == 0 and not done.output.startswith(b"10 ")  # unmanaged


def _of_ifupdown(interface: Interface) -> bool:
    return commands.run(["ifquery", "--state", interface.name]).code == 0


MANAGERS = (
    Manager(
        "systemd-networkd", _of_networkd, (("networkctl", "renew", "{}"), ("networkctl", "reconfigure", "{}")),
        ("networkctl", "down", "{}"), ("networkctl", "up", "{}"), ("systemctl", "restart", "systemd-networkd.service"),
    ),
    Manager(
        "NetworkManager", _of_network_manager, (("nmcli", "device", "reapply", "{}"), ("nmcli", "device", "connect", "{}")),
        ("nmcli", "device", "disconnect", "{}"), ("nmcli", "device", "connect", "{}"), ("systemctl", "restart", "NetworkManager.service"),
    ),
    # Its DHCP client runs on its own, and renews as one of those below.
    Manager("ifupdown", _of_ifupdown, (), ("ifdown", "{}"), ("ifup", "{}")),
)  # fmt: skip


def manager_of(interface: Interface) -> Manager | None:
    """What has configured an interface; None if no manager did that is known."""
    return next((one for one in MANAGERS if one.is_running() and one.manages(interface)), None)


def told(command: tuple[str, ...], interface: Interface, limit: float = commands.LIMIT) -> str:
    """Give a manager's command for an interface; why it failed, or empty."""
    words = [word.replace("{}", interface.name) for word in command]
    problem = commands.run(words, limit).problem
    return f"{' '.join(words)}: {problem}" if problem else ""


# DHCP clients on their own --------------------------------------------------------------------------------------------------


@dataclass
class Client:
    """A DHCP client that runs; ``command``: how it was started."""

    process: int
    command: list[str]

    def renew(self) -> str:
        """Ask the server for the lease again, without giving it up; why it could not be asked, or empty."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the lease back, and end."""
        raise NotImplementedError

    def start(self) -> str:
        """Have it run again as it did; why it cannot, or empty."""
        return commands.start(self.command)

    def _end(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)


class Udhcpc(Client):
    def renew(self) -> str:
        self._end(signal.SIGUSR1)
        return ""

    def release(self) -> None:
        self._end(signal.SIGUSR2)
        time.sleep(_RELEASE_SECONDS)
        self._end(signal.SIGTERM)


class Dhcpcd(Client):
    def renew(self) -> str:
        return commands.run([self.command[0], "-n", *self.command[1:]]).problem

    def release(self) -> None:
        commands.run([self.command[0], "-k", *self.command[1:]])


class Dhclient(Client):
    def renew(self) -> str:
        """It cannot be asked: one that is started again asks for the address that it had, and SIGTERM gives nothing back."""
        self._end(signal.SIGTERM)
        return self.start()

    def release(self) -> None:
        commands.run([self.command[0], "-r", *self.command[1:]])


CLIENTS: dict[str, type[Client]] = {"udhcpc": Udhcpc, "dhcpcd": Dhcpcd, "dhclient": Dhclient}


def clients() -> list[Client]:
    """The DHCP clients that run on their own."""
    return [kind(process, command) for name, kind in CLIENTS.items() for process, command in commands.running(name)]
