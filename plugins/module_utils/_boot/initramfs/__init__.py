# SPDX-License-Identifier: GPL-3.0-or-later
"""The tool that builds the machine's initramfs: its settings, and images that are verified by their content.

C(TOOLS) has one class per tool; a new tool takes a row there and a file.
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

    Refused C(initramfs_unknown) if there is none, C(initramfs_ambiguous) if there are two.
    """
    kinds = [kind for kind in TOOLS if kind.present(host)]
    if len(kinds) > 1:  # the packages conflict with each other; if both are installed, the hooks of new kernels decide
        kinds = [kind for kind in kinds if any(host.exists(path) for path in kind.kernel_hooks)] or kinds
    if not kinds:
        raise Refused(
            "initramfs_unknown",
            "No supported initramfs tool found; looked for %s."
            % "; ".join("%s (%s)" % (kind.name, ", ".join(kind.files)) for kind in TOOLS),
            "Install one of them on the machine. Resuming from NVM requires an initramfs.",
        )
    if len(kinds) > 1:
        raise Refused(
            "initramfs_ambiguous",
            "New kernels get an initramfs from both %s." % " and ".join(kind.name for kind in kinds),
            "Remove one of the packages.",
        )
    return kinds[0](host)
