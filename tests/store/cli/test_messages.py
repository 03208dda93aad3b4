# SPDX-License-Identifier: GPL-3.0-or-later
"""Every message of the project is in one file, messages.txt, for reviewers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).with_name("messages.txt")
ERROR = re.compile(r"(?:\w*Error|NotFound|Damaged|WrongKey|Refused|Locked): ")


def messages() -> list[tuple[str, str]]:
    """(file, message) of all."""
    pairs, name = [], ""
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            name = line[3:]
        elif name and line:
            pairs.append((name, line))
    return pairs


def test_the_file_of_messages_is_up_to_date() -> None:
    """If this fails: python tools/messages.py --write."""
    done = subprocess.run([sys.executable, ROOT / "tools/messages.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_file_has_messages_of_every_part() -> None:
    listed = {name for name, _message in messages()}
    assert listed.issuperset(("fuse_store/cli/verbs/put.py", "plugins/action/hibernate.py"))
    assert listed.issuperset(("roles/hibernate_to_nvm/tasks/present.yml", "playbooks/capture.yml"))
    text = [message for name, message in messages() if name == "fuse_store/cli/verbs/select.py"]
    assert "help --application: application name (default: any)" in text
    assert "NotFound: machine {options.machine}: no versions. Run 'fuse-store list' to see all versions." in text


STORE_ERROR = re.compile(r"(?:UsageError|NotFound|Damaged|WrongKey|Refused|Locked|StoreError): ")
# Errors that are caught where the remedy is known, or that are all of a message of the mount, which no one reads in time.
WITHIN_OTHERS = (
    "fuse_store/maintenance/needed.py", "fuse_store/maintenance/gc.py", "fuse_store/maintenance/repair.py", "fuse_store/image/reader.py",
    "fuse_store/mount/prefetch.py", "fuse_store/snapshot/",
)  # fmt: skip
INNER = "{missing} of {digests} blocks are in no pack."  # becomes part of "cannot be read back"
SENTENCES = 2
SENTENCE_END = re.compile(r"\.(?=\s|$|\||\))|\}(?= [A-Z{(]|$)")


def test_errors_of_the_store_have_a_remedy() -> None:
    """After the cause. Fields may be of several sentences."""
    lacking = [
        error
        for name, error in messages()
        if name.startswith("fuse_store/") and STORE_ERROR.match(error) and not name.startswith(WITHIN_OTHERS)
        and not error.endswith(("}", INNER)) and "Example: " not in error and len(SENTENCE_END.findall(error)) < SENTENCES
    ]  # fmt: skip
    assert lacking == []


def test_errors_end_with_a_full_stop() -> None:
    """But for those that end with an example, or with a field."""
    errors = [message for name, message in messages() if name.startswith("fuse_store/cli/") and ERROR.match(message)]
    assert len(errors) > 20
    assert [error for error in errors if not error.endswith((".", "}", ".|)")) and not error.startswith("ArgumentTypeError")] == []
