# SPDX-License-Identifier: GPL-3.0-or-later
"""The store against borg, restic and squashfs, on the same images in the same run; ``make bench`` runs it.

Every step is done by all, one after the other, before the next one: so what the machine does besides hits all alike. Each
runs as its users run it, as a command, when all that was written before is on the disk. What is compared are medians;
the report says how large the ratios have to be. A peer that is not installed is named and left out.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.store.bench import corpus

REPORT = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"
CORPUS = REPORT.parents[1] / "build" / "corpus"  # of make bench-corpus
BEGIN, END = "<!-- make bench-store: begin -->\n", "<!-- make bench-store: end -->\n"
RANDOM_READS = 2000
LISTED = 10_000
SPARSE = 64 << 30
OURS = "fuse-store"


@dataclass
class Seconds:
    """What each took at one step, and what is asked of the ratio to ours."""

    step: str
    peers: dict[str, float] = field(default_factory=dict)  # peer: at least so many times as long as ours
    taken: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.taken.setdefault(name, []).append(seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.taken[name]) if self.taken.get(name) else float("nan")


class Bench:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path, images: list[Path], rounds: int) -> None:
        self.folder, self.images, self.rounds = folder, images, rounds
        self.steps = {
            "first": Seconds("put, first version", {"borg": 3}),
            "next": Seconds("put, next version", {"borg": 6}),
            "get": Seconds("get to a file", {"borg": 5}),
            "cold": Seconds("mount, sequential read, cold", {"borg": 5, "squashfs": 2.5}),
            "hole": Seconds("the same, of a hole of that size"),
            "again": Seconds("mount, sequential read, again"),
            "random": Seconds(f"mount, {RANDOM_READS} random reads of 4 KiB, cold", {"borg": 3}),
        }
        self.sizes: dict[str, int] = {}
        self.others: list[tuple[str, str, str]] = []
        self.data = self._filled(images[-1])
        self.hole = folder / "hole"  # what nothing is opened for: the rest of a cold read is the mount and the kernel
        with open(self.hole, "wb") as file:
            file.truncate(images[-1].stat().st_size)
        # Installed programs have their byte code; the checkout gets it by the first run.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of this fuse-store
        os.environ.update(
            XDG_CONFIG_HOME=str(folder / "config"), BORG_BASE_DIR=str(folder / "borg-base"), BORG_PASSPHRASE="bench",
            RESTIC_PASSWORD="bench", RESTIC_CACHE_DIR=str(folder / "restic-cache"),
        )  # fmt: skip
        borg = ["borg", "create", "--sparse", "--chunker-params", "fixed,65536", "-C", "zstd,1"]
        restic = ["restic", "-q", "-r", str(folder / "restic")]
        self.tools: dict[str, tuple[list[str], Callable[[int, Path], list[str]]]] = {
            OURS: (["fuse-store", "--store", str(folder / "store"), "init"],
                   lambda number, image: ["fuse-store", "--store", str(folder / "store"), "put", str(image), "--machine", "m"]),
            "borg": (["borg", "init", "-e", "repokey-blake2", str(folder / "borg")],
                     lambda number, image: [*borg, f"{folder}/borg::v{number}", str(image)]),
            "restic": ([*restic, "init"], lambda number, image: [*restic, "backup", "--host", f"v{number}", str(image)]),
        }  # fmt: skip
        for name in list(self.tools):
            if not shutil.which(self.tools[name][0][0]):
                print(f"{name} is not installed; it is left out", flush=True)
                del self.tools[name]

    def run(self) -> None:
        for init, _put in self.tools.values():
            _call(init)
        for number, image in enumerate(self.images):
            _warm(image)
            for name, (_init, put) in self.tools.items():
                self.steps["next" if number else "first"].add(name, _timed(put(number, image)))
            print(f"version {number}: " + self._last("next" if number else "first"), flush=True)
        self._again_first()
        for name, place in ((OURS, "store"), ("borg", "borg"), ("restic", "restic")):
            if name in self.tools:
                self.sizes[name] = _size(self.folder / place)
        self._get()
        _call(["fuse-store", "--store", str(self.folder / "store"), "put", str(self.hole), "--machine", "hole"])
        self._mounts()
        self._listing()
        self._memory()

    def _again_first(self) -> None:
        """The first version is put into new stores, so that there is more than one figure of it."""
        for _round in range(1, self.rounds):
            for name, place in ((OURS, "store"), ("borg", "borg"), ("restic", "restic")):
                if name in self.tools:
                    (self.folder / place).rename(self.folder / f"{place}.kept")
                    init, put = self.tools[name]
                    _call(init)
                    self.steps["first"].add(name, _timed(put(0, self.images[0])))
                    shutil.rmtree(self.folder / place)
                    (self.folder / f"{place}.kept").rename(self.folder / place)
            (self.folder / "config" / "fuse-store" / "stores").unlink()  # it knows another store there
            print("first version again: " + self._last("first"), flush=True)

    def _get(self) -> None:
        last = len(self.images) - 1
        out = self.folder / "out"
        commands = {
            OURS: [["fuse-store", "--store", str(self.folder / "store"), "get", "m/system/latest", str(out / "image")]],
            "borg": [["borg", "extract", "--sparse", f"{self.folder}/borg::v{last}"]],
            "restic": [["restic", "-q", "-r", str(self.folder / "restic"), "restore", "latest", "--target", str(out)]],
        }
        for _round in range(self.rounds):
            for name in self.tools:
                out.mkdir()
                self.steps["get"].add(name, sum(_timed(command, cwd=out) for command in commands[name]))
                shutil.rmtree(out)
            print("get: " + self._last("get"), flush=True)

    def _mounts(self) -> None:
        squash = self.folder / "squash.img"
        if shutil.which("mksquashfs") and shutil.which("squashfuse"):
            links = self.folder / "tree"
            links.mkdir()
            _call(["cp", "--sparse=always", str(self.images[-1]), str(links / "image")])
            _call(["cp", "--sparse=always", str(self.hole), str(links / "hole")])
            options = ["-comp", "zstd", "-Xcompression-level", "1", "-b", "128K", "-quiet", "-no-progress"]
            _call(["mksquashfs", str(links), str(squash), *options])
        else:
            print("squashfs-tools or squashfuse is not installed; it is left out", flush=True)
        where = self.folder / "mnt"
        last = len(self.images) - 1
        mounts = {
            OURS: ["fuse-store", "--store", str(self.folder / "store"), "mount", "-f", str(where)],
            "borg": ["borg", "mount", "-f", f"{self.folder}/borg::v{last}", str(where)],
            "squashfs": ["squashfuse", "-f", str(squash), str(where)],
        }
        names = [name for name in mounts if name in self.tools or (name == "squashfs" and squash.exists())]
        for _round in range(self.rounds):
            for name in names:
                with _mounted(mounts[name], where):
                    image = _image_in(where, self.images[-1])
                    self.steps["cold"].add(name, _timed(["dd", f"if={image}", "of=/dev/null", "bs=1M", "status=none"]))
                    self.steps["again"].add(name, _timed(["dd", f"if={image}", "of=/dev/null", "bs=1M", "status=none"]))
                if name != "borg":  # in a mount of its own: what the first one has in the page cache makes room for it
                    with _mounted(mounts[name], where):
                        hole = where / ("hole" if name == "squashfs" else "machines/hole/system/latest/image")
                        self.steps["hole"].add(name, _timed(["dd", f"if={hole}", "of=/dev/null", "bs=1M", "status=none"]))
                with _mounted(mounts[name], where):
                    self.steps["random"].add(name, self._random_reads(_image_in(where, self.images[-1])))
            print("mount: " + "; ".join(self._last(step) for step in ("cold", "hole", "again", "random")), flush=True)

    def _random_reads(self, image: Path) -> float:
        chance = random.Random(1)
        offsets = [chance.choice(self.data) + 4096 * chance.randrange(16) for _ in range(RANDOM_READS)]
        started = time.monotonic()
        with open(image, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset in offsets:
                os.pread(file.fileno(), 4096, offset)
        return time.monotonic() - started

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
        seconds = statistics.median(_timed(command) for _ in range(5))
        self.others.append((f"open and list a store of {LISTED:,} versions", f"{seconds:.2f} s", "under 0.5 s"))

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
        self.others.append(("peak memory, sparse image of 64 GiB", ", ".join(peaks), "under 400 MiB"))

    def _last(self, step: str) -> str:
        return ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in self.steps[step].taken.items())

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

    def report(self, command: str, origin: str) -> str:
        peers = [name for name in ("borg", "restic", "squashfs") if any(name in step.taken for step in self.steps.values())]
        lines = ["| | " + " | ".join((OURS, *peers)) + " | as fast as borg | asked for |", "|---" * (len(peers) + 4) + "|"]
        for step in self.steps.values():
            cells = [f"{step.median(name):.2f} s" if name in step.taken else "" for name in (OURS, *peers)]
            ratio = f"{step.median('borg') / step.median(OURS):.1f} ×" if "borg" in step.taken else ""
            if "squashfs" in step.taken and step.peers:
                ratio += f" ({step.median('squashfs') / step.median(OURS):.1f} × squashfs)"
            asked = ", ".join(f"{factor:g} × {name}" for name, factor in step.peers.items())
            if step is self.steps["again"]:
                rate = self.images[-1].stat().st_size / step.median(OURS) / 1e9
                ratio, asked = f"{rate:.1f} GB/s", "3 GB/s"
            lines.append(f"| {step.step} | {' | '.join(cells)} | {ratio} | {asked} |")
        sizes = [f"{self.sizes[name] / 1e6:.0f} MB" if name in self.sizes else "" for name in (OURS, *peers)]
        share = f"{self.sizes[OURS] / self.sizes['borg']:.2f} of its size" if "borg" in self.sizes else ""
        lines.append(f"| all {len(self.images)} versions in the store | {' | '.join(sizes)} | {share} | 0.72 |")
        for what, value, asked in self.others:
            lines.append(f"| {what} | {value} |{' |' * len(peers)} | {asked} |")
        size = self.images[-1].stat()
        programs = (("borg", "--version"), ("restic", "version"), ("squashfuse", "--version"), ("fuse-store", "--version"))
        versions = [_version(list(program)) for program in programs]
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        machine = f"{os.cpu_count()} processors of {cpu[1] if cpu else platform.machine()}, Linux {platform.release()}"
        return "\n".join(
            (
                f"`{command}`, {len(self.images)} versions of {size.st_size >> 20} MiB, {origin}, {size.st_blocks >> 11} MiB of them "
                f"allocated; medians, of {self.rounds} runs where it is not a run for each version. {machine}; "
                f"{', '.join(filter(None, versions))}.",
                "",
                *lines,
                "",
            )
        )


def _version(command: list[str]) -> str:
    if not shutil.which(command[0]):
        return ""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    number = re.search(r"\d+(\.\d+)+", found.stdout + found.stderr)
    return f"{command[0]} {number[0] if number else '?'}"


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _timed(command: list[str], cwd: Path | None = None) -> float:
    os.sync()  # nobody waits for what another one has left to be written
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, cwd=cwd)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return seconds


@contextlib.contextmanager
def _mounted(command: list[str], where: Path) -> Iterator[None]:
    """Something mounted at ``where``, for the time of the block. Nothing of it is in the page cache yet."""
    where.mkdir(exist_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _attempt in range(600):
        if os.path.ismount(where):
            break
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command)} failed: {process.stderr.read() if process.stderr else ''}")
        time.sleep(0.05)
    try:
        yield
    finally:
        subprocess.run(["fusermount3", "-u", str(where)], check=False)
        process.wait(60)


def _image_in(where: Path, image: Path) -> Path:
    for candidate in (where / "machines/m/system/latest/image", where / "image", where / str(image)[1:]):
        if candidate.exists():
            return candidate
    raise SystemExit(f"the image is not to be found below {where}")


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
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "images", nargs="*", type=Path, help="versions of one image, oldest first; by default those of make bench-corpus, else generated"
    )
    parser.add_argument("--versions", type=int, default=8, help="how many are generated (default 8)")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of what size (default 2048)")
    parser.add_argument("--rounds", type=int, default=3, help="how often a step is done that is not done for each version (default 3)")
    parser.add_argument("--folder", type=Path, help="where everything is put, and removed (default: in $TMPDIR)")
    parser.add_argument("--report", action="store_true", help=f"write the table into {REPORT.name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    arguments = parser.parse_args()
    for image in arguments.images:
        if not image.is_file():
            parser.error(f"image {image}: it does not exist, or is not a file")
    with tempfile.TemporaryDirectory(prefix="fuse-store-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        images, origin = arguments.images, "given"
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
        arguments.json.write_text(json.dumps({"sizes": bench.sizes, "steps": {k: vars(v) for k, v in bench.steps.items()}}, indent=1))
    if arguments.report:
        text = REPORT.read_text()
        head, _begin, rest = text.partition(BEGIN)
        _old, _end, tail = rest.partition(END)
        REPORT.write_text(f"{head}{BEGIN}\n{report}\n{END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
