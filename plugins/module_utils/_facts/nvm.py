# SPDX-License-Identifier: GPL-3.0-or-later
"""Regions and namespaces of non-volatile memory (NVM): reading them from sysfs, and changing them with C(ndctl).

Reading uses C(/sys/bus/nd) alone and runs no command; the attributes are those of drivers/nvdimm/region_devs.c,
namespace_devs.c and btt_devs.c. C(ndctl) refuses to change a namespace that is open exclusively (mounts, swap,
mappings). The functions here do not check whether a namespace may be changed; _reservation does.
"""
from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

DEVICES = "/sys/bus/nd/devices"
# include/uapi/linux/ndctl.h: the value of nd_region_to_nstype() for a region whose DIMMs hold a valid label index
NAMESPACE_PMEM = 5
# drivers/nvdimm: provider_name of each bus
PROVIDERS = {"ACPI.NFIT": "nfit", "e820": "e820", "virtio-pmem": "virtio"}
# The device that claims a namespace determines its mode, or while it is disabled, the class of that device. The attribute
# C(mode) is no help: it is "memory" for an unclaimed e820 namespace, too.
HOLDERS = {"btt": "sector", "pfn": "fsdax", "dax": "devdax", "": "raw"}
DEFAULT_ALIGN = 16 << 20  # MEMREMAP_COMPAT_ALIGN_MAX, drivers/nvdimm/region_devs.c default_align()
VIRTIO_PMEM_SINCE = (6, 18)  # Linux
LOSES_CONTENTS = ("not_armed", "save_fail", "restore_fail", "map_fail")
PAGE = 4096
UNKNOWN = (1 << 64) - 1


@dataclass(frozen=True)
class Namespace:
    """A namespace with a size. C(mode) is "raw", "sector", "fsdax" or "devdax".

    C(name) is the label's, "" without one. C(uuid) is the one udev reports: the BTT's in sector mode, else the
    namespace's, or None. C(blockdev) is the name in C(/sys/class/block) ("pmem0"), None if disabled or in devdax mode.
    """

    dev: str
    region: str
    name: str
    mode: str
    size: int
    uuid: str | None
    blockdev: str | None
    resource: int | None
    labelled: bool

    @property
    def path(self):
        """The block device's path, or None."""
        return self.blockdev and "/dev/%s" % self.blockdev


@dataclass(frozen=True)
class Region:
    """A region. C(available) is the size of the largest namespace that can be created in it now; 0 without labels.

    C(provider) is "nfit", "e820", "virtio" or "other". Sizes of namespaces are multiples of C(align). C(dimms) are its
    DIMMs ("nmem0"); C(initialisable) is true if they have an uninitialised label area. C(security) is the state of those that
    report one, as ndctl list shows it: "disabled" without a passphrase, else "unlocked", "locked", "frozen" or "overwrite".
    """

    dev: str
    size: int
    available: int
    provider: str
    persistence: str
    labelled: bool
    resource: int | None
    namespaces: list = field(default_factory=list)
    align: int = DEFAULT_ALIGN
    dimms: list = field(default_factory=list)
    initialisable: bool = False
    read_only: bool = False
    volatile: bool = False
    security: dict = field(default_factory=dict)


def read_regions(host):
    """All regions of the machine: a list of Region, ordered by number."""
    paths = [path for path in host.glob("%s/region*" % DEVICES) if re.match(r"^region\d+$", os.path.basename(path))]
    return [_region(host, path) for path in sorted(paths, key=lambda path: int(os.path.basename(path)[6:]))]


def _region(host, path):
    dev = os.path.basename(path)
    labelled = _number(host, path, "nstype") == NAMESPACE_PMEM
    size = _number(host, path, "size")
    mappings = _number(host, path, "mappings")
    dimms = []
    for index in range(mappings):
        dimms.append(host.attribute("%s/mapping%d" % (path, index), "").split(",")[0])
    align = _number(host, path, "align") or DEFAULT_ALIGN * max(1, mappings)
    return Region(
        dev=dev,
        size=size,
        available=_available(host, path) if labelled else 0,
        provider=_provider(host, path),
        persistence=host.attribute("%s/persistence_domain" % path, ""),
        labelled=labelled,
        resource=_address(host, path),
        namespaces=_namespaces(host, path, dev, labelled),
        # ndctl/namespace.c, validate_namespace_options(): a multiple of the region's and of a page in each DIMM
        align=_common_multiple(align, PAGE * max(1, mappings)),
        dimms=dimms,
        initialisable=not labelled and bool(dimms) and all(_slots(host, dimm) for dimm in dimms),
        read_only=host.attribute("%s/read_only" % path, "0") == "1",
        volatile=host.attribute("%s/devtype" % path) == "nd_volatile",
        security=_security(host, dimms),
    )


