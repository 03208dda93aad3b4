# SPDX-License-Identifier: GPL-3.0-or-later
"""initramfs-tools and dracut: settings, what an image must hold, and how a new one gets the old one's place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs import archive
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.base import Initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.modules import KernelModules
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.dracut import Dracut
    from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.initramfs_tools import InitramfsTools
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

UUID = "6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4"
RESUME = "UUID=" + UUID
MODULES = ["nd_pmem", "nfit"]
OLD, NEW = "6.1.0-49-amd64", "6.1.0-50-amd64"
STATE = "/var/lib/nvm-fastboot/initramfs.json"

# Debian 12's /lib/modules/6.1.0-50-cloud-amd64, shortened
MODULES_DEP = """\
kernel/crypto/lz4.ko: kernel/lib/lz4/lz4_compress.ko
kernel/lib/lz4/lz4_compress.ko:
kernel/drivers/acpi/nfit/nfit.ko: kernel/drivers/nvdimm/libnvdimm.ko
kernel/drivers/nvdimm/libnvdimm.ko:
kernel/drivers/nvdimm/nd_pmem.ko: kernel/drivers/nvdimm/nd_btt.ko kernel/drivers/nvdimm/libnvdimm.ko
kernel/drivers/nvdimm/nd_btt.ko: kernel/drivers/nvdimm/libnvdimm.ko
"""
BUILTIN = "kernel/lib/lzo/lzo_compress.ko\nkernel/drivers/virtio/virtio-ring.ko\n"
DRIVERS = ("acpi/nfit/nfit", "nvdimm/libnvdimm", "nvdimm/nd_pmem", "nvdimm/nd_btt")


def tools_listing(
    kernel: str, uuid: str | None = UUID, drivers: tuple[str, ...] = DRIVERS, extra: list[str] | tuple[Any, ...] = ()
) -> str:
    """What lsinitramfs prints."""
    names = [".", "bin", "conf", "conf/conf.d", "init", "scripts/local-premount/resume", "usr/bin/resume", *extra]
    if uuid:
        names += ["conf/conf.d/zz-nvm-fastboot-resume-" + uuid, "scripts/init-top/nvm-fastboot"]
    names += ["usr/lib/modules/%s/kernel/drivers/%s.ko" % (kernel, name) for name in drivers]
    return "".join(name + "\n" for name in names)


def dracut_listing(kernel: str, drivers: tuple[str, ...] = DRIVERS, resume: bool = True) -> str:
    """What lsinitrd prints (Debian 13, systemd 257)."""
    lines = [
        "Image: /boot/initrd.img-%s: 21M" % kernel,
        "========================================================================",
        "Version: ", "", "Arguments:  -q --force", "", "dracut modules:", "systemd", "resume",
        "========================================================================",
        "drwxr-xr-x   2 root     root            0 Nov 22 05:10 etc/cmdline.d",
        "crw-r--r--   1 root     root       5,   1 Nov 22 05:10 dev/console",
        "lrwxrwxrwx   1 root     root           23 Nov 22 05:10 init -> usr/lib/systemd/systemd",
        "-rwxr-xr-x   1 root     root       133504 Apr 13  2026 usr/lib/systemd/systemd",
    ]  # fmt: skip
    if resume:
        lines += [
            "-rwxr-xr-x   1 root     root        27152 Apr 13  2026 "
            "usr/lib/systemd/system-generators/systemd-hibernate-resume-generator",
            "-rw-r--r--   1 root     root          666 Apr 13  2026 "
            "usr/lib/systemd/system/systemd-hibernate-resume.service",
            "-rwxr-xr-x   1 root     root        27120 Apr 13  2026 usr/lib/systemd/systemd-hibernate-resume",
        ]
    modules = "usr/lib/modules/%s/kernel/drivers/" % kernel
    lines += ["-rw-r--r--   1 root     root        50628 Aug 29 04:19 %s%s.ko.xz" % (modules, name) for name in drivers]
    return "".join(line + "\n" for line in [*lines, "dracut cmdline:"])


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images here are a word; what is in the files of one is in test_overrides."""
    monkeypatch.setattr(archive, "contents", lambda host, image, wanted: {})


@pytest.fixture(autouse=True)
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    paths = []
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: paths.append(path))
    return paths


