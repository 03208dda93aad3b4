# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of directories: what comes back is what was stored, with its empty directories, links, permissions and times."""

from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_store.errors import Refused, StoreError, UsageError
from fuse_store.image import diff, restore
from fuse_store.image.diff import Name
from fuse_store.image.inputs import open_input
from fuse_store.image.targets import entries
from fuse_store.mount.tree import Directory, File, Link, Tree
from fuse_store.progress import SILENT, Silent
from fuse_store.repository import manifest
from fuse_store.store import Label, Store
from tests.store.conftest import fork, umask, wait

LONG = "x" * 4095  # as long as a link may be
OLD = 1_600_000_000_123_456_789  # ns


def described(root: Path, times: bool = True) -> dict[str, tuple[int, int, object]]:
    """All below a directory, itself included, by path: type and permissions, time, and content or target."""
    found = {}
    for folder, folders, files in os.walk(root):
        for path in [Path(folder), *(Path(folder, name) for name in (*folders, *files))]:
            status = path.lstat()
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns if times else 0, content)
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    for name in ("empty/in/empty", "sub/deep", "read-only", "ünï"):
        (root / name).mkdir(parents=True)
    for name in ("a", "sub/b", "sub/deep/c", "read-only/d", "ünï/e"):
        (root / name).write_bytes(name.encode() * 3000)
    (root / "none").write_bytes(b"")
    for name, target in (
        ("link", "sub/b"), ("to-directory", "sub"), ("sub/up", "../a"), ("nowhere", "/no/such/file"), ("itself", "itself"), ("ünï/ß", LONG),
    ):  # fmt: skip
        (root / name).symlink_to(target)
    (root / "sub/b").chmod(0o754)
    (root / "sub").chmod(0o3711)
    (root / "read-only").chmod(0o555)
    root.chmod(0o750)
    for number, folder in enumerate((root / "sub/deep", root / "sub", root / "read-only", root / "link", root)):
        os.utime(folder, ns=(OLD + number, OLD + number), follow_symlinks=False)
    return root


def get(store: Store, image_id: str, target: Path, progress: Silent = SILENT) -> None:
    restore.get(store.open_image(image_id), str(target), progress)


def test_everything_comes_back(store: Store, source: Path, tmp_path: Path) -> None:
    before = described(source)
    made = store.put(str(source), Label("m"))
    assert made.directory and made.files == 6
    with umask(0):
        get(store, made.id, tmp_path / "got")
    assert described(tmp_path / "got") == before == described(source)


def test_as_the_umask_and_the_kind_allow(store: Store, source: Path, tmp_path: Path) -> None:
    for kind, mask in (("file", 0o027), ("process", 0)):
        made = store.put(str(source), Label("m", kind=kind))
        with umask(mask):
            get(store, made.id, tmp_path / kind)
        allowed = 0o750 if kind == "file" else 0o700
        for name, (mode, *_others) in described(source).items():
            status = (tmp_path / kind / name).lstat()
            assert stat.S_ISLNK(status.st_mode) or status.st_mode == mode & (~0o777 | allowed), name


def test_a_directory_that_is_there_keeps_its_permissions(store: Store, source: Path, tmp_path: Path) -> None:
    made = store.put(str(source), Label("m"))
    (tmp_path / "got").mkdir(mode=0o705)
    get(store, made.id, tmp_path / "got")
    assert stat.S_IMODE((tmp_path / "got").stat().st_mode) == 0o705
    assert {**described(tmp_path / "got"), ".": None} == {**described(source), ".": None}


@pytest.mark.parametrize("file", range(6))
def test_a_get_that_was_killed_goes_on(store: Store, source: Path, tmp_path: Path, file: int) -> None:
    made = store.put(str(source), Label("m"))

    class Killed(Silent):
        started = 0

        def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
            if self.started == file:
                os.kill(os.getpid(), 9)
            self.started += 1

    with umask(0):
        assert wait(fork(lambda: get(store, made.id, tmp_path / "got", Killed()))) == -9
        get(store, made.id, tmp_path / "got")
    assert described(tmp_path / "got") == described(source)


