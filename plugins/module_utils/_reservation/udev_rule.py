# SPDX-License-Identifier: GPL-3.0-or-later
"""The udev rule that gives a namespace its stable name, C(/dev/NVM_SWAP), whatever number the kernel assigns.

The rule file also records the reservation: a comment in it contains the method and, for C(memmap=), the range. Block
devices of NVM are children of their namespace (drivers/nvdimm/pmem.c), in sector mode of their BTT (btt.c);
C(SUBSYSTEMS) and C(ATTRS) of a rule must match the same parent.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

# After 60-persistent-storage.rules, on which it does not depend.
PATH = "/etc/udev/rules.d/61-nvm-fastboot-%s.rules"
NAME = r"[A-Za-z0-9_.-]{1,63}"  # 63: NSLABEL_NAME_LEN less its NUL (drivers/nvdimm/label.h)
HEAD = "# /dev/%s, set up by the Ansible collection nvm.fastboot (nvm_reservation), which replaces this file.\n"
RULE = (
    'SUBSYSTEM=="block", KERNEL=="pmem*", ENV{DEVTYPE}=="disk", SUBSYSTEMS=="nd", ATTRS{%s}=="%s", SYMLINK+="%s"\n'
)


@dataclass(frozen=True)
class Rule:
    """The link's target: the device whose C(attribute) ("uuid" or "resource") is C(value); and the C(record)."""

    attribute: str
    value: str
    record: dict = field(default_factory=dict)

    def matches(self, namespace, region):
        """Whether the rule matches that namespace of that region."""
        try:
            return rule_for(namespace, region, self.record) == self
        except Refused:
            return False


def check_name(host, name):
    """Refused C(name_invalid) or C(name_taken) if C(name) cannot be a link in C(/dev)."""
    if not isinstance(name, str) or not re.fullmatch(NAME, name) or name.strip(".") == "":
        raise Refused(
            "name_invalid",
            "%r is not a valid name of a reservation." % (name,),
            "Use 1 to 63 letters, digits, underscores, dots and hyphens, such as NVM_SWAP.",
        )
    path = "/dev/%s" % name
    if host.exists(path) and host.real(path) == path:
        raise Refused(
            "name_taken",
            "%s exists and is not a symbolic link." % path,
            "Choose another name. If it is a plain file created by mistake, remove it.",
        )


def rule_for(namespace, region, record):
    """The Rule that identifies C(namespace) of C(region) at every boot. Refused C(address_unknown).

    Labelled and sector namespaces have a permanent UUID. A raw namespace without labels has none and is identified by
    its address, which is the same at every boot while the memory is unchanged.
    """
    if namespace.uuid:
        return Rule("uuid", namespace.uuid, record)
    address = namespace.resource or region.resource
    if not address:
        raise Refused(
            "address_unknown",
            "%s has neither a UUID nor a readable address, so it could not be identified at the next boot."
            % namespace.dev,
            "Run as root (become: true). As root, the namespace needs a label or sector mode.",
        )
    return rule_at(address, record)


def rule_at(address, record):
    """The Rule for the namespace without labels at a physical address, as the kernel prints it (C(%#llx))."""
    return Rule("resource", "0x%x" % address, record)


def render(name, rule):
    """The text of the rule file."""
    record = "".join(" %s=%s" % item for item in sorted(rule.record.items()))
    return HEAD % name + ("# reservation:%s\n" % record if record else "") + RULE % (rule.attribute, rule.value, name)


def parse(text):
    """The Rule in the text of a rule file, or None."""
    match = re.search(r'^[^#\n]*ATTRS\{(\w+)\}=="([^"]+)"', text, re.MULTILINE)
    if not match:
        return None
    record = re.search(r"^# reservation:(.*)$", text, re.MULTILINE)
    return Rule(match.group(1), match.group(2), dict(re.findall(r"(\S+?)=(\S+)", record.group(1) if record else "")))


def read(host, name):
    """The Rule of the reservation C(name), or None."""
    return parse(host.read(PATH % name, ""))


def apply(tx, name, rule, blockdev):
    """Write the rule and make udev create the link to C(blockdev) ("pmem0"; None if it does not exist yet).

    Runs no command if file and link are correct. Refused C(link_failed) if udev does not create the link.
    """
    link, device = "/dev/%s" % name, blockdev and "/dev/%s" % blockdev
    text = render(name, rule)
    written = _write(tx, name, text, blockdev)
    correct = blockdev is None or tx.host.real(link) == device
    if correct and not written:
        return
    if not written:
        tx.note("link %s" % link, "", "to: %s\n" % device)
    if tx.check_mode:
        return
    _reload(tx.host, blockdev)
    if blockdev and tx.host.real(link) != device:
        raise Refused(
            "link_failed",
            "udev did not create the link %s to %s." % (link, device),
            "Find the cause with: udevadm test /sys/class/block/%s" % blockdev,
        )


def remove(tx, name, blockdev):
    """Remove the rule, and with it the link to C(blockdev). Returns whether the rule existed."""
    if not _write(tx, name, None, blockdev):
        return False
    if not tx.check_mode:
        _reload(tx.host, blockdev)
    return True


def _write(tx, name, text, blockdev):
    """Write the rule file. A rollback restores the file and then reloads it, so the reload is registered first."""
    path = PATH % name
    if not tx.check_mode and tx.host.read(path) != text:
        tx.on_failure(lambda: _reload_restored(tx.host, blockdev))
    return tx.write(path, text)


def _reload(host, blockdev):
    udevadm = host.tool("udevadm")
    host.run([udevadm, "control", "--reload"])
    if blockdev and host.exists("/sys/class/block/%s" % blockdev):
        host.run([udevadm, "trigger", "--action=change", "--settle", "/sys/class/block/%s" % blockdev])


def _reload_restored(host, blockdev):
    """Reload after a rollback. Errors are ignored: the error that caused the rollback is the one to report."""
    try:
        _reload(host, blockdev)
    except Refused:
        pass
