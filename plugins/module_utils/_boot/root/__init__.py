# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems as snapshots need them: a root filesystem that stays as it is, read-only, with all that is written to it in memory (an
overlay); or a writable one, and only those filesystems read-only whose changes are not seen (guarded).

The initramfs tool makes the overlay: initramfs-tools with the package overlayroot, dracut with its module overlayfs. Here are its
settings, the kernel argument that switches it on, and read-only mounts of the other filesystems, because a snapshot may be resumed only
if no filesystem on a block device is mounted writable. The same run builds the images again whose C(sources) have changed.

While the system runs on the overlay, what a module writes is lost at the next boot. So only one change is made then: the next boot
gets a writable root.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders
from ansible_collections.nvm.fastboot.plugins.module_utils._boot import initramfs as initramfs_tools
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.root import mounts, running
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.root.built import Built
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.root.kinds import KINDS
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused, Transaction

PURPOSE = "overlay"
MODES = ("overlay", "guarded", "writable")


def apply(tx, mode, sources=(), data_mounts=()):
    """Have the next boots get a root filesystem in C(mode), and images of the content of C(sources). Returns the module's result."""
    host = tx.host
    tool = initramfs_tools.detect(host)
    kind = KINDS[tool.name]
    overlaid = running.lower(host)
    if overlaid is None:
        built = _configure(tx, tool, kind, mode, sources, data_mounts)
    elif mode != "overlay":
        built = []
        running.open_next_boot(tx, overlaid, bootloaders.detect(host).configuration, kind.arguments)
    else:
        built = []
        trial = Transaction(host, check_mode=True, kept=False)
        _configure(trial, tool, kind, mode, sources, data_mounts)
        if trial.changed and not tx.check_mode:
            raise Refused(
                "root_is_overlay",
                "The root filesystem is an overlay in memory: what is written to it is lost at the next boot.",
                "Run the module with mode=writable, reboot, and run it again.",
            )
        tx.diff += trial.diff
    return {
        "mode": mode,
        "running": "writable" if overlaid is None else "overlay",
        "reboot_required": (overlaid is None) == (mode == "overlay"),
        "initramfs": tool.name,
        "rebuilt": built,
    }


def _configure(tx, tool, kind, mode, sources, data_mounts):
    """The paths of the images that were built."""
    host = tx.host
    bootloader = bootloaders.detect(host)
    overlay = mode == "overlay"
    if overlay:
        _check_bootloader(bootloader)
        _check(tx, kind, bootloader)
    settings = kind.settings() if overlay else {}
    for path in kind.files:
        tx.write(path, settings.get(path))
    mounts.configure(tx, mode, data_mounts, kind)

    built = Built(host, [*sources, *((kind.script, *kind.files) if overlay else ())])
    lacking = kind.lacking if overlay else None
    kernels = [kernel for kernel in tool.kernels() if not _is_current(tool, tool.image(kernel), built, lacking)]
    tool.rebuild(tx, kernels, why="from the present settings", lacking=lacking)
    if overlay:
        changed = bootloader.ensure(tx, PURPOSE, kind.arguments, kind.drop)
    else:
        changed = bootloader.forget(tx, PURPOSE)
    if not built.holds(bootloader.configuration) and not changed:
        bootloader.regenerate(tx)
    if not tx.check_mode:
        tool.finish()
        built.learn([tool.image(kernel) for kernel in tool.kernels()] + [bootloader.configuration])
    return [tool.image(kernel) for kernel in kernels]


def _check_bootloader(bootloader):
    """The overlay is given up by a change of one file right before a reboot, which only GRUB's allows so far (running.open_next_boot)."""
    if bootloader.name != "grub":
        raise Refused(
            "bootloader_unsupported",
            "The machine boots with %s, for which a root filesystem in memory is not supported." % bootloader.title,
            "Use mode=guarded, or boot the machine with GRUB.",
        )


def _is_current(tool, image, built, lacking):
    """Whether C(image) need not be built again. Its content is listed, which takes seconds, unless it is known what it was built from."""
    if not built.holds(image):
        return False
    return not lacking or built.is_known(image) or not lacking(tool.listing(image))


def _check(tx, kind, bootloader):
    """Refused if the tool cannot make an overlay. In check mode, an earlier task would install a package that is missing."""
    if kind.script and not tx.host.exists(kind.script) and not tx.check_mode:
        raise Refused(
            "overlay_missing",
            "%s cannot make an overlay: %s does not exist." % (kind.title, kind.script),
            "Install the package %s." % kind.package,
        )
    for entry in bootloader.entries():
        for word in entry.arguments:
            if word.split("=", 1)[0] in kind.conflicts:
                raise Refused(
                    "conflicting_argument",
                    "The entry '%s' passes %s, with which %s makes no overlay." % (entry.title, word, kind.title),
                    "Remove the argument, or use a root filesystem that needs none.",
                )
