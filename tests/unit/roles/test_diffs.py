# SPDX-License-Identifier: GPL-3.0-or-later
"""What C(ansible-playbook --check --diff) prints for each module: each change under its own header, in whole lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.swap.swap_machine import OURS
from ansible_collections.nvm.fastboot.tests.unit.plugins.module_utils.swap.swap_machine import header as swap_header
from ansible_collections.nvm.fastboot.tests.unit.roles.test_real_modules import KERNEL, PLAY, Machine, play

DERIVED = "39acc87f-828e-8b06-93c6-f7b637802803"
INITRD = "/boot/initrd.img-" + KERNEL
LOGIND = "/etc/systemd/logind.conf.d/50-nvm-fastboot-power_key.conf"
GRUB = "/etc/default/grub.d/zz-nvm-fastboot-%s.cfg"
SWAP = {"swap area /dev/NVM_SWAP": ["+type: swap", "+uuid: " + DERIVED, "+label: NVM_SWAP", "+active: priority 10"]}
FSTAB = {"/etc/fstab": [" /dev/vda1 / ext4 defaults 0 1", "+UUID=%s swap swap defaults,nofail,pri=10 0 0" % DERIVED]}
GENERATED = {"/boot/grub/grub.cfg": ["-current configuration", "+generated from the new settings"]}
# Module, options, and what is printed: lines below each header, in this order. More lines may stand between them.
CASES: list[tuple[str, dict[str, Any], dict[str, list[str]]]] = [
    ("nvm_reservation", {}, {
        "namespace in region0": ["+name: NVM_SWAP", "+mode: raw", "+size: 1073741824"],
        "link /dev/NVM_SWAP": ["+to: the new namespace"],
    }),
    ("nvm_swap", {}, SWAP),
    ("swap_file", {"state": "absent", "force": True}, {
        "swap file /swapfile": ["-type: swap", "-uuid: " + OURS, "-label: NVM_SWAP", "-active: no"],
    }),
    ("fstab_swap", {}, FSTAB),
    ("boot_resume", {}, {
        "/etc/initramfs-tools/conf.d/zz-nvm-fastboot-resume-" + DERIVED: ["+RESUME=UUID=" + DERIVED],
        "/etc/initramfs-tools/hooks/nvm-fastboot": ["+for module in libnvdimm nd_pmem; do"],
        "/etc/initramfs-tools/scripts/init-top/nvm-fastboot": ['+/bin/resume "$device"'],
        INITRD: ["-current image", "+rebuilt: resume from UUID=%s with libnvdimm nd_pmem" % DERIVED],
        GRUB % "resume": ["+GRUB_CMDLINE_LINUX=\"${GRUB_CMDLINE_LINUX:+$GRUB_CMDLINE_LINUX }\"'resume=UUID=%s'" % DERIVED],
        **GENERATED,
    }),
    ("boot_root", {"mode": "overlay"}, {
        INITRD: ["-current image", "+rebuilt: from the present settings"], GRUB % "overlay": [], **GENERATED,
    }),
    ("hibernate_trigger", {"condition": "power_key"}, {LOGIND: ["+[Login]", "+HandlePowerKey=hibernate"]}),
    ("boot_slots", {"device": "/dev/pmem1"}, {"/dev/pmem1": ["+a table of slots"]}),
    ("boot_snapshot", {"application": "shop", "event": "ready", "executable": "/usr/bin/program"}, {"snapshots": ["+shop ready"]}),
    ("boot_image", {"state": "captured", "store": "/srv/images", "machine": "web01", "source_command": ["pg_dump", "shop"],
                    "executable": "/usr/bin/program"}, {"web01/system in /srv/images": ["+a version of pg_dump shop"]}),
    ("nvm_plan", {"parts": [{"nvm_swap": {}}, {"fstab_swap": {}}, {"hibernate_trigger": [{"condition": "power_key"}]}]}, {
        **SWAP, **FSTAB, LOGIND: ["+HandlePowerKey=hibernate"],
    }),
]  # fmt: skip


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What was printed for each module."""
    pytest.importorskip("ansible.cli")
    directory: Path = tmp_path_factory.mktemp("diffs")
    machine = Machine(directory / "plain", **{"/usr/bin/program": ""})
    (machine.root / "swapfile").write_bytes(swap_header(size=1 << 20).ljust(1 << 20, b"\0"))
    (machine.root / "swapfile").chmod(0o600)
    before = machine.state()
    tasks = [{"name": name, "nvm.fastboot." + name: options} for name, options, _expected in CASES]
    content = {"hosts": "all", "gather_facts": False, "environment": PLAY["environment"], "tasks": tasks}
    counts = play(directory, {"plain": machine}, {}, "--check", "--diff", content=content)
    print(machine.output)
    assert counts["plain"]["changed"] == len(CASES), machine.output
    assert machine.state() == before
    return dict(re.findall(r"(?ms)^TASK \[(\w+)\] \*+\n(.*?)(?=^TASK|^PLAY RECAP)", machine.output))


@pytest.mark.parametrize(("name", "options", "expected"), CASES, ids=[case[0] for case in CASES])
def test_the_diff_of_a_module(printed: dict[str, str], name: str, options: dict[str, Any], expected: dict[str, list[str]]) -> None:
    text = printed[name]
    shown = re.findall(r"(?ms)^--- before: (.*?)\n\+\+\+ after: (.*?)\n(.*?)\n\n", text)
    assert [(before, after) for before, after, _lines in shown] == [(header, header) for header in expected], text
    for _before, header, body in shown:
        lines = iter(body.splitlines())
        for line in expected[header]:
            assert line in lines, "%s is not below %s, or not in this order:\n%s" % (line, header, text)
    assert "No newline at end of file" not in text


def test_every_module_that_shows_differences_is_here() -> None:
    yaml = pytest.importorskip("yaml")
    shows = set()
    for path in (Path(__file__).resolve().parents[3] / "plugins" / "modules").glob("*.py"):
        document = yaml.safe_load(path.read_text().split('DOCUMENTATION = r"""')[1].split('"""')[0])
        support = document.get("attributes", {}).get("diff_mode", {}).get("support", "full")
        if "nvm.fastboot.attributes" in document["extends_documentation_fragment"] and support != "none":
            shows.add(path.stem)
    assert shows == {name for name, _options, _expected in CASES}
