# SPDX-License-Identifier: GPL-3.0-or-later
"""What verbs say of damage, and of files that this user may not use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuse_store.cli.verbs import verify
from tests.store.cli.conftest import Run, image, put


def test_a_lost_pack_is_a_few_lines(run: Run, store: Path, tmp_path: Path) -> None:
    made = put(run, image(tmp_path / "a", 2048))
    for pack in store.glob("packs/*/*.pack"):
        content = bytearray(pack.read_bytes())
        content[100:-2000:1000] = b"x" * len(content[100:-2000:1000])
        pack.chmod(0o600)
        pack.write_bytes(content)
    done = run("verify")
    lines = done.err.splitlines()
    assert done.code == 4 and len(lines) == verify.MAX_PROBLEMS + 2
    assert all(made in line for line in lines[:-1]) and "more errors of this kind. Use --json to see all." in lines[-2]
    problems = run("verify", "--json").json["versions"][0]["problems"]
    assert len(problems) >= 60
    for text in (done.err, *problems):
        assert "fuse-store verify" not in text, "verify does not say to run verify"


def change(pack: Path, at: int) -> None:
    content = bytearray(pack.read_bytes())
    content[at] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)


def test_repair_that_loses_nothing_says_how_to_remove_the_damaged_packs(run: Run, store: Path, tmp_path: Path) -> None:
    """The table of a pack is damaged, and every block can be read."""
    made = put(run, image(tmp_path / "a", 64))
    (pack,) = store.glob("packs/*/*.pack")
    change(pack, -20)
    assert run("verify").code == 4
    done = run("repair")
    assert done.code == 0 and f"fuse-store: pack {pack.stem}: pack trailer missing. Blocks found that can be read: 2.\n" in done.err
    assert "No version lacks anything" in done.err and "fuse-store gc" in done.err
    assert not any(words in done.err for words in ("pack pack", "estore", "fuse-store repair", "Run 'fuse-store verify' to list"))
    assert run("gc", "--now").code == 0 and not pack.exists()
    assert run("verify").code == 0 and run("get", made, "back").code == 0
    assert run("repair").err == "The index lists every block of every version. Run 'fuse-store verify' to read them.\n"


def test_repair_names_what_is_lost_once_and_says_what_to_do(run: Run, store: Path, tmp_path: Path) -> None:
    made = put(run, image(tmp_path / "a", 1))
    (pack,) = store.glob("packs/*/*.pack")
    change(pack, 2000)
    assert "The other versions" not in run("verify").err, "there are none"
    first, second, last = run("repair").err.splitlines()
    assert first.startswith(f"fuse-store: pack {pack.stem}: block ") and first.endswith("Blocks found that can be read: 0.")
    assert second == f"fuse-store: image {made}: 1 block: extent 0x0: not in any pack."
    assert "1 version incomplete, 1 pack damaged. Nothing was removed. Restore " in last and "fuse-store gc" in last
    assert run("repair", "--json").code == 4 and run("repair", "--json").json["lost"].keys() == {made}


def test_a_collection_that_cannot_tell_what_is_needed_is_damage(run: Run, store: Path, tmp_path: Path) -> None:
    put(run, image(tmp_path / "a", 1))
    (pack,) = store.glob("packs/*/*.pack")
    away = pack.rename(tmp_path / "away")
    for arguments in (["gc"], ["gc", "--dry-run"]):
        done = run(*arguments, "--json")
        assert done.code == 4 and done.error["type"] == "damaged" and "Nothing was freed" in done.error["remedy"]
    away.rename(pack)
    made = put(run, image(tmp_path / "a", 1, 2))  # a collection has not read it before
    (manifest,) = store.glob(f"images/*/{made}.img")
    change(manifest, 40)
    done = run("gc", "--json")
    assert done.code == 4 and done.error["image"] == made and "remove --damaged" in done.error["remedy"]


def test_many_damaged_versions_are_a_few_lines(run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_VERSIONS", 2)
    for number in range(5):
        put(run, image(tmp_path / "a", 2, seed=number))
    for pack in store.glob("packs/*/*.pack"):
        pack.unlink()
    done = run("verify")
    assert done.code == 4 and "fuse-store: 3 more versions damaged. Use --json to see all.\n" in done.err
    assert "5 of 5 versions damaged" in done.err and "fuse-store verify" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["put", "/dir/closed", "--machine", "m"], ["get", "web01/system/latest", "/dir/x"],
        ["--key-file", "/dir/closed", "list"], ["--store", "/dir/closed/store", "list"],
        ["--store", "/dir/store", "init", "--key-file", "k"],
        ["init", "--store", "new", "--key-file", "/dir/key"], ["inspect", "/dir/closed"], ["mount", "/dir"],
        ["select", "--machine", "web01", "--bootable-on", "/dir/closed"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_permission_denied_is_one_exit_code(run: Run, store: Path, tmp_path: Path, arguments: list[str]) -> None:
    """Whatever the verb, and whatever the file: as another user than the one who owns it, who is stopped where root is not."""
    put(run, image(tmp_path / "a", 1))
    (tmp_path / "dir").mkdir()
    image(tmp_path / "dir/closed", 1)
    (tmp_path / "dir").chmod(0)
    words = [word.replace("/dir", str(tmp_path / "dir")) if word.startswith("/dir") else word for word in arguments]
    words = [word if word not in ("k", "new") else str(tmp_path / word) for word in words]
    script = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for capability in range(64):
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: root without its privileges
os.execv(sys.executable, [sys.executable, "-m", "fuse_store.cli", *sys.argv[1:]])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True, check=False)
    (tmp_path / "dir").chmod(0o700)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "ermission denied" in done.stderr
