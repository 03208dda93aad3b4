# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that an encrypted swap area needs, in the system and in its initramfs, and the Debian packages with them."""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

# Package, and paths of which one exists if it is installed; by the initramfs tool, and for a key in a TPM.
ALL = (("cryptsetup-bin", ("/usr/sbin/cryptsetup", "/sbin/cryptsetup")),)
TOOLS = {
    "initramfs-tools": (("cryptsetup-initramfs", ("/usr/share/initramfs-tools/hooks/cryptroot",)),),
    # Debian 12 has it in the package systemd
    "dracut": (("systemd-cryptsetup", ("/usr/lib/systemd/systemd-cryptsetup", "/lib/systemd/systemd-cryptsetup",
                                       "/usr/bin/systemd-cryptsetup")),),
}
TPM2 = (
    ("systemd-cryptsetup", ("/usr/bin/systemd-cryptenroll",)),
    ("tpm2-tools", ("/usr/bin/tpm2",)),  # dracut's module tpm2-tss asks for it
    ("libtss2-tcti-device0", ("/usr/lib/*/libtss2-tcti-device.so.0*", "/usr/lib/libtss2-tcti-device.so.0*")),
)


def missing(host, tool, tpm2):
    """The packages to install, for the initramfs tool with that name; C(tpm2): the key is in a TPM."""
    rows = ALL + TOOLS.get(tool, ()) + (TPM2 if tpm2 else ())
    return list(dict.fromkeys(package for package, paths in rows if not any(host.glob(path) for path in paths)))


def check(names):
    """Refused C(cryptsetup_missing) if there are C(names) of packages to install."""
    if names:
        raise Refused(
            "cryptsetup_missing",
            "Programs for an encrypted swap area are not installed: %s." % ", ".join(names),
            "Install the packages on the machine: apt-get install %s. The role hibernate_to_nvm does." % " ".join(names),
        )
