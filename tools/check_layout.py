# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps directories small enough to be read at a glance: C(check_layout.py), for C(make layout).

A directory below those of C(ROOTS) has at most C(MOST) files, so that C(ls) alone tells where a thing is.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from project_files import project_files

ROOTS = (Path("fuse_store"), Path("plugins/module_utils"), Path("tests"))
MOST = 12
# Directory: why it may have more.
ALLOWED = {Path("fuse_store/cli/verbs"): "a file for each verb"}


def main() -> int:
    count = Counter(name.parent for name in project_files() if any(root in name.parents for root in ROOTS))
    crowded = {directory: files for directory, files in count.items() if files > MOST and directory not in ALLOWED}
    for directory, files in sorted(crowded.items()):
        print(f"{directory}: {files} files; at most {MOST}: split it")
    return int(bool(crowded))


if __name__ == "__main__":
    sys.exit(main())
