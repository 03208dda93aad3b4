# SPDX-License-Identifier: GPL-3.0-or-later
"""The mount, with the kernel's FUSE and the tools that people use on files."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from fuse_store.errors import NotFound, Refused, UsageError
from fuse_store.maintenance.gc import collect
from fuse_store.mount import mount
from fuse_store.progress import SILENT
from fuse_store.repository.manifest import Summary
from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import encode, machine
from tests.store.bench import corpus
from tests.store.conftest import packs_with

MB = 1 << 20
SIZE = 16 * MB
BLOCK = 128 << 10  # of the store
WAIT = 60.0  # seconds; machines that run tests are busy
SERVE = """
import sys
from fuse_store.maintenance.gc import collect
from fuse_store.mount import Access, mount
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
with Store.open(sys.argv[1]) as store:
    access = Access("--writable" in sys.argv, "--allow-other" in sys.argv, "--exec" in sys.argv)
    mount(store, sys.argv[2], foreground="-f" in sys.argv, access=access)
"""
PACKAGES = {"fusermount3": "fuse3", "rsync": "rsync", "qemu-img": "qemu-utils", "findmnt": "util-linux", "setpriv": "util-linux"}


@pytest.fixture(autouse=True, scope="module")
def needed() -> None:
    missing = [f"{tool} (Debian: {package})" for tool, package in PACKAGES.items() if not shutil.which(tool)]
    if not Path("/dev/fuse").exists():
        missing.append("/dev/fuse (modprobe fuse)")
    if missing:
        pytest.fail(f"the tests of the mount need {', '.join(missing)}")


class Mounted:
    """A store, served at ``point`` by a process of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.store = Store.open(directory / "store")
        self.point, self.log = directory / "mount", directory / "log"
        self.point.mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, open(self.log, "ab") as log:
            address = str(directory / "notify")
            Path(address).unlink(missing_ok=True)
            notified.bind(address)
            notified.settimeout(WAIT)
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(directory / "store"), str(self.point), "-f", *options],
                env={**os.environ, "NOTIFY_SOCKET": address}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
            assert notified.recv(100) == b"READY=1\n", self.log.read_text()

    @property
    def system(self) -> Path:
        return self.point / "machines" / "web01" / "system"

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(WAIT) == 0, self.log.read_text()
        assert not os.path.ismount(self.point)
        self.store.close()


@contextlib.contextmanager
def mounted(directory: Path, *options: str) -> Iterator[Mounted]:
    served = Mounted(directory, *options)
    try:
        yield served
        served.end()
    finally:
        served.process.kill()
        served.process.wait()
        subprocess.run(["fusermount3", "-uzq", str(served.point)], check=False)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def config_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the store that all tests here share."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.delenv("TMPDIR", raising=False)


