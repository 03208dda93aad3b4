# SPDX-License-Identifier: GPL-3.0-or-later
"""What a grub.cfg does: branches, variables, the entry that starts when no person chooses, entries of other systems."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub import Grub
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.grub.menu import Menu, read_environment

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant

CONFIGURATION = "/boot/grub/grub.cfg"
OLD, NEW = "6.1.0-50-amd64", "6.12.107+deb13-amd64"
ROOT = "root=UUID=0b4c"

# 00_header of Debian 12 and 13, GRUB_DEFAULT as DEFAULT
HEADER = """\
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi

export menuentry_id_option

if [ "${prev_saved_entry}" ]; then
  set saved_entry="${prev_saved_entry}"
  save_env saved_entry
  set prev_saved_entry=
  save_env prev_saved_entry
  set boot_once=true
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
if loadfont $font ; then
  set gfxmode=auto
fi
terminal_output gfxterm
"""
# 10_linux of Ubuntu's cloud images with GRUB_FORCE_PARTUUID
INITRDLESS = """\
    if [ "${initrdfail}" = 1 ]; then
        linux /boot/vmlinuz-%(kernel)s root=UUID=0b4c ro console=ttyS0
        initrd /boot/initrd.img-%(kernel)s
    else
        linux /boot/vmlinuz-%(kernel)s root=UUID=0b4c ro console=ttyS0 panic=-1
    fi
    initrdfail
"""
LINUX = """\
    if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
    linux /boot/vmlinuz-%(kernel)s root=UUID=0b4c ro
    initrd /boot/initrd.img-%(kernel)s
