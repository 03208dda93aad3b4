# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the running system: user, kernel, kernel command line, lockdown, the system's own policy, sleep inhibitors.

Every check takes a Survey and returns a list of Refused, empty if there is no blocker.
"""
from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import sleep_policy

DISABLED = "[disabled]"
STATES_UNTIL = 254  # of systemd: HibernateState= has had no effect since 255 (NEWS)
SECRETMEM = "/secretmem (deleted)"  # name of a memfd_secret(2) file (fs/d_path.c, simple_dname)


def not_root(survey):
    """Without root, many checks cannot run."""
    if survey.euid == 0:
        return []
    return [Refused(
        "not_root",
        "The device, the boot configuration and the initramfs were not checked, because only root can read them.",
        "Run with become: true.",
    )]


def no_systemd(survey):
    """Devuan, MX Linux, a container: another program is process 1, and does not hibernate for C(systemctl)."""
    first = survey.host.attribute("/proc/1/comm")
    if first in (None, "systemd") or survey.host.exists("/run/systemd/system"):  # sd_booted(3)
        return []
    return [Refused(
        "no_systemd",
        "The machine was not started by systemd, which hibernates it: process 1 is '%s'." % first,
        "Start it with systemd (Debian and its like: apt-get install systemd-sysv), or take it from the hosts of the collection. A "
        "container cannot hibernate.",
    )]


def no_hibernation(survey):
    """kernel/power/Kconfig: without CONFIG_HIBERNATION there is no C(/sys/power/disk)."""
    if survey.hibernation is not None:
        return []
    return [Refused(
        "no_hibernation",
        "Kernel %s is built without hibernation: /sys/power/disk does not exist." % survey.release,
        "Boot a kernel with CONFIG_HIBERNATION=y, such as the default kernel of the distribution.",
    )]


def hibernation_disabled(survey):
    """kernel/power/hibernate.c, hibernation_available(): four causes. disk_show() reports whether any applies."""
    if survey.hibernation != DISABLED:
        return []
    causes = [refused for check in (nohibernate, lockdown, memfd_secret, cxl) for refused in check(survey)]
    return causes or [Refused(
        "hibernation_disabled",
        "The kernel reports hibernation as not available (/sys/power/disk is '[disabled]'). Checked without result: "
        "kernel command line, lockdown, processes with secret memory, CXL memory.",
        "Search the kernel log (dmesg) for 'hibernation'. A security module or a modified kernel may be the cause.",
    )]


def nohibernate(survey):
    """kernel/power/hibernate.c: nohibernate_setup(), hibernate_setup(). Only a reboot can undo it."""
    words = [word for word in survey.cmdline if word in ("nohibernate", "hibernate=no")]
    if not words:
        return []
    return [Refused(
        "nohibernate",
        "The running kernel was booted with '%s', which disables hibernation." % " ".join(words),
        "Remove it from the bootloader's configuration and reboot.",
    )]


def lockdown(survey):
    """security/lockdown/lockdown.c; LOCKDOWN_HIBERNATION is below LOCKDOWN_INTEGRITY_MAX (include/linux/security.h)."""
    if survey.lockdown in (None, "none"):
        return []
    cause = "Secure Boot is enabled" if survey.secure_boot else \
        "lockdown= or lsm= on the kernel command line, or the kernel's configuration, enables it"
    return [Refused(
        "lockdown",
        "Kernel lockdown (%s) forbids hibernation: %s." % (survey.lockdown, cause),
        "Disable Secure Boot in the firmware, or remove lockdown= from the kernel command line, and reboot. Lockdown "
        "cannot be lowered on a running machine.",
    )]


def memfd_secret(survey):
    """mm/secretmem.c: secretmem_active() counts open files, whose name is "secretmem" on a file system of its own.

    A file lives on as a mapping after every descriptor is closed; the mapping is locked memory (VM_LOCKED), so only
    processes with locked memory are checked for one.
    """
    holders = []
    for process in survey.host.glob("/proc/[0-9]*"):
        if _has_descriptor(survey.host, process, SECRETMEM) or _has_mapping(survey.host, process, SECRETMEM):
            holders.append("%s (%s)" % (os.path.basename(process), survey.host.attribute(process + "/comm") or "?"))
    if not holders:
        return []
    return [Refused(
        "memfd_secret",
        "The kernel does not hibernate while processes have memory from memfd_secret(2): %s." % ", ".join(holders),
        "Stop these processes, or boot with secretmem.enable=0.",
    )]


def _has_descriptor(host, process, name):
    for descriptor in host.glob(process + "/fd/*"):
        try:
            if os.readlink(host.path(descriptor)) == name:
                return True
        except OSError:
            continue  # closed in the meantime
    return False


def _has_mapping(host, process, name):
    locked = re.search(r"^VmLck:\s+(\d+)", host.read(process + "/status") or "", re.MULTILINE)
    return bool(locked and int(locked.group(1))) and name in (host.read(process + "/maps") or "")


def cxl(survey):
    """drivers/cxl/mem.c: a bound memory device counts as active (cxl_mem_active_inc); its contents would be lost."""
    bound = [os.path.dirname(path) for path in survey.host.glob("/sys/bus/cxl/devices/mem*/driver")]
    if not bound:
        return []
    return [Refused(
        "cxl",
        "The kernel does not hibernate while CXL memory devices are in use: %s."
        % ", ".join(os.path.basename(path) for path in bound),
        "If the machine can run without them, disable the driver (module_blacklist=cxl_mem on the kernel command line) "
        "and reboot.",
    )]


def noresume(survey):
    """kernel/power/hibernate.c, noresume_setup(); systemd's read_resume_config() refuses with it as well."""
    words = [word for word in survey.cmdline if word in ("noresume", "hibernate=noresume")]
    if not words:
        return []
    return [Refused(
        "noresume",
        "The running kernel was booted with '%s', which disables resuming; systemd then refuses to hibernate."
        % " ".join(words),
        "Remove it from the bootloader's configuration and reboot.",
    )]


