# SPDX-License-Identifier: GPL-3.0-or-later
"""The network after a restore, with real interfaces, neighbours, a real DHCP client and server, and filesystems that do not answer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fuse_store.snapshot.restored.managers import MANAGERS, Interface
from tests.store.conftest import needs_root
from tests.store.snapshot.restored.namespace import done


@pytest.fixture(autouse=True)
def as_root() -> None:
    needs_root()


ANNOUNCED = """
from fuse_store.snapshot.restored import network
sh("ip addr add 192.0.2.7/24 dev ours; ip addr add 2001:db8::7/64 dev ours; ip link set ours up")
sh("ip neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev ours nud stale")
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
raw.bind(("theirs", 0x0806))
raw.settimeout(20)
link = lambda: json.loads(sh("ip -json link show ours"))[0]
wait(lambda: link()["operstate"] == "UP", "no carrier")
problems = network.renew()
frame = raw.recv(100)
print(json.dumps([problems, frame[:42].hex(), link()["address"].replace(":", ""), sh("ip neighbour show 192.0.2.9")]))
"""


def test_neighbours_are_told_and_forgotten(tmp_path: Path) -> None:
    """The frame that a neighbour receives is an ARP announcement; what was known of neighbours goes."""
    problems, frame, mac, known = done(ANNOUNCED, tmp_path)
    assert problems == [] and known == ""
    assert frame == "f" * 12 + mac + "0806" + "0001080006040001" + mac + "c0000207" + "0" * 12 + "c0000207"


DHCP = """
from fuse_store.snapshot.restored import managers, network
(place / "leases").touch()
(place / "server").write_text(
    f"start 192.0.2.100\\nend 192.0.2.100\\ninterface theirs\\nlease_file {place}/leases\\npidfile {place}/pid\\nauto_time 1\\n"
    "option subnet 255.255.255.0\\noption lease 3600\\n"
)
(place / "script").write_text(
    f'#!/bin/sh\\necho "$1" >>{place}/told\\n'
    "case $1 in bound|renew) ip addr replace $ip/24 dev ours valid_lft $lease;; "
    "deconfig) ip link set ours up; ip addr flush dev ours;; esac\\n"
)
(place / "script").chmod(0o755)
told = lambda: (place / "told").read_text().split() if (place / "told").exists() else []
server = subprocess.Popen(["busybox", "udhcpd", "-f", "-I", "192.0.2.1", f"{place}/server"], stderr=subprocess.DEVNULL)
(place / "udhcpc").symlink_to(sh("command -v busybox").strip())
sh("ip link set ours up")
client = subprocess.Popen(
    [str(place / "udhcpc"), "-f", "-i", "ours", "-s", str(place / "script"), "-t", "9", "-T", "1"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
def end():
    server.kill()
    for one in managers.clients():
        os.kill(one.process, 9)
"""


RENEWED = """
wait(lambda: "bound" in told(), "no lease")
before = told()
problems = network.renew()
wait(lambda: "renew" in told(), "not renewed")
print(json.dumps([before, problems, told()]))
end()
"""


def needs_dhcp() -> None:
    listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=False).stdout if shutil.which("busybox") else ""
    if not {"udhcpc", "udhcpd"} <= set(listed.split()):
        pytest.skip("needs busybox with udhcpc and udhcpd")


def test_a_lease_is_renewed(tmp_path: Path) -> None:
    needs_dhcp()
    before, problems, after = done(DHCP + RENEWED, tmp_path)
    assert before[-1] == "bound" and problems == [] and after[len(before) :] == ["renew"]


def test_commands_of_managers_name_the_interface() -> None:
    for manager in MANAGERS:
        for command in (*manager.renew, manager.down, manager.up):
            assert command[-1] == "{}", command
        assert not any("{}" in word for word in manager.restart)
    assert [manager.manages(Interface("none0", 9999, True, "", (), True)) for manager in MANAGERS] == [False, False, False]


SERVER = """
import errno, stat, sys
import mfusepy

class Empty(mfusepy.Operations):
    use_ns = True

    def getattr(self, path, handle=None):
        if path != "/":
            raise mfusepy.FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}

    def statfs(self, path):
        return {"f_bsize": 512, "f_blocks": 4711, "f_bavail": 1}

mfusepy.FUSE(Empty(), sys.argv[1], foreground=False, nothreads=True, subtype="sshfs", fsname="host")
"""
MOUNTED = """
from fuse_store.hibernation.machine import Machine
from fuse_store.snapshot.restored import mounts
points = [place / name for name in ("in the table", "other", "sound")]
sh(f"mount --make-rprivate /; mount --bind {place}/fstab /etc/fstab; mount '{points[0]}'")
for point in points[1:]:
    subprocess.run([str(place / "server"), "host", str(point)], check=True)
for line in sh("pgrep -af server.py").splitlines():
    if any(str(point) in line for point in points[:2]):
        os.kill(int(line.split()[0]), 9)
answers = lambda: [subprocess.run(["stat", "-f", str(point)], capture_output=True).returncode for point in points]
wait(lambda: answers() == [1, 1, 0], "they answer")
problems = mounts.try_again(Machine())
print(json.dumps([[one.replace(str(place), "") for one in problems], answers(), [os.statvfs(point).f_blocks for point in points[::2]]]))
sh(f"umount -l '{points[0]}' '{points[1]}' '{points[2]}' /etc/fstab")
"""


def test_a_filesystem_whose_server_has_gone_is_mounted_again(tmp_path: Path) -> None:
    """One that /etc/fstab has; of another one the message says what to do, and one that answers is left alone."""
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "server").write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/server.py "$2"\n')
    (tmp_path / "server").chmod(0o755)
    for name in ("in the table", "other", "sound"):
        (tmp_path / name).mkdir()
    (tmp_path / "fstab").write_text(f"# /x\n{tmp_path}/server#host {tmp_path}/in\\040the\\040table fuse defaults 0 0\n")
    problems, answers, sizes = done(MOUNTED, tmp_path)
    assert problems == ["/other (fuse.sshfs) does not answer: it is not in /etc/fstab; mount it again"], problems
    assert answers == [0, 1, 0] and sizes == [4711, 4711]
