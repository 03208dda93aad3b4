# SPDX-License-Identifier: GPL-3.0-or-later
"""The store against other programs (peers.py), on the same images in the same run; ``make bench`` runs it.

Every step is done by all, one after the other, before the next one: so what the machine does besides hits all alike. Each
runs as its users run it, as a command, a second after all that was written before is on the disk. What is compared are medians. A
peer that is not installed is named and left out. The floor is a program in C that does only what cannot be left out (floor.c).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.store.bench import corpus
from tests.store.bench.peers import FLOOR, OURS, SOURCE, Programs, mounts, own_mounts, repositories

REPORT = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"
CORPUS = REPORT.parents[1] / "build" / "corpus"  # of make bench-corpus
BEGIN, END = "<!-- make bench-store: begin -->\n", "<!-- make bench-store: end -->\n"
RANDOM_READS = 2000
LISTED = 10_000
SPARSE = 64 << 30
SETTLED = 1.0  # seconds


@dataclass
class Step:
    """What each took: seconds of the clock, and of a processor. ``rivals``: the programs whose seconds are divided by ours."""

    title: str
    rivals: tuple[str, ...] = ()
    wall: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: tuple[float, float]) -> None:
        self.wall.setdefault(name, []).append(seconds[0])
        self.processor.setdefault(name, []).append(seconds[1])

    def ratio(self, name: str) -> float:
        return statistics.median(self.wall[name]) / statistics.median(self.wall[OURS])

    def floor(self) -> str:
        """What this store takes of a processor, in multiples of what the floor program takes."""
        if FLOOR not in self.processor or OURS not in self.processor:
            return ""
        ours, least = (statistics.median(self.processor[name]) for name in (OURS, FLOOR))
        return f"{ours / least:.1f}" if least else ""

    def cell(self, name: str) -> str:
        if name not in self.wall:
            return ""
        return f"{statistics.median(self.wall[name]):.2f} ({statistics.median(self.processor[name]):.2f})"

    def last(self) -> str:
        return ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in self.wall.items())


class Bench:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path, images: list[Path], rounds: int) -> None:
        self.folder, self.images, self.rounds = folder, images, rounds
        self.kept = {
            "first": Step("put, first version", ("borg 2", "restic")),
            "next": Step("put, next version", ("borg 2", "restic")),
            "get": Step("get to a file", ("borg 2", "restic")),
            "verify": Step("verify one version"),
            "empty": Step("get of a version that has zeros alone"),
        }
        self.shown = {
            "cold": Step("sequential read, cold", ("squashfuse",)),
            "hole": Step("the same, of a hole of that size"),
            "again": Step("sequential read, again"),
            "random": Step(f"{RANDOM_READS} random reads of 4 KiB, cold", ("squashfuse",)),
        }
        self.sizes: dict[str, int] = {}
        self.others: list[tuple[str, str]] = []
        self.data = self._filled(images[-1])
        self.hole = folder / "hole"  # what nothing is opened for: the rest of a cold read is the mount and the kernel
        with open(self.hole, "wb") as file:
            file.truncate(images[-1].stat().st_size)
        self.programs = Programs([folder, *{image.resolve().parent for image in images if folder not in image.resolve().parents}])
        # Installed programs have their byte code; the checkout gets it by the first run.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of this fuse-store
        os.environ.update(
            XDG_CONFIG_HOME=str(folder / "config"), BORG_BASE_DIR=str(folder / "borg-base"), BORG_PASSPHRASE="bench",
            BORG_EXIT_CODES="modern", RESTIC_PASSWORD="bench", RESTIC_CACHE_DIR=str(folder / "restic-cache"), HOME=str(folder),
        )  # fmt: skip
        self.floor = str(folder / FLOOR)
        self.programs.build(SOURCE, Path(self.floor))
        self.repositories = [each for each in repositories(folder, self.floor) if self._is_there(each.name, each.put(0, folder)[0])]
        self.versions = {each.package: self.programs.version(each.package) for each in self.repositories}

    def _is_there(self, name: str, program: str) -> bool:
        if self.programs.has(program):
            return True
        print(f"{name} is not installed; it is left out", flush=True)
        return False

    def run(self) -> None:
        for each in self.repositories:
            self._call(each.init)
        for number, image in enumerate(self.images):
            _warm(image)
            step = self.kept["next" if number else "first"]
            for each in self.repositories:
                step.add(each.name, self._timed(each.put(number, image)))
            print(f"version {number}: {step.last()}", flush=True)
        self._first_again()
        self.sizes = {each.name: _size(self.folder / each.place) for each in self.repositories}
        self._get()
        self._mounts()
        self._listing()
        self._memory()

    def _first_again(self) -> None:
        """The first version is put into new repositories, so that there is more than one figure of it."""
        for number in range(1, self.rounds):
            folder = self.folder / f"again{number}"
            folder.mkdir()
            for each in repositories(folder, self.floor):
                if each.package in self.versions:
                    self._call(each.init)
                    self.kept["first"].add(each.name, self._timed(each.put(0, self.images[0])))
            shutil.rmtree(folder)
            print(f"first version again: {self.kept['first'].last()}", flush=True)

    def _get(self) -> None:
        last = len(self.images) - 1
        out = self.folder / "out"
        store = ["fuse-store", "--store", str(self.folder / "store")]
        self._call([*store, "put", str(self.hole), "--machine", "hole"])
        empty = [*store, "get", "hole/system/latest", str(out / "image")]
        for _round in range(self.rounds):
            for each in self.repositories:
                out.mkdir()
                self.kept["get"].add(each.name, self._timed(each.get(last, out), out))
                shutil.rmtree(out)
                if each.verify:
                    self.kept["verify"].add(each.name, self._timed(each.verify(last)))
            out.mkdir()
            self.kept["empty"].add(OURS, self._timed(empty))
            shutil.rmtree(out)
            print(f"get: {self.kept['get'].last()}; verify: {self.kept['verify'].last()}", flush=True)

    def _mounts(self) -> None:
        tree = self.folder / "tree"
        tree.mkdir()
        self._call(["cp", "--sparse=always", str(self.images[-1]), str(tree / "image")])
        self._call(["cp", "--sparse=always", str(self.hole), str(tree / "hole")])
        found = [each for each in mounts(self.folder, tree, self.floor) if self._is_there(each.name, each.mount[0])]
        for each in found:
            self.versions[each.package] = self.programs.version(each.package)
            if each.make:
                self._call(each.make)
        mountpoint = self.folder / "mnt"
        mountpoint.mkdir()
        for _round in range(self.rounds):
            for each in found:
                where = self.programs.seen(mountpoint, each.mount[0])
                hole = "machines/hole/system/latest/image" if each.name == OURS else "hole"
                with self._mounted(each.mount, where) as process:
                    for step in ("cold", "again"):
                        self.shown[step].add(each.name, self._read(where / each.image, process.pid))
                # In a mount of its own: what the first one has in the page cache makes room for it.
                with self._mounted(each.mount, where) as process:
                    self.shown["hole"].add(each.name, self._read(where / hole, process.pid))
                with self._mounted(each.mount, where) as process:
                    self.shown["random"].add(each.name, self._random_reads(where / each.image, process.pid))
            print("mount: " + "; ".join(step.last() for step in self.shown.values()), flush=True)

    def _read(self, path: Path, daemon: int) -> tuple[float, float]:
        """The seconds of a sequential read, and of the processor for it in the daemon and the reader."""
        before = _processor(daemon)
        wall, processor = self._timed(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], outside=True)
        return wall, processor + _processor(daemon) - before

    def _random_reads(self, image: Path, daemon: int) -> tuple[float, float]:
        chance = random.Random(1)
        offsets = [chance.choice(self.data) + 4096 * chance.randrange(16) for _ in range(RANDOM_READS)]
        before, own, started = _processor(daemon), time.process_time(), time.monotonic()
        with open(image, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset in offsets:
                os.pread(file.fileno(), 4096, offset)
        return time.monotonic() - started, time.process_time() - own + _processor(daemon) - before

    def _listing(self) -> None:
        """A store with so many versions is made of manifests alone."""
        from fuse_store.repository.backends import PosixBackend
        from fuse_store.repository.manifest import Head, ImageFile, write_manifest
        from fuse_store.store import Store

        place = self.folder / "many"
        with Store.create(place, durability="none") as store:
            for number in range(LISTED):
                head = Head(
                    f"machine{number % 100}", "system", "file", "", {}, 1_700_000_000_000_000_000 + number * 10**9, number, 0, 0, 0, 0,
                    4096, (), (ImageFile("image", 0, 0),), (),
                )  # fmt: skip
                write_manifest(PosixBackend(place), head, [], store.aead, False)
            store.summaries()
        command = ["fuse-store", "--store", str(place), "list", "--json"]
        seconds = statistics.median(self._timed(command)[0] for _ in range(5))
        self.others.append((f"open and list a store of {LISTED:,} versions", f"{seconds:.2f} s"))

    def _memory(self) -> None:
        """A sparse image of 64 GiB, with a gigabyte of data all over it."""
        path = self.folder / "sparse"
        with open(path, "wb") as file:
            file.truncate(SPARSE)
            for number in range(1024):
                file.seek(number * (SPARSE >> 10))
                file.write(os.urandom(1 << 20))
        store = ["fuse-store", "--store", str(self.folder / "store")]
        peaks = []
        for verb in (["put", str(path), "--machine", "sparse"], ["get", "sparse/system/latest", str(self.folder / "back")],
                     ["verify", "sparse/system/latest"]):  # fmt: skip
            process = subprocess.Popen([*store, *verb], stdout=subprocess.DEVNULL)
            _pid, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{' '.join(verb)} failed")
            peaks.append(f"{verb[0]} {usage.ru_maxrss >> 10} MiB")
        (self.folder / "back").unlink()
        path.unlink()
        self.others.append(("peak memory, sparse image of 64 GiB", ", ".join(peaks)))

    @staticmethod
    def _filled(path: Path) -> list[int]:
        """Offsets, multiples of 64 KiB, at which a file holds data."""
        found = []
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END) - (1 << 16)
            at = 0
            while at < end:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                found.append(at & ~0xFFFF)
                at = (at & ~0xFFFF) + (1 << 16)
        return found

    def _call(self, command: list[str]) -> None:
        done = subprocess.run(
            self.programs.command(command), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")

    def _timed(self, command: list[str], where: Path = Path("/"), outside: bool = False) -> tuple[float, float]:
        """Seconds of the clock and of a processor that a command takes."""
        os.sync()  # nothing waits for what another one has left to be written
        time.sleep(SETTLED)  # a virtual machine's host is still busy with it
        full = command if outside else self.programs.command(command, where)
        started = time.monotonic()
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(full, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
            _pid, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                errors.seek(0)
                raise SystemExit(f"{' '.join(command)} failed: {errors.read().decode(errors='replace').strip()}")
        return seconds, usage.ru_utime + usage.ru_stime

    @contextlib.contextmanager
    def _mounted(self, command: list[str], where: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Something mounted at ``where``, for the time of the block. Nothing of it is in the page cache yet."""
        with mounted(self.programs.command(command), where) as process:
            yield process

    def report(self, command: str, origin: str) -> str:
        size = self.images[-1].stat()
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        machine = f"{os.cpu_count()} processors of {cpu[1] if cpu else platform.machine()}, Linux {platform.release()}"
        names = [each.name for each in self.repositories]
        sizes = [f"{self.sizes[name] / 1e6:.0f} MB" for name in names]
        share = f"{self.sizes[OURS] / self.sizes['borg 2']:.2f} of borg 2's" if "borg 2" in self.sizes else ""
        lines = [
            f"`{command}`, {len(self.images)} versions of {size.st_size >> 20} MiB, {origin}, {size.st_blocks >> 11} MiB of them "
            f"allocated; seconds, and of a processor in brackets; medians, of {self.rounds} runs where it is not a run for each version. "
            f"{machine}; {', '.join(self.versions.values())}.",
            "",
            *_table(self.kept, names),
            f"| all {len(self.images)} versions in the store | {' | '.join(sizes)} | {share} | |",
            "",
            "Mounts of the newest version:",
            "",
            *_table(
                self.shown,
                [
                    OURS,
                    *(name for name in ("squashfuse", "squashfuse_ll", "erofsfuse", FLOOR) if name in self.shown["cold"].wall),
                ],
            ),
            "",
            "| | |",
            "|---|---|",
        ]
        lines += [f"| {what} | {value} |" for what, value in self.others]
        return "\n".join((*lines, ""))


