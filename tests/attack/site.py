"""A web server that sends, for each path, the bytes it is given, as they go over the wire."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Part = bytes | float
"""Bytes to send, or seconds to wait; below zero, the connection is reset."""
Route = Callable[[], Iterator[Part]]
RESET, SILENCE = -1.0, 3600.0
MOST_SENT = 160 << 20
"""What a reader that is bounded never takes, the buffers on the way included."""
LONGEST_S = 90.0


class Site:
    """The routes by path, the paths that were asked for, and the bytes that were taken."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.asked: list[str] = []
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._round = itertools.count()
        self._current = 0

    def at(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def begin(self, routes: dict[str, Route]) -> None:
        """Serve these from now on; what still runs for those before ends."""
        self._current = next(self._round)
        self.routes, self.asked, self.sent = routes, [], 0

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self._current = -1
        # A closed listener alone does not wake a thread that waits for it.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _answer(self, connection: socket.socket) -> None:
        mine, ends = self._current, time.monotonic() + LONGEST_S
        with connection, suppress(OSError, ValueError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
            connection.settimeout(LONGEST_S)
            path = _path(connection)
            self.asked.append(path)
            route = self.routes.get(path.partition("?")[0])
            for part in route() if route else iter([b"HTTP/1.1 404 Not Found\r\n\r\n"]):
                late = time.monotonic() > ends or self.sent > MOST_SENT
                if mine != self._current or late:
                    return
                if isinstance(part, bytes):
                    connection.sendall(part)
                    self.sent += len(part)
                elif part < 0:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return
                elif _left_within(connection, part):
                    return


def _path(connection: socket.socket) -> str:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < 1 << 20:
        data = connection.recv(65536)
        if not data:
            break
        head += data
    # Empty where the reader was ended before it asked.
    return head.partition(b" ")[2].partition(b" ")[0].decode("latin-1")


def _left_within(connection: socket.socket, seconds: float) -> bool:
    """Wait, or until the reader is gone."""
    connection.settimeout(min(seconds, LONGEST_S))
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    finally:
        connection.settimeout(LONGEST_S)


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.run, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.close()
        thread.join(10)
