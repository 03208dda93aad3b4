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
    DIMMs ("nmem0"); C(initialisable) is true if they have an uninitialised label area.
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
