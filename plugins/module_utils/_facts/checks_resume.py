# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of resuming: device known to the running kernel, resume= of the boot entries, drivers in the initramfs.

Every check takes a Survey and returns a list of Refused, empty if there is no blocker.
"""
from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import files, late
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.names import BY_TAG
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.survey import UNSET

# Arguments of boot entries for repairs, which are not used to resume.
RESCUE = {"single", "s", "S", "1", "rescue", "emergency", "systemd.unit=rescue.target", "systemd.unit=emergency.target"}
NO_RESUME = ("noresume", "hibernate=noresume", "nohibernate", "hibernate=no")


def boot_files(survey):
    """Whether the files in /boot are those that the next boot reads. If not, the checks of these files say nothing."""
    files.check(survey.host)
    files.check_kept(survey.host, _checked(survey))
    return []


def _checked(survey):
    """The files that the other checks look at, as far as bootloader and tool are known."""
    paths = []
    try:
        paths.append(getattr(survey.bootloader, "configuration", None))
        paths += [survey.initramfs.image(kernel) for kernel in survey.initramfs.kernels()]
    except Refused:
        pass  # reported by other checks
    return [path for path in paths if path]


def _are_read(survey):
    try:
        boot_files(survey)
    except Refused:
        return False
    return True


def resume_running(survey):
    """C(/sys/power/resume) of the running kernel, written by the initramfs when it looked for an image at this boot.

    systemd allows only this swap area (find_suitable_hibernation_device_full()), and refuses to hibernate BIOS machines
    if it is not set.
    """
    if survey.resume is None or survey.block is None:
        return []
    if survey.resume == survey.block.devno:
        return _resume_offset(survey)
    if survey.resume == UNSET:
        return [Refused(
            "resume_unset",
            "The running kernel has no device to resume from (/sys/power/resume is 0:0): no resume= was set at boot, or "
            "the initramfs did not find the device.",
            "%sRun boot_resume for %s and reboot. If it is still unset then, the initramfs lacks drivers for the device."
            % (_rewritten(survey), survey.device),
        )]
    return [Refused(
        "resume_elsewhere",
        "The running kernel resumes from device %s (/sys/power/resume), and %s is device %s."
        % (survey.resume, survey.device, survey.block.devno),
        "%sRun boot_resume for %s and reboot." % (_rewritten(survey), survey.device),
    )]


def _rewritten(survey):
    """What has to be removed first so that the initramfs has the last word, as a sentence with a space; or an empty text."""
    place = late.setting(survey.host)
    return "Remove %s, which sets it again at each boot. " % place if place else ""


def _resume_offset(survey):
    """kernel/power/swap.c, swsusp_swap_check(): a swap area at another offset is a different swap area."""
    offset = survey.host.attribute("/sys/power/resume_offset") or "0"
    if offset == str(survey.target.offset):
        return []
    if survey.is_file:
        return [_moved(survey, "The running kernel looks for the image at page %s of %s (/sys/power/resume_offset)" % (
            offset, survey.block), " and reboot", _rewritten(survey))]
    return [Refused(
        "resume_elsewhere",
        "/sys/power/resume_offset is %s, as for a swap file, but the swap area is the whole device %s."
        % (offset, survey.device),
        "%sRun boot_resume for %s, which keeps resume_offset= of other settings out of the kernel command line and of the "
        "initramfs, and reboot." % (_rewritten(survey), survey.device),
    )]


def _moved(survey, where, more="", before=""):
    """The error Refused C(swap_file_moved): the place of a swap file is another one than that on a kernel command line."""
    return Refused(
        "swap_file_moved",
        "%s, and %s begins at page %d: no resume_offset= was set, or the file was moved, defragmented or created again since."
        % (where, survey.device, survey.target.offset),
        "%sRun boot_resume for %s%s." % (before, survey.device, more),
    )


def resume_configured(survey):
    """C(resume=) in each entry of the generated boot configuration, which the next boot uses.

    The last C(resume=) counts: kernel/power/hibernate.c, resume_setup(), and both initramfs tools.
    """
    if survey.block is None or not _are_read(survey):
        return []
    entries = [entry for entry in survey.entries if entry in survey.next_entries or not RESCUE.intersection(entry.arguments)]
    if not entries:
        return [Refused(
            "unknown_boot_entries",
            "The boot configuration of %s has no entry that boots Linux." % survey.bootloader.name,
            "Generate the boot configuration with the bootloader's own tool.",
        )]
    unset, disabled, elsewhere, moved = _sort_entries(survey, entries)
    blockers = [_moved(survey, "The next boot would look for the image at another page of %s: %s" % (survey.block, _some(moved)))] \
        if moved else []
    if unset:
        blockers.append(Refused(
            "resume_unset",
            "The next boot would not resume: the boot configuration has no resume= in %s." % _some(unset),
            "Run boot_resume for %s." % survey.device,
        ))
    if elsewhere:
        blockers.append(Refused(
            "resume_elsewhere",
            "The next boot would not look for the image on %s: %s." % (survey.device, _some(elsewhere)),
            "Run boot_resume for %s. It overrides resume= in other files." % survey.device,
        ))
    if disabled:
        blockers.append(Refused(
            "noresume",
            "The next boot would not resume: %s." % _some(disabled),
            "Remove these arguments from the bootloader's settings, and generate the boot configuration again.",
        ))
    return blockers


def _sort_entries(survey, entries):
    """Titles of entries without C(resume=), with resuming disabled, with another device, and with another place of the swap file: four
    lists."""
    unset, disabled, elsewhere = [], [], []
    moved: list[str] = []
    for entry in entries:
        values = _values(entry.arguments, "resume=")
        words = [word for word in entry.arguments if word in NO_RESUME]
        if words:
            disabled.append("%s (%s)" % (entry.title, " ".join(words)))
        elif not values:
            unset.append(entry.title)
        elif not _is_device(survey, values[-1]):
            elsewhere.append("%s (resume=%s)" % (entry.title, values[-1]))
        elif (_values(entry.arguments, "resume_offset=")[-1:] or ["0"]) != [str(survey.target.offset)]:
            offset = (_values(entry.arguments, "resume_offset=")[-1:] or ["0"])[0]
            (moved if survey.is_file else elsewhere).append("%s (resume=%s resume_offset=%s)" % (entry.title, values[-1], offset))
    return unset, disabled, elsewhere, moved


def _values(arguments, prefix):
    return [word[len(prefix):] for word in arguments if word.startswith(prefix)]


def _some(titles):
    """The first three titles, quoted, and the number of the others."""
    named = ", ".join("'%s'" % title for title in titles[:3])
    return named if len(titles) <= 3 else "%s and %d more" % (named, len(titles) - 3)


def _is_device(survey, value):
    """Whether a value of C(resume=) names the device: by path, by a tag that blkid knows, or as major:minor."""
    value = value.strip('"')
    tag, equals, rest = value.partition("=")
    rest = rest.strip('"')
    if not equals:
        return value == survey.block.devno or survey.host.real(value) == survey.block.path
    if survey.is_file and tag == "UUID":
        return rest == survey.resume_uuid
    if survey.header is not None and not survey.is_file and tag in ("UUID", "LABEL"):
        return rest == (survey.header.uuid if tag == "UUID" else survey.header.label)
    return tag in BY_TAG and survey.host.real("%s/%s" % (BY_TAG[tag], rest)) == survey.block.path


def other_swap_first(survey):
    """The swap area that systemd chooses while C(/sys/power/resume) is not set: find_suitable_hibernation_device_full()
    walks /proc/swaps without zram and prefers an area of higher priority or with more free space."""
    if survey.resume != UNSET or survey.swap is None:
        return []
    chosen = None
    for swap in survey.swaps:
        if swap.path.startswith("/dev/zram") or swap.path.endswith(" (deleted)"):
            continue
        if chosen is None or swap.priority > chosen.priority or swap.free > chosen.free:
            chosen = swap
    if chosen is None or chosen == survey.swap:
        return []
    return [Refused(
        "other_swap_first",
        "While no resume device is set, systemd hibernates into %s (priority %d, %s free), not into %s (priority %d, %s "
        "free)." % (
            chosen.path, chosen.priority, format_size(chosen.free),
            survey.device, survey.swap.priority, format_size(survey.swap.free)),
        "Run boot_resume for %s and reboot: with resume= set, systemd uses that device whatever the priorities. Or run "
        "swapoff %s." % (survey.device, chosen.path),
    )]


def initramfs_drivers(survey):
    """The contents of the initramfs of every installed kernel: without the drivers, the device does not exist when the
    initramfs looks for the image, the machine boots cold, and swapon destroys the saved image."""
    if survey.block is None or survey.resume is None or not _are_read(survey):
        return []
    return [
        Refused(
            "initramfs_drivers",
            "The initramfs of kernel %s lacks drivers or settings for resuming from %s: %s."
            % (kernel, survey.device, ", ".join(missing)),
            "Run boot_resume for %s. It adds them and rebuilds the initramfs of every installed kernel." % survey.device,
        )
        for kernel, missing in survey.initramfs_missing()
    ]


def initramfs_outdated(survey):
    """Bootloaders that load a copy of the initramfs, or have one inside: what was checked is the image in /boot."""
    problems = survey.bootloader.outdated() if survey.block is not None and _are_read(survey) else []
    if not problems:
        return []
    return [Refused(
        "initramfs_outdated",
        "The next boot would not use the initramfs in /boot: %s." % "; ".join(problems),
        "Run boot_resume for %s, which makes the copy again." % survey.device,
    )]


def initramfs_overridden(survey):
    """Settings of others in the initramfs, such as resume_offset= in /etc/initramfs-tools/conf.d/resume: init sources it, and the kernel
    then looks for the image at another place of the device (initramfs-tools, scripts/local-premount/resume)."""
    if survey.resume is None or not survey.resume_uuid or not _are_read(survey):
        return []
    tool, built = survey.initramfs, survey.built_for
    return [
        Refused(
            "initramfs_overridden",
            "The initramfs of kernel %s would not resume from %s: %s." % (kernel, survey.device, override),
            tool.remedy(override),
        )
        for kernel in tool.kernels() for override in tool.overrides(kernel, built, survey.modules)
    ]
