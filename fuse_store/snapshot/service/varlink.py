# SPDX-License-Identifier: GPL-3.0-or-later
"""Varlink (https://varlink.org/Method-Call): JSON objects that end with a zero byte, over a stream. Calls and replies; untrusted input."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE = 64 << 10  # bytes of a call
INTERFACE = "io.github.nvm_fastboot.Snapshot"
DESCRIPTION = f"""\
# Snapshots of the running system. A restored system answers the same call once more.
interface {INTERFACE}

# result: "created", or "restored" if the system was resumed from the image. id: of the image, the same in both.
# size: bytes of the image; pause: seconds for which the system stood still; both 0 if restored. slot: the number of its slot, on a
# device with slots. replace, keep: when the image is complete, older ones go, within what the policy of the service says: those of the
# same application and event; all but the so many newest of the application.
method Take(application: string, event: ?string, replace: ?bool, keep: ?int) ->
  (result: string, id: string, size: int, pause: float, slot: ?int)

error NotAllowed (user: string, application: string)
error TooSoon (application: string, seconds: int)
error Failed (thing: string, cause: string, remedy: string, exit_code: int)
"""
_SERVICE = "org.varlink.service"
_SERVICE_DESCRIPTION = f"""\
interface {_SERVICE}
method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)
error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
"""
_DESCRIPTIONS = {INTERFACE: DESCRIPTION, _SERVICE: _SERVICE_DESCRIPTION}
_METHOD = re.compile(r"([A-Za-z0-9_.-]{1,200})\.([A-Za-z0-9]{1,100})")


class CallError(Exception):
    """The answer is an error: its name, with its interface, and its parameters."""

    def __init__(self, name: str, **parameters: object) -> None:
        super().__init__(name)
        self.name, self.parameters = name, parameters


@dataclass(frozen=True)
class Call:
    """``oneway``: the caller wants no answer."""

    method: str
    parameters: dict[str, Any]
    oneway: bool = False

    def text(self, name: str, default: str | None = None) -> str:
        """A parameter that is a text. Raises CallError."""
        value = self.parameters.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise invalid(name)
        return value


    def number(self, name: str) -> int | None:
        """A parameter that is a number from 1 on, or not there. Raises CallError."""
        value = self.parameters.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise invalid(name)
        return value

    def flag(self, name: str) -> bool:
        """A parameter that is true or false; false if it is not there. Raises CallError."""
        value = self.parameters.get(name)
        if value is not None and not isinstance(value, bool):
            raise invalid(name)
        return bool(value)


def parse(message: bytes) -> Call:
    """A call. Raises CallError for what is none."""
    try:
        call = json.loads(message)
        method, parameters = call["method"], call.get("parameters") or {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise invalid("method") from None
    if not isinstance(method, str) or not isinstance(parameters, dict):
        raise invalid("parameters")
    return Call(method, parameters, call.get("oneway") is True)


def invalid(parameter: str) -> CallError:
    return CallError(f"{_SERVICE}.InvalidParameter", parameter=parameter)


def reply(**parameters: object) -> bytes:
    return json.dumps({"parameters": parameters}).encode() + b"\0"


def failure(error: CallError) -> bytes:
    return json.dumps({"error": error.name, "parameters": error.parameters}).encode() + b"\0"


def service(call: Call, version: str) -> dict[str, object]:
    """The answer to a call of the interface that every service has. Raises CallError, also for methods that are not known."""
    match = _METHOD.fullmatch(call.method)
    interface, method = match.groups() if match else ("", "")
    if interface not in _DESCRIPTIONS:
        raise CallError(f"{_SERVICE}.InterfaceNotFound", interface=interface)
    if interface == _SERVICE and method == "GetInfo":
        url = "https://github.com/nvm-fastboot/nvm.fastboot"
        return {"vendor": "nvm.fastboot", "product": "fuse-store", "version": version, "url": url, "interfaces": list(_DESCRIPTIONS)}
    if interface == _SERVICE and method == "GetInterfaceDescription":
        wanted = call.text("interface")
        if wanted not in _DESCRIPTIONS:
            raise CallError(f"{_SERVICE}.InterfaceNotFound", interface=wanted)
        return {"description": _DESCRIPTIONS[wanted]}
    raise CallError(f"{_SERVICE}.MethodNotFound", method=call.method[:200])
