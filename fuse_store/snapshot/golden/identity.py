# SPDX-License-Identifier: GPL-3.0-or-later
"""What one machine is called and how it is reached, in TOML: the identity that it takes when it is restored from a golden image.

On the device it is untrusted input: ``parse`` raises ValueError, and nothing else, for anything that is wrong. docs/golden-images.md
describes the format.
"""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuse_store import settings
from fuse_store.errors import UsageError

NEW = "new"
MAX_SIZE = 128 << 10  # bytes
_MAX_KEY = 16 << 10
_MAX_INTERFACES, _MAX_ADDRESSES, _MAX_KEYS = 64, 64, 16
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", re.ASCII)
_HOST_NAME = 64  # characters: HOST_NAME_MAX of Linux
_KEY_FILE = re.compile(r"ssh_host_[a-z0-9_-]{1,40}_key(\.pub)?", re.ASCII)
_PUBLIC_KEY = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]{4,}={0,2}( [^\n]*)?\n?", re.ASCII)
_PRIVATE_KEY = re.compile(r"\s*-----BEGIN ([A-Z]+ )?PRIVATE KEY-----\n[\w+/=:,\s-]+\n-----END ([A-Z]+ )?PRIVATE KEY-----\s*", re.ASCII)
_INTERFACE = re.compile(r"[!-.0-~]{1,64}", re.ASCII)  # no blanks and slashes
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_TOP = ("hostname", "machine_id", "ssh_host_keys", "seed", "interfaces")
_OF_INTERFACE = ("match", "mac", "addresses", "gateway", "dns")


@dataclass(frozen=True)
class InterfaceIdentity:
    """``match``: the name that an interface has in the image, or that of its driver. ``mac``: empty for that of the hardware.
    ``addresses`` with their prefix lengths; empty for DHCP. ``gateways``: at most one for each of IPv4 and IPv6."""

    match: str
    mac: str = ""
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Identity:
    """``hostname``: empty for one made of the machine-id. ``machine_id``: 32 hexadecimal digits, or NEW. ``ssh_host_keys``: file name →
    content; empty for new ones. ``seed``: 64 hexadecimal digits for the kernel's random numbers, or empty."""

    hostname: str = ""
    machine_id: str = NEW
    ssh_host_keys: Mapping[str, str] = field(default_factory=dict)
    seed: str = ""
    interfaces: tuple[InterfaceIdentity, ...] = ()


def load(path: Path | str) -> Identity:
    """The identity in a file; SSH host keys may be a directory beside it. Raises NotFound, UsageError."""
    content, _status = settings.read(path, "identity", "docs/golden-images.md", MAX_SIZE)
    try:
        return parse(content, Path(path).parent)
    except ValueError as error:
        raise UsageError(f"identity {path}", f"{error}.", "Correct it; docs/golden-images.md has an example.") from None


