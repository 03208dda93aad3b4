# SPDX-License-Identifier: GPL-3.0-or-later
"""Hibernation images are written so that the kernel's reader finds in them what it would find in its own."""

from __future__ import annotations

import io
import struct

import pytest

from fuse_store.errors import Damaged, Refused, StoreError, UsageError
from fuse_store.formats.swsusp import HibernationImage, armed, disarmed, swap_header
from fuse_store.formats.swsusp.write import Room, Staged, stage_image, stage_stream
from tests.fuzz.swsusp_encoder import UUID, decode, encode, machine, stream_of
from tests.store.formats.test_swsusp_read import Memory, same


def room(page_size: int = 4096, blocks: int = 4000, **more: object) -> Room:
    """A partition from which nothing was swapped out."""
    more = {"runs": [(1, blocks - 1)], **more}
    return Room(page_size, blocks, swap_header(page_size, blocks, UUID, b"NVM_SWAP"), **more)  # type: ignore[arg-type]


def finish(target: io.BytesIO, staged: Staged, blocks: int, page_size: int = 4096) -> bytes:
    """The device, with its header, armed."""
    device = bytearray(target.getvalue().ljust(blocks * page_size, b"\0"))
    assert not any(device[staged.offset : staged.offset + page_size]), "the header has been written already"
    device[staged.offset : staged.offset + page_size] = armed(staged.header)
    return bytes(device)


@pytest.mark.parametrize("compression", ["none", "lzo", "lz4"])
@pytest.mark.parametrize("page_size", [4096, 65536])
def test_any_image_becomes_an_uncompressed_one(compression: str, page_size: int) -> None:
    architecture = "x86" if page_size == 4096 else "arm64"
    memory = machine(page_size, architecture, pages=1200 if page_size == 4096 else 100)
    encoded = encode(memory, page_size, architecture, compression, scattered=9)
    target = io.BytesIO()
    with HibernationImage(Memory(encoded.device)) as image:
        staged = stage_image(image, target, room(page_size))
    device = finish(target, staged, 4000, page_size)
    assert decode(device, page_size) == stream_of(memory, page_size, architecture)
    with HibernationImage(Memory(device)) as image:
        assert image.header.state == "armed"
        assert image.header.flag_names == ["nocompress_mode"]
        assert same(image, memory)


@pytest.mark.parametrize("compression", ["none", "lzo", "lz4"])
def test_zeros_are_stored_for_older_kernels(compression: str) -> None:
    memory = machine(pages=1500, zeros=0.5)
    target = io.BytesIO()
    with HibernationImage(Memory(encode(memory, compression=compression).device)) as image:
        staged = stage_image(image, target, room(), materialise_zeros=True)
    assert decode(finish(target, staged, 4000)) == stream_of(memory, zero_flags=False)


@pytest.mark.parametrize("zero_flags", [True, False])
@pytest.mark.parametrize("count", [300, 508, 509, 510, 1500])
def test_stream_of_dev_snapshot_is_staged(zero_flags: bool, count: int) -> None:
    pages = stream_of(machine(pages=count), zero_flags=zero_flags)

    class Device(io.RawIOBase):
        """Gives one page at a time, as the kernel does."""

        def __init__(self) -> None:
            self.left = list(pages)

        def read(self, size: int = -1) -> bytes:
            return self.left.pop(0) if self.left and size >= 4096 else b""

    target = io.BytesIO()
    staged = stage_stream(Device(), target, room())  # type: ignore[arg-type]
    assert staged.pages == len(pages)
    assert decode(finish(target, staged, 4000)) == pages


def test_flags_and_hardware_signature_stay() -> None:
    encoded = encode(machine(), compression="lz4", flags=1 | 8, hw_sig=0xABCD)
    with HibernationImage(Memory(encoded.device)) as image:
        staged = stage_image(image, io.BytesIO(), room())
    hw_sig, crc32 = struct.unpack_from("<II", staged.header, 4056)
    (flags,) = struct.unpack_from("<I", staged.header, 4072)
    assert (hw_sig, crc32, flags) == (0xABCD, 0, 1 | 2 | 8)


def test_header_is_that_of_the_swap_area_and_not_armed() -> None:
    with HibernationImage(Memory(encode(machine()).device)) as image:
        staged = stage_image(image, io.BytesIO(), room())
    assert staged.header[:4056] == swap_header(4096, 4000, UUID, b"NVM_SWAP")[:4056]
    assert staged.header[4076:] == b"SWAPSPACE2SWAPSPACE2"


