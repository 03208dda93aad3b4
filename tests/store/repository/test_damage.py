# SPDX-License-Identifier: GPL-3.0-or-later
"""Invariant 2: whatever happens to the stored bytes, what is read is right or an error that says what and where.

Every kind of object is flipped, cut off, emptied, swapped and lost, in an encrypted store and in one that is not.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import pytest

from fuse_store.columns import halves
from fuse_store.errors import Damaged, NotFound, Refused, StoreError, WrongKey
from fuse_store.image import restore
from fuse_store.maintenance.gc import collect
from fuse_store.maintenance.repair import Repaired, repair
from fuse_store.maintenance.verify import index_problems, verify
from fuse_store.progress import SILENT
from fuse_store.repository.backends import PosixBackend
from fuse_store.repository.backends.posix import CLOCK_TICK
from fuse_store.repository.block import HEADER_SIZE
from fuse_store.repository.index.fragment import ROW_SIZE, START
from fuse_store.repository.manifest import _FILE, Summary, image_name, read_head
from fuse_store.repository.pack import PACK_HEADER, TRAILER, TRAILER_SIZE
from fuse_store.store import Label, Store
from tests.store.conftest import (
    clone,
    content,
    make_small,
    packs_of,
    read_store,
    replace_content,
    state_of,
    write_sparse,
)

PIECE = 64 << 10  # what is read at once
VERSIONS = [
    content(range(1, 330), cut=5),
    content([*range(100, 330), 0, 0, 0, *range(400, 500)]),
    content([number for pair in zip(range(600, 700), range(1, 101), strict=True) for number in pair]),
]
OTHER = content(range(1000, 1100))  # shares nothing with those


@dataclass(frozen=True)
class Sound:
    """A store before anything happens to it; ``bits`` chooses what is flipped, the same in each run."""

    path: Path
    images: dict[str, bytes]
    directory: Path
    bits: random.Random = field(default_factory=lambda: random.Random(7))

    def clone(self) -> Path:
        return clone(self.path, self.directory / "damaged")

    def files(self, pattern: str) -> list[Path]:
        return sorted(path.relative_to(self.path) for path in self.path.glob(pattern))

    def flipped(self, name: Path, start: int, end: int) -> Path:
        """A store like this one, but for one bit of a file, between two offsets."""
        path = self.clone()
        data = bytearray((path / name).read_bytes())
        data[self.bits.randrange(start, end)] ^= 1 << self.bits.randrange(8)
        replace_content(path / name, bytes(data))
        return path


@pytest.fixture(scope="module", params=["encrypted", "plain"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    directory = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(directory / "config"))
        make_small(monkeypatch)
        options = {"encryption": request.param == "encrypted", "durability": "none", "level": 1}  # so a pack has several blocks
        with Store.create(directory / "store", **options) as store:
            ids = [store.put(str(write_sparse(directory / "source", data)), Label("m")).id for data in VERSIONS]
            ids.append(store.put(str(write_sparse(directory / "source", OTHER)), Label("other")).id)
            store.record(ids[:2], "verified")
            time.sleep(2 * CLOCK_TICK / 1e9)  # else the cache has no states
            monkeypatch.setattr("fuse_store.summaries.MIN_STALE", 0)
            store.summaries()  # writes the cache
        images = read_store(directory / "store")
    assert images == dict(zip(ids, [*VERSIONS, OTHER], strict=True)) and len(list((directory / "store").glob("packs/*/*"))) >= 5
    return Sound(directory / "store", {image_id: images[image_id] for image_id in ids}, directory)


@pytest.fixture(autouse=True)
def as_made(sound: Sound, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(sound.directory / "config"))
    monkeypatch.setenv("FUSE_STORE_UNENCRYPTED", "1")  # clones are in other places


def survey(path: Path, images: dict[str, bytes]) -> list[Damaged]:
    """Read everything, piece by piece. What can be read must be right, whatever was done to the store."""
    errors: list[Damaged] = []
    with Store.open(path) as store:
        for image_id, data in images.items():
            try:
                image = store.open_image(image_id)
                assert image.size == len(data)
            except Damaged as error:
                assert image_id in str(error)
                errors.append(error)
                continue
            for at in range(0, len(data), PIECE):
                try:
                    assert image.read(at, PIECE) == data[at : at + PIECE]
                except Damaged as error:
                    errors.append(error)
    return errors


def verdicts(path: Path, images: dict[str, bytes]) -> list[str]:
    """The problems that a full verification finds."""
    with Store.open(path) as store:
        found = verify(store, list(images), 100, SILENT)
        assert all((verdict.state == "damaged") == bool(verdict.problems) for verdict in found)
        return [problem for verdict in found for problem in verdict.problems] + index_problems(store, complete=True)


def repaired(path: Path) -> Repaired:
    with Store.open(path) as store:
        return repair(store, SILENT)


def put_again(path: Path, directory: Path, data: bytes, read: bool = True) -> None:
    """Whatever the damage, a put stores a version that can be read; or none, and does so once the index is as it should be."""
    with Store.open(path) as store:
        source, before = str(write_sparse(directory / "again", data)), store.ids()
        try:
            made = store.put(source, Label("m"))
        except Damaged as error:
            assert not read and "cannot be read back" in str(error) and store.ids() == before
            repair(store, SILENT)
            made = store.put(source, Label("m"))
        if not read:
            repair(store, SILENT)
        image = store.open_image(made.id)
        assert b"".join(image.read(at, PIECE) for at in range(0, len(data), PIECE)) == data


# blocks --------------------------------------------------------------------------------------------------------------------


def blocks_of(sound: Sound, pack: Path) -> list[tuple[int, int]]:
    """(offset, length) of each block of a pack."""
    with Store.open(sound.path) as store:
        table = store.reader.table(bytes.fromhex(pack.stem))
        return list(zip(table.offset.tolist(), table.stored.tolist(), strict=True))


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_flipped_bit_in_a_block(sound: Sound, part: str) -> None:
    for pack in sound.files("packs/*/*.pack"):
        offset, length = sound.bits.choice(blocks_of(sound, pack))
        start, end = (offset, offset + HEADER_SIZE) if part == "header" else (offset + HEADER_SIZE, offset + length)
        path = sound.flipped(pack, start, end)
        errors = survey(path, sound.images)
        assert bool(errors) == (part == "body")  # a header is for a pack whose table is lost
        for error in errors:
            assert type(error) is Damaged and error.exit_code == 4
            assert error.image in sound.images and error.pack == pack.stem and re.fullmatch(r"0x[0-9a-f]+000|0x0", error.extent)
            assert all(part in str(error) for part in (error.image, error.pack, error.extent))
        # Only what needs this block is lost: 64 pages, some in each piece.
        assert len(errors) < sum(len(data) // PIECE for data in sound.images.values()) // 3
        found = verdicts(path, sound.images)
        assert found and all(pack.stem in problem for problem in found)
        if part == "header":
            assert repaired(path).lost == {}
            whole_again(sound, path)
            continue
        assert {error.image for error in errors} == {image_id for image_id in sound.images if any(image_id in one for one in found)}
        extents = {error.extent for error in errors}
        assert extents & {match for problem in found for match in re.findall(r"extent (0x[0-9a-f]+)", problem)}


def test_a_damaged_block_fails_to_go_to_a_file_and_nothing_is_left(sound: Sound, tmp_path: Path) -> None:
    pack = sound.files("packs/*/*.pack")[0]
    offset, length = blocks_of(sound, pack)[0]
    path = sound.flipped(pack, offset + HEADER_SIZE, offset + length)
    bad = {error.image for error in survey(path, sound.images)}
    assert bad and bad != set(sound.images)
    with Store.open(path) as store:
        for image_id, data in sound.images.items():
            target = tmp_path / image_id
            if image_id in bad:
                with pytest.raises(Damaged, match=image_id):
                    restore.get(store.open_image(image_id), str(target), SILENT)
                assert not target.exists()
            else:
                restore.get(store.open_image(image_id), str(target), SILENT)
                assert target.read_bytes() == data
    assert {file.name for file in tmp_path.iterdir()} - {"config"} == set(sound.images) - bad


def test_a_block_of_a_pack_in_the_place_of_another(sound: Sound) -> None:
    """Both are as they were written; each is encrypted under its own name."""
    pack = sound.files("packs/*/*.pack")[0]
    (one, length), (other, other_length) = blocks_of(sound, pack)[:2]
    path = sound.clone()
    data = bytearray((path / pack).read_bytes())
    short = min(length, other_length)  # the longer one gives up its end
    data[one : one + short], data[other : other + short] = data[other : other + short], data[one : one + short]
    replace_content(path / pack, bytes(data))
    errors = survey(path, sound.images)
    assert errors and all(error.pack == pack.stem for error in errors) and verdicts(path, sound.images)


def test_after_a_repair_a_put_does_not_share_what_is_damaged(sound: Sound, tmp_path: Path) -> None:
    pack = sound.files("packs/*/*.pack")[0]
    offset, length = blocks_of(sound, pack)[0]
    path = sound.flipped(pack, offset + HEADER_SIZE, offset + length)
    bad = {error.image for error in survey(path, sound.images)}
    assert bad and verdicts(path, sound.images)
    assert set(repaired(path).lost) == bad
    for data in VERSIONS:
        put_again(path, tmp_path, data)


# packs ---------------------------------------------------------------------------------------------------------------------


def table_of(sound: Sound, data: bytes) -> int:
    """Where the table of a pack begins."""
    with Store.open(sound.path) as store:
        return len(data) - TRAILER_SIZE - int(TRAILER.unpack_from(store.aead.decrypt(b"trailer", data[-TRAILER_SIZE:]))[1])


def whole_again(sound: Sound, path: Path) -> None:
    """Everything can be read, also by what needs the tables of the packs; the store is as good as new."""
    assert survey(path, sound.images) == []
    assert verdicts(path, sound.images) == []
    with Store.open(path) as store:
        for image_id in sound.images:
            image = store.open_image(image_id)
            for place in image.places(0, image.head.pages):
                image.page_digests(place)
        collect(store, dry_run=False, progress=SILENT)  # frees the packs whose blocks were copied to others
        assert repair(store, SILENT).packs_bad == []
    assert survey(path, sound.images) == []


@pytest.mark.parametrize("part", ["header", "table", "trailer", "cut in the table", "header of another pack"])
def test_a_pack_whose_blocks_are_whole_loses_nothing_and_is_mended(sound: Sound, tmp_path: Path, part: str) -> None:
    for pack in sound.files("packs/*/*.pack")[:2]:
        data = (sound.path / pack).read_bytes()
        size, end = len(data), table_of(sound, data)
        if part in ("header", "table", "trailer"):
            parts = {"header": (0, PACK_HEADER.size), "table": (end, size - TRAILER_SIZE), "trailer": (size - TRAILER_SIZE, size)}
            path = sound.flipped(pack, *parts[part])
        else:
            path = sound.clone()
            replace_content(path / pack, data[: end + 20] if part.startswith("cut") else data[:8] + bytes(16) + data[24:])
        assert survey(path, sound.images) == []
        assert any(pack.stem in problem for problem in verdicts(path, sound.images))
        put_again(path, tmp_path, VERSIONS[0])
        done = repaired(path)
        assert done.lost == {} and len(done.packs_bad) == done.packs_rescued == 1 and pack.stem in done.packs_bad[0]
        whole_again(sound, path)


@pytest.mark.parametrize("how", ["half", "last byte", "in a header", "empty", "lost", "zeros", "noise"])
def test_a_pack_that_is_cut_off_or_gone(sound: Sound, tmp_path: Path, how: str) -> None:
    for pack in sound.files("packs/*/*.pack")[:2]:
        path = sound.clone()
        data = (path / pack).read_bytes()
        if how == "lost":
            (path / pack).unlink()
        else:
            second = blocks_of(sound, pack)[1][0]
            cut = {"half": data[: len(data) // 2], "last byte": data[:-1], "in a header": data[: second + 9], "empty": b""}
            replace_content(path / pack, cut.get(how, bytes(len(data)) if how == "zeros" else sound.bits.randbytes(len(data))))
        errors = survey(path, sound.images)
        assert bool(errors) == (how != "last byte")
        assert all(error.image and error.extent for error in errors)
        assert verdicts(path, sound.images)
        put_again(path, tmp_path, VERSIONS[1])
        done = repaired(path)
        left = survey(path, sound.images)
        assert len(left) <= len(errors) and {error.image for error in left} <= {error.image for error in errors}
        assert set(done.lost) == {error.image for error in left}
        with Store.open(path) as store:
            assert set(store.ids()) >= set(sound.images)  # nothing is removed because it is damaged
        put_again(path, tmp_path, VERSIONS[0])


def test_two_packs_under_each_others_names(sound: Sound, tmp_path: Path) -> None:
    first, second = sound.files("packs/*/*.pack")[:2]
    path = sound.clone()
    data = (path / first).read_bytes(), (path / second).read_bytes()
    replace_content(path / first, data[1])
    replace_content(path / second, data[0])
    errors = survey(path, sound.images)
    assert errors and {error.pack for error in errors} <= {first.stem, second.stem}
    assert verdicts(path, sound.images)
    put_again(path, tmp_path, VERSIONS[0])
    assert len(repaired(path).packs_bad) == 2
    whole_again(sound, path)


# the index -----------------------------------------------------------------------------------------------------------------


def columns(path: Path) -> tuple[int, int]:
    """Where the columns of a fragment begin, and how many rows there are."""
    data = path.read_bytes()
    begin = START.unpack_from(data)[2]
    return begin, (len(data) - begin) // ROW_SIZE


@pytest.mark.parametrize("part", ["start", "header", "digests", "values"])
def test_a_flipped_bit_in_the_index(sound: Sound, tmp_path: Path, part: str) -> None:
    """Another error than Damaged, or other bytes, must not come of it; a put goes on; a repair makes all of it good."""
    for name in sound.files("index/*.idx"):
        begin, rows = columns(sound.path / name)
        start, end = {
            "start": (0, 12), "header": (START.size, begin - 8), "digests": (begin, begin + 16 * rows),
            "values": (begin + 16 * rows, begin + 32 * rows),
        }[part]  # fmt: skip
        path = sound.flipped(name, start, end)
        errors = survey(path, sound.images)
        assert all("repair" in str(error) or error.pack for error in errors)
        assert all(error.image and error.extent for error in errors)
        problems = verdicts(path, sound.images)
        assert any(name.name in problem and "repair" in problem for problem in problems)
        put_again(path, tmp_path, VERSIONS[0], read=False)
        assert repaired(path).lost == {}
        whole_again(sound, path)


@pytest.mark.parametrize("how", ["empty", "half", "last byte", "noise", "one row less"])
def test_an_index_that_is_cut_off(sound: Sound, tmp_path: Path, how: str) -> None:
    for name in sound.files("index/*.idx"):
        path = sound.clone()
        data = (path / name).read_bytes()
        cut = {"empty": b"", "half": data[: len(data) // 2], "last byte": data[:-1], "one row less": data[:-ROW_SIZE]}
        replace_content(path / name, cut.get(how, sound.bits.randbytes(len(data))))
        survey(path, sound.images)
        assert any(name.name in problem for problem in verdicts(path, sound.images))
        put_again(path, tmp_path, VERSIONS[2], read=False)
        assert repaired(path).lost == {}
        whole_again(sound, path)


@pytest.mark.parametrize("part", ["header", "digests", "values"])
def test_a_collection_makes_a_damaged_index_good(sound: Sound, part: str) -> None:
    """What only the damaged fragment named is in the tables of the packs; nothing that a version needs goes meanwhile."""
    for name in sound.files("index/*.idx"):
        begin, rows = columns(sound.path / name)
        start, end = {
            "header": (START.size, begin - 8), "digests": (begin, begin + 16 * rows),
            "values": (begin + 16 * rows, begin + 32 * rows),
        }[part]  # fmt: skip
        path = sound.flipped(name, start, end)
        with Store.open(path) as store, pytest.raises(StoreError, match="Nothing was freed"):
            collect(store, dry_run=True, progress=SILENT)
        assert (path / name).exists()
        with Store.open(path) as store:
            assert collect(store, dry_run=False, progress=SILENT).packs_removed == 0
        assert not (path / name).exists() and (path / "trash" / name.name).exists()
        assert survey(path, sound.images) == [] and verdicts(path, sound.images) == []


def test_a_collection_frees_nothing_that_the_index_does_not_account_for(sound: Sound) -> None:
    """A fragment is damaged, and so is the table of a pack that only it names: the pack may be needed."""
    for name in sound.files("index/*.idx"):
        path = sound.flipped(name, 0, 8)
        with Store.open(sound.path) as store:
            packs = {fragment.pack_id(0) for fragment in store.index.fragments().values() if fragment.name == name.name}
        for pack in packs:
            table = path / "packs" / pack.hex()[:2] / f"{pack.hex()}.pack"
            replace_content(table, table.read_bytes()[:-1])
        before = packs_of(path)
        for dry_run in (True, False):
            with Store.open(path) as store, pytest.raises(StoreError, match="Nothing was freed"):
                collect(store, dry_run=dry_run, progress=SILENT)
        assert packs_of(path) == before and (path / name).exists()


def test_an_index_whose_rows_point_at_each_others_blocks(sound: Sound) -> None:
    """On purpose, not by chance: a device with the wrong version must not pass for the right one."""
    path = sound.clone()
    for name in sound.files("index/*.idx"):
        begin, rows = columns(path / name)
        data = bytearray((path / name).read_bytes())
        at = begin + 16 * rows  # the values: turned round
        column = [bytes(data[at + 16 * row : at + 16 * (row + 1)]) for row in range(rows)]
        data[at:] = b"".join(column[1:] + column[:1])
        replace_content(path / name, bytes(data))
    assert len(survey(path, sound.images)) > 10
    with Store.open(sound.path) as store, Store.open(path) as bent:
        for image_id in sound.images:
            right, wrong = store.open_image(image_id), bent.open_image(image_id)
            for place, other in zip(right.places(0, right.head.pages), wrong.places(0, wrong.head.pages), strict=True):
                assert not (right.page_digests(place) == wrong.page_digests(other)).all(axis=1).any()
    repaired(path)
    whole_again(sound, path)


def test_an_old_index_brought_back(sound: Sound) -> None:
    """As from a copy that is older than the last collection: nothing is wrong but what can't be found."""
    path = sound.clone()
    with Store.open(path) as store:
        store.remove(list(sound.images)[:1])
        collect(store, dry_run=False, progress=SILENT)
    rest = {image_id: data for image_id, data in sound.images.items() if image_id != next(iter(sound.images))}
    for name in (path / "index").glob("*.idx"):
        name.unlink()
    for name in sound.files("index/*.idx"):
        replace_content_of_new(path / name, (sound.path / name).read_bytes())
    survey(path, rest)
    repaired(path)
    assert survey(path, rest) == []


