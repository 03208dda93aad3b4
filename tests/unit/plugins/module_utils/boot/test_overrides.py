# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the files of an initramfs: settings of others against ours, and what keeps a file from being read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs import archive
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot.cpio import cpio, names

if TYPE_CHECKING:
    from collections.abc import Callable

    from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.base import Initramfs
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

UUID = "6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4"
RESUME = "UUID=" + UUID
KERNEL = "6.1.0-50-amd64"
IMAGE = "/boot/initrd.img-" + KERNEL
OURS = "conf/conf.d/zz-nvm-fastboot-resume-" + UUID
MODULES = ["nd_pmem", "nfit"]
DRIVERS = ["lib/modules/%s/kernel/drivers/%s.ko" % (KERNEL, name) for name in ("nfit", "libnvdimm", "nd_pmem")]
# Debian 12 and 13: what every image of theirs has
TOOLS: dict[str, str | bytes] = {
    "init": "#!/bin/sh\n",
    "conf/initramfs.conf": "MODULES=most\nBUSYBOX=auto\nKEYMAP=n\nCOMPRESS=zstd\nDEVICE=\nNFSROOT=auto\nRUNSIZE=10%\nFSTYPE=auto\n",
    "conf/arch.conf": "DPKG_ARCH=amd64\n",
    OURS: "RESUME=%s\nresume_offset=\n" % RESUME,
    "scripts/init-top/nvm-fastboot": '[ -w /sys/power/resume ] && [ -z "${resume_offset:-}" ] || exit 0\n/bin/resume "$device"\n',
    "scripts/local-premount/resume": 'if [ -n "${resume_offset?}" ]; then\n\t/bin/resume "${DEV}" "${resume_offset}"\nfi\n',
    "usr/bin/resume": b"\x7fELF",
    **dict.fromkeys(DRIVERS, b"\x7fELF"),
}
# https://wiki.debian.org/Hibernation/Hibernate_Without_Swap_Partition
WIKI = "RESUME=UUID=0b4c8c1e-2f1d-4c57-9c41-2c9a3de0f3a5 resume_offset=3471360\n"
DRACUT: dict[str, str | bytes] = {
    "init": "#!/bin/sh\n",
    "usr/lib/dracut/resume.sh": "#!/bin/sh\n",
    "etc/cmdline.d/20-force_drivers.conf": "rd.driver.pre=nd_pmem\nrd.driver.pre=nfit\n",
    **dict.fromkeys(DRIVERS, b"\x7fELF"),
}


@pytest.fixture
def kernel(plant: Plant) -> None:
    plant({
        "/boot/vmlinuz-" + KERNEL: "",
        "/lib/modules/%s/modules.dep" % KERNEL: "kernel/drivers/nfit.ko: kernel/drivers/libnvdimm.ko\n"
        "kernel/drivers/nd_pmem.ko: kernel/drivers/libnvdimm.ko\nkernel/drivers/libnvdimm.ko:\n",
    })


@pytest.fixture
def tools(host: Host, plant: Plant, transcript: Transcript, kernel: None) -> Callable[..., Initramfs]:
    """C(tools({name: text}))): initramfs-tools, and an image with these files beside those that every image has."""
    plant({"/usr/sbin/mkinitramfs": "", "/usr/share/initramfs-tools/hook-functions": ""})

    def _tools(files: dict[str, str], links: dict[str, str] | None = None) -> Initramfs:
        image = cpio({"kernel/x86/microcode/AuthenticAMD.bin": b"\1" * 13}) + gzip.compress(cpio({**TOOLS, **files}, links))
        plant({IMAGE: image})
        transcript.record("lsinitramfs " + IMAGE, out="\n".join([*TOOLS, *files, *(links or {})]))
        tool: Initramfs = initramfs.detect(host)
        return tool

    return _tools