"""


def linux(kernel: str) -> str:
    return LINUX % {"kernel": kernel}


def entry(title: str, identifier: str, body: str) -> str:
    return "menuentry '%s' --class debian $menuentry_id_option '%s' {\n%s}\n" % (title, identifier, body)


def menu_of_two(default: str = "0") -> str:
    return (
        HEADER.replace("DEFAULT", default)
        + entry("Debian GNU/Linux", "gnulinux-simple-0b4c", linux(NEW))
        + "submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-0b4c' {\n"
        + "".join(
            entry("Debian GNU/Linux, with Linux " + kernel, "gnulinux-%s-advanced-0b4c" % kernel, linux(kernel))
            for kernel in (NEW, OLD)
        )
        + "}\n"
        + "if [ \"$grub_platform\" = \"efi\" ]; then\n" + entry("UEFI Firmware Settings", "uefi-firmware", "\tfwsetup\n") + "fi\n"
        + entry("Windows Boot Manager (on /dev/sda1)", "osprober-efi-1", "\tchainloader /EFI/Microsoft/Boot/bootmgfw.efi\n")
        + "if [ -f  ${config_directory}/custom.cfg ]; then\n  source ${config_directory}/custom.cfg\n"
        "elif [ -z \"${config_directory}\" -a -f  $prefix/custom.cfg ]; then\n  source $prefix/custom.cfg\nfi\n"
    )  # fmt: skip


def environment(**variables: str) -> str:
    lines = "# GRUB Environment Block\n" + "".join("%s=%s\n" % pair for pair in variables.items())
    return lines + "#" * (1024 - len(lines))


@pytest.fixture
def grub(host: Host, plant: Plant) -> Grub:
    plant({"/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-%s %s ro rootflags=subvol=@\n" % (NEW, ROOT), CONFIGURATION: menu_of_two()})
    for kernel in (OLD, NEW):
        plant({"/boot/vmlinuz-" + kernel: ""})
    return Grub(host, "/usr/sbin/grub-mkconfig", CONFIGURATION)


def chosen(grub: Grub) -> list[tuple[str, list[str]]]:
    choices = grub.next_boot().choices
    return [(title, [os.path.basename(each.kernel) for each in entries]) for title, entries in choices]


ADVANCED = "gnulinux-advanced-0b4c>gnulinux-%s-advanced-0b4c"


@pytest.mark.parametrize(
    ("default", "kernel"),
    [
        ("0", NEW),
        ("1", NEW),  # the first entry of the submenu
        ("1>1", OLD),
        ("0x1>1", OLD),
        ("1>7", NEW),
        (ADVANCED % OLD, OLD),
        ("Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux " + OLD, OLD),
        ("Advanced options for Debian GNU/Linux>1", OLD),
        ("gnulinux-advanced-0b4c>gone", NEW),
        ("Debian GNU/Linux, with Linux " + OLD, NEW),  # without its submenu: not found, so the first entry
        ("9", NEW),
        ("", NEW),
    ],
)
def test_the_default_entry(grub: Grub, plant: Plant, default: str, kernel: str) -> None:
    plant({CONFIGURATION: menu_of_two(default)})
    assert [kernels for _title, kernels in chosen(grub)] == [["vmlinuz-" + kernel]]


@pytest.mark.parametrize(
    ("default", "variables", "kernels"),
    [
        ("${saved_entry}", {"saved_entry": ADVANCED % OLD}, ["vmlinuz-" + OLD]),
        ("${saved_entry}", {}, ["vmlinuz-" + NEW]),
        ("${saved_entry}", {"saved_entry": ADVANCED % NEW, "next_entry": "1>1"}, ["vmlinuz-" + OLD]),
        ("0", {"saved_entry": ADVANCED % OLD}, ["vmlinuz-" + NEW]),  # GRUB_DEFAULT=0 does not look at it
        ("0", {"next_entry": "Windows Boot Manager (on /dev/sda1)"}, []),
    ],
)
def test_the_entry_in_grubenv(grub: Grub, plant: Plant, default: str, variables: dict[str, str], kernels: list[str]) -> None:
    plant({CONFIGURATION: menu_of_two(default), "/boot/grub/grubenv": environment(**variables)})
    assert [found for _title, found in chosen(grub)] == [kernels]
    reason = grub.next_boot().reason
    assert ("/boot/grub/grubenv" in reason) == ((default != "0" and bool(variables)) or "next_entry" in variables)


def follow(host: Host, plant: Plant, remedy: str) -> None:
    """Do what a remedy says."""
    path = "/boot/grub/grubenv"
    assignment = re.search(r"set saved_entry=(.*)\.", remedy)
    if "unset next_entry" in remedy:
        variables = read_environment(host, path)
        del variables["next_entry"]
        plant({path: environment(**variables)})
    elif assignment:
        plant({path: environment(saved_entry=shlex.split(assignment.group(1))[0])})
    else:
        found = re.search(r"GRUB_DEFAULT=(.*) in ", remedy)
        assert found, remedy
        plant({CONFIGURATION: menu_of_two(shlex.split(found.group(1))[0])})


@pytest.mark.parametrize("kernel", [OLD, NEW])
@pytest.mark.parametrize(
    ("default", "variables"),
    [
        ("saved", {"saved_entry": "2"}),
        ("saved", {"saved_entry": ADVANCED % OLD}),
        ("saved", {}),
        ("2", {}),
        ("1>1", {}),
        ("0", {"next_entry": "2"}),
    ],
)
def test_the_remedy_helps(grub: Grub, host: Host, plant: Plant, default: str, variables: dict[str, str], kernel: str) -> None:
    text = "${saved_entry}" if default == "saved" else default
    plant({CONFIGURATION: menu_of_two(text), "/etc/default/grub": "GRUB_DEFAULT=%s\n" % default})
    plant({"/boot/grub/grubenv": environment(**variables)})
    path = "/boot/vmlinuz-" + kernel
    for _step in range(2):  # a choice for the next boot alone hides the lasting one
        if chosen(grub)[0][1] != ["vmlinuz-" + kernel]:
            follow(host, plant, grub.next_boot().remedy(path))
    assert chosen(grub)[0][1] == ["vmlinuz-" + kernel]


def test_the_remedy_names_the_file_that_counts(grub: Grub, plant: Plant) -> None:
    plant({CONFIGURATION: menu_of_two("1>1"), "/etc/default/grub": "GRUB_DEFAULT=0\n"})
    assert " in /etc/default/grub, and run " in grub.next_boot().remedy("/boot/vmlinuz-" + NEW)
    plant({"/etc/default/grub.d/99-kiosk.cfg": "GRUB_DEFAULT='1>1'\n"})
    assert " in /etc/default/grub.d/99-kiosk.cfg, and run " in grub.next_boot().remedy("/boot/vmlinuz-" + NEW)


@pytest.mark.usefixtures("grub")
@pytest.mark.parametrize("debian, directory, command", [
    (True, "/boot/grub", "update-grub"),
    (False, "/boot/grub", "grub-mkconfig -o /boot/grub/grub.cfg"),
    (False, "/boot/grub2", "grub2-mkconfig -o /boot/grub2/grub.cfg"),
])  # fmt: skip
def test_the_remedy_names_a_command_that_is_there(host: Host, plant: Plant, debian: bool, directory: str, command: str) -> None:
    if debian:
        plant({"/usr/sbin/update-grub": ""})
        os.chmod(host.path("/usr/sbin/update-grub"), 0o755)
    plant({directory + "/grub.cfg": menu_of_two("1>1"), "/etc/default/grub": "GRUB_DEFAULT=0\n"})
    there = Grub(host, "/usr/sbin/grub-mkconfig", directory + "/grub.cfg")
    assert there.next_boot().remedy("/boot/vmlinuz-" + NEW).endswith(", and run %s." % command)


def test_entries_that_this_firmware_does_not_have_do_not_count(grub: Grub, plant: Plant) -> None:
    plant({CONFIGURATION: menu_of_two("2")})
    assert chosen(grub)[0][0] == "Windows Boot Manager (on /dev/sda1)"
    plant({"/sys/firmware/efi/fw_platform_size": "64\n"})
    assert chosen(grub)[0][0] == "UEFI Firmware Settings"


def test_what_cannot_be_known_gives_several(grub: Grub, plant: Plant) -> None:
    plant({"/boot/grub/custom.cfg": "if keystatus --shift; then set default=1\\>1; fi\n"})
    assert [kernels for _title, kernels in chosen(grub)] == [["vmlinuz-" + NEW], ["vmlinuz-" + OLD]]


def test_a_title_of_an_older_grub_is_corrected(grub: Grub, plant: Plant) -> None:
    old = "Debian GNU/Linux, with Linux " + OLD
    correction = "if [ \"x$default\" = 'x%s' ]; then default='Advanced options for Debian GNU/Linux>%s'; fi;\n" % (old, old)
    plant({CONFIGURATION: menu_of_two(old) + correction})
    assert chosen(grub) == [(old, ["vmlinuz-" + OLD])]


def test_no_menu(grub: Grub, plant: Plant) -> None:
    plant({CONFIGURATION: HEADER})
    assert grub.next_boot().choices == [] and grub.entries() == []


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("# GRUB Environment Block\n# comment\na=b=c\nd=x\\\\y\\\nz\n####", {"a": "b=c", "d": "x\\y\nz"}),
        ("not an environment\na=b\n", {}),
        ("", {}),
    ],
)
def test_grubenv(host: Host, plant: Plant, text: str, variables: dict[str, str]) -> None:
    plant({"/boot/grub/grubenv": text})
    assert read_environment(host, "/boot/grub/grubenv") == variables


def test_an_entry_is_judged_by_the_branch_that_is_taken(grub: Grub, plant: Plant) -> None:
    body = INITRDLESS % {"kernel": NEW}
    plant({CONFIGURATION: HEADER.replace("DEFAULT", "0") + entry("Ubuntu", "gnulinux-simple", body)})
    (taken,) = grub.entries()
    assert taken.initrds == () and "panic=-1" in taken.arguments
    assert grub.check([taken], ["resume=UUID=1"])[0] == "the entry 'Ubuntu' starts the kernel without an initramfs"
    plant({"/boot/grub/grubenv": environment(initrdfail="1")})  # the last boot without initramfs failed
    (taken,) = grub.entries()
    assert taken.initrds == ("/boot/initrd.img-" + NEW,) and "panic=-1" not in taken.arguments


def test_both_branches_count_where_the_condition_cannot_be_known(grub: Grub, plant: Plant) -> None:
    body = (INITRDLESS % {"kernel": NEW}).replace('[ "${initrdfail}" = 1 ]', "sleep --interruptible 1")
    plant({CONFIGURATION: entry("Ubuntu", "gnulinux-simple", body)})
    assert [bool(each.initrds) for each in grub.entries()] == [True, False]


@pytest.mark.parametrize(
    ("initrd", "kept"),
    [
        ("/boot/intel-ucode.img /boot/initrd.img-1", ("/boot/initrd.img-1",)),
        ("/boot/amd-ucode.img", ()),  # microcode alone starts nothing
        ("(hd0,gpt2)/initrd.img-1", ("/initrd.img-1",)),
    ],
)
def test_initramfs_of_an_entry(grub: Grub, plant: Plant, initrd: str, kept: tuple[str, ...]) -> None:
    plant({CONFIGURATION: entry("x", "y", "linux /boot/vmlinuz-%s\ninitrd %s\n" % (NEW, initrd))})
    assert [each.initrds for each in grub.entries()] == [kept]


def test_words_variables_and_comments(host: Host) -> None:
    text = """
