# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a block device cannot keep an image over a power cycle, although it can be used as swap now. Reads files only.

Ephemeral: what is on it is gone, cannot be decrypted, or is not there yet when the initramfs looks for the image. Claimed: the
system's configuration gives it to another program, which takes or overwrites it at the next boot.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.names import path_of, unescape

CRYPTTAB = "/etc/crypttab"
FSTAB = "/etc/fstab"
RANDOM_KEYS = ("/dev/urandom", "/dev/random", "/dev/hw_random", "/dev/hwrng")
# crypttab(5): the device is formatted at each boot, whatever the key.
FORMATTED = ("swap", "tmp")
# zram-generator, src/config.rs, locate_fragments(): the first directory counts, for the main file and for each drop-in.
ZRAM_DIRECTORIES = ("/run", "/etc", "/usr/local/lib", "/usr/lib")

MEMORY = "is in ordinary memory, which loses its contents at power-off"
NETWORK = "is a device of the network, to which an initramfs does not connect before it looks for the image"
# Kernel names of devices (Documentation/admin-guide/devices.txt, and each driver's disk_name): pattern, why.
EPHEMERAL = (
    (re.compile(r"zram\d+$"), MEMORY),
    (re.compile(r"ram\d+$"), MEMORY),
    (re.compile(r"nullb\d+"), "is a null_blk device, which loses its contents at power-off"),
    (re.compile(r"loop\d+"), "is a loop device over %s, which no initramfs sets up before it looks for the image"),
    (re.compile(r"(nbd|rbd|drbd)\d+"), NETWORK),
    (re.compile(r"zd\d+"), "is a ZFS volume: an initramfs would have to import the pool, which changes it"),
    (re.compile(r"bcache\d+"), "is a bcache device: an initramfs would have to start the cache, which changes it"),
)
# Paths in /sys/devices of disks over a network (scsi_transport_iscsi.c, nvme/host/fabrics.c): pattern, why.
REMOTE = ((re.compile(r"/session\d+/target"), NETWORK), (re.compile(r"/nvme-fabrics/"), NETWORK))
INSTANCE = "is a disk of the cloud instance, which loses its contents when the instance is stopped"
# Models of such disks, and the links that the rules of each cloud make to them.
INSTANCE_MODELS = ("Amazon EC2 NVMe Instance Storage", "Microsoft NVMe Direct Disk")
INSTANCE_LINKS = (
    "/dev/disk/azure/resource",
    "/dev/disk/azure/local/by-index/*",
    "/dev/disk/by-id/google-local-ssd-*",
    "/dev/disk/by-id/google-local-nvme-ssd-*",
)

DPHYS = "/etc/dphys-swapfile"
DPHYS_SETTING = re.compile(r"(?m)^[ \t]*(CONF_SWAP(?:FILE|SIZE))=[\"']?([^\s\"'#]*)")
# Programs that delete a swap file of another size than they compute at a boot, and make one again: which one (None for whichever is in
# use), and the package.
REMAKERS = {
    "dphys-swapfile": ("/var/swap", "dphys-swapfile"),  # Raspberry Pi OS
    "hibernation-setup-tool": (None, "hibernation-setup-tool"),  # Azure
    "hibinit-agent": ("/swap-hibinit", "ec2-hibinit-agent"),  # Amazon EC2
}


@dataclass(frozen=True)
class CryptLine:
    """A line of crypttab(5): C(source) as written, C(key) "" without a key file."""

    number: int
    name: str
    source: str
    key: str
    options: tuple

    @property
    def ephemeral(self):
        """Whether nothing on the mapping outlasts a boot."""
        return self.key in RANDOM_KEYS or bool({option.partition("=")[0] for option in self.options}.intersection(FORMATTED))

    @property
    def text(self):
        words = [self.name, self.source, self.key or "none", ",".join(self.options)]
        return "%s, line %d (%s)" % (CRYPTTAB, self.number, " ".join(word for word in words if word))


def check(host, block, mapping=""):
    """Refused C(device_ephemeral) or C(device_claimed) where C(block) cannot keep an image. Force does not override this. The line of
    crypttab for C(mapping) is ours."""
    refusals = ephemeral(host, block) + claimed_by_others(host, block, mapping)
    if refusals:
        raise refusals[0]


def ephemeral(host, block):
    """A Refused C(device_ephemeral) if C(block), or a device that it is on, loses its contents; else an empty list."""
    for name in stack(host, block.name):
        why = _ephemeral(host, name)
        if why is None:
            continue
        subject = str(block) if name == block.name else "%s is on %s, which" % (block, name)
        return [Refused(
            "device_ephemeral",
            "%s %s: an image on it would be lost." % (subject, why),
            "Use a device that keeps its contents, such as the NVM that nvm_reservation reserves, in place of %s." % block.given,
        )]
    return []


def claimed_by_others(host, block, mapping=""):
    """A Refused C(device_claimed) for each line of configuration that gives C(block) to another program."""
    refusals = [
        _claimed(block, line.text, "which maps it at the next boot" + (" and overwrites it" if line.ephemeral else ""))
        for line in crypttab(host)
        if _names(host, line.source, block) and (not mapping or line.name != mapping or line.ephemeral)
    ]
    refusals += [
        _claimed(block, place, "which mounts it at the next boot: as a swap area, it would make that boot fail")
        for spec, place in _mounts(host)
        if _names(host, spec, block)
    ]
    return refusals + [
        _claimed(block, place, "which makes it the writeback device of %s" % section)
        for section, (value, place) in sorted(_zram_writeback(host).items())
        if _names(host, value, block)
    ]