@pytest.fixture
def dracut(host: Host, plant: Plant, transcript: Transcript, kernel: None) -> Callable[..., Initramfs]:
    plant({"/usr/bin/dracut": "", "/usr/lib/dracut/dracut-functions.sh": ""})

    def _dracut(files: dict[str, str]) -> Initramfs:
        plant({IMAGE: gzip.compress(cpio({**DRACUT, **files}))})
        lines = ["-rw-r--r--   1 root     root        50628 Aug 29 04:19 " + name for name in [*DRACUT, *files]]
        transcript.record("lsinitrd " + IMAGE, out="\n".join(lines))
        tool: Initramfs = initramfs.detect(host)
        return tool

    return _dracut


def found(tool: Initramfs) -> list[str]:
    assert tool.missing(KERNEL, RESUME, MODULES) == []
    return [str(override) for override in tool.overrides(KERNEL, RESUME, MODULES)]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"conf/conf.d/resume": WIKI},  # sourced before ours, which empties the offset
        {"conf/conf.d/resume": "RESUME=none\n"},  # resume= on the kernel command line counts more
        {"conf/conf.d/zz-resume": "# noresume=y\n#resume_offset=3471360\nresume_offset=0 # noresume=y\n"},
        {"conf/conf.d/zz-resume": 'NOTE="resume_offset=5"\nmy_resume_offset=5\n'},
        {"scripts/local-premount/mine": "# echo 5 > /sys/power/resume_offset\ncat /sys/power/resume >/dev/null\n"},
        {"scripts/local-top/mine": 'resume=$(cat /x)\necho "ROOT=/dev/sda1" >>/conf/param.conf\n'},
        {"etc/modprobe.d/blacklist.conf": "blacklist pcspkr\n# blacklist nd_pmem\ninstall nd_pmem /sbin/modprobe -i nd_pmem\n"},
        {"etc/modprobe.d/blacklist.conf": "blacklist libnvdimm\n"},  # heeded only for what is loaded by its own name
    ],
)
def test_what_does_no_harm(tools: Callable[..., Initramfs], files: dict[str, str]) -> None:
    assert found(tools(files)) == []


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("conf/conf.d/zzz-swapfile", WIKI, "resume_offset=3471360, which is the place of a swap file"),
        ("conf/conf.d/zz-resume", 'export resume_offset="$(cat /offset)"\n', "resume_offset=$(cat /offset), which"),
        ("conf/initramfs.conf", "noresume=y\n", "noresume=y, which switches resuming off"),
        ("conf/conf.d/a", "true; noresume=n\n", "noresume=n, which switches resuming off"),  # any value
        ("scripts/local-premount/swapfile", "echo 5 > /sys/power/resume_offset\n", "a command that writes to /sys/power/resume_offset"),
        ("scripts/init-premount/other", 'echo 8:2 | tee "/sys/power/resume" >/dev/null\n', "a command that writes to /sys/power/resume"),
        ("scripts/local-top/other", 'echo "noresume=y" >>/conf/param.conf\n', "noresume=y, which replaces"),
        ("scripts/local-top/other", "echo resume=/dev/sda5 >>/conf/param.conf\n", "resume=/dev/sda5, which replaces"),
        ("etc/modprobe.d/nvm.conf", "blacklist nd-pmem\n", "'blacklist nd-pmem', so that the driver is not loaded"),
        ("lib/modprobe.d/nvm.conf", "install libnvdimm /bin/false\n", "'install libnvdimm /bin/false', so that"),
    ],
)
def test_what_keeps_an_image_from_resuming(tools: Callable[..., Initramfs], name: str, text: str, what: str) -> None:
    (override,) = found(tools({name: text}))
    assert override.startswith("%s has %s" % (name, what))


