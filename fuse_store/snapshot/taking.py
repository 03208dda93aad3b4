# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes a snapshot: the system stands still while its memory is copied to a device, and goes on.

Whatever the frozen part needs is there before: files are open, memory is locked, names are looked up. From the moment when all other
processes are stopped nothing but the device is touched, and no program is started: it would be stopped as well. Every way out of it
frees the image, thaws filesystems and processes, and takes the swap areas into use again. For the main thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import hashlib
import math
import os
import signal
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import FrameType

from fuse_store.errors import Refused, StoreError, UsageError
from fuse_store.formats.swsusp import layout
from fuse_store.hibernation.machine import Machine
from fuse_store.hibernation.swap_device import DeviceContents, SwapDevice, contents_of
from fuse_store.repository.atomic import fault_point
from fuse_store.snapshot import filesystems, swap
from fuse_store.snapshot.kernel import SnapshotDevice
from fuse_store.snapshot.recorder import Recorder

TIME_LIMIT = 120  # seconds for which a system may stand still
SHARE = 0.4  # of the memory that an image should have: the kernel's own /sys/power/image_size
_MCL_CURRENT, _MCL_FUTURE = 1, 2  # include/uapi/asm-generic/mman.h
_RESEED_RANDOM = 0x5207  # RNDRESEEDCRNG of include/uapi/linux/random.h
_IMAGE_SIZE = Path("/sys/power/image_size")
_CACHES = Path("/proc/sys/vm/drop_caches")
_OUT_OF_MEMORY_SCORE = Path("/proc/self/oom_score_adj")


@dataclass(frozen=True)
class Snapshot:
    """``restored``: the system has just been resumed from the image, in place of having made it, as fork(2) returns twice.

    ``id``: of the image, the same both times; ``device``: its stable path; ``armed``: whether the kernel resumes the image at the next
    boot; ``warnings``: what could not be undone. ``size``: bytes of the image; ``memory`` and ``swapped``: bytes of memory that had to be
    in it, and of those what was in swap before; ``pause``: seconds for which the system stood still. A restored system has the sizes of
    0, and no pause.
    """

    restored: bool
    id: str
    device: str
    armed: bool
    warnings: tuple[str, ...] = ()
    size: int = 0
    memory: int = 0
    swapped: int = 0
    pause: float = 0.0


