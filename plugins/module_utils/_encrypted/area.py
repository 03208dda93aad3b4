# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates a swap area, in the clear or encrypted, and removes it (C(nvm_swap)).

Encrypted: LUKS2 on the device, a line in crypttab, the mapping /dev/mapper/NAME, and in it the swap area, by the code for any device
(_swap.area). The UUID of the header is derived from the machine id as that of the swap area is; a header with another one is never
written to.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.part import STATE, Part, by_state
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted import cryptsetup, keys, packages, removal
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted.cryptsetup import Key
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted.found import look
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import area, claims, devices, luks
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.headers import Signature
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.identity import (
    DEFAULT_DEVICE,
    DEFAULT_LABEL,
    DEFAULT_PRIORITY,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks import crypttab
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks import header as luks_header

LEAST = 32 << 20  # a header takes 16 MiB
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
# Options of crypttab(5) with which each tool opens the mapping in the initramfs, also if the device is not the root filesystem's.
# dracut: "force" up to 060, x-initrd.attach since.
OPTIONS = {"initramfs-tools": ("luks", "initramfs", "nofail"), "dracut": ("luks", "force", "x-initrd.attach", "nofail")}
TPM2_OPTION = "tpm2-device=auto"


@dataclass(frozen=True)
class Wanted:
    """The options for the encryption, checked. C(unlock): what opens the mapping at boot; C(line): of crypttab."""

    name: str
    uuid: str
    unlock: str
    passphrase: Key | None
    key_file: str
    line: str
    force: bool

    @property
    def path(self):
        return "%s/%s" % (luks.DIRECTORY, self.name)


def present(tx, device, encryption="none", unlock="passphrase", passphrase=None, key_file=None, uuid=None, label=DEFAULT_LABEL,
            priority=DEFAULT_PRIORITY, active=True, force=False):
    """Make C(device) a swap area, encrypted or not. Returns what C(nvm_swap) returns."""
    swap = {"label": label, "priority": priority, "active": active, "force": force}
    if encryption == "none":
        _check_plain(tx, device, force)
        result = area.present(tx, device, uuid=uuid, **swap)
        return dict(result, swap_device=device, luks_uuid=None, key_file=None, packages_missing=[])
    tool = initramfs.detect(tx.host).name
    wanted = _wanted(tx.host, device, tool, unlock, passphrase, key_file, force)
    lacking = packages.missing(tx.host, tool, unlock == "tpm2")
    if not tx.check_mode:
        packages.check(lacking)
    _check_line(tx, wanted)
    warnings = _encrypt(tx, device, wanted, uuid, can_test=not lacking)
    result = area.present(tx, wanted.path, uuid=uuid, **swap)
    return dict(
        result,
        device=device,
        swap_device=wanted.path,
        luks_uuid=wanted.uuid,
        key_file=wanted.key_file or None,
        packages_missing=lacking,
        warnings=warnings + result["warnings"],
    )


def absent(tx, device, uuid=None, force=False):
    """Remove our swap area on C(device), and with it the encryption. Returns what C(nvm_swap) returns."""
    host, name = tx.host, os.path.basename(device)
    more: dict = {"swap_device": None, "luks_uuid": None, "key_file": None, "packages_missing": []}
    try:
        block = devices.block_device(host, device)
    except Refused:
        block = None  # said by area.absent, where it is an error
    found = look(host, block, name) if block else None
    if found is None or found.header is None:
        result = area.absent(tx, device, uuid, force)
        if NAME.match(name):
            removal.forget_line(tx, name)
        if not tx.check_mode and keys.load(host, name):
            removal.forget(host, name)
        return dict(result, **more)
    removal.remove(tx, found, uuid, force)
    result = dict.fromkeys(("uuid", "label", "size", "priority"))
    return dict(result, device=device, block_device=block.path, active=False, signature="crypto_LUKS", warnings=[], **more)


# checks --------------------------------------------------------------------------------------------------------------


def _check_plain(tx, device, force):
    """Refused C(encrypted) where C(device) is encrypted here; with C(force), undo that. Refused C(not_ours) for LUKS of others."""
    try:
        block = devices.block_device(tx.host, device)
    except Refused:
        return  # said by area.present
    if luks_header.read(tx.host, block.path) is None:
        return
    found = look(tx.host, block, os.path.basename(device))
    if found.header is None:
        return
    if not force:
        raise Refused(
            "encrypted",
            "%s is encrypted, and was to hold a swap area in the clear." % block,
            "To keep it encrypted, set encryption=luks (nvm_encryption: luks for the role). To store images in the clear from now on, "
            "remove it first (state=absent; playbook nvm.fastboot.remove), or set force=true.",
        )
    removal.remove(tx, found, force=True)


def _wanted(host, device, tool, unlock, passphrase, key_file, force):
    """The Wanted. Refused C(device_invalid), C(tpm2_unsupported), and as by keys."""
    name = os.path.basename(device)
    if not NAME.match(name) or device.startswith(luks.DIRECTORY + "/"):
        raise Refused(
            "device_invalid",
            "%r cannot be encrypted: its last part is to be the name of the mapping, and it is to be the device below." % device,
            "Give a path such as /dev/NVM_SWAP.",
        )
    if unlock == "tpm2":
        _check_tpm2(host, tool)
    path = keys.path_for(name, key_file) if unlock == "key_file" else ""
    options = OPTIONS[tool] + ((TPM2_OPTION,) if unlock == "tpm2" else ())
    uuid = luks.luks_uuid(host, name)
    line = crypttab.render(name, uuid, path, options)
    return Wanted(name, uuid, unlock, keys.passphrase_key(passphrase), path, line, force)


def _check_tpm2(host, tool):
    if tool != "dracut":
        raise Refused(
            "tpm2_unsupported",
            "The images of %s have no program that asks a TPM for the key." % tool,
            "Use dracut (apt-get install dracut, which takes the place of initramfs-tools), or unlock=key_file or passphrase.",
        )
    if not any(host.attribute("%s/tpm_version_major" % path) == "2" for path in host.glob("/sys/class/tpm/tpm*")):
        raise Refused(
            "tpm2_unsupported",
            "The machine has no TPM 2.0 (/sys/class/tpm).",
            "Switch it on in the firmware, or give the virtual machine one; or use unlock=key_file or passphrase.",
        )


# steps ---------------------------------------------------------------------------------------------------------------


def _encrypt(tx, device, wanted, uuid, can_test):
    """Bring the header, the key, the line of crypttab and the open mapping about. Returns warnings."""
    host = tx.host
    try:
        block = devices.block_device(host, device)
    except Refused as refused:
        if tx.check_mode and refused.code == "device_missing":
            _note(tx, device, wanted)
            return []
        raise
    _check_stack(host, block)
    claims.check(host, block, wanted.name)
    found = look(host, block, wanted.name)
    if found.header is not None and wanted.force and _is_lost(host, found, wanted, can_test):
        removal.remove(tx, found, uuid, force=True)
        found = None if tx.check_mode else look(host, block, wanted.name)
    if found is None or found.header is None:
        _format(tx, block, found, wanted, uuid)
    elif can_test or found.mapping is not None:
        _open(tx, found, wanted)
    _write_line(tx, wanted)
    return _other_keys(host, block, wanted)


def _check_line(tx, wanted):
    """Refused C(mapping_elsewhere) where crypttab has the name for another device, C(root_is_overlay) where a line would not last."""
    text = tx.host.read(claims.CRYPTTAB, "")
    fields = crypttab.fields_of(text, wanted.name)
    if fields is not None and fields[1] != wanted.line.split()[1]:
        raise Refused(
            "mapping_elsewhere",
            "%s has a line for %s that is not ours: %s." % (claims.CRYPTTAB, wanted.name, " ".join(fields)),
            "Remove it, or give the device another name.",
        )
    if fields != wanted.line.split():
        tx.check_kept(claims.CRYPTTAB)


def _check_stack(host, block):
    encrypted = luks.below(host, block.path)
    if encrypted:
        raise Refused(
            "device_invalid",
            "%s is encrypted already: it is on the mapping %s." % (block, encrypted[0].name),
            "Use it as it is, with encryption=none.",
        )


def _format(tx, block, found, wanted, uuid):
    """Make the header, and open it. What the device holds is checked as for a swap area, and again right before it is overwritten."""
    host = tx.host
    if block.size < LEAST:
        raise Refused(
            "device_too_small", "%s has %d bytes; an encrypted swap area needs %d." % (block, block.size, LEAST),
            "Reserve more NVM with nvm_reservation.",
        )
    if block.read_only:
        raise Refused("device_read_only", "%s is read-only." % block, "Make it writable (blockdev --setrw).")
    key = wanted.passphrase
    if wanted.key_file:
        keys.file_key(host, wanted.key_file, False)
    elif key is None:
        raise keys.passphrase_missing(block, "it is to be encrypted, and opened with it" + (
            " if the TPM does not give the key" if wanted.unlock == "tpm2" else ""))
    if found is not None and found.signature is not None:
        area.absent(tx, block.given, uuid, wanted.force)
    other = area.check_contents(host, block, Signature(), wanted.force) if found is not None and found.signature is None else None
    _note(tx, block, wanted, other)
    if tx.check_mode:
        return
    file = _file_key(tx, block, wanted)
    if other:
        host.run([host.tool("wipefs"), "--all", block.path])
    area.check_contents(host, block, Signature(), False)
    tx.on_failure(lambda: _unmake(host, block, wanted))
    cryptsetup.make(host, block, wanted.uuid, wanted.name, key or file)
    if key and file:
        cryptsetup.add_file(host, block, key, file)
    if wanted.unlock == "tpm2":
        cryptsetup.enrol_tpm2(host, block, key)
    if not _is_ours(host, block, wanted):
        raise Refused(
            "verify_failed", "%s does not hold the wanted LUKS header after cryptsetup luksFormat." % block,
            "Check that no other program writes to the device, and check the kernel log for errors of the device.",
        )
    _open_mapping(tx, block, wanted, file or key)


def _unmake(host, block, wanted):
    """Erase a header of ours that was just made, if it is not in use."""
    try:
        if _is_ours(host, block, wanted):
            removal.erase(host, block, luks_header.read(host, block.path))
    except Refused:
        pass


def _is_ours(host, block, wanted):
    header = luks_header.read(host, block.path)
    return header is not None and header.uuid == wanted.uuid


def _open(tx, found, wanted):
    """Open the mapping if it is not; have the key that is wanted open the header, and say so of a key that does not."""
    host, block = tx.host, found.block
    same = (crypttab.fields_of(host.read(claims.CRYPTTAB, ""), wanted.name) or []) == wanted.line.split()
    closed = found.mapping is None
    if closed and not tx.check_mode and block.read_only:
        raise Refused("device_read_only", "%s is read-only." % block, "Make it writable (blockdev --setrw).")
    if wanted.unlock == "key_file":
        key = _tested_file(tx, found, wanted, same and not closed)
    else:
        key = wanted.passphrase
        if key is None and (closed or (not same and wanted.unlock == "passphrase")):
            raise keys.passphrase_missing(block, "it is to be opened" if closed else "it is to be opened with it at boot")
        if key is not None and (closed or not same) and not cryptsetup.opens(host, block, key):
            raise keys.wrong("passphrase", block)
        if wanted.unlock == "tpm2" and keys.TPM2 not in found.header.tokens:
            _enrol_tpm2(tx, block, key)
    if closed:
        tx.note("mapping %s" % wanted.path, "closed\n", "open\n")
        if not tx.check_mode:
            _open_mapping(tx, block, wanted, key)


def _tested_file(tx, found, wanted, known):
    """The key file as a Key, which opens the header; it is added with the passphrase if it does not. Nothing is tested of a file that
    did not change since it was (C(known))."""
    host, block = tx.host, found.block
    record = keys.load(host, wanted.name)
    file = keys.file_key(host, wanted.key_file, record.get("made") == wanted.key_file)
    state = keys.state_of(host, wanted.key_file)
    if file is not None and ((known and record.get("tested") == state) or cryptsetup.opens(host, block, file)):
        _remember(tx, wanted, tested=state)
        return file
    if wanted.passphrase is None:
        raise keys.missing(wanted.key_file, block) if file is None else keys.wrong("key file", block)
    if not cryptsetup.opens(host, block, wanted.passphrase):
        raise keys.wrong("passphrase", block)
    tx.note("key file %s" % wanted.key_file, "", "opens %s\n" % block)
    if tx.check_mode:
        return wanted.passphrase
    file = _file_key(tx, block, wanted)
    cryptsetup.add_file(host, block, wanted.passphrase, file)
    _remember(tx, wanted, tested=keys.state_of(host, wanted.key_file))
    return file


def _enrol_tpm2(tx, block, key):
    if key is None:
        raise keys.passphrase_missing(block, "the key is to be put into the TPM")
    tx.note("LUKS header %s" % block, "", "key in the TPM\n")
    if not tx.check_mode:
        cryptsetup.enrol_tpm2(tx.host, block, key)


def _file_key(tx, block, wanted):
    """The key file as a Key, made if it is missing; None if there is to be none."""
    host, path = tx.host, wanted.key_file
    file = keys.file_key(host, path, False) if path else None
    if file is not None or not path:
        return file
    before = keys.load(host, wanted.name)

    def undo():
        if not _is_ours(host, block, wanted):  # else it may be what opens it
            keys.remove_file(host, path)
            keys.store(host, wanted.name, before)

    tx.on_failure(undo)
    file = keys.make_file(host, path)
    keys.store(host, wanted.name, {**before, "made": path})
    return file


def _open_mapping(tx, block, wanted, key):
    if not cryptsetup.open_mapping(tx.host, block, wanted.name, key):
        raise keys.wrong("key file" if key.file else "passphrase", block)
    tx.on_failure(lambda: cryptsetup.close(tx.host, wanted.name, ok=None))
    if key.file:
        _remember(tx, wanted, tested=keys.state_of(tx.host, wanted.key_file))
    area.settle(tx.host)


def _is_lost(host, found, wanted, can_test):
    """Whether nothing that was given opens the header, so that C(force) makes a new one."""
    if not can_test:
        return False
    if found.mapping is not None and wanted.unlock != "key_file":
        return wanted.passphrase is not None and not cryptsetup.opens(host, found.block, wanted.passphrase)
    made = keys.load(host, wanted.name).get("made") == wanted.key_file
    file = keys.file_key(host, wanted.key_file, made) if wanted.key_file else None
    return not any(key is not None and cryptsetup.opens(host, found.block, key) for key in (file, wanted.passphrase))


def _write_line(tx, wanted):
    """Write the line of crypttab."""
    text = tx.host.read(claims.CRYPTTAB)
    if tx.write(claims.CRYPTTAB, crypttab.with_line(text or "", wanted.line, wanted.name), 0o600):
        if text is None:
            _remember(tx, wanted, created=True)
        removal.reload(tx)


def _other_keys(host, block, wanted):
    made = keys.load(host, wanted.name).get("made")
    if not made or made == wanted.key_file or not host.exists(str(made)):
        return []
    return ["The key file %s still opens %s. To end that: cryptsetup luksRemoveKey %s %s, then remove the file." % (
        made, block, block.path, made)]


def _remember(tx, wanted, **more):
    if tx.check_mode:
        return
    before = keys.load(tx.host, wanted.name)
    tx.on_failure(lambda: keys.store(tx.host, wanted.name, before))
    keys.store(tx.host, wanted.name, {**before, **more})


def _note(tx, device, wanted, other=None):
    tx.note(
        "LUKS header %s" % device,
        "type: %s\n" % (other or "nothing"),
        "type: LUKS2\nuuid: %s\nmapping: %s\nunlock: %s%s\n" % (
            wanted.uuid, wanted.path, wanted.unlock, " %s" % wanted.key_file if wanted.key_file else ""),
    )


PART = Part(
    {
        "device": {"type": "str", "default": DEFAULT_DEVICE},
        "encryption": {"type": "str", "choices": ["none", "luks"], "default": "none"},
        "unlock": {"type": "str", "choices": ["passphrase", "key_file", "tpm2"], "default": "passphrase"},
        "passphrase": {"type": "str", "no_log": True},
        "key_file": {"type": "path", "no_log": False},
        "uuid": {"type": "str"},
        "label": {"type": "str", "default": DEFAULT_LABEL},
        "priority": {"type": "int", "default": DEFAULT_PRIORITY},
        "active": {"type": "bool", "default": True},
        "force": {"type": "bool", "default": False},
        "state": STATE,
    },
    by_state(present, absent, absent_options=("device", "uuid", "force")),
)