# linux /boot/vmlinuz-0 no
set extra="a=1 b=2"
menuentry "two words" --id 'the id' { linuxefi (hd0,gpt2)/vmlinuz-1 a#b \\
  c "d $e" ${f} $extra x=$extra memmap=4G\\$12G # g
}
linux16 /vmlinuz-2 x; linux /vmlinuz-3
"""
    found = [(title, identifier, starts[0].kernel, list(starts[0].arguments))
             for title, identifier, starts in Menu(host, CONFIGURATION, text).entries()]
    assert found == [
        ("two words", "the id", "/vmlinuz-1",
         ["a#b", "c", "d $e", "${f}", "a=1", "b=2", "x=a=1 b=2", "memmap=4G$12G"]),
        ("", "", "/vmlinuz-3", []),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["if", "if [ x ]; then", "menuentry x {", "}", "fi", "for x in", "submenu a { menuentry", "source $prefix/grub.cfg"],
)
def test_a_configuration_that_is_cut_short_is_read_to_its_end(grub: Grub, plant: Plant, text: str) -> None:
    plant({CONFIGURATION: text})
    assert grub.entries() == []


# entries of other systems ---------------------------------------------------------------------------------------------

SAME = "linux /boot/vmlinuz-%s " % NEW


@pytest.mark.parametrize(
    "body",
    [
        "set isofile=/iso/debian.iso\nloopback loop (hd0,1)$isofile\nlinux (loop)/live/vmlinuz-%s boot=live findiso=$isofile" % NEW,
        "loopback loop /debian.iso\nset root=(loop)\nlinux /live/vmlinuz-%s components" % NEW,
        "linux /boot/vmlinuz-%s boot=live findiso=/debian.iso" % NEW,
        SAME + "root=UUID=ffff ro",  # another distribution, the same /boot
        SAME + "root=/dev/sdb1 ro",
        SAME + "root=LABEL=other ro",
        SAME + ROOT + " rootflags=subvol=@other ro",
        "linux /boot/netboot/vmlinuz auto=true priority=critical",  # an installer: not the link /boot/vmlinuz
        "linux /casper/vmlinuz autoinstall ---",
    ],
)  # fmt: skip
def test_entries_of_other_systems_are_none_of_ours(grub: Grub, host: Host, plant: Plant, body: str) -> None:
    plant({
        "/dev/sda1": b"", "/dev/sdb1": b"", "/dev/disk/by-label/mine": b"", "/boot/vmlinuz": b"",
        "/boot/grub/custom.cfg": entry("other", "x", body + "\ninitrd /boot/initrd.img\n"),
    })  # fmt: skip
    links(host, {"/dev/disk/by-uuid/0b4c": "/dev/sda1"})
    assert "other" not in [each.title for each in grub.entries()]
    plant({CONFIGURATION: menu_of_two("other")})
    assert chosen(grub) == [("other", [])]


@pytest.mark.parametrize(
    "body",
    [
        SAME + "root=/dev/sda1",
        SAME + "root=PARTUUID=AB-01",
        SAME + "root=LABEL=mine",
        SAME + "root=/dev/mapper/vg-root",  # not there now: it may be this one
        SAME + ROOT + " rootflags=noatime,subvol=/@",
        SAME + "quiet",
        "search --no-floppy --fs-uuid --set=root 0b4c\n" + SAME + ROOT,
        *("linux %s/vmlinuz %s" % (place, ROOT) for place in ("", "/boot", "/@/boot", "/@boot", "/BOOT/debian@", "/kernels")),
    ],
)
def test_entries_with_another_name_of_the_root_filesystem_are_ours(grub: Grub, host: Host, plant: Plant, body: str) -> None:
    plant({
        "/dev/sda1": b"", "/boot/vmlinuz": b"", "/proc/self/mountinfo": "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "26 25 8:2 /kernels /boot rw - ext4 /dev/sda2 rw\n",
        "/boot/grub/custom.cfg": entry("mine", "x", body + "\n"),
    })  # fmt: skip
    links(host, {"/dev/disk/by-uuid/0b4c": "/dev/sda1", "/dev/disk/by-partuuid/ab-01": "/dev/sda1", "/dev/disk/by-label/mine": "/dev/sda1"})
    assert "mine" in [each.title for each in grub.entries()]


def links(host: Host, targets: dict[str, Any]) -> None:
    for path, target in targets.items():
        os.makedirs(os.path.dirname(host.path(path)), exist_ok=True)
        os.symlink(os.path.relpath(host.path(target), os.path.dirname(host.path(path))), host.path(path))
