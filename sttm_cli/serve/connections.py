"""Limits on the connections of a socket: their number, and how long each waits for its client."""

from __future__ import annotations

import ipaddress
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sttm_cli.serve.http_errors import Refused
from sttm_cli.serve.service import problem

FIRST_BYTE_S = 5.0
"""Seconds that a new connection may be silent."""
HEAD_S = 15.0
"""Seconds that a client may take to send a request's head."""
MOST = 512
MOST_OF_ONE = 256
"""Maximum connections of one address, or of one IPv6 network of 64 bits."""
_RESERVE = 64
"""Connections beyond `MOST`, which may only request /health."""


class BoundedConnection(H11Protocol):
    """Closes a connection whose client is too slow to begin a request, to finish its head, or to
    read the reply.

    If there are too many, a new connection replaces one that waits for its client.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._network = _network(self.client[0] if self.client else "")
        self._since = self.loop.time()
        self._has_spoken = False
        self._requests = 0
        self._before: object = None
        self._make_room()
        self.loop.call_later(min(FIRST_BYTE_S, HEAD_S), self._end_if_silent)
        self._look()

    def data_received(self, data: bytes) -> None:
        self._has_spoken = True
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._requests += 1
        super().on_response_complete()

    def _make_room(self) -> None:
        every = [
            each
            for each in self.connections
            if isinstance(each, BoundedConnection) and not each.transport.is_closing()
        ]
        crowd = [each for each in every if each._network == self._network]
        if len(crowd) <= MOST_OF_ONE:
            crowd = every
        if crowd is every and len(every) <= MOST:
            return
        waiting = [each for each in crowd if each is not self and each._waits_for_a_request]
        if waiting:
            # A client that already got a reply may ask again; among the others, the oldest goes
            # first.
            min(waiting, key=lambda each: (each._requests > 0, each._since)).transport.abort()
        elif len(every) <= MOST + _RESERVE:
            self.app = _HealthOnly(self.app)
        else:
            self.transport.abort()

    def _end_if_silent(self) -> None:
        if not self._has_spoken:
            self.transport.abort()

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        waits = self._waits_for()
        if waits is not None and waits == self._before:
            self.transport.abort()
            return
        self._before = waits
        self.loop.call_later(HEAD_S, self._look)

    def _waits_for(self) -> object:
        """Return the client's next step; None while it is the server's turn."""
        if self.flow.write_paused:
            return self.transport.get_write_buffer_size()
        return ("a request", id(self.cycle)) if self._waits_for_a_request else None

    @property
    def _waits_for_a_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


class _HealthOnly:
    """An application that answers /health, and 503 to everything else."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        full = Refused(503, "the server has too many connections", code="busy", retry_after=1)
        response = problem(full)
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


def _network(address: str) -> str:
    """Return the range of a client's addresses: an IPv4 address, or an IPv6 network."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = getattr(ip, "ipv4_mapped", None)
    if ip.version == 4 or mapped is not None:
        return str(mapped or ip)
    return str(ipaddress.ip_network((int(ip), 64), strict=False))
