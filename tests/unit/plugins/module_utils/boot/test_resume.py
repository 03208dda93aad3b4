# SPDX-License-Identifier: GPL-3.0-or-later
"""boot_resume from end to end, on a recorded machine: initramfs-tools, GRUB, a swap area on an NFIT NVDIMM."""

from __future__ import annotations

import gzip
import os
import struct
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import compression as image_compression
from ansible_collections.nvm.fastboot.plugins.module_utils._boot import drivers, resume
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import devices, extents
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.boot import cpio

if TYPE_CHECKING:
    from collections.abc import Callable

    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

UUID = "6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4"
RESUME = "resume=UUID=" + UUID
KERNELS = ("6.1.0-49-amd64", "6.12.107+deb13-amd64")
CONF = "/etc/initramfs-tools/conf.d/zz-nvm-fastboot-resume-" + UUID
HOOK = "/etc/initramfs-tools/hooks/nvm-fastboot"
SETTINGS = "/etc/default/grub.d/zz-nvm-fastboot-resume.cfg"
CONFIGURATION = "/boot/grub/grub.cfg"
NFIT = "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00"
DEPENDENCIES = """\
kernel/crypto/lz4.ko: kernel/lib/lz4/lz4_compress.ko
kernel/lib/lz4/lz4_compress.ko:
kernel/drivers/acpi/nfit/nfit.ko: kernel/drivers/nvdimm/libnvdimm.ko
kernel/drivers/nvdimm/libnvdimm.ko:
kernel/drivers/nvdimm/nd_pmem.ko: kernel/drivers/nvdimm/nd_btt.ko kernel/drivers/nvdimm/libnvdimm.ko
kernel/drivers/nvdimm/nd_btt.ko: kernel/drivers/nvdimm/libnvdimm.ko
"""


def header(signature: bytes = b"SWAPSPACE2") -> bytes:
    page = bytearray(4096)
    struct.pack_into("=II", page, 1024, 1, 1000)
    page[1036:1052] = uuid.UUID(UUID).bytes
    page[4086:4096] = signature.ljust(10, b"\0")
    return bytes(page)


class Machine:
    """A machine whose grub-mkconfig and mkinitramfs do what the settings they find say."""

    def __init__(self, host: Host, transcript: Transcript) -> None:
        self.host = host
        self.calls = transcript.calls
        self.foreign = "console=ttyS0 resume=/dev/sda5"
        self.drivers = ["acpi/nfit/nfit", "nvdimm/libnvdimm", "nvdimm/nd_pmem", "nvdimm/nd_btt"]
        self.fail: dict[str, str] = {}
        self.seen: dict[str, str] = {}
        host._run = self.run

    def run(self, argv: list[str], data: str | None = None) -> tuple[int, str, str]:
        self.calls.append(" ".join(argv))
        name = os.path.basename(argv[0])
        if name in self.fail:
            return 1, "", self.fail[name]
        commands: dict[str, Callable[..., str]] = {
            "grub-mkconfig": self.mkconfig, "mkinitramfs": self.mkinitramfs, "lsinitramfs": self.list, "unshare": self.unshare,
        }  # fmt: skip
        return 0, commands[name](*argv[1:]), ""

    def unshare(self, *arguments: str) -> str:
        """Keeps what the command sees in place of other files."""
        end = arguments.index("--")
        pairs = arguments[arguments.index("-c") + 3 : end]
        self.seen = {path[len(self.host.path("")) - 1:]: Path(copy).read_text() for copy, path in zip(pairs[::2], pairs[1::2])}
        return self.run(list(arguments[end + 1 :]))[1]

    def mkconfig(self, option: str, target: str) -> str:
        arguments = self.foreign
        settings = self.host.read(SETTINGS, "")
        if "resume=UUID=" in settings:
            line = next(line for line in settings.splitlines() if line.startswith("GRUB_CMDLINE_LINUX=\"${"))
            arguments = "console=ttyS0 " + line.split("'")[1]
        text = "".join(
            "menuentry '%s' {\n\tlinux /vmlinuz-%s root=/dev/sda1 ro %s\n\tinitrd /initrd.img-%s\n}\n"
            % (kernel, kernel, arguments, kernel)
            for kernel in KERNELS
        )
        Path(self.host.path(target)).write_text(text)
        return ""

    def mkinitramfs(self, option: str, target: str, kernel: str) -> str:
        files = dict.fromkeys(["init", "scripts/local-premount/resume", "usr/bin/resume"], "")
        files["conf/initramfs.conf"] = "MODULES=most\n"
        settings = self.host.glob("/etc/initramfs-tools/conf.d/*") + self.host.glob("/etc/initramfs-tools/scripts/*/*")
        for path in settings:
            name = path[len("/etc/initramfs-tools/"):]
            files[name if name.startswith("scripts/") else "conf/" + name] = self.host.read(path)
        names = []
        if self.host.exists(HOOK):
            names += ["usr/lib/modules/%s/kernel/drivers/%s.ko" % (kernel, name) for name in self.drivers]
            if " lz4" in self.host.read(HOOK):
                names += ["usr/lib/modules/%s/kernel/%s.ko" % (kernel, name)
                          for name in ("crypto/lz4", "lib/lz4/lz4_compress")]
        Path(self.host.path(target)).write_bytes(gzip.compress(cpio.cpio({**files, **dict.fromkeys(names, "")}), mtime=0))
        return ""

    def list(self, image: str) -> str:
        with gzip.open(self.host.path(image)) as file:
            return "\n".join(cpio.names(file.read())) + "\n"

    def present(self, check_mode: bool = False, **options: Any) -> tuple[Any, ...]:
        return self.go(resume.present, check_mode, options)

    def absent(self, check_mode: bool = False, **options: Any) -> tuple[Any, ...]:
        return self.go(resume.absent, check_mode, options)

    def go(self, function: Callable[..., Any], check_mode: bool, options: dict[str, Any]) -> tuple[Any, ...]:
        """(changed, result) of one run; C(calls) afterwards holds its commands alone."""
        del self.calls[:]
        with Transaction(self.host, check_mode) as tx:
            result = function(tx, **options)
        return tx.changed, result

    def state(self) -> dict[str, bytes | None]:
        """Every file that a run could change."""
        root = self.host.path("")
        contents: dict[str, bytes | None] = {}
        for top in ("etc", "boot", "var"):
            for directory, _directories, files in os.walk(os.path.join(root, top)):
                contents[directory[len(root):]] = None
                for name in files:
                    path = os.path.join(directory, name)
                    contents[path[len(root):]] = Path(path).read_bytes()
        return contents