def _common_multiple(size, other):
    return size * other // math.gcd(size, other)


def _available(host, path):
    extent = host.attribute("%s/max_available_extent" % path)
    return int(extent) if extent else _number(host, path, "available_size")


def _provider(host, path):
    """The region's parent is its bus (drivers/nvdimm/core.c)."""
    bus = os.path.basename(os.path.dirname(host.real(path)))
    return PROVIDERS.get(host.attribute("%s/%s/provider" % (DEVICES, bus)), "other")


def _slots(host, dimm):
    """Free label slots of a DIMM; 0 without a label area, for which the kernel has no driver data."""
    return _number(host, "%s/%s" % (DEVICES, dimm), "available_slots")


def _namespaces(host, path, region, labelled):
    """The namespaces of a region, except those of size 0: the seed for the next one, and destroyed ones."""
    namespaces = []
    pattern = "%s/namespace%s.*" % (DEVICES, region[len("region"):])
    for entry in sorted(host.glob(pattern), key=lambda entry: int(entry.rpartition(".")[2])):
        size = _number(host, entry, "size")
        if size:
            namespaces.append(_namespace(host, entry, region, size, labelled))
    return namespaces


def _namespace(host, path, region, size, labelled):
    holder = host.attribute("%s/holder" % path, "")
    device = "%s/%s" % (DEVICES, holder) if holder else path
    blocks = host.glob("%s/block/*" % device)
    return Namespace(
        dev=os.path.basename(path),
        region=region,
        name=host.attribute("%s/alt_name" % path, ""),
        mode=HOLDERS.get(holder.rstrip("0123456789.") or host.attribute("%s/holder_class" % path, ""), "raw"),
        size=size,
        uuid=host.attribute("%s/uuid" % device) or None,
        blockdev=os.path.basename(blocks[0]) if blocks else None,
        resource=_address(host, path),
        labelled=labelled,
    )


def _security(host, dimms):
    """The attribute C(security) of each DIMM that has one (drivers/nvdimm/dimm_devs.c, security_show)."""
    states = {dimm: host.attribute("%s/%s/security" % (DEVICES, dimm)) for dimm in dimms}
    return {dimm: state for dimm, state in states.items() if state}


def with_passphrase(host, region):
    """The DIMMs of C(region) that lock at power-off, until the initramfs loads their key: {dimm: state}.

    drivers/nvdimm/security.c, __nvdimm_security_unlock(): where the firmware has unlocked a DIMM and the system has no key for it,
    the kernel freezes its security. The firmware then unlocks it at the next power-on as well.
    """
    return {
        dimm: state
        for dimm, state in region.security.items()
        if state != "disabled" and (state == "locked" or not _unlocked_by_firmware(host, dimm, state))
    }


def _unlocked_by_firmware(host, dimm, state):
    frozen = state == "frozen" or host.attribute("%s/%s/frozen" % (DEVICES, dimm)) == "1"
    return frozen and not host.glob("/etc/ndctl/keys/nvdimm_*")


def failing(host, region):
    """The DIMMs of C(region) that do not keep, or did not keep, their contents at power-off: {dimm: [flag]}.

    drivers/acpi/nfit/core.c and arch/powerpc/platforms/pseries/papr_scm.c, flags_show(). not_armed: the energy for saving is not
    there. flush_fail is left out, because one power cut sets it until the next orderly power-off.
    """
    flags = {}
    for dimm in region.dimms:
        words = [word for kind in ("nfit", "papr") for word in host.attribute(
            "%s/%s/%s/flags" % (DEVICES, dimm, kind), "").split() if word in LOSES_CONTENTS]
        if words:
            flags[dimm] = words
    return flags


