# SPDX-License-Identifier: GPL-3.0-or-later
"""State of one run of C(nvm_reservation): options, transaction, and facts of the machine, read on first access.

Passed to all functions of the two methods. One run has one thread.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ansible_collections.nvm.fastboot.plugins.module_utils._core import sizing
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import memmap, nvm
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import udev_rule

REMAIN = "settings_remain"  # bootloaders.detect_for_removal()


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
        """The Options in the module's parameters. Refused C(size_invalid)."""
        size = params["size"]
        chosen = {name: params[name] for name in ("name", "dram_multiple", "method", "mode", "volatile_ok", "force")}
        return cls(size=None if str(size).strip().lower() == "auto" else sizing.parse_size(size), **chosen)


class ReservationContext:
    """Options, transaction and facts. C(detect(host)) returns the bootloader; the default is bootloaders.detect."""

    def __init__(self, tx, options, detect=None):
        self.tx = tx
        self.host = tx.host
        self.options = options
        self.ndctl_missing = False
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
        """The udev rule of this reservation, or None if it does not exist."""
        return udev_rule.read(self.host, self.options.name)

    @cached_property
    def memory(self):
        """The firmware's memory map; empty if the kernel exports none."""
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
        """The bootloader, or None if it is unknown or unsupported. Existing ranges can be used without one.

        Refused C(settings_remain) on removal, where settings of ours cannot be removed.
        """
        try:
            return self.bootloader
        except Refused as refused:
            if refused.code == REMAIN:
                raise
            return None

    @property
    def need(self):
        """Minimum size of the reservation, in bytes."""
        return self.options.size or self.dram * self.options.dram_multiple

    @property
    def why(self):
        """The origin of C(need), as a phrase."""
        if self.options.size:
            return "option size"
        return "%d x %s of ordinary memory" % (self.options.dram_multiple, format_size(self.dram))

    def require_ndctl(self):
        """Refused C(ndctl_missing) where ndctl is not installed. In check mode, the result says so instead: C(ndctl_missing)."""
        if self.tx.check_mode:
            self.ndctl_missing = self.host.which("ndctl") is None
        else:
            nvm.require_ndctl(self.host)

    def reread_regions(self):
        """Discard the cached regions, after a change."""
        self.__dict__.pop("regions", None)

    def volatile(self, region):
        """Whether a region loses its contents at power-off: made with C(memmap=), or reported as volatile.

        An e820 region in the firmware's memory map is an NVDIMM from before NFIT, and not volatile.
        """
        made = region.provider == "e820" and not (region.resource and memmap.is_firmware_nvm(self.memory, region.resource))
        return region.volatile or made

    def own(self):
        """The (region, namespace) of this reservation, found by label name, or without labels by the udev rule; or None.

        Refused C(name_ambiguous).
        """
        pairs = [(region, namespace) for region in self.regions for namespace in region.namespaces]
        named = [pair for pair in pairs if pair[1].labelled and pair[1].name == self.options.name]
        if len(named) > 1:
            raise Refused(
                "name_ambiguous",
                "Several namespaces are named %s: %s."
                % (self.options.name, ", ".join(namespace.dev for _region, namespace in named)),
                "Destroy the ones that are not needed with ndctl, or choose another name.",
            )
        if named:
            return named[0]
        matching = [pair for pair in pairs if self.rule and not pair[1].labelled and self.rule.matches(pair[1], pair[0])]
        return matching[0] if matching else None

    def result(self, region=None, namespace=None, **more):
        """The return values of the module; C(more) overrides defaults."""
        values = {
            "device": self.device,
            "block_device": namespace and namespace.path,
            "size": namespace and namespace.size,
            "method": None,
            "mode": namespace and namespace.mode,
            "region": region and region.dev,
            "namespace": (namespace and namespace.dev) or None,  # "" if not created, in check mode
            "uuid": namespace and namespace.uuid,
            "range": None,
            "reboot_required": False,
            "reboot_in_vain": None,
            "resizable": False,
            "why_not_resizable": None,
            "explanation": "",
            "ndctl_missing": self.ndctl_missing,
        }
        values.update(more)
        return values
