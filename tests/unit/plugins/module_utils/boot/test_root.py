# SPDX-License-Identifier: GPL-3.0-or-later
"""boot_root from end to end, on recorded machines with initramfs-tools and with dracut, and on one that runs on the overlay."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import root
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.root import mounts
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.root.kinds import DRACUT_CONF
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

KERNELS = ("6.1.0-49-amd64", "6.12.107+deb13-amd64")
IMAGES = ["/boot/initrd.img-" + kernel for kernel in KERNELS]
CONFIGURATION = "/boot/grub/grub.cfg"
SETTINGS = "/etc/default/grub.d/zz-nvm-fastboot-overlay.cfg"
SCRIPT = "/usr/share/initramfs-tools/scripts/init-bottom/overlayroot"
HOOK = "/etc/initramfs-tools/hooks/other"
BUILT = "/var/lib/nvm-fastboot/built.json"
DROP_INS = "/etc/systemd/system/"
WORDS = {"initramfs-tools": "overlayroot=tmpfs:swap=1,recurse=0 fsck.mode=skip", "dracut": "rd.live.overlay.overlayfs=1 fsck.mode=skip"}
FSTAB = """\
# a comment
UUID=1 / ext4 errors=remount-ro 0 1
UUID=2 /boot/efi vfat umask=0077,nofail 0 1
UUID=3 /srv/data ext4 defaults 0 2
UUID=4 /srv/a\\040b%c ext4 defaults 0 2
UUID=5 none swap sw 0 0
UUID=6 /media/stick ext4 noauto 0 0
UUID=7 /usr/share/doc squashfs ro 0 0
tmpfs /tmp tmpfs size=1G 0 0
server:/home /home nfs rw 0 0
"""
WRITABLE = "22 1 254:2 / / rw,relatime shared:1 - ext4 /dev/vda2 rw\n"
OVERLAID = """\
22 1 0:30 / / rw,relatime shared:1 - overlay overlayroot rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay,workdir=/w
23 22 254:2 %s /media/root-ro ro,relatime shared:2 - ext4 /dev/vda2 ro
24 22 0:31 / /media/root-rw rw shared:3 - tmpfs tmpfs-root rw
"""


class Machine:
    """A machine whose commands do what the settings they find say."""

    def __init__(self, host: Host, tool: str) -> None:
        self.host, self.tool = host, tool
        self.calls: list[str] = []
        self.foreign = "quiet"
        host._run = self.run

    def run(self, argv: list[str], data: str | None = None) -> tuple[int, str, str]:
        self.calls.append(" ".join(argv))
        name = os.path.basename(argv[0])
        if name == "env":
            argv = [argv[2], "-o", argv[-2], argv[-1]]
            name = "dracut"
        made: dict[str, Callable[..., None]] = {
            "grub-mkconfig": self.mkconfig, "mkinitramfs": self.mkinitramfs, "dracut": self.dracut,
        }  # fmt: skip
        if name in made:
            made[name](*argv[2:])
        if name == "lsinitramfs":
            return 0, Path(self.host.path(argv[1])).read_text(), ""
        if name == "lsinitrd":
            names = Path(self.host.path(argv[1])).read_text().split()
            return 0, "".join("-rw-r--r-- 1 root root 1 Jan 1 00:00 %s\n" % each for each in names), ""
        return 0, "", ""

    def mkconfig(self, target: str) -> None:
        line = re.search(r"^GRUB_CMDLINE_LINUX=.*'(.*)'$", self.host.read(SETTINGS, ""), re.M)
        arguments = self.foreign + (" " + line.group(1) if line else "")
        self.host.replace(target, "".join(
            "menuentry '%s' {\n\tlinux /vmlinuz-%s root=/dev/sda1 ro %s\n}\n" % (kernel, kernel, arguments) for kernel in KERNELS
        ))  # fmt: skip

    def mkinitramfs(self, target: str, kernel: str) -> None:
        names = ["init"] + (["scripts/init-bottom/overlayroot"] if self.host.exists(SCRIPT) else [])
        self.host.replace(target, "\n".join(names) + "\n")

    def dracut(self, target: str, kernel: str) -> None:
        wanted = "overlayfs" in self.host.read(DRACUT_CONF, "")
        self.host.replace(target, "init\n" + ("var/lib/dracut/hooks/mount/01-mount-overlayfs.sh\n" if wanted else ""))

    def go(self, mode: str, check_mode: bool = False, **options: Any) -> tuple[bool, dict[str, Any]]:
        del self.calls[:]
        with Transaction(self.host, check_mode) as tx:
            result = root.apply(tx, mode, **options)
        return tx.changed, result

    def state(self) -> dict[str, bytes]:
        top = Path(self.host.path(""))
        return {str(path): path.read_bytes() for name in ("etc", "boot", "var") for path in (top / name).rglob("*") if path.is_file()}

    def ran(self, word: str) -> list[str]:
        return [call for call in self.calls if word in call]


@pytest.fixture(params=["initramfs-tools", "dracut"])
def tool(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def machine(tool: str, host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)
    programs = {
        "initramfs-tools": ("/usr/sbin/mkinitramfs", "/usr/bin/lsinitramfs", "/usr/share/initramfs-tools/hook-functions",
                            "/etc/kernel/postinst.d/initramfs-tools", SCRIPT),
        "dracut": ("/usr/bin/dracut", "/usr/bin/lsinitrd", "/usr/lib/dracut/dracut-functions.sh", "/etc/kernel/postinst.d/dracut"),
    }[tool]  # fmt: skip
    for path in (*programs, "/usr/sbin/grub-mkconfig"):
        plant({path: "default/grub.d"})
        os.chmod(host.path(path), 0o755)
    for kernel in KERNELS:
        plant({"/boot/vmlinuz-" + kernel: "", "/boot/initrd.img-" + kernel: "init\n", "/lib/modules/%s/modules.dep" % kernel: ""})
    plant({"/etc/fstab": FSTAB, "/proc/self/mountinfo": WRITABLE})
    made = Machine(host, tool)
    made.mkconfig(CONFIGURATION)
    return made


def test_overlay_and_back(machine: Machine, tool: str) -> None:
    before = machine.state()
    assert machine.go("overlay", check_mode=True)[0] and machine.state() == before
    assert all(call.startswith("/usr/bin/lsinit") for call in machine.calls)
    changed, result = machine.go("overlay", data_mounts=["/srv/data/"])
    assert changed and result == {
        "mode": "overlay", "running": "writable", "reboot_required": True, "initramfs": tool, "rebuilt": IMAGES,
    }  # fmt: skip
    assert machine.host.read(CONFIGURATION).count(" quiet %s\n" % WORDS[tool]) == len(KERNELS)
    assert all("overlay" in machine.host.read(image) for image in IMAGES)
    after = machine.state()
    assert machine.go("overlay", data_mounts=["/srv/data"])[0] is False and machine.calls == [] and machine.state() == after

    changed, result = machine.go("writable")
    assert changed and not result["reboot_required"]
    assert machine.host.read(CONFIGURATION).encode() == before[machine.host.path(CONFIGURATION)]
    if tool == "dracut":
        assert machine.state() == before
    assert set(machine.state()) == set(before)
    assert machine.go("writable")[0] is False and machine.calls == []


def test_other_filesystems_become_read_only(machine: Machine, tool: str) -> None:
    machine.go("overlay", data_mounts=["/srv/data"])
    found = {path[len(DROP_INS):]: machine.host.read(path) for path in machine.host.glob(DROP_INS + "*.d/*")}
    assert "Options=umask=0077,nofail,ro\n" in found.pop("boot-efi.mount.d/nvm-fastboot.conf")
    assert "Options=defaults,ro\n" in found.pop("srv-a\\x20b\\x25c.mount.d/nvm-fastboot.conf")
    if tool == "dracut":
        assert "ConditionKernelCommandLine=!rd.live.overlay.overlayfs\n" in found.pop("systemd-remount-fs.service.d/nvm-fastboot.conf")
    assert found == {}
    machine.go("overlay", data_mounts=["/srv/data", "/boot/efi"])
    assert not machine.host.exists(DROP_INS + "boot-efi.mount.d")


def test_guarded_makes_only_fat_read_only(machine: Machine, plant: Plant) -> None:
    """The root stays writable; what is mounted follows at once, and back."""
    plant({"/proc/self/mountinfo": WRITABLE + "25 22 254:1 / /boot/efi rw shared:4 - vfat /dev/vda1 rw\n"})
    before = machine.state()
    assert machine.go("guarded", check_mode=True)[0] and machine.calls == [] and machine.state() == before
    changed, result = machine.go("guarded")
    assert changed and not result["reboot_required"] and machine.calls == ["mount -o remount,ro /boot/efi"]
    assert machine.host.glob(DROP_INS + "*.d/*") == [DROP_INS + "boot-efi.mount.d/nvm-fastboot.conf"]
    assert not machine.go("guarded")[0] and machine.calls == []
    assert machine.go("writable")[0] and machine.calls == ["mount -o remount,rw /boot/efi"] and machine.state() == before
    assert not machine.go("guarded", data_mounts=["/boot/efi"])[0]


@pytest.mark.parametrize("place", ["/boot/efi", "/srv/a b%c", "/.hidden/.x", "/srv/data-1", "/srv/ä", "/a//b/"])
def test_names_of_mount_units(place: str) -> None:
    done = subprocess.run(["systemd-escape", "--path", "--suffix=mount", place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("systemd-escape")
    assert mounts.unit(place) == done.stdout.strip()


def test_images_are_built_again_when_a_source_changes(machine: Machine, plant: Plant) -> None:
    plant({HOOK: "one"})
    sources = [HOOK, "/etc/initramfs-tools/hooks/missing"]
    changed, result = machine.go("writable", sources=sources)
    assert changed and result["rebuilt"] == IMAGES and machine.ran("grub-mkconfig")
    assert machine.go("writable", sources=sources) == (False, dict(result, rebuilt=[])) and machine.calls == []
    plant({HOOK: "two"})
    assert machine.go("writable", check_mode=True, sources=sources)[0] and machine.calls == []
    assert machine.go("writable", sources=sources)[1]["rebuilt"] == IMAGES
    os.unlink(machine.host.path(HOOK))
    assert machine.go("writable")[1]["rebuilt"] == IMAGES, "what was removed is still in the images"
    assert not machine.host.exists(BUILT) and not machine.go("writable")[0]


def test_the_image_of_a_new_kernel_is_not_built_twice(machine: Machine, plant: Plant) -> None:
    plant({HOOK: "one"})
    machine.go("writable", sources=[HOOK])
    known = json.loads(machine.host.read(BUILT))
    del known["built"][IMAGES[0]]
    plant({BUILT: json.dumps(known)})
    late = os.stat(machine.host.path(HOOK)).st_ctime_ns + 10**9
    os.utime(machine.host.path(IMAGES[0]), ns=(late, late))
    assert machine.go("writable", sources=[HOOK])[1]["rebuilt"] == [] and machine.calls == []


def test_an_image_without_the_overlay_never_replaces_one(machine: Machine, tool: str) -> None:
    before = machine.state()
    for name in ("dracut", "mkinitramfs"):
        setattr(machine, name, lambda target, kernel: machine.host.replace(target, "init\n"))
    with pytest.raises(Refused) as refused:
        machine.go("overlay")
    assert refused.value.code == "initramfs_incomplete" and "overlay" in refused.value.message and machine.state() == before


@pytest.mark.parametrize("tool", ["initramfs-tools"])
def test_a_missing_package_is_named(machine: Machine) -> None:
    os.unlink(machine.host.path(SCRIPT))
    with pytest.raises(Refused) as refused:
        machine.go("overlay")
    assert refused.value.code == "overlay_missing" and "overlayroot" in refused.value.remedy
    assert machine.go("overlay", check_mode=True)[0], "an earlier task would install it"


@pytest.mark.parametrize("tool", ["dracut"])
def test_flags_of_the_root_are_refused_with_dracut(machine: Machine) -> None:
    machine.foreign = "rootflags=subvol=@"
    machine.mkconfig(CONFIGURATION)
    for check_mode in (True, False):
        with pytest.raises(Refused) as refused:
            machine.go("overlay", check_mode)
        assert refused.value.code == "conflicting_argument" and "rootflags=subvol=@" in refused.value.message


# the running system is on the overlay ------------------------------------------------------------------------------------------


@pytest.fixture
def overlaid(machine: Machine, plant: Plant) -> Machine:
    """The disk below is what C(mount) puts at its place, which here is a copy of the bootloader's configuration."""
    machine.go("overlay", data_mounts=["/srv/data"])
    plant({"/proc/self/mountinfo": OVERLAID % "/", "/run/nvm-fastboot-root" + CONFIGURATION: machine.host.read(CONFIGURATION)})
    return machine