def survives_hibernation(host, region):
    """Whether the driver of a region goes on after a resume: drivers/nvdimm/virtio_pmem.c has .freeze and .restore since 6.18; in 6.12 it
    has not, and flushes hang then."""
    release = host.attribute("/proc/sys/kernel/osrelease") or ""
    return region.provider != "virtio" or tuple(int(digits) for digits in re.findall(r"\d+", release)[:2]) >= VIRTIO_PMEM_SINCE


def missing_driver(host):
    """The (NVM as the firmware describes it, module that makes a region of it) of NVM without a region; or None."""
    if host.exists("/sys/firmware/acpi/tables/NFIT") and not host.glob("/sys/bus/*/drivers/nfit"):
        return "NVDIMMs (ACPI table NFIT)", "nfit"
    kinds = [host.attribute(path) for path in host.glob("/sys/firmware/memmap/*/type")]
    if "Persistent Memory (legacy)" in kinds and not host.glob("/sys/bus/*/drivers/e820_pmem"):
        return "legacy persistent memory (type 12 of its memory map)", "nd_e820"
    return None


def load_module(host, module):
    """A remedy: how the running kernel gets C(module)."""
    release = host.attribute("/proc/sys/kernel/osrelease", "")
    if host.glob("/lib/modules/%s/kernel/drivers/*/%s.ko*" % (release, module)) or host.glob(
        "/lib/modules/%s/kernel/drivers/*/*/%s.ko*" % (release, module)
    ):
        return "Run: modprobe %s. If that does nothing, a file in /etc/modprobe.d or the kernel command line excludes it." % module
    return "Kernel %s has no module %s: install the distribution's full kernel (Debian: linux-image-amd64; Ubuntu: " \
        "linux-modules-extra-%s), and reboot." % (release, module, release)


def _number(host, path, attribute):
    """The attribute as a number, in the base of its prefix; 0 if it does not exist."""
    try:
        return int(host.attribute("%s/%s" % (path, attribute), "0"), 0)
    except ValueError:
        return 0


def _address(host, path):
    """The attribute C(resource), which only root can read. None if it is unknown: all ones, or 0."""
    value = _number(host, path, "resource")
    return value if value not in (0, UNKNOWN) else None


# changing ------------------------------------------------------------------------------------------------------------


def create_namespace(host, region, name, mode, size):
    """Create a namespace of C(size) bytes, a multiple of region.align, in a labelled region."""
    _ndctl(
        host,
        "create-namespace",
        "--region=%s" % region.dev,
        "--mode=%s" % mode,
        "--name=%s" % name,
        "--size=%d" % size,
    )


def destroy_namespace(host, namespace):
    """Destroy a namespace of a labelled region. ndctl refuses if its block device is open exclusively."""
    if namespace.blockdev:
        _ndctl(host, "disable-namespace", namespace.dev)
    _ndctl(host, "destroy-namespace", namespace.dev)


def enable_namespace(host, namespace):
    """Enable a namespace, which creates its block device."""
    _ndctl(host, "enable-namespace", namespace.dev)


def change_mode(host, namespace, mode):
    """Change the mode of a namespace without labels. Its contents are lost; the label area is not changed."""
    _ndctl(host, "create-namespace", "--force", "--reconfig=%s" % namespace.dev, "--mode=%s" % mode, "--no-autolabel")


def initialise_labels(host, region):
    """Initialise the label areas of the region's DIMMs. All contents of the region are lost."""
    _ndctl(host, "disable-region", region.dev)
    try:
        _ndctl(host, "init-labels", *region.dimms)
    finally:
        _ndctl(host, "enable-region", region.dev)


def require_ndctl(host):
    """The path of C(ndctl). Refused C(ndctl_missing)."""
    path = host.which("ndctl")
    if path is None:
        raise Refused(
            "ndctl_missing",
            "ndctl, which is needed to change namespaces, is not installed.",
            "Install the package ndctl and run again.",
        )
    return path


def _ndctl(host, *arguments):
    host.run([require_ndctl(host)] + list(arguments))
