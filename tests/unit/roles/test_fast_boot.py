# SPDX-License-Identifier: GPL-3.0-or-later
"""The role fast_boot: its tasks in check mode, with modules that only record their options; what its templates make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
ROLE = REPOSITORY / "roles" / "fast_boot"
MODULE = """\
#!/usr/bin/python
import json
from ansible.module_utils.basic import AnsibleModule
names = %(options)r
module = AnsibleModule(dict.fromkeys(names, {"type": "raw"}), supports_check_mode=True)
given = {name: value for name, value in module.params.items() if value is not None}
with open(%(log)r, "a") as log:
    log.write(json.dumps([%(name)r, given, module.check_mode]) + "\\n")
module.exit_json(changed=False, **%(answer)s)
"""
OPTIONS = {
    "boot_root": ("mode", "sources", "data_mounts"),
    "boot_slots": ("device", "state", "force", "executable", "slot"),
}
PROGRAM = """\
#!/bin/sh
echo "$@" >>%(log)s
case "$*" in
*boot*) echo '{"changed": %(changed)s, "files": ["/etc/one", "/etc/two"]}' ;;
esac
"""
INSTALL = """\
- ansible.builtin.set_fact:
    image_store_package_missing: {changed: false}
"""


class Role:
    """C(role(**variables)) runs the role in check mode, on a machine whose root is C(running), and returns C([(module, options), ...])."""

    def __init__(self, directory: Path, running: str = "writable", changed: bool = True) -> None:
        self.directory, self.log = directory, directory / "log"
        self.etc, self.venv = directory / "etc", directory / "venv"
        # No system manager is asked: where the units would change, check mode leaves them alone.
        for each in (self.etc / "fuse-store" / "pre-snapshot.d", self.etc / "fuse-store" / "post-restore.d", self.venv / "bin"):
            each.mkdir(parents=True)
        collection = directory / "ansible_collections" / "nvm" / "fastboot"
        (collection / "plugins" / "modules").mkdir(parents=True)
        (collection / "roles").mkdir()
        (collection / "roles" / "fast_boot").symlink_to(ROLE)
        other = collection / "roles" / "image_store" / "tasks"
        other.mkdir(parents=True)
        for name, text in (("install", INSTALL), ("remove_units", "[]"), ("uninstall", "[]")):
            (other / (name + ".yml")).write_text(text)
        for name, options in OPTIONS.items():
            answer = {"running": running} if name == "boot_root" else {}
            text = MODULE % {"options": options, "log": str(self.log), "name": name, "answer": answer}
            (collection / "plugins" / "modules" / (name + ".py")).write_text(text)
        program = self.venv / "bin" / "fuse-store"
        program.write_text(PROGRAM % {"log": str(directory / "commands"), "changed": json.dumps(changed)})
        program.chmod(0o755)
        play = {"hosts": "localhost", "gather_facts": False, "roles": [{"role": "nvm.fastboot.fast_boot"}]}
        (directory / "play.yml").write_text(json.dumps([play]))

    def __call__(self, **variables: Any) -> list[tuple[Any, ...]]:
        done = self.run(**variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return [tuple(json.loads(line)[:2]) for line in self.log.read_text().splitlines()]

    def run(self, *flags: str, play: str = "play.yml", **variables: Any) -> Any:
        self.log.write_text("")
        (self.directory / "commands").write_text("")
        environment = dict(
            os.environ,
            ANSIBLE_COLLECTIONS_PATH=str(self.directory),
            ANSIBLE_LOCAL_TEMP=str(self.directory / "tmp"),
            ANSIBLE_REMOTE_TEMP=str(self.directory / "tmp"),
            ANSIBLE_LOCALHOST_WARNING="false",
            ANSIBLE_NOCOLOR="true",
        )
        extra = dict(
            variables,
            ansible_python_interpreter=sys.executable,
            fast_boot_directory=str(self.etc / "fuse-store"),
            fast_boot_units_directory=str(self.etc),
            image_store_venv=str(self.venv),
        )
        # Not by the command's name: ansible-test has another ansible-core than the one on PATH.
        program = "import sys; from ansible.cli.playbook import PlaybookCLI; PlaybookCLI.cli_executor(sys.argv)"
        command = [sys.executable, "-c", program, "--connection=local", "--extra-vars", json.dumps(extra), *(flags or ("--check",)), play]
        return subprocess.run(
            command, cwd=str(self.directory), env=environment, capture_output=True, text=True, check=False
        )

    def commands(self) -> list[str]:
        return (self.directory / "commands").read_text().splitlines()

    def made(self, template: str, **variables: Any) -> str:
        """What a template makes."""
        task = {
            "ansible.builtin.template": {"src": str(ROLE / "templates" / template), "dest": str(self.directory / "made"), "mode": "0755"},
        }  # fmt: skip
        files = [str(ROLE / "defaults" / "main.yml")]
        play = {"hosts": "localhost", "gather_facts": False, "vars_files": files, "tasks": [task]}
        (self.directory / "template.yml").write_text(json.dumps([play]))
        done = self.run("--diff", play="template.yml", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return (self.directory / "made").read_text()


@pytest.fixture
def role(tmp_path: Path) -> Role:
    pytest.importorskip("ansible.cli")
    return Role(tmp_path)


def test_present(role: Role) -> None:
    """The initramfs is made of what the program has written, and of the policy."""
    program, policy = str(role.venv / "bin" / "fuse-store"), role.etc / "fuse-store" / "snapshots.toml"
    variables: dict[str, Any] = {"fast_boot_device": "/dev/pmem1", "fast_boot_root": "overlay", "fast_boot_data_mounts": ["/srv/a"]}
    policy.write_text(role.made("snapshots.toml.j2", **variables))
    policy.chmod(0o644)
    assert role(fast_boot_force=True, **variables) == [
        ("boot_root", {"mode": "writable"}),
        ("boot_slots", {"device": "/dev/pmem1", "executable": program, "force": True}),
        ("boot_root", {"mode": "overlay", "data_mounts": ["/srv/a"], "sources": ["/etc/one", "/etc/two", str(policy)]}),
    ]
    assert role.commands() == ["--json boot install --dry-run"]


def test_absent_keeps_the_images(role: Role) -> None:
    writable = ("boot_root", {"mode": "writable"})
    assert role(fast_boot_state="absent", fast_boot_root="overlay") == [writable, writable]
    assert role.commands() == ["--json boot remove --dry-run"]
    wiped = [options for module, options in role(fast_boot_state="absent", fast_boot_wipe=True) if module == "boot_slots"]
    assert [(options["state"], options["force"]) for options in wiped] == [("absent", False)]


def test_nothing_is_written_into_an_overlay(tmp_path: Path) -> None:
    pytest.importorskip("ansible.cli")
    role = Role(tmp_path, running="overlay")
    done = role.run("--diff", fast_boot_root="overlay", fast_boot_hooks=[{"name": "a", "when": "pre-snapshot", "content": "#!/bin/sh\n"}])
    assert done.returncode == 2 and "would be lost" in done.stdout and "fast_boot_reboot=true" in done.stdout, done.stdout + done.stderr
    assert "the policy, the units, the hooks" in " ".join(done.stdout.split())
    assert [json.loads(line)[2] for line in role.log.read_text().splitlines()] == [True] * 3
    assert [path for path in role.etc.rglob("*") if path.is_file()] == []


def test_a_hook_without_a_name_or_a_time_is_refused() -> None:
    yaml = pytest.importorskip("yaml")
    validator = pytest.importorskip("ansible.module_utils.common.arg_spec")
    spec = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]

    def errors(**hook: str) -> list[str]:
        found: list[str] = validator.ArgumentSpecValidator(spec).validate({"fast_boot_hooks": [hook]}).error_messages
        return found

    assert errors(name="a", when="pre-snapshot") == []
    assert errors(name="a") and errors(when="pre-snapshot") and errors(name="a", when="later")


# templates -----------------------------------------------------------------------------------------------------------------

POLICY: dict[str, Any] = {
    "fast_boot_device": '/dev/disk/by-id/a"b\\c',
    "fast_boot_keep": 3,
    "fast_boot_store": "s3://images/fleet",
    "fast_boot_store_key_file": "/etc/fuse-store/key",
    "fast_boot_applications": {"shop": {"users": ["root", 0], "interval": 60, "replace": True}, "ä.b": {"groups": ["root"]}},
    "fast_boot_policy": {"attempts": 2, "check": True, "power_loss": ["shop", "any"], "shutdown": ["cold"]},
}


def test_the_policy_has_what_the_variables_say(role: Role) -> None:
    tomllib = pytest.importorskip("tomllib")
    assert tomllib.loads(role.made("snapshots.toml.j2", **POLICY)) == {
        "device": POLICY["fast_boot_device"], "time_limit": 120, "hook_time_limit": 30, "keep": 3, "store": "s3://images/fleet",
        "key_file": "/etc/fuse-store/key", "applications": POLICY["fast_boot_applications"], "boot": POLICY["fast_boot_policy"],
    }  # fmt: skip
    assert tomllib.loads(role.made("snapshots.toml.j2", fast_boot_device="/dev/pmem1")) == {
        "device": "/dev/pmem1", "time_limit": 120, "hook_time_limit": 30,
    }  # fmt: skip


MOUNTS = """\
#!/bin/sh
# Stands for mount, umount and mountpoint: the mounted places are the files of a directory.
name=$(echo "$2$1" | tr / _)
echo "$(basename "$0") $*" >>%(directory)s/calls
case "$(basename "$0")" in
mountpoint) [ -e "%(directory)s/mounted/$name" ] ;;
umount) name=$(echo "$1" | tr / _); [ "$1" != "/srv/busy" ] && rm "%(directory)s/mounted/$name" ;;
mount) touch "%(directory)s/mounted/$(echo "$1" | tr / _)" ;;
esac
"""


class Mounted:
    """The hooks of data filesystems, with commands that only note which are mounted."""

    def __init__(self, directory: Path, places: list[str], mounted: list[str]) -> None:
        self.directory = directory
        (directory / "places").write_text("".join(place + "\n" for place in places))
        for each in ("bin", "mounted", "hooks"):
            (self.directory / each).mkdir(exist_ok=True)
        for name in ("mount", "umount", "mountpoint"):
            program = self.directory / "bin" / name
            program.write_text(MOUNTS.replace('"$2$1"', '"$2"') % {"directory": self.directory})
            program.chmod(0o755)
        for place in mounted:
            (self.directory / "mounted" / place.replace("/", "_")).touch()
        for when in ("pre-snapshot", "post-restore"):
            text = (ROLE / "files" / (when + "-data-mounts")).read_text()
            text = text.replace("/run/fuse-store-data-mounts", str(self.directory / "list"))
            text = text.replace("/etc/fuse-store/data-mounts", str(self.directory / "places"))
            (self.directory / "hooks" / when).write_text(text)

    def run(self, when: str) -> Any:
        environment = dict(os.environ, PATH="%s:%s" % (self.directory / "bin", os.environ["PATH"]))
        hook = str(self.directory / "hooks" / when)
        return subprocess.run(["sh", hook], env=environment, capture_output=True, text=True, check=False)

    def there(self) -> set[str]:
        return {path.name for path in (self.directory / "mounted").iterdir()}

    def calls(self) -> list[str]:
        return [line for line in (self.directory / "calls").read_text().splitlines() if not line.startswith("mountpoint")]


def test_data_filesystems_are_unmounted_and_mounted_again(tmp_path: Path) -> None:
    """The inner ones first; one that was not mounted stays so."""
    data = Mounted(tmp_path, ["/srv", "/srv/a b", "/other"], ["/srv", "/srv/a b"])
    assert data.run("pre-snapshot").returncode == 0 and data.there() == set()
    assert data.run("post-restore").returncode == 0 and data.there() == {"_srv", "_srv_a b"}
    assert data.calls() == ["umount /srv/a b", "umount /srv", "mount /srv", "mount /srv/a b"]
    assert data.run("post-restore").returncode == 0 and len(data.calls()) == 4, "without a snapshot there is nothing to do"


def test_a_data_filesystem_in_use_prevents_the_snapshot(tmp_path: Path) -> None:
    data = Mounted(tmp_path, ["/srv/busy", "/srv/z"], ["/srv/busy", "/srv/z"])
    done = data.run("pre-snapshot")
    assert done.returncode == 1 and "/srv/busy is in use" in done.stderr
    assert data.there() == {"_srv_busy", "_srv_z"}, "what was unmounted before is mounted again"
