# SPDX-License-Identifier: GPL-3.0-or-later
"""Twenty machines at once, with every Python that modules support and is to be had, as administrators reach their machines.

Only ``fstab_swap`` changes something, in the containers' own files. The others look, or refuse: there is neither NVM nor a bootloader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.containers.roots import PASSWORD, SUITES
from tests.containers.targets import Containers, Target
from tests.vm import play

FORKS = ("--forks", "50")
UUID = "6f1c1e1e-9d4b-8a57-9f0e-2f6d0a6f2b11"
LINE = f"UUID={UUID} swap swap defaults,nofail,pri=10 0 0"
FSTAB = "# Written by hand\n/dev/vda1 / ext4 defaults 0 1"
# Task: what is in its result on every machine. None: it refuses, and the code is one of those in the second place.
TASKS: list[tuple[dict[str, Any], dict[str, Any] | None, set[str]]] = [
    ({"nvm.fastboot.nvm_info": {}}, {"ready": False, "nvm": 0}, set()),
    ({"nvm.fastboot.nvm_reservation": {}, "check_mode": True}, None, {"no_nvm"}),
    ({"nvm.fastboot.nvm_swap": {}, "check_mode": True}, {"changed": True, "block_device": None}, set()),
    ({"nvm.fastboot.fstab_swap": {"uuid": UUID}, "check_mode": True}, {"changed": True, "line": LINE}, set()),
    ({"nvm.fastboot.fstab_swap": {"uuid": UUID}}, {"changed": True, "line": LINE}, set()),
    ({"nvm.fastboot.fstab_swap": {"uuid": UUID, "priority": 10}}, {"changed": False, "line": LINE}, set()),
    ({"nvm.fastboot.fstab_swap": {"uuid": UUID, "state": "absent"}}, {"changed": True, "line": None}, set()),
    ({"nvm.fastboot.boot_resume": {}, "check_mode": True}, None, {"bootloader_missing", "bootloader_unsupported"}),
    ({"nvm.fastboot.hibernate_trigger": {"condition": "power_key"}, "check_mode": True}, {"changed": True, "names": ["power_key"]}, set()),
    ({"nvm.fastboot.nvm_plan": {"parts": [{"fstab_swap": {"uuid": UUID}}], "device": "/dev/NVM_SWAP"}, "check_mode": True},
     {"changed": True, "would_change": ["fstab_swap"]}, set()),
    ({"nvm.fastboot.boot_root": {"mode": "writable"}, "check_mode": True}, None, {"initramfs_unknown"}),
    ({"nvm.fastboot.hibernate": {}, "check_mode": True}, None, {"no_systemd"}),  # sshd is process 1
]  # fmt: skip


Tasks = Sequence[Mapping[str, Any]]


def play_tasks(containers: Containers, targets: list[Target], tasks: Tasks, directory: Path, *options: str, **more: Any) -> play.Played:
    text = [{"hosts": "all", "gather_facts": False, "become": True, "tasks": list(tasks), **more}]
    (directory / "play.yml").write_text(json.dumps(text))
    return play.play(containers, targets, str(directory / "play.yml"), None, *options)


def test_every_module_on_every_python(containers: Containers, tmp_path: Path) -> None:
    versions = {target.version for target in containers.targets}
    assert set(SUITES.values()) <= versions
    version = {"ansible.builtin.command": {"argv": ["{{ ansible_python_interpreter }}", "--version"]}}
    write = {"ansible.builtin.copy": {"content": FSTAB, "dest": "/etc/fstab", "mode": "0644"}}
    tasks: Tasks = [{"name": str(number), "ignore_errors": True, **task} for number, (task, _result, _codes) in enumerate(TASKS)]
    played = play_tasks(containers, containers.targets, [version, write, *tasks], tmp_path, *FORKS)
    assert played.code == 0, played.output
    for target in containers.targets:
        own = [task for task in played.tasks if task["host"] == target.name]
        results = {task["task"]: {**task["result"], "failed": task["status"] == "failed"} for task in own}
        assert f"Python {target.version}." in json.dumps(results), (target, results)
        for number, (task, expected, codes) in enumerate(TASKS):
            result = results[str(number)]
            told = f"{task} on {target}: {result}"
            if expected is None:
                assert result.get("failed") and result.get("code") in codes and "Traceback" not in told, told
            else:
                assert {name: result.get(name) for name in expected} == expected and not result.get("failed"), told
        assert containers.file(target, "/etc/fstab").read_text() == FSTAB, "it is as it was"
    pythons = ", ".join(sorted(versions, key=_number))
    print(f"\n{len(TASKS)} tasks on {len(containers.targets)} machines, Python {pythons}: {played.seconds:.0f} s")


def test_configure_refuses_on_each_for_itself(containers: Containers) -> None:
    """Without facts, in check mode and not; nothing is changed where a part refuses."""
    for options in (("--check", "--diff"), ()):
        played = play.play(containers, containers.targets, "nvm.fastboot.configure", None, *options, *FORKS)
        assert played.code == 2 and played.changed == 0, played.output
        for target in containers.targets:
            refused = played.result("nvm_plan", target.name)
            assert refused["code"] == "no_nvm", refused
            assert played.result("ansible.builtin.fail", target.name)["msg"].endswith("Nothing was changed."), played.output


def test_a_run_that_changes_nothing_is_quick(containers: Containers) -> None:
    """Against gathering facts alone, in turn, on a machine that was not configured and shall not be; the faster of each counts."""
    target, turns = containers.targets[0], 3
    setups, agains = [], []
    for _turn in range(turns):
        setups.append(play.play(containers, [target], str(play.REPOSITORY / "tests/vm/playbooks/setup.yml")).ok())
        agains.append(play.play(containers, [target], "nvm.fastboot.remove").ok())
    assert sum(each.changed for each in agains) == 0, agains[0].output
    seconds, setup = (min(each.seconds for each in played) for played in (agains, setups))
    print(f"\nnvm.fastboot.remove without a change: {seconds:.1f} s, {seconds / setup:.1f} × ansible.builtin.setup ({setup:.1f} s)")
    assert seconds <= 2 * setup, "1.5 on an idle machine; this one may be busy"


def test_limit(containers: Containers, tmp_path: Path) -> None:
    wanted = [target.name for target in containers.targets[3:6]]
    played = play_tasks(containers, containers.targets, [{"nvm.fastboot.nvm_info": {}}], tmp_path, "--limit", ",".join(wanted), *FORKS)
    assert played.code == 0 and sorted(task["host"] for task in played.tasks) == sorted(wanted), played.output


def test_serial(containers: Containers, tmp_path: Path) -> None:
    """In batches of seven: the second begins when the first has ended; one that fails in a batch does not stop the others."""
    targets = containers.targets
    uuid = "{{ 'no' if inventory_hostname == 'container1' else '%s' }}" % UUID
    tasks: Tasks = [{"nvm.fastboot.fstab_swap": {"uuid": uuid}, "check_mode": True}, {"nvm.fastboot.nvm_info": {}}]
    played = play_tasks(containers, targets, tasks, tmp_path, *FORKS, serial=7)
    ran = [(task["host"], task["module"].rpartition(".")[2]) for task in played.tasks]
    batches = [{target.name for target in targets[start : start + 7]} for start in (0, 7, 14)]
    for number, batch in enumerate(batches):
        began = sum(2 * len(each) for each in batches[:number]) - (number > 0)
        assert {host for host, _module in ran[began : began + len(batch)]} == batch, ran
    assert played.code == 2 and played.result("fstab_swap", "container1")["code"] == "uuid_invalid"
    assert sum(module == "nvm_info" for _host, module in ran) == len(targets) - 1


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelining", "no pipelining"])
@pytest.mark.parametrize("method", ["sudo", "su", "community.general.doas"])
def test_become(containers: Containers, community_general: None, tmp_path: Path, method: str, pipelining: bool) -> None:
    """As root by each method: fstab is changed and comes back, and the action plugin, which asks several times, gets its answers."""
    own = {"ansible_become_method": method, "ansible_become_password": PASSWORD, "ansible_pipelining": pipelining}
    if method == "community.general.doas":
        del own["ansible_become_password"]
    tasks: Tasks = [
        {"nvm.fastboot.fstab_swap": {"uuid": UUID}},
        {"nvm.fastboot.nvm_info": {}},
        {"nvm.fastboot.hibernate": {}, "check_mode": True, "ignore_errors": True},
        {"nvm.fastboot.fstab_swap": {"uuid": UUID, "state": "absent"}},
    ]
    played = play_tasks(containers, containers.targets, tasks, tmp_path, *FORKS, vars=own)
    assert played.code == 0, played.output
    for target in containers.targets:
        told = [task["result"] for task in played.tasks if task["host"] == target.name]
        assert [each["changed"] for each in told] == [True, False, False, True], told
        codes = {blocker["code"] for blocker in told[1]["blockers"]}
        assert "no_nvm" in codes and "not_root" not in codes, codes
        assert told[2]["code"] == "no_systemd" and told[2]["verdict"] == "never_slept", told[2]
    left = re.compile(r"^ansible-tmp-")
    for target in containers.targets:
        kept = [path for path in containers.file(target, "/").glob("home/*/.ansible/tmp/*") if left.match(path.name)]
        assert kept == [], "a module's files were left behind"
    print(f"\n{method}, pipelining {pipelining}: {len(played.tasks)} results in {played.seconds:.0f} s")


def test_without_root_nothing_is_changed(containers: Containers, tmp_path: Path) -> None:
    tasks: Tasks = [{"nvm.fastboot.nvm_info": {}}, {"nvm.fastboot.fstab_swap": {"uuid": UUID}, "ignore_errors": True}]
    # A Python below root's own directory is not there for others.
    targets = [target for target in containers.targets if target.python == "/usr/bin/python3"]
    played = play_tasks(containers, targets, tasks, tmp_path, *FORKS, become=False)
    for target in targets:
        info, refused = (played.result(name, target.name) for name in ("nvm_info", "fstab_swap"))
        assert info["blockers"][0]["code"] == "not_root"
        assert refused["code"] in ("not_writable", "file_not_writable") and "root" in refused["remedy"], refused


def _number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
