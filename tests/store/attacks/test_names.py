# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine calls itself does not stop its capture, and does nothing to a terminal. By means of: shaping the memory and the
disks of the machine that is captured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fuse_store.cli import main
from fuse_store.errors import UsageError
from fuse_store.hibernation import filesystem_state
from fuse_store.policy.names import MAX_NAME_SIZE, recorded_tags
from fuse_store.store import Label, Store
from tests.fuzz import swsusp_encoder
from tests.fuzz.swsusp_encoder import encode, machine

NAMES = ["we/b@01", "two words", " web01 ", "..", "-rf", "=x=", "w\x1b[31meb", "w\nb", "ẅéb", "we\u202eb", "x" * 64, "a'b\"c;$(reboot)"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", durability="none", key_file=tmp_path / "key")


@pytest.mark.parametrize("name", NAMES)
def test_names_in_an_image_are_data(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(swsusp_encoder, "HOST", name)
    release = name if name.isprintable() else swsusp_encoder.RELEASE  # else the names are not those of the note's kernel
    monkeypatch.setattr(swsusp_encoder, "RELEASE", release)
    (tmp_path / "device").write_bytes(encode(machine(pages=60), 4096, "x86", "none").device)
    version = store.put(str(tmp_path / "device"), Label("m", kind="hibernation"))
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    assert (version.tags["host"], version.tags["kernel"]) == (shown, release)
    assert store.find(version.id).tags == version.tags and version.recognised == "hibernation"
    options = ["--store", str(store.path), "--key-file", str(tmp_path / "key")]
    for words in (["list"], ["show", version.id], ["list", "--json"], ["inspect", version.id]):
        capfd.readouterr()
        assert main([*words, *options]) == 0
        printed = capfd.readouterr().out
        assert all(letter == "\n" or letter.isprintable() for letter in printed) and "\u202e" not in printed
    assert main(["select", "--machine", "m", "--bootable-on", str(profile(tmp_path, host=shown)), *options]) == 0


def profile(directory: Path, **facts: str) -> Path:
    (directory / "profile").write_text(json.dumps(facts))
    return directory / "profile"


@pytest.mark.parametrize("name", [*NAMES, "y" * 300, "é" * 150, "\udcff", "\0"])
def test_names_of_filesystems_are_data(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tags = {filesystem_state.SOURCE_TAG: "disks", f"fs.{name}": f"{name} unreadable"}
    monkeypatch.setattr(filesystem_state, "tags_of_disks", lambda disks: tags)
    (tmp_path / "device").write_bytes(encode(machine(pages=60), 4096, "x86", "none").device)
    version = store.put(str(tmp_path / "device"), Label("m", kind="hibernation", tags={"x": "y"}), machine_disks=[tmp_path])
    found = store.open_image(version.id).head.tags
    assert found["x"] == "y" and found[filesystem_state.SOURCE_TAG] == "disks"
    (key,) = (key for key in found if key.startswith("fs.") and key != filesystem_state.SOURCE_TAG)
    assert len(key.encode()) <= MAX_NAME_SIZE and len(found[key].encode()) <= MAX_NAME_SIZE
    if len(name) < 100 and name != "\udcff":
        assert key == f"fs.{name}" and found[key] == f"{name} unreadable"


def test_names_that_a_user_gives_are_checked_as_before(store: Store, tmp_path: Path) -> None:
    for label in ({"tags": {"host": "a/b"}}, {"tags": {"a@b": ""}}, {"event": "a\nb"}, {"application": "../x"}):
        with pytest.raises(UsageError):
            Label("m", **label)
    with pytest.raises(UsageError):
        Label("a/b")


def test_what_is_recorded_has_limits() -> None:
    assert recorded_tags({"a": "é" * 200}) == {"a": "é" * 100}
    assert recorded_tags({"a": "x" + "\ud800" + "y"}) == {"a": "x?y"}
