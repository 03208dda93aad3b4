# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of C(nvm_reservation): its options, what the machine has, and what must not be touched.

Used by the two methods, _reservation_ndctl.py and _reservation_memmap.py, and by _reservation.py, which chooses between
them. What costs something is read when it is first asked for. The guards here read headers and C(/proc) first, and run
C(blkid) only for a device that neither explains.
"""
from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property

from ansible_collections.nvm.fastboot.plugins.module_utils._core import sizing
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import memmap, nvm
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import udev
from ansible_collections.nvm.fastboot.plugins.module_utils._swap import devices, headers, identity

TAGS = {"UUID": "uuid", "LABEL": "label", "PARTUUID": "partuuid", "PARTLABEL": "partlabel"}


@dataclass(frozen=True)
class Options:
    """The options of C(nvm_reservation), checked. C(size) is bytes, or None for auto."""

    name: str = "NVM_SWAP"
    size: int | None = None
    dram_multiple: int = 1
    method: str = "auto"
    mode: str = "raw"
    volatile_ok: bool = False
    force: bool = False

    @classmethod
    def of(cls, params):
        """From the module's parameters. Refused C(size_invalid)."""
        size = params["size"]
        chosen = {name: params[name] for name in ("name", "dram_multiple", "method", "mode", "volatile_ok", "force")}
        return cls(size=None if str(size).strip().lower() == "auto" else sizing.parse_size(size), **chosen)


class Case:
    """The options, the transaction, and the machine. C(detect(host)) finds the bootloader."""

    def __init__(self, tx, options, detect=None):
        self.tx = tx
        self.host = tx.host
        self.options = options
        self._detect = detect

    @property
    def device(self):
        return "/dev/%s" % self.options.name

    @cached_property
    def dram(self):
        return sizing.dram_bytes(self.host)

    @cached_property
    def regions(self):
        return nvm.read_regions(self.host)

    @cached_property
    def rule(self):
        """The udev rule of this reservation, or None before it is made."""
        return udev.read(self.host, self.options.name)

    @cached_property
    def memory(self):
        """The firmware's memory map; empty where the kernel shows none."""
        try:
            return memmap.firmware_map(self.host)
        except Refused:
            return []

    @cached_property
    def bootloader(self):
        if self._detect is None:
            from ansible_collections.nvm.fastboot.plugins.module_utils._boot import bootloaders

            self._detect = bootloaders.detect
        return self._detect(self.host)

    @property
    def known_bootloader(self):
        """The bootloader, or None where it is one that is not known or not supported: enough to use what is there."""
        try:
            return self.bootloader
        except Refused:
            return None

    @property
    def need(self):
        """Bytes the reservation must have at least."""
        return self.options.size or self.dram * self.options.dram_multiple

    @property
    def why(self):
        """Where that number comes from."""
        if self.options.size:
            return "as the option size says"
        return "%d x %s of ordinary memory" % (self.options.dram_multiple, format_size(self.dram))

    def read_again(self):
        """Forget the regions, after they were changed."""
        self.__dict__.pop("regions", None)

    def volatile(self, region):
        """Whether a region loses its contents at power-off: made with C(memmap=), or of a kind that says so.

        An e820 region that the firmware itself lists is an NVDIMM of before NFIT.
        """
        made = region.provider == "e820" and not (region.resource and memmap.covers(self.memory, region.resource))
        return region.volatile or made

    def own(self):
        """Our (region, namespace): named by its label, or without labels the one our rule points at; or None."""
        pairs = [(region, namespace) for region in self.regions for namespace in region.namespaces]
        named = [pair for pair in pairs if pair[1].labelled and pair[1].name == self.options.name]
        if len(named) > 1:
            raise Refused(
                "name_ambiguous",
                "Several namespaces have the name %s: %s."
                % (self.options.name, ", ".join(namespace.dev for _region, namespace in named)),
                "Destroy those that are not wanted with ndctl, or choose another name.",
            )
        if named:
            return named[0]
        pointed = [pair for pair in pairs if self.rule and not pair[1].labelled and self.rule.matches(pair[1], pair[0])]
        return pointed[0] if pointed else None

    def result(self, region=None, namespace=None, **more):
        """What the module returns."""
        found = {
            "device": self.device,
            "block_device": namespace and namespace.path,
            "size": namespace and namespace.size,
            "method": None,
            "mode": namespace and namespace.mode,
            "region": region and region.dev,
            "namespace": (namespace and namespace.dev) or None,  # "" for one that check mode does not make
            "uuid": namespace and namespace.uuid,
            "range": None,
            "reboot_required": False,
            "resizable": False,
            "why_not_resizable": None,
            "explanation": "",
        }
        found.update(more)
        return found


