# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a system that was restored from a golden image the machine that an identity describes. Its network is down, and comes up last."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fuse_store.snapshot.golden.identity import NEW, Identity, InterfaceIdentity
from fuse_store.snapshot.golden.links import Link, Network
from fuse_store.snapshot.restored import commands, managers, random
from fuse_store.snapshot.restored.managers import Interface, interfaces
from fuse_store.snapshot.restored.network import announce

Step = tuple[str, Callable[[], list[str]]]

_HOST_NAME, _HOSTS, _MACHINE_ID = Path("/etc/hostname"), Path("/etc/hosts"), Path("/etc/machine-id")
_DBUS_MACHINE_ID = Path("/var/lib/dbus/machine-id")
_KEYS = Path("/etc/ssh")
_NETWORKD, _NAME_SERVERS = Path("/run/systemd/network"), Path("/etc/resolv.conf")
_NETWORK_MANAGER = Path("/run/NetworkManager/system-connections")
_RUN = Path("/run/fuse-store")
_CLASS = Path("/sys/class/net")
_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
_QUICK_KEYS = ("ed25519", "ecdsa")  # those that do not take long
_LINK_SECONDS = 15  # until an interface is there again
_MS_BIND = 4096  # include/uapi/linux/mount.h


@dataclass
class Golden:
    """A system that takes an identity; one that has none gets a new machine-id and new keys, and a name made of it."""

    identity: Identity
    network: Network

    def steps(self) -> Iterator[Step]:
        """(name, what is done) in order."""
        machine_id = self.identity.machine_id
        yield "random numbers of the machine", lambda: random.reseed_again(bytes.fromhex(self.identity.seed))
        if machine_id == NEW:
            machine_id = secrets.token_hex(16)
        name = self.identity.hostname or f"golden-{machine_id[:8]}"
        yield "host name", lambda: set_host_name(name)
        yield "machine-id", lambda: set_machine_id(machine_id)
        yield "SSH host keys", lambda: set_keys(self.identity)
        yield "network", lambda: self._network(machine_id)
        if not self.identity.ssh_host_keys:
            yield "other SSH host keys", set_other_keys

    def _network(self, machine_id: str) -> list[str]:
        problems = []
        for link in self.network.links:
            own = _identity_of(self.identity, link.interface)
            problems += set_hardware_address(link.interface, own.mac if own else "", machine_id)
            if own and own.addresses:
                problems += configure(link, own)
            elif link.interface.static:
                problems += _without_address(link)
        unknown = {one.match for one in self.identity.interfaces} - {name for link in self.network.links for name in _names(link.interface)}
        problems += [f"{match}: no interface of the image has this name or driver" for match in sorted(unknown)]
        for manager in managers.MANAGERS:  # leases are asked for with the machine-id
            if manager.restart and manager.is_running() and (problem := commands.run(manager.restart).problem):
                problems.append(f"{manager.name}: {problem}")
        problems += [problem for link in self.network.links for problem in link.up()]
        problems += [problem for client in self.network.clients if (problem := client.start())]
        for interface in interfaces():
            announce(interface)
        return problems


def _names(interface: Interface) -> tuple[str, str]:
    """By which an identity may call it: its name, and that of its driver."""
    return interface.name, os.path.basename(os.path.realpath(_CLASS / interface.name / "device/driver"))


def _identity_of(identity: Identity, interface: Interface) -> InterfaceIdentity | None:
    """A name goes before a driver."""
    return next((one for name in _names(interface) for one in identity.interfaces if one.match == name), None)


# names --------------------------------------------------------------------------------------------------------------------


def set_host_name(name: str) -> list[str]:
    before = socket.gethostname()
    socket.sethostname(name)
    with _where_writable():
        _HOST_NAME.write_text(f"{name}\n")
    with _where_writable(), contextlib.suppress(FileNotFoundError):
        lines = _HOSTS.read_text().splitlines()
        _HOSTS.write_text("".join(f"{_renamed(line, before, name)}\n" for line in lines))
    return _restarted("systemd-hostnamed.service")


def _renamed(line: str, before: str, name: str) -> str:
    words = line.split()
    own = words[:1] == ["127.0.1.1"] and before in words
    return " ".join([words[0], name, *(word for word in words[1:] if word.partition(".")[0] != before)]) if own else line