def _table(steps: dict[str, Step], names: list[str]) -> list[str]:
    rows = ["| | " + " | ".join(names) + " | times as fast as | processor ÷ floor |", "|---" * (len(names) + 3) + "|"]
    for step in steps.values():
        ratios = [
            f"{step.ratio(name):.1f} × {name}"
            for name in step.rivals
            if name in step.wall
        ]
        rows.append(f"| {step.title} | {' | '.join(step.cell(name) for name in names)} | {', '.join(ratios)} | {step.floor()} |")
    return rows


def _processor(pid: int) -> float:
    """Seconds of a processor that a process and those that it started have taken."""
    total, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    for each in _family(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(fields[at]) for at in (11, 12, 13, 14)) / ticks
    return total


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += _family(int(child))
    return found


@contextlib.contextmanager
def mounted(command: list[str], where: Path) -> Iterator[subprocess.Popen[bytes]]:
    where.mkdir(exist_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _attempt in range(600):
        if os.path.ismount(where):
            break
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command)} failed: {process.stderr.read().decode() if process.stderr else ''}")
        time.sleep(0.05)
    try:
        yield process
    finally:
        subprocess.run(["fusermount3", "-u", str(where)], check=False)
        process.wait(60)


def _warm(path: Path) -> None:
    """Have what the file holds in the page cache; its holes stay out of it."""
    with open(path, "rb") as file:
        at, size = 0, file.seek(0, os.SEEK_END)
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += len(os.pread(file.fileno(), min(end - at, 1 << 20), at))


