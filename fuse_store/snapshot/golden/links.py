# SPDX-License-Identifier: GPL-3.0-or-later
"""The interfaces of a machine, down while a golden image is made: no lease and no address is in use that another machine has, too."""

from __future__ import annotations

from dataclasses import dataclass, field

from fuse_store.errors import StoreError
from fuse_store.snapshot.restored import commands, managers
from fuse_store.snapshot.restored.managers import Client, Interface, Manager

_SAVED = (("-4", "address"), ("-6", "address"), ("-4", "route"), ("-6", "route"))  # in the order in which they are restored
_SAVED_SIZE = 4 << 20  # bytes


@dataclass
class Link:
    """An interface that was up. ``saved``: for each of ``_SAVED`` what ``ip`` restores, if no manager is known that would;
    ``gateways``: those of its default routes."""

    interface: Interface
    manager: Manager | None
    saved: list[bytes] = field(default_factory=list)
    gateways: tuple[str, ...] = ()

    def save(self) -> None:
        for family, what in _SAVED if self.manager is None else ():
            self.saved.append(commands.run(["ip", family, what, "save", "dev", self.interface.name], keep=_SAVED_SIZE).output)

    def up(self) -> list[str]:
        """As it was before; messages of what fails."""
        if self.manager:
            problem = managers.told(self.manager.up, self.interface)
            return [problem] if problem else []
        name = self.interface.name
        found = [commands.run(["ip", "link", "set", name, "up"]).problem]
        for (family, what), content in zip(_SAVED, self.saved, strict=False):
            if content:
                found.append(commands.run(["ip", family, what, "restore"], given=content).problem)
        found += [commands.run(["ip", "route", "replace", "default", "via", gateway, "dev", name]).problem for gateway in self.gateways]
        return [f"{name}: {problem}" for problem in found if problem]


@dataclass
class Network:
    """What was up, in the order in which it comes up again, and the DHCP clients that ran on their own."""

    links: list[Link] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    def up(self) -> list[str]:
        """All as it was before; messages of what fails."""
        problems = [problem for link in self.links for problem in link.up()]
        return problems + [problem for client in self.clients if (problem := client.start())]


def down() -> Network:
    """Take down all interfaces but the loopback, and give leases back. Raises StoreError if one stays up; then all are as they were."""
    network = Network()
    try:
        network.links = [Link(interface, managers.manager_of(interface)) for interface in managers.interfaces() if interface.up]
    except OSError as error:
        raise StoreError("network", f"{error.strerror}.", "Install iproute2.") from None
    managed = {link.interface.name for link in network.links if link.manager}
    network.clients = [client for client in managers.clients() if not managed.intersection(client.command)]
    for link in network.links:
        link.save()
    for client in network.clients:
        client.release()
    for link in reversed(network.links):
        if link.manager:
            managers.told(link.manager.down, link.interface)
        problem = commands.run(["ip", "link", "set", link.interface.name, "down"]).problem
        if problem:
            network.up()
            raise StoreError(f"interface {link.interface.name}", f"cannot be taken down: {problem}.", "No golden image was made.")
    return network