# guards --------------------------------------------------------------------------------------------------------------


def refuse_in_use(host, path):
    """Refused C(device_in_use) where C(path) is swap in use, mounted or held. Force never helps."""
    block = devices.block_device(host, path)
    if devices.active_swap(host, block):
        raise Refused(
            "device_in_use",
            "%s is in use as swap." % path,
            "Take it out of use first: nvm_swap with state: absent, or swapoff %s." % path,
        )
    users = devices.users(host, block)
    if users:
        raise Refused(
            "device_in_use",
            "%s is in use: %s." % (path, ", ".join(users)),
            "Take it out of that use first (umount, dmsetup, mdadm, losetup); force does not help.",
        )


def refuse_image(host, path, force):
    """Refused C(image_pending) where C(path) holds a hibernation image, unless forced."""
    if not force and headers.pending_image(host, path):
        raise Refused(
            "image_pending",
            "%s holds a hibernation image that nobody has resumed." % path,
            headers.IMAGE_REMEDY,
        )


def refuse_contents(host, path, force, own_label=None):
    """Refused where C(path) holds anything at all, unless forced: C(image_pending), C(holds_filesystem).

    A swap area that nobody uses is nothing to keep where its label is C(own_label), and with C(own_label) True whatever
    its label.
    """
    if force:
        return
    refuse_image(host, path, force)
    header = headers.read_header(host, path)
    if header is not None and own_label in (True, header.label):
        return
    found = header.type if header else headers.contents(host, path)
    if found:
        raise Refused(
            "holds_filesystem",
            "%s already holds something: %s." % (path, found),
            "Look what it is (blkid -p %s); force: true gives up all that it holds." % path,
        )


def vet(host, path, name, force):
    """Refused where C(path), a namespace that was there before us, is somebody else's: in use, or holding something.

    A swap area labelled with our name is ours, in use or not: only our rule is missing. One that nobody uses may be
    taken over; making it ours changes nothing on it.
    """
    header = headers.read_header(host, path)
    if header is not None and header.label and header.label == name[: identity.LABEL_BYTES]:
        return
    refuse_in_use(host, path)
    refuse_contents(host, path, force, own_label=True)


def refuse_any_image(host, path=None):
    """Refused C(image_pending) where any device the machine resumes from, or C(path), holds a hibernation image.

    For a change of the memory map, which makes every image useless (kernel/power/snapshot.c, check_image_kernel).
    """
    for candidate in [path] + _resume_devices(host):
        try:
            pending = candidate is not None and headers.pending_image(host, candidate)
        except Refused:
            continue
        if pending:
            raise Refused(
                "image_pending",
                "%s holds a hibernation image that nobody has resumed; another memory map would make it useless."
                % candidate,
                headers.IMAGE_REMEDY,
            )


def _resume_devices(host):
    """Devices that may hold an image: what the kernel and its command line name, and what udev saw one on."""
    numbers = [host.attribute("/sys/power/resume", "0:0")]
    for path in host.glob("/run/udev/data/b*"):
        if re.search(r"^E:ID_FS_TYPE=swsuspend$", host.read(path, ""), re.MULTILINE):
            numbers.append(os.path.basename(path)[1:])
    found = []
    for number in numbers:
        entry = host.real("/sys/dev/block/%s" % number)
        if number != "0:0" and host.exists(entry):
            found.append("/dev/%s" % os.path.basename(entry))
    for word in host.read("/proc/cmdline", "").split():
        if word.startswith("resume="):
            tag, equals, value = word[len("resume="):].partition("=")
            found.append("/dev/disk/by-%s/%s" % (TAGS[tag], value) if equals and tag in TAGS else tag)
    return [path for path in dict.fromkeys(found) if path.startswith("/dev/") and host.exists(path)]