def pm_test(survey):
    """kernel/power/main.c, pm_test_show(): at any level but none, hibernation stops there and returns."""
    level = re.search(r"\[(\w+)\]", survey.host.attribute("/sys/power/pm_test") or "")
    if level is None or level.group(1) == "none":
        return []
    return [Refused(
        "pm_test",
        "/sys/power/pm_test is '%s': the kernel would only test part of a hibernation and save no image."
        % level.group(1),
        "Run: echo none > /sys/power/pm_test",
    )]


def sleep_masked(survey):
    """Units that C(systemctl hibernate) starts and that are masked."""
    return sleep_policy.masked(survey.host)


def sleep_disallowed(survey):
    """C(AllowHibernation=no) in sleep.conf(5)."""
    return sleep_policy.disallowed(survey.host)


def sleep_mode(survey):
    """systemd, src/shared/sleep-config.c, sleep_mode_supported(): HibernateMode= names modes of which the kernel needs one.

    kernel/power/hibernate.c, power_down(): with suspend or test_resume the machine is not powered off.
    """
    return _state(survey) or _mode(survey)


def _state(survey):
    """systemd, src/sleep/sleep.c, write_state(): the first state that the kernel takes."""
    setting = survey.sleep_settings.get("HibernateState")
    known = (survey.host.attribute("/sys/power/state") or "").split()
    first = next((state for state in setting.value.split() if state in known), "disk") if setting else "disk"
    if first == "disk" or (survey.systemd or 0) > STATES_UNTIL:
        return []
    return [Refused(
        "sleep_mode",
        "HibernateState=%s in %s: the machine would sleep in the state %s, without an image." % (setting.value, setting.place, first),
        "Remove that line, or override it in a file in /etc/systemd/sleep.conf.d whose name sorts last: with HibernateState=disk, "
        "which is the default.",
    )]


def _mode(survey):
    setting = survey.sleep_settings.get("HibernateMode")
    if setting is None or survey.hibernation in (None, DISABLED):
        return []
    wanted, known = setting.value.split(), survey.hibernation.replace("[", "").replace("]", "").split()
    usable = [mode for mode in wanted if mode in known]
    if not wanted or (usable and usable[0] not in ("suspend", "test_resume")):
        return []
    consequence = "after which the machine is not powered off" if usable else "and the kernel has %s" % " ".join(known)
    return [Refused(
        "sleep_mode",
        "HibernateMode=%s in %s, %s." % (setting.value, setting.place, consequence),
        "Remove that line, or override it in a file in /etc/systemd/sleep.conf.d whose name sorts last: with "
        "HibernateMode=platform shutdown, which is the default.",
    )]


def sleep_replaced(survey):
    """A unit of others, or a drop-in, in place of systemd's own."""
    return sleep_policy.replaced(survey.host)


def logind_refuses(survey):
    """Manager.CanHibernate: the policy as a whole, for causes that no check knows. Its consequences are found before."""
    answer = sleep_policy.can_hibernate(survey.host)
    if answer is None or answer in sleep_policy.ALLOWED:
        return []
    return [Refused(
        "logind_refuses",
        "systemd-logind refuses to hibernate: it answers '%s' to CanHibernate." % answer,
        "Have it log why: systemctl service-log-level systemd-logind.service debug; %s; "
        "journalctl --boot --unit=systemd-logind.service --lines=20; "
        "systemctl service-log-level systemd-logind.service info" % sleep_policy.ASK,
    )]


def sleep_inhibited(survey):
    """logind's block inhibitors of sleep: org.freedesktop.login1.Manager.ListInhibitors.

    systemd up to 256 ignores them for root, from 257 on it does not. They are a blocker with every version, because a
    program asked for the machine to stay awake.
    """
    holders = ["%s (%s)" % (lock.who, lock.why) for lock in survey.inhibitors if lock.blocks_sleep]
    if not holders:
        return []
    return [Refused(
        "sleep_inhibited",
        "Sleep is inhibited by %s." % ", ".join(holders),
        "Wait for it to finish, or stop it. systemd-inhibit --list shows all inhibitors.",
    )]
