# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that takes an identity, in namespaces of its own: real interfaces, files, keys and a DHCP client."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse_store.snapshot.golden import apply
from fuse_store.snapshot.golden.identity import InterfaceIdentity
from tests.store.conftest import needs_root
from tests.store.snapshot.restored.namespace import done
from tests.store.snapshot.restored.test_network import DHCP, needs_dhcp

# A machine of its own: /etc can be changed, and a fixed address is on its interface.
MACHINE = """
pathlib.Path("/run/etc/ssh").mkdir(parents=True)
hosts = "127.0.0.1 localhost\\n127.0.1.1 golden.lan golden x\\n"
for name, content in (("hostname", "golden\\n"), ("machine-id", "f" * 32 + "\\n"), ("hosts", hosts)):
    (pathlib.Path("/run/etc") / name).write_text(content)
sh("cp -a /etc/passwd /etc/group /run/etc; mount --bind /run/etc /etc")
sh("hostname golden; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; cp /etc/ssh/ssh_host_ed25519_key.pub /run/golden.pub")
sh("ip addr add 192.0.2.7/24 dev ours; ip -6 addr add 2001:db8::7/64 dev ours nodad; ip link set ours up")
sh("ip route add default via 192.0.2.1")
from fuse_store.snapshot import restored
from fuse_store.snapshot.golden import apply, links, region
from fuse_store.snapshot.golden.identity import Identity, InterfaceIdentity, parse
read = lambda path: pathlib.Path(path).read_text()
address = lambda: sorted(one["local"] for one in json.loads(sh("ip -json addr show ours"))[0]["addr_info"] if one["scope"] == "global")
state = lambda: "UP" in json.loads(sh("ip -json link show ours"))[0]["flags"]
def taken(identity):
    problems = []
    for _name, step in apply.Golden(identity, network).steps():
        problems += step()
    return [problem for problem in problems if not problem.startswith("theirs: has 192.0.2.1/24, as every machine")]
"""


@pytest.fixture(autouse=True)
def as_root() -> None:
    needs_root()


def test_the_network_goes_down_and_comes_back(tmp_path: Path) -> None:
    before, down, after, routes = done(
        MACHINE
        + """
before, routes = address(), sh("ip route show default")
network = links.down()
down = [state(), sh("ip route show default")]
problems = network.up()
assert problems == [], problems
print(json.dumps([before, down, address(), [routes, sh("ip route show default")]]))
""",
        tmp_path,
    )
    assert before == after == ["192.0.2.7", "2001:db8::7"]
    assert down == [False, ""] and routes[0] == routes[1] != ""


def test_a_lease_is_given_back_and_asked_for_again(tmp_path: Path) -> None:
    needs_dhcp()
    told, left, again = done(
        DHCP
        + """
from fuse_store.snapshot.golden import links
wait(lambda: "bound" in told(), "no lease")
network = links.down()
client.wait(10)
left = [told(), sh("ip -4 -json addr show ours")]
problems = network.up()
assert problems == [], problems
wait(lambda: told().count("bound") == 2, "no lease")
print(json.dumps([left[0], json.loads(left[1]), told()]))
end()
""",
        tmp_path,
    )
    assert told[-1] == "deconfig" and not any(link and link["addr_info"] for link in left)
    assert again.count("bound") == 2


def test_an_identity_is_taken(tmp_path: Path) -> None:
    """Names, keys and addresses are its own before the interface is up."""
    found = done(
        MACHINE
        + """
network = links.down()
was_up = []
up = links.Link.up
links.Link.up = lambda self: was_up.append([socket.gethostname(), read("/etc/machine-id"), sh("ls /etc/ssh"), state()]) or up(self)
identity = parse(b'''
hostname = "web07.lan"
machine_id = "0123456789abcdef0123456789abcdef"
[[interfaces]]
match = "ours"
mac = "02:00:00:00:00:07"
addresses = ["192.0.2.77/24", "2001:db8::77/64"]
gateway = "192.0.2.2"
dns = "192.0.2.53"
[[interfaces]]
match = "eth9"
''')
problems = taken(identity)
link = json.loads(sh("ip -json link show ours"))[0]
wait(lambda: "2001:db8::77" in address(), "no address")
wait(lambda: os.path.exists("/etc/ssh/ssh_host_rsa_key.pub"), "no RSA key")
print(json.dumps([problems, was_up[0], address(), link["address"], sh("ip route show default"), read("/etc/hosts"), read("/etc/hostname"),
    read("/etc/ssh/ssh_host_ed25519_key.pub") == read("/run/golden.pub"), read("/etc/resolv.conf"), sh("stat -c '%a %n' /etc/ssh/*")]))
""",
        tmp_path,
    )
    problems, was_up, addresses, mac, route, hosts, name, same_key, servers, modes = found
    assert problems == ["eth9: no interface of the image has this name or driver"]
    assert was_up[:2] == ["web07.lan", "0123456789abcdef" * 2 + "\n"] and was_up[3] is False
    assert "ssh_host_ed25519_key" in was_up[2] and "rsa" not in was_up[2] and "rsa" in modes
    assert addresses == ["192.0.2.77", "2001:db8::77"] and mac == "02:00:00:00:00:07" and "default via 192.0.2.2" in route
    assert hosts == "127.0.0.1 localhost\n127.0.1.1 web07.lan x\n" and name == "web07.lan\n" and servers == "nameserver 192.0.2.53\n"
    assert not same_key
    assert all(line.split()[0] == ("644" if line.endswith(".pub") else "600") for line in modes.splitlines()), modes


