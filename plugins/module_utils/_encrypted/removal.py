# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes an encrypted swap area away: the swap area, the mapping, its line in crypttab, the header with all keys, and what was recorded.

Without its header nothing of what is on the device can be read again.
"""

from __future__ import annotations

import os

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted import cryptsetup, keys
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import area, claims, devices, luks
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.headers import Signature, read_header
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks import crypttab
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks import header as luks_header

STEP = 1 << 20


def remove(tx, found, uuid=None, force=False):
    """Undo the encryption of C(found), a Found with a header of ours. Refused as by area.absent, and C(mapping_closed)."""
    host, block = tx.host, found.block
    if found.mapping is not None:
        _remove_swap(tx, found.mapping, uuid, force)
    elif not force:
        raise Refused(
            "mapping_closed",
            "%s is encrypted and not open, so that it cannot be seen whether it holds a hibernation image." % block,
            "Open it (cryptsetup open %s %s), and run again. To give up what is on it, set force=true." % (block.path, found.name),
        )
    tx.note("LUKS header %s" % block, "uuid: %s\nmapping: %s\n" % (found.header.uuid, found.name), "")
    forget_line(tx, found.name)
    if tx.check_mode:
        return
    if found.mapping is not None:
        cryptsetup.close(host, found.name)
    erase(host, block, found.header)
    forget(host, found.name)


def _remove_swap(tx, mapping, uuid, force):
    """Deactivate and erase the swap area in the open mapping. Refused also where something else is in it."""
    host = tx.host
    block = devices.block_device(host, mapping.path)
    if read_header(host, block.path) is None:
        phrases = devices.users(host, block)
        if phrases:
            raise devices.device_in_use(block, ", ".join(phrases))
        area.check_contents(host, block, Signature(), force)
    area.absent(tx, mapping.path, uuid, force)


def forget_line(tx, name):
    """Remove the line for C(name) from crypttab, if it is ours; and the file, if it was made here and has nothing else."""
    host = tx.host
    text = host.read(claims.CRYPTTAB)
    fields = crypttab.fields_of(text or "", name)
    if fields is None or fields[1] != "UUID=%s" % luks.luks_uuid(host, name):
        return
    after = crypttab.without(text, name)
    tx.write(claims.CRYPTTAB, None if not after and keys.load(host, name).get("created") else after)
    reload(tx)


def reload(tx):
    """Have systemd generate its units from the new crypttab."""
    if not tx.check_mode and tx.host.exists("/run/systemd/system"):
        tx.host.run([tx.host.tool("systemctl"), "daemon-reload"])


def erase(host, block, header):
    """Overwrite all of C(header), keys included, with zeros."""
    with devices.claimed(host, block, os.O_RDWR) as handle:
        if luks_header.read(host, block.path) != header:
            raise Refused(
                "device_changed", "The LUKS header on %s changed during the run." % block,
                "Run again when no other program writes to the device.",
            )
        for offset in range(0, min(header.data, block.size), STEP):
            os.pwrite(handle, bytes(min(STEP, header.data - offset, block.size - offset)), offset)
        os.fsync(handle)
    area.settle(host)


def forget(host, name):
    """Remove the key file that was made here, and the record."""
    made = keys.load(host, name).get("made")
    if isinstance(made, str) and keys.PATH.match(made):
        keys.remove_file(host, made)
    keys.store(host, name, {})
