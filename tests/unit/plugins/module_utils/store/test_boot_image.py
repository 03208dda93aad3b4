# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules tell fuse-store, what they make of its answers, and the pipe; tests/vm has the store itself."""

from __future__ import annotations

import json
import os
import pwd
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction
from ansible_collections.nvm.fastboot.plugins.module_utils._store import boot_image
from ansible_collections.nvm.fastboot.plugins.module_utils._store.client import Store
from ansible_collections.nvm.fastboot.plugins.module_utils._store.pipe import TERMINATED, pipe

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.nvm.fastboot.tests.unit.conftest import Plant, Transcript

ID = "4f1c9a0d6be2417c8f5a1b2c3d4e5f60"
CALL = "/usr/bin/fuse-store --json --store /srv/store "
IMAGE = {"id": ID, "machine": "web01", "application": "system", "version": "2026-11-22T02-10-33Z-4f1c9a", "state": "captured"}
OPTIONS = dict(
    dict.fromkeys(boot_image.COMMON), store="/srv/store", executable="fuse-store", source_command=None, tags=None,
    replace=False, into_slot=False, force=False, ignore_refusals=None,
)  # fmt: skip


@pytest.fixture
def machine(host: Host, plant: Plant, transcript: Transcript) -> Host:
    plant({"/usr/bin/fuse-store": "", "/dev/pmem0": "", "/proc/swaps": "Filename Type Size Used Priority\n"})
    os.chmod(host.path("/usr/bin/fuse-store"), 0o755)
    answer(transcript, "show " + ID, IMAGE)
    answer(transcript, "show web01/system/latest", IMAGE)
    return host


def answer(
    transcript: Transcript,
    verb: str,
    record: dict[str, Any] | None,
    rc: int = 0,
    error: dict[str, Any] | None = None,
    warning: str | None = None,
) -> None:
    said: list[dict[str, Any]] = [{"warning": warning}] if warning else []
    said += [{"error": error}] if error else []
    transcript.record(CALL + verb, json.dumps(record) + "\n" if record else "", "\n".join(map(json.dumps, said)), rc)


def apply(host: Host, state: str, check_mode: bool = False, **options: Any) -> tuple[bool, dict[str, Any]]:
    with Transaction(host, check_mode) as transaction:
        result = boot_image.apply(transaction, dict(OPTIONS, state=state, **options))
    return transaction.changed, result


# states --------------------------------------------------------------------------------------------------------------------


def test_a_device_is_captured(machine: Host, transcript: Transcript) -> None:
    put = "put /dev/pmem0 --machine web01 --application system --kind hibernation --event nightly"
    answer(transcript, put + " --machine-disk /dev/vda --tag a=1 --tag b=x y", {"id": ID}, warning="no image was found")
    options: dict[str, Any] = {"machine": "web01", "device": "/dev/pmem0", "event": "nightly", "tags": {"b": "x y", "a": 1}}
    options["machine_disks"] = ["/dev/vda"]
    assert apply(machine, "captured", check_mode=True, **options) == (True, {"image": None, "answer": None, "warnings": []})
    assert transcript.calls == []
    changed, result = apply(machine, "captured", **options)
    assert changed and result == {"image": IMAGE, "answer": {"id": ID}, "warnings": ["no image was found"]}


@pytest.mark.parametrize(
    ("store", "said"),
    [("s3://images/fleet/~a", "s3://images/fleet/~a"), ("~/store", "/home/admin/store"), ("$HOME/store", "/home/admin/store")],
)
def test_a_store_is_a_directory_or_a_url(
    machine: Host, transcript: Transcript, monkeypatch: pytest.MonkeyPatch, store: str, said: str
) -> None:
    monkeypatch.setenv("HOME", "/home/admin")
    for verb in ("verify ", "show "):
        transcript.record(CALL.replace("/srv/store", said) + verb + ID, json.dumps(dict(IMAGE, state="verified")))
    assert apply(machine, "verified", image=ID, store=store)[1]["image"]["id"] == ID


