# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether something else has a file or a block device in use.

Of a file the kernel knows: a file lease (fcntl(2), F_SETLEASE) is granted only while no one else has it open or mapped, be it a
process, a loop device or swap. While it is held, a process that opens the file waits, for 45 seconds by default. What has a block device
mounted, as swap, or as part of another device claims it, and open(2) with O_EXCL fails. Loop devices and virtual machines claim
nothing, so they are looked for in /sys and /proc. Not seen: another machine, on a network file system or a shared disk; processes
that this one may not look at. For one thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fuse_store.errors import Refused

PATIENCE = 0.5  # seconds: a loop device is detached some time after the command says so
ENDING = 15.0  # seconds: so does a process end, and a virtual machine gives back its memory before its files
PASSING = 1.0  # seconds for which programs that look at devices, such as losetup(8) and udev, may have one open
_LOOP_GET_STATUS64 = 0x4C05  # include/uapi/linux/loop.h
_LOOP_INFO = struct.Struct("<QQQ208x")  # lo_device, lo_inode, lo_rdevice
_SYS_BLOCK = Path("/sys/block")
_SYS_NUMBERS = Path("/sys/dev/block")
_PROCESSES = Path("/proc")
_SWAPS = Path("/proc/swaps")
_PF_EXITING = 0x4  # include/linux/sched.h
_OWN_OUTPUT = {1: "standard output", 2: "standard error"}

T = TypeVar("T")


# files -------------------------------------------------------------------------------------------------------------------


def hold_alone(descriptor: int, path: Path) -> None:
    """Make sure that no one else has a file open, until the descriptor is closed: others who open it wait. Raises Refused, also
    where that cannot be known."""
    try:
        alone = has_lease(descriptor, fcntl.F_WRLCK, PATIENCE)
    except PermissionError:
        raise Refused(
            f"file {path}", "belongs to another user, so it cannot be known whether a program has it open.",
            "Run the command as root, or as the owner.",
        ) from None  # fmt: skip
    except OSError:
        raise Refused(
            f"file {path}", "its filesystem has no file leases, so it cannot be known whether a program has it open.",
            "Write to a copy on a local filesystem, and copy it back.",
        ) from None  # fmt: skip
    if not alone:
        raise Refused(f"file {path}", *_use_of(descriptor, path))


def check_alone(descriptor: int, path: Path) -> None:
    """Raises Refused if someone who waited for the file since ``hold_alone`` has it open now."""
    if fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_WRLCK:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)  # lets in who waits, if he still does
        hold_alone(descriptor, path)


def is_alone(descriptor: int) -> bool:
    """Whether no one else has a file open, as far as can be known; if so, until the descriptor is closed."""
    try:
        return has_lease(descriptor, fcntl.F_WRLCK, PATIENCE)
    except OSError:
        return False


def check_replaceable(descriptor: int, path: Path) -> None:
    """Raises Refused if someone has a file open for writing, and would go on with it after another took its name. Whether
    someone has is not known of a file of another user, or where there are no leases. ``descriptor`` is open for reading alone."""
    try:
        replaceable = _loop_on(descriptor) is None and has_lease(descriptor, fcntl.F_RDLCK, PATIENCE)
    except OSError:
        return
    if not replaceable:
        raise Refused(f"target {path}", *_use_of(descriptor, path))
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def take_lease(descriptor: int, kind: int) -> bool:
    """Whether a lease was granted: F_WRLCK if no one else has the file open, F_RDLCK if no one has it open for writing, who may be this
    process. Raises PermissionError for another user's file, OSError where there are no leases."""
    # Who opens the file has this process told by a signal. By default it is SIGIO, which kills; this one is ignored.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, kind)
        return True
    except BlockingIOError:
        return False


def has_lease(descriptor: int, kind: int, seconds: float = 0) -> bool:
    """``take_lease``, after a use that passes in so many seconds, or that of processes that are ending."""
    return not _lasting(lambda: not take_lease(descriptor, kind), seconds)


