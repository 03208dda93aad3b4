# SPDX-License-Identifier: GPL-3.0-or-later
"""An attacker who can write to the store, and replaces ``store.json`` to get the next put in clear text, or under a key of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse_store.cli import main
from fuse_store.errors import Damaged, Refused, WrongKey
from fuse_store.repository.aead import Aead
from fuse_store.repository.config import Config
from fuse_store.repository.keys import known_stores
from fuse_store.store import Label, Store

SECRET = b"a secret that must not reach the store " * 200


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a version, of a user who has not told the program anything about it but to create it."""
    (tmp_path / "secret").write_bytes(SECRET)
    with Store.create(tmp_path / "store", durability="none", compression="none") as made:
        made.put(str(tmp_path / "secret"), Label("m"))
    return tmp_path / "store"


@pytest.fixture
def forge(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put another ``store.json`` in its place, made as the attacker can: with a configuration directory of their own."""

    def put_in_place(**options: Any) -> None:
        changes = options.pop("changes", {})
        with pytest.MonkeyPatch.context() as attacker:
            attacker.setenv("XDG_CONFIG_HOME", str(tmp_path / "attacker"))
            with Store.create(tmp_path / "theirs", durability="none", compression="none", **options) as theirs:
                values = {**json.loads(theirs.config.to_json()), **changes}
            aead = Aead(bytes.fromhex(values["id"]), bytes.fromhex(values["root"]), False) if values["root"] else None
        config = Config(**values)
        if aead is not None:  # whose key is in the file: everybody can compute what belongs into it
            config = Config(**{**values, "check": aead.check.hex()}).signed(aead.config_mac)
        (store / "store.json").write_bytes(config.to_json())

    yield put_in_place


def put_is_refused(store: Path, tmp_path: Path, *more: str) -> None:
    """The next put to the store fails, and nothing of it is there in clear text."""
    before = {path for path in store.rglob("*") if path.is_file()}
    code = main(["--store", str(store), "put", str(tmp_path / "secret"), "--machine", "m", *more])
    assert code in (4, 5)
    for path in store.rglob("*"):
        assert not path.is_file() or SECRET[:40] not in path.read_bytes()
    assert {path for path in store.rglob("*") if path.is_file()} == before


def test_unencrypted_with_another_id(store: Path, tmp_path: Path, forge: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    forge(encryption=False)
    put_is_refused(store, tmp_path)
    error = capfd.readouterr().err
    assert "was encrypted" in error and "Restore store.json from the key file" in error and str(known_stores.path()) in error
    put_is_refused(store, tmp_path, "--unencrypted")  # as an alias in a shell may add it, for another store


def test_unencrypted_with_the_same_id(store: Path, tmp_path: Path, forge: Callable[..., None]) -> None:
    with Store.open(store) as opened:
        store_id = opened.config.id
    forge(encryption=False, changes={"id": store_id})
    put_is_refused(store, tmp_path)
    put_is_refused(store, tmp_path, "--unencrypted")


def test_unencrypted_for_a_user_who_has_not_seen_the_store(
    store: Path, tmp_path: Path, forge: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    forge(encryption=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "new"))
    put_is_refused(store, tmp_path)
    assert "is not encrypted, and is not known here. If it should not be encrypted, add --unencrypted" in capfd.readouterr().err


def test_unencrypted_with_the_id_of_a_key_that_is_there(
    store: Path, tmp_path: Path, forge: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another location, so that nothing is known; the user says that no store is encrypted."""
    with Store.open(store) as opened:
        store_id = opened.config.id
    forge(encryption=False, changes={"id": store_id})
    shutil.copytree(store, tmp_path / "copy")
    monkeypatch.setenv("FUSE_STORE_UNENCRYPTED", "1")
    put_is_refused(tmp_path / "copy", tmp_path)


def test_the_key_of_the_attacker(store: Path, tmp_path: Path, forge: Callable[..., None]) -> None:
    forge()
    put_is_refused(store, tmp_path)


def test_the_key_of_another_store_that_both_have(store: Path, tmp_path: Path, forge: Callable[..., None]) -> None:
    """Of a store that they share: its key is where this user's keys are."""
    forge()
    for key in (tmp_path / "attacker/fuse-store/keys").iterdir():
        shutil.copy(key, tmp_path / "config/fuse-store/keys")
    put_is_refused(store, tmp_path)


def test_another_store_by_a_link(store: Path, tmp_path: Path, forge: Callable[..., None]) -> None:
    """The same, by whoever can replace the directory of the store itself."""
    forge()
    for key in (tmp_path / "attacker/fuse-store/keys").iterdir():
        shutil.copy(key, tmp_path / "config/fuse-store/keys")
    store.rename(tmp_path / "elsewhere")
    store.symlink_to(tmp_path / "elsewhere")
    put_is_refused(store, tmp_path)


def test_the_named_key_does_not_open_another_store(
    store: Path, tmp_path: Path, forge: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = (tmp_path / "config/fuse-store/keys").iterdir()
    forge()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "new"))  # nothing is known
    put_is_refused(store, tmp_path, "--key-file", str(key))