def test_keys_of_an_identity(tmp_path: Path) -> None:
    listed, content = done(
        MACHINE
        + """
sh("ssh-keygen -q -t rsa -b 2048 -N '' -f /etc/ssh/ssh_host_rsa_key")
assert apply.set_keys(Identity(ssh_host_keys={"ssh_host_ecdsa_key": "private", "ssh_host_ecdsa_key.pub": "public"})) == []
print(json.dumps([sorted(os.listdir("/etc/ssh")), read("/etc/ssh/ssh_host_ecdsa_key")]))
""",
        tmp_path,
    )
    assert listed == ["ssh_host_ecdsa_key", "ssh_host_ecdsa_key.pub"] and content == "private"


def test_without_an_identity_no_machine_is_as_another(tmp_path: Path) -> None:
    """A new machine-id, a name made of it, new keys, and no fixed address of the golden machine, on hardware at least."""
    machine_id, name, addresses, same_key, problems = done(
        MACHINE
        + """
network = links.down()
apply._CLASS = place / "class"  # as if it were hardware, whose driver cannot be bound again
(apply._CLASS / "ours/device/net/ours").mkdir(parents=True)
(apply._CLASS / "ours/device/driver/unbind").mkdir(parents=True)
problems = taken(Identity())
print(json.dumps([read("/etc/machine-id").strip(), socket.gethostname(), address(),
    read("/etc/ssh/ssh_host_ed25519_key.pub") == read("/run/golden.pub"), problems]))
""",
        tmp_path,
    )
    assert len(machine_id) == 32 and machine_id != "f" * 32 and name == f"golden-{machine_id[:8]}"
    assert addresses == [] and not same_key
    assert len(problems) == 3 and "its hardware address cannot be read" in problems[0], problems
    assert "of the golden machine is not used, and the identity has no address" in problems[1] and "has no address" in problems[2]


def test_a_read_only_etc(tmp_path: Path) -> None:
    """The machine-id is mounted over; the host name counts all the same; of keys the message says that they are the golden ones."""
    machine_id, name, problems = done(
        MACHINE
        + """
sh("mount -o remount,bind,ro /etc")
problems = []
for _name, step in apply.Golden(Identity("web07", "0123456789abcdef" * 2), links.Network()).steps():
    try:
        problems += step()
    except OSError as error:
        problems.append(error.strerror)
print(json.dumps([read("/etc/machine-id").strip(), socket.gethostname(), problems]))
""",
        tmp_path,
    )
    assert (machine_id, name) == ("0123456789abcdef" * 2, "web07")
    assert problems == ["the keys of the golden machine are still in use: /etc/ssh is read-only"]


def test_a_damaged_identity_counts_as_none(tmp_path: Path) -> None:
    """And it is said, with what the machine gets in its place."""
    problems, name, report = done(
        MACHINE
        + """
from fuse_store.hibernation.slots.layout import MACHINE as AT
from fuse_store.hibernation.slots.manage import create
device = place / "device"
with open(device, "wb") as file:
    file.truncate(4 << 20)
create(device)
with open(device, "r+b") as file:
    file.seek(AT[0])
    file.write(b"fuse-store-identity 1 1 " + b"0" * 64)
context = restored.Context(str(device), 1, "0f" * 16, golden=True)
restored.hooks.BEFORE = restored.hooks.AFTER = place / "none"
restored.before_snapshot(context)
assert not state()
problems = restored.after_restored(context)
print(json.dumps([problems, socket.gethostname(), read(restored.REPORT)]))
""",
        tmp_path,
    )
    (problem,) = [problem for problem in problems if "its identity is damaged" in problem]
    assert "the machine-id, host name and SSH host keys are new ones" in problem
    assert name.startswith("golden-") and "SSH host keys: " in report and "machine-id: " in report


def test_a_golden_snapshot_that_is_made_or_fails_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    states = done(
        MACHINE
        + """
restored.hooks.BEFORE = restored.hooks.AFTER = place / "none"
found = []
for after in (restored.after_created, restored.after_failed):
    context = restored.Context("/dev/x", golden=True)
    restored.before_snapshot(context)
    found.append(state())
    problems = after(context)
    found += [state(), address(), list(problems)]
print(json.dumps(found))
""",
        tmp_path,
    )
    assert states == [False, True, ["192.0.2.7", "2001:db8::7"], []] * 2


def test_files_of_network_managers() -> None:
    own = InterfaceIdentity("a", "02:00:00:00:00:07", ("192.0.2.7/24", "2001:db8::7/64"), ("192.0.2.1",), ("192.0.2.53", "2001:db8::53"))
    assert apply.networkd("a", own).endswith(
        "Name=a\n\n[Network]\nAddress=192.0.2.7/24\nAddress=2001:db8::7/64\nGateway=192.0.2.1\nDNS=192.0.2.53\nDNS=2001:db8::53\n"
    )
    assert apply.networkd("a", InterfaceIdentity("a")).endswith("[Network]\nDHCP=yes\n")
    keyfile = apply.network_manager("a", own)
    assert "cloned-mac-address=02:00:00:00:00:07\n" in keyfile
    assert "[ipv4]\nmethod=manual\naddress1=192.0.2.7/24\ngateway=192.0.2.1\ndns=192.0.2.53;\n" in keyfile
    assert "[ipv6]\nmethod=manual\naddress1=2001:db8::7/64\ndns=2001:db8::53;\n" in keyfile
    assert apply.network_manager("a", InterfaceIdentity("a")).count("method=auto\n") == 2
