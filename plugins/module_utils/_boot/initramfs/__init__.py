# SPDX-License-Identifier: GPL-3.0-or-later
"""The tool that builds the machine's initramfs: its settings, and images that are verified by their content.

C(TOOLS) has one class per tool; a new tool takes a row there and a file.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs import packages
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.base import Initramfs
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.dracut import Dracut
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.initramfs_tools import InitramfsTools
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

__all__ = ["TOOLS", "Initramfs", "detect", "detect_for_removal"]

TOOLS = (InitramfsTools, Dracut)


def detect(host):
    """The Initramfs tool of the machine: the one that is installed and that new kernels call.

    Refused C(initramfs_unknown) if there is none, C(initramfs_ambiguous) if there are two.
    """
    kinds = [kind for kind in TOOLS if kind.present(host)]
    if len(kinds) > 1:
        kinds = _called(host, kinds) or kinds
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
            "Keep the one that built the images in /boot, and remove the other: apt-get purge %s."
            % " or ".join(kind.package for kind in kinds),
        )
    return kinds[0](host)


def _called(host, kinds):
    """Those of C(kinds) that new kernels call. The packages with the hooks conflict with each other, but the packages with the commands
    do not, and a package that was removed leaves its hooks, which are configuration: so the list of packages decides, if there is one."""
    installed = [kind for kind in kinds if packages.is_installed(host, kind.package)]
    return installed or [kind for kind in kinds if any(host.exists(path) for path in kind.kernel_hooks)]


def detect_for_removal(host):
    """The tool of the machine; None if none is recognised and no settings of ours are left.

    Refused C(settings_remain) if there are settings of ours, which would stay in the images.
    """
    try:
        return detect(host)
    except Refused as refused:
        left = [path for tool in others(host) for path in tool.own_files()]
        if not left:
            return None
        raise Refused(
            "settings_remain",
            "%s is a setting of ours, and the images that were built with it cannot be built again. %s"
            % (", ".join(left), refused.message),
            "%s Then run the module again. Nothing was changed." % refused.remedy,
        ) from refused


def others(host, tool=None):
    """All tools but C(tool), whether installed or not: settings of ours for them are of a time when the machine had another tool."""
    return [kind(host) for kind in TOOLS if tool is None or kind.name != tool.name]
