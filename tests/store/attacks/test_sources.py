# SPDX-License-Identifier: GPL-3.0-or-later
"""Who owns the folder that is stored, or writes to what is stored while it is read; who reads the disk of a writable mount."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fuse_store.errors import Refused, StoreError, UsageError
from fuse_store.image.inputs import open_input
from fuse_store.image.targets import usage
from fuse_store.mount.spool import UNIT, Spool
from fuse_store.store import Label, Store
from tests.fuzz.swsusp_encoder import encode, machine
from tests.store.conftest import busy, content, loop_device, opened, opened_to_read, read_whole, run, small_filesystem
from tests.store.image.test_inputs import Meanwhile

SECRET = b"the secret of another user" * 1000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", durability="none")


def many(folder: Path) -> Path:
    """A folder whose file ``sub/z`` is opened long after it was listed."""
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(content(range(1, 300)))
    (folder / "sub/z").write_bytes(b"harmless")
    return folder


@pytest.mark.parametrize("what", ["link", "link to a folder above", "FIFO", "another file", "hard link to another file", "the file again"])
def test_what_takes_the_place_of_a_listed_file_is_not_read(tmp_path: Path, store: Store, small: None, what: str) -> None:
    """Nor waited for, with the writer lock held."""
    folders, other = [many(tmp_path / "folder"), many(tmp_path / "allowed")], tmp_path / "elsewhere"
    other.mkdir()
    (other / "z").write_bytes(SECRET)

    def swap(folder: Path) -> None:
        gone = tmp_path / f"gone from {folder.name}"
        if what == "link to a folder above":
            (folder / "sub").rename(gone)
            (folder / "sub").symlink_to(other)
            return
        (folder / "sub/z").rename(gone)
        if what == "link":
            (folder / "sub/z").symlink_to(other / "z")
        elif what == "FIFO":
            os.mkfifo(folder / "sub/z")
        elif what == "hard link to another file":
            (folder / "sub/z").hardlink_to(other / "z")
        else:
            (folder / "sub/z").write_bytes(SECRET if what == "another file" else b"harmless")

    with pytest.raises(StoreError, match=r"(changed|replaced|gone) while being read"):
        store.put(str(folders[0]), Label("m"), progress=Meanwhile(lambda: swap(folders[0])))
    with pytest.raises(StoreError, match="while being read"), open_input(str(folders[1]), allow_changing=True) as opened:
        store.put(opened, Label("m"), progress=Meanwhile(lambda: swap(folders[1])))  # that is no change that one can allow
    assert store.ids() == []


def test_a_file_that_was_read_already_may_not_change_before_the_last_one_is(tmp_path: Path, store: Store, small: None) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"account: 100")
    (folder / "b").write_bytes(content(range(1, 300)))
    at = (folder / "a").stat()

    def change() -> None:
        (folder / "a").write_bytes(b"account: 200")
        os.utime(folder / "a", ns=(at.st_atime_ns, at.st_mtime_ns))

    with pytest.raises(StoreError, match=str(folder / "a")):
        store.put(str(folder), Label("m"), progress=Meanwhile(change))
    assert store.ids() == []


def test_a_new_file_is_a_change_too(tmp_path: Path, store: Store, small: None) -> None:
    folder = many(tmp_path / "folder")
    with pytest.raises(StoreError, match="new"):
        store.put(str(folder), Label("m"), progress=Meanwhile(lambda: (folder / "new").write_bytes(b"x")))


# changes that no time tells of -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [False, True])
def test_a_file_that_is_mapped_for_writing(tmp_path: Path, store: Store, closed: bool) -> None:
    """Its times do not change again once a page is dirty."""
    source = tmp_path / "source"
    source.write_bytes(content(range(1, 100)))
    descriptor = os.open(source, os.O_RDWR)
    with mmap.mmap(descriptor, 0) as mapped:
        if closed:
            os.close(descriptor)
        mapped[:4] = b"torn"
        with pytest.raises(Refused, match=r"open for writing in a program.*--allow-changing"):
            store.put(str(source), Label("m"))
        assert store.ids() == []
        warnings: list[str] = []
        with open_input(str(source), allow_changing=True) as opened:
            made = store.put(opened, Label("m"), warn=warnings.append)
        assert made.tags == {"consistent": "unknown"} and len(warnings) == 1 and str(source) in warnings[0]
    if not closed:
        os.close(descriptor)
    assert store.put(str(source), Label("m")).tags == {}


_ENDING = """
import ctypes, sys, threading, time
file = open(sys.argv[1], "r+b")
threading.Thread(target=time.sleep, args=(float(sys.argv[2]),)).start()
print(flush=True)
ctypes.CDLL(None).syscall(ctypes.c_long(60), 0)  # exit(2) on x86-64: of the first thread alone
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of the system call is x86-64's")
def test_a_process_that_is_ending_is_waited_for(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first thread has ended, so that /proc shows no open file of it; the last has not, as in a virtual machine that was cut off."""
    source = tmp_path / "source"
    source.write_bytes(content(range(1, 100)))
    with subprocess.Popen([sys.executable, "-c", _ENDING, str(source), "3"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        with monkeypatch.context() as patched, pytest.raises(Refused, match="open for writing in a program"):
            patched.setattr(usage, "ENDING", 0)
            store.put(str(source), Label("m"))
        assert store.put(str(source), Label("m")).tags == {}


def test_a_source_that_is_in_use_is_refused_by_name(tmp_path: Path, store: Store) -> None:
    """What uses it, and what to do about that."""
    source = tmp_path / "source"
    source.write_bytes(content(range(1, 100)))

    def refused(match: str) -> None:
        with pytest.raises(Refused, match=match):
            store.put(str(source), Label("m"))

    with busy(lambda: opened(source)) as process:
        refused(rf"open for writing in \S+ \(process {process}\)\. Stop the program")
    with busy(lambda: opened_to_read(source)):
        assert store.put(str(source), Label("m")).tags == {}
    with loop_device(source, source.stat().st_size) as device:
        refused(rf"behind the loop device {device.name}, which may be written to\. Detach it \(losetup -d {device}\)")
    words = [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", str(source), "--machine", "m"]
    with open(source, "r+b") as output:
        done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5 and "the standard output of this command. Redirect the standard output to another file" in done.stderr


@pytest.mark.parametrize("source", ["/proc/cpuinfo", "/proc/self/cmdline", "/sys/kernel/uevent_seqnum", "/proc/version"])
def test_a_file_that_does_not_tell_its_size_is_refused(store: Store, source: str) -> None:
    """It would be stored as an empty one."""
    with pytest.raises(UsageError, match=rf"{source}: does not tell its size.*--command cat {source}$"):
        store.put(source, Label("m"))
    assert store.ids() == []


def test_a_program_that_opens_a_file_for_writing_waits_for_a_moment_and_is_noticed(tmp_path: Path, store: Store, small: None) -> None:
    source = tmp_path / "source"
    source.write_bytes(content(range(1, 400)))
    written = source.stat()
    opened = threading.Event()

    def write() -> None:
        with open(source, "r+b") as file:  # returns when the lease is given back
            opened.set()
            file.write(b"torn")
        os.utime(source, ns=(written.st_atime_ns, written.st_mtime_ns))

    writer = threading.Thread(target=write)

    def act() -> None:  # nothing is read meanwhile
        writer.start()
        assert opened.wait(10)

    with pytest.raises(StoreError, match="changed while being read: it was opened for writing"):
        store.put(str(source), Label("m"), progress=Meanwhile(act))
    writer.join()
    assert store.ids() == []


def test_a_file_of_another_user_is_stored_and_marked(tmp_path: Path, store: Store) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    code = (
        "import os,sys\nfrom fuse_store.image.inputs import open_input\nos.setresgid(65534,65534,65534)\nos.setresuid(65534,65534,65534)\n"
        "with open_input(sys.argv[1]) as i:\n  list(i.batches(4096)); print(dict(i.tags), i.warnings)"
    )
    for above in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(above, 0o755)
    said = run(sys.executable, "-c", code, str(source))
    assert "{'consistent': 'unknown'}" in said and "another user's file" in said


def test_a_mounted_device_is_refused_or_marked(tmp_path: Path, store: Store) -> None:
    with small_filesystem(tmp_path / "disk", 8 << 20) as mounted:
        device = run("findmnt", "-no", "SOURCE", str(mounted)).strip()
        if not device.startswith("/dev/"):
            pytest.fail("there are no loop devices here")
        with pytest.raises(Refused, match=r"in use.*--allow-changing"):
            store.put(device, Label("m", kind="disk"))
        assert store.ids() == []
        with open_input(device, allow_changing=True) as opened:
            made = store.put(opened, Label("m", kind="disk"))
        assert made.tags == {"consistent": "unknown"}


def test_a_device_that_is_written_to_while_it_is_read(tmp_path: Path, store: Store, small: None) -> None:
    """By a program that does not ask for it alone, as dd does; its times never change."""
    (tmp_path / "disk").write_bytes(content(range(1, 400)))
    with loop_device(tmp_path / "disk", 4 << 20) as device:
        writer = os.open(device, os.O_WRONLY)

        def act() -> None:
            os.pwrite(writer, b"torn", 0)

        with pytest.raises(StoreError, match="changed while being read"):
            store.put(str(device), Label("m", kind="disk"), progress=Meanwhile(act))
        with open_input(str(device), allow_changing=True) as opened:
            made = store.put(opened, Label("m", kind="disk"), progress=Meanwhile(lambda: os.pwrite(writer, b"again", 0)))
        assert made.tags == {"consistent": "no"}
        os.close(writer)
        assert store.put(str(device), Label("m", kind="disk")).tags == {}


# what is on the disk ---------------------------------------------------------------------------------------------------


def test_a_spool_has_nothing_in_the_clear(tmp_path: Path) -> None:
    """What a writable mount receives is in a file of the store's disk until it is stored."""
    spool = Spool(tmp_path)
    at = [0, UNIT - 100, 5 * UNIT + 7]
    for offset in at:
        spool.write(SECRET, offset)
    spool.write(SECRET, 7 * UNIT)  # the one before it leaves the memory
    on_disk = Path(f"/proc/self/fd/{spool._file.fileno()}").read_bytes()
    assert len(on_disk) > 5 * UNIT and SECRET[:26] not in on_disk and SECRET[13:20] not in on_disk
    assert all(spool.read(offset, len(SECRET)) == SECRET for offset in at)
    again = on_disk[:UNIT]
    spool.write(SECRET, 0)
    spool.write(b"x", 7 * UNIT)
    assert Path(f"/proc/self/fd/{spool._file.fileno()}").read_bytes()[:UNIT] != again, "the same nonce"
    spool.close()


# pipes -----------------------------------------------------------------------------------------------------------------


def interrupted_pipe(store: Store, *more: str) -> subprocess.CompletedProcess[str]:
    """4.8 of 20 MB come, then the producer dies."""
    script = 'head -c 4800000 /dev/urandom | "$@"'
    command = [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", "-", "--machine", "m", *more]
    return subprocess.run(["sh", "-c", script, "sh", *command], capture_output=True, text=True, check=False)


def test_a_pipe_that_breaks_replaces_nothing(tmp_path: Path, store: Store) -> None:
    (tmp_path / "good").write_bytes(content(range(1, 50)))
    good = store.put(str(tmp_path / "good"), Label("m"))
    for more in (["--replace"], ["--replace", "--size", "20000000"], ["--size", "20MiB"], ["--replace", "--kind", "hibernation"]):
        done = interrupted_pipe(store, *more)
        assert done.returncode == 5 and done.stdout == "" and done.stderr.count("\n") == 1, more
        assert store.ids() == [good.id]
    assert read_whole(store, good.id) == (tmp_path / "good").read_bytes()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("head -c 4800000 /dev/urandom; exit 3", 1), ("head -c 4800000 /dev/urandom; kill -9 $$", 1), ("", 5), ("exit 1", 1),
    ],
)  # fmt: skip
def test_a_command_that_fails_makes_no_version(tmp_path: Path, store: Store, script: str, code: int) -> None:
    (tmp_path / "good").write_bytes(b"good")
    good = store.put(str(tmp_path / "good"), Label("m"))
    command = [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", "--machine", "m", "--replace", "--command"]
    done = subprocess.run([*command, "sh", "-c", script], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (code, "") and "command sh" in done.stderr
    assert store.ids() == [good.id]
    words = ["sh", "-c", "echo said >&2; echo --json -- \"$1\"; sleep 0.1", "--", "--replace"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr.startswith("said\n"), "what the command says is passed on"
    assert store.ids() == [done.stdout.strip()] and read_whole(store, done.stdout.strip()) == b"--json -- --replace\n"


def test_a_command_ends_with_put(tmp_path: Path, store: Store) -> None:
    pid = tmp_path / "pid"
    command = [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", "--machine", "m", "--command"]
    process = subprocess.Popen([*command, "sh", "-c", f"echo $$ > {pid}; echo x; exec sleep 600"], stderr=subprocess.PIPE)
    while not pid.exists() or not pid.read_text():
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143 and store.ids() == []
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


@pytest.mark.parametrize("given", ["</dev/null", "<&-", "<empty"])
def test_nothing_is_no_image(tmp_path: Path, store: Store, given: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "good").write_bytes(b"good")
    good = store.put(str(tmp_path / "good"), Label("m"))
    command = [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", "-", "--machine", "m"]
    for more in ([], ["--replace"]):
        done = subprocess.run(["sh", "-c", f'"$@" {given}', "sh", *command, *more], capture_output=True, check=False, cwd=tmp_path)
        assert done.returncode == 5 and store.ids() == [good.id]
    done = subprocess.run(["sh", "-c", f'"$@" {given}', "sh", *command, "--size", "0"], capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0 and len(store.ids()) == 2


def paths_that_are_none(store: Store) -> list[Callable[[], object]]:
    from fuse_store.image import restore
    from fuse_store.mount import mount
    from fuse_store.progress import SILENT

    made = store.put(sys.executable, Label("m"))
    image = store.open_image(made.id)
    return [
        lambda: store.put("", Label("m")), lambda: Store.open(""), lambda: Store.create(""), lambda: Store.open(store.path, key_file=""),
        lambda: Store.create(store.path / "new", key_file=""), lambda: restore.get(image, "", SILENT),
        lambda: mount(store, "", foreground=True), lambda: store.put("a\0b", Label("m")),
    ]  # fmt: skip


def test_an_empty_text_is_never_a_path(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the command line, tests/store/cli/test_arguments.py has every verb."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for call in paths_that_are_none(store):
        with pytest.raises(StoreError) as caught:
            call()
        assert caught.value.exit_code == 2
    assert list(here.iterdir()) == [] and len(store.ids()) == 1


def hibernated(tmp_path: Path, compression: str) -> tuple[bytes, Path]:
    encoded = encode(machine(4096, "x86", 1200, seed=1), 4096, "x86", compression)
    device = tmp_path / "device"
    device.write_bytes(encoded.device)
    return bytes(encoded.device), device


@pytest.mark.parametrize("compression", ["none", "lzo"])
def test_a_truncated_hibernation_image_is_refused(tmp_path: Path, store: Store, compression: str) -> None:
    """The image says itself how long it is, also where nothing else does."""
    whole, device = hibernated(tmp_path, compression)
    good = store.put(str(device), Label("m", kind="hibernation"))
    command = [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", "-", "--machine", "m", "--kind", "hibernation"]
    for cut in (len(whole) - 1, len(whole) // 2, 5000):
        for more in ([], ["--replace"]):
            done = subprocess.run([*command, *more], input=whole[:cut], capture_output=True, check=False)
            assert done.returncode == 5 and b"truncated" in done.stderr and store.ids() == [good.id], done.stderr
    os.truncate(device, len(whole) // 2)
    with pytest.raises(Refused, match="truncated"):
        store.put(str(device), Label("m", kind="hibernation"), replace=True)
    done = subprocess.run([*command, "--replace"], input=whole, capture_output=True, check=False)
    assert done.returncode == 0 and store.ids() == [done.stdout.decode().strip()] and good.id not in store.ids()
    assert read_whole(store, store.ids()[0]) == whole


def test_a_swap_file_that_is_not_whole(tmp_path: Path, store: Store) -> None:
    """Its size says nothing of the device that it is on, but the map of the image does."""
    encoded = encode(machine(4096, "x86", 1200, seed=1), 4096, "x86", "none", resume_offset=3)
    command = [sys.executable, "-m", "fuse_store.cli", "--store", str(store.path), "put", "-", "--machine", "m", "--kind", "hibernation"]
    command += ["--tag", "resume_offset=3", "--replace"]
    last = max(encoded.stream) * 4096
    done = subprocess.run(command, input=bytes(encoded.device[: last - 4096]), capture_output=True, check=False)
    assert done.returncode == 5 and b"not whole" in done.stderr and store.ids() == []
    done = subprocess.run(command, input=bytes(encoded.device), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
