"""HTTP with bounds on the time and on the bytes over the wire, including heads, chunks and
trailers.

http.client bounds a line and the number of headers, but neither the lines that it skips (interim
responses, trailers) nor the time: a byte every few seconds keeps it waiting for days.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sttm_cli.decode.spool import LEAST_SPEED, TIMEOUT_S

HEAD_BYTES = 1 << 20
"""Bytes of all heads before one body, including those of redirects."""
SPARE = 2
"""Bytes over the wire per byte of the body: chunks add lines of their own."""


class TooMuch(http.client.HTTPException):
    """The response has more bytes than allowed."""


class TooSlow(TimeoutError):
    """The response takes too long, or its bytes arrive too slowly."""


class Bounds:
    """The seconds and bytes allowed for one address, including redirects.

    No step may wait longer than `silence_s`. The initial bounds are for the heads; `allow` sets
    those of the body.
    """

    def __init__(self, *, seconds: float, silence_s: float = TIMEOUT_S) -> None:
        self._silence_s, self._least_speed = silence_s, 0
        self._start(seconds, HEAD_BYTES)

    def allow(self, *, seconds: float, most_bytes: int) -> None:
        """Allow a body of `most_bytes` within `seconds`, at `LEAST_SPEED` or faster."""
        self._start(seconds, SPARE * most_bytes + HEAD_BYTES)
        self._least_speed = LEAST_SPEED

    def await_work(self, *, seconds: float, most_bytes: int) -> None:
        """From now on `most_bytes` may come at any moment within `seconds`."""
        self._start(seconds, SPARE * most_bytes + HEAD_BYTES)
        self._silence_s = seconds

    def _start(self, seconds: float, most_bytes: int) -> None:
        self._since, self._done = time.monotonic(), 0
        self._seconds, self._most_bytes = seconds, most_bytes

    def wait_s(self) -> float:
        """Return how long the next step may wait; raises TooSlow."""
        spent = time.monotonic() - self._since
        slow = spent > self._silence_s and self._done < self._least_speed * spent
        if slow or spent >= self._seconds:
            raise TooSlow(f"it sent {self._done:,} bytes in {spent:,.0f} s, which is too slow")
        return min(self._silence_s, self._seconds - spent)

    def count(self, size: int) -> None:
        """Count received bytes; raises TooMuch."""
        self._done += size
        if self._done > self._most_bytes:
            raise TooMuch(f"it sends more than {self._most_bytes:,} bytes")


Connect = Callable[[str, int, Bounds], socket.socket]


def connect_to(places: list[Any], bounds: Bounds) -> socket.socket:
    """Connect to the first of `places`, as `getaddrinfo` returns them, that accepts."""
    error: OSError | None = None
    for family, kind, protocol, _, address in places:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(bounds.wait_s())
            connection.connect(address)
            return connection
        except OSError as failure:
            connection.close()
            error = failure
    raise error or OSError("no address")


def connect_anywhere(host: str, port: int, bounds: Bounds) -> socket.socket:
    """Connect to any address that `host` resolves to."""
    return connect_to(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), bounds)


def connection_to(
    host: str, port: int | None, bounds: Bounds, *, secure: bool
) -> http.client.HTTPConnection:
    """A connection within `bounds`, which is made with the first request."""
    kind = _TLSConnection if secure else _Connection
    return kind(host, port=port, bounds=bounds, connect=connect_anywhere)


class BoundedHandler(urllib.request.AbstractHTTPHandler):
    """Opens http and https addresses within `bounds`, connecting with `connect`."""

    def __init__(self, bounds: Bounds, connect: Connect) -> None:
        super().__init__()
        self._options: Mapping[str, Any] = {"bounds": bounds, "connect": connect}

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Connection, req, **self._options)  # type: ignore[arg-type]

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_TLSConnection, req, **self._options)  # type: ignore[arg-type]

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, bounds: Bounds, connect: Connect, **options: Any) -> None:
        super().__init__(host, **options)
        self.response_class = partial(_Response, bounds=bounds)  # type: ignore[assignment]
        self._bounds, self._connect = bounds, connect
        self._behind_proxy: str | None = None

    def set_tunnel(self, host: str, *more: Any, **options: Any) -> None:
        super().set_tunnel(host, *more, **options)
        self._behind_proxy = urllib.parse.urlsplit(f"//{host}").hostname

    def connect(self) -> None:
        if self._behind_proxy:
            # Only if the user's environment names a proxy.
            super().connect()
        else:
            self.sock = self._connect(self.host, self.port, self._bounds)


class _TLSConnection(_Connection):
    """Checks the certificate against the host name."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        self.sock.settimeout(self._bounds.wait_s())
        name = self._behind_proxy or self.host
        self.sock = context.wrap_socket(self.sock, server_hostname=name)


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *more: Any, bounds: Bounds, **options: Any) -> None:
        super().__init__(sock, *more, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Bounded(sock, bounds))


class _Bounded(io.RawIOBase):
    """A socket's bytes, with a bound on each read."""

    def __init__(self, connection: socket.socket, bounds: Bounds) -> None:
        self._connection, self._bounds = connection, bounds
        self._raw = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(self._bounds.wait_s())
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError:
            # The socket timed out after the silence limit, unless less total time was left.
            self._bounds.wait_s()
            raise
        self._bounds.count(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
