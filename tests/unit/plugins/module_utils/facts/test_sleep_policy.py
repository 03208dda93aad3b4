# SPDX-License-Identifier: GPL-3.0-or-later
"""What the system's own configuration forbids: the file and the line that says so, and what logind answers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import sleep_policy
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.inhibitors import LOGIND

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

CAN = "busctl --json=short --timeout=20 call %s CanHibernate" % " ".join(LOGIND)
DEBIAN = """\
# See systemd-sleep.conf(5) for details.

[Sleep]
#AllowSuspend=yes
#AllowHibernation=no
#HibernateMode=platform shutdown
"""
DROP = "/%s/systemd/sleep.conf.d/%s.conf"


def mask(host: Host, path: str) -> None:
    os.makedirs(os.path.dirname(host.path(path)), exist_ok=True)
    os.symlink("/dev/null", host.path(path))


def test_nothing_is_forbidden(host: Host, plant: Plant) -> None:
    plant({"/etc/systemd/sleep.conf": DEBIAN, "/usr/lib/systemd/system/hibernate.target": "[Unit]\n"})
    assert sleep_policy.settings(host) == {} and sleep_policy.masked(host) == [] and sleep_policy.disallowed(host) == []
    sleep_policy.check(host)


@pytest.mark.parametrize("unit", sleep_policy.UNITS)
@pytest.mark.parametrize("directory, remedy", [
    ("/etc/systemd/system", "systemctl unmask %s"),
    ("/run/systemd/system", "systemctl unmask --runtime %s"),
    ("/run/systemd/generator.early", "remove systemd.mask=%s from the kernel command line"),
    ("/etc/systemd/system.control", "remove /etc/systemd/system.control/%s and run: systemctl daemon-reload"),
    ("/usr/lib/systemd/system", "the package of /usr/lib/systemd/system/%s again"),
])
def test_masked_units(host: Host, plant: Plant, unit: str, directory: str, remedy: str) -> None:
    if not directory.startswith("/usr"):
        plant({"/usr/lib/systemd/system/" + unit: "[Unit]\n"})
    mask(host, "%s/%s" % (directory, unit))
    (found,) = sleep_policy.masked(host)
    assert found.code == "sleep_masked" and "%s/%s" % (directory, unit) in found.message
    assert remedy % unit in found.remedy
    with pytest.raises(Refused):
        sleep_policy.check(host)


def test_an_empty_unit_file_masks_too(host: Host, plant: Plant) -> None:
    plant({"/etc/systemd/system/sleep.target": ""})
    assert [found.code for found in sleep_policy.masked(host)] == ["sleep_masked"]


def test_the_first_directory_counts(host: Host, plant: Plant) -> None:
    plant({"/etc/systemd/system/hibernate.target": "[Unit]\n"})
    mask(host, "/run/systemd/system/hibernate.target")
    mask(host, "/etc/systemd/system/suspend.target")
    mask(host, "/etc/systemd/system/hybrid-sleep.target")
    assert sleep_policy.masked(host) == []


@pytest.mark.parametrize("files, place", [
    ({"/etc/systemd/sleep.conf": DEBIAN + "AllowHibernation=no\n"}, "/etc/systemd/sleep.conf, line 7"),
    ({DROP % ("etc", "no"): "[Sleep]\nAllowHibernation = OFF \n"}, "/etc/systemd/sleep.conf.d/no.conf, line 2"),
    ({DROP % ("run", "no"): "\n\n[Sleep]\nAllowHibernation=0\n"}, "/run/systemd/sleep.conf.d/no.conf, line 4"),
    ({DROP % ("usr/lib", "no"): "[Sleep]\nAllowHibernation=false\n"}, "/usr/lib/systemd/sleep.conf.d/no.conf, line 2"),
    ({"/usr/lib/systemd/sleep.conf": "[Sleep]\nAllowHibernation=no\n"}, "/usr/lib/systemd/sleep.conf, line 2"),
    ({"/usr/lib/systemd/sleep.conf": "[Sleep]\nAllowHibernation=no\n", "/etc/systemd/sleep.conf": DEBIAN}, None),
    ({DROP % ("usr/lib", "a"): "[Sleep]\nAllowHibernation=no\n", DROP % ("etc", "a"): "[Sleep]\n"}, None),
    ({DROP % ("etc", "a"): "[Sleep]\nAllowHibernation=no\n", DROP % ("run", "b"): "[Sleep]\nAllowHibernation=yes\n"}, None),
    ({DROP % ("etc", "b"): "[Sleep]\nAllowHibernation=no\n", "/etc/systemd/sleep.conf": "[Sleep]\nAllowHibernation=yes\n"},
     "/etc/systemd/sleep.conf.d/b.conf, line 2"),
    ({DROP % ("etc", "a"): "[Sleep]\nAllowHibernation=no\nAllowHibernation=\n"}, None),
    ({DROP % ("etc", "a"): "AllowHibernation=no\n[Other]\nAllowHibernation=no\n[Sleep]\n;AllowHibernation=no\n"}, None),
    ({DROP % ("etc", "a"): "[Sleep]\nAllowHibernation=perhaps\n"}, None),
])
def test_sleep_conf(host: Host, plant: Plant, files: dict[str, str], place: str | None) -> None:
    plant(files)
    found = sleep_policy.disallowed(host)
    assert [each.code for each in found] == ["sleep_disallowed"] * (place is not None)
    if place:
        assert place in found[0].message
        ours = place.startswith(("/etc", "/run"))
        assert ("remove that line" in found[0].remedy) == ours and ("zz-hibernation.conf" in found[0].remedy) != ours


def test_the_remedy_for_a_file_of_a_package_helps(host: Host, plant: Plant) -> None:
    plant({DROP % ("usr/lib", "90-no"): "[Sleep]\nAllowHibernation=no\n"})
    plant({"/etc/systemd/sleep.conf.d/zz-hibernation.conf": "[Sleep]\nAllowHibernation=yes\n"})
    assert sleep_policy.disallowed(host) == []


def test_a_drop_in_that_is_a_link_to_null_hides_the_vendors(host: Host, plant: Plant) -> None:
    plant({DROP % ("usr/lib", "a"): "[Sleep]\nAllowHibernation=no\n"})
    mask(host, DROP % ("etc", "a"))
    assert sleep_policy.disallowed(host) == []


UNIT = "[Unit]\nRequires=sleep.target\n\n[Service]\nType=oneshot\nExecStart=/usr/lib/systemd/systemd-sleep hibernate\n"
DROP_IN = "/etc/systemd/system/systemd-hibernate.service.d/s2disk.conf"


@pytest.mark.parametrize("files, place", [
    ({"/usr/lib/systemd/system/systemd-hibernate.service": UNIT}, None),
    ({"/lib/systemd/system/systemd-hibernate.service": UNIT.replace("/usr/lib/systemd/systemd-sleep", "systemd-sleep")}, None),
    ({"/usr/lib/systemd/system/systemd-hibernate.service": UNIT,
      DROP_IN: "[Service]\nExecStart=\nExecStart=/usr/sbin/s2disk\n"}, DROP_IN + ", line 3"),
    ({"/usr/lib/systemd/system/systemd-hibernate.service": UNIT, DROP_IN: "[Service]\nEnvironment=A=B\nExecStartPre=/bin/sync\n"},
     None),
    ({"/usr/lib/systemd/system/systemd-hibernate.service": UNIT,
      "/etc/systemd/system/systemd-hibernate.service": "[Service]\nExecStart=/bin/true\n"},
     "/etc/systemd/system/systemd-hibernate.service, line 2"),
])
def test_another_program_in_place_of_systemds(host: Host, plant: Plant, files: dict[str, str], place: str | None) -> None:
    plant(files)
    found = sleep_policy.replaced(host)
    assert [each.code for each in found] == ["sleep_replaced"] * (place is not None)
    assert place is None or place in found[0].message


@pytest.mark.parametrize("out, rc, answer", [
    ('{"type":"s","data":["yes"]}\n', 0, "yes"),
    ('{"type":"s","data":["na"]}\n', 0, "na"),
    ("", 1, None),
    ("[]", 0, None),
])
def test_logind_is_asked(host: Host, plant: Plant, transcript: Transcript, out: str, rc: int, answer: str | None) -> None:
    assert sleep_policy.can_hibernate(host) is None
    plant({"/run/systemd/system/x": "", "/usr/bin/busctl": ""})
    assert sleep_policy.can_hibernate(host) is None  # not executable
    os.chmod(host.path("/usr/bin/busctl"), 0o755)
    assert transcript.calls == []
    transcript.record(CAN, out, rc=rc)
    assert sleep_policy.can_hibernate(host) == answer