def replace_content_of_new(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


# manifests -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["start", "head", "segments"])
def test_a_flipped_bit_in_a_manifest(sound: Sound, tmp_path: Path, part: str) -> None:
    for name in sound.files("images/*/*.img"):
        data = (sound.path / name).read_bytes()
        head = _FILE.size + _FILE.unpack_from(data)[1]
        path = sound.flipped(name, *{"start": (0, _FILE.size), "head": (_FILE.size, head), "segments": (head, len(data))}[part])
        errors = survey(path, sound.images)
        assert errors and all(error.image == name.stem and error.exit_code == 4 for error in errors)
        if part == "segments":
            assert all(error.extent for error in errors)
        problems = verdicts(path, sound.images)
        assert problems and all(name.stem in problem for problem in problems)
        with Store.open(path) as store:
            shutil.rmtree(path / "summaries")
            listed = {summary.id for summary in store.summaries()}
            assert listed == set(sound.images) - ({name.stem} if part != "segments" else set())
            with pytest.raises(StoreError, match="Nothing was freed"):
                collect(store, dry_run=False, progress=SILENT)
            with pytest.raises(Damaged, match=name.stem):
                restore.get(store.open_image(name.stem), str(tmp_path / "got"), SILENT)
            assert not (tmp_path / "got").exists()
        put_again(path, tmp_path, VERSIONS[0])
        assert set(repaired(path).lost) == {name.stem}


@pytest.mark.parametrize("how", ["empty", "in the start", "in the head", "in a segment", "last byte"])
def test_a_manifest_that_is_cut_off(sound: Sound, how: str) -> None:
    name = sound.files("images/*/*.img")[0]
    data = (sound.path / name).read_bytes()
    head = _FILE.size + _FILE.unpack_from(data)[1]
    path = sound.clone()
    cut = {"empty": 0, "in the start": 5, "in the head": head - 9, "in a segment": head + 9, "last byte": -1}
    replace_content(path / name, data[: cut[how]])
    errors = survey(path, sound.images)
    assert errors and {error.image for error in errors} == {name.stem}
    assert verdicts(path, sound.images)


def test_two_manifests_under_each_others_names(sound: Sound) -> None:
    first, second = sound.files("images/*/*.img")[:2]
    path = sound.clone()
    data = (path / first).read_bytes(), (path / second).read_bytes()
    replace_content(path / first, data[1])
    replace_content(path / second, data[0])
    assert {error.image for error in survey(path, sound.images)} == {first.stem, second.stem}
    assert len(verdicts(path, sound.images)) >= 2


def test_a_segment_of_one_version_in_another(sound: Sound) -> None:
    """Each segment opens in any manifest of the store, but under its own digest only."""
    path = sound.clone()
    name = Path(image_name(list(sound.images)[2]))  # of the most scattered one
    with Store.open(path) as store:
        head, start = read_head(PosixBackend(path), name.stem, store.aead)
    data = bytearray((path / name).read_bytes())
    first, second = head.segments[:2]
    theirs = bytes(data[start + second.offset : start + second.offset + first.length])
    data[start + first.offset : start + first.offset + len(theirs)] = theirs
    replace_content(path / name, bytes(data))
    assert {error.image for error in survey(path, sound.images)} == {name.stem}


# the small ones ------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_store_json(sound: Sound) -> None:
    """Every byte of it. Either the store can't be opened, which is said, or nothing is wrong."""
    data = (sound.path / "store.json").read_bytes()
    path = sound.clone()
    refused = 0
    for at in range(len(data)):
        for bit in (0, 5):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            replace_content(path / "store.json", bytes(changed))
            try:
                Store.open(path).close()
            except (Damaged, Refused, NotFound, WrongKey) as error:
                assert str(path) in str(error) or "key file" in str(error)
                refused += 1
                continue
            assert survey(path, {list(sound.images)[-1]: OTHER}) == []
    assert refused > len(data)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "1", '"x"', "[" * 200_000, "{}", '{"format": 1}', '{"format": {}}', "\x00" * 300, '{"a": 1e999}'],
)
def test_a_store_json_that_is_something_else(sound: Sound, text: str) -> None:
    path = sound.clone()
    replace_content(path / "store.json", text.encode())
    with pytest.raises((Damaged, Refused)) as caught:
        Store.open(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["format", "id", "page_size", "compression", "level", "encryption", "durability", "check", "root", "mac"])
