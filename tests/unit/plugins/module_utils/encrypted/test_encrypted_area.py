# SPDX-License-Identifier: GPL-3.0-or-later
"""What nvm_swap with encryption=luks does to a device and to crypttab, and takes away again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted import keys
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.encrypted.encrypted_machine import (
    DATA,
    KEY_FILE,
    MAPPER,
    OTHER,
    SIZE,
    Machine,
    luks_header,
    swap_header,
)

SECRET = b"correct horse battery staple"
BY_PASSPHRASE: dict[str, Any] = {"passphrase": SECRET.decode()}
BY_FILE: dict[str, Any] = {"unlock": "key_file"}
LINE = "NVM_SWAP UUID=%s %s luks,initramfs,nofail\n"


def told(machine: Machine) -> str:
    """Everything that could be seen or logged: commands with their arguments, and files but key files."""
    files = [path for path in Path(machine.host.path("/")).rglob("*") if path.is_file() and "keys.d" not in str(path)]
    found = [path.read_bytes()[:4096] for path in files if path.parts[-2] != "dev"]
    return "\n".join(machine.calls) + b"\n".join(found).decode("utf-8", "replace")


# present ---------------------------------------------------------------------------------------------------------------


def test_a_blank_device_is_encrypted(machine: Machine) -> None:
    transaction, result = machine.present(**BY_PASSPHRASE)
    assert transaction.changed and machine.start("pmem0")[:6] == b"LUKS\xba\xbe" and machine.keys == {SECRET}
    assert machine.start("dm-0")[-10:] == b"SWAPSPACE2" and "/dev/dm-0" in str(machine.text("/proc/swaps"))
    assert machine.text("/etc/crypttab") == LINE % (machine.luks_uuid, "none")
    assert machine.luks_uuid != machine.swap_uuid == result["uuid"]
    assert result["device"] == "/dev/NVM_SWAP" and result["swap_device"] == MAPPER and result["block_device"] == "/dev/dm-0"
    assert result["luks_uuid"] == machine.luks_uuid and result["packages_missing"] == [] and result["key_file"] is None
    assert result["size"] == SIZE - DATA - 4096
    assert machine.text("/var/lib/nvm-fastboot/luks.json") is None


def test_what_is_right_costs_no_command(machine: Machine) -> None:
    machine.encrypted(SECRET)
    transaction, result = machine.present(**BY_PASSPHRASE)
    assert not transaction.changed and machine.calls == [] and result["swap_device"] == MAPPER
    assert not machine.present()[0].changed  # the passphrase is needed only to open the device


def test_a_passphrase_is_seen_by_no_one(machine: Machine) -> None:
    transaction, result = machine.present(**BY_PASSPHRASE)
    assert SECRET.decode() not in told(machine) + repr(transaction.diff) + repr(result)
    assert SECRET in machine.inputs  # as it is, without a newline: so it is entered at the prompt
    assert SECRET.decode() not in repr(keys.passphrase_key(SECRET.decode()))


@pytest.mark.parametrize("wrong", ["", "a\nb", "x" * 513])
def test_a_passphrase_that_cannot_be_entered(machine: Machine, wrong: str) -> None:
    assert machine.refused(passphrase=wrong).code == "passphrase_invalid"


def test_a_key_file_is_made_for_root_alone(machine: Machine) -> None:
    transaction, result = machine.present(**BY_FILE)
    key = Path(machine.host.path(KEY_FILE))
    assert machine.mode(KEY_FILE) == 0o600 and machine.mode(os.path.dirname(KEY_FILE)) == 0o700
    assert machine.keys == {key.read_bytes()} and len(key.read_bytes()) == 64 and len(set(key.read_bytes())) > 30
    assert machine.text("/etc/crypttab") == LINE % (machine.luks_uuid, KEY_FILE) and result["key_file"] == KEY_FILE
    assert "--pbkdf pbkdf2 --pbkdf-force-iterations 1000" in " ".join(machine.calls)
    assert repr(key.read_bytes()) not in repr(transaction.diff)
    machine.calls.clear()
    assert not machine.present(**BY_FILE)[0].changed and machine.calls == []


def test_a_key_file_of_the_administrator_stays_and_is_derived_from(machine: Machine) -> None:
    machine.write("/root/nvm.key", b"twelve words", 0o600)
    _transaction, result = machine.present(unlock="key_file", key_file="/root/nvm.key")
    assert machine.keys == {b"twelve words"} and result["key_file"] == "/root/nvm.key"
    assert "pbkdf2" not in " ".join(machine.calls)
    machine.absent()
    assert machine.text("/root/nvm.key") == "twelve words"


def test_a_key_file_with_a_passphrase_in_case_it_is_lost(machine: Machine) -> None:
    machine.present(**BY_FILE, **BY_PASSPHRASE)
    assert machine.keys == {SECRET, Path(machine.host.path(KEY_FILE)).read_bytes()}


def test_a_key_in_the_tpm(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "dracut")
    assert machine.refused(unlock="tpm2", **BY_PASSPHRASE).code == "tpm2_unsupported"
    machine.write("/sys/class/tpm/tpm0/tpm_version_major", b"2\n")
    assert machine.refused(unlock="tpm2").code == "passphrase_missing"
    machine.present(unlock="tpm2", **BY_PASSPHRASE)
    line = "NVM_SWAP UUID=%s none luks,force,x-initrd.attach,nofail,tpm2-device=auto\n"
    assert machine.text("/etc/crypttab") == line % machine.luks_uuid
    assert "systemd-cryptenroll --unlock-key-file=/dev/stdin --tpm2-device=auto --tpm2-pcrs=7 /dev/pmem0" in machine.calls
    machine.calls.clear()
    assert not machine.present(unlock="tpm2")[0].changed and machine.calls == []


def test_a_tpm_needs_dracut(machine: Machine) -> None:
    machine.write("/sys/class/tpm/tpm0/tpm_version_major", b"2\n")
    refused = machine.refused(unlock="tpm2", **BY_PASSPHRASE)
    assert refused.code == "tpm2_unsupported" and "dracut" in refused.remedy


def test_check_mode_changes_nothing(machine: Machine) -> None:
    before = machine._state()
    transaction, result = machine.present(check=True, **BY_FILE)
    assert transaction.changed and result["swap_device"] == MAPPER and machine._state() == before
    assert "LUKS2" in transaction.diff[0]["after"] and not machine.host.exists(KEY_FILE)
    os.unlink(machine.host.path("/dev/NVM_SWAP"))
    assert machine.present(check=True, **BY_FILE)[0].changed


def test_packages_are_named(machine: Machine) -> None:
    os.unlink(machine.host.path("/usr/sbin/cryptsetup"))
    os.unlink(machine.host.path("/usr/share/initramfs-tools/hooks/cryptroot"))
    _transaction, result = machine.present(check=True, **BY_PASSPHRASE)
    assert result["packages_missing"] == ["cryptsetup-bin", "cryptsetup-initramfs"]
    with pytest.raises(Refused) as caught:
        machine.present(**BY_PASSPHRASE)
    assert caught.value.code == "cryptsetup_missing" and "apt-get install cryptsetup-bin" in caught.value.remedy
    assert machine.start("pmem0") == bytes(4096)


def test_a_crypttab_that_is_not_there(machine: Machine) -> None:
    os.unlink(machine.host.path("/etc/crypttab"))
    machine.present(**BY_PASSPHRASE)
    assert machine.mode("/etc/crypttab") == 0o600
    machine.absent()
    assert not machine.host.exists("/etc/crypttab") and not machine.host.exists("/var/lib/nvm-fastboot")


@pytest.mark.parametrize("text", ["", "# <target name>\t<source device>\n", "home UUID=1 none luks", "a b c d\n\n"])
def test_crypttab_is_brought_back_byte_for_byte(machine: Machine, text: str) -> None:
    machine.write("/etc/crypttab", text.encode(), 0o640)
    machine.present(**BY_FILE)
    assert machine.mode("/etc/crypttab") == 0o640
    transaction, result = machine.absent()
    assert transaction.changed and machine.text("/etc/crypttab") == text and result["signature"] == "crypto_LUKS"
    assert machine.start("pmem0", DATA) == bytes(DATA) and not machine.host.exists("/dev/mapper/NVM_SWAP")
    assert not machine.host.exists(os.path.dirname(KEY_FILE)) and "dm-0" not in str(machine.text("/proc/swaps"))
    assert not machine.absent()[0].changed


def test_a_failure_leaves_nothing(machine: Machine) -> None:
    before = machine._state()
    for command in ("luksFormat", "open", "mkswap", "swapon"):
        machine.fails = {command: 1}
        with pytest.raises(Refused) as caught:
            machine.present(**BY_FILE)
        assert caught.value.code == "command_failed"
        assert machine._state() == before, command
        assert not machine.host.exists("/dev/mapper/NVM_SWAP") and not machine.host.exists("/var/lib/nvm-fastboot/luks.json")


# from plain and back ----------------------------------------------------------------------------------------------------


def plain(machine: Machine, uuid: str = "", magic: bytes = b"SWAPSPACE2") -> None:
    machine.on("pmem0", swap_header(uuid or machine.swap_uuid, magic))


def test_a_swap_area_in_the_clear_is_replaced(machine: Machine) -> None:
    plain(machine)
    machine.swapped("/dev/pmem0")
    transaction, result = machine.present(**BY_FILE)
    assert transaction.changed and result["uuid"] == machine.swap_uuid
    assert machine.calls[0] == "swapoff /dev/pmem0" and machine.start("pmem0")[:4] == b"LUKS"
    assert "/dev/dm-0" in str(machine.text("/proc/swaps"))


def test_a_pending_image_is_not_replaced(machine: Machine) -> None:
    plain(machine, magic=b"S1SUSPEND")
    assert machine.refused(**BY_FILE).code == "image_pending"
    assert machine.present(**BY_FILE, force=True)[0].changed


def test_another_swap_area_is_not_replaced(machine: Machine) -> None:
    plain(machine, OTHER)
    assert machine.refused(**BY_FILE).code == "not_ours"


def test_a_filesystem_is_not_replaced(machine: Machine) -> None:
    machine.on("pmem0", b"\x53\xef", 1080)
    assert machine.refused(**BY_FILE).code == "holds_filesystem"
    machine.present(**BY_FILE, force=True)
    assert "wipefs --all /dev/pmem0" in machine.calls


def test_encryption_is_not_given_up_by_default(machine: Machine) -> None:
    machine.encrypted(SECRET)
    refused = machine.refused(encryption="none")
    assert refused.code == "encrypted" and "nvm_encryption: luks" in refused.remedy
    _transaction, result = machine.present(encryption="none", force=True)
    assert machine.start("pmem0")[-10:] == b"SWAPSPACE2" and machine.text("/etc/crypttab") == ""
    assert result["swap_device"] == "/dev/NVM_SWAP" and result["uuid"] == machine.swap_uuid


def test_back_by_way_of_absent(machine: Machine) -> None:
    machine.present(**BY_FILE)
    machine.absent()
    machine.present(encryption="none")
    assert machine.start("pmem0")[-10:] == b"SWAPSPACE2" and machine.text("/etc/crypttab") == ""


# keys that do not open --------------------------------------------------------------------------------------------------


def test_a_closed_device_is_opened(machine: Machine) -> None:
    machine.encrypted(SECRET, is_open=False)
    assert machine.refused().code == "passphrase_missing"
    assert machine.present(check=True, **BY_PASSPHRASE)[0].changed
    assert machine.present(**BY_PASSPHRASE)[0].changed and machine.host.exists(MAPPER)


def test_a_wrong_passphrase(machine: Machine) -> None:
    machine.encrypted(SECRET, is_open=False)
    refused = machine.refused(passphrase="wrong")
    assert refused.code == "passphrase_wrong" and "wrong" not in refused.message.replace("does not open", "")
    machine.present(passphrase="another", force=True)
    assert machine.keys == {b"another"}


def by_file(machine: Machine, is_open: bool = True) -> bytes:
    key = bytes(range(64))
    machine.write(KEY_FILE, key, 0o600)
    machine.encrypted(SECRET, key, line=KEY_FILE + " luks,initramfs,nofail", is_open=is_open)
    return key


@pytest.mark.parametrize("is_open", [True, False])
def test_a_lost_key_file(machine: Machine, is_open: bool) -> None:
    by_file(machine, is_open)
    os.unlink(machine.host.path(KEY_FILE))
    assert machine.refused(**BY_FILE).code == "key_missing"
    assert machine.refused(**BY_FILE, passphrase="wrong").code == "passphrase_wrong"
    machine.present(**BY_FILE, **BY_PASSPHRASE)
    new = Path(machine.host.path(KEY_FILE)).read_bytes()
    assert len(new) == 64 and new in machine.keys and SECRET in machine.keys and machine.host.exists(MAPPER)


def test_a_lost_key_file_and_no_passphrase(machine: Machine) -> None:
    by_file(machine)
    os.unlink(machine.host.path(KEY_FILE))
    machine.present(**BY_FILE, force=True)
    assert machine.keys == {Path(machine.host.path(KEY_FILE)).read_bytes()}
    assert "swapoff /dev/dm-0" in machine.calls and "cryptsetup close NVM_SWAP" in machine.calls


def test_another_key_file(machine: Machine) -> None:
    """It was replaced since it last opened the header: the copy in the next initramfs would not open it."""
    by_file(machine)
    machine.present(**BY_FILE)
    machine.write(KEY_FILE, bytes(64), 0o600)
    assert machine.refused(**BY_FILE).code == "key_wrong"
    machine.present(**BY_FILE, **BY_PASSPHRASE)
    assert bytes(64) in machine.keys


@pytest.mark.parametrize(("mode", "content", "code"), [(0o640, b"x", "key_exposed"), (0o600, b"", "key_file_invalid")])
def test_a_key_file_that_is_none(machine: Machine, mode: int, content: bytes, code: str) -> None:
    machine.write(KEY_FILE, content, mode)
    assert machine.refused(**BY_FILE).code == code


@pytest.mark.parametrize("path", ["key", "/etc/my key", "/run/key", "/dev/urandom", "/etc/$(x)"])
def test_a_path_of_no_key_file(machine: Machine, path: str) -> None:
    assert machine.refused(**BY_FILE, key_file=path).code == "key_file_invalid"


def test_another_way_to_unlock(machine: Machine) -> None:
    machine.present(**BY_FILE, **BY_PASSPHRASE)
    assert machine.refused(unlock="passphrase").code == "passphrase_missing"
    assert machine.refused(passphrase="wrong").code == "passphrase_wrong"
    transaction, result = machine.present(**BY_PASSPHRASE)
    assert transaction.changed and machine.text("/etc/crypttab") == LINE % (machine.luks_uuid, "none")
    assert "luksRemoveKey /dev/pmem0 " + KEY_FILE in result["warnings"][0]


# devices that are refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [True, False])
def test_luks_of_others_is_never_overwritten(machine: Machine, force: bool) -> None:
    machine.on("pmem0", luks_header(OTHER))
    for options in (BY_FILE, {"encryption": "none"}):
        assert machine.refused(**options, force=force).code == "not_ours"
    assert machine.refused("absent", force=force).code == "not_ours"
    machine.on("pmem0", (b"LUKS\xba\xbe\0\1".ljust(168, b"\0") + OTHER.encode()).ljust(4096, b"\0") + bytes(65536))  # LUKS1
    assert machine.refused(**BY_FILE, force=force).code == "not_ours"


@pytest.mark.parametrize(("offset", "remedy"), [((20,), "cryptsetup repair"), ((16404,), "repair"), ((20, 16404), "luksHeaderRestore")])
def test_a_damaged_header(machine: Machine, offset: tuple[int, ...], remedy: str) -> None:
    machine.encrypted(SECRET)
    for each in offset:
        machine.on("pmem0", b"\xff\xff", each)
    for verb, options in (("present", BY_PASSPHRASE), ("present", {"encryption": "none"}), ("absent", {})):
        refused = machine.refused(verb, **options, force=True)
        assert refused.code == "header_damaged" and remedy in refused.remedy


def test_another_mapping(machine: Machine) -> None:
    machine.encrypted(SECRET, is_open=False)
    machine.open("other")
    assert machine.refused(**BY_PASSPHRASE).code == "mapping_elsewhere"


def test_the_name_is_taken(machine: Machine) -> None:
    machine.write("/etc/crypttab", b"NVM_SWAP UUID=%s none luks\n" % OTHER.encode())
    assert machine.refused(**BY_PASSPHRASE).code == "mapping_elsewhere"


def test_a_line_with_a_random_key_for_the_device(machine: Machine) -> None:
    machine.write("/etc/crypttab", b"NVM_SWAP /dev/NVM_SWAP /dev/urandom swap\n")
    assert machine.refused(**BY_PASSPHRASE).code in ("device_claimed", "mapping_elsewhere")
    assert machine.refused(encryption="none").code == "device_claimed"


def test_the_device_below_is_to_be_given(machine: Machine) -> None:
    machine.encrypted(SECRET)
    os.symlink("dm-0", machine.host.path("/dev/ALIAS"))
    from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Transaction
    from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted import area

    for path in (MAPPER, "/dev/ALIAS"):
        with pytest.raises(Refused) as caught:
            area.present(Transaction(machine.host), path, encryption="luks", **BY_PASSPHRASE)
        assert caught.value.code == "device_invalid"


def test_a_small_device(machine: Machine) -> None:
    machine.write("/sys/class/block/pmem0/size", b"2048\n")
    assert machine.refused(**BY_PASSPHRASE).code == "device_too_small"


# absent -----------------------------------------------------------------------------------------------------------------


def test_an_image_in_the_mapping_is_kept(machine: Machine) -> None:
    machine.encrypted(SECRET)
    machine.on("dm-0", swap_header(machine.swap_uuid, b"S1SUSPEND"))
    machine.swapped()
    assert machine.refused("absent").code == "image_pending"
    assert machine.absent(force=True)[0].changed and machine.start("pmem0", DATA) == bytes(DATA)


def test_a_filesystem_in_the_mapping_is_kept(machine: Machine) -> None:
    machine.encrypted(SECRET)
    machine.swapped()
    machine.on("dm-0", bytes(4096))
    machine.on("dm-0", b"\x53\xef", 1080)
    assert machine.refused("absent").code == "holds_filesystem"
    machine.write("/proc/self/mountinfo", b"30 1 253:0 / /srv rw - ext4 /dev/dm-0 rw\n")
    assert machine.refused("absent", force=True).code == "device_in_use"


def test_a_closed_device_may_hold_an_image(machine: Machine) -> None:
    machine.encrypted(SECRET, is_open=False)
    refused = machine.refused("absent")
    assert refused.code == "mapping_closed" and "cryptsetup open /dev/pmem0 NVM_SWAP" in refused.remedy
    assert machine.absent(force=True)[0].changed


def test_absent_in_check_mode(machine: Machine) -> None:
    machine.encrypted(SECRET)
    before: list[Any] = machine._state()
    transaction, _result = machine.absent(check=True)
    assert transaction.changed and machine._state() == before


def test_absent_removes_the_line_of_a_device_that_is_gone(machine: Machine) -> None:
    machine.present(**BY_FILE)
    os.unlink(machine.host.path("/dev/NVM_SWAP"))
    machine.absent()
    assert machine.text("/etc/crypttab") == "" and not machine.host.exists(KEY_FILE)
