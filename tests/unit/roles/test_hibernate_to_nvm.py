# SPDX-License-Identifier: GPL-3.0-or-later
"""The role, run by ansible-playbook with modules that answer as a test says, on a machine that really forgets nothing but its boots."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
# The answers of each module on a configured machine. A list: by the number of reboots, the last one stays.
CONFIGURED: dict[str, Any] = {
    "nvm_reservation": {"reboot_required": False, "reboot_in_vain": None, "ndctl_missing": False},
    "nvm_swap": {"packages_missing": []},
    "swap_file": {},
    "fstab_swap": {"uuid": "6d9bd8a5"},
    "boot_resume": {"reboot_required": False, "reboot_in_vain": None},
    "hibernate_trigger": {},
    "nvm_info": {"ready": True, "blockers": [], "resume": {"configured": []}},
}
DIFF = [{"before": "", "after": "new\n"}]
MODULE = """\
#!/usr/bin/python
import json, os
from ansible.module_utils.basic import AnsibleModule
name, directory = %(name)r, os.environ["ROLE_TEST"]
module = AnsibleModule(dict.fromkeys(%(options)r, {"type": "raw"}), supports_check_mode=True)
given = {option: value for option, value in module.params.items() if value is not None}
with open(os.path.join(directory, "answers")) as answers:
    configured = json.load(answers)
def call(name, given, check_mode):
    with open(os.path.join(directory, "log"), "a+") as log:
        log.seek(0)
        calls = [json.loads(line) for line in log]
        log.write(json.dumps([name, given, check_mode]) + "\\n")
    boots, answer = sum(each[0] == "reboot" for each in calls), configured[name]
    answer = dict(answer[min(boots, len(answer) - 1)] if isinstance(answer, list) else answer)
    if name != "nvm_info":
        done = any(each[0] == name and each[1] == given and not each[2] for each in calls)
        answer["diff"] = [] if done else answer.get("diff", [])
    for fails in ("fails", "fails_really") if not check_mode else ("fails",):
        if fails in answer:
            module.fail_json(msg=answer[fails], code="test")
    return answer
if name != "nvm_plan":
    answer = call(name, given, module.check_mode)
    module.exit_json(changed=bool(answer.get("diff")), **answer)
parts, looks = {}, []
for entry in given["parts"]:
    ((name, options),) = entry.items()
    found = [call(name, each, True) for each in (options if isinstance(options, list) else [options])]
    parts[name] = found if isinstance(options, list) else found[0]
    looks += [(name, look) for look in found]
module.exit_json(
    changed=module.check_mode and any(look["diff"] for _name, look in looks),
    parts=parts,
    would_change=[name for name, look in looks if look["diff"]],
    diff=[each for _name, look in looks for each in look["diff"]],
    reboot_required=any(look.get("reboot_required") for _name, look in looks),
    reboot_in_vain=[look["reboot_in_vain"] for _name, look in looks if look.get("reboot_in_vain")],
    blockers=call("nvm_info", {}, True)["blockers"] if "device" in given else [],
)
"""
# Reboots are recorded, too: the processes that run tasks have what the program has loaded.
PROGRAM = """\
import json, os, sys
from ansible.cli.playbook import PlaybookCLI
from ansible.plugins.loader import action_loader, init_plugin_loader
def run(self, tmp=None, task_vars=None):
    with open(os.path.join(task_vars["test_directory"], "log"), "a") as log:
        log.write(json.dumps(["reboot", {}, False]) + "\\n")
    return {"changed": True, "rebooted": True, "failed": False}