def test_a_store_json_with_a_value_of_another_kind(sound: Sound, key: str) -> None:
    path = sound.clone()
    config = json.loads((sound.path / "store.json").read_text())
    values: list[object] = [None, 77, -77, 10**30, "zz", "ü", [], {}, 1.5]
    for value in values:
        replace_content(path / "store.json", json.dumps({**config, key: value}).encode())
        with pytest.raises((Damaged, Refused, WrongKey)) as caught:
            Store.open(path)
        assert str(path) in str(caught.value) or "key file" in str(caught.value)


def test_a_store_of_a_later_format_says_so(sound: Sound) -> None:
    path = sound.clone()
    config = json.loads((sound.path / "store.json").read_text())
    replace_content(path / "store.json", json.dumps({**config, "format": 2, "later": 1}).encode())
    with pytest.raises(Refused, match="newer") as caught:
        Store.open(path)
    assert caught.value.exit_code == 5


def test_a_flipped_bit_in_a_state_log_is_not_the_log_of_a_version_that_was_captured(sound: Sound) -> None:
    name = sound.files("states/*/*.log")[0]
    for _try in range(20):
        path = sound.flipped(name, 0, (sound.path / name).stat().st_size)
        with Store.open(path) as store:
            assert store.state_log.read(bytes.fromhex(name.stem)).entries == ()
            (image_id,) = [version.id for version in store.summaries() if version.content.hex() == name.stem]
            assert state_of(store, image_id) == "unknown" == store.find(image_id).state
        (verdict,) = verdicts(path, {image_id: b""})
        assert "state log" in verdict and "repair" in verdict
        assert repaired(path).unknown == []  # no machine can resume it
        assert verdicts(path, {image_id: b""}) == []
        with Store.open(path) as store:
            assert state_of(store, image_id) == "captured"
            store.record([image_id], "verified")
            assert store.find(image_id).state == "verified"


