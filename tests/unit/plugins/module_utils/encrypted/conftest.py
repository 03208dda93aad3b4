# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of encrypted swap areas."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._swap import area, headers
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.encrypted.encrypted_machine import PAGE, Machine


@pytest.fixture(autouse=True)
def pages_of_4k(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "page_size", lambda: PAGE)
    monkeypatch.setattr(area, "page_size", lambda: PAGE)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)