def _size(folder: Path) -> int:
    return sum(entry.lstat().st_size for entry in folder.rglob("*") if entry.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images",
        nargs="*",
        type=Path,
        help="versions of one image, oldest first; by default those of make bench-corpus, else generated",
    )
    parser.add_argument("--versions", type=int, default=8, help="how many are generated (default 8)")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of what size (default 2048)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often a step is done that is not done for each version (default 3)"
    )
    parser.add_argument("--folder", type=Path, help="where everything is put, and removed (default: in $TMPDIR)")
    parser.add_argument("--report", action="store_true", help=f"write the table into {REPORT.name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    arguments = parser.parse_args()
    for image in arguments.images:
        if not image.is_file():
            parser.error(f"image {image}: it does not exist, or is not a file")
    own_mounts([sys.executable, "-m", "tests.store.bench.store", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="fuse-store-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        images, origin = [image.resolve() for image in arguments.images], "given"
        if not images:
            images, origin = sorted(CORPUS.glob("v*.img")), "hibernation images of a virtual machine"
        if not images:
            print(f"making {arguments.versions} versions of {arguments.size} MiB", flush=True)
            (folder / "corpus").mkdir()
            origin = "generated"
            images = corpus.versions(folder / "corpus", arguments.versions, arguments.size << 20)
        bench = Bench(folder, images, arguments.rounds)
        bench.run()
        report = bench.report("make bench-store", origin)
    print("\n" + report)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {"sizes": bench.sizes, "steps": {k: vars(v) for k, v in (bench.kept | bench.shown).items()}}, indent=1
            )
        )
    if arguments.report:
        text = REPORT.read_text()
        head, _begin, rest = text.partition(BEGIN)
        _old, _end, tail = rest.partition(END)
        REPORT.write_text(f"{head}{BEGIN}\n{report}\n{END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
