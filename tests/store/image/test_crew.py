# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that share work: all of it is done once, whatever becomes of one of them. Each case runs in an interpreter of its own, with
one thread, as commands do; three processors are pretended where there may be fewer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests.store.conftest import replace_content

HEAD = """
import json, os, signal, sys, threading, time
os.sched_getaffinity = lambda pid: {0, 1, 2}
from fuse_store.processes.crew import Crew
from fuse_store.processes.forking import shared
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests were started
first = os.getpid()
memory = shared(4096)
rounds = []
def pids_of(crew, processes):  # each waits until so many have begun, so each takes one
    rounds.append(len(rounds) + 1)
    begun = memory[1000 * rounds[-1] :][:processes]
    def meet(item):
        begun[item] = 1
        while not all(begun):
            time.sleep(0.001)
        return os.getpid()
    return set(crew.each(meet, range(processes)))
"""


def run(code: str) -> list[object]:
    """What a case prints as JSON."""
    done = subprocess.run([sys.executable, "-c", HEAD + textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_each_item_is_worked_on_once_and_all_get_all_results() -> None:
    """The second round works with the results of the first, in all processes."""
    once, pids, again = run("""
        def work(item):
            memory[item] += 1
            return item
        with Crew.start(True) as team:
            results = list(team.each(work, range(100)))
            total = sum(results)
            again = list(team.each(lambda item: item + total, [1, 2, 3, 4]))
            pids = pids_of(team, 3)
            most = len(set(team.each(lambda item: item, range(100000))))
        print(json.dumps(list(memory[:100])))
        print(json.dumps([len(pids), most]))
        print(json.dumps(sorted(again)))
    """)
    assert once == [1] * 100 and pids == [3, 100000]
    assert again == [4951, 4952, 4953, 4954]


def test_only_the_first_goes_on_and_none_is_left() -> None:
    behind, left = run("""
        with Crew.start(True) as team:
            pids = pids_of(team, 3) - {first}
        print(json.dumps("behind"), flush=True)
        print(json.dumps([os.path.exists(f"/proc/{pid}") for pid in pids]))
    """)
    assert behind == "behind" and left == [False, False]


@pytest.mark.parametrize("when", ["in its work", "after its work"])
def test_what_a_killed_process_had_to_do_is_done(when: str) -> None:
    results, later = run(f"""
        def work(item):
            if os.getpid() != first and (item > 50 or {when != "in its work"}):
                os.kill(os.getpid(), signal.SIGKILL)
            return item
        with Crew.start(True) as team:
            results = list(team.each(work, range(100)))
            if team.number and {when == "after its work"}:
                os.kill(os.getpid(), signal.SIGKILL)
            later = list(team.each(work, range(7)))
        print(json.dumps(sorted(results)))
        print(json.dumps(sorted(later)))
    """)
    assert results == list(range(100)) and later == list(range(7))


def test_what_fails_in_a_process_is_tried_by_the_first_which_raises_its_error() -> None:
    tried, error, left = run("""
        def work(item):
            if item == 41 and os.getpid() != first:
                raise ValueError("in another process")
            if item == 41:
                raise ValueError("in the first process")
            time.sleep(0.001)
        pids = set()
        try:
            with Crew.start(True) as team:
                pids.update(pids_of(team, 3))
                for result in team.each(work, range(100)):
                    memory[0] += 1
        except ValueError as raised:
            print(json.dumps(memory[0] > 0))
            print(json.dumps(str(raised)))
            print(json.dumps([os.path.exists(f"/proc/{pid}") for pid in pids - {first}]))
    """)
    assert tried is True and error == "in the first process" and left == [False, False]


def test_one_that_comes_to_other_items_is_dismissed() -> None:
    """As it happens when it reads the index after another program has moved blocks."""
    results, alone = run("""
        with Crew.start(True) as team:
            items = list(range(20)) if team.number != 1 else list(range(1, 21))
            results = list(team.each(lambda item: item, items))
            pids = pids_of(team, 2)
        print(json.dumps(sorted(results)))
        print(json.dumps(len(pids)))
    """)
    assert results == list(range(20)) and alone == 2


def test_there_are_no_others_where_another_thread_runs() -> None:
    alone, pids = run("""
        stop = threading.Event()
        threading.Thread(target=stop.wait).start()
        with Crew.start(True) as team:
            pids = set(team.each(lambda item: os.getpid(), range(9)))
            print(json.dumps(team.is_alone))
        print(json.dumps(len(pids)))
        stop.set()
    """)
    assert alone is True and pids == 1


@pytest.mark.parametrize("most", [0, 1])
def test_there_are_as_many_as_the_system_allows(most: int) -> None:
    pids, alone, descriptors = run(f"""
        fork, count = os.fork, []
        def limited():
            count.append(0)
            if len(count) > {most}:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()
        os.fork = limited
        before = len(os.listdir("/proc/self/fd"))
        with Crew.start(True) as team:
            pids = pids_of(team, {most} + 1)
        print(json.dumps(len(pids)))
        print(json.dumps(team.is_alone))
        print(json.dumps(len(os.listdir("/proc/self/fd")) - before))
    """)
    assert pids == most + 1 and alone is (most == 0) and descriptors == 0


def test_they_end_where_nobody_waits_for_processes() -> None:
    """As in a program whose parent ignores SIGCHLD."""
    results, left = run("""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with Crew.start(True) as team:
            results = list(team.each(lambda item: item, range(9)))
            pids = pids_of(team, 3) - {first}
            if team.number == 1:
                os._exit(0)
            if not team.number:
                time.sleep(0.2)
        print(json.dumps(sorted(results)))
        print(json.dumps([os.path.exists(f"/proc/{pid}") for pid in pids]))
    """)
    assert results == list(range(9)) and left == [False, False]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_right_after_the_fork_is_ignored(name: str) -> None:
    """A process that it ended would do what the first one does then, such as remove its partial file."""
    results, pids = run(f"""
        def end(*arguments):
            raise SystemExit("ended")
        signal.signal(signal.{name}, end)
        os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.{name}))
        with Crew.start(True) as team:
            results, pids = list(team.each(lambda item: item, range(90))), pids_of(team, 3)
        print(json.dumps(sorted(results)))
        print(json.dumps(len(pids)))
    """)
    assert results == list(range(90)) and pids == 3


@pytest.mark.parametrize("stopped", [False, True])
def test_they_end_when_the_first_is_killed(stopped: bool) -> None:
    code = HEAD + textwrap.dedent("""
        with Crew.start(True) as team:
            list(team.each(lambda item: (time.sleep(0.2), os.write(1, b"%d\\n" % os.getpid())), range(3)))
            list(team.each(lambda item: time.sleep(0.05), range(100000)))
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = {int(process.stdout.readline()) for _process in range(3)}
        assert len(pids) == 3
        for pid in pids - {process.pid} if stopped else ():
            os.kill(pid, signal.SIGSTOP)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while any(map(is_running, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_running, pids))


def test_ctrl_c_ends_all() -> None:
    code = HEAD + textwrap.dedent("""
        with Crew.start(True) as team:
            list(team.each(lambda item: (time.sleep(0.2), os.write(1, b"%d\\n" % os.getpid())), range(3)))
            list(team.each(lambda item: time.sleep(0.05), range(100000)))
    """)
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        pids = {int(process.stdout.readline()) for _process in range(3)}
        os.killpg(process.pid, signal.SIGINT)
        try:
            assert process.wait(20) == -signal.SIGINT
        finally:
            process.kill()
    assert not any(map(is_running, pids))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, str, dict[str, str]]:
    """(store, its only image, the id of that, environment): large enough for a crew, with pages that stand alone in blocks."""
    folder = tmp_path_factory.mktemp("crew")
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), "FUSE_STORE": str(folder / "store")}
    chance = np.random.default_rng(7)
    content = chance.integers(0, 64, (18 << 10, 4096), np.uint8)
    (folder / "base").write_bytes(content.tobytes())
    content[chance.permutation(len(content))[:3000]] = chance.integers(64, 128, (3000, 4096), np.uint8)
    (folder / "image").write_bytes(content.tobytes())
    for command in (["init"], ["put", "base", "--machine", "m"], ["put", "image", "--machine", "m"]):
        fuse_store(folder, environment, *command)
    listed = json.loads(fuse_store(folder, environment, "list", "--json").stdout)["versions"]
    return folder, content.tobytes(), max(listed, key=lambda version: version["taken"])["id"], environment


def fuse_store(
    folder: Path, environment: dict[str, str], *arguments: str, code: str = "", status: int = 0
) -> subprocess.CompletedProcess[str]:
    """A command, in an interpreter in which ``code`` has run."""
    program = f"{HEAD}\n{textwrap.dedent(code)}\nfrom fuse_store.cli import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stderr
    return done


COUNT_FORKS = """
fork = os.fork
def counted():
    print("forked", file=sys.stderr)
    return fork()
os.fork = counted
"""
KILLED = """
each, forks = Crew._report, []
def killed(self, work, items, agreed):
    if self.number == 1 and len(items) > 20:
        work(items[0])
        os.kill(os.getpid(), signal.SIGKILL)
    return each(self, work, items, agreed)
Crew._report = killed
"""


@pytest.mark.parametrize("code", ["", KILLED, KILLED.replace("SIGKILL", "SIGSTOP") + "sys.modules[Crew.__module__].PATIENCE = 1.0\n"])
def test_a_get_is_right_with_and_without_one_of_them(image: tuple[Path, bytes, str, dict[str, str]], code: str) -> None:
    folder, content, version, environment = image
    done = fuse_store(folder, environment, "get", version, f"out{len(code)}", code=COUNT_FORKS + code)
    assert done.stderr.count("forked") == 2
    assert (folder / f"out{len(code)}").read_bytes() == content
    assert "no errors found" in fuse_store(folder, environment, "verify", version, code=code).stderr


NOT_DONE = """
from fuse_store.processes import workers
tried, done = workers._Process._try, []
def changed(self, work):
    done.append(work.func.__name__)
    if done.count("{task}") == 3:
        {act}
    return tried(self, work)
workers._Process._try = changed
"""
STOPPED = NOT_DONE.format(task="read", act="os.kill(os.getpid(), signal.SIGSTOP)").replace("== 3", "== 1") + "workers.PATIENCE = 1.0\n"


@pytest.mark.parametrize("code", ["", STOPPED, NOT_DONE.format(task="read", act="os.kill(os.getpid(), signal.SIGKILL)")])
def test_a_get_to_standard_output_is_right_whatever_becomes_of_others(image: tuple[Path, bytes, str, dict[str, str]], code: str) -> None:
    folder, content, version, environment = image
    (folder / "ours.py").write_text(f"{HEAD}\n{COUNT_FORKS}\n{code}\nfrom fuse_store.cli import main\nsys.exit(main())")
    done = subprocess.run(
        [sys.executable, "ours.py", "get", version, "-"], cwd=folder, env=environment, capture_output=True, timeout=120, check=True
    )
    assert done.stderr.count(b"forked") == 2 and done.stdout == content


def test_all_look_at_the_same_sample(image: tuple[Path, bytes, str, dict[str, str]]) -> None:
    folder, _content, version, environment = image
    told = """
    dismissed = Crew._reported
    def reported(self, number, agreed):
        part = dismissed(self, number, agreed)
        print("together" if number in self._others else "alone", file=sys.stderr)
        return part
    Crew._reported = reported
    """
    done = fuse_store(folder, environment, "verify", version, "--sample", "50", code=told)
    assert "together" in done.stderr and "alone" not in done.stderr


def test_damage_is_named_once(image: tuple[Path, bytes, str, dict[str, str]]) -> None:
    """By the first process, as if there were no others."""
    folder, _content, version, environment = image
    (largest,) = sorted((folder / "store" / "packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)[-1:]
    data = bytearray(largest.read_bytes())
    for at in (len(data) // 3, len(data) // 2):
        data[at] ^= 1
    replace_content(largest, bytes(data))
    alone = "os.sched_getaffinity = lambda pid: {0}"
    found = [json.loads(fuse_store(folder, environment, "verify", version, "--json", code=code, status=4).stdout) for code in ("", alone)]
    problems = [verdict["problems"] for verdict in (each["versions"][0] for each in found)]
    assert problems[0] == problems[1] and len(problems[0]) == 2
    errors = [fuse_store(folder, environment, "get", version, "damaged", code=code, status=4).stderr for code in ("", alone)]
    assert all(any(f"block {problem.split()[1]}" in error for problem in problems[0]) for error in errors)
    assert not (folder / "damaged").exists()


FLIPPED = """
from fuse_store.image.put.block_writer import BlockWriter
encrypt = BlockWriter._encrypt
def flipped(self, number, ends):
    if os.getpid() != first:
        self._groups[number].pages[5, 77] ^= 4
    return encrypt(self, number, ends)
BlockWriter._encrypt = flipped
"""


@pytest.mark.parametrize("task", ["_encrypt", "_digest_part"])
@pytest.mark.parametrize("act", ["pass", "os.kill(os.getpid(), signal.SIGKILL)", "return False, None", "os.kill(first, signal.SIGKILL)"])
def test_a_put_is_right_whatever_becomes_of_the_processes_that_work_for_it(tmp_path: Path, act: str, task: str) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), "FUSE_STORE": str(tmp_path / "store")}
    content = np.random.default_rng(3).integers(0, 64, 24 << 20, np.uint8).tobytes()
    (tmp_path / "image").write_bytes(content)
    fuse_store(tmp_path, environment, "init")
    code = COUNT_FORKS + NOT_DONE.format(task=task, act=act)
    if "first" in act:
        fuse_store(tmp_path, environment, "put", "image", "--machine", "m", code=code, status=-signal.SIGKILL)
        code = COUNT_FORKS  # again: nothing holds the store
    done = fuse_store(tmp_path, environment, "put", "image", "--machine", "m", code=code)
    assert done.stderr.count("forked") == 2
    fuse_store(tmp_path, environment, "get", "m/system/latest", "back")
    assert (tmp_path / "back").read_bytes() == content
    assert "1 version verified, no errors found" in fuse_store(tmp_path, environment, "verify", "m/system/latest").stderr


def test_a_page_that_changes_while_it_is_encrypted_is_not_stored(tmp_path: Path) -> None:
    """As by a memory error: the process that encrypts it finds it, the first one as well."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), "FUSE_STORE": str(tmp_path / "store")}
    (tmp_path / "image").write_bytes(np.random.default_rng(3).bytes(24 << 20))
    fuse_store(tmp_path, environment, "init")
    done = fuse_store(tmp_path, environment, "put", "image", "--machine", "m", code=FLIPPED, status=1)
    assert "memory: changed a page of the source while it was stored" in done.stderr
    assert json.loads(fuse_store(tmp_path, environment, "list", "--json").stdout)["versions"] == []


WORKERS = """
        from fuse_store.processes.workers import Workers
        def double(number):
            if os.getpid() != first and number in FATAL:
                os.kill(os.getpid(), FATAL[number])
            if number < 0:
                raise ValueError(f"no number {number}")
            return 2 * number, os.getpid() == first
        FATAL = {}
        workers = Workers()
        begin = workers.task(double, threads=False)
"""


@pytest.mark.parametrize("fatal", ["{}", "{20: signal.SIGKILL}", "{7: signal.SIGSTOP}", "{5: signal.SIGKILL, 70: signal.SIGTERM}"])
def test_workers_do_every_task_once_in_any_process(fatal: str) -> None:
    """Those that nobody did are done where the result is needed; so much is begun that all have enough."""
    values, here = run(f"""{WORKERS}
        FATAL.update({fatal})
        sys.modules[Workers.__module__].PATIENCE = 2.0
        with workers.running(forked=True):
            results = [begin(number) for number in range(200)]
            print(json.dumps([result.result()[0] for result in results]))
            print(json.dumps([all(result.done() for result in results), sum(result.result()[1] for result in results)]))
    """)
    assert values == [2 * number for number in range(200)]
    assert isinstance(here, list) and here[0] is True and 0 < here[1] < 200


def test_an_error_of_a_task_is_raised_where_its_result_is_needed() -> None:
    text, alone = run(f"""{WORKERS}
        with workers.running(forked=True):
            failing = begin(-7)
            begin(1).result()
            try:
                failing.result()
            except ValueError as error:
                print(json.dumps(str(error)))
        with workers.running(forked=False):
            print(json.dumps(begin(4).result()))
    """)
    assert text == "no number -7" and alone == [8, True]
