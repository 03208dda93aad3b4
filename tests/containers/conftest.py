# SPDX-License-Identifier: GPL-3.0-or-later
"""Twenty containers, on for all tests; and the become plugin for doas, which ansible-core does not have."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.targets import Containers
from tests.vm.play import REPOSITORY

NUMBER = 20
COLLECTION = "ansible_collections/community/general/"
ANSIBLE = "ansible>=12,<13"  # the package of collections; community.general 11, for ansible-core 2.19


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with Containers(tmp_path_factory.mktemp("containers"), NUMBER) as started:
        yield started


@pytest.fixture(scope="session")
def community_general(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The collection community.general beside this one, out of PyPI's package ``ansible``."""
    if (REPOSITORY / "build" / COLLECTION).exists():
        return
    directory = tmp_path_factory.mktemp("download")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "-d", str(directory), ANSIBLE], check=True)
    (wheel,) = directory.glob("*.whl")
    partial = Path(REPOSITORY / "build" / "community.partial")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial, [name for name in archive.namelist() if name.startswith(COLLECTION)])
    (REPOSITORY / "build" / COLLECTION).parent.mkdir(parents=True, exist_ok=True)
    (partial / COLLECTION).rename(REPOSITORY / "build" / COLLECTION)