init_plugin_loader()
action_loader.get("ansible.builtin.reboot", class_only=True).run = run
PlaybookCLI.cli_executor(sys.argv)
"""
PLAY = {
    "hosts": "all",
    "gather_facts": False,
    "environment": {"ROLE_TEST": "{{ test_directory }}"},
    "roles": [{"role": "nvm.fastboot.hibernate_to_nvm"}],
}
LOOKS = ["nvm_reservation", "nvm_swap", "fstab_swap", "boot_resume"]


class Run:
    """A machine, and one run of the role on it: what the modules answer, the variables; then the calls and what was said."""

    def __init__(self, *would_change: str, **variables: Any) -> None:
        self.answers: dict[str, Any] = {name: dict(answer) for name, answer in CONFIGURED.items()}
        self.variables = variables
        self.output, self.failed, self.diff = "", False, 0
        self.recap: dict[str, int] = {}
        self.calls: list[tuple[Any, ...]] = []
        for name in would_change:
            self.answers[name]["diff"] = DIFF

    def answer(self, module: str, **more: Any) -> Run:
        self.answers[module].update(more)
        return self

    @property
    def done(self) -> list[str]:
        """The modules that really ran, in order."""
        return [module for module, _options, check_mode in self.calls if not check_mode]

    @property
    def looked(self) -> list[str]:
        """What was looked at, in order: by the plan, as if the modules had run in check mode; C(nvm_info) for the blockers."""
        return [module for module, _options, check_mode in self.calls if check_mode]

    @property
    def message(self) -> str:
        """What the role said when it failed."""
        assert self.failed, self.output
        last = self.output.rpartition("TASK [")[2]
        assert "Fail, and tell what was done before" in last, self.output
        return str(json.JSONDecoder().raw_decode(last.partition(" => ")[2])[0]["msg"])


class Roles:
    """C(role(run, ...)) plays the role on one machine for each Run, all at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        collection = directory / "ansible_collections" / "nvm" / "fastboot"
        (collection / "plugins" / "modules").mkdir(parents=True)
        (collection / "roles").symlink_to(REPOSITORY / "roles")
        for name in (*CONFIGURED, "nvm_plan"):
            (collection / "plugins" / "modules" / (name + ".py")).write_text(MODULE % {"options": _options(name), "name": name})
        (directory / "play.yml").write_text(json.dumps([PLAY]))

    def __call__(self, *runs: Run, flags: tuple[str, ...] = ()) -> tuple[Run, ...]:
        hosts = {}
        for number, run in enumerate(runs):
            directory = self.directory / str(number)
            directory.mkdir()
            (directory / "log").write_text("")
            (directory / "answers").write_text(json.dumps(run.answers))
            own = {"test_directory": str(directory), "ansible_connection": "local", "ansible_python_interpreter": sys.executable}
            hosts["host%d" % number] = {**own, **run.variables}
        (self.directory / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
        environment = dict(
            os.environ,
            ANSIBLE_COLLECTIONS_PATH=str(self.directory),
            ANSIBLE_LOCAL_TEMP=str(self.directory / "tmp"),
            ANSIBLE_REMOTE_TEMP=str(self.directory / "tmp"),
            ANSIBLE_NOCOLOR="true",
            ANSIBLE_STRATEGY="free",
        )
        # Not by the command's name: ansible-test has another ansible-core than the one on PATH.
        command = [sys.executable, "-c", PROGRAM, "-i", "inventory.json", "-e", '{"nvm_ready_delay": 0}', *flags, "play.yml"]
        done = subprocess.run(
            command, cwd=str(self.directory), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 2), done.stdout + done.stderr
        for number, run in enumerate(runs):
            _told(run, "host%d" % number, done.stdout, self.directory / str(number) / "log")
        return runs


def _told(run: Run, host: str, output: str, log: Path) -> None:
    """What the output says about C(host): each result with the name of its task, which is told once for all hosts in a row."""
    task, told = "", False
    for line in output.partition("PLAY RECAP")[0].splitlines(keepends=True):
        if line.startswith("TASK ["):
            task, told = line, False
        elif re.match(r"(ok|changed|fatal|failed|skipping|included|FAILED)\b.*", line):
            told = "[%s]" % host in line
            run.output += task if told else ""
        run.output += line if told else ""
    counted = re.search(r"(?m)^%s\s+: (.*)$" % host, output)
    assert counted, output
    run.recap = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", counted.group(1))}
    run.failed = run.recap["failed"] > 0
    run.calls = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    run.diff = output.count("+new")  # of all hosts


def _options(module: str) -> list[str]:
    import yaml

    text = (REPOSITORY / "plugins" / "modules" / (module + ".py")).read_text()
    documentation = text.split('DOCUMENTATION = r"""')[1].split('"""')[0]
    return sorted(yaml.safe_load(documentation)["options"])


@pytest.fixture
def role(tmp_path: Path) -> Roles:
    pytest.importorskip("ansible.cli")
    return Roles(tmp_path)


TRIGGERS = [
    {"condition": "schedule", "name": "night", "schedule": "*-*-* 23:00"},
    {"condition": "power_key"},
    {"name": "away", "state": "absent"},
]


def triggers(run: Run, check_mode: bool = False) -> list[dict[str, Any]]:
    return [options for module, options, checked in run.calls if module == "hibernate_trigger" and checked == check_mode]


def test_triggers(role: Roles) -> None:
    present, absent, without, *wrong = role(
        Run("hibernate_trigger", nvm_triggers=TRIGGERS),
        Run("boot_resume", nvm_state="absent", nvm_triggers=TRIGGERS),
        Run("boot_resume", nvm_state="absent"),
        *(Run(nvm_state="absent", nvm_triggers=[trigger])
          for trigger in ({"state": "absent"}, {"condition": "lid"}, {"condition": "idle", "idel": "30min"})),
    )  # fmt: skip
    wanted = [
        {"condition": "schedule", "name": "night", "schedule": "*-*-* 23:00"},
        {"condition": "power_key", "name": "power_key"},
        {"name": "away", "state": "absent"},
    ]
    assert triggers(present) == wanted and triggers(present, check_mode=True) == TRIGGERS, "every option is passed on"
    assert triggers(absent) == [{"name": name, "state": "absent"} for name in ("night", "power_key", "away")], "and no other"
    assert triggers(absent, check_mode=True) == [{**trigger, "state": "absent"} for trigger in TRIGGERS]
    assert absent.done[3:] == ["boot_resume", "nvm_info", "fstab_swap", "nvm_swap", "nvm_reservation"]
    assert triggers(without) == [] and without.done
    for run in wrong:  # without a name and a condition the module removes every trigger of the machine
        assert run.failed and "Validation of arguments failed" in run.output and run.calls == []


# looking before changing ---------------------------------------------------------------------------------------------


def test_a_run_without_changes_only_looks_and_once(role: Roles) -> None:
    present, absent = role(Run(nvm_reboot=True), Run(nvm_reboot=True, nvm_state="absent"))
    assert present.done == absent.done == [] and not present.failed and not absent.failed
    assert present.looked == [*LOOKS, "nvm_info"] and absent.looked == ["boot_resume", "fstab_swap", "nvm_swap", "nvm_reservation"]
    assert present.recap["changed"] == absent.recap["changed"] == 0


def test_a_run_without_changes_fails_where_the_machine_is_not_ready(role: Roles) -> None:
    blocked, content, waiting, rebooting = role(
        Run().answer("nvm_info", **info("logind_refuses")),
        Run(nvm_ignore_blockers=["logind_refuses"]).answer("nvm_info", **info("logind_refuses")),
        Run("nvm_swap").answer("nvm_info", **info("logind_refuses")),
        Run().answer("nvm_info", **info("logind_refuses")).answer("boot_resume", reboot_required=True),
    )
    assert "not ready to hibernate. There is logind_refuses. Do away with logind_refuses. Nothing was changed." in blocked.message
    assert blocked.done.count("nvm_info") > 3, "an inhibitor may end"
    assert content.done == [] and not content.failed
    assert waiting.failed and waiting.done[0] == "nvm_reservation", "what is changed next may help"
    assert not rebooting.failed and "Reboot the machine" in rebooting.output


def test_what_refuses_refuses_before_anything_is_changed(role: Roles) -> None:
    modules = [*LOOKS, "hibernate_trigger"]
    runs = role(*(
        Run(*modules, nvm_state=state, nvm_triggers=TRIGGERS[1:2], nvm_reboot=True).answer(module, fails="No, because.")
        for module in modules for state in ("present", "absent")
    ))  # fmt: skip
    for run in runs:
        assert run.message.split(". ") == ["No, because", "Nothing was changed."] and run.done == []


def test_what_fails_later_tells_what_was_done(role: Roles) -> None:
    boot, trigger, absent = role(
        Run(*LOOKS, nvm_reboot=True).answer("boot_resume", fails_really="/boot is full."),
        Run("hibernate_trigger", nvm_triggers=TRIGGERS[:2]).answer("hibernate_trigger", fails_really="No UPS answers."),
        Run(*LOOKS, nvm_state="absent").answer("nvm_swap", fails_really="Memory is needed."),
    )
    for text in ("/boot is full.", "reserved NVM_SWAP", "made or activated the swap area", "its line in /etc/fstab", "nvm_state=absent"):
        assert text in boot.message, boot.message
    assert not {"initramfs", "triggers", "Nothing"} & set(boot.message.split())
    assert trigger.message.startswith("No UPS answers. No UPS answers. Nothing was changed.")
    assert "removed resume=" in absent.message and "removed the swap area from /etc/fstab" in absent.message
    assert "nvm_state=absent" not in absent.message and absent.done[-1] == "nvm_swap"


def test_absent_keeps_what_the_next_boot_still_resumes_from(role: Roles) -> None:
    named = ["UUID=6d9bd8a5", "LABEL=NVM_SWAP", "/dev/NVM_SWAP"]
    runs = role(*(Run(*LOOKS, nvm_state="absent").answer("nvm_info", resume={"configured": ["UUID=other", name]}) for name in named))
    for run, name in zip(runs, named):
        assert "resume=" + name in run.message and "UUID=other" not in run.message and "/etc/default/grub" in run.message
        assert run.done == ["boot_resume", "nvm_info"]


# a swap file ----------------------------------------------------------------------------------------------------------

FILE_LOOKS = ["swap_file", "fstab_swap", "boot_resume"]


def test_a_swap_file_in_place_of_nvm(role: Roles) -> None:
    made, removed, same, failing, named = role(
        Run(*FILE_LOOKS, nvm_method="file", nvm_size="2G"),
        Run(*FILE_LOOKS, nvm_method="file", nvm_state="absent", nvm_swap_file="/srv/swap"),
        Run(nvm_method="file"),
        Run(*FILE_LOOKS, nvm_method="file").answer("boot_resume", fails_really="/boot is full."),
        Run(*FILE_LOOKS, nvm_method="file", nvm_state="absent").answer("nvm_info", resume={"configured": ["UUID=6d9bd8a5"]}),
    )
    assert made.looked == [*FILE_LOOKS, "nvm_info"] and made.done == [*FILE_LOOKS, "nvm_info"] and not made.failed
    options = {module: given for module, given, check_mode in made.calls if not check_mode}
    assert options["swap_file"] == {"path": "/swapfile", "size": "2G", "dram_multiple": 1, "priority": 10, "force": False}
    assert options["fstab_swap"]["device"] == options["boot_resume"]["device"] == options["nvm_info"]["device"] == "/swapfile"
    assert removed.done == ["boot_resume", "nvm_info", "fstab_swap", "swap_file"] and not removed.failed
    assert all(given.get("device", given.get("path")) == "/srv/swap" for _module, given, _check in removed.calls)
    assert same.done == [] and not same.failed and same.recap["changed"] == 0
    assert "made or activated the swap file /swapfile" in failing.message and "reserved" not in failing.message
    assert not named.failed, "the filesystem is there without the file"


# ndctl ---------------------------------------------------------------------------------------------------------------


def test_without_ndctl(role: Roles) -> None:
    """The README's first step shows what would change; removing refuses before it begins."""
    present, absent = role(
        Run(*LOOKS, nvm_reboot=True).answer("nvm_reservation", ndctl_missing=True),
        Run(*LOOKS, nvm_state="absent").answer("nvm_reservation", ndctl_missing=True),
        flags=("--check", "--diff"),
    )
    assert not present.failed and "The package ndctl would be installed" in present.output
    assert present.done == [] and present.looked == [*LOOKS, "nvm_info"]
    assert present.recap["changed"] == 2 and present.diff == 8
    assert "Install the package ndctl" in absent.message and "Nothing was changed." in absent.message and absent.done == []


# encryption ----------------------------------------------------------------------------------------------------------


def test_an_encrypted_swap_area(role: Roles) -> None:
    encrypted = {"nvm_encryption": "luks", "nvm_unlock": "key_file", "nvm_passphrase": "s3cret", "nvm_reboot": True}
    configured, plain, file = role(
        Run(*LOOKS, **encrypted), Run(*LOOKS, nvm_reboot=True), Run(*LOOKS, **encrypted, nvm_method="file")
    )
    assert "not a swap file" in file.message and file.calls == []
    looked, made = (
        {name: options for name, options, checked in configured.calls if checked == check_mode} for check_mode in (True, False)
    )
    swap = {"device": "/dev/NVM_SWAP", "encryption": "luks", "unlock": "key_file"}
    assert swap.items() <= looked["nvm_swap"].items() and swap.items() <= made["nvm_swap"].items()
    assert "passphrase" not in looked["nvm_swap"], "it would be logged with the other options of parts"
    assert made["nvm_swap"]["passphrase"] == "s3cret" and "key_file" not in made["nvm_swap"]
    for calls in (looked, made):
        assert calls["fstab_swap"]["device"] == calls["boot_resume"]["device"] == "/dev/mapper/NVM_SWAP"
    assert all("s3cret" not in str(options) for name, options, _checked in configured.calls if name != "nvm_swap")
    assert {options["device"] for name, options, _checked in plain.calls if name in LOOKS[1:]} == {"/dev/NVM_SWAP"}


def test_packages_for_encryption(role: Roles) -> None:
    (run,) = role(
        Run(*LOOKS, nvm_encryption="luks").answer("nvm_swap", packages_missing=["cryptsetup-bin", "cryptsetup-initramfs"]),
        flags=("--check",),
    )
    assert not run.failed and "The packages cryptsetup-bin, cryptsetup-initramfs would be installed." in run.output


# blockers ------------------------------------------------------------------------------------------------------------


def info(*codes: str) -> dict[str, Any]:
    blockers = [{"code": code, "message": "There is %s." % code, "remedy": "Do away with %s." % code} for code in codes]
    return {"ready": not codes, "blockers": blockers, "resume": {"configured": []}}


def rebooting(*later: dict[str, Any], **variables: Any) -> Run:
    """A machine that is not configured yet. C(later): what C(boot_resume) answers after each reboot."""
    run = Run(*LOOKS, **{"nvm_reboot": True, **variables})
    run.answers["boot_resume"] = [
        dict(CONFIGURED["boot_resume"], diff=DIFF, reboot_required=True), *(dict(CONFIGURED["boot_resume"], **each) for each in later),
    ]  # fmt: skip
    return run


def test_blockers(role: Roles) -> None:
    cannot = Run(*LOOKS, nvm_reboot=True).answer("nvm_info", **info("swap_inactive", "lockdown"))
    content = Run(*LOOKS, nvm_ignore_blockers=["lockdown", "swap_inactive"]).answer("nvm_info", **info("swap_inactive", "lockdown"))
    left, ready = rebooting({}), rebooting({}, nvm_volatile_ok=True)
    left.answers["nvm_info"] = [info("swap_inactive", "resume_unset"), info("resume_unset", "sleep_inhibited")]
    ready.answers["nvm_info"] = [info("swap_inactive"), info("nvm_volatile")]
    without = rebooting(nvm_reboot=False)
    role(cannot, content, left, ready, without)
    assert cannot.message.startswith("There is lockdown. Do away with lockdown. Nothing was changed.") and cannot.done == []
    assert content.done == [*LOOKS, "nvm_info"] and not content.failed
    for text in ("not ready to hibernate", "Do away with resume_unset.", "Do away with sleep_inhibited.", "rebooted the machine"):
        assert text in left.message, left.message
    assert left.done[:5] == [*LOOKS, "reboot"] and left.done.count("nvm_info") > 3, "an inhibitor may end"
    assert ready.done == [*LOOKS, "reboot", "nvm_info"] and not ready.failed
    assert without.done == LOOKS and "Reboot the machine before the first hibernation" in without.output and not without.failed


# reboots -------------------------------------------------------------------------------------------------------------

VAIN = {"reboot_required": True, "reboot_in_vain": "Another bootloader has started it."}


def test_a_reboot_that_does_not_help_is_told_and_not_repeated(role: Roles) -> None:
    before = [Run(nvm_reboot=reboot).answer(name, **VAIN) for name in ("boot_resume", "nvm_reservation") for reboot in (True, False)]
    vain, blocked, once = rebooting(VAIN), rebooting(VAIN), Run(nvm_reboot=True)
    blocked.answers["nvm_info"] = info("resume_unset")
    once.answers["boot_resume"] = [dict(CONFIGURED["boot_resume"], reboot_required=True), CONFIGURED["boot_resume"]]
    role(*before, vain, blocked, once)
    for run in before:
        assert run.message == "%s Nothing was changed." % VAIN["reboot_in_vain"] and run.done == []
    for run in (vain, blocked):
        assert run.message.startswith(str(VAIN["reboot_in_vain"])) and run.done.count("reboot") == 1
    assert "Do away with resume_unset." in blocked.message
    assert once.done[-2:] == ["reboot", "nvm_info"] and once.done.count("reboot") == 1, "one that is left from an earlier run"


def test_a_range_of_memory(role: Roles) -> None:
    """It takes two reboots, and one that sets no range aside is told before the swap area is made."""
    waiting = dict(CONFIGURED["boot_resume"], diff=DIFF, reboot_required=True)
    both, first = rebooting(waiting, {}), Run(*LOOKS)
    for run in (both, first):
        configured = CONFIGURED["nvm_reservation"]
        run.answers["nvm_reservation"] = [dict(configured, diff=DIFF, reboot_required=True), configured]
    never = Run(*LOOKS, nvm_reboot=True).answer("nvm_reservation", reboot_required=True)
    role(both, first, never)
    assert both.done == ["nvm_reservation", "reboot", *LOOKS, "reboot", "nvm_info"] and not both.failed
    assert first.done == ["nvm_reservation"] and "NVM_SWAP exists after a reboot" in first.output and not first.failed
    assert "/dev/NVM_SWAP does not exist" in never.message and "rebooted the machine" in never.message
    assert never.done == ["nvm_reservation", "reboot", "nvm_reservation"]