@pytest.fixture(scope="module")
def served(home: Path, needed: None) -> Iterator[Mounted]:
    """Two versions of a memory image, one of several files, and a mount that most tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        with Store.create(home / "store", durability="none") as store:
            for path in corpus.versions(home, 2, SIZE):
                store.put(str(path), Label("web01", event="nightly"))
            (home / "several" / "sub").mkdir(parents=True)
            (home / "several" / "a").write_bytes(b"a" * 5000)
            (home / "several" / "sub" / "b").write_bytes(b"")
            (home / "several" / "empty").mkdir()
            (home / "several" / "sub" / "link").symlink_to("../a")
            (home / "several" / "nowhere").symlink_to("/no/such/file")
            store.put(str(home / "several"), Label("web01", application="app"))
        with mounted(home, "--writable") as own:
            yield own


def run(*command: str | Path, cwd: Path | None = None, timeout: float | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, timeout=timeout)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def newest(store: Store, application: str = "system") -> Summary:
    return store.find(f"web01/{application}/latest")


def drop_pages(path: Path) -> None:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_find_sees_the_tree(served: Mounted) -> None:
    first, last = (summary.version for summary in served.store.summaries() if summary.application == "system")
    found = run("find", served.system, "-printf", "%P %y %m %l\n").splitlines()
    assert sorted(found) == sorted(
        [" d 700 "]
        + [f"{version} d 700 " for version in (first, last)]
        + [f"{version}/{name} f 600 " for version in (first, last) for name in ("image", "info.json", "B3SUMS")]
        + [f"latest l 777 {last}"]
    )
    for link in run("find", served.point / "ids", served.point / "kinds", "-type", "l").split("\n")[:-1]:
        assert (Path(link) / "info.json").is_file()
    assert served.system.stat().st_uid == os.geteuid()
    options = run("findmnt", "-no", "FSTYPE,OPTIONS", served.point)
    assert "fuse.fuse_store" in options and "nosuid" in options and "nodev" in options and "allow_other" not in options


def test_bytes_and_holes(served: Mounted, home: Path, tmp_path: Path) -> None:
    image, source = served.system / "latest" / "image", home / "v1"
    assert image.stat().st_size == SIZE and image.stat().st_blocks * 512 == newest(served.store).allocated
    run("cmp", image, source)
    assert run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, source) == "Images are identical.\n"
    for name, mode in (("auto", "auto"), ("always", "always")):
        run("cp", f"--sparse={mode}", image, tmp_path / name)
        run("cmp", tmp_path / name, source)
        assert (tmp_path / name).stat().st_blocks <= source.stat().st_blocks + 64
    assert image.stat().st_blocks == int(run("du", "-L", "--block-size=512", image).split()[0])
    with open(image, "rb") as file:
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(file.fileno(), SIZE, os.SEEK_DATA)
        assert os.lseek(file.fileno(), 0, os.SEEK_END) == SIZE


def test_seek(served: Mounted, tmp_path: Path) -> None:
    with open(tmp_path / "holes", "wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 30)
        file.write(b"data")
    version = served.store.put(str(tmp_path / "holes"), Label("web01", application="sparse"))
    with open(served.point / "ids" / version.id / "image", "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 30
        assert 1 << 30 < os.lseek(file.fileno(), 1 << 30, os.SEEK_HOLE) <= (1 << 30) + MB
        with pytest.raises(OSError) as error:
            os.lseek(file.fileno(), 1 << 31, os.SEEK_DATA)
        assert error.value.errno == errno.ENXIO
    started = time.monotonic()
    run("cp", served.point / "ids" / version.id / "image", tmp_path / "copy")
    assert time.monotonic() - started < WAIT / 2, "holes are not read"
    assert (tmp_path / "copy").stat().st_size == 1 << 40 and (tmp_path / "copy").stat().st_blocks < 4096


def test_cp_and_rsync_of_everything(served: Mounted, home: Path, tmp_path: Path) -> None:
    app = served.point / "machines" / "web01" / "app"
    run("cp", "-a", app, tmp_path / "cp")
    run("rsync", "-aX", f"{app}/", tmp_path / "rsync")
    version = newest(served.store, "app")
    for copy in ("cp", "rsync"):
        run("diff", "-r", "--no-dereference", home / "several", tmp_path / copy / version.version / "image")
        assert os.readlink(tmp_path / copy / "latest") == version.version
        assert (tmp_path / copy / version.version / "image" / "a").stat().st_mtime_ns == (home / "several" / "a").stat().st_mtime_ns
        assert os.readlink(tmp_path / copy / version.version / "image" / "sub" / "link") == "../a"
        assert os.listdir(tmp_path / copy / version.version / "image" / "empty") == []
        assert os.getxattr(tmp_path / copy / version.version / "image" / "a", "user.fuse_store.id") == version.id.encode()
    assert run("rsync", "-ain", f"{app}/", tmp_path / "cp") == "", "a second rsync has nothing to do"
    run("chmod", "-R", "u+w", tmp_path)  # for those who are not root


def test_checksums(served: Mounted) -> None:
    """What ``b3sum -c`` does."""
    for application in ("system", "app"):
        directory = served.point / "machines" / "web01" / application / "latest"
        text = (directory / "B3SUMS").read_text()
        assert len(text) == (directory / "B3SUMS").stat().st_size
        lines = text.splitlines()
        assert len(lines) == newest(served.store, application).files
        for line in lines:
            digest, name = line.split("  ", 1)
            assert blake3((directory / name).read_bytes()).hexdigest() == digest


def test_extended_attributes(served: Mounted) -> None:
    version = newest(served.store)
    image = served.system / "latest" / "image"
    found = {name: os.getxattr(image, name).decode() for name in os.listxattr(image)}
    values = {"id": version.id, "digest": version.id, "kind": "file", "event": "nightly", "base": version.bases[0], "state": "captured"}
    assert found == {f"user.fuse_store.{name}": value for name, value in values.items()}
    with pytest.raises(OSError) as error:
        os.getxattr(image, "user.other")
    assert error.value.errno == errno.ENODATA


def test_several_readers(served: Mounted, home: Path) -> None:
    expected = [(home / name).read_bytes() for name in ("v0", "v1")]
    paths = [served.system / version.version / "image" for version in served.store.summaries() if version.application == "system"]
    for path in paths:
        drop_pages(path)
    failures: list[BaseException] = []

    def read(number: int) -> None:
        try:
            which, backwards = number % 2, number >= 4
            with open(paths[which], "rb", buffering=0) as file:
                for at in sorted(range(0, SIZE, 100_000), reverse=backwards):
                    assert os.pread(file.fileno(), 100_000, at) == expected[which][at : at + 100_000]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_until_it_ignores(process: int, number: int) -> None:
    until = time.monotonic() + WAIT
    while True:
        (ignored,) = [line.split()[1] for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigIgn")]
        if int(ignored, 16) >> (number - 1) & 1:
            return
        assert time.monotonic() < until, f"{process} does not ignore signal {number}"
        time.sleep(0.01)


def wait_until_gone(processes: list[int]) -> None:
    until = time.monotonic() + WAIT
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < until, f"{processes} go on"
        time.sleep(0.05)


def test_processes_read_ahead_and_are_not_needed(home: Path, served: Mounted, tmp_path: Path) -> None:
    """They read what is read in order, and when they are killed, all at once or one while it is at work, nothing is missed."""
    (tmp_path / "store").symlink_to(home / "store")
    expected = (home / "v1").read_bytes()
    with mounted(tmp_path) as own:
        image = own.system / "latest" / "image"
        readers = children(own.process.pid)
        assert len(readers) == min(os.cpu_count() or 1, 4)
        assert image.read_bytes() == expected
        read = sum(int(Path(f"/proc/{reader}/io").read_text().split()[1]) for reader in readers)
        assert read > newest(own.store).stored / 2, "rchar: they have read packs"

        def kill() -> None:
            for reader in readers:
                time.sleep(0.05)
                os.kill(reader, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        while killer.is_alive() or children(own.process.pid):
            drop_pages(image)
            assert image.read_bytes() == expected
        drop_pages(image)
        assert image.read_bytes() == expected, "without any of them"
        assert own.log.read_text().count("has ended. Reading without it.") == len(readers)


@pytest.mark.parametrize("stopped", [1, 4])
def test_a_process_that_is_stopped_holds_up_no_read(home: Path, served: Mounted, tmp_path: Path, stopped: int) -> None:
    """SIGSTOP, a debugger or a frozen cgroup. When it goes on, it is asked again."""
    (tmp_path / "store").symlink_to(home / "store")
    with mounted(tmp_path) as own:
        image = own.system / "latest" / "image"
        readers = children(own.process.pid)
        for reader in readers[:stopped]:
            os.kill(reader, signal.SIGSTOP)
        began = time.monotonic()
        run("cmp", image, home / "v1", timeout=60)
        assert time.monotonic() - began < 20, "each is waited for once, not for each window"
        assert "does not answer. Reading without it." in own.log.read_text()
        for reader in readers[:stopped]:
            os.kill(reader, signal.SIGCONT)
        drop_pages(image)
        run("cmp", image, home / "v1", timeout=60)


def test_packs_that_are_removed_are_closed(tmp_path: Path) -> None:
    """Else their disk space is not free before the mount ends. What was read goes on being readable from the trash."""
    source = tmp_path / "source"
    source.write_bytes(np.random.default_rng(1).bytes(8 << 20))
    with Store.create(tmp_path / "store", durability="none") as store:
        removed = store.put(str(source), Label("web01")).id
    with mounted(tmp_path) as own, open(own.system / "latest" / "image", "rb") as image:
        assert image.read() == source.read_bytes()
        processes = [own.process.pid, *children(own.process.pid)]

        def still_open() -> list[str]:
            links = [link for process in processes for link in Path(f"/proc/{process}/fd").iterdir()]
            return [name for name in map(os.readlink, links) if name.endswith((".pack", ".pack (deleted)"))]

        assert still_open()
        own.store.remove([removed])
        collect(own.store, dry_run=False, progress=SILENT)
        until = time.monotonic() + 40
        while still_open():
            assert time.monotonic() < until, still_open()
            time.sleep(0.5)
        os.posix_fadvise(image.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        image.seek(0)
        assert image.read() == source.read_bytes()


def test_processes_that_read_ahead_end_with_the_mount(home: Path, served: Mounted, tmp_path: Path) -> None:
    """They stand what ends it, such as a Ctrl-C, which reaches all of a terminal, and not its death."""
    (tmp_path / "store").symlink_to(home / "store")
    with mounted(tmp_path) as own:
        readers = children(own.process.pid)
        for reader in readers:
            wait_until_it_ignores(reader, signal.SIGHUP)  # the last that it begins to ignore
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(reader, number)
        assert (own.system / "latest" / "image").read_bytes() == (home / "v1").read_bytes()
        assert children(own.process.pid) == readers
        for reader in readers:
            kept = {os.readlink(link) for link in Path(f"/proc/{reader}/fd").iterdir()}
            assert not {name for name in kept if str(tmp_path) in name and "/packs/" not in name}, "nothing stays busy"
    wait_until_gone(readers)
    killed = Mounted(tmp_path)
    readers = children(killed.process.pid)
    killed.process.kill()
    killed.process.wait(WAIT)
    killed.store.close()
    wait_until_gone(readers)
    run("fusermount3", "-uz", killed.point)


@pytest.mark.parametrize("most", [0, 1])
def test_no_processes_can_be_had(served: Mounted, home: Path, tmp_path: Path, most: int) -> None:
    """A system that lets a user have no more of them, which root can't be shown by a limit: the first, or the second, fork fails."""
    script = tmp_path / "script"
    script.write_text(f"""
import os, sys
fork, left = os.fork, [{most}]
def few():
    left[0] -= 1
    if left[0] < 0:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork, os.cpu_count = few, lambda: 2
{SERVE}""")
    with tempfile.TemporaryDirectory() as point:
        command = [sys.executable, str(script), str(home / "store"), point, "-f"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            until = time.monotonic() + WAIT
            while not os.path.ismount(point) and time.monotonic() < until:
                time.sleep(0.05)
            run("cmp", Path(point) / "machines/web01/system/latest/image", home / "v1")
            assert len(children(process.pid)) == most
            process.terminate()
            assert process.communicate(timeout=WAIT)[1].count("cannot start prefetch processes") == (not most) and process.returncode == 0


def test_images_that_end_within_a_window(served: Mounted, tmp_path: Path) -> None:
    """Read in order, after one that is full of data: nothing of that is seen in its holes or at its end."""
    full, source = os.urandom(9 * MB), tmp_path / "source"
    for size, data in ((9 * MB, full), (5 * MB + 7, b""), (5 * MB + 7, full[: 2 * MB]), (8 * MB - 1, full[:5000])):
        with open(source, "wb") as file:
            file.truncate(size)
            file.seek(size - len(data))
            file.write(data)
        version = served.store.put(str(source), Label("web01", application="ends"))
        run("cmp", served.point / "ids" / version.id / "image", source)


def test_what_was_read_comes_from_the_page_cache(served: Mounted, home: Path) -> None:
    """While the process that serves the mount is stopped, so that it can't be asked."""
    with open(served.system / "latest" / "image", "rb") as first:
        assert first.read() == (home / "v1").read_bytes()
    with open(served.system / "latest" / "image", "rb", buffering=0) as again:  # the pages outlive the file
        asked = threading.Event()

        def go_on() -> None:
            asked.set()
            served.process.send_signal(signal.SIGCONT)

        rescue = threading.Timer(WAIT / 4, go_on)  # nothing else could end a read that waits for the process
        rescue.start()
        served.process.send_signal(signal.SIGSTOP)
        try:
            data = os.pread(again.fileno(), SIZE, 0)
        finally:
            rescue.cancel()
            served.process.send_signal(signal.SIGCONT)
    assert data == (home / "v1").read_bytes()
    assert not asked.is_set()


def test_derived_files_of_a_hibernation_image(served: Mounted, tmp_path: Path) -> None:
    source = tmp_path / "swap"
    source.write_bytes(encode(machine()).device)
    version = served.store.put(str(source), Label("web01", application="slept", kind="hibernation"))
    directory = served.point / "ids" / version.id
    assert sorted(os.listdir(directory)) == sorted(
        ["image", "info.json", "B3SUMS", "memory.elf", "memory.lime", "header.json", "pages.tsv"]
    )
    assert (directory / "memory.elf").read_bytes()[:4] == b"\x7fELF"
    for name in ("memory.elf", "memory.lime", "header.json", "pages.tsv"):
        assert len((directory / name).read_bytes()) == (directory / name).stat().st_size > 0


def test_a_hibernation_image_whose_chunks_are_stored_as_pages(tmp_path: Path) -> None:
    """Its files are those of the same image stored as its bytes; where a block is damaged it is EIO."""
    source = tmp_path / "swap"
    source.write_bytes(encode(machine(pages=900), compression="lzo", threads=3).device)
    with Store.create(tmp_path / "store", durability="none") as store:
        made = store.put(str(source), Label("web01", kind="hibernation"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fuse_store.hibernation.lzo_chunks.lzo.available", lambda: False)
            plain = store.put(str(source), Label("web01", application="plain", kind="hibernation"))
        assert made.chunks > 10 and not plain.chunks
        (pack,) = packs_with(store, made.id) - packs_with(store, plain.id)
    with mounted(tmp_path) as own:
        directories = [own.point / "ids" / version.id for version in (made, plain)]
        run("cmp", directories[0] / "image", source)
        for name in ("image", "memory.elf", "memory.lime", "header.json", "pages.tsv", "B3SUMS"):
            run("cmp", *(directory / name for directory in directories))
        assert (directories[0] / "image").stat().st_blocks == (directories[1] / "image").stat().st_blocks
    (path,) = (tmp_path / "store" / "packs").rglob(f"{pack.hex()}.pack")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with mounted(tmp_path) as own:
        with pytest.raises(OSError) as error:
            (own.point / "ids" / made.id / "image").read_bytes()
        assert error.value.errno == errno.EIO
        run("cmp", own.point / "ids" / plain.id / "image", source)


def test_versions_come_and_go(served: Mounted, home: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"first")
    directory = served.point / "machines" / "web01" / "comes"
    assert not directory.exists()
    first = served.store.put(str(tmp_path / "x"), Label("web01", application="comes"))
    assert (directory / "latest" / "image").read_bytes() == b"first"
    assert not (directory / "latest-verified").exists()
    served.store.record([first.id], "verified")
    assert os.readlink(directory / "latest-verified") == first.version
    assert os.getxattr(directory / first.version, "user.fuse_store.state") == b"verified"
    assert '"verified"' in (directory / first.version / "info.json").read_text()
    (tmp_path / "x").write_bytes(b"second!")
    second = served.store.put(str(tmp_path / "x"), Label("web01", application="comes"))
    assert (directory / "latest" / "image").read_bytes() == b"second!"
    assert os.readlink(directory / "latest-verified") == first.version
    with open(directory / "latest" / "image", "rb") as kept:
        served.store.remove([second.id])
        assert os.readlink(directory / "latest") == first.version
        with pytest.raises(FileNotFoundError):
            (directory / second.version / "image").stat()
        assert kept.read() == b"second!"
    served.store.remove([first.id])
    assert not directory.exists()


@pytest.mark.parametrize(("options", "directory", "file"), [((), 0o700, 0o600), (("--allow-other",), 0o755, 0o644)])
def test_modes_are_those_that_a_copy_should_have(
    served: Mounted, tmp_path: Path, options: tuple[str, ...], directory: int, file: int
) -> None:
    (tmp_path / "x").write_bytes(b"data")
    with Store.create(tmp_path / "store", durability="none") as store:
        store.put(str(tmp_path / "x"), Label("web01"))
    with mounted(tmp_path, *options) as own:
        for path in (own.point, own.point / "machines", own.system, (own.system / "latest").resolve(), own.system / "latest" / "image"):
            assert stat.S_IMODE(path.stat().st_mode) == (directory if path.is_dir() else file), path
        assert not os.access(own.system, os.W_OK)


def test_programs_run_if_that_is_permitted(served: Mounted, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "data").write_bytes(b"echo no program")
    for name in ("world/sleep", "single"):
        shutil.copy("/bin/sleep", tmp_path / name)
    (tmp_path / "world" / "script").write_text('#!/bin/sh\nexec "${0%/*}/sleep" 0\n')
    (tmp_path / "world" / "script").chmod(0o750)
    with Store.create(tmp_path / "store", durability="none") as store:
        for name in ("world", "single"):
            store.put(str(tmp_path / name), Label("web01", application=name))
    for options in ([], ["--exec"]):
        with mounted(tmp_path, *options) as own:
            world, single = (own.system.parent / name / "latest" / "image" for name in ("world", "single"))
            assert stat.S_IMODE((world / "data").stat().st_mode) == 0o600
            for program, *arguments in ((single, "0"), (world / "sleep", "0"), (world / "script",)):
                assert stat.S_IMODE(Path(program).stat().st_mode) == (0o700 if options else 0o600)
                if options:
                    run(program, *arguments)
                else:
                    with pytest.raises(PermissionError):
                        subprocess.run([program, *arguments], check=True)
            with open(world / "data", "rb") as file:
                try:
                    mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
                    assert options
                except PermissionError:
                    assert not options


def test_nothing_can_be_changed(served: Mounted) -> None:
    image = served.system / "latest" / "image"
    for change in (
        lambda: open(image, "r+b").close(),
        lambda: (image.parent / "new").write_bytes(b""),
        image.unlink,
        (served.point / "machines" / "new").mkdir,
        lambda: image.rename(image.parent / "other"),
        lambda: os.truncate(image, 0),
        lambda: os.utime(image, (0, 0)),
        lambda: image.chmod(0o777),
    ):
        with pytest.raises(OSError) as error:
            change()
        assert error.value.errno in (errno.EROFS, errno.EACCES), error.value


# incoming --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def incoming(served: Mounted, request: pytest.FixtureRequest) -> Path:
    """A directory of its own for each test."""
    directory = served.point / "incoming" / "web02" / str(request.node.name)
    directory.mkdir(parents=True)
    return directory


def came(served: Mounted, incoming: Path) -> list[Summary]:
    return [version for version in served.store.summaries() if (version.machine, version.application) == ("web02", incoming.name)]


def test_copied_there(served: Mounted, incoming: Path, home: Path) -> None:
    run("cp", "--sparse=always", home / "v1", incoming / "image.raw")
    (version,) = came(served, incoming)
    latest = served.point / "machines" / "web02" / incoming.name / "latest" / "image"
    run("cmp", home / "v1", latest)
    run("cmp", home / "v1", incoming / "image.raw")
    assert latest.stat().st_blocks == (incoming / "image.raw").stat().st_blocks <= (home / "v1").stat().st_blocks + 64
    run("cp", home / "v0", incoming / "image.raw")
    assert len(came(served, incoming)) == 2, "the same name again is another version"
    run("cmp", home / "v0", latest)
    (incoming / "image.raw").unlink()
    assert len(came(served, incoming)) == 2 and version.id in served.store.ids()
    assert not [name for name in os.listdir(home / "store") if "tmp" in name]


def test_rsync_there(served: Mounted, incoming: Path, home: Path) -> None:
    run("rsync", "-a", f"{home}/several/a", incoming)
    (version,) = came(served, incoming)
    assert (served.point / "ids" / version.id / "image").read_bytes() == b"a" * 5000
    assert os.listdir(incoming) == ["a"]


def test_one_version_from_several_writers(served: Mounted, incoming: Path, home: Path) -> None:
    run("sh", "-c", "{ cat $1/several/a; echo b; } > $0", incoming / "x", home)
    (version,) = came(served, incoming)
    assert (served.point / "ids" / version.id / "image").read_bytes() == b"a" * 5000 + b"b\n"


def test_no_version(served: Mounted, incoming: Path) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", "import sys,time; f=open(sys.argv[1],'wb',0); f.write(b'half'); print(1,flush=True); time.sleep(99)",
         incoming / "killed"], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert killed.stdout is not None and killed.stdout.readline() == b"1\n"
    assert (incoming / "killed").stat().st_size == 4
    killed.kill()
    killed.wait()
    with open(incoming / "removed", "wb") as file:
        file.write(b"half")
        (incoming / "removed").unlink()
    deadline = time.monotonic() + WAIT
    while os.listdir(incoming) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel tells of the last close later
    assert os.listdir(incoming) == [] and came(served, incoming) == []


def test_names_are_checked(served: Mounted, incoming: Path) -> None:
    for name in ("a@b", " x", "x\ny", "é" * 101):
        with pytest.raises(OSError) as error:
            (incoming.parent / name).mkdir()
        assert error.value.errno == errno.EINVAL
    for wrong in (incoming.parent / "file", incoming.parent.parent / "file"):
        with pytest.raises(PermissionError):
            wrong.write_bytes(b"x")
    with pytest.raises(PermissionError):
        (incoming / "deeper").mkdir()


def test_close_tells_that_there_is_no_version(served: Mounted, incoming: Path) -> None:
    with served.store.writing():
        file = open(incoming / "x", "wb", buffering=0)  # noqa: SIM115
        file.write(b"data")
        with pytest.raises(OSError) as error:
            file.close()
        assert error.value.errno == errno.EBUSY
    assert came(served, incoming) == []
    (incoming / "x").write_bytes(b"data")
    assert len(came(served, incoming)) == 1


def test_without_writable_there_is_no_incoming(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", durability="none").close()
    with mounted(tmp_path) as own:
        assert sorted(os.listdir(own.point)) == ["ids", "kinds", "machines"]
        with pytest.raises(OSError) as error:
            (own.point / "incoming").mkdir()
        assert error.value.errno == errno.EROFS


# damage, ends, users ---------------------------------------------------------------------------------------------------


def test_damage(tmp_path: Path) -> None:
    """A flipped bit is EIO and a line in the log; everything else stays readable."""
    (path,) = corpus.versions(tmp_path, 1, 8 * MB)
    (tmp_path / "good").write_bytes(b"good" * 10_000)
    with Store.create(tmp_path / "store", durability="none") as store:
        bad = store.put(str(path), Label("web01"))
        (pack,) = (tmp_path / "store" / "packs").rglob("*.pack")
        content = bytearray(pack.read_bytes())
        good = store.put(str(tmp_path / "good"), Label("web01", application="good"))
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    with mounted(tmp_path) as own:
        image = own.system / "latest" / "image"
        with pytest.raises(OSError) as error:
            image.read_bytes()
        assert error.value.errno == errno.EIO
        expected, failed = path.read_bytes(), 0
        with open(image, "rb", buffering=0) as file:
            for at in range(0, 8 * MB, 4096):
                try:
                    assert os.pread(file.fileno(), 4096, at) == expected[at : at + 4096]
                except OSError as unreadable:
                    assert unreadable.errno == errno.EIO
                    failed += 1
        assert 0 < failed <= 64, "one block has at most 64 pages"
        with pytest.raises(OSError) as error:
            (own.system / "latest" / "B3SUMS").read_bytes()
        assert error.value.errno == errno.EIO
        assert (own.point / "ids" / good.id / "image").read_bytes() == b"good" * 10_000
        assert (own.system / "latest" / "info.json").read_text()
        lines = [line for line in own.log.read_text().splitlines() if "damaged" in line]
        assert lines and all(f"image {bad.id}" in line and "extent 0x" in line for line in lines)
        assert any(f"pack {pack.stem}" in line for line in lines)
        assert all(f"/machines/web01/system/{bad.version}/image at offset " in line for line in lines if "image at" in line)
        assert any("image at offset" in line for line in lines)
        assert len(lines) <= failed + 10, "the same damage is not told with each read"
        assert "Traceback" not in own.log.read_text()


def test_damage_takes_no_memory(tmp_path: Path) -> None:
    """An error must not keep what was read when it came up: here every block is damaged, and is read again and again."""
    source, point = tmp_path / "source", tmp_path / "mount"
    source.write_bytes(os.urandom(64 * MB))
    point.mkdir()
    with Store.create(tmp_path / "store", encryption=False, durability="none") as store:
        store.put(str(source), Label("m"))
    for pack in (tmp_path / "store" / "packs").glob("*/*.pack"):
        with open(pack, "r+b") as file:
            for at in range(BLOCK // 2, pack.stat().st_size - MB, BLOCK):
                file.seek(at)
                file.write(b"damage")
    command = [sys.executable, "-m", "fuse_store.cli", "--store", str(tmp_path / "store"), "mount", "-f", str(point)]
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until = time.monotonic() + WAIT
            while not os.path.ismount(point):
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.05)
            taken = [_read_what_can_be(point / "machines/m/system/latest/image", process.pid) for _time in range(6)]
        finally:
            process.terminate()
            process.wait(WAIT)
    assert taken[-1] - taken[1] < 32 * MB, [size // MB for size in taken]


def _read_what_can_be(image: Path, process: int) -> int:
    """Read a damaged image as a whole; the bytes that the mount's processes then have for themselves."""
    errors = 0
    with open(image, "rb", buffering=0) as file:
        for at in range(0, image.stat().st_size, MB):
            try:
                os.pread(file.fileno(), MB, at)
            except OSError as error:
                assert error.errno == errno.EIO
                errors += 1
    assert errors >= 60
    status = [Path(f"/proc/{pid}/status").read_text() for pid in (process, *children(process))]
    return sum(int(text.partition("RssAnon:")[2].split()[0]) << 10 for text in status)


def test_unmounted_while_reading(tmp_path: Path) -> None:
    (path,) = corpus.versions(tmp_path, 1, 64 * MB)
    with Store.create(tmp_path / "store", durability="none") as store:
        store.put(str(path), Label("web01"))
    with mounted(tmp_path) as own:
        reader = subprocess.Popen(
            ["sh", "-c", "while cat $0 > /dev/null; do echo 1; done", str(own.system / "latest" / "image")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert reader.stdout is not None and reader.stdout.readline() == b"1\n"
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait(WAIT) == 0, own.log.read_text()
        reader.wait(WAIT)  # cat has an error, and the loop ends
        assert "Traceback" not in own.log.read_text()


def test_background_with_closed_standard_streams(served: Mounted, home: Path, tmp_path: Path) -> None:
    shell = 'exec "$@" <&- >&- 2>&-'
    run("sh", "-c", shell, "sh", sys.executable, "-m", "fuse_store.cli", "--store", home / "store", "mount", tmp_path)
    try:
        run("cmp", tmp_path / "machines/web01/system/latest/image", home / "v1")
    finally:
        run("fusermount3", "-u", tmp_path)


def test_background(tmp_path: Path) -> None:
    """The command returns when the mount answers; ``fusermount3 -u`` ends the process. A relative store path is as good."""
    (tmp_path / "x").write_bytes(b"data")
    (tmp_path / "mount").mkdir()
    with Store.create(tmp_path / "store", durability="none") as store:
        store.put(str(tmp_path / "x"), Label("web01"))
    for directory in (str(tmp_path / "store"), "store"):
        run(sys.executable, "-c", SERVE, directory, "mount", cwd=tmp_path, timeout=WAIT)
        assert (tmp_path / "mount" / "machines" / "web01" / "system" / "latest" / "image").read_bytes() == b"data"
        again = subprocess.run(
            [sys.executable, "-c", SERVE, directory, "mount"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=WAIT
        )
        assert again.returncode and "not empty" in again.stderr
        run("fusermount3", "-u", tmp_path / "mount")
        assert os.listdir(tmp_path / "mount") == []


def test_where_it_is_not_mounted(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", durability="none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for directory, error, says in (
        ("nothing", NotFound, "does not exist"),
        ("full/x", UsageError, "not a directory"),
        ("full", Refused, "not empty"),
        ("store/trash", Refused, "inside the store"),
    ):
        with pytest.raises(error, match=says):
            mount(store, tmp_path / directory, foreground=True)
    store.close()


OTHER = """
set -e
mkdir -p "$1/dev"
mknod -m 666 "$1/dev/fuse" c 10 229
mount --bind "$1/dev/fuse" /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups env -i PATH="$PATH" HOME="$1/home" "$2" -c "$3" "$1/home"
"""
AS_OTHER = """
import os, subprocess, sys
from fuse_store.maintenance.gc import collect
from fuse_store.mount import Access, mount
from fuse_store.progress import SILENT
from fuse_store.store import Label, Store
os.chdir(sys.argv[1])
assert os.geteuid() == 65534
open("x", "wb").write(b"data" * 1000)
os.mkdir("mount")
with Store.create("store", durability="none") as store:
    store.put("x", Label("web01"))
    mount(store, "mount", foreground=False, access=Access(writable=True))
image = "mount/machines/web01/system/latest/image"
assert open(image, "rb").read() == b"data" * 1000
assert os.stat(image).st_uid == 65534
for options in ("-r", "-a"):
    subprocess.run(["cp", options, "mount/machines", "copied"], check=True)
    with open("copied/web01/system/latest/image", "r+b") as copied:
        copied.write(b"changed")
    subprocess.run(["rm", "-r", "copied"], check=True, stdin=subprocess.DEVNULL)
os.mkdir("mount/incoming/web01/mine")
subprocess.run(["cp", "x", "mount/incoming/web01/mine/"], check=True)
assert open("mount/machines/web01/mine/latest/image", "rb").read() == b"data" * 1000
subprocess.run(["fusermount3", "-u", "mount"], check=True)
print("done")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests ran as a user who is not root")
def test_as_another_user() -> None:
    """In a mount namespace of its own, where /dev/fuse is open to all, as it is on a machine with udev."""
    directory = tempfile.mkdtemp()  # tmp_path is closed to others
    try:
        os.chmod(directory, 0o755)
        (Path(directory) / "home").mkdir()
        os.chown(Path(directory) / "home", 65534, 65534)
        script = textwrap.dedent(AS_OTHER)
        assert run("unshare", "-m", "sh", "-c", OTHER, "sh", directory, sys.executable, script, timeout=WAIT) == "done\n"
    finally:
        shutil.rmtree(directory)