@pytest.fixture
def kernels(plant: Plant) -> None:
    for kernel in (OLD, NEW):
        plant(
            {
                "/boot/vmlinuz-" + kernel: "",
                "/boot/initrd.img-" + kernel: "old",
                "/lib/modules/%s/modules.dep" % kernel: MODULES_DEP,
                "/lib/modules/%s/modules.builtin" % kernel: BUILTIN,
            }
        )


def install(host: Host, plant: Plant, files: dict[str, Any]) -> None:
    plant(files)
    for path in files:
        os.chmod(host.path(path), 0o755)


@pytest.fixture
def tools(host: Host, plant: Plant, kernels: None) -> InitramfsTools:
    install(
        host,
        plant,
        {
            "/usr/sbin/mkinitramfs": "",
            "/usr/bin/lsinitramfs": "",
            "/usr/share/initramfs-tools/hook-functions": "",
            "/etc/kernel/postinst.d/initramfs-tools": "",
        },
    )
    plant({"/etc/initramfs-tools/conf.d/resume": "RESUME=/dev/sda5\n", "/etc/initramfs-tools/hooks/other": ""})
    tool: InitramfsTools = initramfs.detect(host)
    return tool


@pytest.fixture
def dracut(host: Host, plant: Plant, kernels: None) -> Dracut:
    install(
        host,
        plant,
        {
            "/usr/bin/dracut": "",
            "/usr/bin/lsinitrd": "",
            "/usr/lib/dracut/dracut-functions.sh": "",
            "/etc/kernel/postinst.d/dracut": "",
        },
    )
    tool: Dracut = initramfs.detect(host)
    return tool


class Built:
    """Records the commands of one kernel's build: the new image appears, and lists what it is told to."""

    def __init__(self, host: Host, transcript: Transcript, tool: str) -> None:
        self.host, self.transcript, self.tool = host, transcript, tool

    def __call__(self, kernel: str, listing: str, rc: int = 0) -> str:
        target = "/boot/initrd.img-%s.nvm-fastboot-new" % kernel
        if self.tool == "dracut":
            build = "env NO_POST_UPDATE_HOOKS=1 /usr/bin/dracut --quiet --force %s %s" % (target, kernel)
            look = "/usr/bin/lsinitrd "
        else:
            build, look = "/usr/sbin/mkinitramfs -o %s %s" % (target, kernel), "/usr/bin/lsinitramfs "

        def effect() -> None:
            with open(self.host.path(target), "w") as file:
                file.write("new")

        self.transcript.record(build, rc=rc, err="E: no space left" if rc else "", effect=effect)
        self.transcript.record(look + target, out=listing)
        return build


@pytest.fixture
def built(host: Host, transcript: Transcript) -> Built:
    return Built(host, transcript, "initramfs-tools")


def contents(host: Host) -> dict[str, Any]:
    return {os.path.basename(path): host.read(path) for path in host.glob("/boot/init*")}


# detection and kernels -----------------------------------------------------------------------------------------------


def test_detection(tools: InitramfsTools) -> None:
    assert tools.name == "initramfs-tools"


def test_detection_of_dracut(dracut: Dracut) -> None:
    assert dracut.name == "dracut"


def test_configuration_of_a_removed_package_is_ignored(dracut: Dracut, host: Host, plant: Plant) -> None:
    plant({"/etc/kernel/postinst.d/initramfs-tools": "", "/etc/initramfs-tools/conf.d/resume": ""})
    assert initramfs.detect(host).name == "dracut"


def test_of_two_tools_the_one_with_kernel_hooks_is_used(tools: InitramfsTools, host: Host, plant: Plant) -> None:
    plant({"/usr/bin/dracut": "", "/usr/lib/dracut/dracut-functions.sh": "", "/etc/kernel/postinst.d/dracut": ""})
    with pytest.raises(Refused) as refused:
        initramfs.detect(host)
    assert refused.value.code == "initramfs_ambiguous"
    os.unlink(host.path("/etc/kernel/postinst.d/initramfs-tools"))
    assert initramfs.detect(host).name == "dracut"


DPKG = """\
Package: dracut
Status: install ok %s
Version: 106-6

Package: initramfs-tools
Status: %s
Version: 0.148.4
Conffiles:
 /etc/kernel/postinst.d/initramfs-tools 0b3fd7f4ac8d5c2b3ed3f0b3c3d3c3d3

Package: initramfs-tools-core
Status: install ok installed
"""