def writer_of(descriptor: int, path: Path | str) -> tuple[str, str]:
    """(what has a file open for writing, what to do first), as parts of sentences, for a message."""
    if loop := _loop_on(descriptor):
        return f"behind the loop device {loop}, which may be written to", f"Detach it (losetup -d /dev/{loop})"
    if _is_swap(path):
        return "in use as swap", f"Run 'swapoff {path}'"
    for own, name in _OWN_OUTPUT.items():
        with contextlib.suppress(OSError):
            if os.path.sameopenfile(descriptor, own):
                return f"the {name} of this command", f"Redirect the {name} to another file"
    user = next((_name_of(process) for process, link in _opened(path) if _writes(link)), "a program")
    return f"open for writing in {user}", "Stop the program that writes to it"


def _lasting(use: Callable[[], T], seconds: float) -> T:
    """A use that does not pass in so many seconds, or with processes that are ending; what ``use`` says of none otherwise."""
    start = time.monotonic()
    while (found := use()) and (passed := time.monotonic() - start) <= (ENDING if passed > seconds and _processes_end() else seconds):
        time.sleep(0.05)
    return found


def _processes_end() -> bool:
    """Whether a process is ending, which has files open until its last thread has ended, though /proc shows none of them."""
    return any(_is_ending(process) for process in _PROCESSES.iterdir() if process.name.isdigit())


def _is_ending(process: Path) -> bool:
    try:
        fields = (process / "stat").read_text(errors="surrogateescape").rpartition(")")[2].split()
        flags = int(fields[6])
        return bool(flags & _PF_EXITING) and (fields[0] not in "ZX" or len(list((process / "task").iterdir())) > 1)
    except (OSError, ValueError, IndexError):
        return False  # ended since


def _use_of(descriptor: int, path: Path) -> tuple[str, str]:
    """What has a file open, and what to do, for a message."""
    if loop := _loop_on(descriptor):
        return f"behind the loop device {loop}.", f"Detach it first: losetup -d /dev/{loop}."
    if _is_swap(path):
        return "in use as swap.", f"Run first: swapoff {path}"
    user = next((_name_of(process) for process, _link in _opened(path)), "another program")
    return f"open in {user}.", "Stop it first, if it is a virtual machine that uses the file."


def _is_swap(path: Path | str) -> bool:
    start = f"{os.path.realpath(path)} "
    return _SWAPS.exists() and any(line.startswith(start) for line in _SWAPS.read_text(errors="surrogateescape").splitlines())


def _opened(path: Path | str) -> Iterator[tuple[Path, Path]]:
    """(process, link to the file) of those that have a file open, or mapped shared for writing."""
    resolved = os.path.realpath(path)
    return ((process, link) for process, link, target in _open_files() if target == resolved)


def _loop_on(descriptor: int) -> str | None:
    """The loop device that stands on an open file."""
    status = os.fstat(descriptor)
    return next((loop.name for loop in _loops() if loop.file == (status.st_dev, status.st_ino)), None)


# block devices -----------------------------------------------------------------------------------------------------------


def check_device(descriptor: int, path: Path) -> None:
    """Raises Refused if a loop device stands on a block device, or a process has it open for writing; or the disk that it is
    a partition of, or a partition of it."""
    try:
        numbers = _family(os.fstat(descriptor).st_rdev)
    except (OSError, ValueError):
        raise Refused(f"device {path}", "/sys does not tell what stands on it.", "Mount sysfs.") from None
    loops = list(_loops())
    own = [loop for loop in loops if loop.number in numbers]  # the device is one: another on the same file would be in the way
    files, devices = {loop.file for loop in own}, numbers | {loop.device for loop in own if loop.device}
    for loop in loops:
        if loop not in own and (loop.device in devices or loop.file in files):
            raise Refused(f"device {path}", f"in use: {loop.name} stands on it.", f"Detach it first: losetup -d /dev/{loop.name}.")
    if user := _lasting(lambda: _writer_of(numbers), PASSING):
        raise Refused(f"device {path}", f"open for writing in {user}.", "Stop what uses it.")


