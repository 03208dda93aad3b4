# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of others that write C(/sys/power/resume) or C(/sys/power/resume_offset) once the system runs.

The kernel then hibernates to another place than the one that the initramfs has looked at, at each boot again. Reads files only.
"""

from __future__ import annotations

import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.overrides import WRITES

TMPFILES = re.compile(r"^\s*[wfF]\S*\s+\"?/sys/power/resume(_offset)?\b")  # tmpfiles.d(5)
SYSFSUTILS = re.compile(r"^\s*power/resume(_offset)?\s*=")
PLACES = (
    ("/etc/tmpfiles.d/*.conf", TMPFILES),
    ("/usr/lib/tmpfiles.d/*.conf", TMPFILES),
    ("/etc/sysfs.conf", SYSFSUTILS),
    ("/etc/sysfs.d/*.conf", SYSFSUTILS),
    ("/etc/systemd/system/*.service", WRITES),
    ("/etc/udev/rules.d/*.rules", WRITES),
    ("/etc/rc.local", WRITES),
    ("/etc/cron.d/*", WRITES),
)
UNITS = "/etc/systemd/system/*.service"
PROGRAM = re.compile(r"(?m)^\s*Exec\w+\s*=\s*[-@:+!|]*(/\S+)")
LARGEST = 1 << 16  # bytes of a file that are read


def setting(host):
    """The place of the first such setting ("/etc/tmpfiles.d/x.conf, line 2"), or None."""
    files = [(path, pattern) for places, pattern in PLACES for path in host.glob(places)]
    files += [(program, WRITES) for unit in host.glob(UNITS) for program in PROGRAM.findall(_text(host, unit))]
    for path, pattern in files:
        for number, line in enumerate(_text(host, path).splitlines(), 1):
            if pattern.search(line) and not line.lstrip().startswith("#"):
                return "%s, line %d" % (path, number)
    return None


def _text(host, path):
    return (host.read_bytes(path, b"", LARGEST) or b"").decode("utf-8", "replace")
