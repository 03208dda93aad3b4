# SPDX-License-Identifier: GPL-3.0-or-later
"""Another user owns the folder that root's ``get`` writes to: he puts files, links and names there before and meanwhile, and must
neither lead the bytes elsewhere, nor get at them, nor have his own taken for them. He acts as the user ``nobody``."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuse_store.errors import Refused, UsageError
from fuse_store.image import restore
from fuse_store.progress import SILENT, Silent
from fuse_store.store import Label, Store
from tests.store.conftest import content, fork, needs_root, wait

NOBODY = 65534
DATA = content(range(1, 1500))
SECRET = b"of root's"
PATIENCE = 20.0  # seconds


@dataclass
class Place:
    """``folder`` is the attacker's; ``victim`` is a directory that only root may write to, with one file of root's."""

    folder: Path
    victim: Path

    @property
    def file(self) -> Path:
        return self.victim / "file"

    def untouched(self) -> bool:
        return [path.name for path in self.victim.iterdir()] == ["file"] and self.file.read_bytes() == SECRET


@pytest.fixture
def place() -> Iterator[Place]:
    needs_root()
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is closed to others
        root = Path(directory)
        root.chmod(0o755)
        for name in ("folder", "victim"):
            (root / name).mkdir()
        (root / "victim" / "file").write_bytes(SECRET)
        os.chown(root / "folder", NOBODY, NOBODY)
        yield Place(root / "folder", root / "victim")


@pytest.fixture
def image_id(store: Store, tmp_path: Path) -> str:
    (tmp_path / "source").write_bytes(DATA)
    return store.put(str(tmp_path / "source"), Label("m")).id


@pytest.fixture
def several_id(store: Store, tmp_path: Path) -> str:
    (tmp_path / "several" / "sub").mkdir(parents=True)
    (tmp_path / "several" / "a").write_bytes(DATA)
    (tmp_path / "several" / "sub" / "b").write_bytes(DATA)
    return store.put(str(tmp_path / "several"), Label("several")).id


def as_nobody(act: Callable[[], object]) -> None:
    assert wait(start_as_nobody(act)) == 0


def start_as_nobody(act: Callable[[], object]) -> int:
    def work() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        act()

    return fork(work)


def names_to_guess(target: str, image_id: str) -> list[str]:
    """Partial files of a target, as whoever knows the version and the boot may guess them."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    start = f".{target}.{image_id[:12]}.{boot}"
    return [f"{start}.partial", *(f"{start}.{number:08x}.partial" for number in range(3)), f".{image_id[:12]}.{boot}.partial"]


