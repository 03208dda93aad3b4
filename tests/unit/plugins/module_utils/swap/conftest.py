# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of swap areas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import area, headers
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.swap.swap_machine import PAGE, Machine

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript


@pytest.fixture(autouse=True)
def pages_of_4k(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "page_size", lambda: PAGE)
    monkeypatch.setattr(area, "page_size", lambda: PAGE)


@pytest.fixture
def machine(host: Host, plant: Plant, transcript: Transcript) -> Machine:
    return Machine(host, plant, transcript)