@pytest.fixture
def bind(host: Host) -> Callable[..., Any]:
    """C(bind(path, module))): the device at C(path) has a driver of that loadable module, or of a built-in one."""

    def _bind(path: str, module: str, loadable: bool = True) -> None:
        driver = Path(host.path("/sys/bus/any/drivers/" + module))
        sysfs = Path(host.path("/sys/module/" + module))
        for each in (Path(host.path(path)), driver, sysfs):
            each.mkdir(parents=True, exist_ok=True)
        Path(host.path(path), "driver").symlink_to(driver)
        if module != "nfit" and not (driver / "module").is_symlink():  # ACPI drivers have no such link on 6.1
            (driver / "module").symlink_to(sysfs)
        if loadable:
            (sysfs / "initstate").write_text("live\n")

    return _bind


@pytest.fixture
def block(host: Host, plant: Plant) -> Callable[..., Any]:
    """C(block(name, path)): a block device at C(path) of /sys."""

    def _block(name: str, path: str, content: bytes = b"") -> None:
        plant({path + "/dev": "259:0\n", path + "/size": "2097152\n", "/dev/" + name: content})
        link = Path(host.path("/sys/class/block/" + name))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(host.path(path))

    return _block


@pytest.fixture
def machine(
    host: Host,
    plant: Plant,
    transcript: Transcript,
    bind: Callable[..., Any],
    block: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Machine:
    monkeypatch.setattr(Host, "flush_filesystem", lambda self, path: None)
    block("pmem0", NFIT + "/ndbus0/region0/namespace0.0/block/pmem0", header())
    bind(NFIT, "nfit")
    bind(NFIT + "/ndbus0", "libnvdimm")
    bind(NFIT + "/ndbus0/region0/namespace0.0", "nd_pmem")
    bind("/sys/devices/LNXSYSTM:00", "builtin_bus", loadable=False)
    os.symlink("pmem0", host.path("/dev/NVM_SWAP"))
    programs = {"/usr/sbin/grub-mkconfig": "default/grub.d", "/usr/sbin/mkinitramfs": "", "/usr/bin/lsinitramfs": ""}
    plant(programs)
    for path in programs:
        os.chmod(host.path(path), 0o755)
    plant(
        {
            "/usr/share/initramfs-tools/hook-functions": "",
            "/etc/initramfs-tools/conf.d/resume": "RESUME=/dev/sda5\n",
            "/etc/initramfs-tools/hooks/other": "",
            "/etc/initramfs-tools/scripts/init-top/.keep": "",
            "/etc/kernel/postinst.d/initramfs-tools": "",
            "/etc/default/grub": 'GRUB_CMDLINE_LINUX="console=ttyS0 resume=/dev/sda5"\n',
            "/etc/default/grub.d/50-cloudimg-settings.cfg": "",
            "/var/lib/other/state": "",
            "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
            "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro console=ttyS0 resume=/dev/sda5\n",
            "/boot/config-6.1.0-49-amd64": "CONFIG_HIBERNATION=y\nCONFIG_CRYPTO_LZO=m\nCONFIG_CRYPTO_LZ4=m\n",
            "/boot/config-6.12.107+deb13-amd64": 'CONFIG_HIBERNATION=y\nCONFIG_HIBERNATION_DEF_COMP="lzo"\nCONFIG_CRYPTO_LZO=y\n'
            "CONFIG_CRYPTO_LZ4=m\n",
        }
    )
    made = Machine(host, transcript)
    (Path(host.path("/boot")) / "grub").mkdir(parents=True)
    made.mkconfig("-o", CONFIGURATION)
    for kernel in KERNELS:
        plant({"/boot/vmlinuz-" + kernel: "", "/lib/modules/%s/modules.dep" % kernel: DEPENDENCIES})
        made.mkinitramfs("-o", "/boot/initrd.img-" + kernel, kernel)
    return made


def test_configuration_and_removal(machine: Machine, host: Host) -> None:
    before = machine.state()
    changed, result = machine.present()
    assert changed
    assert result == {
        "resume": "UUID=" + UUID,
        "offset": None,
        "arguments": [RESUME],
        "bootloader": "grub",
        "initramfs": "initramfs-tools",
        "kernels": [
            {"kernel": kernel, "initramfs": "/boot/initrd.img-" + kernel, "verified": True} for kernel in KERNELS
        ],
        "drivers": ["nd_pmem", "libnvdimm", "nfit"],
        "reboot_required": True,
        "reboot_in_vain": None,
        "warnings": [],
    }
    assert [os.path.basename(call.split()[0]) for call in machine.calls].count("mkinitramfs") == 2
    assert host.read(CONFIGURATION).count(RESUME) == 2
    assert "resume=/dev/sda5" not in host.read(CONFIGURATION)
    assert not host.glob("/boot/*nvm-fastboot*")

    assert machine.present()[0] is False
    assert machine.calls == []  # nothing to do, no command
    assert machine.present(check_mode=True)[0] is False

    assert machine.absent(check_mode=True)[0] is True
    changed, result = machine.absent()
    assert changed and result["resume"] is None and result["kernels"][0]["verified"] is None
    assert machine.calls[0].endswith("grub-mkconfig -o /boot/grub/grub.cfg.nvm-fastboot")  # resume= goes first
    assert machine.state() == before
    assert machine.absent()[0] is False
    assert machine.calls == []
    assert machine.absent(check_mode=True)[0] is False


def test_check_mode_changes_nothing(machine: Machine) -> None:
    before = machine.state()
    changed, result = machine.present(check_mode=True)
    assert changed and machine.state() == before
    assert [kernel["verified"] for kernel in result["kernels"]] == [False, False]
    assert {os.path.basename(call.split()[0]) for call in machine.calls} == {"lsinitramfs"}


@pytest.mark.parametrize("program", ["mkinitramfs", "grub-mkconfig"])
def test_a_failure_restores_everything(machine: Machine, program: str) -> None:
    before = machine.state()
    machine.fail[program] = "no"
    with pytest.raises(Refused) as refused:
        machine.present()
    assert refused.value.code == "command_failed"
    assert machine.state() == before
    del machine.fail[program]
    assert machine.present()[0] is True


@pytest.mark.parametrize("program", ["mkinitramfs", "grub-mkconfig"])
def test_a_failing_removal_restores_everything(machine: Machine, host: Host, program: str) -> None:
    machine.present()
    before = machine.state()
    machine.fail[program] = "no"
    with pytest.raises(Refused):
        machine.absent()
    after = machine.state()
    assert {path for path in before if before[path] != after.get(path)} <= {"var/lib/nvm-fastboot/initramfs.json"}
    del machine.fail[program]
    machine.absent()
    assert not host.glob("/etc/*/*/*nvm-fastboot*") and not host.exists("/var/lib/nvm-fastboot")


def test_an_image_that_lacks_a_driver_is_never_booted(machine: Machine, host: Host) -> None:
    before = machine.state()
    machine.drivers.remove("nvdimm/nd_btt")
    with pytest.raises(Refused) as refused:
        machine.present()
    assert refused.value.code == "initramfs_incomplete"
    assert machine.state() == before


def test_an_image_rebuilt_by_another_tool_is_verified_again(machine: Machine, host: Host) -> None:
    machine.present()
    machine.mkinitramfs("-o", "/boot/initrd.img-" + KERNELS[0], KERNELS[0])
    assert machine.present()[0] is False
    assert machine.calls == ["/usr/bin/lsinitramfs /boot/initrd.img-" + KERNELS[0]]
    Path(host.path("/boot/initrd.img-" + KERNELS[0])).write_bytes(gzip.compress(cpio.cpio({"init": ""})))
    assert machine.present()[0] is True


OVERLAY = """\
22 1 0:30 / / rw - overlay overlayroot rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay,workdir=/w
24 22 254:1 / /media/root-ro ro - ext4 /dev/vda1 ro
25 22 0:31 / /media/root-rw rw - tmpfs tmpfs-root rw
"""


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize("place", ["/", "/boot"])
def test_on_a_read_only_filesystem_nothing_is_changed(machine: Machine, plant: Plant, check_mode: bool, place: str) -> None:
    mounts, mounted = "/proc/self/mountinfo", "22 1 254:2 / / rw - ext4 /dev/vda2 rw\n25 22 254:1 / /boot rw - ext4 /dev/vda1 rw\n"
    read_only = mounted.replace(f" {place} rw", f" {place} ro")
    plant({mounts: read_only})
    before = machine.state()
    with pytest.raises(Refused) as refused:
        machine.present(check_mode)
    assert refused.value.code == "filesystem_read_only" and machine.state() == before
    assert f"mount -o remount,rw {place}." in refused.value.remedy
    plant({mounts: mounted})
    machine.present()
    plant({mounts: read_only})
    assert machine.present(check_mode)[0] is False
    before = machine.state()
    with pytest.raises(Refused) as refused:
        machine.absent(check_mode)
    assert refused.value.code == "filesystem_read_only" and machine.state() == before


@pytest.mark.parametrize("check_mode", [False, True])
def test_on_an_overlay_in_memory_nothing_is_changed(machine: Machine, plant: Plant, check_mode: bool) -> None:
    mounts = "/proc/self/mountinfo"
    plant({mounts: OVERLAY})
    before = machine.state()
    with pytest.raises(Refused) as refused:
        machine.present(check_mode)
    assert refused.value.code == "root_is_overlay" and machine.state() == before
    plant({mounts: ""})
    machine.present()
    plant({mounts: OVERLAY})
    before = machine.state()
    assert machine.present(check_mode)[0] is False  # configured before the overlay was switched on
    with pytest.raises(Refused) as refused:
        machine.absent(check_mode)
    assert refused.value.code == "root_is_overlay" and machine.state() == before


@pytest.mark.parametrize("check_mode", [False, True])
def test_nothing_is_written_below_a_boot_that_is_not_mounted(machine: Machine, plant: Plant, check_mode: bool) -> None:
    plant({"/proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "/etc/fstab": "UUID=2 /boot ext4 noauto 0 2\n"})
    before = machine.state()
    for run in (machine.present, machine.absent):
        with pytest.raises(Refused) as refused:
            run(check_mode)
        assert refused.value.code == "boot_not_mounted" and "mount /boot" in refused.value.remedy
    assert machine.state() == before


WIKI = "RESUME=UUID=0b4c8c1e-2f1d-4c57-9c41-2c9a3de0f3a5 resume_offset=3471360\n"  # Debian's wiki, for a swap file


def test_the_offset_of_a_swap_file_does_not_reach_the_kernel(machine: Machine, plant: Plant, host: Host) -> None:
    plant({"/etc/initramfs-tools/conf.d/resume": WIKI})
    assert machine.present()[1]["kernels"][0]["verified"]
    assert machine.present()[0] is False


def test_an_image_with_an_offset_that_was_there_before_is_built_again(machine: Machine, plant: Plant, host: Host) -> None:
    """As update-initramfs makes it after a file that sorts after ours has come and gone."""
    machine.present()
    plant({"/etc/initramfs-tools/conf.d/zzz": WIKI})
    for kernel in KERNELS:
        machine.mkinitramfs("-o", "/boot/initrd.img-" + kernel, kernel)
    before = machine.state()
    with pytest.raises(Refused) as refused:
        machine.present()
    assert refused.value.code == "initramfs_overridden" and "/etc/initramfs-tools/conf.d/zzz" in refused.value.remedy
    assert machine.state() == before
    os.unlink(host.path("/etc/initramfs-tools/conf.d/zzz"))
    assert [kernel["verified"] for kernel in machine.present(check_mode=True)[1]["kernels"]] == [False, False]
    changed, result = machine.present()
    assert changed and [kernel["verified"] for kernel in result["kernels"]] == [True, True]


def test_a_new_kernel_without_the_settings_is_noticed(machine: Machine, host: Host) -> None:
    machine.present()
    machine.foreign = "console=ttyS0"
    text = host.read(CONFIGURATION).replace(RESUME, "", 1)
    Path(host.path(CONFIGURATION)).write_text(text)
    assert machine.present()[0] is True
    assert host.read(CONFIGURATION).count(RESUME) == 2


def test_a_pending_image_refuses_changes(machine: Machine, host: Host, plant: Plant) -> None:
    plant({"/dev/pmem0": header(b"S1SUSPEND")})
    before = machine.state()
    with pytest.raises(Refused) as refused:
        machine.present()
    assert refused.value.code == "image_pending"
    assert machine.state() == before
    assert machine.present(force=True)[0] is True
    assert machine.present()[0] is False  # nothing to change, nothing to refuse
    with pytest.raises(Refused) as refused:
        machine.absent()
    assert refused.value.code == "image_pending"
    assert machine.absent(force=True)[0] is True


def test_removal_takes_the_settings_for_a_former_tool_as_well(machine: Machine, host: Host, plant: Plant) -> None:
    machine.present()
    plant({"/etc/dracut.conf.d/99-nvm-fastboot.conf": "force_drivers+=\" nd_pmem \"\n"})
    assert machine.absent()[0] is True
    assert not host.glob("/etc/*/*nvm-fastboot*") and not host.glob("/etc/*/*/*nvm-fastboot*")


def test_removal_refuses_before_it_changes_anything(machine: Machine, host: Host) -> None:
    machine.present()
    os.unlink(host.path("/usr/sbin/mkinitramfs"))
    before = machine.state()
    with pytest.raises(Refused) as refused:
        machine.absent()
    assert refused.value.code == "settings_remain" and machine.state() == before


def test_removal_without_the_device(machine: Machine, host: Host) -> None:
    machine.present()
    os.unlink(host.path("/dev/NVM_SWAP"))
    assert machine.absent()[0] is True


@pytest.mark.parametrize("program", ["/usr/sbin/grub-mkconfig", CONFIGURATION])
def test_removal_is_refused_where_resume_would_stay(machine: Machine, host: Host, program: str) -> None:
    machine.present()
    os.unlink(host.path(program))
    before = machine.state()
    with pytest.raises(Refused) as refused:
        machine.absent()
    assert refused.value.code == "settings_remain" and SETTINGS in refused.value.message
    assert machine.state() == before


def test_removal_while_another_bootloader_starts_the_machine(machine: Machine, host: Host, plant: Plant) -> None:
    machine.present()
    info = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    plant({info: b"\6\0\0\0" + "systemd-boot 257.13\0".encode("utf-16-le")})
    assert machine.absent()[0] is True
    assert RESUME not in host.read(CONFIGURATION) and not host.exists(SETTINGS)


def test_removal_of_what_only_the_configuration_has(machine: Machine, host: Host) -> None:
    machine.present()
    os.unlink(host.path(SETTINGS))
    assert RESUME in host.read(CONFIGURATION)
    assert machine.absent()[0] is True
    assert RESUME not in host.read(CONFIGURATION)
    assert machine.absent()[0] is False


@pytest.mark.parametrize(
    ("content", "options", "code"),
    [
        (header(), {"device": "/dev/none"}, "device_missing"),
        (header(), {"uuid": "00000000-0000-4000-8000-000000000001"}, "uuid_mismatch"),
        (header(), {"uuid": "x"}, "uuid_invalid"),
        (bytes(65536), {}, "not_swap"),
    ],
)
def test_refused(
    machine: Machine, plant: Plant, content: bytes, options: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant({"/dev/pmem0": content})
    with pytest.raises(Refused) as refused:
        machine.present(**options)
    assert refused.value.code == code and refused.value.remedy


def test_check_mode_assumes_that_the_device_will_exist(machine: Machine, host: Host) -> None:
    os.unlink(host.path("/dev/NVM_SWAP"))
    changed, result = machine.present(check_mode=True)
    assert changed and result["resume"].startswith("UUID=") and result["drivers"] == ["libnvdimm", "nd_pmem"]


@pytest.mark.parametrize("word", ["nohibernate", "noresume", "hibernate=no", "hibernate=noresume"])
def test_arguments_against_hibernation_are_not_overridden(machine: Machine, plant: Plant, word: str) -> None:
    plant({"/etc/default/grub": 'GRUB_CMDLINE_LINUX="%s"\n' % word})
    with pytest.raises(Refused) as refused:
        machine.present()
    assert refused.value.code == "conflicting_argument"
    assert "/etc/default/grub" in refused.value.message and word in refused.value.message


def test_a_kernel_without_hibernation_is_not_verified(machine: Machine, plant: Plant) -> None:
    plant({"/boot/config-" + KERNELS[1]: "CONFIG_CRYPTO_LZO=y\n# CONFIG_HIBERNATION is not set\n"})
    assert [kernel["verified"] for kernel in machine.present()[1]["kernels"]] == [True, False]


def test_a_boot_without_initramfs_is_refused_first(machine: Machine, host: Host, plant: Plant) -> None:
    """Ubuntu's cloud images. Debian's scripts do not know the setting."""
    plant({"/etc/default/grub.d/40-force-partuuid.cfg": "GRUB_FORCE_PARTUUID=26f22d2b\n"})
    assert machine.present(check_mode=True)[0] is True
    plant({"/etc/grub.d/10_linux": 'if test -n "${GRUB_FORCE_PARTUUID}"; then\n'})
    before = machine.state()
    with pytest.raises(Refused) as refused:
        machine.present(check_mode=True)
    assert refused.value.code == "conflicting_argument" and "40-force-partuuid.cfg" in refused.value.message
    assert machine.state() == before
    agent = "/etc/default/grub.d/99-hibernate-settings.cfg"  # of Azure's hibernation-setup-tool
    for text, refuses in (("if [ -e /x ]; then\n  unset GRUB_FORCE_PARTUUID\nfi\n", True), ("unset GRUB_FORCE_PARTUUID\n", False)):
        plant({agent: text})
        if refuses:
            with pytest.raises(Refused):
                machine.present(check_mode=True)
        else:
            machine.present(check_mode=True)
    os.unlink(machine.host.path(agent))
    plant({"/etc/default/grub.d/40-force-partuuid.cfg": "# GRUB_FORCE_PARTUUID=26f22d2b\n"})
    assert machine.present()[0] is True


def test_a_conflict_in_the_result_restores_everything(
    machine: Machine, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = "menuentry rescue { linux /vmlinuz-%s %s noresume; initrd /initrd.img-%s }\n" % (KERNELS[0], RESUME, KERNELS[0])
    generate = machine.mkconfig

    def mkconfig(option: str, target: str) -> str:
        generate(option, target)
        path = Path(host.path(target))
        path.write_text(path.read_text() + entry)
        return ""

    monkeypatch.setattr(machine, "mkconfig", mkconfig)
    before = machine.state()
    with pytest.raises(Refused) as refused:
        machine.present()
    assert refused.value.code == "verify_failed" and "noresume" in refused.value.message
    assert machine.state() == before


def test_reboot_required_until_the_kernel_has_the_arguments(machine: Machine, plant: Plant) -> None:
    plant({"/proc/cmdline": "root=/dev/sda1 ro %s quiet\n" % RESUME})
    assert machine.present()[1]["reboot_required"] is False
    assert machine.absent()[1]["reboot_required"] is True


def test_another_resume_device_of_the_running_kernel_requires_a_reboot(machine: Machine, plant: Plant) -> None:
    plant({"/proc/cmdline": "root=/dev/sda1 ro %s quiet\n" % RESUME, "/sys/power/resume": "0:0\n"})
    assert machine.present()[1]["reboot_required"] is True
    plant({"/sys/power/resume": "259:0\n"})
    assert machine.present()[1]["reboot_required"] is False


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_menu_that_was_made_immutable(machine: Machine, monkeypatch: pytest.MonkeyPatch, check_mode: bool) -> None:
    """chattr +i /boot/grub/grub.cfg, as guides to hardening have it."""
    before = machine.state()
    monkeypatch.setattr(Host, "locked", lambda self, path: "i" if path == CONFIGURATION else None)
    with pytest.raises(Refused) as refused:
        machine.present(check_mode=check_mode)
    assert refused.value.code == "not_writable" and "chattr -i " + CONFIGURATION in refused.value.remedy and machine.state() == before


def test_a_reboot_that_did_not_help(machine: Machine, plant: Plant) -> None:
    """Boots are told apart by their id; a new setting may be helped by another reboot."""
    before = machine.state()
    boot_id = "/proc/sys/kernel/random/boot_id"
    plant({boot_id: "first\n"})
    for check_mode in (False, True, False):
        assert machine.present(check_mode=check_mode)[1]["reboot_in_vain"] is None, "not rebooted yet"
    plant({boot_id: "second\n"})
    for check_mode in (True, False):
        _changed, result = machine.present(check_mode=check_mode)
        assert result["reboot_required"] and "lacks %s on its command line" % RESUME in result["reboot_in_vain"]
        assert result["warnings"] == [result["reboot_in_vain"]]
    assert machine.present(compression="none")[1]["reboot_in_vain"] is None, "changed since"
    plant({boot_id: "third\n", "/proc/cmdline": "ro hibernate=nocompress %s\n" % RESUME, "/sys/power/resume": "0:0\n"})
    assert "/sys/power/resume is 0:0" in machine.present(compression="none")[1]["reboot_in_vain"]
    plant({"/etc/tmpfiles.d/resume.conf": "w /sys/power/resume - - - - 0:0\n"})
    assert "/etc/tmpfiles.d/resume.conf, line 1 sets it again" in machine.present(compression="none")[1]["reboot_in_vain"]
    os.unlink(machine.host.path("/etc/tmpfiles.d/resume.conf"))
    os.rmdir(machine.host.path("/etc/tmpfiles.d"))
    plant({"/sys/power/resume": "259:0\n"})
    assert machine.present(compression="none")[1]["reboot_in_vain"] is None
    machine.absent()
    assert machine.state() == before


def test_check_mode_verifies_what_would_not_change(machine: Machine) -> None:
    machine.present()
    path = Path(machine.host.path(CONFIGURATION))
    entry = "menuentry 'mine' {\n\tlinux /vmlinuz-%s root=/dev/sda1 %s noresume\n\tinitrd /initrd.img-%s\n}\n"
    path.write_text(path.read_text() + entry % (KERNELS[0], RESUME, KERNELS[0]))
    with pytest.raises(Refused) as refused:
        machine.present(check_mode=True)
    assert refused.value.code == "verify_failed" and "'mine' has noresume" in refused.value.message


# compression ---------------------------------------------------------------------------------------------------------


def test_no_compression(machine: Machine) -> None:
    assert machine.present(compression="none")[1]["arguments"] == [RESUME, "hibernate=nocompress"]
    assert machine.present(compression="none")[0] is False
    assert machine.present()[0] is True  # back to the kernel's choice
    assert machine.present()[1]["arguments"] == [RESUME]


def test_lz4_needs_every_kernel(machine: Machine, host: Host, plant: Plant) -> None:
    with pytest.raises(Refused) as refused:
        machine.present(compression="lz4")
    assert refused.value.code == "compressor_unsupported" and KERNELS[0] in refused.value.message
    plant({"/boot/config-" + KERNELS[0]: host.read("/boot/config-" + KERNELS[1])})
    assert machine.present(compression="lz4")[1]["arguments"] == [RESUME, "hibernate.compressor=lz4"]
    assert " lz4" in host.read(HOOK)


@pytest.mark.parametrize(
    ("configs", "compression", "expected"),
    [
        ({}, "lzo", (["hibernate.compressor=lzo"], [])),
        ({}, None, ([], [])),
        ({KERNELS[1]: 'CONFIG_HIBERNATION_DEF_COMP="lz4"\nCONFIG_CRYPTO_LZ4=m\n'}, None, ([], ["lz4"])),
        ({KERNELS[1]: 'CONFIG_HIBERNATION_DEF_COMP="lzo"\nCONFIG_CRYPTO_LZO=m\n'}, "lzo",
         (["hibernate.compressor=lzo"], ["lzo"])),
        ({KERNELS[1]: ""}, "lzo", ([], [])),
    ],
)  # fmt: skip
def test_modules_that_decompress(
    machine: Machine,
    host: Host,
    plant: Plant,
    configs: dict[str, Any],
    compression: str | None,
    expected: tuple[list[Any], ...],
) -> None:
    plant({"/boot/config-" + kernel: text for kernel, text in configs.items()})
    assert image_compression.select(host, KERNELS, compression) == expected


def test_kernels_without_their_configuration_are_known_by_version(machine: Machine, host: Host) -> None:
    for kernel in KERNELS:
        os.unlink(host.path("/boot/config-" + kernel))
    assert [image_compression.has_selection(host, kernel) for kernel in KERNELS] == [False, True]


# drivers -------------------------------------------------------------------------------------------------------------


def test_drivers_of_an_nfit_namespace(machine: Machine, host: Host) -> None:
    assert drivers.drivers_for(host, devices.block_device(host, "/dev/NVM_SWAP")) == ["nd_pmem", "libnvdimm", "nfit"]


def test_drivers_of_a_sector_namespace_on_memmap(
    host: Host, bind: Callable[..., Any], block: Callable[..., Any]
) -> None:
    path = "/sys/devices/platform/e820_pmem"
    block("pmem1s", path + "/ndbus1/region1/btt1.0/block/pmem1s")
    bind(path, "nd_e820")
    bind(path + "/ndbus1/region1/btt1.0", "nd_pmem")
    (Path(host.path("/sys/module/nd_btt"))).mkdir()
    (Path(host.path("/sys/module/nd_btt/initstate"))).write_text("live\n")
    assert drivers.drivers_for(host, devices.block_device(host, "/dev/pmem1s")) == ["nd_btt", "nd_pmem", "nd_e820"]


def test_drivers_of_a_mapping_are_those_below_it(
    host: Host, bind: Callable[..., Any], block: Callable[..., Any]
) -> None:
    path = "/sys/devices/pci0000:00/0000:00:05.0"
    block("vda2", path + "/virtio1/block/vda/vda2")
    block("dm-0", "/sys/devices/virtual/block/dm-0")
    Path(host.path("/sys/class/block/dm-0/slaves/vda2")).mkdir(parents=True)
    bind(path, "virtio_pci", loadable=False)
    bind(path + "/virtio1", "virtio_blk")
    assert drivers.drivers_for(host, devices.block_device(host, "/dev/dm-0")) == ["virtio_blk"]


# a swap file ----------------------------------------------------------------------------------------------------------

FILE = "/swapfile"
ROOT = "0b4c6c2e-5a0d-4e8f-8a7e-8c1f6a2d9e34"


def place(host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch, page: int, signature: bytes = b"SWAPSPACE2") -> None:
    """The swap file begins at a page of /dev/sda1."""
    plant({"/dev/sda1": bytes(page * 4096) + header(signature)})
    found = [extents.Extent(0, page * 4096, 1 << 20)]
    monkeypatch.setattr(extents, "of_file", lambda handle, kind, size, page: found)


@pytest.fixture
def filed(machine: Machine, host: Host, plant: Plant, block: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine with a swap file at page 700 of its root filesystem."""
    block("sda1", "/sys/devices/pci0000:00/0000:00:05.0/virtio2/block/sda/sda1")
    plant({"/proc/self/mountinfo": "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n", FILE: bytes(1 << 20)})
    os.makedirs(host.path("/dev/disk/by-uuid"))
    os.symlink("../../sda1", host.path("/dev/disk/by-uuid/" + ROOT))
    place(host, plant, monkeypatch, 700)
    return machine


def test_a_swap_file_is_configured_and_removed(filed: Machine, host: Host) -> None:
    before = filed.state()
    changed, result = filed.present(device=FILE)
    assert changed and (result["resume"], result["offset"]) == ("UUID=" + ROOT, 700)
    assert result["arguments"] == ["resume=UUID=" + ROOT, "resume_offset=700"] and result["reboot_required"]
    assert host.read(CONFIGURATION).count("resume=UUID=%s resume_offset=700" % ROOT) == len(KERNELS)
    assert "/dev/sda5" not in host.read(CONFIGURATION)
    conf = host.glob("/etc/initramfs-tools/conf.d/zz-nvm-fastboot-resume-*")
    assert host.read(conf[0]).endswith("RESUME=none\nresume_offset=\n")
    assert filed.present(device=FILE)[0] is False
    filed.absent(device=FILE)
    assert filed.state() == before


def test_a_swap_file_that_was_moved_is_configured_again(
    filed: Machine, host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    filed.present(device=FILE)
    plant({"/proc/cmdline": "root=/dev/sda1 resume=UUID=%s resume_offset=700\n" % ROOT})
    assert not filed.present(device=FILE)[1]["reboot_required"]
    place(host, plant, monkeypatch, 800)
    changed, result = filed.present(device=FILE)
    assert changed and result["offset"] == 800 and result["reboot_required"]
    assert "resume_offset=700" not in host.read(CONFIGURATION)
    assert host.read(CONFIGURATION).count("resume_offset=800") == len(KERNELS)
    assert not any("mkinitramfs" in call for call in filed.calls), "the initramfs has no offset"


def test_a_swap_file_that_does_not_exist_yet(filed: Machine, host: Host) -> None:
    os.unlink(host.path(FILE))
    changed, result = filed.present(check_mode=True, device=FILE)
    assert changed and result["arguments"] == ["resume=UUID=" + ROOT, "resume_offset=unknown"] and result["offset"] is None
    with pytest.raises(Refused) as caught:
        filed.present(device=FILE)
    assert caught.value.code == "swap_file_missing"
    before = filed.state()
    filed.absent(device=FILE)
    assert filed.state() == before


def test_a_swap_file_with_an_image(filed: Machine, host: Host, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    place(host, plant, monkeypatch, 700, b"S1SUSPEND")
    with pytest.raises(Refused) as caught:
        filed.present(device=FILE)
    assert caught.value.code == "image_pending"


def test_a_swap_file_without_a_swap_area(filed: Machine, plant: Plant) -> None:
    plant({"/dev/sda1": bytes(701 * 4096)})
    with pytest.raises(Refused) as caught:
        filed.present(device=FILE)
    assert caught.value.code == "not_swap" and "swap_file" in caught.value.remedy


def test_a_swap_file_on_btrfs_needs_its_module_in_the_initramfs(filed: Machine, plant: Plant) -> None:
    """Without it, udev calls the device not ready, and systemd in the initramfs waits for it without end."""
    btrfs = {"/proc/self/mountinfo": "22 1 0:27 / / rw,relatime shared:1 - btrfs /dev/sda1 rw\n", "/sys/module/btrfs/initstate": "live\n"}
    assert "btrfs" not in filed.present(check_mode=True, device=FILE)[1]["drivers"]
    plant(btrfs)
    plant({"/lib/modules/%s/modules.dep" % kernel: DEPENDENCIES + "kernel/fs/btrfs/btrfs.ko:\n" for kernel in KERNELS})
    assert "btrfs" in filed.present(check_mode=True, device=FILE)[1]["drivers"]


SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
OTHER_SWAP = "/dev/vda5                               partition\t1048572\t\t0\t\t-2\n"


def test_the_tool_does_not_see_the_swap_area_that_is_given_up(machine: Machine, plant: Plant) -> None:
    """hooks/resume would make it the resume device of the image again, and the initramfs would wait for what is gone."""
    plant({"/proc/swaps": SWAPS + "/dev/pmem0                              partition\t2097148\t\t0\t\t10\n" + OTHER_SWAP})
    machine.present()
    assert machine.seen == {}
    machine.absent()
    assert machine.seen == {"/proc/swaps": SWAPS + OTHER_SWAP}
    assert not machine.host.glob("/run/nvm-fastboot-*")


def test_an_area_that_is_not_active_is_not_looked_for(machine: Machine, plant: Plant) -> None:
    plant({"/proc/swaps": SWAPS + OTHER_SWAP})
    machine.present()
    machine.absent()
    assert machine.seen == {}
