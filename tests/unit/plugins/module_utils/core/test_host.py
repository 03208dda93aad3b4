# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module's commands are run."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host


class Module:
    """What Host uses of an AnsibleModule."""

    run_command_environ_update: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def run_command(self, argv: list[str], **options: Any) -> tuple[int, str, str]:
        self.options = options
        return 0, "", ""

    def atomic_move(self, source: str, target: str) -> None:
        raise AssertionError


@pytest.mark.parametrize("given, directory", [({}, "/"), ({"directory": None}, None)])
def test_commands_do_not_run_in_the_login_directory(given: dict[str, Any], directory: str | None) -> None:
    """Which programs that SELinux confines, as mkinitramfs, may not enter; but paths of a store may be relative to it."""
    module = Module()
    Host.of(module, **given).run(["true"])
    assert module.options["cwd"] == directory and module.run_command_environ_update["LC_ALL"] == "C"
