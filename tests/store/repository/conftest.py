# SPDX-License-Identifier: GPL-3.0-or-later
"""A server with a bucket, for all tests of the repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.repository import s3_server


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server.server(tmp_path_factory.mktemp("server")) as where:
        yield where


@pytest.fixture
def url(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where no store is yet; this process and its children may ask the server."""
    for key, value in s3_server.environment(endpoint).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSE_STORE", raising=False)
    return f"s3://{s3_server.BUCKET}/{tmp_path.parent.name}/{tmp_path.name}"
