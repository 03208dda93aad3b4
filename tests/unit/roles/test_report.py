# SPDX-License-Identifier: GPL-3.0-or-later
"""The page that the playbook report writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"
EMPTY = {"meta", "link", "br", "img"}
READY = {
    "ready": True, "blockers": [], "dram": 8 << 30, "nvm": 16 << 30, "kernel": "6.1.0-50-amd64", "initramfs": "dracut",
    "bootloader": "grub",
}  # fmt: skip
BOOT = {"firmware": 4.1, "loader": 0.6, "kernel": 1.3, "initrd": 2.2, "userspace": 41.7, "total": 49.9}
RESUMED = {"verdict": "resumed", "seconds": {"down": 3.2, "up": 9.4, "total": 33.1}, "time": "2026-11-30T02:00:41Z"}
EVIL = '<script>alert("x")</script>'
MACHINES: dict[str, dict[str, Any]] = {
    "web01": {"nvm_seen": READY, "nvm_times": {"boot": BOOT, "last_hibernation": RESUMED}},
    "web02": {
        "nvm_seen": {
            **READY, "ready": False, "initramfs": None, "kernel": EVIL,
            "blockers": [{"code": "swap_inactive", "message": "The swap is <off> " + EVIL, "remedy": "Run swapon /dev/NVM_SWAP & reboot."}],
        },
        "nvm_times": {"boot": dict.fromkeys(BOOT), "last_hibernation": {"verdict": EVIL, "seconds": {}, "time": EVIL}},
    },
    "web03": {"nvm_seen": {"unreachable": True, "msg": "Connection refused " + EVIL}, "nvm_times": {"unreachable": True, "msg": "no"}},
    "web04": {"nvm_seen": {"failed": True, "msg": "/proc/zoneinfo does not contain x.", "module_stderr": "python3: not found " + EVIL}},
    "web05": {"nvm_seen": READY, "nvm_times": {"failed": True, "msg": "no systemd"}},
    "other": {},
}  # fmt: skip


class Page(HTMLParser):
    """The texts of a page, its tags, and whether each that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(
    directory: Path, machines: dict[str, dict[str, Any]], report: str = "", *options: str, whole: bool = False
) -> tuple[Page, str]:
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("ansible.cli")
    (play,) = yaml.safe_load((PLAYBOOKS / "report.yml").read_text())
    for task in play["tasks"][:2]:  # modules of this collection are not at hand, and none is run
        task.pop(next(key for key in task if key.startswith("nvm.fastboot.")))
        task["ansible.builtin.ping"] = {}
    if not whole:
        play |= {"hosts": "all:!other", "tasks": play["tasks"][2:]}  # without the looks at the machines
    shutil.copytree(PLAYBOOKS / "templates", directory / "templates")
    (directory / "play.yml").write_text(json.dumps([play]))
    (directory / "inventory.yml").write_text(json.dumps({"all": {"hosts": machines}}))
    program = "import sys; from ansible.cli.playbook import PlaybookCLI; PlaybookCLI.cli_executor(sys.argv)"
    variables = {"ansible_python_interpreter": sys.executable, **({"nvm_report": report} if report else {})}
    command = [sys.executable, "-c", program, "-i", "inventory.yml", "-e", json.dumps(variables), "play.yml", *options]
    temporary = str(directory / "tmp")
    environment = dict(os.environ, ANSIBLE_LOCAL_TEMP=temporary, ANSIBLE_REMOTE_TEMP=temporary, PWD=str(directory), ANSIBLE_NOCOLOR="1")
    done = subprocess.run(command, cwd=str(directory), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Page((directory / report / "nvm-report.html").read_text()), done.stdout


def test_a_page_about_machines_of_all_kinds(tmp_path: Path) -> None:
    page, printed = written(tmp_path, MACHINES)
    assert "2 of 5 machines are ready to hibernate: %s/nvm-report.html" % tmp_path in printed
    assert "other" not in page.text
    for text in (
        "2 of 5 machines are ready", "swap_inactive", "Run swapon /dev/NVM_SWAP & reboot.", "The swap is <off> " + EVIL,
        "Not reached: Connection refused", "/proc/zoneinfo does not contain", "python3: not found", "49.9 s",
        "9.4 s", "8.0 GiB", "resumed, 2026-11-30T02:00:41Z",
    ):  # fmt: skip
        assert text in page.text, text
    widths = [values["style"] for tag, values in page.tags if tag == "i" and "style" in values]
    classes = [values["class"] for tag, values in page.tags if tag == "i" and "style" in values]
    assert classes == [*list(BOOT)[:-1], "up"]
    assert widths == ["width:%.2f%%" % (100 * BOOT[name] / 49.9) for name in list(BOOT)[:-1]] + ["width:%.2f%%" % (940 / 49.9)]


def test_nothing_on_it_is_run_or_fetched(tmp_path: Path) -> None:
    page, _printed = written(tmp_path, MACHINES)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _values in page.tags}
    assert not {"src", "href"} & {name for _tag, values in page.tags for name in values}
    assert page.text.count(EVIL) == 6


def test_into_a_directory(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    page, printed = written(tmp_path, {"web01": MACHINES["web01"], "web09": {}}, "www")
    assert "1 of 2 machines are ready to hibernate: %s/www/nvm-report.html" % tmp_path in printed
    assert "web09" in page.text and "It gave no answer." in page.text


def test_machines_that_fail_are_on_the_page_and_a_limit_is_heeded(tmp_path: Path) -> None:
    """With the looks at the machines, which end before a module is there."""
    inventory = {"web98": {"ansible_become_method": "no_such_method", "ansible_connection": "local"}, "web99": {}}
    page, printed = written(tmp_path, inventory, "", "--limit", "web98", whole=True)
    assert "0 of 1 machines are ready" in printed and "web98" in page.text and "web99" not in page.text
    assert "no_such_method" in page.text