def test_nothing_is_written_into_the_overlay(overlaid: Machine, plant: Plant) -> None:
    before = overlaid.state()
    assert overlaid.go("overlay", data_mounts=["/srv/data"])[1]["reboot_required"] is False
    plant({HOOK: "new"})
    before = overlaid.state()
    with pytest.raises(Refused) as refused:
        overlaid.go("overlay", data_mounts=["/srv/data"], sources=[HOOK])
    assert refused.value.code == "root_is_overlay" and overlaid.state() == before and overlaid.calls == []
    assert overlaid.go("overlay", check_mode=True, data_mounts=["/srv/data"], sources=[HOOK])[0]


def test_the_next_boot_gets_a_writable_root(overlaid: Machine, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    monkeypatch.setattr(os, "rmdir", lambda path: None)  # the copy is no mount
    below = "/run/nvm-fastboot-root" + CONFIGURATION
    assert overlaid.go("writable", check_mode=True)[0] and overlaid.calls == []
    changed, result = overlaid.go("writable")
    assert changed and result["reboot_required"] and result["running"] == "overlay"
    assert overlaid.calls == [
        "mount -o ro /dev/vda2 /run/nvm-fastboot-root", "mount -o remount,rw /run/nvm-fastboot-root",
        "mount -o remount,ro /run/nvm-fastboot-root", "umount /run/nvm-fastboot-root",
    ]  # fmt: skip
    for path in (below, CONFIGURATION):
        text = overlaid.host.read(path)
        assert WORDS[tool].split()[0] not in text and text.count("linux /vmlinuz") == text.count(" ro quiet\n") == len(KERNELS)
    assert not overlaid.go("writable")[0]


def test_a_subvolume_below_the_overlay(overlaid: Machine, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "rmdir", lambda path: None)
    plant({"/proc/self/mountinfo": OVERLAID % "/@"})
    overlaid.go("writable")
    assert overlaid.calls[0] == "mount -o ro,subvol=/@ /dev/vda2 /run/nvm-fastboot-root"


def test_boot_on_a_filesystem_of_its_own(overlaid: Machine, plant: Plant) -> None:
    plant({"/proc/self/mountinfo": OVERLAID % "/" + "25 22 254:1 / /boot ro shared:4 - ext4 /dev/vda1 ro\n"})
    assert overlaid.go("writable")[0]
    assert overlaid.calls == ["mount -o remount,rw /boot", "mount -o remount,ro /boot"]
    assert "overlay" not in overlaid.host.read(CONFIGURATION)


def test_an_overlay_of_unknown_make_is_refused(overlaid: Machine, plant: Plant) -> None:
    plant({"/proc/self/mountinfo": OVERLAID.splitlines()[0] + "\n"})
    for mode in root.MODES:
        with pytest.raises(Refused) as refused:
            overlaid.go(mode)
        assert refused.value.code == "overlay_unknown"


def test_a_failure_on_the_disk_leaves_it_closed(overlaid: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Host, path: str, content: str, mode: int = 0o644) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(Host, "replace", failing)
    with pytest.raises(OSError):
        overlaid.go("writable")
    assert overlaid.calls[-2:] == ["mount -o remount,ro /run/nvm-fastboot-root", "umount /run/nvm-fastboot-root"]
