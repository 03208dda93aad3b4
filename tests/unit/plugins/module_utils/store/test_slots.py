# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules of slots and of snapshots tell fuse-store, and what they make of its answers; tests/vm has the command itself."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._store import slots, snapshot

if TYPE_CHECKING:
    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

ID = "4f1c9a0d6be2417c8f5a1b2c3d4e5f60"
CALL = "/usr/local/bin/fuse-store --json "
DEVICE = "/dev/pmem1"
LIST, INIT = CALL + "slots list " + DEVICE, CALL + "slots init " + DEVICE
ERASE = ["/usr/sbin/blkdiscard --zeroout --offset 1048576 " + DEVICE, "/usr/sbin/blkdiscard --zeroout --length 1048576 " + DEVICE]
OPTIONS: dict[str, Any] = {"device": DEVICE, "slot": None, "force": False, "executable": "fuse-store"}
ASKED: dict[str, Any] = dict.fromkeys(("application", "event", "device", "keep"))
ASKED.update(golden=False, replace=False, executable="fuse-store")


@pytest.fixture
def machine(host: Host, plant: Plant) -> Host:
    for name in ("/usr/local/bin/fuse-store", "/usr/sbin/blkdiscard"):
        plant({name: ""})
        os.chmod(host.path(name), 0o755)
    plant({DEVICE: ""})
    return host


def table(*found: dict[str, Any]) -> str:
    return json.dumps({"device": DEVICE, "page_size": 4096, "free": 4096, "slots": list(found), "slot": None, "image": None})


def slot(number: int, state: str = "complete", kept: str = "replaceable") -> dict[str, Any]:
    return {"slot": number, "state": state, "kept": kept, "machine": "web01", "application": "shop", "image": ID}


def none(transcript: Transcript) -> None:
    error = {"type": "not_found", "thing": "device " + DEVICE, "cause": "has no table of slots."}
    transcript.record(LIST, err=json.dumps({"error": error}), rc=3)


def apply(host: Host, state: str = "present", check_mode: bool = False, **options: Any) -> tuple[bool, dict[str, Any]]:
    with Transaction(host, check_mode) as transaction:
        result = slots.apply(transaction, dict(OPTIONS, state=state, **options))
    return transaction.changed, result


def test_a_table_is_made_once(machine: Host, transcript: Transcript) -> None:
    none(transcript)
    transcript.record(LIST, table())
    transcript.record(INIT, table())
    changed, result = apply(machine)
    assert changed and result == {
        "device": DEVICE, "initialized": True, "page_size": 4096, "free": 4096, "slots": [], "warnings": [],
    }  # fmt: skip
    assert transcript.calls == [LIST, INIT, LIST]
    assert not apply(machine)[0] and transcript.calls.count(INIT) == 1


def test_check_mode_makes_no_table(machine: Host, transcript: Transcript) -> None:
    none(transcript)
    changed, result = apply(machine, check_mode=True)
    assert changed and not result["initialized"] and transcript.calls == [LIST]


def test_check_mode_goes_on_without_the_command(host: Host) -> None:
    assert apply(host, check_mode=True)[0]
    for state, check_mode in (("present", False), ("listed", True), ("absent", True)):
        with pytest.raises(Refused) as refused:
            apply(host, state, check_mode)
        assert refused.value.code == "executable_missing"


def test_what_is_on_the_device_is_overwritten_only_by_force(machine: Host, transcript: Transcript) -> None:
    none(transcript)
    none(transcript)
    transcript.record(LIST, table())
    error = {"type": "refused", "thing": "device " + DEVICE, "cause": "contains an ext4 filesystem.", "remedy": "Choose another device."}
    transcript.record(INIT, err=json.dumps({"error": error}), rc=5)
    with pytest.raises(Refused) as refused:
        apply(machine)
    assert refused.value.code == "refused" and "ext4" in refused.value.message
    transcript.record(INIT + " --force", table())
    assert apply(machine, force=True)[0]


def test_a_damaged_table_is_not_taken_for_none(machine: Host, transcript: Transcript) -> None:
    transcript.record(LIST, err=json.dumps({"error": {"type": "damaged", "thing": DEVICE, "cause": "it is."}}), rc=4)
    for state in slots.STATES:
        with pytest.raises(Refused) as refused:
            apply(machine, state)
        assert refused.value.code == "damaged"


def test_a_missing_device_is_named(machine: Host) -> None:
    os.unlink(machine.path(DEVICE))
    for check_mode in (False, True):
        with pytest.raises(Refused) as refused:
            apply(machine, check_mode=check_mode)
        assert refused.value.code == "device_missing" and DEVICE in refused.value.message