class MeanWhile(Silent):
    """Lets the attacker act when the first bytes were written: starts him, and waits for him."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act: Callable[[], object] | None = act

    def at(self, done: int) -> None:
        if self._act is not None:
            act, self._act = self._act, None
            as_nobody(act)


def get(store: Store, image_id: str, target: Path, progress: Silent = SILENT) -> None:
    restore.get(store.open_image(image_id), str(target), progress)


# the partial file ------------------------------------------------------------------------------------------------------------


def plant_file(name: Path, place: Place) -> None:
    name.write_bytes(b"mine")
    name.chmod(0o666)


def plant_link(name: Path, place: Place) -> None:
    name.symlink_to(place.file)


def plant_pipe(name: Path, place: Place) -> None:
    os.mkfifo(name, 0o666)


@pytest.mark.parametrize("plant", [plant_file, plant_link, plant_pipe])
def test_no_partial_file_of_another_user_is_adopted(
    store: Store, image_id: str, place: Place, plant: Callable[[Path, Place], None]
) -> None:
    planted = [place.folder / name for name in names_to_guess("out", image_id)]

    def act() -> None:
        for name in planted:
            plant(name, place)

    as_nobody(act)
    get(store, image_id, place.folder / "out")
    status = (place.folder / "out").lstat()
    assert (place.folder / "out").read_bytes() == DATA and stat.S_ISREG(status.st_mode) and status.st_uid == 0
    assert place.untouched()
    assert all(name.lstat().st_uid == NOBODY for name in planted)  # nor is one removed


def test_a_file_of_roots_with_two_names_is_not_adopted(store: Store, image_id: str, place: Place) -> None:
    (name,) = names_to_guess("out", image_id)[1:2]
    os.link(place.file, place.folder / name)  # where fs.protected_hardlinks is off, its owner need not do that
    place.file.chmod(0o600)
    get(store, image_id, place.folder / "out")
    assert (place.folder / "out").read_bytes() == DATA and place.untouched()


def test_a_file_of_roots_that_another_has_open_is_not_adopted(store: Store, image_id: str, place: Place) -> None:
    """Root made it, open to all; the attacker opens it, keeps it open, and gives it the name of a partial file."""
    left = place.folder / "left"
    left.write_bytes(b"")
    left.chmod(0o666)
    reader, writer = os.pipe()
    done, go_on = os.pipe()

    def keep_open() -> None:
        with open(left, "r+b", buffering=0) as kept:
            os.rename(left, place.folder / names_to_guess("out", image_id)[1])
            os.write(writer, b"x")
            os.read(done, 1)
            kept.write(b"mine")

    child = start_as_nobody(keep_open)
    os.read(reader, 1)
    (place.folder / names_to_guess("out", image_id)[1]).chmod(0o600)
    try:
        get(store, image_id, place.folder / "out")
    finally:
        os.write(go_on, b"x")
        assert wait(child) == 0
    assert (place.folder / "out").read_bytes() == DATA


def test_a_partial_file_that_is_exchanged_is_not_taken_for_the_image(store: Store, image_id: str, place: Place) -> None:
    def exchange() -> None:
        for partial in place.folder.glob(".out.*.partial"):
            partial.unlink()
            partial.write_bytes(b"mine")

    with pytest.raises(Refused, match="another file"):
        get(store, image_id, place.folder / "out", MeanWhile(exchange))


def test_what_is_written_is_open_to_nobody(store: Store, image_id: str, place: Place) -> None:
    def look() -> None:
        for partial in place.folder.glob(".out.*.partial"):
            with pytest.raises(PermissionError):
                partial.read_bytes()

    get(store, image_id, place.folder / "out", MeanWhile(look))
    assert [path.name for path in place.folder.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["memory", "hibernation"])
def test_a_planted_target_does_not_make_a_private_image_his(store: Store, place: Place, tmp_path: Path, kind: str) -> None:
    (tmp_path / "source").write_bytes(DATA)
    private = store.put(str(tmp_path / "source"), Label("m", kind=kind)).id

    def plant() -> None:
        (place.folder / "out").write_bytes(b"mine")
        (place.folder / "out").chmod(0o666)

    as_nobody(plant)
    get(store, private, place.folder / "out")
    status = (place.folder / "out").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode) & 0o077) == (0, 0) and (place.folder / "out").read_bytes() == DATA
    place.folder.chmod(0o755)
    os.chown(place.folder, 0, 0)
    os.chown(place.folder / "out", NOBODY, NOBODY)
    get(store, private, place.folder / "out")  # as root has arranged it
    assert (place.folder / "out").stat().st_uid == NOBODY


# links -----------------------------------------------------------------------------------------------------------------------


def test_a_link_of_another_user_is_not_written_through(store: Store, image_id: str, place: Place) -> None:
    as_nobody(lambda: (place.folder / "out").symlink_to(place.file))
    with pytest.raises(Refused, match="symbolic link of the user 65534"):
        get(store, image_id, place.folder / "out")
    assert place.untouched()


def test_nor_one_on_the_way_to_the_target(store: Store, image_id: str, place: Place, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    as_nobody(lambda: (place.folder / "way").symlink_to(elsewhere))
    for target in ("way/out", "way/../out", "way/."):
        with pytest.raises((Refused, UsageError)):
            get(store, image_id, place.folder / target)
    with pytest.raises(Refused, match="a symbolic link of the user"):
        get(store, image_id, place.folder / "way" / "out")
    assert list(elsewhere.iterdir()) == []


def test_nor_a_link_that_a_link_of_roots_leads_to(store: Store, image_id: str, place: Place, tmp_path: Path) -> None:
    as_nobody(lambda: (place.folder / "out").symlink_to(place.file))
    (tmp_path / "link").symlink_to(place.folder / "out")
    with pytest.raises(Refused, match="symbolic link of the user"):
        get(store, image_id, tmp_path / "link")
    assert place.untouched()


def test_nor_a_link_of_roots_under_a_name_of_his(store: Store, image_id: str, place: Place) -> None:
    (place.folder.parent / "link").symlink_to(place.file)
    os.link(place.folder.parent / "link", place.folder / "out", follow_symlinks=False)  # fs.protected_hardlinks keeps others from it
    with pytest.raises(Refused, match="several names"):
        get(store, image_id, place.folder / "out")
    assert place.untouched()


def test_a_link_that_takes_the_place_of_the_target_meanwhile(store: Store, image_id: str, place: Place) -> None:
    get(store, image_id, place.folder / "out", MeanWhile(lambda: (place.folder / "out").symlink_to(place.file)))
    assert place.untouched() and not (place.folder / "out").is_symlink() and (place.folder / "out").read_bytes() == DATA


def test_a_link_that_takes_the_place_of_the_folder_meanwhile(store: Store, image_id: str, place: Place) -> None:
    as_nobody((place.folder / "deep").mkdir)

    def exchange() -> None:
        os.rename(place.folder / "deep", place.folder / "moved")
        (place.folder / "deep").symlink_to(place.victim)

    get(store, image_id, place.folder / "deep" / "out", MeanWhile(exchange))
    assert place.untouched() and (place.folder / "moved" / "out").read_bytes() == DATA


# directories -----------------------------------------------------------------------------------------------------------------


def test_a_directory_with_planted_links_and_a_marker(store: Store, several_id: str, place: Place) -> None:
    def plant() -> None:
        (place.folder / "sub").symlink_to(place.victim)
        (place.folder / "a").symlink_to(place.file)
        for name in (f".{several_id[:12]}.", *names_to_guess("", several_id)):
            with contextlib.suppress(FileExistsError):
                (place.folder / name).touch()

    as_nobody(plant)
    with pytest.raises(Refused, match="not empty"):
        get(store, several_id, place.folder)
    assert place.untouched()


def test_a_link_that_is_planted_in_the_directory_meanwhile(store: Store, several_id: str, place: Place) -> None:
    """In the place of a directory that the get has made."""

    def plant() -> None:
        (place.folder / "sub").rmdir()
        (place.folder / "sub").symlink_to(place.victim)

    with pytest.raises(Refused, match=r"sub: a link or a file"):
        get(store, several_id, place.folder, MeanWhile(plant))
    assert place.untouched()


@pytest.mark.parametrize("kind", ["file", "right file", "pipe"])
def test_a_planted_file_of_the_right_size_and_time_is_not_taken_for_the_image(
    store: Store, several_id: str, place: Place, kind: str
) -> None:
    """Root's get is killed when one file is whole; the attacker puts his own in its place; root runs the get again."""

    class Killed(Silent):
        def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
            if (place.folder / "a").exists():
                os.kill(os.getpid(), 9)

    assert wait(fork(lambda: get(store, several_id, place.folder, Killed()))) == -9
    status = (place.folder / "a").stat()

    def exchange() -> None:
        (place.folder / "a").unlink()
        if kind == "pipe":  # whose opening would block
            os.mkfifo(place.folder / "a")
            return
        # Also with the right bytes, which its owner could change later.
        (place.folder / "a").write_bytes(DATA if kind == "right file" else b"mine".ljust(status.st_size))
        os.utime(place.folder / "a", ns=(status.st_mtime_ns, status.st_mtime_ns))

    as_nobody(exchange)
    get(store, several_id, place.folder)
    assert (place.folder / "a").read_bytes() == DATA and (place.folder / "sub" / "b").read_bytes() == DATA
    assert {path.stat().st_uid for path in (place.folder / "a", place.folder / "sub" / "b")} == {0}


def test_a_user_cannot_stop_a_get_by_a_lock(store: Store, image_id: str, place: Place) -> None:
    import fcntl

    reader, writer = os.pipe()

    def lock() -> None:
        kept = []
        for name in names_to_guess("out", image_id):
            kept.append(open(place.folder / name, "w"))  # noqa: SIM115
            fcntl.flock(kept[-1], fcntl.LOCK_EX)
        os.write(writer, b"x")
        time.sleep(PATIENCE)

    child = start_as_nobody(lock)
    os.read(reader, 1)
    try:
        get(store, image_id, place.folder / "out")
    finally:
        os.kill(child, 9)
        wait(child)
    assert (place.folder / "out").read_bytes() == DATA