@pytest.mark.parametrize(
    ("dracut_state", "tools_state", "found"),
    [
        ("installed", "deinstall ok config-files", "dracut"),  # dpkg -l: rc
        ("config-files", "install ok installed", "initramfs-tools"),
        ("installed", "install ok half-configured", None),
    ],
)
def test_a_tool_that_was_replaced_leaves_its_hooks(
    tools: InitramfsTools, host: Host, plant: Plant, dracut_state: str, tools_state: str, found: str | None
) -> None:
    """initramfs-tools-core, with the commands, stays when dracut takes the place of initramfs-tools."""
    plant({"/usr/bin/dracut": "", "/usr/lib/dracut/dracut-functions.sh": "", "/etc/kernel/postinst.d/dracut": ""})
    plant({"/var/lib/dpkg/status": DPKG % (dracut_state, tools_state)})
    if found:
        assert initramfs.detect(host).name == found
        return
    with pytest.raises(Refused) as refused:
        initramfs.detect(host)
    assert refused.value.code == "initramfs_ambiguous" and "purge initramfs-tools or dracut" in refused.value.remedy


def test_no_tool(host: Host) -> None:
    with pytest.raises(Refused) as refused:
        initramfs.detect(host)
    assert refused.value.code == "initramfs_unknown"


def test_settings_that_cannot_be_taken_out_of_the_images_are_not_passed_over(
    tools: InitramfsTools, host: Host, plant: Plant
) -> None:
    with Transaction(host) as tx:
        tools.configure(tx, RESUME, MODULES)
    assert initramfs.detect_for_removal(host).name == "initramfs-tools"
    plant({"/usr/bin/dracut": "", "/usr/lib/dracut/dracut-functions.sh": "", "/etc/kernel/postinst.d/dracut": ""})
    with pytest.raises(Refused) as refused:
        initramfs.detect_for_removal(host)
    assert refused.value.code == "settings_remain" and "zz-nvm-fastboot-resume" in refused.value.message
    tools.remove_settings(Transaction(host))
    assert initramfs.detect_for_removal(host) is None


def test_kernels_and_images(tools: InitramfsTools, plant: Plant) -> None:
    plant({"/boot/vmlinuz-1.old": "", "/boot/vmlinuz-2.dpkg-new": "", "/boot/vmlinux-6.9": "", "/boot/memtest86+": ""})
    plant({"/lib/modules/6.9/modules.dep": ""})
    assert tools.kernels() == ["6.9", OLD, NEW]
    assert tools.image(NEW) == "/boot/initrd.img-" + NEW


def test_a_kernel_of_another_system_in_a_shared_boot_is_not_ours(tools: InitramfsTools, plant: Plant) -> None:
    plant({"/boot/vmlinuz-6.19.10-200.fc43.x86_64": "", "/boot/vmlinuz-6.1.0-48-amd64": ""})
    assert tools.kernels() == [OLD, NEW]
    plant({"/var/lib/dpkg/info/linux-image-6.1.0-48-amd64.list": ""})  # ours, and its modules are gone: an error later on
    assert tools.kernels() == ["6.1.0-48-amd64", OLD, NEW]


def test_modules_of_a_kernel(host: Host, kernels: None) -> None:
    modules = KernelModules(host, NEW)
    assert modules.files("nd-pmem") == [
        "kernel/drivers/nvdimm/nd_pmem.ko", "kernel/drivers/nvdimm/nd_btt.ko", "kernel/drivers/nvdimm/libnvdimm.ko",
    ]  # fmt: skip
    assert modules.has("virtio_ring") and not modules.loadable("virtio_ring") and modules.files("virtio_ring") == []
    assert not modules.has("nd_e820")


# settings ------------------------------------------------------------------------------------------------------------


