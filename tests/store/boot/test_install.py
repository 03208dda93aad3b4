# SPDX-License-Identifier: GPL-3.0-or-later
"""What is put in place on a machine, and taken away; the verb; the modules that are found; the menu."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fuse_store.boot import menu, modules
from fuse_store.boot.install import install, remove
from fuse_store.cli import main
from fuse_store.cli.verbs.boot import VERB
from fuse_store.errors import NotFound
from tests.store.boot.stand import Stand

COMMAND = ("/opt/a b/fuse-store",)
POLICY = '[applications.shop]\n[boot]\npower_loss = ["shop", "any"]\n'


def machine(folder: Path, tool: str) -> Path:
    """The root of a machine with what makes its initramfs."""
    root = folder / "root"
    for path in ("bin/busybox", "etc/grub.d/10_linux", tool):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    (root / "boot/grub").mkdir(parents=True)
    return root


def tree(root: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else (path.read_bytes(), path.stat().st_mode)
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    ("tool", "rebuild"),
    [
        ("usr/share/initramfs-tools/hook-functions", ("update-initramfs", "-u", "-k", "all")),
        ("usr/lib/dracut/dracut-functions.sh", ("dracut", "--force", "--regenerate-all")),
    ],
)
def test_installed_once_and_removed(tmp_path: Path, tool: str, rebuild: tuple[str, ...]) -> None:
    root = machine(tmp_path, tool)
    before = tree(root)
    would = install(COMMAND, root, dry_run=True)
    assert tree(root) == before and would.changed
    done = install(COMMAND, root)
    assert done == would and done.commands[:2] == (rebuild, ("update-grub",))
    added = set(tree(root)) - set(before)
    assert {f"/{path}" for path in added} == set(done.files)
    again = install(COMMAND, root)
    assert not again.changed and not install(COMMAND, root, dry_run=True).changed and again.files == done.files
    for path in added:
        content = (root / path).read_bytes() if not (root / path).is_symlink() else b""
        assert b"@COMMAND@" not in content, path
        if content.startswith(b"#!"):
            subprocess.run(["bash" if b"bash" in content[:20] else "dash", "-n", root / path], check=True)
    unit = (root / "etc/systemd/system/fuse-store-session.service").read_text()
    assert "ExecStop='/opt/a b/fuse-store' --quiet boot session ended" in unit
    for link in (path for path in added if (root / path).is_symlink()):
        assert (root / link).exists(), link

    changed = root / done.files[0].lstrip("/")
    changed.chmod(0o600)
    assert install(COMMAND, root, dry_run=True).changed and install(COMMAND, root).changed
    assert install(("/elsewhere/fuse-store",), root).changed
    gone = remove(root, dry_run=True)
    assert gone.changed and set(gone.removed) == set(done.files)
    assert remove(root) == gone and tree(root) == before
    assert not remove(root).changed and remove(root).commands == ()


def test_machines_without_what_is_needed(tmp_path: Path) -> None:
    root = machine(tmp_path, "elsewhere")
    with pytest.raises(NotFound, match="neither initramfs-tools nor dracut"):
        install(COMMAND, root)
    root = machine(tmp_path / "other", "usr/lib/dracut/dracut-functions.sh")
    (root / "bin/busybox").unlink()
    with pytest.raises(NotFound, match="Install the package busybox"):
        install(COMMAND, root)
    assert not (root / "etc/systemd").exists()


def test_modules(tmp_path: Path) -> None:
    """Those of the device, of all that it is connected to and made of, and of watchdogs."""
    sys = tmp_path / "sys"
    host = sys / "devices/pci0/0000:01"

    def driver(device: Path, module: str) -> None:
        (device / "driver").mkdir(parents=True)
        (sys / "module" / module).mkdir(parents=True, exist_ok=True)
        (device / "driver/module").symlink_to(sys / "module" / module)

    driver(host, "virtio_pci")
    driver(host / "virtio0", "virtio_blk")
    (host / "virtio0/block/vda/vda1").mkdir(parents=True)
    mapped = sys / "devices/virtual/block/dm-0"
    (mapped / "slaves").mkdir(parents=True)
    (mapped / "slaves/vda1").symlink_to(host / "virtio0/block/vda/vda1")
    (sys / "class/block").mkdir(parents=True)
    for device in (mapped, host / "virtio0/block/vda/vda1"):
        (sys / "class/block" / device.name).symlink_to(device)
    assert modules.needed("/dev/vda1", tmp_path) == ("virtio_pci", "virtio_blk")
    assert modules.needed("/dev/dm-0", tmp_path) == ("virtio_pci", "virtio_blk")
    driver(sys / "devices/pci0/0000:02", "i6300esb")
    (sys / "class/watchdog/watchdog0").mkdir(parents=True)
    (sys / "class/watchdog/watchdog0/device").symlink_to(sys / "devices/pci0/0000:02")
    (sys / "module/ramoops").mkdir()
    assert modules.needed("/dev/nothing", tmp_path) == ("i6300esb", "ramoops")
    there = tmp_path / "lib/modules" / os.uname().release / "kernel/drivers/watchdog"
    there.mkdir(parents=True)
    for name in ("i6300esb.ko", "wdat-wdt.ko.xz", "iTCO_wdt.ko"):
        (there / name).touch()
    (sys / "module/wdat_wdt").mkdir()  # its class device has no device
    assert modules.needed("/dev/nothing", tmp_path) == ("i6300esb", "wdat_wdt", "ramoops")
    assert modules.needed("/dev/pmem7", tmp_path)[:2] == ("nfit", "nd_pmem")


def test_menu(tmp_path: Path) -> None:
    stand = Stand.made(tmp_path)
    stand.add("sh'op$(reboot)\"é", event="checkout")
    stand.add()
    stand.add(state="failed")
    root = machine(tmp_path / "machine", "x")
    path, changed = menu.write(stand.table(), root)
    assert changed and path == root / "boot/grub/fuse-store.cfg" and path.stat().st_mode & 0o777 == 0o644
    lines = path.read_text().splitlines()
    assert lines[1:] == [
        "fuse_store_slot 'Slot 2: shop, 2026-11-28 21:06:42 UTC' 2",
        "fuse_store_slot 'Slot 1: sh?op??reboot??? checkout, 2026-11-28 21:06:41 UTC' 1",
    ]
    assert not menu.write(stand.table(), root)[1]
    with pytest.raises(NotFound, match="GRUB"):
        menu.write(stand.table(), tmp_path / "nothing")


def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that changes nothing of this machine; the keys are those that are documented."""
    stand = Stand.made(tmp_path)
    slot = stand.add()
    stand.boot()
    policy = tmp_path / "snapshots.toml"
    policy.write_text(f'device = "/dev/{tmp_path.name}"\n{POLICY}')

    def run(*words: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(["boot", *words, "--policy", str(policy), "--json"])
        printed = capsys.readouterr()
        return code, json.loads(printed.out or printed.err)

    code, report = run("report", str(stand.device))
    assert code == 0 and (report["selected"], report["event"], report["passed_over"]) == (slot.number, "power_loss", [])
    code, chosen = run("select", str(stand.device), "--slot", "1")
    assert code == 0 and (chosen["slot"], chosen["image"]) == (1, slot.image)
    compiled = tmp_path / "compiled"
    code, checked = run("check", "--compiled", str(compiled))
    assert code == 0 and checked["power_loss"] == ["shop", "any"]
    assert compiled.read_text().splitlines()[-1] == "unknown cold|||"
    for record, settings in ((report, ()), (chosen, ()), (checked, ("attempts", "wait", "ask", "check"))):
        events = ("power_loss", "panic", "watchdog", "shutdown", "unknown")
        assert {key for key in record if key not in (*settings, *(events if settings else ()))} <= set(VERB.keys)
    policy.write_text(f'device = "/dev/{tmp_path.name}"\n{POLICY.replace("any", "amy")}')
    for words in (("check",), ("install",)):
        code, error = run(*words)
        assert code == 2 and "boot.power_loss: 'amy': no such application" in error["error"]["cause"], error
        assert str(policy) in error["error"]["thing"]
    wrong: list[tuple[str, ...]] = [("select", str(stand.device)), ("session",), ("session", "over"), ("check", "x")]
    for line in wrong:
        assert run(*line)[0] == 2
