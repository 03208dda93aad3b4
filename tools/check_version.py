# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares the places that name the version of a release: C(check_version.py), for C(make changelog-lint).

C(fuse_store.__version__) is the one that counts; the package's metadata are made from it. Galaxy reads its own from
galaxy.yml, the changelog has an entry for it, and the role image_store installs it.
"""

from __future__ import annotations

import re
import sys

from project_files import ROOT

SOURCE = "fuse_store/__init__.py", r'^__version__ = "(.+)"$'
OTHERS = (
    ("galaxy.yml", r"^version: (.+)$"),
    ("changelogs/changelog.yaml", r"^  (\d+\.\d+\.\d+):$"),
    ("docs/fuse-store.1", r'^\.TH .* "fuse-store (.+?)"'),
    ("roles/image_store/defaults/main.yml", r"^image_store_package: fuse-store==(.+)$"),
    ("roles/image_store/meta/argument_specs.yml", r"^        default: fuse-store==(.+)$"),
    ("roles/image_store/README.md", r"`fuse-store==(.+?)`"),
)


def versions(file: str, pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)


def main() -> int:
    (version,) = versions(*SOURCE)
    wrong = [file for file, pattern in OTHERS if version not in versions(file, pattern)]
    for file in wrong:
        print(f"{file} does not name version {version}, which {SOURCE[0]} has")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
