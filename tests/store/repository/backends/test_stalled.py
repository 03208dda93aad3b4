# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that stalls: it keeps connections open, and sends nothing more."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fuse_store.errors import Damaged, StoreError
from fuse_store.repository.backends import backend, s3
from fuse_store.store import Label, Store
from tests.store.conftest import content, needs_root


class Line:
    """A line to a server that can stall."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.works = threading.Event()
        self.works.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                server = socket.create_connection(self._server)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.works.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def line(endpoint: str, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    server = urlsplit(endpoint)
    made = Line(str(server.hostname), int(server.port or 0))
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    yield made
    made.close()


def test_a_request_ends(url: str, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bounded time, and is no damage; what asks for a list right after it does not wait again."""
    assert s3.SILENCE_SECONDS + s3.RETRY_SECONDS <= 45
    patient = backend(url)
    patient.write("images/a.img", b"content", sync=False)
    with monkeypatch.context() as patch:
        patch.setattr(s3, "SILENCE_SECONDS", 1)
        patch.setitem(s3.RETRIES, "max_retries", 1)
        where = backend(url)
    line.works.clear()
    for ask in (lambda: where.read("images/a.img"), lambda: where.changed("images")):
        began = time.monotonic()
        with pytest.raises(StoreError, match="cannot reach the server") as caught:
            ask()
        assert not isinstance(caught.value, Damaged) and 1 <= time.monotonic() - began < 10
    began = time.monotonic()
    for list_ in (where.changed, where.names, where.directories, where.has_directory):
        with pytest.raises(StoreError):
            list_("images")
    assert time.monotonic() - began < 1
    line.works.set()
    assert patient.changed("images")[0] and patient.read("images/a.img") == b"content"


@pytest.mark.parametrize("background", [False, True])
def test_a_mount_ends_by_sigterm(url: str, line: Line, tmp_path: Path, background: bool) -> None:
    """Within seconds, though requests wait for the server."""
    needs_root()
    source, point = tmp_path / "source", tmp_path / "point"
    source.write_bytes(content(range(1, 2000)))
    point.mkdir()
    with Store.create(url) as store:
        store.put(str(source), Label("m"))
    command = [sys.executable, "-m", "fuse_store.cli", "--store", url, "mount", str(point), *(() if background else ("-f",))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while not os.path.ismount(point):
            assert background or process.poll() is None
            time.sleep(0.05)
        image = open(point / "machines/m/system/latest/image", "rb")  # noqa: SIM115
        image.read(1)
        line.works.clear()
        time.sleep(1.1)
        null = subprocess.DEVNULL
        asking = [
            subprocess.Popen(["ls", str(point / "machines/m")], stdout=null, stderr=null),
            subprocess.Popen(["tail", "-c", "1000000"], stdin=image, stdout=null, stderr=null),
        ]
        image.close()
        time.sleep(1)
        if background:
            words = (b"fuse_store.cli", str(point).encode())
            (pid,) = (int(name) for name in os.listdir("/proc") if all(word in command_of(name) for word in words))
        else:
            pid = process.pid
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        while os.path.exists(f"/proc/{pid}") and command_of(str(pid)):
            process.poll()
            assert time.monotonic() - began < 12, "it does not end"
            time.sleep(0.1)
        assert not os.path.ismount(point)
        for one in asking:
            one.wait(10)
    finally:
        line.works.set()
        subprocess.run(["fusermount3", "-u", "-z", str(point)], capture_output=True, check=False)
        process.kill()
        process.wait()


def command_of(pid: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