@pytest.mark.parametrize("swap", ["/dev/pmem0", "/dev/NVM_SWAP"])
def test_a_device_in_use_as_swap_is_not_captured(
    machine: Host, plant: Plant, transcript: Transcript, swap: str
) -> None:
    plant({"/proc/swaps": "Filename Type Size Used Priority\n/dev/pmem0 partition 1048572 0 10\n"})
    os.symlink("pmem0", machine.path("/dev/NVM_SWAP"))
    with pytest.raises(Refused) as refused:
        apply(machine, "captured", machine="web01", device=swap)
    assert refused.value.code == "device_in_use" and transcript.calls == []


def test_a_missing_device_is_not_captured(machine: Host) -> None:
    with pytest.raises(Refused) as refused:
        apply(machine, "captured", check_mode=True, machine="web01", device="/dev/none")
    assert refused.value.code == "device_missing"


def test_verified_changes_the_first_time(machine: Host, transcript: Transcript) -> None:
    answer(transcript, "verify " + ID, {"sound": 1})
    answer(transcript, "show m/a/latest", IMAGE)
    assert apply(machine, "verified", image="m/a/latest", check_mode=True)[0]
    transcript.record(CALL + "show " + ID, json.dumps(dict(IMAGE, state="verified")))
    del transcript._answers[CALL + "show " + ID][0]
    changed, result = apply(machine, "verified", image="m/a/latest")
    assert changed and result["image"]["state"] == "verified"
    changed, result = apply(machine, "verified", image=ID)
    assert not changed and transcript.calls[-2:] == [CALL + "verify " + ID, CALL + "show " + ID]
    assert not apply(machine, "verified", image=ID, check_mode=True)[0]


def test_the_version_is_selected(machine: Host, transcript: Transcript) -> None:
    select = "select --machine web01 --kind hibernation --event nightly --before 2026-12-01 --state verified"
    answer(transcript, select, {"id": ID})
    answer(transcript, "verify " + ID, {"sound": 1})
    wanted: dict[str, Any] = {"machine": "web01", "kind": "hibernation", "event": "nightly", "before": "2026-12-01"}
    wanted["with_state"] = "verified"
    assert apply(machine, "verified", **wanted)[1]["image"]["id"] == ID
    assert CALL + select in transcript.calls


def test_staged_changes_what_was_written(machine: Host, transcript: Transcript) -> None:
    for written in (4096, 0):
        answer(transcript, "stage %s /dev/pmem0" % ID, {"id": ID, "written": written})
    assert apply(machine, "staged", image=ID, device="/dev/pmem0", check_mode=True)[0]
    assert [apply(machine, "staged", image=ID, device="/dev/pmem0")[0] for _time in range(2)] == [True, False]
    answer(transcript, "stage %s /dev/pmem0 --slot" % ID, {"id": ID, "written": 1, "slot": 2})
    assert apply(machine, "staged", image=ID, device="/dev/pmem0", into_slot=True)[1]["answer"]["slot"] == 2
    answer(transcript, "stage %s /dev/pmem0 --force" % ID, {"id": ID, "written": 1})
    assert apply(machine, "staged", image=ID, device="/dev/pmem0", force=True)[0]


def test_armed(machine: Host, transcript: Transcript) -> None:
    for changed in (True, False):
        answer(transcript, "arm /dev/pmem0", {"id": ID, "changed": changed})
    assert [apply(machine, "armed", device="/dev/pmem0")[0] for _time in range(2)] == [True, False]
    answer(transcript, "arm f --root /srv/tree --machine-disk d --image %s --force a --force b" % ID, {"id": ID, "changed": True})
    assert apply(machine, "armed", device="f", image=ID, root="/srv/tree", machine_disks=["d"], ignore_refusals=["a", "b"])[0]
    for state, would in (("disarmed", True), ("armed", False)):
        answer(transcript, "inspect /dev/%s" % state, {"state": state})
        assert apply(machine, "armed", device="/dev/" + state, check_mode=True)[0] == would


def test_disarmed(machine: Host, transcript: Transcript) -> None:
    answer(transcript, "disarm /dev/pmem0", {"changed": True, "id": None})
    assert apply(machine, "disarmed", device="/dev/pmem0") == (
        True, {"image": None, "answer": {"changed": True, "id": None}, "warnings": []},
    )  # fmt: skip
    answer(transcript, "inspect /dev/pmem0", None, 3, {"type": "not_found", "thing": "source", "cause": "no image."})
    assert not apply(machine, "disarmed", device="/dev/pmem0", check_mode=True)[0], "there is nothing to disarm"