def test_initramfs_tools_settings(tools: InitramfsTools, host: Host, tmp_path: Path) -> None:
    with Transaction(host) as tx:
        assert tools.configure(tx, RESUME, ["nfit", "nd_pmem"])
    conf = "/etc/initramfs-tools/conf.d/zz-nvm-fastboot-resume-" + UUID
    hook = "/etc/initramfs-tools/hooks/nvm-fastboot"
    assert host.glob("/etc/initramfs-tools/conf.d/*")[-1] == conf  # sourced last, so that it wins
    assert host.read(conf).splitlines()[-2:] == ["RESUME=" + RESUME, "resume_offset="]
    assert os.stat(host.path(hook)).st_mode & 0o777 == 0o755
    functions = tmp_path / "hook-functions"
    functions.write_text('force_load() { echo "load $1"; }\n')
    (tmp_path / "hook").write_text(host.read(hook).replace("/usr/share/initramfs-tools/hook-functions", str(functions)))
    run = ["sh", "-eu", str(tmp_path / "hook")]
    assert subprocess.run([*run, "prereqs"], capture_output=True, check=True).stdout == b"\n"
    assert subprocess.run([*run, ""], capture_output=True, check=True).stdout == b"load nd_pmem\nload nfit\n"
    with Transaction(host) as tx:
        assert not tools.configure(tx, RESUME, ["nd_pmem", "nfit"])


@pytest.mark.parametrize(
    ("resume", "offset", "found", "kind", "resumed"),
    [
        (RESUME, "", "/dev/pmem0", "swsuspend", True),
        (RESUME, "", "/dev/pmem0s", "swsuspend", True),
        (RESUME, "", "/dev/pmem0", "swap", False),  # no image
        (RESUME, "", "", "swsuspend", False),  # nothing with that UUID yet
        (RESUME, "", "/dev/sda2", "swsuspend", False),  # may be one leg of a mirror that is not assembled yet
        (RESUME, "1234", "/dev/pmem0", "swsuspend", False),  # a swap file
        ("/dev/sda2", "", "/dev/pmem0", "swsuspend", False),
        ("", "", "/dev/pmem0", "swsuspend", False),  # noresume
    ],
)
def test_the_early_resume_acts_only_on_an_image_on_nvm(
    tools: InitramfsTools, host: Host, tmp_path: Path, resume: str, offset: str, found: str, kind: str, resumed: bool
) -> None:
    with Transaction(host) as tx:
        tools.configure(tx, RESUME, MODULES)
    script = host.read("/etc/initramfs-tools/scripts/init-top/nvm-fastboot")
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in {
        "modprobe": 'echo "modprobe $*" >>%s/log' % tmp_path,
        "blkid": 'case "$*" in "-l -t %s -o device") echo %s ;; "-p -s TYPE -o value %s") echo %s ;; *) exit 9 ;; esac'
        % (RESUME, found, found, kind),
        "resume": 'echo "resume $*" >>%s/log' % tmp_path,
    }.items():
        (commands / name).write_text("#!/bin/sh\n%s\n" % text)
        (commands / name).chmod(0o755)
    (tmp_path / "resume-file").touch()
    script = script.replace("/bin/resume", str(commands / "resume")).replace("/sys/power/resume", str(tmp_path / "resume-file"))
    (tmp_path / "script").write_text(script)
    environment = {"PATH": "%s:%s" % (commands, os.environ["PATH"]), "resume": resume, "resume_offset": offset}
    run = ["sh", "-u", str(tmp_path / "script")]
    assert subprocess.run([*run, "prereqs"], capture_output=True, check=True).stdout == b"\n"
    subprocess.run([*run, ""], env=environment, check=True)
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    assert ("resume %s\n" % found in log) is resumed
    assert not resumed or log.startswith("modprobe -a -q ")


def test_settings_for_another_swap_area_replace_the_earlier_ones(tools: InitramfsTools, host: Host) -> None:
    with Transaction(host) as tx:
        tools.configure(tx, "UUID=0000", MODULES)
    with Transaction(host) as tx:
        assert tools.configure(tx, RESUME, MODULES)
    assert [os.path.basename(path) for path in host.glob("/etc/initramfs-tools/conf.d/zz*")] == [
        "zz-nvm-fastboot-resume-" + UUID
    ]


def test_dracut_settings(dracut: Dracut, host: Host) -> None:
    with Transaction(host) as tx:
        assert dracut.configure(tx, RESUME, MODULES)
    text = host.read("/etc/dracut.conf.d/99-nvm-fastboot.conf")
    script = 'set -eu; add_dracutmodules=" a "; force_drivers=" b "\n' + text
    script += 'echo "$add_dracutmodules|$force_drivers"'
    out = subprocess.run(["bash", "-c", script], capture_output=True, check=True, text=True).stdout
    assert out == " a  resume | b  nd_pmem nfit \n"
    with Transaction(host) as tx:
        assert not dracut.configure(tx, RESUME, MODULES)