def file_claimed(host, path):
    """A Refused C(device_claimed) if another program makes the swap file C(path) again at a boot; else an empty list."""
    settings = dict(DPHYS_SETTING.findall(host.read(DPHYS, "")))
    for program, (file, package) in REMAKERS.items():
        if program == "dphys-swapfile":
            file = "" if settings.get("CONF_SWAPSIZE") == "0" else settings.get("CONF_SWAPFILE", file)
        if host.which(program) is None or file not in (None, path):
            continue
        return [Refused(
            "device_claimed",
            "%s is claimed by %s, which at a boot deletes a swap file of another size than it computes, and makes one again."
            % (path, program),
            "Remove that program first (apt-get purge %s)%s." % (package, ", or give another path" if file else ""),
        )]
    return []


def crypttab(host):
    """The lines of crypttab, as CryptLine."""
    lines = []
    for number, text in enumerate((host.read(CRYPTTAB) or "").splitlines(), 1):
        fields = text.split()
        if len(fields) < 2 or fields[0].startswith("#"):
            continue
        key = fields[2] if len(fields) > 2 and fields[2] not in ("none", "-") else ""
        options = tuple(fields[3].split(",")) if len(fields) > 3 else ()
        lines.append(CryptLine(number, unescape(fields[0]), unescape(fields[1]).strip("\"'"), key, options))
    return lines


def _mounts(host):
    """The devices that fstab and mount units mount: (device as written, place)."""
    found = []
    for number, text in enumerate((host.read(FSTAB) or "").splitlines(), 1):
        fields = text.split()
        if len(fields) > 2 and not fields[0].startswith("#") and fields[2] != "swap":
            found.append((unescape(fields[0]), "%s, line %d (%s)" % (FSTAB, number, text.strip())))
    for path in host.glob("/etc/systemd/system/*.mount"):
        for number, text in enumerate((host.read(path) or "").splitlines(), 1):
            name, equals, value = text.partition("=")
            if equals and name.strip() == "What":
                found.append((value.strip(), "%s, line %d" % (path, number)))
    return found


def _claimed(block, place, consequence):
    return Refused(
        "device_claimed",
        "%s is claimed by %s, %s." % (block, place, consequence),
        "If the device is to hold the hibernation image, remove that line, and what else belongs to the other use. Otherwise give "
        "another device.",
    )


def stack(host, name):
    """C(name), and the names of all devices below it: of a partition its disk, of a mapping or RAID its members."""
    waiting, names = [name], []
    while waiting:
        each = waiting.pop(0)
        if each in names:
            continue
        names.append(each)
        if host.exists("/sys/class/block/%s/partition" % each):
            waiting.append(os.path.basename(os.path.dirname(host.real("/sys/class/block/%s" % each))))
        waiting += [os.path.basename(slave) for slave in host.glob("/sys/class/block/%s/slaves/*" % each)]
    return names


def _ephemeral(host, name):
    """Why the contents of the device C(name) do not outlast power-off, as a predicate, or None."""
    for pattern, why in EPHEMERAL:
        if pattern.match(name):
            file = host.attribute("/sys/class/block/%s/loop/backing_file" % name) or "a file"
            return why % file if "%s" in why else why
    path = host.real("/sys/class/block/%s" % name)
    for pattern, why in REMOTE:
        if pattern.search(path):
            return why
    if (host.attribute("/sys/class/block/%s/device/model" % name) or "").startswith(INSTANCE_MODELS):
        return INSTANCE
    if any(host.real(link) == "/dev/%s" % name for pattern in INSTANCE_LINKS for link in host.glob(pattern)):
        return INSTANCE
    if (host.attribute("/sys/class/block/%s/dm/uuid" % name) or "").startswith("CRYPT-"):
        return _lost_key(host, name)
    return None


def _lost_key(host, name):
    """Why the dm-crypt mapping C(name) is another one after a boot, or None. A LUKS header keeps the key."""
    mapping = host.attribute("/sys/class/block/%s/dm/name" % name) or name
    line = next((line for line in crypttab(host) if line.name == mapping), None)
    if line is not None and line.ephemeral:
        cause = "has a new random key" if line.key in RANDOM_KEYS else "is formatted"
        return "is encrypted by %s and %s at each boot" % (line.text, cause)
    if line is None and host.attribute("/sys/class/block/%s/dm/uuid" % name).startswith("CRYPT-PLAIN-"):
        return "is the plain dm-crypt mapping %s, which is not in %s, so that nothing gives it the same key after a boot" % (
            mapping, CRYPTTAB)
    return None


def _zram_writeback(host):
    """The writeback devices that zram-generator.conf(5) sets: {section: (value, place)}; the last assignment counts."""
    mains = [path for path in (top + "/systemd/zram-generator.conf" for top in ZRAM_DIRECTORIES) if host.exists(path)]
    drop_ins: dict[str, str] = {}
    for top in ZRAM_DIRECTORIES:
        for path in host.glob(top + "/systemd/zram-generator.conf.d/*.conf"):
            drop_ins.setdefault(os.path.basename(path), path)
    found = {}
    for path in mains[:1] + [drop_ins[name] for name in sorted(drop_ins)]:
        section = ""
        for number, text in enumerate((host.read(path) or "").splitlines(), 1):
            line = text.strip()
            if line.startswith("["):
                section = line.strip("[]")
            name, equals, value = line.partition("=")
            if equals and name.strip() == "writeback-device" and section.startswith("zram"):
                found[section] = (value.strip(), "%s, line %d (%s)" % (path, number, line))
    return found


def _names(host, spec, block):
    """Whether C(spec), a path or a tag such as UUID=, names C(block)."""
    path = path_of(spec)
    return path.startswith("/dev/") and host.real(path) == block.path