def _family(number: int) -> set[int]:
    """The numbers of a block device, of its disk if it is a partition, of its partitions if it is a disk."""
    own = (_SYS_NUMBERS / f"{os.major(number)}:{os.minor(number)}").resolve()
    members = [own, own.parent] if (own / "partition").exists() else [own, *(part.parent for part in own.glob("*/partition"))]
    return {number} | {os.makedev(*map(int, (member / "dev").read_text().split(":"))) for member in members}


@dataclass(frozen=True)
class _Loop:
    """A loop device, and what it stands on: device and inode of a file; the number of a block device, else 0."""

    name: str
    number: int
    file: tuple[int, int]
    device: int


def _loops() -> Iterator[_Loop]:
    for backing in sorted(_SYS_BLOCK.glob("loop*/loop/backing_file")):
        name = backing.parents[1].name
        try:
            number = os.makedev(*map(int, (backing.parents[1] / "dev").read_text().split(":")))
            yield _Loop(name, number, *_backing(name, backing))
        except (OSError, ValueError):
            continue  # detached since


def _backing(name: str, backing: Path) -> tuple[tuple[int, int], int]:
    """By the device itself, which knows a file that was removed or is not in sight; or by the path, for who may not open it."""
    try:
        descriptor = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        status = os.stat(backing.read_text(errors="surrogateescape").rstrip("\n"))
        return (status.st_dev, status.st_ino), status.st_rdev if stat.S_ISBLK(status.st_mode) else 0
    try:
        device, inode, number = _LOOP_INFO.unpack(fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO.size)))
        return (device, inode), number
    finally:
        os.close(descriptor)


def _writer_of(numbers: set[int]) -> str:
    """A process that has one of these block devices open for writing; empty if none is seen."""
    for process, link, target in _open_files():
        if target.startswith("/dev/") and _is_written(link, numbers):  # to look at what is elsewhere could take long
            return _name_of(process)
    return ""


def _is_written(link: Path, numbers: set[int]) -> bool:
    try:
        status = link.stat()
        if not stat.S_ISBLK(status.st_mode) or status.st_rdev not in numbers:
            return False
    except OSError:
        return False  # closed since
    return _writes(link)


def _writes(link: Path) -> bool:
    """Whether a file that a process has open is open for writing."""
    if link.parent.name == "map_files":
        return True
    try:
        fields = dict(line.split(":\t", 1) for line in (link.parents[1] / "fdinfo" / link.name).read_text().splitlines() if ":\t" in line)
        return int(fields["flags"], 8) & os.O_ACCMODE != os.O_RDONLY
    except (OSError, KeyError, ValueError):
        return False  # closed since


# processes ---------------------------------------------------------------------------------------------------------------


def _open_files() -> Iterator[tuple[Path, Path, str]]:
    """(process, link to the file, where it points) of what other processes have open, or mapped shared for writing."""
    for process in _PROCESSES.iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        for link in _links(process):
            try:
                yield process, link, os.readlink(link)
            except OSError:
                continue


def _links(process: Path) -> list[Path]:
    try:
        links = list((process / "fd").iterdir())
        maps = [line.split(maxsplit=2) for line in (process / "maps").read_text(errors="surrogateescape").splitlines() if "/dev/" in line]
    except OSError:  # ended since, or another user's
        return []
    return links + [process / "map_files" / line[0] for line in maps if line[1].startswith("rw") and line[1].endswith("s")]


def _name_of(process: Path) -> str:
    try:
        return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    except OSError as error:
        return "another program" if error.errno != errno.ESRCH else "a program that has ended"