def parse(content: bytes, directory: Path | None = None) -> Identity:
    """``directory``: where the one with SSH host keys is looked for; without it, only keys in the text. Raises ValueError with the name
    of what is wrong."""
    if len(content) > MAX_SIZE:
        raise ValueError(f"more than {MAX_SIZE} bytes")
    try:
        top = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise ValueError("not text in UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _known("", top, _TOP)
    hostname, machine_id, seed = _text(top, "hostname"), _text(top, "machine_id") or NEW, _text(top, "seed")
    if hostname and (len(hostname) > _HOST_NAME or not all(_LABEL.fullmatch(label) for label in hostname.split("."))):
        raise ValueError("hostname: letters, digits and hyphens are needed, 64 at most")
    if machine_id != NEW and (not re.fullmatch("[0-9a-f]{32}", machine_id, re.ASCII) or not int(machine_id, 16)):
        raise ValueError('machine_id: 32 hexadecimal digits, or "new", are needed')
    if seed and not re.fullmatch("[0-9a-f]{64}", seed, re.ASCII):
        raise ValueError("seed: 64 hexadecimal digits are needed")
    interfaces = top.get("interfaces", [])
    if not isinstance(interfaces, list) or len(interfaces) > _MAX_INTERFACES or not all(isinstance(one, dict) for one in interfaces):
        raise ValueError(f"interfaces: at most {_MAX_INTERFACES} tables [[interfaces]] are needed")
    made = tuple(_interface(f"interfaces[{number}].", settings) for number, settings in enumerate(interfaces))
    if len({one.match for one in made}) != len(made):
        raise ValueError("interfaces: two have the same match")
    return Identity(hostname, machine_id, _keys(top.get("ssh_host_keys", NEW), directory), seed, made)


def _known(prefix: str, settings: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in settings:
        if name not in names:
            raise ValueError(f"{prefix}{name[:100]}: no such setting; there are {', '.join(names)}")


def _text(settings: Mapping[str, Any], name: str, prefix: str = "") -> str:
    value = settings.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{prefix}{name}: not a text")
    return value


def _interface(prefix: str, settings: Mapping[str, Any]) -> InterfaceIdentity:
    _known(prefix, settings, _OF_INTERFACE)
    match, mac = _text(settings, "match", prefix), _text(settings, "mac", prefix).lower()
    if not _INTERFACE.fullmatch(match):
        raise ValueError(f"{prefix}match: the name of an interface or of a driver is needed")
    if mac and (not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or not int(mac.replace(":", ""), 16)):
        raise ValueError(f"{prefix}mac: the hardware address of one machine is needed, such as 52:54:00:12:34:56")
    addresses = tuple(str(one) for one in _addresses(prefix, "addresses", settings, ipaddress.ip_interface))
    if any("/" not in str(one) for one in _listed(settings.get("addresses", []))):
        raise ValueError(f"{prefix}addresses: the length of the prefix is missing, as in 192.0.2.7/24")
    gateways = _addresses(prefix, "gateway", settings, ipaddress.ip_address)
    if len({one.version for one in gateways}) != len(gateways):
        raise ValueError(f"{prefix}gateway: more than one of a kind")
    dns = _addresses(prefix, "dns", settings, ipaddress.ip_address)
    if gateways and not addresses:
        raise ValueError(f"{prefix}gateway: there are no addresses")
    return InterfaceIdentity(match, mac, addresses, tuple(map(str, gateways)), tuple(map(str, dns)))


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _addresses(prefix: str, name: str, settings: Mapping[str, Any], read: Any) -> list[Any]:
    """Addresses that ``read`` knows: one, or a list."""
    values = _listed(settings.get(name, []))
    if len(values) > _MAX_ADDRESSES:
        raise ValueError(f"{prefix}{name}: more than {_MAX_ADDRESSES}")
    found = []
    for value in values:
        try:
            if not isinstance(value, str) or "%" in value:  # no scopes
                raise ValueError
            found.append(read(value))
        except ValueError:
            raise ValueError(f"{prefix}{name}: {str(value)[:100]!r} is not an address") from None
    return found


def _keys(value: object, directory: Path | None) -> dict[str, str]:
    if value == NEW:
        return {}
    if isinstance(value, str) and value and directory is not None:
        return _keys_in(directory / value)
    if not isinstance(value, dict) or not value or len(value) > _MAX_KEYS:
        raise ValueError('ssh_host_keys: "new", a directory, or a table of files is needed')
    for name, content in value.items():
        if not _KEY_FILE.fullmatch(name):
            raise ValueError(f"ssh_host_keys.{name[:100]}: not the name of a host key, such as ssh_host_ed25519_key")
        if not isinstance(content, str) or not 0 < len(content) <= _MAX_KEY or not content.isascii():
            raise ValueError(f"ssh_host_keys.{name}: not the content of a key")
        if f"{name.removesuffix('.pub')}" not in value or f"{name.removesuffix('.pub')}.pub" not in value:
            raise ValueError(f"ssh_host_keys.{name}: the other half of the pair is missing")
        if not (_PUBLIC_KEY if name.endswith(".pub") else _PRIVATE_KEY).fullmatch(content):
            raise ValueError(f"ssh_host_keys.{name}: not an SSH key; ssh-keygen makes one")
    return dict(value)


def _keys_in(directory: Path) -> dict[str, str]:
    """The host keys in a directory. Raises ValueError."""
    try:
        paths = [path for path in sorted(directory.iterdir()) if _KEY_FILE.fullmatch(path.name) and path.is_file()]
        found = {}
        for path in paths:
            with open(path, "rb") as file:
                found[path.name] = file.read(_MAX_KEY + 1).decode("ascii", "replace")
    except OSError as error:
        raise ValueError(f"ssh_host_keys: {directory}: {error.strerror}") from None
    if not found:
        raise ValueError(f"ssh_host_keys: {directory}: no files such as ssh_host_ed25519_key")
    return _keys(found, None)


def text(identity: Identity, *, secret: bool = True) -> str:
    """In TOML, as ``parse`` reads it. Without ``secret``, keys and seed are left out."""
    lines = [f"hostname = {_quoted(identity.hostname)}"] if identity.hostname else []
    lines.append(f"machine_id = {_quoted(identity.machine_id)}")
    if identity.seed and secret:
        lines.append(f"seed = {_quoted(identity.seed)}")
    if not identity.ssh_host_keys:
        lines.append(f"ssh_host_keys = {_quoted(NEW)}")
    elif secret:
        lines += ["", "[ssh_host_keys]"]
        lines += [f"{_quoted(name)} = {_quoted(content)}" for name, content in sorted(identity.ssh_host_keys.items())]
    else:
        lines.append(f"# ssh_host_keys: {', '.join(sorted(identity.ssh_host_keys))}")
    for one in identity.interfaces:
        lines += ["", "[[interfaces]]", f"match = {_quoted(one.match)}"]
        lines += [f"mac = {_quoted(one.mac)}"] if one.mac else []
        for name, values in (("addresses", one.addresses), ("gateway", one.gateways), ("dns", one.dns)):
            lines += [f"{name} = [{', '.join(map(_quoted, values))}]"] if values else []
    return "".join(f"{line}\n" for line in lines)


def _quoted(value: str) -> str:
    """A basic string of TOML, which escapes as JSON does; DEL too."""
    return json.dumps(value).replace("\x7f", "\\u007f")
