# SPDX-License-Identifier: GPL-3.0-or-later
"""Other users of the machine: what they may read, write, own or hold of a user's key files and list of stores."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fuse_store.errors import Refused, StoreError, UsageError
from fuse_store.repository.backends import PosixBackend
from fuse_store.repository.keys import known_stores, private_file
from fuse_store.repository.keys.keyfile import default_key_file
from fuse_store.repository.keys.known_stores import Known
from fuse_store.store import Store
from fuse_store.user_directories import cache_home, config_home
from tests.store.conftest import fork, needs_root, wait

NOBODY = 65534


@pytest.fixture
def key(tmp_path: Path) -> Path:
    Store.create(tmp_path / "store", durability="none", key_file=tmp_path / "key").close()
    return tmp_path / "key"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o644, 0o666, 0o777])
def test_a_key_file_that_others_can_use(tmp_path: Path, key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(Refused) as caught:
        Store.open(tmp_path / "store", key_file=key)
    assert str(caught.value) == f"key file {key}: other users have access to it. Run 'chmod 600 {key}'."
    key.chmod(0o400)
    Store.open(tmp_path / "store", key_file=key).close()


def test_a_key_file_of_another_user(tmp_path: Path, key: Path) -> None:
    needs_root()
    os.chown(key, NOBODY, NOBODY)
    with pytest.raises(Refused, match=r"belongs to user nobody. Run 'chown root "):
        Store.open(tmp_path / "store", key_file=key)
    os.chown(tmp_path / "store", NOBODY, NOBODY)  # both are that user's: root works for them
    Store.open(tmp_path / "store", key_file=key).close()


def test_a_key_that_a_shell_gives_through_a_pipe(tmp_path: Path, key: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, key.read_bytes())
    os.close(writer)
    Store.open(tmp_path / "store", key_file=f"/dev/fd/{reader}").close()
    os.close(reader)


@pytest.mark.parametrize("name", ["store/key", "store", "store/packs/deep/key", "link/key"])
def test_a_key_inside_of_the_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("store")
    with pytest.raises((Refused, UsageError), match="inside the store"):
        Store.create(tmp_path / "store", key_file=tmp_path / name)
    assert not (tmp_path / "store").exists()


def test_the_users_configuration_inside_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "store/config"))
    with pytest.raises(Refused, match="inside the store"):
        Store.create(tmp_path / "store")
    assert not (tmp_path / "store").exists()


# the list of stores -------------------------------------------------------------------------------------------------------


def test_it_is_the_users_alone(tmp_path: Path, key: Path) -> None:
    place = known_stores.path()
    assert place == tmp_path / "config/fuse-store/stores" and place.stat().st_mode & 0o777 == 0o600
    place.chmod(0o622)
    with pytest.raises(Refused, match="other users have access to it"):
        Store.open(tmp_path / "store", key_file=key)


@pytest.mark.parametrize("text", ["", "fuse-store stores 2\n", "fuse-store stores 1\n\n", "fuse-store stores 1\nab encrypted \"/x\"\n"])
def test_a_damaged_one_is_no_empty_one(tmp_path: Path, key: Path, text: str) -> None:
    """Else whoever makes a disk full, or cuts the power, gets the first opening once more."""
    known_stores.path().write_text(text)
    with pytest.raises(Refused, match="Correct or delete it"):
        Store.open(tmp_path / "store", key_file=key)


@pytest.mark.parametrize("name", ["a b", 'quo"te', "new\nline", "\udcff", "ü", "back\\slash", "encrypted"])
def test_any_path(tmp_path: Path, name: str) -> None:
    known_stores.remember(str(tmp_path / name), Known("ab" * 16, True))
    known_stores.remember(str(tmp_path / "other"), Known("cd" * 16, False))
    with pytest.raises(Refused, match="was encrypted"):
        known_stores.admit(str(tmp_path / name), Known("ab" * 16, False), told=True)
    known_stores.admit(str(tmp_path / "other"), Known("cd" * 16, False), told=False)


def test_many_processes_at_once(tmp_path: Path) -> None:
    """Each adds its own; none is lost."""
    stores = {f"s3://bucket/{number}": Known(f"{number:032x}", number % 2 == 0) for number in range(24)}
    children = [fork(partial(known_stores.remember, url, store)) for url, store in stores.items()]
    assert [wait(child) for child in children] == [0] * len(children)
    for url, store in stores.items():
        known_stores.admit(url, store, told=False)
    assert len(known_stores.path().read_text().splitlines()) == 1 + len(stores)


def test_a_process_that_sleeps_with_the_lock_keeps_nobody_out(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_stores, "MAX_WAIT", 0.2)
    known_stores.path().unlink()
    with open(known_stores.path().with_name("stores.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.monotonic()
        Store.open(tmp_path / "store", key_file=key).close()
        assert time.monotonic() - started < 5 and not known_stores.path().exists()


def test_a_configuration_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encrypted store needs no memory; one without encryption says so when it is made, and can be used when told each time."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    Store.create(tmp_path / "store", key_file=tmp_path / "key").close()
    Store.open(tmp_path / "store", key_file=tmp_path / "key").close()
    with pytest.raises(StoreError, match=r"cannot be remembered .*--unencrypted"):
        Store.create(tmp_path / "plain", encryption=False)
    assert not (tmp_path / "plain").exists()
    Store.create(tmp_path / "plain", encryption=False, unencrypted=True).close()
    Store.open(tmp_path / "plain", unencrypted=True).close()


def test_who_loses_the_race_to_create_a_store_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PosixBackend, "is_free", lambda self: True)
    Store.create(tmp_path / "store", durability="none").close()
    with pytest.raises(Refused, match="another process created a store there"):
        Store.create(tmp_path / "store", encryption=False)
    Store.open(tmp_path / "store").close()


def test_root_leaves_nothing_in_the_home_of_another_user(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sudo may keep HOME."""
    needs_root()
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", NOBODY, NOBODY)
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Store.open(tmp_path / "store", key_file=key).close()
    assert not any((tmp_path / "home").iterdir())


# no HOME -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [None, "", "~", "relative"])
def test_a_service_without_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.chdir(tmp_path)
    assert default_key_file(bytes(16)) == Path("/root/.config/fuse-store/keys") / f"{'0' * 32}.key"
    assert cache_home() == Path("/root/.cache/fuse-store")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # which the specification has ignored
    assert config_home() == Path("/root/.config/fuse-store")
    monkeypatch.setenv("HOME", "/home/admin")
    assert config_home() == Path("/home/admin/.config/fuse-store")


def test_a_user_without_a_home_directory(tmp_path: Path) -> None:
    """A user that is in no password database: init refuses, unless a key file is named; nothing is made in the working directory."""
    needs_root()
    script = """
import os, sys
os.setgroups([]); os.setgid(54321); os.setuid(54321)
from fuse_store.cli import main
sys.exit(main(sys.argv[1:]))
"""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)

    def run(*arguments: str) -> tuple[int, str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    code, error = run("--store", "s", "init")
    assert code == 5 and error == (
        "fuse-store: home directory: the user has none. Set XDG_CONFIG_HOME or HOME to a directory. Or name the key file with --key-file.\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert run("--store", "s", "--key-file", "key", "init")[0] == 0
    assert run("--store", "s", "--key-file", "key", "list")[0] == 0
    assert run("--store", "s", "list")[0] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "s"]


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_file, "MAX_SIZE", 10)
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "file").chmod(0o600)
    assert private_file.read_private(tmp_path / "file", "file") == b"x" * 10
    assert private_file.read_private(Path("/dev/zero"), "file") == b""
