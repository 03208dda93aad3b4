# SPDX-License-Identifier: GPL-3.0-or-later
"""Why NVM that is large enough cannot be reserved as it is, and what makes it usable. Nothing here changes anything."""
from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import nvm
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import devices

DAX = {
    "fsdax": "which keeps data of the kernel on the NVM and may hold files that programs map",
    "devdax": "which has no block device and may hold what programs map",
}


def obstacles(host, regions, need):
    """A Refused C(nvm_unusable) for each region or namespace of at least C(need) bytes that cannot be used as it is."""
    found = []
    for region in regions:
        if region.size < need:
            continue
        if region.read_only:
            found.append(_read_only(region))
        elif "locked" in region.security.values():
            found.append(_locked(region))
        elif not region.labelled and not region.namespaces:
            found.append(_disabled(region))
        else:
            found += [_namespace(host, each) for each in region.namespaces if not region.labelled and each.size >= need]
    return [each for each in found if each]


def _read_only(region):
    return _unusable(
        region.dev, region.size, "is read-only",
        "If its contents may change, run: echo 0 > %s/%s/read_only" % (nvm.DEVICES, region.dev))


def _locked(region):
    dimms = " ".join(dimm for dimm, state in region.security.items() if state == "locked")
    return _unusable(
        region.dev, region.size, "is on DIMMs that are locked with a passphrase: %s" % dimms,
        "Unlock them (ndctl load-keys; ndctl disable-dimm %s; ndctl enable-dimm %s; ndctl enable-region %s), and remove the "
        "passphrase (ndctl remove-passphrase %s): they lock again at each power-off." % (dimms, dimms, region.dev, dimms))


def _disabled(region):
    return _unusable(
        region.dev, region.size, "has no namespace, because the kernel has not enabled it",
        "Run: ndctl enable-region %s. If that fails, the kernel log (dmesg) has the cause." % region.dev)


def _namespace(host, namespace):
    """Why the namespace without labels is not usable, or None."""
    if namespace.mode in DAX:
        return _dax(host, namespace)
    return None if namespace.blockdev else no_block_device(host, namespace)


def _dax(host, namespace):
    uses = devices.uses(host, namespace.path) if namespace.path else []
    used = "; it is in use: %s" % ", ".join(uses) if uses else ""
    return _unusable(
        namespace.dev, namespace.size, "has mode %s, %s%s" % (namespace.mode, DAX[namespace.mode], used),
        "If nothing needs its contents, change the mode, which destroys them, and run again: ndctl create-namespace --force "
        "--reconfig=%s --mode=raw --no-autolabel" % namespace.dev)


def no_block_device(host, namespace):
    """The error Refused C(nvm_unusable) for a namespace without a block device: disabled, or without a driver."""
    if host.exists("/sys/bus/nd/drivers/nd_pmem"):
        return _unusable(
            namespace.dev, namespace.size, "has no block device, because it is disabled",
            "Run: ndctl enable-namespace %s. If that fails, the kernel log (dmesg) has the cause." % namespace.dev)
    return _unusable(
        namespace.dev, namespace.size, "has no block device, because the driver nd_pmem is not loaded",
        nvm.load_module(host, "nd_pmem"))


def _unusable(dev, size, why, remedy):
    return Refused("nvm_unusable", "%s has %s, which is enough, but %s." % (dev, format_size(size), why), remedy)
