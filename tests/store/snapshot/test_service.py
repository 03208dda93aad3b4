# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshot service: who may ask, what is answered, and that nobody holds it up. The snapshots themselves are not made."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_store.cli import main
from fuse_store.errors import NotFound, Refused, StoreError, UsageError
from fuse_store.snapshot import Snapshot, client
from fuse_store.snapshot.client import SnapshotError
from fuse_store.snapshot.service import policy, server, upload, varlink
from fuse_store.snapshot.service.policy import Application, Policy
from fuse_store.snapshot.targets import Wishes
from tests.store.conftest import needs_root

TAKE = f"{varlink.INTERFACE}.Take"
MADE = Snapshot(False, "ab" * 16, "/dev/pmem1", True, size=5 << 20, pause=1.5)
POLICY = """
device = "/dev/pmem1"
arm = "always"
[applications.shop]
users = ["root", 12345]
[applications.slow]
users = [12345]
interval = 60
"""
SLOTS = """
device = "/dev/pmem1"
keep = 5
store = "/srv/store"
[boot]
panic = ["shop"]
[applications.shop]
keep = 3
replace = true
[applications.other]
"""


class Service:
    """A service that runs, and answers as it is told."""

    def __init__(self, directory: Path) -> None:
        self.path, self.policy = directory / "socket", directory / "policy"
        self.policy.write_text(POLICY)
        self.taken: list[Policy] = []
        self.wishes: list[Wishes] = []
        self.outcome: Callable[[], Snapshot] = lambda: MADE
        self.listener = server.listen(self.path)

    def take(self, policy: Policy, wishes: Wishes) -> Snapshot:
        self.taken.append(policy)
        self.wishes.append(wishes)
        return self.outcome()

    def call(self, message: bytes) -> dict[str, Any]:
        with self.connection() as connection:
            connection.sendall(message + b"\0")
            return answer_of(connection)

    def connection(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        connection.settimeout(20)
        return connection


def answer_of(connection: socket.socket) -> dict[str, Any]:
    answer = b""
    while not answer.endswith(b"\0"):
        part = connection.recv(65536)
        assert part, "the service ended the connection"
        answer += part
    message: dict[str, Any] = json.loads(answer[:-1])
    return message


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    serving = server.Server(service.listener, service.policy, service.take)
    thread = threading.Thread(target=serving.serve, args=(1.0,), daemon=True)
    thread.start()
    yield service
    thread.join(20)
    assert not thread.is_alive(), "it does not end when nobody is connected"
    service.listener.close()


def as_user(monkeypatch: pytest.MonkeyPatch, user: int, *groups: int) -> None:
    monkeypatch.setattr(server, "_caller", lambda connection: (user, frozenset(groups)))


def test_a_snapshot_that_was_refused_does_not_count(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the interval. One that failed later does: the system stood still for it."""
    as_user(monkeypatch, 12345)

    def outcome(error: StoreError) -> Callable[[], Snapshot]:
        def raises() -> Snapshot:
            raise error

        return raises

    service.outcome = outcome(Refused("device /dev/pmem1", "no space.", "Remove a slot."))
    for _turn in range(2):
        with pytest.raises(client.SnapshotError) as refused:
            client.snapshot("slow", path=str(service.path))
        assert refused.value.name == "Failed" and refused.value.parameters["exit_code"] == 5
    assert main(["snapshot", "--application", "slow", "--socket", str(service.path), "--quiet"]) == 5
    service.outcome = outcome(StoreError("snapshot", "writing the image failed."))
    for name in ("Failed", "TooSoon"):
        with pytest.raises(client.SnapshotError) as refused:
            client.snapshot("slow", path=str(service.path))
        assert refused.value.name == name


def test_created_and_restored(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 12345)
    made = client.snapshot("shop", "ready", path=str(service.path))
    assert made == client.Snapshot(False, MADE.id, 5 << 20, 1.5)
    assert service.taken[0].device == "/dev/pmem1" and service.taken[0].arm == "always"
    assert service.wishes == [Wishes("shop", "ready", rearm=True)]
    service.outcome = lambda: Snapshot(True, MADE.id, "/dev/pmem1", True, slot=4)
    assert client.snapshot("shop", replace=True, keep=2, path=str(service.path)) == client.Snapshot(True, MADE.id, 0, 0.0, 4)
    assert service.wishes[1] == Wishes("shop", replace=True, keep=2, rearm=True)


def test_a_put_into_the_store_is_asked_for(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After each snapshot in a slot, also by a system that was restored, if the policy names a store. If that fails, the snapshot is there
    all the same."""
    as_user(monkeypatch, 0)
    monkeypatch.setattr(upload, "DIRECTORY", tmp_path / "run")
    wanted = tmp_path / "run/put-wanted"

    def asked(store: str, outcome: Snapshot) -> bool:
        wanted.unlink(missing_ok=True)
        service.policy.write_text(store + POLICY)
        service.outcome = lambda: outcome
        assert client.snapshot("shop", path=str(service.path)).id == MADE.id
        return wanted.exists()

    in_slot = replace(MADE, slot=4)
    assert asked('store = "/srv/store"\n', in_slot) and asked('store = "/srv/store"\n', replace(in_slot, restored=True))
    assert not asked("", in_slot) and not asked('store = "/srv/store"\n', replace(MADE, slot=None))
    assert upload.restored_images() == [MADE.id]
    monkeypatch.setattr(upload, "DIRECTORY", service.policy / "run")
    assert "not told of the snapshot" in upload.ask()


def test_who_may_not_ask_is_named(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 54321, 7)
    for application in ("shop", "slow", "unknown"):
        with pytest.raises(SnapshotError, match=f"user 54321 may not ask for snapshots of {application}") as caught:
            client.snapshot(application, path=str(service.path))
        assert caught.value.name == "NotAllowed"
    assert not service.taken
    service.policy.write_text(POLICY + "groups = [7]\n")
    assert client.snapshot("slow", path=str(service.path)).id == MADE.id, "a change of the policy counts at once"


def test_the_kernel_says_who_asks(service: Service) -> None:
    """As another user, by a process of his own."""
    needs_root()
    os.chmod(service.path.parent, 0o755)
    for directory in service.path.parents:
        if directory.stat().st_uid == 0 and directory != Path("/"):
            os.chmod(directory, directory.stat().st_mode | 0o011)
    for user, allowed in ((12345, True), (54321, False)):
        process = os.fork()
        if not process:
            try:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
                try:
                    client.snapshot("shop", path=str(service.path))
                    os._exit(0)
                except SnapshotError as error:
                    os._exit(3 if error.name == "NotAllowed" else 4)
            finally:
                os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == (0 if allowed else 3)


def test_an_application_that_asks_in_a_loop(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 12345)
    client.snapshot("slow", path=str(service.path))
    with pytest.raises(SnapshotError, match=r"slow had a snapshot just now. Ask again in \d+ seconds") as caught:
        client.snapshot("slow", path=str(service.path))
    assert 55 <= int(str(caught.value.parameters["seconds"])) <= 60
    client.snapshot("shop", path=str(service.path))
    assert len(service.taken) == 2


def test_a_failure_is_told_with_cause_and_remedy(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Snapshot:
        raise Refused("device /dev/pmem1", "too small.", "Use a larger device.")

    service.outcome = fails
    as_user(monkeypatch, 0)
    with pytest.raises(SnapshotError, match=r"device /dev/pmem1: too small\. Use a larger device\.") as caught:
        client.snapshot("any", path=str(service.path))
    assert caught.value.parameters["exit_code"] == 5
    service.policy.write_text("device = 7")
    with pytest.raises(SnapshotError, match="device: not a text"):
        client.snapshot("any", path=str(service.path))
    service.policy.unlink()
    with pytest.raises(SnapshotError, match="No such file"):
        client.snapshot("any", path=str(service.path))


def test_a_caller_who_says_nothing_holds_up_nobody(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)
    silent = [service.connection() for _number in range(server.MAX_CALLERS + 5)]
    for connection in silent[::2]:
        with contextlib.suppress(BrokenPipeError):  # more than it keeps
            connection.sendall(b'{"method": "')
    assert client.snapshot("any", path=str(service.path), timeout=20).id == MADE.id
    for connection in silent:
        connection.close()


def test_requests_are_answered_one_after_the_other(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)
    at_work = 0

    def outcome() -> Snapshot:
        nonlocal at_work
        at_work += 1
        time.sleep(0.05)
        assert at_work == 1
        at_work -= 1
        return MADE

    service.outcome = outcome
    threads = [threading.Thread(target=client.snapshot, args=("any",), kwargs={"path": str(service.path)}) for _number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(service.taken) == 8


def test_the_protocol(service: Service) -> None:
    """As varlinkctl(1) uses it; several calls in one message, and one without an answer."""
    info = service.call(b'{"method": "org.varlink.service.GetInfo"}')["parameters"]
    assert varlink.INTERFACE in info["interfaces"]
    described = service.call(json.dumps(
        {"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": varlink.INTERFACE}}
    ).encode())  # fmt: skip
    assert "method Take(application: string" in described["parameters"]["description"]
    with service.connection() as connection:
        connection.sendall(b'{"method":"a.B","oneway":true}\0{"method":"org.varlink.service.GetInfo"}\0{"method":"a.B"}\0')
        received = b""
        while received.count(b"\0") < 2:
            received += connection.recv(65536)
        first, second = map(json.loads, received.split(b"\0")[:2])
        assert "vendor" in first["parameters"] and second["error"] == "org.varlink.service.InterfaceNotFound"
    for message, error in (
        (b"", "InvalidParameter"), (b"[]", "InvalidParameter"), (b'{"method": 1}', "InvalidParameter"), (b"\xff", "InvalidParameter"),
        (b"[" * 60000, "InvalidParameter"), (b'{"method": "x.y.Z"}', "InterfaceNotFound"), (b'{"method": ".."}', "InterfaceNotFound"),
        (f'{{"method": "{varlink.INTERFACE}.Other"}}'.encode(), "MethodNotFound"), (f'{{"method": "{TAKE}"}}'.encode(), "InvalidParameter"),
        (json.dumps({"method": TAKE, "parameters": {"application": "a\nb"}}).encode(), "InvalidParameter"),
        (json.dumps({"method": TAKE, "parameters": {"application": "a\ud800"}}).encode(), "InvalidParameter"),
        (json.dumps({"method": TAKE, "parameters": {"application": ""}}).encode(), "InvalidParameter"),
        (json.dumps({"method": TAKE, "parameters": {"application": "a", "event": 5}}).encode(), "InvalidParameter"),
        *((json.dumps({"method": TAKE, "parameters": {"application": "a", **wrong}}).encode(), "InvalidParameter")
          for wrong in ({"keep": 0}, {"keep": "1"}, {"keep": True}, {"keep": 1.5}, {"replace": 1}, {"replace": "yes"})),
    ):  # fmt: skip
        assert service.call(message)["error"] == f"org.varlink.service.{error}", message
    with service.connection() as connection:
        connection.sendall(b"x" * (varlink.MAX_MESSAGE + 2))
        assert connection.recv(1) == b"", "a call without an end is not given up"
    assert not service.taken


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_message_is_a_call_or_an_error(message: bytes) -> None:
    try:
        varlink.service(varlink.parse(message), "1")
    except varlink.CallError as error:
        json.dumps(error.parameters)


@pytest.mark.parametrize(("content", "cause"), [
    ("", "device: a path below /dev"), ('device = "/etc/passwd"', "device: a path below /dev"), ("device", "Expected"), ("\xff", "utf-8"),
    ('device="/dev/x"\narm="yes"', "arm: not one of no, once, always"), ('device="/dev/x"\ntimelimit=1', "timelimit: no such setting"),
    ('device="/dev/x"\nhook_time_limit=0', "hook_time_limit: less than a second"),
    ('device="/dev/x"\ntime_limit=0', "time_limit: less than a second"),
    ('device="/dev/x"\ntime_limit=true', "time_limit: not a number"),
    ('device="/dev/x"\n[applications]\na=1', "applications.a: not a table"),
    ('device="/dev/x/../y"', "device: a path below /dev is needed"),
    ('device="/dev/x"\nstore="s3://"', "store: an absolute path is needed"),
    ('device="/dev/x"\nstore="images"', "store: an absolute path is needed, or s3://BUCKET/PREFIX"),
    ('device="/dev/x"\n[applications.any]', "applications.'any': no name of an application"),
    ('device="/dev/x"\n[applications."a/b"]', "applications.'a/b': no name"),
    ('device="/dev/x"\n[applications."a before 2026"]', "applications.'a before 2026': no name"),
    ('device="/dev/x"\n[applications.""]', "applications.'': no name"), ('device="/dev/x"\n[applications."x\\ny"]', "no name"),
    ('device="/dev/x"\n[applications.a]\ninterval=-1', "applications.a.interval: less than 0"),
    ('device="/dev/x"\n[applications.a]\n[boot]\npanic=["a/"]', "boot.panic: 'a/': the event after / is missing"),
    ('device="/dev/x"\n[applications.a]\nuser=["x"]', "applications.a.user: no such setting; there are users, groups, interval"),
    ('device="/dev/x"\nkeep=0', "keep: less than one"), ('device="/dev/x"\nstore=1', "store: not a text"),
    ('device="/dev/x"\nboot="x"', "boot: not a table"), ('device="/dev/x"\n[applications.a]\nkeep=0', "applications.a.keep: less than"),
    ('device="/dev/x"\n[applications.a]\nreplace=1', "applications.a.replace: not true or false"),
    ('device="/dev/x"\n[applications.a]\nusers=["no-such-user"]', "no such user: no-such-user"),
    ('device="/dev/x"\n[applications.a]\ngroups=[-1]', "no such group: -1"),
])  # fmt: skip
def test_a_policy_with_a_mistake(tmp_path: Path, content: str, cause: str) -> None:
    (tmp_path / "policy").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=cause):
        policy.load(tmp_path / "policy")


def test_a_policy(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        policy.load(tmp_path / "policy")
    (tmp_path / "policy").write_text(POLICY)
    read = policy.load(tmp_path / "policy")
    assert read == Policy("/dev/pmem1", "always", 120, {
        "shop": Application(frozenset({0, 12345}), frozenset()), "slow": Application(frozenset({12345}), frozenset(), 60),
    })  # fmt: skip
    assert read.wishes("shop", "ready", keep=2) == Wishes("shop", "ready", keep=2, rearm=True)
    (tmp_path / "policy").write_text(SLOTS)
    read = policy.load(tmp_path / "policy")
    assert (read.store, read.keep) == ("/srv/store", 5)
    for asked, kept in ((None, 3), (1, 1), (9, 3)):
        assert read.wishes("shop", "", keep=asked) == Wishes("shop", keep=kept, replace=True), "an application may keep fewer of its own"
    assert read.wishes("other", "", True).keep == read.wishes("unknown", "").keep == 5 and read.wishes("other", "", True).replace
    (tmp_path / "policy").chmod(0o664)
    with pytest.raises(Refused, match="may be changed by others"):
        policy.load(tmp_path / "policy")


def test_the_socket(tmp_path: Path) -> None:
    first = server.listen(tmp_path / "socket")
    with pytest.raises(Refused, match="another service answers"):
        server.listen(tmp_path / "socket")
    first.close()
    server.listen(tmp_path / "socket").close()
    (tmp_path / "file").write_text("content")
    with pytest.raises(StoreError):
        server.listen(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "content"
    with pytest.raises(SnapshotError, match="systemctl start"):
        client.snapshot("any", path=str(tmp_path / "nothing"))


def test_a_service_that_ends_or_answers_nonsense(tmp_path: Path) -> None:
    for content in (b"", b"nonsense\0", b"[]\0", b'{"parameters": {"result": "created"}}\0'):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            listener.listen()

            def answer(listener: socket.socket = listener, content: bytes = content) -> None:
                connection, _address = listener.accept()
                connection.recv(65536)
                connection.sendall(content)
                connection.close()

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(SnapshotError, match=r"ended the connection|not that of a snapshot service"):
                client.snapshot("any", path=str(tmp_path / "socket"))
            thread.join()
        (tmp_path / "socket").unlink()