@pytest.mark.parametrize("outcome", ["resumed", "failed"])
def test_an_outcome_is_noted_once(machine: Host, transcript: Transcript, outcome: str) -> None:
    answer(transcript, "report %s %s" % (ID, outcome), {"id": ID, "state": outcome})
    assert apply(machine, outcome, image=ID, check_mode=True)[0]
    assert apply(machine, outcome, image=ID)[0]
    answer(transcript, "show noted", dict(IMAGE, state=outcome))
    assert not apply(machine, outcome, image="noted")[0]


def test_absent(machine: Host, transcript: Transcript) -> None:
    answer(transcript, "remove " + ID, {"removed": [ID]})
    assert apply(machine, "absent", image=ID, check_mode=True)[0]
    assert apply(machine, "absent", image=ID)[0]
    answer(transcript, "show gone", None, 3, {"type": "not_found", "thing": "image gone", "cause": "it is not there."})
    assert not apply(machine, "absent", image="gone")[0]
    answer(transcript, "show broken", None, 4, {"type": "damaged", "thing": "image broken", "cause": "it is."})
    with pytest.raises(Refused):
        apply(machine, "absent", image="broken")


# errors --------------------------------------------------------------------------------------------------------------------


def test_an_error_is_passed_on(machine: Host, transcript: Transcript) -> None:
    error = {"type": "refused", "thing": "image 4f1c", "cause": "filesystems_changed: it was.", "remedy": "Choose another."}
    answer(transcript, "arm /dev/pmem0", None, 5, error)
    with pytest.raises(Refused) as refused:
        apply(machine, "armed", device="/dev/pmem0")
    assert refused.value.as_dict() == {
        "code": "refused", "message": "image 4f1c: filesystems_changed: it was.", "remedy": "Choose another.",
    }  # fmt: skip


@pytest.mark.parametrize("out, err, rc", [("", "Killed", 137), ("not json", "", 0), ("[]", "", 0), ("", '{"error": "odd"}', 1)])
def test_an_invalid_answer(machine: Host, transcript: Transcript, out: str, err: str, rc: int) -> None:
    transcript.record(CALL + "arm /dev/pmem0", out, err, rc)
    with pytest.raises(Refused) as refused:
        apply(machine, "armed", device="/dev/pmem0")
    assert refused.value.code == "command_failed" and str(rc) in refused.value.message


def test_a_missing_command(host: Host) -> None:
    for executable in ("no-such-store", "/usr/bin/no-such-store"):
        with pytest.raises(Refused) as refused:
            apply(host, "verified", image=ID, executable=executable)
        assert refused.value.code == "executable_missing"


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_store_in_a_home_directory_that_is_not_known(monkeypatch: pytest.MonkeyPatch, machine: Host, home: str | None) -> None:
    """A directory with the name C(~), or one below the root, must not be taken for it."""
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    entry = SimpleNamespace(pw_dir="/home/own")
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: entry)
    assert Store(machine, "~/images").argv()[3] == "/home/own/images"

    def none(_name: object) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", none)
    monkeypatch.setattr(pwd, "getpwnam", none)
    for location in ("~/images", "~", "~nobody/images"):
        with pytest.raises(Refused) as refused:
            Store(machine, location)
        assert refused.value.code == "home_missing" and "HOME" in refused.value.remedy
    assert Store(machine, "s3://~/images").argv()[3] == "s3://~/images"
    monkeypatch.setenv("HOME", "/home/other")
    assert Store(machine, "~/images").argv()[3] == Store(machine, "$HOME/images").argv()[3] == "/home/other/images"


# looking -------------------------------------------------------------------------------------------------------------------


