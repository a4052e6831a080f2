"""A bucket on this machine: moto's server in a process, and a proxy before it that does harm."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Open = Callable[..., Any]
"""Opens the bucket as a machine of this name does."""
SECRET = "a-key-that-nobody-may-read"
SERVER = """
import logging, time
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(1e6)
"""


@contextlib.contextmanager
def moto() -> Iterator[int]:
    """The port of a running server, with an empty bucket named "videos"."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(re.findall(r"\d+$", server.stdout.readline())[0])
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/videos",
            method="PUT",
            headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/x"},
        )
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(request, timeout=5)
                break
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


@dataclass
class Proxy:
    """Passes HTTP on to `port`, a request at a time for each connection, and counts it.

    `times`: answer so many requests with `status` instead. `cut_read`, `cut_write`: cut so many
    connections in the middle of a large answer or request. `lost`: pass so many writes on and cut
    the connection before their answer. `ignore`: drop the conditions of requests. `only`: what a
    request's first line must contain for any of it.
    """

    port: int
    status: int = 0
    times: int = 0
    cut_read: int = 0
    cut_write: int = 0
    lost: int = 0
    ignore: bool = False
    only: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    signed: list[str] = field(default_factory=list)
    sent: int = 0
    received: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def clear(self) -> None:
        """Forget what was counted."""
        self.requests.clear()
        self.lines.clear()
        self.sent = self.received = 0

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError, EOFError), client:
            server = socket.create_connection(("127.0.0.1", self.port))
            with server, client.makefile("rb") as asked, server.makefile("rb") as answers:
                while self._pass_one(client, server, asked, answers):
                    pass

    def _take(self, fault: str) -> bool:
        """Whether this fault is due now."""
        with self._lock:
            left = getattr(self, fault)
            setattr(self, fault, max(0, left - 1))
            return bool(left > 0)

    def _pass_one(self, client, server, asked, answers) -> bool:
        head = _head(asked)
        line = head.split(b"\r\n")[0].decode()
        with self._lock:
            self.requests[line.split()[0]] += 1
            self.lines.append(line)
            self.signed += re.findall(r"(?i)authorization: ([^\r]*)", head.decode())
        length = _length(head)
        meant = self.only in line
        if meant and self._take("times"):
            asked.read(length)
            body = b"<Error><Code>SlowDown</Code></Error>"
            answer = f"HTTP/1.1 {self.status} no\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            client.sendall(answer + body)
            return True
        if self.ignore:
            head = re.sub(rb"(?i)\r\nif-(none-)?match:[^\r]*", b"", head)
        server.sendall(head)
        if meant and length > 1 << 17 and self._take("cut_write"):
            server.sendall(asked.read(1 << 16))
            return False
        self._body(asked, server, length)
        with self._lock:
            self.sent += length
        answer = _head(answers)
        if meant and line.startswith("PUT") and self._take("lost"):
            return False
        size = 0 if line.startswith("HEAD") or b" 304 " in answer[:20] else _length(answer)
        client.sendall(answer)
        if meant and size > 1 << 17 and self._take("cut_read"):
            client.sendall(answers.read(1 << 16))
            return False
        self._body(answers, client, size)
        with self._lock:
            self.received += size
        return b"connection: close" not in answer.lower()

    def _body(self, source, target, length: int) -> None:
        while length:
            data = source.read(min(length, 1 << 18))
            if not data:
                raise EOFError
            target.sendall(data)
            length -= len(data)


def _head(file) -> bytes:
    lines = [file.readline()]
    while lines[-1] not in (b"\r\n", b""):
        lines.append(file.readline())
    if lines[-1] == b"":
        raise EOFError
    return b"".join(lines)


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0


def environment(address: str) -> dict[str, str]:
    """What a process needs to use the bucket through this address."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "no_proxy": os.environ.get("no_proxy", "127.0.0.1"),
    }