def take(device: Path | str, *, arm: bool = False, rearm: bool = False, replace: bool = False, limit: float = TIME_LIMIT) -> Snapshot:
    """Make an image of the running system on a block device that is not in use.

    ``arm``: have the kernel resume it at the next boot; only where no filesystem on a block device is mounted writable, because what the
    system writes after the snapshot would be lost, and the filesystem destroyed. ``rearm``: the same, and again each time that it has been
    resumed. ``replace``: an armed image on the device may be replaced. ``limit``: seconds after which it is given up. Raises NotFound,
    UsageError, Refused, StoreError, and Damaged if the device does not keep what is written to it; then no image is on it, and the system
    goes on.
    """
    machine = Machine()
    with SwapDevice(device) as target, _direct(target) as direct:
        contents = _replaceable(target, replace)
        points = filesystems.writable(machine)
        if (arm or rearm) and points:
            raise Refused(
                "snapshot", f"cannot be armed: mounted writable, and changing after it: {', '.join(points)}.",
                "Mount read-only what is on block devices, or omit --arm.",
            )  # fmt: skip
        page_size = machine.page_size or os.sysconf("SC_PAGE_SIZE")
        recorder = Recorder(direct, page_size, [(1, target.size // page_size - 1)])
        areas, memory = swap.in_use(machine), Memory.of(machine)
        swapped = sum(area.used for area in areas)
        _check_sizes(target, memory, swapped, recorder.capacity * page_size)
        image_id = _new_id(machine, target.name)
        page = _swap_page(contents, page_size, target.size)
        target.write_checked(0, page)
        fault_point("snapshot begin")
        with swap.out_of_use(areas, machine) as warnings:
            _free_caches(machine)
            image = _image(recorder, points, min(recorder.capacity * page_size, int(memory.total * SHARE)), page_size, limit)
        header = _header(page, recorder.first_map, arm or rearm)
        target.drop_cache()
        if image.restored:
            if rearm:
                target.write_checked(0, header)
            return Snapshot(True, image_id, target.name, rearm, tuple(warnings))
        fault_point("snapshot pages")
        if recorder.read_back(target.read) != recorder.checksum:
            raise target.not_kept(recorder.first_map * page_size)
        target.write_checked(0, header)
        fault_point("snapshot header")
        return Snapshot(False, image_id, target.name, arm or rearm, tuple(warnings), image.size, memory.used, swapped, image.pause)


def _new_id(machine: Machine, device: str) -> str:
    """32 hexadecimal digits. Of times, not at random: a restored system repeats its random numbers, and no time comes twice."""
    times = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    parts = (machine.text("etc/machine-id"), machine.text("proc/sys/kernel/random/boot_id"), device, *times)
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Memory:
    """In bytes: ``total``, what the kernel cannot free and has to be in an image (``used``), and what is in use for anything."""

    total: int
    used: int
    filled: int

    @classmethod
    def of(cls, machine: Machine) -> Memory:
        sizes = machine.memory
        # The kernel itself is not in MemTotal, and is in an image.
        total = (machine.present_pages or 0) * (machine.page_size or 0) or sizes.get("MemTotal", 0)
        filled = total - sizes.get("MemFree", 0)
        caches = sum(sizes.get(name, 0) for name in ("Buffers", "Cached", "SReclaimable")) - sizes.get("Shmem", 0)
        return cls(total, max(0, filled - caches), filled)


def _check_sizes(target: SwapDevice, memory: Memory, swapped: int, capacity: int) -> None:
    """Raises Refused if what is in use, with ``swapped`` bytes in swap, does not fit on the device, or twice in memory."""
    used = memory.used + swapped
    if used > capacity:
        raise Refused(
            f"device {target.path}", f"too small: it has space for {capacity >> 20} MiB, and {used >> 20} MiB are in use.",
            "Use a larger device, or stop programs that need much memory.",
        )  # fmt: skip
    if used > memory.total // 2:
        raise Refused(
            "snapshot", f"{used >> 20} of {memory.total >> 20} MiB of memory are in use, and the kernel copies them within memory.",
            "Stop programs that need much memory, until less than half is in use.",
        )  # fmt: skip


def _free_caches(machine: Machine) -> None:
    """Free caches before the system stands still, if the kernel would have to while it does: an image may have about half of the memory."""
    os.sync()
    memory = Memory.of(machine)
    if memory.filled > memory.total * SHARE:
        with contextlib.suppress(OSError):
            _CACHES.write_text("1")


def _replaceable(target: SwapDevice, replace: bool) -> DeviceContents:
    """What is on the device. Raises Refused unless it may go."""
    contents = contents_of(target)
    if contents.replaceable or (replace and contents.armed and contents.header):
        return contents
    remedy = "Use --replace to replace it." if contents.armed and contents.header else "Name another device."
    raise Refused(f"device {target.path}", f"contains {contents.description}.", remedy)


def _swap_page(contents: DeviceContents, page_size: int, size: int) -> bytes:
    """The header page of the swap area without an image: the one that is there, or a new one, as mkswap(8) writes it."""
    head = bytearray(contents.swap_page or b"")
    if len(head) != page_size:
        head = bytearray(page_size)
        layout.SWAP.pack_into(head, layout.SWAP_AT, 1, size // page_size - 1, 0, uuid.uuid4().bytes, bytes(16))
    return bytes(head[: -layout.TAIL.size]) + layout.TAIL.pack(0, 0, 0, 0, bytes(10), layout.SWAP_SIGNATURES[0])


def _header(page: bytes, first_map: int, armed: bool) -> bytes:
    """The header page of an image whose swap map begins at a block."""
    signature = layout.SIGNATURE if armed else layout.SWAP_SIGNATURES[0]
    tail = layout.TAIL.pack(0, 0, first_map, layout.NOCOMPRESS, layout.SWAP_SIGNATURES[0], signature)
    return page[: -layout.TAIL.size] + tail


@contextlib.contextmanager
def _direct(target: SwapDevice) -> Iterator[int]:
    """A descriptor of the device that passes the kernel's cache by. Raises UsageError for a file, Refused."""
    if target.is_file:  # to open it once more would break its lease
        raise UsageError(f"device {target.path}", "not a block device; files cannot be written while the system stands still.")
    try:
        descriptor = os.open(f"/proc/self/fd/{target.descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"device {target.path}", f"cannot be written past the cache: {error.strerror}.") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Image:
    """``restored``: the system was resumed from it; else ``size`` in bytes, and ``pause`` in seconds."""

    restored: bool
    size: int
    pause: float


def _image(recorder: Recorder, points: list[str], preferred: int, page_size: int, limit: float) -> _Image:
    """Stop the system, write its image, of ``preferred`` bytes at most if that is possible, and let it go on. Raises Refused,
    StoreError, Damaged."""
    with contextlib.ExitStack() as outside:
        kernel = SnapshotDevice()
        outside.callback(kernel.close)
        image_size = _image_size()
        quiet = outside.enter_context(filesystems.Filesystems(points, lambda: _prefer_again(image_size)))
        outside.callback(_prefer_again, image_size)
        random = outside.enter_context(open("/dev/urandom", "wb", buffering=0))
        kernel.prefer(preferred)
        outside.enter_context(_locked_in_memory())
        restored, size, begun = False, 0, time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            with contextlib.ExitStack() as frozen:  # undoes all, even if one fails
                frozen.enter_context(_signals_blocked())
                kernel.freeze()
                frozen.callback(kernel.unfreeze)
                fault_point("snapshot frozen")
                frozen.callback(quiet.thaw)
                quiet.freeze()
                fault_point("snapshot filesystems frozen")
                frozen.callback(kernel.free)
                frozen.enter_context(_watchdog(limit))
                if kernel.create():
                    size = kernel.size()
                    fault_point("snapshot created")
                    recorder.write(kernel.read, size // page_size)
                    fault_point("snapshot written")
                else:
                    restored = True
                    _reseed(random)
        except OSError as error:
            raise StoreError("snapshot", f"writing the image failed: {error.strerror or error}.", "Use another device.") from None
        return _Image(restored, size, time.clock_gettime(time.CLOCK_BOOTTIME) - begun)


def _image_size() -> str:
    """The size of images that the kernel prefers, for all hibernations; empty if it does not tell."""
    try:
        return _IMAGE_SIZE.read_text()
    except OSError:
        return ""


def _prefer_again(size: str) -> None:
    if size:
        with contextlib.suppress(OSError):
            _IMAGE_SIZE.write_text(size)


@contextlib.contextmanager
def _locked_in_memory() -> Iterator[None]:
    """All memory of this process is there and stays, and the kernel ends another one, if it may, when no memory is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    score = _OUT_OF_MEMORY_SCORE.read_text()
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(PermissionError):  # without CAP_SYS_RESOURCE
            _OUT_OF_MEMORY_SCORE.write_text("-1000")
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE):
            raise StoreError("snapshot", f"memory cannot be locked: {os.strerror(ctypes.get_errno())}.", "Run the command as root.")
        yield
    finally:
        libc.munlockall()
        with contextlib.suppress(PermissionError):
            _OUT_OF_MEMORY_SCORE.write_text(score)
        gc.enable()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Signals wait, except that of the watchdog."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGALRM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _watchdog(limit: float) -> Iterator[None]:
    """What takes longer than ``limit`` seconds ends with a StoreError."""

    def expired(_number: int, _frame: FrameType | None) -> None:
        raise StoreError("snapshot", f"given up after {limit:g} seconds.", "Allow more time with --time-limit, or use a faster device.")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, limit if math.isfinite(limit) else 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reseed(random: FileIO) -> None:
    """Give the kernel's random numbers another course than that of a system that was resumed from the same image."""
    with contextlib.suppress(OSError):
        random.write(struct.pack("<QQ", time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
        fcntl.ioctl(random, _RESEED_RANDOM)
