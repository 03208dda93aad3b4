# SPDX-License-Identifier: GPL-3.0-or-later
"""``[boot]`` of the policy: what it may say, that each mistake is named with setting and value, and what the initramfs gets of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fuse_store.boot.policy import EVENTS, Boot, Candidate, compiled, parse, summary
from fuse_store.errors import UsageError
from fuse_store.snapshot.service.policy import load
from tests.store.boot.stand import Stand

APPLICATIONS = ("shop", "1|é")


def read(text: str) -> Boot:
    return parse(tomllib.loads(text), APPLICATIONS)


def test_what_it_says() -> None:
    boot = read("""
        attempts = 3
        check = false
        power_loss = ["shop", "shop/before sale before 2026-11-29T12:00Z", "any before 2026-11", "golden"]
        panic = []
        watchdog = ["1|é/a b", "cold"]
    """)
    assert (boot.attempts, boot.check, boot.wait, boot.ask) == (3, False, 10, 30)
    assert boot.candidates["power_loss"] == (
        Candidate("application", "shop"), Candidate("application", "shop", "before sale", 1795953600), Candidate("any", before=1793491200),
        Candidate("golden"),
    )  # fmt: skip
    assert boot.candidates["panic"] == () and boot.candidates["shutdown"] == boot.candidates["unknown"] == (Candidate("cold"),)
    assert set(boot.candidates) == set(EVENTS)
    assert compiled(boot, ["/dev/pmem1"], ["nd_pmem"]).splitlines() == [
        "device /dev/pmem1", "attempts 3", "check 0", "wait 10", "ask 30", "module nd_pmem",
        "power_loss application|shop||", "power_loss application|shop|before sale|1795953600", "power_loss any|||1793491200",
        "power_loss golden|||", "watchdog application|1%7C%C3%A9|a b|", "watchdog cold|||", "shutdown cold|||", "unknown cold|||",
    ]  # fmt: skip
    assert summary(boot)["power_loss"][1] == "shop/before sale before 2026-11-29T12:00:00Z"
    assert parse({}, ()) == Boot()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("powerloss = []", "boot.powerloss: no such setting; there are attempts, wait, ask, check, power_loss,"),
        ("attempts = 0", "boot.attempts: 0 is not a number from 1"),
        ("attempts = true", "boot.attempts: True is not a number"),
        ("wait = 601", "boot.wait: 601 is not a number from 0 to 600"),
        ("check = 1", "boot.check: 1 is not true or false"),
        ('panic = "any"', "boot.panic: 'any' is not a list"),
        ("panic = [1]", "boot.panic: 1 is not APPLICATION"),
        ('panic = [""]', "boot.panic: '' is not APPLICATION"),
        ('panic = ["shopp"]', "boot.panic: 'shopp': no such application; there are 1|é, shop, system, any, golden, cold"),
        ('panic = ["/x"]', "boot.panic: '/x': no such application"),
        ('panic = ["any before noon"]', "boot.panic: 'any before noon': 'noon' is not a time such as"),
        ('panic = ["any before 1950"]', "no image is from before 1970"),
        ('panic = ["cold before 2026"]', "cold is a normal boot, and has no time"),
        ('panic = ["cold", "any"]', "goes on after cold"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"boot\.") as raised:
        read(text)
    assert message in str(raised.value)
    path = tmp_path / "snapshots.toml"
    path.write_text(f'device = "/dev/pmem1"\n[applications.shop]\n[applications."1|é"]\n[boot]\n{text}\n')
    with pytest.raises(UsageError) as usage:
        load(path)
    assert str(usage.value).startswith(f"policy {path}: ") and message in str(usage.value)


def test_the_scripts_go_by_it(tmp_path: Path) -> None:
    """Names of any kind, as the table has them."""
    stand = Stand.made(tmp_path)
    wanted, _newer = stand.add("1|é", event="a b"), stand.add("shop")
    boot = read('power_loss = ["1|é/a b"]')
    stand.policy = compiled(boot, ["/nonexistent", str(stand.device)]).splitlines()
    assert stand.boot().resumed == wanted.header
    stand.policy = compiled(read('power_loss = ["1|é/other", "any before 2026-01-01"]'), [str(stand.device)]).splitlines()
    assert stand.boot().report[-1] == "normal after power_loss no slot is to be resumed"
