# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel modules that a block device needs, read from C(/sys). Without them an initramfs cannot reach the device."""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.modules import name_of

# Modules that the path of a device in /sys/devices implies, without a link to the driver: (pattern, module)
BY_PATH = (
    (re.compile(r"/btt\d+\.\d+/"), "nd_btt"),  # nd_pmem drives it with the code of nd_btt
    (re.compile(r"/block/dm-\d+$"), "dm_mod"),
    (re.compile(r"/block/md\d+$"), "md_mod"),
)
# What decrypts in a LUKS mapping (drivers/md/dm-crypt.c, and what it asks the crypto API for), as far as it is loaded, and how keys are
# unlocked.
BY_CRYPT = ("dm_crypt", "xts", "ecb", "cbc", "essiv", "aesni_intel", "algif_skcipher")
ASSUMED = ("libnvdimm", "nd_pmem")  # in check mode, for a reservation that does not exist yet


def drivers_for(host, block):
    """The names of the modules for the devices.Block C(block): its own driver, and those of its parents up to the bus.

    The path of the device in C(/sys/devices) links to the driver of each parent (C(driver/module)); for device mapper and
    RAID, the devices below them are included. Modules that are built into the kernel are omitted.
    """
    modules = []
    waiting = [block.name]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        # initstate exists for a loaded module, not for a built-in one (kernel/module/sysfs.c)
        for module in _modules_of(host, host.real("/sys/class/block/%s" % name)) + _crypt_modules(host, name):
            if module not in modules and host.exists("/sys/module/%s/initstate" % module):
                modules.append(module)
        waiting += [os.path.basename(slave) for slave in host.glob("/sys/class/block/%s/slaves/*" % name)]
    return modules


def _crypt_modules(host, name):
    encrypted = (host.attribute("/sys/class/block/%s/dm/uuid" % name) or "").startswith("CRYPT-")
    return list(BY_CRYPT) if encrypted else []


def _modules_of(host, path):
    """The modules of the device C(path) in /sys and of its parents, built-in ones included."""
    names = [module for pattern, module in BY_PATH if pattern.search(path)]
    step = path
    while step.startswith("/sys/devices/"):
        driver = "%s/driver" % step
        if host.exists(driver):
            # An ACPI driver such as nfit may have no link to its module (it sets no owner; seen on 6.1), but has the
            # module's name.
            module = driver + "/module"
            names.append(name_of(os.path.basename(host.real(module if host.exists(module) else driver))))
        step = os.path.dirname(step)
    return names
