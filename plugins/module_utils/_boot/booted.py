# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a reboot can still help: a record of the boot during which a setting of the bootloader was last changed.

If a kernel that was started later still runs without the setting, then it was not started by what was configured, and
starting it in the same way again changes nothing. Boots are told apart by their id, not by the clock.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._core import records

OTHER_BOOTLOADER = (
    "Compare /proc/cmdline with the boot menu: another entry of the menu, another bootloader (efibootmgr lists them), or kexec "
    "(LOAD_KEXEC=true in /etc/default/kexec) has started it. Start the machine by the configured one, and run this again."
)
RECORD = "booted"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def reboot_in_vain(tx, purpose, lacking):
    """Why another reboot does not help, or None.

    C(lacking) is what the running kernel lacks of the settings for C(purpose), as they are after C(tx), and what to look at: two
    texts, or None. Writes the record, which is not a change of the machine's configuration.
    """
    host = tx.host
    boot, boots = host.attribute(BOOT_ID), records.load(host, RECORD)
    if tx.changed or purpose not in boots:
        if boot and lacking and not tx.check_mode:
            records.store(host, RECORD, dict(boots, **{purpose: boot}))
        return None
    if not lacking or boots[purpose] == boot:
        return None
    return "The machine was rebooted since this was configured, and still its kernel %s. Another reboot does not help. %s" % lacking


def forget(tx, purpose):
    """Remove the record for C(purpose)."""
    boots = records.load(tx.host, RECORD)
    if purpose in boots and not tx.check_mode:
        del boots[purpose]
        records.store(tx.host, RECORD, boots)