def set_machine_id(machine_id: str) -> list[str]:
    """Also where /etc is read-only: then another file is mounted over it."""
    content = f"{machine_id}\n"
    try:
        _MACHINE_ID.write_text(content)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        _RUN.mkdir(parents=True, exist_ok=True)
        ours = _RUN / "machine-id"
        ours.write_text(content)
        ours.chmod(0o444)
        if ctypes.CDLL(None, use_errno=True).mount(os.fsencode(ours), os.fsencode(_MACHINE_ID), None, _MS_BIND, None):
            return [f"{_MACHINE_ID} cannot be replaced: {os.strerror(ctypes.get_errno())}"]
    with _where_writable():
        if _DBUS_MACHINE_ID.exists() and not _DBUS_MACHINE_ID.is_symlink():
            _DBUS_MACHINE_ID.write_text(content)
    return _restarted("systemd-journald.service")


@contextlib.contextmanager
def _where_writable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


def _restarted(unit: str) -> list[str]:
    """A message if a unit that runs could not be restarted."""
    if not _SYSTEMD.is_dir():
        return []
    problem = commands.run(["systemctl", "try-restart", unit], 30).problem
    return [f"{unit}: {problem}"] if problem else []


# keys ---------------------------------------------------------------------------------------------------------------------


def set_keys(identity: Identity) -> list[str]:
    """Those of the golden machine go when the new ones are there. One of RSA takes its time, and comes with ``set_other_keys``."""
    if not _has_keys():
        return []
    _RUN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_RUN) as place:
        made = Path(place) / "etc/ssh"
        made.mkdir(parents=True)
        for name, content in identity.ssh_host_keys.items():
            (made / name).write_text(content)
        for kind in _QUICK_KEYS if not identity.ssh_host_keys else ():
            made_key = commands.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(made / f"ssh_host_{kind}_key")])
            if made_key.problem:
                return [f"ssh-keygen: {made_key.problem}; the keys of the golden machine are still in use"]
        if os.statvfs(_KEYS).f_flag & os.ST_RDONLY:
            return [f"the keys of the golden machine are still in use: {_KEYS} is read-only"]
        for old in _KEYS.glob("ssh_host_*_key*"):
            old.unlink()
        for new in made.iterdir():
            new.chmod(0o644 if new.suffix == ".pub" else 0o600)
            shutil.copy2(new, _KEYS / new.name)
    return _reloaded("ssh.service", "sshd.service")


def set_other_keys() -> list[str]:
    """Have keys of the kinds that are missing made, in the background: no key of the golden machine is in use any more, and one of RSA
    takes a slow machine minutes."""
    if not _has_keys() or os.statvfs(_KEYS).f_flag & os.ST_RDONLY:
        return []
    if not _SYSTEMD.is_dir():
        problem = commands.start(["ssh-keygen", "-A"])
    else:
        reload = "for unit in ssh sshd; do systemctl is-active --quiet $unit && exec systemctl reload $unit; done"
        unit = ["systemd-run", "--quiet", "--collect", "--no-block"]
        problem = commands.run([*unit, "sh", "-c", f"ssh-keygen -A; {reload}"]).problem
    return [f"ssh-keygen: {problem}"] if problem else []


def _has_keys() -> bool:
    return shutil.which("ssh-keygen", path=commands.ENVIRONMENT["PATH"]) is not None and _KEYS.is_dir()


def _reloaded(*units: str) -> list[str]:
    """A message for each that runs and could not be reloaded; ssh.service and sshd.service may be one."""
    if not _SYSTEMD.is_dir():
        return []
    for unit in units:
        if commands.run(["systemctl", "is-active", "--quiet", unit]).code == 0:
            problem = commands.run(["systemctl", "reload", unit], 30).problem
            return [f"{unit}: {problem}"] if problem else []
    return []


# interfaces ---------------------------------------------------------------------------------------------------------------


def set_hardware_address(interface: Interface, mac: str, machine_id: str) -> list[str]:
    """``mac``; without one, that of the hardware: its driver is bound again, because the image has that of the golden machine."""
    problem = ""
    if not mac:
        device = _CLASS / interface.name / "device"
        if not (device / "driver").exists():  # no hardware
            return []
        problem = _bound_again(interface.name, Path(os.path.realpath(device)))
        if not problem:
            return []
        digest = hashlib.sha256(f"{machine_id} {interface.name}".encode()).digest()
        mac = ":".join(f"{byte:02x}" for byte in (digest[0] & 0xFC | 2, *digest[1:6]))  # local, of one machine
        problem = f"{interface.name}: its hardware address cannot be read ({problem}); {mac} is used"
    set_to = commands.run(["ip", "link", "set", interface.name, "down", "address", mac]).problem
    found = (problem, f"{interface.name}: {mac}: {set_to}" if set_to else "")
    return [one for one in found if one]