def test_listed(machine: Host, transcript: Transcript) -> None:
    transcript.record(LIST, table(slot(1)))
    assert apply(machine, "listed") == (
        False, {"device": DEVICE, "initialized": True, "page_size": 4096, "free": 4096, "slots": [slot(1)], "warnings": []},
    )  # fmt: skip


def test_one_slot_is_removed(machine: Host, transcript: Transcript) -> None:
    for found in ([slot(1), slot(2)], [slot(1), slot(2)], [slot(1)]):
        transcript.record(LIST, table(*found))
    remove = CALL + "slots remove %s --slot 2" % DEVICE
    transcript.record(remove, table())
    assert apply(machine, "absent", check_mode=True, slot=2)[0] and remove not in transcript.calls
    changed, result = apply(machine, "absent", slot=2)
    assert changed and result["slots"] == [slot(1)] and remove in transcript.calls
    assert not apply(machine, "absent", slot=2)[0]


def test_the_device_is_erased_the_table_last(machine: Host, transcript: Transcript) -> None:
    transcript.record(LIST, table(slot(1)))
    for command in ERASE:
        transcript.record(command)
    assert apply(machine, "absent", check_mode=True)[0] and transcript.calls == [LIST]
    changed, result = apply(machine, "absent")
    assert changed and not result["initialized"] and transcript.calls[-2:] == ERASE


def test_a_device_without_slots_is_not_erased(machine: Host, transcript: Transcript) -> None:
    none(transcript)
    assert not apply(machine, "absent", force=True)[0] and transcript.calls == [LIST]


@pytest.mark.parametrize("found", [slot(1, kept="golden"), slot(1, state="armed")])
def test_golden_and_armed_images_are_erased_only_by_force(machine: Host, transcript: Transcript, found: dict[str, Any]) -> None:
    transcript.record(LIST, table(found))
    for check_mode in (False, True):
        with pytest.raises(Refused) as refused:
            apply(machine, "absent", check_mode)
        assert refused.value.code == "slots_kept"
    for command in ERASE:
        transcript.record(command)
    assert apply(machine, "absent", force=True)[0]


def test_a_device_in_use_is_not_erased_in_part(machine: Host, transcript: Transcript) -> None:
    transcript.record(LIST, table(slot(1)))
    transcript.record(ERASE[0], err="Device or resource busy", rc=1)
    with pytest.raises(Refused):
        apply(machine, "absent")
    assert ERASE[1] not in transcript.calls


# snapshots -----------------------------------------------------------------------------------------------------------------


def take(host: Host, check_mode: bool = False, **options: Any) -> tuple[bool, dict[str, Any]]:
    with Transaction(host, check_mode) as transaction:
        result = snapshot.take(transaction, dict(ASKED, **options))
    return transaction.changed, result


@pytest.mark.parametrize(("result", "code"), [("created", 0), ("restored", 10)])
def test_a_snapshot_is_asked_for(machine: Host, transcript: Transcript, result: str, code: int) -> None:
    answer = {"result": result, "id": ID, "size": 4096, "pause": 2.5, "slot": 2, "device": DEVICE}
    transcript.record(CALL + "snapshot --application shop --event ready", json.dumps(answer), rc=code)
    changed, found = take(machine, application="shop", event="ready")
    assert changed and found == {"result": result, "id": ID, "slot": 2, "size": 4096, "pause": 2.5, "warnings": []}


def test_without_the_service(machine: Host, transcript: Transcript) -> None:
    words = "snapshot %s --application shop --keep 3 --golden --replace" % DEVICE
    transcript.record(CALL + words, json.dumps({"result": "created", "id": ID, "size": 1, "pause": 0.5}))
    changed, found = take(machine, device=DEVICE, application="shop", keep=3, golden=True, replace=True)
    assert changed and found["slot"] is None and found["id"] == ID


def test_check_mode_takes_no_snapshot(machine: Host, transcript: Transcript) -> None:
    changed, found = take(machine, check_mode=True, application="shop")
    assert changed and found["result"] is None and transcript.calls == []


def test_who_may_not_ask_is_told(machine: Host, transcript: Transcript) -> None:
    error = {"type": "refused", "thing": "user admin", "cause": "may not ask.", "remedy": "Add it to the policy."}
    transcript.record(CALL + "snapshot --application shop", err=json.dumps({"error": error}), rc=5)
    with pytest.raises(Refused) as refused:
        take(machine, application="shop")
    assert refused.value.as_dict() == {"code": "refused", "message": "user admin: may not ask.", "remedy": "Add it to the policy."}
