# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of a restored system: leases may be others', and neighbours may have others in mind."""

from __future__ import annotations

import ipaddress
import socket
import struct

from fuse_store.snapshot.restored import commands, managers
from fuse_store.snapshot.restored.managers import Interface

_ARP = 0x0806
_ETHERNET, _REQUEST = 1, 1  # of RFC 826
_BROADCAST = b"\xff" * 6


def renew() -> list[str]:
    """Have leases renewed, and neighbours told which addresses are here; messages of what fails. Raises OSError."""
    problems = set_addresses_again()
    problems += [problem for problem in (commands.run(["ip", "neighbour", "flush", "all"]).problem,) if problem]
    up = [interface for interface in managers.interfaces() if interface.up]
    for interface in up:
        manager = managers.manager_of(interface)
        for command in manager.renew if manager else ():
            problem = managers.told(command, interface)
            if not problem:
                break
        else:
            problems += [problem] if manager and manager.renew else []
    problems += [f"{client.command[0]}: {problem}" for client in managers.clients() if (problem := client.renew())]
    for interface in up:
        announce(interface)
    return problems


def set_addresses_again() -> list[str]:
    """Hardware addresses that are not those of the hardware are set once more: virtio_net, for one, resets its device for an image, and
    the device then drops all packets to such an address. Messages of what fails. Raises OSError."""
    problems = []
    for interface in managers.interfaces():
        if interface.changed:
            link = ":".join(interface.link[at : at + 2] for at in range(0, len(interface.link), 2))
            problem = commands.run(["ip", "link", "set", interface.name, "address", link]).problem
            problems += [f"{interface.name}: {link}: {problem}"] if problem else []
    return problems


def announce(interface: Interface) -> None:
    """Tell the neighbours on a link which hardware address an interface's IPv4 addresses have (RFC 5227, ARP announcement)."""
    try:
        link = bytes.fromhex(interface.link)
        ours = [ipaddress.ip_interface(address).ip for address in interface.addresses]
        if len(link) != len(_BROADCAST):
            return
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((interface.name, _ARP))
            for address in ours:
                if isinstance(address, ipaddress.IPv4Address):
                    raw.send(announcement(link, address.packed))
    except (OSError, ValueError):  # no Ethernet, or down: no neighbours
        return


def announcement(link: bytes, address: bytes) -> bytes:
    """An Ethernet frame, without its checksum."""
    head = _BROADCAST + link + struct.pack("!H", _ARP)
    return head + struct.pack("!HHBBH", _ETHERNET, 0x0800, 6, 4, _REQUEST) + link + address + bytes(6) + address
