# SPDX-License-Identifier: GPL-3.0-or-later
"""Hibernation images are read as the kernel wrote them: headers, swap maps, chunks, lists of pages, and what they describe."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fuse_store.errors import Damaged, NotFound, Refused, UsageError
from fuse_store.formats.readable import CompressedChunks, File, Prefetchable
from fuse_store.formats.swsusp import HibernationImage, armed, disarmed, find, layout
from fuse_store.formats.swsusp.describe import describe
from fuse_store.formats.swsusp.kernel import find_kernel, vmcoreinfo
from fuse_store.formats.swsusp.kernel.addresses import direct_map
from tests.fuzz import swsusp_encoder as encoder
from tests.fuzz.swsusp_encoder import Encoded, encode, machine, swap_header


class Memory:
    """Bytes as a Readable."""

    def __init__(self, content: bytes | bytearray) -> None:
        self.content, self.size = bytes(content), len(content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


def opened(encoded: Encoded, resume_offset: int = 0) -> HibernationImage:
    return HibernationImage(Memory(encoded.device), resume_offset)


def same(image: HibernationImage, memory: dict[int, bytes]) -> bool:
    last = max(memory)
    expected = b"".join(memory.get(pfn, bytes(image.page_size)) for pfn in range(last + 1))
    return image.memory(0, (last + 1) * image.page_size) == expected


VARIANTS = [
    (page_size, architecture, compression)
    for page_size, architecture in ((4096, "x86"), (4096, "arm64"), (4096, "riscv"), (16384, "arm64"), (65536, "generic"))
    for compression in ("none", "lzo", "lz4")
]


@pytest.mark.parametrize(("page_size", "architecture", "compression"), VARIANTS)
def test_memory_comes_out_as_it_went_in(page_size: int, architecture: str, compression: str) -> None:
    memory = machine(page_size, architecture, 100)
    encoded = encode(memory, page_size, architecture, compression, scattered=3)
    with opened(encoded) as image:
        assert same(image, memory)
        assert image.page_size == page_size
        assert image.info.architecture == architecture
        assert image.header.compression == compression
        assert image.pages.count == len(memory)
        assert image.pages.zeros == sum(not any(page) for page in memory.values())
        assert image.crc_matches() is (None if compression == "none" else True)


@pytest.mark.parametrize("compression", ["none", "lzo", "lz4"])
def test_more_pages_than_one_list_and_one_map_page_hold(compression: str) -> None:
    memory = machine(pages=2000, seed=5)
    with opened(encode(memory, compression=compression)) as image:
        assert image.info.lists == 4
        assert len(image.map.pages) > 1
        assert same(image, memory)
        for pfn in sorted(memory)[::97]:  # in no order, so that chunks are opened again
            assert image.memory(pfn * 4096 + 5, 100) == memory[pfn][5:105]
        for pfn in sorted(memory)[::-97]:
            assert image.memory(pfn * 4096, 4096) == memory[pfn]


def test_images_of_kernels_before_zero_pages_were_left_out() -> None:
    memory = machine()
    with opened(encode(memory, zero_flags=False, compression="lzo")) as image:
        assert image.pages.zeros == 0
        assert image.info.stored == len(memory)
        assert same(image, memory)


@pytest.mark.parametrize("count", [509, 510, 511, 1021])
@pytest.mark.parametrize("extra_empty", [True, False])
def test_full_last_map_page_with_and_without_an_empty_one_behind(count: int, extra_empty: bool) -> None:
    memory = {pfn: bytes([1 + pfn % 250]) * 4096 for pfn in range(10, 10 + count)}
    encoded = encode(memory, extra_empty=extra_empty)
    full = len(encoded.stream) % 511 == 0
    with opened(encoded) as image:
        assert image.map.empty_last is (full and extra_empty)
        assert same(image, memory)


def test_exactly_full_list_has_no_end_mark() -> None:
    memory = dict.fromkeys(range(512), b"x" * 4096)
    with opened(encode(memory)) as image:
        assert image.info.lists == 1
        assert same(image, memory)


def test_swap_file_at_its_resume_offset() -> None:
    memory = machine()
    encoded = encode(memory, resume_offset=34, compression="lz4")
    with opened(encoded, 34) as image:
        assert same(image, memory)
    with pytest.raises(NotFound, match="resume offset 0"):
        opened(encoded)


def test_disarmed_image_is_read_too() -> None:
    memory = machine()
    with opened(encode(memory, armed=False)) as image:
        assert image.header.state == "disarmed"
        assert same(image, memory)


def test_arming_and_disarming_change_ten_bytes() -> None:
    encoded = encode(machine())
    header = find(Memory(encoded.device))
    off = disarmed(header.block)
    assert off[:-10] == header.block[:-10]
    assert off[-10:] == b"SWAPSPACE2"
    assert armed(off) == header.block
    assert header.signature_offset == 4086
    with pytest.raises(NotFound, match="leads to no image"):
        armed(swap_header(4096, 100, bytes(16)))
    with pytest.raises(Damaged, match="lacks the signature"):
        disarmed(bytes(4096))


def test_device_without_an_image_is_not_found() -> None:
    swap = bytearray(1 << 20)
    with pytest.raises(NotFound, match="neither an image nor a swap area") as caught:
        describe(Memory(swap))
    assert caught.value.exit_code == 3
    swap[4086:4096] = b"SWAPSPACE2"
    with pytest.raises(NotFound, match="the swap area holds no image"):
        describe(Memory(swap))
    struct.pack_into("<QI10s", swap, 4064, 1 << 30, 2, b"SWAPSPACE2")  # leads nowhere
    with pytest.raises(NotFound, match="the swap area holds no image"):
        describe(Memory(swap))


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"ULSUSPEND\0", "s2disk"), (b"LINHIB0001", "LINHIB"),
        (b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c", "TuxOnIce"), (b"S2SUSPEND\0", "Suspend 2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("page_size", [4096, 65536])
def test_images_of_others_are_refused_by_name(magic: bytes, name: str, page_size: int) -> None:
    device = bytearray(1 << 20)
    device[page_size - 10 : page_size - 10 + len(magic)] = magic
    with pytest.raises(Refused, match=name):
        describe(Memory(device))


def test_consumed_and_overwritten_image_is_no_image() -> None:
    encoded = encode(machine(), armed=False)
    encoded.device[encoded.maps[0] * 4096 : (encoded.maps[0] + 1) * 4096] = b"\x5a" * 4096
    with pytest.raises(NotFound, match="overwritten"):
        opened(encoded)


def test_consumed_image_whose_lists_are_overwritten_is_no_image() -> None:
    encoded = encode(machine(), armed=False)
    encoded.device[encoded.stream[1] * 4096 : (encoded.stream[1] + 1) * 4096] = b"\x5a" * 4096
    with pytest.raises(NotFound, match="overwritten"):
        describe(Memory(encoded.device))


def broken(encoded: Encoded, offset: int, content: bytes) -> Encoded:
    encoded.device[offset : offset + len(content)] = content
    return encoded


def word(value: int) -> bytes:
    return struct.pack("<Q", value)


def test_map_that_was_not_finished() -> None:
    encoded = encode(machine(pages=1500, zeros=0))
    broken(encoded, encoded.maps[-1] * 4096, bytes(4096))
    with pytest.raises(Damaged, match="signature before the last page of the map"):
        opened(encoded)


def test_map_with_stale_content_in_its_last_page() -> None:
    encoded = encode(machine(pages=1500, zeros=0))
    broken(encoded, encoded.maps[-1] * 4096, b"lorem ipsum " * 341)
    with pytest.raises(Damaged, match="signature before the last page of the map"):
        opened(encoded)


@pytest.mark.parametrize("back_to", [0, 1, 2])
def test_map_that_goes_in_a_circle(back_to: int) -> None:
    encoded = encode(machine(pages=1500, zeros=0))
    broken(encoded, encoded.maps[2] * 4096 + 4088, word(encoded.maps[back_to]))
    broken(encoded, encoded.maps[2] * 4096, word(3) * 511)
    with pytest.raises(Damaged, match=r"loop|twice|more pages than"):
        opened(encoded)


def test_map_entry_outside_of_the_device() -> None:
    encoded = encode(machine())
    broken(encoded, encoded.maps[0] * 4096 + 80, word(1 << 40))
    with pytest.raises(Damaged, match="page 10 of the image cannot be in block 1099511627776"):
        opened(encoded)


def test_map_entry_that_is_the_header() -> None:
    encoded = encode(machine(), resume_offset=5)
    broken(encoded, encoded.maps[0] * 4096 + 80, word(5))
    with pytest.raises(Damaged, match="page 10 of the image cannot be in block 5"):
        opened(encoded, 5)


def test_block_that_is_listed_twice() -> None:
    encoded = encode(machine())
    broken(encoded, encoded.maps[0] * 4096 + 80, word(encoded.stream[3]))
    with pytest.raises(Damaged, match=f"block {encoded.stream[3]} is listed twice"):
        opened(encoded)


def test_gap_in_the_map() -> None:
    encoded = encode(machine())
    broken(encoded, encoded.maps[0] * 4096 + 80, word(0))
    with pytest.raises(Damaged, match="page 0 of the swap map has a gap"):
        opened(encoded)


def test_device_that_is_cut_off() -> None:
    encoded = encode(machine())
    encoded.device = encoded.device[: len(encoded.device) // 2]
    with pytest.raises(Damaged):
        opened(encoded)


def test_swap_file_without_its_device() -> None:
    encoded = encode(machine())
    broken(encoded, 4064, word(1 << 33))
    with pytest.raises(Damaged, match="swap file"):
        opened(encoded)


def test_absurd_counts() -> None:
    for at, value in ((400, 1 << 60), (416, 1 << 40), (424, 0), (424, 1 << 50), (432, 7)):
        encoded = encode(machine())
        broken(encoded, encoded.stream[0] * 4096 + at, word(value))
        with pytest.raises(Damaged, match=r"impossible memory size|swsusp_info has .* pages"):
            opened(encoded)


def test_lists_out_of_order() -> None:
    encoded = encode(machine())
    block = encoded.stream[1] * 4096
    first, second = encoded.device[block : block + 8], encoded.device[block + 8 : block + 16]
    broken(encoded, block, bytes(second + first))
    with opened(encoded) as image, pytest.raises(Damaged, match="not in order"):
        _ = image.pages


def test_more_zero_flags_than_the_counts_allow() -> None:
    encoded = encode(dict.fromkeys(range(100), b"x" * 4096))
    broken(encoded, encoded.stream[1] * 4096 + 80, word(10 | 1 << 63))
    with opened(encoded) as image, pytest.raises(Damaged, match="99 of 100 pages are listed as stored, instead of 100"):
        _ = image.pages


@pytest.mark.parametrize("compression", ["lzo", "lz4"])
def test_chunk_with_an_impossible_length(compression: str) -> None:
    for length in (0, 131072 + 131072 // 16 + 70, 1 << 62):
        encoded = encode(machine(), compression=compression)
        broken(encoded, encoded.stream[encoded.chunks[2]] * 4096, word(length))
        with opened(encoded) as image, pytest.raises(Damaged, match="chunk 2"):
            image.crc_matches()


@pytest.mark.parametrize("compression", ["lzo", "lz4"])
def test_damaged_chunk_is_found(compression: str) -> None:
    encoded = encode(machine(zeros=0), compression=compression)
    at = encoded.stream[encoded.chunks[1] + 3] * 4096 + 40
    broken(encoded, at, bytes([encoded.device[at] ^ 4]))
    with opened(encoded) as image:
        try:
            assert image.crc_matches() is False
        except Damaged as error:
            assert "chunk 1" in str(error)
    try:
        assert describe(Memory(encoded.device), check=True)["crc"] == "wrong"
    except Damaged as error:
        assert "chunk 1" in str(error)


def test_chunks_that_decompress_to_too_much() -> None:
    encoded = encode({pfn: bytes([pfn]) * 4096 for pfn in range(1, 40)}, compression="lzo")
    big = encoder.other_lzo(bytes(1 << 20))
    at = encoded.stream[encoded.chunks[0]] * 4096
    broken(encoded, at, word(len(big)) + big[:4088])
    with opened(encoded) as image, pytest.raises(Damaged, match="chunk 0"):
        _ = image.pages


def test_newer_flags_and_other_kernels_are_refused() -> None:
    with pytest.raises(Refused, match="flags 0x40"):
        opened(encode(machine(), flags=0x40))
    encoded = encode(machine())
    struct.pack_into(">Q", encoded.device, 4064, encoded.maps[0])
    with pytest.raises(Refused, match="big-endian"):
        opened(encoded)
    encoded = encode(machine())
    page = encoded.stream[0] * 4096
    broken(encoded, page + 424, bytes(16))
    struct.pack_into("<III", encoded.device, page + 404, 300, 302, 302 * 4096)
    with pytest.raises(Refused, match="32-bit"):
        opened(encoded)


def test_wrong_questions() -> None:
    with pytest.raises(UsageError):
        find(Memory(bytes(8192)), page_size=8192)
    with pytest.raises(UsageError):
        find(Memory(bytes(8192)), -1)


@pytest.mark.parametrize("architecture", ["x86", "arm64", "riscv"])
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_description(architecture: str, compression: str, tmp_path: Path) -> None:
    memory = machine(architecture=architecture)
    (tmp_path / "swap").write_bytes(encode(memory, 4096, architecture, compression, flags=1 | 8, hw_sig=0x1234).device)
    with File(tmp_path / "swap") as file:
        told = describe(file, check=True)
    zeros = sum(not any(page) for page in memory.values())
    expected = {
        "format": "swsusp", "state": "armed", "page_size": 4096, "compression": compression, "architecture": architecture,
        "kernel": encoder.RELEASE, "host": encoder.HOST, "memory_pages": max(memory) + 100, "zero_pages": zeros,
        "stored_pages": len(memory) - zeros, "hardware_signature": 0x1234, "crc": "none" if compression == "none" else "right",
        "e820_checksum": 0xC66E147B if architecture == "x86" else None, "highest_page": max(memory),
    }  # fmt: skip
    assert {key: told[key] for key in expected} == expected
    names = ["platform_mode", "nocompress_mode"] if compression == "none" else ["platform_mode", "crc32_mode"]
    assert told["flags"] == [*names, "hw_sig", *(["compression_alg_lz4"] if compression == "lz4" else [])]
    assert told["swap"]["uuid"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert told["swap"]["label"] == "NVM_SWAP"


def test_x86_kernels_before_5_13_have_a_digest_of_the_memory_map() -> None:
    told = describe(Memory(encode(machine(), architecture="x86 before 5.13", zero_flags=False, compression="lzo").device))
    assert (told["architecture"], told["e820_checksum"]) == ("x86", None)
    assert told["e820_digest"] == bytes(range(16)).hex()
    assert told["kernel"] == encoder.RELEASE


def test_release_before_vmcoreinfo_told_where_the_names_are() -> None:
    """Until 5.10 the names stand behind a counter in uts_namespace, and the note does not say where."""
    memory = machine()
    page = next(pfn for pfn, content in memory.items() if content.startswith(struct.pack("<I", 11)))
    memory[page] = memory[page].replace(b"OFFSET(uts_namespace.name)=0\n", b"OFFSET(list_head.next)=00000\n")
    kernel_page = encoder.KERNEL_PHYSICAL // 4096
    memory[kernel_page] = bytes(4) + memory[kernel_page][:-4]
    with opened(encode(memory, architecture="x86 before 5.13")) as image:
        found = find_kernel(image)
        assert found is not None
        assert found.host == encoder.HOST


def test_description_of_an_image_without_a_note() -> None:
    told = describe(Memory(encode({5: b"x" * 4096}).device))
    assert told["kernel"] is None
    assert told["host"] is None


def test_note_of_a_guest_is_not_taken_for_the_kernels_own() -> None:
    memory = machine()
    guest = encoder.note(b"OSRELEASE=5.10.0-guest\nSYMBOL(init_uts_ns)=ffffffff81000480\nNUMBER(phys_base)=4096\n")
    memory[0] = guest.ljust(4096, b"\0")
    with opened(encode(memory)) as image:
        found = find_kernel(image)
        assert found is not None
        assert (found.release, found.host) == (encoder.RELEASE, encoder.HOST)
        assert found.info.address // 4096 != 0
        assert find_kernel(image, found.info.address // 4096) == found


@pytest.mark.parametrize(("levels", "base"), [(4, encoder.DIRECT_MAP), (5, encoder.DIRECT_MAP_5)])
def test_direct_map_is_found_in_the_page_tables(levels: int, base: int) -> None:
    with opened(encode(machine(levels=levels))) as image:
        found = find_kernel(image)
        assert found is not None
        assert direct_map(image, found.info) == base


def test_hostile_note() -> None:
    for text in (b"", b"OSRELEASE=", b"OSRELEASE=a\x1b[2J", b"=" * 999, b"\xff" * 4000, b"OSRELEASE=1\nNUMBER(phys_base)=" + b"9" * 3000):
        info = vmcoreinfo.parse(0, b"", text)
        assert info is None or info.release == "1"


def test_page_of_16_gib_is_opened_in_time(tmp_path: Path) -> None:
    """Header and map of an image of 16 GiB in less than 2 s of this machine's time, with bounded memory."""
    stored, path = 1 << 22, tmp_path / "swap"
    lists = stored // 512
    total = 1 + lists + stored
    maps = -(-total // 511)
    with open(path, "wb") as file:
        file.truncate((total + maps + 1) * 4096)
        first = np.arange(total + maps).reshape(-1)  # each map page, then what it lists
        entry = first + 1
        is_map = first % 512 == 0
        file.seek(int(entry[~is_map][0]) * 4096)
        file.write(encoder.info("x86", 4096, stored + 5, stored, total))
        pfns = np.arange(5, stored + 5, dtype="<u8").tobytes()
        for number, block in enumerate(entry[~is_map][1 : 1 + lists].tolist()):
            file.seek(block * 4096)
            file.write(pfns[number * 4096 : (number + 1) * 4096])
        blocks, own = entry[~is_map], entry[is_map].tolist()
        for number, block in enumerate(own):
            file.seek(block * 4096)
            part = blocks[number * 511 : (number + 1) * 511]
            following = own[number + 1] if number + 1 < len(own) else 0
            file.write(np.concatenate((part, np.zeros(511 - len(part), np.int64), [following])).astype("<u8").tobytes())
        file.seek(4056)
        file.write(layout.TAIL.pack(0, 0, own[0], 2, b"SWAPSPACE2", b"S1SUSPEND\0"))
    began = time.process_time()
    with File(path) as readable, HibernationImage(readable) as image:
        assert image.pages.count == stored
        assert image.map.count == total
        assert time.process_time() - began < 2


def test_optional_abilities_of_a_source_are_used() -> None:
    """A source that prefetches, and one that has chunks as pages: the content is the same, without reading the chunks."""
    memory = machine()
    encoded = encode(memory, compression="lzo")
    blocks = {encoded.stream[index] * 4096 for index in encoded.chunks}
    stream = b"".join(encoder.stream_of(memory)[1:])
    prefetched: list[tuple[int, int]] = []

    class Able(Memory):
        def prefetch(self, offset: int, length: int) -> None:
            prefetched.append((offset, length))

        def chunk_at(self, offset: int) -> tuple[int, Callable[[], NDArray[np.uint8]]] | None:
            if offset not in blocks:
                return None
            (length,) = struct.unpack_from("<Q", self.content, offset)
            first = 32 * 4096 * [encoded.stream[index] * 4096 for index in encoded.chunks].index(offset)
            return length, lambda: np.frombuffer(stream[first : first + 32 * 4096], np.uint8).reshape(-1, 4096)

        def read(self, offset: int, length: int) -> bytes:
            assert offset not in blocks, "a chunk is read though it is there as pages"
            return super().read(offset, length)

    assert isinstance(Able(b""), CompressedChunks) and isinstance(Able(b""), Prefetchable)
    assert not isinstance(Memory(b""), CompressedChunks | Prefetchable)
    with HibernationImage(Able(encoded.device)) as image:
        assert same(image, memory)
        assert image.crc_matches() is True
    plain = encode(memory)
    blocks.clear()
    with HibernationImage(Able(plain.device)) as image:
        assert same(image, memory)
    assert prefetched
