# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping a store: verify what is there, free what nobody needs, make a lost index anew. Used by ``cli``.

``verify`` only reads. ``collect`` and ``repair`` take the writer's lock. What they no longer need is moved to the trash
and destroyed by the collection after the next one, so that a reader which knew it a moment ago can still finish.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fuse_store.blocks import Block
from fuse_store.crypto import DIGEST
from fuse_store.durable import crash, sync_directory, write_file
from fuse_store.errors import Damaged, NotFound, StoreError
from fuse_store.packs import TRAILER, TRAILER_MAGIC, PackWriter, fragment_bytes, index_path, pack_path, parse_fragment
from fuse_store.progress import Progress
from fuse_store.store import Store, destroy_trash

WORTH_COPYING = 0.5  # a pack of which less than this is needed is copied; above, room is not worth the work
GRACE = 3600.0  # seconds that something stays in the trash


@dataclass
class Verdict:
    """What ``verify`` found of one version. ``state`` is sound or damaged."""

    id: str
    state: str = "sound"
    blocks: int = 0
    problems: list[str] = field(default_factory=list)


def verify(store: Store, ids: Sequence[str], sample: float, progress: Progress) -> list[Verdict]:
    """Read ``sample`` percent of the blocks of each version (0 to 100), and compare their pages with their digests."""
    verdicts = []
    sound: set[bytes] = set()
    bad: dict[bytes, str] = {}
    chance = random.Random(time.time_ns())
    progress.start("verify", None)
    done = 0
    for image_id in ids:
        verdict = Verdict(image_id)
        verdicts.append(verdict)
        try:
            image = store.open_image(image_id)
            jobs = []
            for digest, pack, offset in image.blocks():
                verdict.blocks += 1
                if digest in sound or chance.random() * 100 >= sample:
                    continue
                if digest in bad:
                    verdict.problems.append(f"{bad[digest]} (extent {offset:#x})")
                    continue
                jobs.append((digest, offset, store.blocks.begin(digest, pack)))
                if len(jobs) >= 32:
                    done += _settle(store, jobs, sound, bad, verdict)
                    progress.at(done)
            done += _settle(store, jobs, sound, bad, verdict)
        except (Damaged, NotFound) as error:
            verdict.problems.append(str(error))
        if verdict.problems:
            verdict.state = "damaged"
    progress.finish()
    return verdicts


def _settle(store: Store, jobs: list, sound: set[bytes], bad: dict[bytes, str], verdict: Verdict) -> int:  # type: ignore[type-arg]
    read = 0
    for digest, offset, job in jobs:
        try:
            pages = job.result()
            if store.sealer.digest(pages) != digest:
                raise Damaged(f"block {digest.hex()}", "its pages are not those it was named after.")
            sound.add(digest)
            read += len(pages)
        except Damaged as error:
            bad[digest] = str(error)
            verdict.problems.append(f"{error} (extent {offset:#x})")
    jobs.clear()
    return read


@dataclass
class Collected:
    """What ``collect`` did, or would do: packs, and bytes freed once the trash is emptied."""

    packs_kept: int = 0
    packs_removed: int = 0
    packs_copied: int = 0
    freed: int = 0
    versions_needed: int = 0


def collect(store: Store, *, dry_run: bool, progress: Progress) -> Collected:
    """Free the packs that no version needs, and copy what is needed out of those that are mostly unneeded.

    A pack is needed as long as any manifest names a block of it. If a manifest can't be read, nothing is freed.
    """
    result = Collected()
    with store.writing() as lock:
        needed = _needed(store, result)
        reader = store.reader
        progress.start("gc", None)
        for number, pack in enumerate(reader.packs()):
            progress.at(number)
            fragment = reader.fragment(pack)
            digests = fragment.digests()
            live = [
                row for row in range(len(fragment.high)) if needed.get(digests[row * DIGEST : (row + 1) * DIGEST]) in (None, pack)
                and digests[row * DIGEST : (row + 1) * DIGEST] in needed
            ]  # fmt: skip
            size = pack_path(store.path, pack).stat().st_size
            used = int(fragment.stored[live].sum()) if live else 0
            if live and used >= WORTH_COPYING * size:
                result.packs_kept += 1
                for row in live:
                    needed[digests[row * DIGEST : (row + 1) * DIGEST]] = pack
                continue
            result.freed += size - used
            result.packs_copied += bool(live)
            result.packs_removed += not live
            if dry_run:
                continue
            if live:
                _copy(store, pack, live, needed)
            lock.check()
            crash("gc drop index")
            _to_trash(store, index_path(store.path, pack))
            crash("gc drop pack")
            _to_trash(store, pack_path(store.path, pack))
            reader.forget(pack)
        progress.finish()
        if not dry_run:
            _empty(store)
    return result


def _needed(store: Store, result: Collected) -> dict[bytes, bytes | None]:
    """Every block that a version needs; the value is the pack that was chosen to keep it, once it is."""
    needed: dict[bytes, bytes | None] = {}
    for image_id in store.ids():
        try:
            needed.update(dict.fromkeys(digest for digest, _pack, _offset in store.open_image(image_id).blocks()))
        except Damaged as error:
            raise StoreError(
                f"store {store.path}", f"what image {image_id} needs is not known: {error}", "Nothing was freed. Remove or restore it."
            ) from None
        result.versions_needed += 1
    return needed


