# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of a machine with the role image_store: run by ``verify.yml`` with the scenario's inventory."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

testinfra_hosts = ["ansible://all"]

USER = "fuse-store"
STORE, KEY, MOUNT = "/var/lib/fuse-store", "/etc/fuse-store/key", "/srv/images"
SERVICE = "fuse-store-mount.service"
AS_USER = f"runuser -u {USER} -- env FUSE_STORE={STORE} FUSE_STORE_KEY_FILE={KEY}"
LATEST = f"{MOUNT}/machines/web01/disk/latest"
# Incompressible data, a hole, text, and an end that is not aligned to a page.
SOURCE = "/var/tmp/source"
MAKE = "head -c 6M /dev/urandom >{0}; truncate -s 20M {0}; seq 200000 >>{0}; chmod 644 {0}"
ATTRIBUTES = "import json, os, sys; f = sys.argv[1]; print(json.dumps({n: os.getxattr(f, n).decode() for n in os.listxattr(f)}))"


@pytest.fixture(scope="module")
def version(host):
    """The output of ``put --json`` for a version that the store's user stored."""
    host.check_output("sh -c %s", MAKE.format(SOURCE))
    return json.loads(
        host.check_output(f"{AS_USER} fuse-store put --json {SOURCE} --machine web01 --application disk --kind disk --event molecule")
    )


def status(host, pid):
    """The lines of /proc/PID/status, by name."""
    return dict(line.split(":\t", 1) for line in host.check_output("cat /proc/%s/status", pid).splitlines() if ":\t" in line)


def main_pid(host):
    return host.check_output("systemctl show --property=MainPID --value %s", SERVICE)


def test_service_runs_now_and_at_every_boot(host):
    service = host.service(SERVICE)
    assert service.is_running
    assert service.is_enabled


def test_it_serves_without_privileges(host):
    process = status(host, main_pid(host))
    uid = str(host.user(USER).uid)
    assert uid != "0"
    assert process["Uid"].split() == [uid] * 4
    assert int(process["CapEff"], 16) == int(process["CapPrm"], 16) == int(process["CapAmb"], 16) == 0
    assert int(process["CapBnd"], 16) == 1 << 21 | 1 << 2  # what fusermount3 needs: CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH


def test_user_cannot_log_in(host):
    user = host.user(USER)
    assert (user.shell, user.home) == ("/usr/sbin/nologin", "/nonexistent")
    assert user.password in ("!", "*", "!!")


def test_store_and_key_are_the_users_alone(host, version):
    others = host.check_output(f"find {STORE} {KEY} /etc/fuse-store ! -user {USER} -o ! -group {USER} -o -perm /077")
    assert others == ""
    assert host.file(KEY).mode == 0o600
    assert host.file(STORE).mode == 0o700


def test_controller_has_a_copy_of_the_key(host):
    copy = Path(__file__).resolve().parents[2] / "build" / f"{host.ansible.get_variables()['inventory_hostname']}.key"
    assert copy.read_text() == host.file(KEY).content_string
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_mount_shows_the_version_byte_for_byte(host, version):
    assert host.check_output(f"runuser -u {USER} -- readlink {LATEST}") == version["version"]
    host.check_output(f"runuser -u {USER} -- cmp {SOURCE} {LATEST}/image")
    assert host.check_output(f"runuser -u {USER} -- stat --format=%s {LATEST}/image") == str(version["size"])


def test_checksums_hold_for_a_tool_that_is_not_ours(host, version):
    assert host.check_output(f"runuser -u {USER} -- sh -c %s", f"cd {LATEST}/ && b3sum --check B3SUMS") == "image: OK"


def test_attributes_and_information(host, version):
    attributes = json.loads(host.check_output(f"runuser -u {USER} -- python3 -c %s {LATEST}/image", ATTRIBUTES))
    expected = {"id": version["id"], "digest": version["id"], "kind": "disk", "event": "molecule", "base": "", "state": "captured"}
    assert attributes == {f"user.fuse_store.{name}": value for name, value in expected.items()}
    information = json.loads(host.check_output(f"runuser -u {USER} -- cat {LATEST}/info.json"))
    assert (information["id"], information["machine"], information["size"]) == (version["id"], "web01", version["size"])


def test_mount_is_closed_to_others(host):
    for command in (f"ls {MOUNT}", f"runuser -u nobody -- ls {MOUNT}"):
        refused = host.run(command)
        assert refused.rc != 0
        assert "Permission denied" in refused.stderr


def test_jobs_run_and_keep_what_they_shall(host, version):
    for job in ("verify", "prune"):
        assert host.service(f"fuse-store-{job}.timer").is_running
        assert host.service(f"fuse-store-{job}.timer").is_enabled
        host.check_output("systemctl start fuse-store-%s.service", job)
    kept = json.loads(host.check_output(f"{AS_USER} fuse-store list --json"))["versions"]
    assert {entry["id"]: entry["state"] for entry in kept}[version["id"]] == "verified"


def test_it_comes_back_when_it_is_killed(host, version):
    before = main_pid(host)
    host.check_output("kill -KILL %s", before)
    host.check_output("timeout 60 sh -c %s", f"until systemctl is-active --quiet {SERVICE}; do sleep 0.2; done")
    assert main_pid(host) not in ("0", before)
    host.check_output(f"runuser -u {USER} -- cmp {SOURCE} {LATEST}/image")
