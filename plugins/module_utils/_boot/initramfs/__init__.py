# SPDX-License-Identifier: GPL-3.0-or-later
"""The tool that builds the machine's initramfs: settings of our own, images verified by a look inside them.

Used by C(boot_resume), which has the images built, and by C(nvm_info), which only looks. One class per tool in
C(TOOLS); adding one touches this table and one new file.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.base import Initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.dracut import Dracut
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.initramfs_tools import InitramfsTools
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

__all__ = ["TOOLS", "Initramfs", "detect"]

TOOLS = (InitramfsTools, Dracut)


def detect(host):
    """The Initramfs tool of the machine: the one that is installed and that new kernels call.

    Refused C(initramfs_unknown) where there is none, C(initramfs_ambiguous) where there are two.
    """
    found = [kind for kind in TOOLS if kind.present(host)]
    if len(found) > 1:  # the packages exclude each other; whoever has both knows which of them new kernels call
        found = [kind for kind in found if any(host.exists(path) for path in kind.kernel_hooks)] or found
    if not found:
        raise Refused(
            "initramfs_unknown",
            "No tool that builds an initramfs was recognised; looked for %s."
            % "; ".join("%s (%s)" % (kind.name, ", ".join(kind.files)) for kind in TOOLS),
            "Install one of them on the machine: without an initramfs no image on NVM can be resumed.",
        )
    if len(found) > 1:
        raise Refused(
            "initramfs_ambiguous",
            "New kernels get an initramfs from both %s." % " and ".join(kind.name for kind in found),
            "Remove one of the packages.",
        )
    return found[0](host)
