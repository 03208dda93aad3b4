# SPDX-License-Identifier: GPL-3.0-or-later
"""Which entries of a boot menu start this system, and not another one that the same menu offers.

A menu may offer the image file of a live system or an installer, and other distributions, whose kernels may even be in the same
/boot. Their entries are none of ours: nothing is asked of them, and nothing is done to them. The root filesystem tells, as the
running kernel was given it.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._core.names import BY_TAG

# By these arguments, initramfs tools look for a live system or an installer; with a value where only that one does.
LIVE = ("boot=live", "boot=casper", "findiso", "fromiso", "iso-scan/filename", "img_dev", "img_loop", "rd.live.image",
        "archisobasedir", "miso", "inst.repo", "inst.stage2", "live-media")  # fmt: skip


class System:
    """The running system of one Host, by its kernel command line."""

    def __init__(self, host):
        self._host = host
        self._words = host.read("/proc/cmdline", "").split()

    def starts(self, arguments, loop=False):
        """Whether an entry with C(arguments) starts this system, or what may be it. C(loop): its kernel is in the image of a filesystem."""
        if loop or any(_matches(word, LIVE) for word in arguments if word not in self._words):
            return False
        subvolumes = {_subvolume(arguments), _subvolume(self._words)} - {None}
        return self._same_root(arguments) and len(subvolumes) < 2

    def _same_root(self, arguments):
        """Whether C(root=) of C(arguments) is the root filesystem, or cannot be told from it."""
        own, other = _last(self._words, "root"), _last(arguments, "root")
        if own is None or other is None or own == other:
            return True
        devices = self._device(own), self._device(other)
        if None not in devices:
            return devices[0] == devices[1]
        if _tag(own)[0] == _tag(other)[0]:
            return False  # two names of the same kind for the same filesystem are the same
        return not self._is_missing(other)

    def _device(self, value):
        """The device that C(value) of C(root=) names, or None."""
        tag, name = _tag(value)
        path = name if tag == "/dev" else "%s/%s" % (BY_TAG[tag], name) if tag in BY_TAG else None
        return self._host.real(path) if path and self._host.exists(path) else None

    def _is_missing(self, value):
        """Whether C(value) is certain to name no device of this machine now."""
        tag, _name = _tag(value)
        return tag in BY_TAG and self._host.exists(BY_TAG[tag]) and self._device(value) is None


def _tag(value):
    """C((kind of name, name)) of a value of C(root=)."""
    value = value.strip('"')
    if value.startswith("/dev/"):
        return "/dev", value
    tag, equals, name = value.partition("=")
    name = name.strip('"')
    return (tag, name.lower() if tag == "PARTUUID" else name) if equals else ("", value)


def _last(words, name):
    values = [word[len(name) + 1 :] for word in words if word.startswith(name + "=")]
    return values[-1] if values else None


def _subvolume(words):
    """The subvolume that C(rootflags=) names, or None."""
    flags = (_last(words, "rootflags") or "").split(",")
    return next((flag.replace("=/", "=") for flag in flags if flag.startswith(("subvol=", "subvolid="))), None)


def _matches(word, patterns):
    return any(word == pattern or word.split("=", 1)[0] == pattern for pattern in patterns)
