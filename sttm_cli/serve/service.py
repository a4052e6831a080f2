"""State and checks shared by all routes of a server."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sttm_cli.serve.engine import Engine
from sttm_cli.serve.http_errors import Refused, refusal
from sttm_cli.serve.options import Options, is_loopback
from sttm_cli.serve.videos import Videos

_log = logging.getLogger("sttm_cli.serve")
BODY_S = 60.0
"""Seconds that a client may take to send a request's body."""

FREE_BYTES = 64 << 10
"""Bytes of each body not counted in the memory for all: questions about files always pass."""
_TAKE = "sttm.take"

Endpoint = Callable[[Request], Awaitable[Response]]


class Service:
    """The engine, the videos and the options behind the routes of one socket.

    `trusted`: only this user can open the socket, so no key is needed and every file that the user
    can read may be named.
    """

    def __init__(self, engine: Engine, videos: Videos, options: Options, *, trusted: bool) -> None:
        self.engine, self.videos, self.options = engine, videos, options
        self.bodies = Bodies(options.most_of_bodies)
        self.trusted = trusted

    def route(
        self, path: str, endpoint: Endpoint, method: str = "GET", *, open_to_all: bool = False
    ) -> Route:
        """Return a route that checks its caller and reports failures in OpenAI's form."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_caller(request, open_to_all)
                response = await endpoint(request)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception as error:
                response = problem(error)
            status = str(response.status_code)
            self.engine.metrics.requests.labels(path.partition("{")[0], status).inc()
            return response

        return Route(path, guarded, methods=[method])

    def _check_caller(self, request: Request, open_to_all: bool) -> None:
        if self.trusted:
            return
        host = request.headers.get("host", "").rsplit("@")[-1]
        if is_loopback(self.options.host) and not is_loopback(_hostname(host)):
            # DNS rebinding: a web page whose host name resolves to this machine.
            raise Refused(403, "this server does not answer to that host name", code="forbidden")
        key = self.options.api_key
        if key is None or open_to_all:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused(401, "a valid API key is needed", code="invalid_api_key")

    async def body(self, request: Request) -> bytearray:
        """Return the request's body. Raises Refused if it is too large, too slow or not JSON, or if
        other requests take all memory for bodies."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused(415, "the body must be application/json", code="unsupported_media_type")
        length = request.headers.get("content-length", "0")
        most, parts = self.options.max_body, bytearray()
        if not length.isdigit() or int(length) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    if len(parts) + len(part) > most:
                        raise _too_large(most)
                    request.scope[_TAKE](len(parts) + len(part))
                    parts += part
        except TimeoutError:
            raise Refused(408, "the body came too slowly", code="timeout") from None
        return parts


class Bodies:
    """The memory of the bodies of all requests to one socket.

    A body counts from its arrival until its request is answered.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0

    def counted(self, app: ASGIApp) -> ASGIApp:
        """Wrap `app`, counting the body of each request."""

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            with self._request() as scope[_TAKE]:
                await app(scope, receive, send)

        return run

    @contextmanager
    def _request(self) -> Iterator[Callable[[int], None]]:
        """Yield a callback that reserves memory for the bytes received so far."""
        held = 0

        def take(size: int) -> None:
            nonlocal held
            more = max(0, size - FREE_BYTES) - held
            if self._held + more > self._most:
                raise Refused(
                    503,
                    "the bodies of other requests take all memory for bodies; try again later",
                    code="busy",
                    retry_after=1,
                )
            self._held += more
            held += more

        try:
            yield take
        finally:
            self._held -= held


def problem(error: Exception) -> Response:
    """Convert a failure to a response; unexpected ones are logged."""
    refused = refusal(error)
    if refused.status == 500 and not isinstance(error, Refused):
        _log.error("a request failed", exc_info=error)
    return JSONResponse(refused.to_json(), refused.status, headers=refused.headers)


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _too_large(most: int) -> Refused:
    return Refused(413, f"the body is larger than {most:,} bytes", code="too_large")
