# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on a device that is, or is to be, encrypted, and what is refused whatever is wanted."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import luks
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.headers import Signature, read_header
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.luks import header as luks_header


@dataclass(frozen=True)
class Found:
    """The device C(block) with C(name), its last part: a plain swap C(signature), or the LUKS C(header), and the Mapping that is open."""

    block: object
    name: str
    signature: Signature | None
    header: luks_header.Header | None
    mapping: luks.Mapping | None


def look(host, block, name):
    """What there is. Refused C(not_ours), C(header_damaged) or C(mapping_elsewhere)."""
    signature = read_header(host, block.path)
    header = luks_header.read(host, block.path)
    if signature is not None and header is not None and not header.uuid:
        header = None  # the rest of an earlier one
    if header is None:
        return Found(block, name, signature, None, None)
    ours = luks.luks_uuid(host, name)
    if header.uuid and header.uuid != ours:
        raise Refused(
            "not_ours",
            "%s is encrypted (LUKS%d, UUID %s), and not by this module. force does not override this check."
            % (block, header.version, header.uuid),
            "If nothing on it is needed, erase it by hand: cryptsetup erase %s, then wipefs --all %s." % (block.path, block.path),
        )
    if header.damage:
        raise Refused(
            "header_damaged",
            "The LUKS header on %s is damaged: %s." % (block, header.damage),
            ("One of its two copies is whole, run: cryptsetup repair %s" if header.uuid else
             "Restore it from a copy, if there is one: cryptsetup luksHeaderRestore --header-backup-file FILE %s. Without one nothing on "
             "the device can be read again, and it can be emptied: wipefs --all") % block.path
            + ("" if header.uuid else " %s" % block.path),
        )
    mappings = luks.over(host, block.name)
    mapping = next((each for each in mappings if each.name == name), None)
    if mappings and mapping is None:
        raise Refused(
            "mapping_elsewhere",
            "%s is open as %s, not as %s." % (block, mappings[0].path, name),
            "Close it (swapoff, then cryptsetup close %s), and run again." % mappings[0].name,
        )
    if mapping is None and host.exists("%s/%s" % (luks.DIRECTORY, name)):
        raise Refused(
            "mapping_elsewhere",
            "%s/%s is a mapping of something else than %s." % (luks.DIRECTORY, name, block),
            "Close it (cryptsetup close %s, dmsetup remove %s), or give the device another name." % (name, name),
        )
    return Found(block, name, signature, header, mapping)