@pytest.mark.parametrize("step", ["make_links", "finish_directories", "finish_root"])
def test_a_get_that_was_killed_behind_the_files_goes_on(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made = store.put(str(source), Label("m"))
    real: Callable[..., None] = getattr(entries, step)

    def killed(*arguments: Any) -> None:
        real(*arguments)
        os.kill(os.getpid(), 9)

    with umask(0):
        with monkeypatch.context() as patched:
            patched.setattr(entries, step, killed)
            assert wait(fork(lambda: get(store, made.id, tmp_path / "got"))) == -9
        if step != "finish_root":  # then nothing is missing
            get(store, made.id, tmp_path / "got")
    assert described(tmp_path / "got") == described(source)


def test_a_refusal_leaves_what_another_get_has_begun(store: Store, source: Path, tmp_path: Path) -> None:
    """Nothing in the target changes, its time neither, and the first one goes on."""
    made = store.put(str(source), Label("m"))
    (source / "a").write_bytes(b"another")
    other = store.put(str(source), Label("m"))

    class Killed(Silent):
        def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
            if (tmp_path / "got" / "a").exists():
                os.kill(os.getpid(), 9)

    with umask(0):
        assert wait(fork(lambda: get(store, made.id, tmp_path / "got", Killed()))) == -9
        before = described(tmp_path / "got")
        with pytest.raises(Refused, match="has a part of another version"):
            get(store, other.id, tmp_path / "got")
        assert described(tmp_path / "got") == before
        get(store, made.id, tmp_path / "got")
        whole = described(tmp_path / "got")
        with pytest.raises(Refused, match="not empty, and the image is that of a directory"):
            get(store, made.id, tmp_path / "got")
    assert described(tmp_path / "got") == whole


def test_something_with_the_name_of_a_link_is_not_replaced(store: Store, source: Path, tmp_path: Path) -> None:
    made = store.put(str(source), Label("m"))

    class Meanwhile(Silent):
        def start(self, label: str, total: int | None, unit: str = "bytes") -> None:
            (tmp_path / "got" / "nowhere").write_bytes(b"mine")

    with pytest.raises(Refused, match="nowhere: is there already"):
        get(store, made.id, tmp_path / "got", Meanwhile())
    assert (tmp_path / "got" / "nowhere").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "empty/new").mkdir(), lambda root: (root / "empty/in/empty").rmdir(),
        lambda root: ((root / "link").unlink(), (root / "link").symlink_to("a")), lambda root: (root / "read-only").chmod(0o500),
        lambda root: (root / "sub/new").symlink_to("x"), lambda root: (root / "none").rename(root / "one"),
    ],
    ids=["a new directory", "a directory is gone", "a link leads elsewhere", "permissions", "a new link", "a new name"],
)  # fmt: skip
def test_what_changes_meanwhile(store: Store, source: Path, change: Callable[[Path], object], small: None) -> None:
    (source / "large").write_bytes(os.urandom(2 << 20))  # some of which is read afterwards
    for allow in (False, True):
        with open_input(str(source), allow_changing=allow) as opened:
            batches = opened.batches(4096)
            next(batches)
            if not allow:
                change(source)
                with pytest.raises(StoreError, match=r"(changed|gone) while being read"):
                    list(batches)
            else:
                (source / "empty/also").mkdir()
                list(batches)
                assert opened.tags == {"consistent": "no"}


def test_what_a_link_says_that_is_no_text(store: Store, source: Path) -> None:
    os.symlink(b"\xff", os.fsencode(source / "bad"))
    with pytest.raises(UsageError, match=r"bad: what the link leads to is not UTF-8"):
        store.put(str(source), Label("m"))
    (source / "bad").unlink()
    os.symlink("x", os.fsencode(source) + b"/\xff")
    with pytest.raises(UsageError, match=r"the file name is not UTF-8"):
        store.put(str(source), Label("m"))


def test_a_directory_that_must_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o755)
        (root / "sub" / "closed").mkdir(parents=True)
        (root / "sub" / "closed").chmod(0o700)

        def look() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            else:
                (root / "sub" / "closed").chmod(0)
            with pytest.raises(StoreError, match=rf"source {root}/sub/closed: Permission denied"):
                open_input(str(root))

        assert wait(fork(look)) == 0
        (root / "sub" / "closed").chmod(0o700)


def test_a_directory_of_one_file_is_a_directory(store: Store, tmp_path: Path) -> None:
    for name in ("image", "other"):
        root = tmp_path / name
        (root / "sub").mkdir(parents=True)
        (root / name).write_bytes(b"x")
        made = store.put(str(root), Label("m", application=name))
        get(store, made.id, tmp_path / f"{name} again")
        assert described(tmp_path / f"{name} again", times=False).keys() == {".", name, "sub"}
        with pytest.raises(UsageError, match="image of a directory"):
            restore.get(store.open_image(made.id), "-", SILENT)
        shown = Tree(store)
        assert isinstance(shown.node(("machines", "m", name, made.version, "image")), Directory)
        assert isinstance(shown.node(("machines", "m", name, made.version, "image", name)), File)
        shown.close()


