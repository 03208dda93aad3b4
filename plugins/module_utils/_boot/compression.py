# SPDX-License-Identifier: GPL-3.0-or-later
"""Compression of the hibernation image: the kernel arguments to select it, and the modules it needs in the initramfs."""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

COMPRESSIONS = ("lzo", "lz4", "none")
ARGUMENTS = ("hibernate=nocompress", "hibernate.compressor")
COMPRESSOR_SINCE = (6, 9)  # hibernate.compressor=, CONFIG_HIBERNATION_DEF_COMP; earlier kernels have LZO built in
COMPRESSOR_PARAMETER = "/sys/module/hibernate/parameters/compressor"


def select(host, kernels, compression):
    """C((arguments, modules)): the kernel arguments for C(compression), and the modules for decompression.

    C(compression) is one of COMPRESSIONS, or None for the kernel's default. Refused C(compressor_unsupported) if one of
    C(kernels) does not support it.
    """
    if compression == "none":
        return ["hibernate=nocompress"], []
    selecting = [kernel for kernel in kernels if has_selection(host, kernel)]
    if compression == "lz4":
        unable = [kernel for kernel in kernels if kernel not in selecting or not _crypto(host, kernel, "lz4")]
        if unable:
            raise Refused(
                "compressor_unsupported",
                "The installed kernel %s does not support LZ4 images (Linux 6.9 or later with CRYPTO_LZ4)." % unable[0],
                "Use lzo, or remove older kernels.",
            )
    modules = []
    for kernel in selecting:
        name = compression or _default_compressor(host, kernel)
        if name and name not in modules and _crypto(host, kernel, name) == "m":
            modules.append(name)
    return ["hibernate.compressor=%s" % compression] if compression and selecting else [], modules


def has_selection(host, kernel):
    """Whether C(kernel) supports C(hibernate.compressor=)."""
    config = _config(host, kernel)
    if config is not None:
        return "CONFIG_HIBERNATION_DEF_COMP=" in config
    if kernel == os.uname().release:
        return host.exists(COMPRESSOR_PARAMETER)
    version = re.match(r"(\d+)\.(\d+)", kernel)
    return version is not None and (int(version.group(1)), int(version.group(2))) >= COMPRESSOR_SINCE


def _default_compressor(host, kernel):
    match = re.search(r'^CONFIG_HIBERNATION_DEF_COMP="(\w+)"$', _config(host, kernel) or "", re.M)
    return match.group(1) if match else None


def _crypto(host, kernel, name):
    """How C(kernel) has the compressor C(name): "y" built in, "m" as a module, or None."""
    config = _config(host, kernel)
    if config is None:
        return "m" if host.glob("/lib/modules/%s/kernel/crypto/%s.ko*" % (kernel, name)) else None
    match = re.search(r"^CONFIG_CRYPTO_%s=([ym])$" % name.upper(), config, re.M)
    return match.group(1) if match else None


def _config(host, kernel):
    return host.read("/boot/config-%s" % kernel)