# looking inside ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listing", "lacking"),
    [
        (tools_listing(NEW), []),
        (tools_listing(NEW).replace(".ko\n", ".ko.zst\n"), []),
        (tools_listing(NEW).replace("usr/lib", "lib"), []),
        (tools_listing(NEW, drivers=DRIVERS[:-1]), ["module nd_pmem"]),  # nd_btt, which nd_pmem needs
        (tools_listing(OLD), ["module nd_pmem", "module nfit"]),
        (tools_listing(NEW).replace("init-top", "gone"), ["scripts/init-top/nvm-fastboot"]),
        (tools_listing(NEW, uuid="0"), ["conf/conf.d/zz-nvm-fastboot-resume-" + UUID]),
        (
            tools_listing(NEW, extra=["conf/conf.d/zz-resume-auto"]),
            [RESUME + " as resume device: hooks/resume chose another device (zz-resume-auto)"],
        ),
    ],
)
def test_missing_from_an_image_of_initramfs_tools(
    tools: InitramfsTools, transcript: Transcript, listing: str, lacking: list[str]
) -> None:
    transcript.record("/usr/bin/lsinitramfs /boot/initrd.img-" + NEW, out=listing)
    assert tools.missing(NEW, RESUME, MODULES) == lacking


def test_missing_in_general(tools: InitramfsTools, host: Host, transcript: Transcript) -> None:
    transcript.record("/usr/bin/lsinitramfs /boot/initrd.img-" + NEW, out="")
    found = tools.missing(NEW, RESUME, ["nd_e820", "virtio_ring"])
    assert found[0].startswith("init ") and "module nd_e820, which this kernel does not have" in found
    os.unlink(host.path("/boot/initrd.img-" + NEW))
    assert tools.missing(NEW, RESUME, MODULES) == ["/boot/initrd.img-%s does not exist" % NEW]


@pytest.mark.parametrize(
    ("listing", "lacking"),
    [
        (dracut_listing(NEW), []),
        (dracut_listing(NEW, drivers=DRIVERS[1:]), ["module nfit"]),
        (
            dracut_listing(NEW, resume=False),
            [
                "lib/systemd/systemd-hibernate-resume",
                "lib/systemd/system-generators/systemd-hibernate-resume-generator",
                "lib/systemd/system/systemd-hibernate-resume.service",
            ],
        ),
        (dracut_listing(NEW, resume=False).replace("usr/lib/systemd/systemd", "usr/bin/x"), ["lib/dracut/resume.sh"]),
    ],
)
def test_missing_from_an_image_of_dracut(
    dracut: Dracut, transcript: Transcript, listing: str, lacking: list[str]
) -> None:
    transcript.record("/usr/bin/lsinitrd /boot/initrd.img-" + NEW, out=listing, rc=1)
    assert dracut.missing(NEW, RESUME, MODULES) == lacking


def test_an_image_that_lsinitrd_cannot_read(dracut: Dracut, transcript: Transcript) -> None:
    transcript.record("/usr/bin/lsinitrd /boot/initrd.img-" + NEW, out="Need 'zstd' to unpack the initramfs.\n", rc=1)
    with pytest.raises(Refused) as refused:
        dracut.missing(NEW, RESUME, MODULES)
    assert refused.value.code == "initramfs_unreadable" and "zstd" in refused.value.message


DAMAGED = ["init (the image is damaged or empty)", "module nd_pmem", "module nfit"]


def test_a_damaged_image_lacks_everything(tools: InitramfsTools, transcript: Transcript) -> None:
    listing = tools_listing(NEW)
    transcript.record("/usr/bin/lsinitramfs /boot/initrd.img-" + NEW, listing, "cpio: premature end of archive", rc=2)
    assert set(DAMAGED) < set(tools.missing(NEW, RESUME, MODULES))


def test_a_damaged_image_of_dracut_lacks_everything(dracut: Dracut, transcript: Transcript) -> None:
    listing = dracut_listing(NEW)
    transcript.record("/usr/bin/lsinitrd /boot/initrd.img-" + NEW, listing, "cpio: premature end of archive")
    assert set(DAMAGED) < set(dracut.missing(NEW, RESUME, MODULES))