def _bound_again(name: str, device: Path) -> str:
    """Have a driver take its device again; why that failed, or empty."""
    driver, links = Path(os.path.realpath(device / "driver")), list((device / "net").iterdir())
    if len(links) != 1:
        return "its device has several interfaces"
    for action in ("unbind", "bind"):
        try:
            (driver / action).write_text(device.name)
        except OSError as error:
            return f"{action}: {error.strerror}"
    deadline = time.monotonic() + _LINK_SECONDS
    while not (there := sorted((device / "net").glob("*"))):
        if time.monotonic() > deadline:
            return "the interface has not come back"
        time.sleep(0.05)
    commands.run(["udevadm", "settle", "--timeout=10"])
    there = sorted((device / "net").glob("*"))
    if there and there[0].name != name:
        return commands.run(["ip", "link", "set", there[0].name, "down", "name", name]).problem
    return "" if there else "the interface has not come back"


def configure(link: Link, own: InterfaceIdentity) -> list[str]:
    """Give an interface its addresses, or DHCP without any, for when it comes up; messages of what fails."""
    name = link.interface.name
    if link.manager and link.manager.name == "systemd-networkd":
        _NETWORKD.mkdir(parents=True, exist_ok=True)
        (_NETWORKD / f"00-fuse-store-{name}.network").write_text(networkd(name, own))
        return _name_servers(own)
    if link.manager and link.manager.name == "NetworkManager":
        _NETWORK_MANAGER.mkdir(parents=True, exist_ok=True)
        file = _NETWORK_MANAGER / f"fuse-store-{name}.nmconnection"
        file.touch(0o600)
        file.write_text(network_manager(name, own))
        return []
    link.manager, link.saved, link.gateways = None, [], own.gateways
    problems = [commands.run(["ip", "address", "flush", "dev", name, "scope", "global"]).problem]
    if not own.addresses:
        problems.append("has no address: give it one in the identity, or start a DHCP client in a hook")
    problems += [commands.run(["ip", "address", "add", address, "dev", name]).problem for address in own.addresses]
    return [f"{name}: {problem}" for problem in problems if problem] + _name_servers(own)


def _without_address(link: Link) -> list[str]:
    """What becomes of an interface that has a fixed address on the golden machine, and none in the identity."""
    name, addresses = link.interface.name, ", ".join(link.interface.addresses)
    if not (_CLASS / name / "device").exists():  # a bridge of containers, or the like
        return [f"{name}: has {addresses}, as every machine of this image"]
    return [f"{name}: {addresses} of the golden machine is not used, and the identity has no address"] + configure(
        link, InterfaceIdentity(name)
    )


def _name_servers(own: InterfaceIdentity) -> list[str]:
    """In the file that programs read, unless systemd-resolved has it."""
    if own.dns and not commands.running("systemd-resolved"):
        with _where_writable():
            _NAME_SERVERS.write_text("".join(f"nameserver {address}\n" for address in own.dns))
    return []


def networkd(name: str, own: InterfaceIdentity) -> str:
    """A file of systemd.network(5)."""
    lines = ["[Match]", f"Name={name}", "", "[Network]"]
    lines += [f"Address={address}" for address in own.addresses] or ["DHCP=yes"]
    lines += [f"Gateway={address}" for address in own.gateways] + [f"DNS={address}" for address in own.dns]
    return "".join(f"{line}\n" for line in lines)


def network_manager(name: str, own: InterfaceIdentity) -> str:
    """A connection of nm-settings-keyfile(5)."""
    lines = ["[connection]", f"id=fuse-store-{name}", "type=ethernet", f"interface-name={name}", "autoconnect-priority=999"]
    lines += ["", "[ethernet]", f"cloned-mac-address={own.mac or 'preserve'}"]
    for family, separator in (("ipv4", "."), ("ipv6", ":")):
        addresses, gateways, servers = (
            [one for one in values if separator in one.partition("/")[0]] for values in (own.addresses, own.gateways, own.dns)
        )
        lines += ["", f"[{family}]", f"method={'manual' if addresses else 'disabled' if own.addresses else 'auto'}"]
        lines += [f"address{number}={address}" for number, address in enumerate(addresses, 1)]
        lines += [f"gateway={address}" for address in gateways] + ([f"dns={';'.join(servers)};"] if servers else [])
    return "".join(f"{line}\n" for line in lines)