def test_swap_file_only_its_extents_are_written() -> None:
    memory = machine(pages=600)
    encoded = encode(memory, compression="lzo")
    before = bytes([0xEE]) * 4096 * 3000
    target = io.BytesIO(before)
    runs = [(100, 300), (2000, 900), (700, 50)]
    with HibernationImage(Memory(encoded.device)) as image:
        staged = stage_image(image, target, room(blocks=3000, resume_offset=100, runs=runs))
    assert staged.offset == 100 * 4096
    after = bytearray(target.getvalue())
    inside = {block for begin, count in runs for block in range(begin, begin + count)} - {100}
    touched = {at // 4096 for at in range(0, len(after), 4096) if after[at : at + 4096] != before[at : at + 4096]}
    assert touched <= inside
    after[staged.offset : staged.offset + 4096] = armed(staged.header)
    assert decode(after, resume_offset=100) == stream_of(memory)


def test_what_does_not_fit_is_refused_before_anything_is_written() -> None:
    target = io.BytesIO()
    stream = b"".join(stream_of(machine()))
    with pytest.raises(Refused, match="there is room for 99"):
        stage_stream(io.BytesIO(stream), target, Room(4096, 4000, swap_header(4096, 100, UUID)))
    with HibernationImage(Memory(encode(machine()).device)) as image:
        for small in (room(blocks=100), room(runs=[(5, 40), (90, 3)]), room(runs=[])):
            with pytest.raises(Refused, match="there is room for"):
                stage_image(image, target, small)
    assert not target.getvalue()


@pytest.mark.parametrize("compression", ["none", "lzo"])
def test_what_was_swapped_out_stays(compression: str) -> None:
    """Only blocks of the image itself and those behind the swap area change, unless one says that they may."""
    memory = machine(pages=700)
    encoded = encode(memory, compression=compression, scattered=7)
    blocks = len(encoded.device) // 4096
    before = bytearray(encoded.device)
    used = {0, *encoded.stream, *encoded.maps}
    for block in set(range(blocks)) - used:
        before[block * 4096 : (block + 1) * 4096] = b"swapped " * 512
    larger = before + bytes(4096 * 1000)
    target = io.BytesIO(larger)
    with HibernationImage(Memory(before)) as image:
        if compression == "none":
            stage_image(image, io.BytesIO(before), Room(4096, blocks, disarmed(image.header.block)))
        else:
            with pytest.raises(Refused, match="behind the swap area"):
                stage_image(image, io.BytesIO(before), Room(4096, blocks, disarmed(image.header.block)))
        staged = stage_image(image, target, Room(4096, len(larger) // 4096, disarmed(image.header.block)), materialise_zeros=True)
    after = bytearray(target.getvalue())
    after[:4096] = armed(staged.header)
    assert decode(after) == stream_of(memory, zero_flags=False)
    for block in set(range(blocks)) - used:
        assert after[block * 4096 : (block + 1) * 4096] == b"swapped " * 512


def test_stream_for_a_swap_file_needs_its_extents() -> None:
    stream = io.BytesIO(b"".join(stream_of(machine())))
    with pytest.raises(UsageError, match="extents"):
        stage_stream(stream, io.BytesIO(), Room(4096, 4000, swap_header(4096, 4000, UUID), resume_offset=8))


def test_exactly_enough_room() -> None:
    memory = machine()
    with HibernationImage(Memory(encode(memory).device)) as image:
        blocks = image.info.pages + -(-image.info.pages // 511) + 1
        target = io.BytesIO()
        staged = stage_image(image, target, room(blocks=blocks))
        assert len(finish(target, staged, blocks)) == blocks * 4096
        with pytest.raises(Refused):
            stage_image(image, io.BytesIO(), room(blocks=blocks - 1))


def test_devices_that_are_no_place_for_an_image() -> None:
    armed_swap = bytes(encode(machine()).device[:4096])
    bad = bytearray(swap_header(4096, 4000, UUID))
    struct.pack_into("<I", bad, 1032, 3)
    with HibernationImage(Memory(encode(machine()).device)) as image:
        for wrong, kind in (
            (Room(4096, 4000, armed_swap), Refused), (Room(4096, 4000, bytes(4096)), Refused), (Room(4096, 4000, bytes(bad)), Refused),
            (room(16384), Refused), (room(runs=[(3990, 11)]), UsageError),
            (room(runs=[(-4, 1000)]), UsageError),
        ):  # fmt: skip
            target = io.BytesIO()
            with pytest.raises(kind):
                stage_image(image, target, wrong)
            assert not target.getvalue()


@pytest.mark.parametrize("compression", ["lzo", "lz4"])
@pytest.mark.parametrize("materialise", [True, False])
def test_wrong_checksum_is_found_and_no_header_comes_back(compression: str, materialise: bool) -> None:
    encoded = encode(machine(), compression=compression)
    struct.pack_into("<I", encoded.device, 4060, encoded.crc ^ 1)
    with HibernationImage(Memory(encoded.device)) as image, pytest.raises(Damaged, match="checksum"):
        stage_image(image, io.BytesIO(), room(), materialise_zeros=materialise)


def test_stream_that_is_too_short_or_too_long() -> None:
    whole = b"".join(stream_of(machine()))
    for wrong in (b"", whole[:100], whole[:-4096], whole[:-5], whole + bytes(4096)):
        with pytest.raises(Damaged):
            stage_stream(io.BytesIO(wrong), io.BytesIO(), room())


def test_device_that_fails_while_it_is_written() -> None:
    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(28, "No space left on device")

    with HibernationImage(Memory(encode(machine()).device)) as image, pytest.raises(StoreError, match="No space left"):
        stage_image(image, Full(), room())
