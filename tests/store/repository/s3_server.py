# SPDX-License-Identifier: GPL-3.0-or-later
"""A real S3-compatible server (SeaweedFS) with a directory as its storage, on 127.0.0.1. Used by ``test_object``."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

BUCKET = "images"
REGION = "us-east-1"
OWNER, READER = ("owner", "owner-secret"), ("reader", "reader-secret")  # access key, secret
ACTIONS = {OWNER: ["Admin", "Read", "Write", "List", "Tagging"], READER: ["Read", "List"]}
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")


def environment(endpoint: str, keys: tuple[str, str] = OWNER) -> dict[str, str]:
    """What a client of the server has in its environment."""
    return {
        "AWS_ACCESS_KEY_ID": keys[0], "AWS_SECRET_ACCESS_KEY": keys[1], "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": REGION,
        "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip


@contextlib.contextmanager
def server(directory: Path) -> Iterator[str]:
    """A server with one empty bucket; its endpoint."""
    beside = Path(sys.executable).parent / "weed"
    program = str(beside) if beside.exists() else shutil.which("weed")
    assert program, "weed is not here: pip install -r requirements-dev.txt"
    keys = [
        {"name": account[0], "credentials": [{"accessKey": account[0], "secretKey": account[1]}], "actions": actions}
        for account, actions in ACTIONS.items()
    ]
    (directory / "keys.json").write_text(json.dumps({"identities": keys}))
    (directory / "data").mkdir()
    for _attempt in range(3):  # another process may take a port that was free a moment ago
        ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        command = [
            program, "-logtostderr=true", "server", f"-dir={directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
            f"-s3.config={directory / 'keys.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=128", "-volume.max=100",
            *(f"-{name}={port}" for name, port in ports.items()),
        ]  # fmt: skip
        with open(directory / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process:
            try:
                if _make_bucket(endpoint, process, time.monotonic() + 40):
                    yield endpoint
                    return
            finally:
                process.send_signal(signal.SIGKILL)
                for port in ports.values():  # sockets that it makes there, whatever TMPDIR says
                    for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                        left.unlink(missing_ok=True)
    raise AssertionError(f"the server does not come up: {(directory / 'log').read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _make_bucket(endpoint: str, process: subprocess.Popen[bytes], until: float) -> bool:
    """PUT the bucket, which obstore can't, signed with AWS Signature Version 4, as soon as the server answers; False if it does
    not."""
    while process.poll() is None and time.monotonic() < until:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        empty = hashlib.sha256(b"").hexdigest()
        host = endpoint.removeprefix("http://")
        headers = {"host": host, "x-amz-content-sha256": empty, "x-amz-date": now}
        names = ";".join(headers)
        request = "\n".join(["PUT", f"/{BUCKET}", "", *(f"{key}:{value}" for key, value in headers.items()), "", names, empty])
        scope = f"{now[:8]}/{REGION}/s3/aws4_request"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()])
        key = f"AWS4{OWNER[1]}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={OWNER[0]}/{scope}, SignedHeaders={names}, Signature={signature}"
        try:
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT", headers=headers), timeout=5).close()
            return True
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    return False