@pytest.mark.parametrize(
    "changes",
    [
        {"compression": "zstd"}, {"durability": "full"}, {"page_size": 16384}, {"level": 19}, {"level": True}, {"mac": ""},
        {"mac": "0" * 32}, {"root": "ab" * 32}, {"check": "0" * 32}, {"encryption": "none"}, {"encryption": "none", "root": "ab" * 32},
        {"format": True}, {"id": "0" * 31}, {"check": ""}, {"more": 1},
    ],
)  # fmt: skip
def test_one_setting_changed(store: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    content = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**content, **changes}))
    put_is_refused(store, tmp_path)


def test_a_checksum_for_a_store_without_encryption(tmp_path: Path) -> None:
    Store.create(tmp_path / "plain", encryption=False).close()
    content = json.loads((tmp_path / "plain/store.json").read_text())
    (tmp_path / "plain/store.json").write_text(json.dumps({**content, "page_size": 65536}))
    with pytest.raises(Damaged, match=r"store.json was changed"):
        Store.open(tmp_path / "plain")


def test_a_store_without_encryption_is_that_store(store: Path, tmp_path: Path, forge: Callable[..., None]) -> None:
    """Known as unencrypted is that one; not another one in its place."""
    Store.create(tmp_path / "plain", encryption=False).close()
    Store.open(tmp_path / "plain").close()
    forge(encryption=False)
    shutil.copy(store / "store.json", tmp_path / "plain")
    with pytest.raises(Refused, match=r"is another store than before"):
        Store.open(tmp_path / "plain")
    Store.open(tmp_path / "plain", unencrypted=True).close()


def test_one_without_encryption_may_become_encrypted(tmp_path: Path) -> None:
    Store.create(tmp_path / "plain", encryption=False).close()
    shutil.rmtree(tmp_path / "plain")
    Store.create(tmp_path / "plain").close()
    Store.open(tmp_path / "plain").close()


def test_what_is_right_is_not_refused(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved, copied, reached through a link, opened with a named key, replaced on purpose."""
    (key,) = (tmp_path / "config/fuse-store/keys").iterdir()
    shutil.copytree(store, tmp_path / "copy")
    (tmp_path / "link").symlink_to(store)
    for path in (tmp_path / "copy", tmp_path / "link", store):
        Store.open(path).close()
    monkeypatch.chdir(tmp_path)
    Store.open("store").close()
    shutil.rmtree(store)
    Store.create(store, key_file=tmp_path / "second.key").close()
    Store.open(store, key_file=tmp_path / "second.key").close()
    shutil.rmtree(store)
    shutil.move(tmp_path / "copy", store)
    with pytest.raises(Refused, match=r"is another store than before.*--key-file"):
        Store.open(store)
    Store.open(store, key_file=key).close()
    Store.open(store).close()  # now it is the one that is known


def test_a_lost_store_json_comes_from_the_key_file(store: Path, tmp_path: Path) -> None:
    """As docs/troubleshooting.md says."""
    (key,) = (tmp_path / "config/fuse-store/keys").iterdir()
    (store / "store.json").unlink()
    with pytest.raises(Damaged, match=r"store\.json is missing\. Restore it"):
        Store.open(store)
    content = next(line for line in key.read_text().splitlines() if line.startswith("store.json "))
    (store / "store.json").write_text(content.removeprefix("store.json "))
    with Store.open(store) as opened:
        assert opened.find("m/system/latest").size == len(SECRET)


def test_a_wrong_key_is_none_that_damages(store: Path, tmp_path: Path) -> None:
    """A key file with this store's id, and another key."""
    with Store.open(store) as opened:
        store_id = opened.config.id
    (tmp_path / "key").write_text(f"fuse-store key 1\nstore {store_id}\nkey {'ab' * 32}\n")
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(WrongKey, match="wrong key"):
        Store.open(store, key_file=tmp_path / "key")


@pytest.mark.parametrize("name", ["store.json", "index", "images", "packs", "states", "locks/writer"])
def test_a_fifo_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    with Store.create(tmp_path / "store", key_file=tmp_path / "key") as store:
        (tmp_path / "source").write_bytes(b"x" * 5000)
        store.put(str(tmp_path / "source"), Label("m"))
    place = tmp_path / "store" / name
    for path in [place] if "." in name or "/" in name else [path for path in place.rglob("*") if path.is_file()]:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    script = (
        "import sys\nfrom fuse_store.errors import StoreError\nfrom fuse_store.store import Label, Store\n"
        "try:\n  with Store.open(sys.argv[1], key_file=sys.argv[2]) as store:\n"
        "    for version in store.summaries(): store.open_image(version.id).read(0, 5000)\n"
        "    store.put(sys.argv[3], Label('m'))\n"
        "except (StoreError, OSError) as error:\n  print(error)\n"
    )
    arguments = [str(tmp_path / part) for part in ("store", "key", "source")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