def test_the_tree_of_a_mount(store: Store, source: Path) -> None:
    made = store.put(str(source), Label("m"))
    shown = Tree(store)
    top = ("machines", "m", "system", made.version, "image")
    for name, (mode, time, content) in described(source).items():
        node = shown.node((*top, *(name.split("/") if name != "." else ())))
        assert node.changed == time
        if stat.S_ISLNK(mode):
            assert isinstance(node, Link) and node.target == content
            with pytest.raises(NotADirectoryError):
                shown.node((*top, *name.split("/"), "b"))
        elif isinstance(node, Directory):
            types = {Directory: "d", File: "f", Link: "l"}
            real = {"l" if path.is_symlink() else "d" if path.is_dir() else "f" for path in (source / name).iterdir()}
            assert {types[kind] for _name, kind in node.names()} == real
            assert sorted(entry for entry, _kind in node.names()) == sorted(os.listdir(source / name))
        else:
            assert node.open().read(0, 1 << 20) == content  # type: ignore[union-attr]
    shown.close()


def test_versions_from_before_directories_were_recorded(store: Store, source: Path, tmp_path: Path) -> None:
    """They have files, and nothing else; and are shared with."""
    with open_input(str(source)) as opened:
        opened.directories, opened.links = (), ()
        made = store.put(opened, Label("m"))
    assert not made.directory and made.files == 6
    get(store, made.id, tmp_path / "got")
    assert sorted(described(tmp_path / "got")) == [
        ".", "a", "none", "read-only", "read-only/d", "sub", "sub/b", "sub/deep", "sub/deep/c", "ünï", "ünï/e",
    ]  # fmt: skip
    shown = Tree(store)
    assert isinstance(shown.node(("machines", "m", "system", made.version, "image", "sub")), Directory)
    shown.close()
    again = store.put(str(source), Label("m"))
    assert again.new == 0
    assert diff.names(store.open_image(made.id), store.open_image(again.id)) == []


def test_a_directory_and_a_file_that_are_compared(store: Store, source: Path) -> None:
    directory, file = (store.open_image(store.put(str(path), Label("m")).id) for path in (source, source / "a"))
    found = {(one.name, one.type, one.change) for one in diff.names(directory, file)}
    assert {("image", "file", "added"), ("empty", "directory", "gone"), ("nowhere", "link", "gone"), ("sub/b", "file", "gone")} <= found


def test_names_that_differ(store: Store, source: Path) -> None:
    first = store.put(str(source), Label("m"))
    (source / "empty/in/empty").rmdir()
    (source / "link").unlink()
    (source / "link").symlink_to("a")
    (source / "none").unlink()
    (source / "none").mkdir()
    (source / "new").write_bytes(b"")
    (source / "sub/b").chmod(0o600)
    second = store.put(str(source), Label("m"))
    a, b = store.open_image(first.id), store.open_image(second.id)
    assert list(diff.diff(a, b, SILENT)) == []
    assert diff.names(a, b) == [
        Name("empty/in/empty", "directory", "gone"), Name("link", "link", "changed"), Name("new", "file", "added"),
        Name("none", "directory", "changed"), Name("sub/b", "file", "changed"),
    ]  # fmt: skip
    assert diff.names(a, a) == []


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=5)
contents = st.recursive(
    st.one_of(st.binary(max_size=9000), names.map(lambda name: ("link", name))),
    lambda inner: st.dictionaries(names.filter(lambda name: name not in (".", "..")), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(names.filter(lambda name: name not in (".", "..")), contents, max_size=5))
def test_any_directory(store: Store, tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("any")

    def make(path: Path, inner: Any) -> None:
        if isinstance(inner, dict):
            path.mkdir()
            for name, one in inner.items():
                make(path / name, one)
        elif isinstance(inner, tuple):
            path.symlink_to(inner[1])
        else:
            path.write_bytes(inner)

    make(folder / "source", {**content, "a file": b"one"})
    made = store.put(str(folder / "source"), Label("m"))
    get(store, made.id, folder / "got")
    assert described(folder / "got") == described(folder / "source")


def test_a_head_that_says_it_is_a_directory_without_being_one(store: Store, source: Path) -> None:
    """Nothing that no reader would accept is written."""
    with open_input(str(source)) as opened:
        opened.directories = [dataclasses.replace(one, name="twice") for one in opened.directories]
        with pytest.raises(Refused, match="cannot be stored"):
            store.put(opened, Label("m"))
    assert store.ids() == [] and manifest.DIRECTORY_FORMAT == 2
