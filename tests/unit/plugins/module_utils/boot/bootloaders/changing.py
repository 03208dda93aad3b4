# SPDX-License-Identifier: GPL-3.0-or-later
"""Have the bootloader of a tree start kernels with arguments, and without them again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Transaction

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host

RESUME = "resume=UUID=6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4"
DROP = ("resume", "resume_offset")


def detected(host: Host, name: str) -> Any:
    """The bootloader that is found, which must be this one."""
    found = bootloaders.detect(host)
    assert found.name == name
    return found


def ensure(
    host: Host, purpose: str = "resume", arguments: tuple[str, ...] = (RESUME,), drop: tuple[str, ...] = DROP, check_mode: bool = False
) -> bool:
    with Transaction(host, check_mode=check_mode) as tx:
        return bool(bootloaders.detect(host).ensure(tx, purpose, list(arguments), drop))


def forget(host: Host, purpose: str = "resume", leftovers: tuple[str, ...] = ()) -> bool:
    with Transaction(host) as tx:
        return bool(bootloaders.detect(host).forget(tx, purpose, leftovers))


def everything(host: Host) -> dict[str, bytes]:
    """All files below the host's root, with their content."""
    found = {}
    for directory, _directories, names in os.walk(host.path("/")):
        for name in names:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found[path] = file.read()
    return found
