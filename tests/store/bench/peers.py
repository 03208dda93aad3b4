# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that the store is compared with: what a user of each types, and where the newest of each come from.

They are those of Debian sid, in a tree of their own below ``~/.cache/nvm-fastboot``, which root can make and enter (mmdebstrap, chroot).
Without root, those that are installed take their place, and the report names their versions.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "floor.c"
MIRROR = os.environ.get("LAB_DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES = (
    "borgbackup",
    "borgbackup2",
    "desync",
    "erofs-utils",
    "erofsfuse",
    "fuse3",
    "gcc",
    "libblake3-dev",
    "libc6-dev",
    "libfuse3-dev",
    "libssl-dev",
    "libzstd-dev",
    "restic",
    "squashfs-tools",
    "squashfuse",
)
SHARED = ("/dev", "/proc")
OURS = "fuse-store"
FLOOR = "floor"  # the least that a program takes: floor.c


@dataclass(frozen=True)
class Repository:
    """A program that keeps versions of an image. ``put`` is of a number and a file, ``get`` of a number and a directory, ``verify``, if it
    can do that with one version, of a number; ``package``: of Debian."""

    name: str
    package: str
    init: list[str]
    put: Callable[[int, Path], list[str]]
    get: Callable[[int, Path], list[str]]
    place: str
    verify: Callable[[int], list[str]] | None = None


@dataclass(frozen=True)
class Mount:
    """A program that shows a file, ``image`` below the mount point. ``make`` makes what it mounts of a directory of images."""

    name: str
    package: str
    make: list[str]
    mount: list[str]
    image: str = "image"


def repositories(folder: Path, floor: str) -> list[Repository]:
    """All below ``folder``; ``floor`` is the path of that program. Each encrypts, as far as it can, and compresses quickly."""
    borg = ["borg", "create", "--sparse", "--chunker-params", "fixed,65536", "-C", "zstd,1"]
    borg2 = ["borg2", "-r", str(folder / "borg2")]
    restic = ["restic", "-q", "-r", str(folder / "restic")]
    store = ["fuse-store", "--store", str(folder / "store")]
    chunks = ["-s", str(folder / "desync"), "-n", "2"]
    return [
        Repository(
            OURS, "", [*store, "init"],
            lambda number, image: [*store, "put", str(image), "--machine", "m"],
            lambda number, out: [*store, "get", "m/system/latest", str(out / "image")], "store",
            lambda number: [*store, "verify", "m/system/latest"],
        ),
        Repository(
            "borg 1.4", "borgbackup", ["borg", "init", "-e", "repokey-blake2", str(folder / "borg")],
            lambda number, image: [*borg, f"{folder}/borg::v{number}", str(image)],
            lambda number, out: ["borg", "extract", "--sparse", f"{folder}/borg::v{number}"], "borg",
        ),
        Repository(
            "borg 2", "borgbackup2", [*borg2, "repo-create", "--encryption", "aes256-ocb", "--id-hash", "blake3"],
            lambda number, image: [*borg2, *borg[1:], f"v{number}", str(image)],
            lambda number, out: [*borg2, "extract", "--sparse", f"v{number}"], "borg2",
        ),
        Repository(
            "restic", "restic", [*restic, "init"],
            lambda number, image: [*restic, "backup", "--host", f"v{number}", str(image)],
            lambda number, out: [*restic, "restore", "latest", "--sparse", "--target", str(out)], "restic",
        ),
        Repository(
            "desync", "desync", ["mkdir", str(folder / "desync")],
            lambda number, image: ["desync", "make", *chunks, str(folder / f"desync-v{number}.caibx"), str(image)],
            lambda number, out: ["desync", "extract", *chunks, str(folder / f"desync-v{number}.caibx"), str(out / "image")], "desync",
        ),
        Repository(
            FLOOR, "gcc", ["mkdir", str(folder / "least")],
            lambda number, image: [floor, "put", str(folder / "least"), str(number), str(image)],
            lambda number, out: [floor, "get", str(folder / "least"), str(number), str(out / "image")], "least",
            lambda number: [floor, "verify", str(folder / "least"), str(number)],
        ),
    ]  # fmt: skip