def _copy(store: Store, pack: bytes, rows: list[int], needed: dict[bytes, bytes | None]) -> None:
    """Copy blocks of a pack, as they are stored, into a new pack, which is durable when this returns."""
    fragment, pages = store.reader.page_digests(pack)
    count = -(-fragment.length.astype("i8") // store.config.page_size)
    first = count.cumsum() - count
    digests = fragment.digests()
    writer = PackWriter(store.path, store.sealer, store.config.durability != "none")
    try:
        with open(pack_path(store.path, pack), "rb") as file:
            for row in rows:
                digest = digests[row * DIGEST : (row + 1) * DIGEST]
                file.seek(int(fragment.offset[row]))
                block = Block(digest, int(fragment.length[row]), file.read(int(fragment.stored[row])))
                store.reader.read(digest, pack)  # a damaged block is not copied on: Damaged ends the collection
                own = pages[first[row] : first[row] + count[row]].astype("<u8").tobytes()
                needed[digest] = writer.add(block, own)
        writer.finish()
    finally:
        writer.abandon()


def _to_trash(store: Store, path: os.PathLike[str]) -> None:
    target = store.path / "trash" / os.path.basename(path)
    os.rename(path, target)
    os.utime(target)
    if store.config.durability != "none":
        sync_directory(target.parent)


def _empty(store: Store) -> None:
    """Destroy what has been in the trash for a while."""
    for entry in (store.path / "trash").iterdir():
        if time.time() - entry.stat().st_mtime > GRACE:
            crash("gc destroy")
            entry.unlink()


@dataclass
class Repaired:
    """What ``repair`` did. ``lost`` are versions that can't be read whole, with the reason."""

    fragments_made: int = 0
    packs_bad: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


def repair(store: Store, progress: Progress) -> Repaired:
    """Make index fragments that are missing or damaged anew, from the packs; then say which versions are not whole.

    Packs and manifests are never removed: what is damaged today may come back from a copy tomorrow.
    """
    result = Repaired()
    with store.writing() as lock:
        reader = store.reader
        packs = sorted((store.path / "packs").glob("??/*.pack"))
        progress.start("repair", None)
        for number, path in enumerate(packs):
            progress.at(number)
            try:
                pack = bytes.fromhex(path.stem)
                reader.page_digests(pack)
                continue
            except ValueError:
                continue  # no pack of ours
            except (Damaged, FileNotFoundError):
                pass
            try:
                fragment = _fragment_at_end(store, pack) or _fragment_by_scan(store, pack)
            except ValueError as error:
                result.packs_bad.append(f"{path.name}: {error}")
                continue
            lock.check()
            crash("repair index")
            write_file(index_path(store.path, pack), fragment, store.config.durability != "none")
            reader.forget(pack)
            result.fragments_made += 1
        (store.path / "index" / "summaries").unlink(missing_ok=True)
        for image_id in store.ids():
            try:
                for digest, hint, _offset in store.open_image(image_id).blocks():
                    if reader.locate(digest, hint) is None:
                        raise Damaged(f"block {digest.hex()}", "it is in no pack.", image=image_id)
            except (Damaged, NotFound) as error:
                result.lost[image_id] = str(error)
        progress.finish()
    return result


def _fragment_at_end(store: Store, pack: bytes) -> bytes | None:
    """What the pack itself says it holds, if its end is whole."""
    with open(pack_path(store.path, pack), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < TRAILER.size:
            return None
        file.seek(size - TRAILER.size)
        length, magic = TRAILER.unpack(file.read(TRAILER.size))
        if magic != TRAILER_MAGIC or length > size - TRAILER.size:
            return None
        file.seek(size - TRAILER.size - length)
        content = file.read(length)
    try:
        _fragment, end = parse_fragment(content, pack, store.sealer)
        store.sealer.open(b"pages" + pack, content[end:])
    except ValueError:
        return None
    return content


def _fragment_by_scan(store: Store, pack: bytes) -> bytes:
    """From the blocks that can still be read. Raises ValueError if it is no pack."""
    import xxhash

    from fuse_store.blocks import unpack_block

    rows = []
    size = store.config.page_size
    with open(pack_path(store.path, pack), "rb") as file:
        for digest, offset, stored, length in store.reader.scan(pack):
            file.seek(offset)
            try:
                pages = unpack_block(file.read(stored), digest, store.sealer)
            except ValueError:
                continue
            seed = store.sealer.page_seed
            digests = b"".join(xxhash.xxh3_128_digest(pages[at : at + size], seed) for at in range(0, len(pages), size))
            rows.append((digest, offset, stored, length, digests))
    return fragment_bytes(pack, rows, store.sealer)


def empty_trash(store: Store) -> None:
    """Destroy everything in the trash now."""
    with store.writing():
        destroy_trash(store.path)
