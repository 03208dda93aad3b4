# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the Makefile's targets in lanes side by side: C(test_lanes.py LANE:TARGET,TARGET... [...] [then LANE:... ...]).

Used by C(make test). Lanes run at once, the targets of a lane one after the other, C(then) waits for all lanes before
it; a target that fails stops nothing. The output of a lane goes to build/logs/LANE.log; on the terminal stand the
beginning and end of every target, a sign of life a minute, the last lines of what failed, and at the end what was slow, what was
skipped, what failed, and a count over every single test: those that tests recorded (see check_results.py), and one for
each target that records none. The exit code is 0 if nothing failed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import check_results

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "logs"
TARGET_SECONDS = 90 * 60  # more than any target takes; a run that hangs must end and say where
SIGN_OF_LIFE_SECONDS = 60
TAIL_LINES = 80
SLOWEST = 12  # tests that the summary names


@dataclass
class Finished:
    """A target that was run: how it ended, how long it took, and the outcomes of its tests."""

    target: str
    log: Path
    seconds: float
    ok: bool
    outcomes: list[check_results.Outcome] = field(default_factory=list)

    def names(self, outcome: str) -> list[str]:
        return [one.test for one in self.outcomes if one.outcome == outcome]

    def __post_init__(self) -> None:
        # The target itself counts when it has no tests of its own, or failed in another way than by them.
        if not self.outcomes or not (self.ok or self.names("failed")):
            self.outcomes.append(check_results.Outcome(self.target, "passed" if self.ok else "failed"))
        self.ok = not self.names("failed")


class Lanes:
    """Runs lanes in threads; one lock keeps the lines on the terminal whole and the list of processes true."""

    def __init__(self) -> None:
        self.finished: list[Finished] = []
        self._started = time.monotonic()
        self._lock = threading.RLock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        with self._lock:
            print(f"[{minutes:3d}:{seconds:02d}] {text}", flush=True)

    def run(self, lanes: dict[str, list[str]]) -> None:
        """Run these lanes at once and return when all are through."""
        threads = [threading.Thread(target=self._lane, args=lane, daemon=True) for lane in lanes.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """End every target that runs, with all it started, and start no other."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                _signal(process, signal.SIGTERM)

    def _lane(self, lane: str, targets: list[str]) -> None:
        log = LOGS / f"{lane}.log"
        for target in targets:
            if self._stopping:
                return
            started = time.monotonic()
            try:
                finished = self._target(target, log)
            except Exception as error:  # a lane that is lost must not pass for one that is through
                print(f"{target}: {error!r}", flush=True)
                lost = check_results.Outcome(target, "failed", repr(error))
                finished = Finished(target, log, time.monotonic() - started, False, [lost])
            self.finished.append(finished)
            self._report(finished)

    def _target(self, target: str, log: Path) -> Finished:
        self.say(f"{target}: started, log in {log.relative_to(ROOT)}")
        record = LOGS / "results" / f"{target}.jsonl"
        started = time.monotonic()
        with open(log, "ab") as output:
            output.write(f"\n===== make {target}\n".encode())
            output.flush()
            process = subprocess.Popen(
                ["make", "--no-print-directory", target],
                cwd=ROOT,
                env=_environment(record),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            with self._lock:
                self._running.add(process)
            ok = self._wait(process, target, log, started)
            with self._lock:
                self._running.discard(process)
        return Finished(target, log, time.monotonic() - started, ok, list(check_results.read(record)))

    def _wait(self, process: subprocess.Popen[bytes], target: str, log: Path, started: float) -> bool:
        while True:
            try:
                return process.wait(SIGN_OF_LIFE_SECONDS) == 0
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - started
            if seconds > TARGET_SECONDS:
                self.say(f"{target}: stopped after {seconds / 60:.0f} min")
                _signal(process, signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    _signal(process, signal.SIGKILL)
                return False
            self.say(f"{target}: {seconds / 60:.0f} min: {''.join(_tail(log, 1)).strip()[:100]}")

    def _report(self, finished: Finished) -> None:
        tests = len(finished.outcomes)
        count = f", {tests} tests" if tests > 1 else ""
        word = "passed" if finished.ok else "FAILED"
        self.say(f"{finished.target}: {word} in {finished.seconds:.0f} s{count}")
        if not finished.ok:
            with self._lock:
                print(f"----- the last lines of {finished.log.relative_to(ROOT)}")
                print("\n".join("  | " + line for line in _tail(finished.log, TAIL_LINES)), flush=True)

    def summary(self) -> bool:
        """Print how it went; True if nothing failed."""
        self.say("all lanes are through")
        print()
        for finished in self.finished:
            word = "passed" if finished.ok else "FAILED"
            print(f"  {finished.target:<20} {word:<8} {len(finished.outcomes):5d} {finished.seconds:7.0f} s")
        everything = [(finished.target, one) for finished in self.finished for one in finished.outcomes]
        for target, one in sorted(everything, key=lambda each: -each[1].seconds)[:SLOWEST]:
            if one.seconds >= SIGN_OF_LIFE_SECONDS:
                print(f"slow: {target}: {one.test} ({one.seconds:.0f} s)")
        for outcome in ("skipped", "failed"):
            for target, one in everything:
                if one.outcome == outcome:
                    print(f"{outcome}: {target}: {one.test}" + (f" ({one.reason})" if one.reason else ""))
        count = {word: sum(one.outcome == word for _target, one in everything) for word in ("passed", "failed")}
        print(f"\n{count['passed']} passed, {count['failed']} failed", flush=True)
        return count["failed"] == 0


def _environment(record: Path) -> dict[str, str]:
    """For one target: its record, our pytest plugin, plain text, and nothing of the make that started us."""
    ours = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment[check_results.VARIABLE] = str(record)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "tools"), os.environ.get("PYTHONPATH"))))
    environment["PYTEST_ADDOPTS"] = f"{os.environ.get('PYTEST_ADDOPTS', '')} -p check_results".strip()
    environment.update(PYTHONUNBUFFERED="1", NO_COLOR="1", PY_COLORS="0", ANSIBLE_NOCOLOR="1", ANSIBLE_FORCE_COLOR="0")
    return environment


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _tail(log: Path, lines: int) -> list[str]:
    """The last lines that are not empty."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64 * 1024))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def _stages(arguments: list[str]) -> list[dict[str, list[str]]]:
    stages: list[dict[str, list[str]]] = [{}]
    for argument in arguments:
        if argument == "then":
            stages.append({})
        else:
            lane, _colon, targets = argument.partition(":")
            stages[-1][lane] = targets.split(",")
    return stages


def main() -> int:
    shutil.rmtree(LOGS, ignore_errors=True)
    (LOGS / "results").mkdir(parents=True)
    lanes = Lanes()

    def interrupted(number: int, _frame: object) -> None:
        lanes.stop()
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    for stage in _stages(sys.argv[1:]):
        lanes.run(stage)
    return 0 if lanes.summary() else 1


if __name__ == "__main__":
    sys.exit(main())