def mounts(folder: Path, tree: Path, floor: str) -> list[Mount]:
    """What shows the files of ``tree`` at ``folder``/mnt; ours shows what its repository has, the floor a plain file alone."""
    where = str(folder / "mnt")
    squash, erofs = str(folder / "squash.img"), str(folder / "erofs.img")
    squashed = ["mksquashfs", str(tree), squash, "-comp", "zstd", "-Xcompression-level", "1", "-b", "128K", "-quiet", "-no-progress",
                "-noappend"]  # fmt: skip
    return [
        Mount(OURS, "", [], ["fuse-store", "--store", str(folder / "store"), "mount", "-f", where], "machines/m/system/latest/image"),
        Mount("squashfuse", "squashfuse", squashed, ["squashfuse", "-f", squash, where]),
        Mount("squashfuse_ll", "squashfuse", squashed, ["squashfuse_ll", "-f", squash, where]),
        Mount(
            "erofsfuse", "erofsfuse", ["mkfs.erofs", "-zzstd,level=1", "-C131072", "--quiet", erofs, str(tree)],
            ["erofsfuse", "-f", erofs, where],
        ),
        Mount(FLOOR, "gcc", [], [floor, "mount", str(tree), where]),
    ]  # fmt: skip


class Programs:
    """Runs the programs: ours from this environment, the others from Debian sid where there is root."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """``folders``: what all of them see."""
        self._root = _tree() if os.geteuid() == 0 and shutil.which("mmdebstrap") else None
        if self._root is None:
            print("without root and mmdebstrap, the programs are those that are installed", flush=True)
            return
        for path in (*SHARED, *map(str, folders)):
            (self._root / path[1:]).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--rbind", path, str(self._root / path[1:])], check=True)

    def has(self, program: str) -> bool:
        if "/" in program:
            return Path(program).exists()
        if self._root is not None and program != OURS:
            return any((self._root / directory / program).exists() for directory in ("usr/bin", "usr/sbin"))
        return shutil.which(program) is not None

    def build(self, source: Path, program: Path) -> None:
        """Compile a program in C, if there is a compiler and what it needs."""
        code = program.with_suffix(".c")
        shutil.copy(source, code)
        libraries = ["-I/usr/include/fuse3", "-lfuse3", "-lzstd", "-lcrypto", "-lblake3"]
        if not self.has("gcc"):
            return
        done = subprocess.run(
            self.command(["gcc", "-O3", "-march=native", "-o", str(program), str(code), *libraries]),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"{source.name}: {done.stderr.strip().splitlines()[0]}", flush=True)

    def seen(self, path: Path, program: str) -> Path:
        """Where what ``program`` mounts at ``path`` is for this one."""
        return path if self._root is None or program == OURS else self._root / str(path)[1:]

    def version(self, package: str) -> str:
        command = ["dpkg-query", "-W", "-f=${Version}", package] if package else [OURS, "--version"]
        found = subprocess.run(self.command(command), capture_output=True, text=True, check=False).stdout
        number = re.search(r"\d+(\.\w+)+", found)
        return f"{package or OURS} {number[0] if number else '?'}"

    def command(self, command: list[str], where: Path = Path("/")) -> list[str]:
        """``command`` as it is run, in the directory ``where``."""
        there = ["env", "-C", str(where)] if where != Path("/") else []
        if self._root is None or command[0] == OURS:
            return [*there, *command]
        return ["chroot", str(self._root), *there, *command]


def own_mounts(arguments: list[str]) -> None:
    """Start this program again where its mounts end with it, however it ends."""
    if os.geteuid() == 0 and "BENCH_OWN_MOUNTS" not in os.environ:
        os.environ["BENCH_OWN_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *arguments])


def _tree() -> Path:
    """The tree of Debian sid, made if it is not there. It is named by its packages; remove it to get newer ones."""
    name = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvm-fastboot"
    tree = base / f"peers-{name}"
    if not tree.exists():
        print("installing the newest programs, from Debian sid", flush=True)
        base.mkdir(parents=True, exist_ok=True)
        partial = base / f"peers-{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                '--aptopt=Acquire::Check-Valid-Until "false"',
                "--include=" + ",".join(PACKAGES),
                "sid",
                str(partial),
                MIRROR,
            ],
            check=True,
        )
        partial.rename(tree)
    return tree