@pytest.mark.parametrize("text", [WIKI, "#resume_offset=5\n", "true;resume_offset=5 # 6\n", "export resume_offset=5\n"])
@pytest.mark.parametrize("name", ["resume", "zzz"])
def test_the_files_are_read_as_init_sources_them(tools: Callable[..., Initramfs], tmp_path: Path, name: str, text: str) -> None:
    """The loop of init in Debian 12 and 13, with a shell."""
    confs = {OURS: str(TOOLS[OURS]), "conf/conf.d/" + name: text}
    (tmp_path / "image/conf/conf.d").mkdir(parents=True)
    for path, content in confs.items():
        (tmp_path / "image" / path).write_text(content)
    script = 'for conf in conf/conf.d/*; do\n\t[ -f "${conf}" ] && . "./${conf}"\ndone\necho "${resume_offset-}"\n'
    out = subprocess.run(["sh", "-c", script], cwd=tmp_path / "image", capture_output=True, check=True, text=True, env={"LC_ALL": "C"})
    assert bool(found(tools({"conf/conf.d/" + name: text}))) is (out.stdout.strip() not in ("", "0"))


def test_a_setting_in_an_image_that_is_not_built_with_ours(tools: Callable[..., Initramfs], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of an earlier version have ours without resume_offset=: the offset of the other file stays, as init sources it."""
    monkeypatch.setitem(TOOLS, OURS, "RESUME=%s\n" % RESUME)
    tool = tools({"conf/conf.d/resume": WIKI})
    assert found(tool)[0].startswith("conf/conf.d/resume has resume_offset=3471360")
    assert not tool.complete(KERNEL, RESUME, MODULES)
    assert tool.remedy(tool.overrides(KERNEL, RESUME, MODULES)[0]).startswith("Run boot_resume, which overrides it")


def test_a_setting_behind_a_symbolic_link(tools: Callable[..., Initramfs]) -> None:
    tool = tools({"etc/local/offset": WIKI}, links={"conf/conf.d/zzz": "../../etc/local/offset"})
    assert found(tool)[0].startswith("conf/conf.d/zzz has resume_offset=3471360")


def test_the_remedy_names_the_file_on_the_machine(tools: Callable[..., Initramfs], plant: Plant) -> None:
    tool = tools({"conf/conf.d/zzz": WIKI, "etc/modprobe.d/nvm.conf": "blacklist nfit\n"})
    driver, offset = sorted(tool.overrides(KERNEL, RESUME, MODULES), key=lambda override: override.name, reverse=True)
    assert "a hook writes conf/conf.d/zzz: remove that" in tool.remedy(offset)
    plant({"/etc/initramfs-tools/conf.d/zzz": WIKI, "/lib/modprobe.d/nvm.conf": "", "/etc/modprobe.d/nvm.conf": "blacklist nfit\n"})
    assert tool.remedy(offset).startswith("Remove it from /etc/initramfs-tools/conf.d/zzz, ")
    assert "/etc/modprobe.d/nvm.conf" in tool.remedy(driver)


def test_an_image_that_would_not_resume_replaces_none(
    tools: Callable[..., Initramfs], host: Host, transcript: Transcript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)
    tool, new = tools({}), IMAGE + ".nvm-fastboot-new"
    built = cpio({**TOOLS, "conf/conf.d/zzz": WIKI})
    transcript.record("mkinitramfs -o %s %s" % (new, KERNEL), effect=lambda: Path(host.path(new)).write_bytes(built))
    transcript.record("lsinitramfs " + new, out="\n".join(names(built)))
    before = host.read_bytes(IMAGE)
    with pytest.raises(Refused) as refused, Transaction(host) as tx:
        tool.rebuild(tx, [KERNEL], RESUME, MODULES)
    assert refused.value.code == "initramfs_overridden" and "conf/conf.d/zzz has resume_offset=3471360" in refused.value.message
    assert host.read_bytes(IMAGE) == before and not host.exists(new)


def test_records_of_an_earlier_version_do_not_say_what_is_in_the_files(
    tools: Callable[..., Initramfs], host: Host, plant: Plant
) -> None:
    tool = tools({"conf/conf.d/zzz": WIKI})
    status = os.stat(host.path(IMAGE))
    stat = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    entry = '{"stat": %s, "resume": "%s", "modules": ["nd_pmem", "nfit"]}' % (stat, RESUME)
    plant({"/var/lib/nvm-fastboot/initramfs.json": '{"version": 1, "images": {"%s": %s}}' % (IMAGE, entry)})
    again = initramfs.detect(host)
    assert again.overrides(KERNEL, RESUME, MODULES) and not again.complete(KERNEL, RESUME, MODULES)
    assert again.stale() == [KERNEL]  # it was built with settings of ours
    del tool


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, None),
        ({"etc/cmdline.d/20-resume.conf": " resume=/dev/sda5\n"}, None),  # comes before resume= of the kernel command line
        ({"etc/cmdline.d/20-x.conf": "rd.driver.blacklist=nd_pmem\n"}, None),  # rd.driver.pre loads it before
        ({"etc/cmdline.d/01-default.conf": "quiet noresume\n"}, "etc/cmdline.d/01-default.conf has noresume"),
        ({"etc/modprobe.d/x.conf": "install nfit /bin/true\n"}, "etc/modprobe.d/x.conf has 'install nfit /bin/true'"),
    ],
)
def test_settings_of_others_in_an_image_of_dracut(dracut: Callable[..., Initramfs], files: dict[str, str], what: str | None) -> None:
    overrides = found(dracut(files))
    assert [override.startswith(what or "?") for override in overrides] == ([True] if what else [])


# reading an image ----------------------------------------------------------------------------------------------------


def command(*words: str) -> Callable[[bytes], bytes]:
    return lambda data: subprocess.run(words, input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("late", [b"", b"\0" * 8], ids=("end", "zeros"))
@pytest.mark.parametrize(
    "compress",
    [
        bytes,
        gzip.compress,
        lzma.compress,
        bz2.compress,
        pytest.param(command("zstd", "-c"), marks=pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd")),
        pytest.param(command("lz4", "-l", "-c"), marks=pytest.mark.skipif(shutil.which("lz4") is None, reason="no lz4")),
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    ],
    ids=("none", "gzip", "xz", "bzip2", "zstd", "lz4", "lzma"),
)
def test_each_compression(host: Host, plant: Plant, compress: Callable[[bytes], bytes], late: bytes) -> None:
    os.makedirs(host.path("/usr/bin"))
    for name in ("zstd", "lz4"):
        os.symlink(shutil.which(name) or name, host.path("/usr/bin/" + name))
    early = cpio({"kernel/x86/microcode/GenuineIntel.bin": b"\1" * 9})
    first, second = cpio({"./conf/a": "one", "usr/lib/big": b"\2" * 300000}), cpio({"conf/a": "two", "lib/x": "x"})
    plant({IMAGE: early + compress(first + second) + late})
    assert archive.contents(host, IMAGE, {"conf/a", "lib/x"}.__contains__) == {"conf/a": "two", "lib/x": "x"}


GOOD = cpio({"conf/a": "one", "conf/b": "two"})


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"", "empty or cut off"),
        (bytes(64), "empty or cut off"),
        (b"no image", "compression is unknown"),
        (GOOD[:300], "ends in the file"),
        (gzip.compress(GOOD)[:60], "cannot be read"),
        (gzip.compress(b"no archive"), "damaged"),
        (GOOD.replace(b"00000007", b"FFFFFFFF", 1), "a name in it has"),
        (GOOD.replace(b"00000003", b"FFFFFFF0", 1), "more than 16 MiB"),
        (GOOD.replace(b"00000003", b"0000000x", 1), "invalid literal"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "zstd is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # an image has the time in it, and workers of xdist must agree
)
def test_a_damaged_image_is_refused(host: Host, plant: Plant, image: bytes, says: str) -> None:
    plant({IMAGE: image})
    with pytest.raises(Refused) as refused:
        archive.contents(host, IMAGE, lambda name: True)
    assert refused.value.code == "initramfs_unreadable" and says in refused.value.message and refused.value.remedy


# the squashed part ---------------------------------------------------------------------------------------------------

SQUASHED: dict[str, Any] = {  # what lsinitrd of dracut 106 prints, with unsquashfs and with fsck.erofs
    "squashfs": """\
-rw-r--r--   1 root     root            0 Nov 29 09:08 init
-rw-r--r--   1 root     root         4096 Nov 29 09:08 squashfs-root.img
drwxr-xr-x   2 root     root            0 Nov 29 09:08 usr/lib/dracut
========================================================================
Squashed content (squashfs-root.img):
========================================================================
drwxr-xr-x root/root                26 2026-11-29 09:08 squashfs-root/usr
lrwxrwxrwx root/root                 7 2026-11-29 09:08 squashfs-root/lib -> usr/lib
-rw-r--r-- root/root                 0 2026-11-29 09:08 squashfs-root/usr/lib/modules/{kernel}/kernel/drivers/{driver}.ko.xz
-rw-r--r-- root/root                 0 2026-11-29 09:08 squashfs-root/usr/lib/dracut/resume.sh
""",
    "erofs": """\
-rw-r--r--   1 root     root            0 Nov 29 09:08 init
-rw-r--r--   1 root     root         4096 Nov 29 09:08 erofs-root.img
========================================================================
Squashed content (erofs-root.img):
========================================================================
  2180464      4 drwxr-xr-x   3 root     root         4096 Nov 29 09:08 erofs-root/
  2180476      0 -rw-r--r--   1 root     root            0 Nov 29 09:08 erofs-root/usr/lib/modules/{kernel}/kernel/drivers/{driver}.ko.xz
  2180467      0 lrwxrwxrwx   1 root     root           23 Nov 29 09:08 erofs-root/init -> usr/lib/systemd/systemd
  2180477      4 -rw-r--r--   1 root     root         4096 Nov 29 09:08 erofs-root/usr/lib/dracut/resume.sh
""",
}


def listed(text: str, drivers: tuple[str, ...]) -> str:
    lines = []
    for line in text.splitlines():
        lines += [line.format(kernel=KERNEL, driver=driver) for driver in drivers] if "{driver}" in line else [line]
    return "\n".join(lines)


@pytest.mark.parametrize("kind", sorted(SQUASHED))
def test_drivers_in_the_squashed_part(host: Host, dracut: Callable[..., Initramfs], transcript: Transcript, kind: str) -> None:
    dracut({})
    transcript._answers.clear()
    transcript.record("lsinitrd " + IMAGE, out=listed(SQUASHED[kind], ("nfit", "libnvdimm", "nd_pmem")))
    assert initramfs.detect(host).complete(KERNEL, RESUME, MODULES)
    transcript._answers.clear()
    transcript.record("lsinitrd " + IMAGE, out=listed(SQUASHED[kind], ("nfit", "libnvdimm")))
    assert initramfs.detect(host).missing(KERNEL, RESUME, MODULES) == ["module nd_pmem"]


@pytest.mark.parametrize(
    ("kind", "part", "package"),
    [
        ("squashfs", "squashfs-root.img", "squashfs-tools"),
        ("squashfs", "squash-root.img", "squashfs-tools"),  # dracut 059
        ("erofs", "erofs-root.img", "erofs-utils"),
    ],
)
def test_a_squashed_part_that_cannot_be_listed(
    host: Host, dracut: Callable[..., Initramfs], transcript: Transcript, kind: str, part: str, package: str
) -> None:
    """Without the program, lsinitrd prints the headings alone, and ends as if all were well."""
    dracut({})
    transcript._answers.clear()
    text = SQUASHED[kind].partition("Squashed content")[0].replace(kind + "-root.img", part)
    transcript.record("lsinitrd " + IMAGE, out=text + "Squashed content (%s):\n" % part, err="lsinitrd: line 284: command not found")
    with pytest.raises(Refused) as refused:
        initramfs.detect(host).missing(KERNEL, RESUME, MODULES)
    assert refused.value.code == "initramfs_unreadable" and part in refused.value.message and package in refused.value.remedy