def test_look(machine: Host, transcript: Transcript) -> None:
    answer(transcript, "list --machine web01", {"versions": [IMAGE]})
    answer(transcript, "select --machine web01 --state armed", {"chosen": None, "passed_over": [IMAGE]}, 3, {"type": "not_found"})
    answer(transcript, "inspect /dev/pmem0", None, 3, {"type": "not_found"})
    answer(transcript, "preflight %s --device /dev/pmem0 --root /srv/tree" % ID, {"accepted": False}, 5, {"type": "refused"})
    options = dict(OPTIONS, machine="web01", with_state="armed", device="/dev/pmem0", image=ID, root="/srv/tree")
    assert boot_image.look(machine, options) == {
        "images": [IMAGE], "selected": None, "passed_over": [IMAGE], "device": None, "preflight": {"accepted": False}, "warnings": [],
    }  # fmt: skip
    answer(transcript, "list", {"versions": []})
    assert set(boot_image.look(machine, OPTIONS)) == {"images", "selected", "passed_over", "device", "preflight", "warnings"}


# the pipe ------------------------------------------------------------------------------------------------------------------

# Prints how much it got when its input ends, and what ends it otherwise.
SINK = [sys.executable, "-c", """
import signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
print(len(sys.stdin.buffer.read()))
"""]  # fmt: skip


def test_pipe_passes_everything_on() -> None:
    source, sink = pipe(["sh", "-c", "head -c 3000000 /dev/zero"], SINK)
    assert (source.rc, sink.rc, sink.out) == (0, 0, "3000000\n")


@pytest.mark.parametrize("script, code", [("head -c 3000000 /dev/zero; echo broke >&2; exit 7", 7), ("kill -9 $$", -9)])
def test_pipe_stops_the_sink_of_a_failed_source(script: str, code: int) -> None:
    source, sink = pipe(["sh", "-c", script], SINK)
    assert source.rc == code and sink.rc in TERMINATED and sink.out == ""
    assert code < 0 or source.err == "broke\n"


def test_pipe_stops_a_source_without_a_reader() -> None:
    began = time.monotonic()
    source, sink = pipe(["sh", "-c", "exec sleep 60"], ["sh", "-c", "echo '{}' >&2; exit 6"])
    assert (source.rc, sink.rc, sink.err) == (-15, 6, "{}\n") and time.monotonic() - began < 30


def test_pipe_needs_both_programs() -> None:
    with pytest.raises(OSError):
        pipe(["/no/such/program"], SINK)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """The directory with a program that stands for fuse-store, and notes whether what it was to store came to its end."""
    program = tmp_path / "fuse-store"
    told = json.dumps({"id": ID})
    program.write_text("#!/bin/sh\ncd %s\ntrap 'exit 143' TERM\ncat >got && touch stored && echo '%s'\n" % (tmp_path, told))
    program.chmod(0o755)
    return tmp_path


def test_a_source_that_fails_stores_nothing(real: Path, transcript: Transcript) -> None:
    # It fails once the part has arrived: on a busy machine it would else end before the other program has begun.
    command = ["sh", "-c", "echo part; until test -s %s; do sleep 0.01; done; echo 'no route' >&2; exit 255" % (real / "got")]
    with pytest.raises(Refused) as refused:
        apply(Host(transcript), "captured", machine="web01", source_command=command, executable=str(real / "fuse-store"))
    assert refused.value.code == "source_failed" and "255" in refused.value.message and "no route" in refused.value.message
    assert not (real / "stored").exists()
    assert (real / "got").read_text() == "part\n"


def test_a_source_that_replaces_is_run_by_the_store(machine: Host, transcript: Transcript) -> None:
    """A pipe does not tell whether it is complete, so it replaces nothing."""
    words = "put --machine web01 --application system --kind hibernation --replace --command ssh -q web01 cat /dev/pmem0"
    answer(transcript, words, {"id": ID})
    command = ["ssh", "-q", "web01", "cat", "/dev/pmem0"]
    changed, result = apply(machine, "captured", machine="web01", source_command=command, replace=True)
    assert changed and result["answer"] == {"id": ID}


def test_a_source_that_succeeds_is_stored(real: Path, transcript: Transcript) -> None:
    program = str(real / "fuse-store")
    transcript.record("%s --json --store /srv/store show %s" % (program, ID), json.dumps(IMAGE))
    changed, result = apply(Host(transcript), "captured", machine="web01", source_command=["echo", "all"], executable=program)
    assert changed and result["image"] == IMAGE and result["answer"] == {"id": ID}
    assert (real / "got").read_text() == "all\n" and (real / "stored").exists()