def test_a_verification_is_recorded_for_the_same_file_only(
    tools: InitramfsTools, host: Host, transcript: Transcript
) -> None:
    look = "/usr/bin/lsinitramfs /boot/initrd.img-" + NEW
    transcript.record(look, out=tools_listing(NEW))
    assert tools.missing(NEW, RESUME, MODULES) == []
    tools.finish()
    again = initramfs.detect(host)
    assert again.missing(NEW, RESUME, MODULES) == [] and again.missing(NEW, RESUME, MODULES[:1]) == []
    assert transcript.calls == [look]
    assert again.missing(NEW, RESUME, [*MODULES, "lz4"]) == ["module lz4"]
    assert again.missing(NEW, "UUID=0", MODULES) != []
    status = os.stat(host.path("/boot/initrd.img-" + NEW))
    host.replace("/boot/initrd.img-" + NEW, "bad")  # same size, and the same time of modification
    os.utime(host.path("/boot/initrd.img-" + NEW), ns=(status.st_atime_ns, status.st_mtime_ns))
    initramfs.detect(host).missing(NEW, RESUME, MODULES)
    assert transcript.calls == [look] * 3


@pytest.mark.parametrize("state", ["", "[]", "{", '{"images": {"/boot/initrd.img-%s": 1}}' % NEW, '{"images": []}'])
def test_a_damaged_state_file_counts_as_empty(
    tools: InitramfsTools, host: Host, plant: Plant, transcript: Transcript, state: str
) -> None:
    plant({STATE: state})
    transcript.record("/usr/bin/lsinitramfs /boot/initrd.img-" + NEW, out=tools_listing(NEW))
    assert initramfs.detect(host).missing(NEW, RESUME, MODULES) == []
    assert len(transcript.calls) == 1


# building ------------------------------------------------------------------------------------------------------------


def test_rebuild_replaces_by_verified_images(
    tools: InitramfsTools, host: Host, built: Built, transcript: Transcript, flushed: list[Any]
) -> None:
    os.chmod(host.path("/boot/initrd.img-" + NEW), 0o640)
    for kernel in (OLD, NEW):
        built(kernel, tools_listing(kernel))
    with Transaction(host) as tx:
        tools.rebuild(tx, [OLD, NEW], RESUME, MODULES)
    assert contents(host)["initrd.img-" + NEW] == "new"
    assert contents(host)["initrd.img-%s.nvm-fastboot-old" % NEW] == "old"
    assert os.stat(host.path("/boot/initrd.img-" + NEW)).st_mode & 0o777 == 0o640
    assert flushed == ["/boot"] and len(tx.diff) == 2
    tools.finish()
    assert contents(host) == {"initrd.img-" + OLD: "new", "initrd.img-" + NEW: "new"}
    before = list(transcript.calls)
    assert initramfs.detect(host).missing(NEW, RESUME, MODULES) == []
    assert transcript.calls == before


@pytest.mark.parametrize(
    ("before", "tool", "after"),
    [(0o644, 0o600, 0o600), (0o600, 0o644, 0o600), (0o640, 0o644, 0o640), (0o644, 0o644, 0o644), (None, 0o600, 0o600)],
)
def test_an_image_becomes_readable_for_no_one_else(
    tools: InitramfsTools, host: Host, transcript: Transcript, before: int | None, tool: int, after: int
) -> None:
    """mkinitramfs writes into the file if it exists, else it creates one, with UMASK of /etc/initramfs-tools/conf.d."""
    image = host.path("/boot/initrd.img-" + NEW)
    os.unlink(image) if before is None else os.chmod(image, before)
    target = "/boot/initrd.img-%s.nvm-fastboot-new" % NEW
    meanwhile: list[int] = []

    def build() -> None:
        umask = os.umask(0o666 & ~tool)
        try:
            with open(host.path(target), "w") as file:
                file.write("new")
        finally:
            os.umask(umask)
        meanwhile.append(os.stat(host.path(target)).st_mode & 0o777)

    transcript.record("/usr/sbin/mkinitramfs -o %s %s" % (target, NEW), effect=build)
    transcript.record("/usr/bin/lsinitramfs " + target, out=tools_listing(NEW))
    with pytest.raises(ValueError), Transaction(host) as tx:
        tools.rebuild(tx, [NEW], RESUME, MODULES)
        assert os.stat(image).st_mode & 0o777 == after
        raise ValueError
    assert meanwhile[0] & 0o077 & ~(tool if before is None else before) == 0  # nor while it is built
    if before is not None:
        assert os.stat(image).st_mode & 0o777 == before