def summaries_without_cache(sound: Sound) -> list[Summary]:
    path = sound.clone()
    shutil.rmtree(path / "summaries")
    with Store.open(path) as store:
        return store.summaries()


def test_the_cache_of_summaries_is_read(sound: Sound, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of a damaged cache say something only if the one they damage is used: no manifest and no state log is read."""
    before = summaries_without_cache(sound)
    path = sound.clone()
    for name in sound.files("images/*/*.img"):
        replace_content(path / name, b"damaged")
    with Store.open(path) as store:
        monkeypatch.setattr(store.state_log, "read", lambda _content: pytest.fail("a state log was read"))
        assert store.summaries() == before


def test_a_state_log_that_changed_is_read_whatever_the_cache_says(sound: Sound) -> None:
    before = {summary.id: summary.state for summary in summaries_without_cache(sound)}
    image_id = next(iter(sound.images))
    path = sound.clone()
    with Store.open(path) as store:
        time.sleep(2 * CLOCK_TICK / 1e9)
        store.summaries()
        store.record([image_id], "staged")
        assert {summary.id: summary.state for summary in store.summaries()} == {**before, image_id: "staged"}


def test_a_flipped_bit_in_the_cache_of_summaries_changes_nothing(sound: Sound) -> None:
    before = summaries_without_cache(sound)
    for name in sound.files("summaries/*"):
        for at in range(0, (sound.path / name).stat().st_size, 7):  # and each bit in turn
            path = sound.clone()
            flipped = bytearray((path / name).read_bytes())
            flipped[at] ^= 1 << at % 8
            replace_content(path / name, bytes(flipped))
            with Store.open(path) as store:
                assert store.summaries() == before
        for data in (b"", b"x", bytes(100)):
            path = sound.clone()
            replace_content(path / name, data)
            with Store.open(path) as store:
                assert store.summaries() == before


@pytest.mark.parametrize(
    "value", [None, [], [[], 0], [[[1]], 0, {}], [["x"] * 19], [[10**18] * 19], [[-1] * 19], {"x": 1}, [[["x"], [], {}]], 7]
)
def test_a_cache_of_summaries_of_another_program_changes_nothing(sound: Sound, value: object) -> None:
    path = sound.clone()
    with Store.open(path) as store:
        before = store.summaries()
        for name in sound.files("summaries/*"):
            replace_content(path / name, store.aead.encrypt(b"summaries" + name.name.encode(), msgpack.packb(value)))
        assert store.summaries() == before


# torn and reordered writes: what a power cut leaves if nothing was synced ------------------------------------------------------


def test_files_of_a_power_cut_without_durability(sound: Sound, tmp_path: Path) -> None:
    """Names are there, and their content only as far as it had been written: any prefix, zeros after it, or nothing."""
    path = sound.clone()
    with Store.open(path) as store:
        made = store.put(str(write_sparse(tmp_path / "source", content([5, *range(2000, 2100)]))), Label("m"))
    new = [file.relative_to(path) for file in path.rglob("*") if file.is_file() and not (sound.path / file.relative_to(path)).exists()]
    assert {one.suffix for one in new} == {".pack", ".idx", ".img", ".log"}
    saved = {name: (path / name).read_bytes() for name in new}
    for round_ in range(10):
        for name, data in saved.items():
            keep = sound.bits.choice((0, sound.bits.randrange(len(data)), len(data)))
            torn = data[:keep] + bytes((len(data) - keep) * (round_ & 1))
            replace_content(path / name, torn)
        old = [error for error in survey(path, sound.images) if "repair" not in str(error)]
        assert old == []  # other errors say that the index must be rebuilt
        survey(path, {made.id: content([5, *range(2000, 2100)])})
        done = repaired(path)
        assert set(done.lost) <= {made.id}
        assert survey(path, sound.images) == []
        for name, data in saved.items():
            (path / name).unlink(missing_ok=True)
            replace_content_of_new(path / name, data)


def test_names_that_are_not_the_stores_are_passed_over(sound: Sound) -> None:
    path = sound.clone()
    for name in (
        "images/x.img", "images/" + "0" * 32 + ".img", "images/0000/" + "0" * 31 + ".img", "images/0000/" + "A" * 32 + ".img",
        "images/0000/" + "1" * 32 + ".img", "images/0000/x", "machines/x", "images/.hidden", "images/lost+found", "packs/x.pack",
        "packs/zz/zz.pack", "packs/README", "packs/ab/" + "0" * 31 + ".pack", "index/x.idx", "index/" + "Z" * 32 + ".idx", "states/x.log",
        "trash/x", "x", "locks/x",
    ):  # fmt: skip
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"not ours")
    assert survey(path, sound.images) == [] and verdicts(path, sound.images) == []
    with Store.open(path) as store:
        assert len(store.summaries()) == len(sound.images)
        assert len(list(store.state_log.contents())) == len(sound.images)
        collect(store, dry_run=False, progress=SILENT)
        assert repair(store, SILENT).packs_bad == []
    assert (path / "packs" / "x.pack").exists() and (path / "images" / "x.img").exists()


def test_an_object_of_another_store_does_not_open(sound: Sound, tmp_path: Path) -> None:
    encryption = json.loads((sound.path / "store.json").read_text())["encryption"] != "none"
    with Store.create(tmp_path / "other", encryption=encryption, durability="none") as store:
        store.put(str(write_sparse(tmp_path / "source", VERSIONS[0])), Label("m"))
    for pattern in ("images/*/*.img", "index/*.idx", "packs/*/*.pack"):
        name = sound.files(pattern)[0]
        path = sound.clone()
        replace_content(path / name, next((tmp_path / "other").glob(pattern)).read_bytes())
        assert survey(path, sound.images), pattern
        assert verdicts(path, sound.images), pattern


def test_halves_and_rows_agree_with_the_format() -> None:
    digest = bytes(range(16))
    high, low = halves(digest)
    assert int(high[0]).to_bytes(8, "little") + int(low[0]).to_bytes(8, "little") == digest


def test_a_store_with_a_key_does_not_become_one_without(tmp_path: Path) -> None:
    """Whoever can write to the directory must not get the next put to store in clear text."""
    path = tmp_path / "store"
    with Store.create(path) as store:
        store_id = store.config.id
    with Store.create(tmp_path / "other", encryption=False):
        forged = json.loads((tmp_path / "other" / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**forged, "id": store_id}))
    with pytest.raises(Refused, match="was encrypted"):
        Store.open(path)
