# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine records about a hibernation: marker, clocks, units, kernel log and journal.

Everything is read on the machine itself, after it answers again. One run is one thread.
"""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass, field

from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.status import (
    BOOT_ID,
    SERVICE,
    marker_path,
    parse_units,
    properties,
    unit_name,
)


@dataclass
class Observation:
    """The state of the machine at one moment after the marker."""

    boot_id: str
    boottime: float  # seconds, CLOCK_BOOTTIME
    monotonic: float  # seconds, CLOCK_MONOTONIC
    marked: bool  # the marker file exists and holds the token
    service: dict = field(default_factory=dict)  # properties of systemd-hibernate.service
    unit: dict = field(default_factory=dict)  # properties of the transient unit that requested the hibernation
    log: list = field(default_factory=list)  # the kernel's messages since the marker
    journal: list = field(default_factory=list)  # the journal of both units since the marker


def observe(host, token, marker, clock=time.clock_gettime):
    """An Observation, without the journal. Runs one command, and none after a cold boot."""
    boot_id = host.attribute(BOOT_ID, "")
    log = kernel_log(host)
    seen = Observation(boot_id, clock(time.CLOCK_BOOTTIME), clock(time.CLOCK_MONOTONIC), _is_marked(host, token))
    if boot_id != marker["boot_id"]:
        seen.log = [text for _sequence, text in log]
        return seen
    seen.log = [text for sequence, text in log if sequence > marker["sequence"]]
    units = parse_units(host.run(["systemctl", "show"] + properties(token)).out)
    seen.service, seen.unit = units.get(SERVICE, {}), units.get(unit_name(token), {})
    return seen


def kernel_log(host):
    """The kernel's messages as C((sequence number, text)), oldest first; empty if /dev/kmsg cannot be read."""
    records = []
    for line in _kmsg(host).decode("utf-8", "replace").splitlines():
        prefix, semicolon, text = line.partition(";")
        fields = prefix.split(",")
        if not semicolon or line.startswith(" ") or len(fields) < 4 or not (fields[0] + fields[1]).isdigit():
            continue  # a property of the record before
        # User space can write to the kernel log too (facility in the upper bits); only the kernel's messages are evidence.
        if int(fields[0]) >> 3 == 0:
            records.append((int(fields[1]), text))
    return records


def _kmsg(host):
    """The records of /dev/kmsg, as bytes.

    Format: Documentation/ABI/testing/dev-kmsg. A read returns one record, or EPIPE if the record was overwritten.
    """
    records = []
    try:
        handle = os.open(host.path("/dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        while True:
            try:
                record = os.read(handle, 8192)
            except OSError as error:
                if error.errno == errno.EPIPE:
                    continue
                break  # EAGAIN: no more records
            if not record:
                break
            records.append(record)
    finally:
        os.close(handle)
    return b"".join(records)


def journal(host, token, marker):
    """The journal of both units since the marker, systemd's own messages about them (exit codes) included."""
    result = host.run(
        [
            "journalctl",
            "--quiet",
            "--no-pager",
            "--boot",
            "--output=cat",
            "--lines=40",
            "--since=@%d" % int(marker["realtime"]),
            "--unit=" + SERVICE,
            "--unit=" + unit_name(token),
        ],
        ok=None,
    )
    return [line for line in result.out.splitlines() if line.strip()] if result.rc == 0 else []


def _is_marked(host, token):
    try:
        return json.loads(host.read(marker_path(token), "")).get("token") == token
    except (ValueError, AttributeError):
        return False