def test_the_copy_of_an_image_is_as_private_as_the_image(
    tools: InitramfsTools, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: str, target: str) -> None:
        raise OSError

    modes = []
    copy = shutil.copy2

    def watch(source: str, target: str) -> str:
        modes.append(os.stat(target).st_mode & 0o777)
        return str(copy(source, target))

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(shutil, "copy2", watch)
    image = "/boot/initrd.img-" + NEW
    os.chmod(host.path(image), 0o600)
    assert host.link(image, image + ".old") is False
    assert modes == [0o600] and os.stat(host.path(image + ".old")).st_mode & 0o777 == 0o600


def test_dracut_builds_beside_the_old_image(dracut: Dracut, host: Host, transcript: Transcript) -> None:
    Built(host, transcript, "dracut")(NEW, dracut_listing(NEW))
    with Transaction(host) as tx:
        dracut.rebuild(tx, [NEW], RESUME, MODULES)
    assert contents(host)["initrd.img-" + NEW] == "new"


def test_check_mode_builds_nothing(tools: InitramfsTools, host: Host, transcript: Transcript) -> None:
    with Transaction(host, check_mode=True) as tx:
        tools.rebuild(tx, [NEW], RESUME, MODULES)
    assert tx.changed and transcript.calls == []


def test_an_incomplete_image_never_replaces_one(tools: InitramfsTools, host: Host, built: Built) -> None:
    built(OLD, tools_listing(OLD))
    built(NEW, tools_listing(NEW, drivers=DRIVERS[:1]))
    with pytest.raises(Refused) as refused, Transaction(host) as tx:
        tools.rebuild(tx, [OLD, NEW], RESUME, MODULES)
    assert refused.value.code == "initramfs_incomplete" and "module nd_pmem" in refused.value.message
    assert contents(host) == {"initrd.img-" + OLD: "old", "initrd.img-" + NEW: "old"}


def test_the_setting_that_keeps_files_out_of_an_image_of_dracut_is_named(
    dracut: Dracut, host: Host, plant: Plant, transcript: Transcript
) -> None:
    plant({
        "/etc/dracut.conf.d/noresume.conf": "#omit_dracutmodules+=' crypt '\nomit_dracutmodules+=\" nfs resume \"\n",
        "/etc/dracut.conf": "omit_drivers+=' floppy nd-pmem '\n",
    })  # fmt: skip
    image = "/boot/initrd.img-%s.nvm-fastboot-new" % NEW
    build = "env NO_POST_UPDATE_HOOKS=1 /usr/bin/dracut --quiet --force %s %s" % (image, NEW)
    transcript.record(build, effect=lambda: plant({image: "new"}))
    transcript.record("/usr/bin/lsinitrd " + image, dracut_listing(NEW, drivers=DRIVERS[:1], resume=False))
    with pytest.raises(Refused) as refused, Transaction(host) as tx:
        dracut.rebuild(tx, [NEW], RESUME, MODULES)
    assert refused.value.code == "initramfs_incomplete" and refused.value.remedy == (
        "The old image is unchanged. Remove nd-pmem from omit_drivers in /etc/dracut.conf. "
        "Remove resume from omit_dracutmodules in /etc/dracut.conf.d/noresume.conf.")


def test_a_failing_build_changes_nothing(tools: InitramfsTools, host: Host, built: Built) -> None:
    built(NEW, "", rc=1)
    with pytest.raises(Refused) as refused, Transaction(host) as tx:
        tools.rebuild(tx, [NEW], RESUME, MODULES)
    assert refused.value.code == "command_failed" and "no space left" in refused.value.message
    assert contents(host) == {"initrd.img-" + OLD: "old", "initrd.img-" + NEW: "old"}


def test_a_later_failure_restores_the_images(tools: InitramfsTools, host: Host, built: Built) -> None:
    os.unlink(host.path("/boot/initrd.img-" + OLD))  # one that had no image has none again
    built(OLD, tools_listing(OLD))
    built(NEW, tools_listing(NEW))
    with pytest.raises(ValueError), Transaction(host) as tx:
        tools.rebuild(tx, [OLD, NEW], RESUME, MODULES)
        raise ValueError
    assert contents(host) == {"initrd.img-" + NEW: "old"}


def test_leftovers_of_a_power_cut_are_removed(tools: InitramfsTools, host: Host, plant: Plant, built: Built) -> None:
    plant({"/boot/initrd.img-%s.nvm-fastboot-new" % OLD: "half", "/boot/initrd.img-%s.nvm-fastboot-old" % OLD: "old"})
    tools.finish()
    assert contents(host) == {"initrd.img-" + OLD: "old", "initrd.img-" + NEW: "old"}


def test_too_little_space(
    tools: InitramfsTools, host: Host, monkeypatch: pytest.MonkeyPatch, transcript: Transcript
) -> None:
    os.truncate(host.path("/boot/initrd.img-" + NEW), 40 << 20)
    os.truncate(host.path("/boot/initrd.img-" + OLD), 40 << 20)
    monkeypatch.setattr(Initramfs, "_free", lambda self: 80 << 20)
    with pytest.raises(Refused) as refused, Transaction(host) as tx:
        tools.rebuild(tx, [OLD, NEW], RESUME, MODULES)
    assert refused.value.code == "boot_full" and "80 MiB free" in refused.value.message
    assert transcript.calls == []


def test_a_kernel_without_the_driver_or_without_modules(tools: InitramfsTools, host: Host, plant: Plant) -> None:
    with pytest.raises(Refused) as refused, Transaction(host) as tx:
        tools.rebuild(tx, [NEW], RESUME, ["nd_e820"])
    assert refused.value.code == "driver_missing" and "nd_e820" in refused.value.message
    with pytest.raises(Refused) as refused, Transaction(host) as tx:
        tools.rebuild(tx, ["5.10.0-1-amd64"], RESUME, MODULES)
    assert refused.value.code == "kernel_modules_missing"


def test_hooks_of_bootloaders_run_with_the_image_at_its_final_path(
    tools: InitramfsTools, host: Host, plant: Plant, built: Built, transcript: Transcript
) -> None:
    plant({"/etc/initramfs/post-update.d/systemd-boot": ""})
    built(NEW, tools_listing(NEW))
    hooks = "run-parts --arg=%s --arg=/boot/initrd.img-%s /etc/initramfs/post-update.d" % (NEW, NEW)
    transcript.record(hooks, effect=lambda: seen.append(contents(host)["initrd.img-" + NEW]))
    seen: list[Any] = []
    with Transaction(host) as tx:
        tools.rebuild(tx, [NEW], RESUME, MODULES)
    assert seen == ["new"]


def test_hooks_copy_the_earlier_image_again_after_a_failure(
    tools: InitramfsTools, host: Host, plant: Plant, built: Built, transcript: Transcript
) -> None:
    plant({"/etc/initramfs/post-update.d/systemd-boot": ""})
    before = contents(host)["initrd.img-" + NEW]
    built(NEW, tools_listing(NEW))
    hooks = "run-parts --arg=%s --arg=/boot/initrd.img-%s /etc/initramfs/post-update.d" % (NEW, NEW)
    transcript.record(hooks, rc=1, effect=lambda: seen.append(contents(host)["initrd.img-" + NEW]))
    seen: list[Any] = []
    with pytest.raises(Refused), Transaction(host) as tx:
        tools.rebuild(tx, [NEW], RESUME, MODULES)
    assert seen == ["new", before] and contents(host)["initrd.img-" + NEW] == before


def test_removal_is_completed_after_a_power_cut(tools: InitramfsTools, host: Host, built: Built) -> None:
    with Transaction(host) as tx:
        tools.configure(tx, RESUME, MODULES)
    with Transaction(host) as tx:
        assert tools.unconfigure(tx)  # and then the power is cut
    assert host.glob("/etc/initramfs-tools/*/*nvm-fastboot*") == []
    assert set(json.loads(host.read(STATE))["images"]) == {"/boot/initrd.img-" + OLD, "/boot/initrd.img-" + NEW}
    again = initramfs.detect(host)
    for kernel in (OLD, NEW):
        built(kernel, tools_listing(kernel, uuid=None, drivers=()))
    with Transaction(host) as tx:
        assert again.unconfigure(tx)
        again.rebuild(tx, again.stale())
    again.finish()
    assert not host.exists("/var/lib/nvm-fastboot")
    assert contents(host) == {"initrd.img-" + OLD: "new", "initrd.img-" + NEW: "new"}
    assert not initramfs.detect(host).unconfigure(Transaction(host))
