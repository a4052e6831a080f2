"""The state and the checks that all routes of one server share."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sttm_cli.serve.engine import Engine
from sttm_cli.serve.options import Options, is_loopback
from sttm_cli.serve.responses import Refused, refusal
from sttm_cli.serve.videos import Videos

_log = logging.getLogger("sttm_cli.serve")
BODY_S = 60.0
"""How long a client may take to send a request's body."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Service:
    """The engine, the videos and the options behind the routes of one socket.

    `trusted`: only this user can open the socket, so that no key is needed and every file that
    the user can read may be named.
    """

    def __init__(self, engine: Engine, videos: Videos, options: Options, *, trusted: bool) -> None:
        self.engine, self.videos, self.options = engine, videos, options
        self.trusted = trusted

    def route(
        self, path: str, endpoint: Endpoint, method: str = "GET", *, open_to_all: bool = False
    ) -> Route:
        """A route that checks its caller and reports failures in OpenAI's form."""

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
            # A web page whose host name was made to point here.
            raise Refused(403, "this server does not answer to that host name", code="forbidden")
        key = self.options.api_key
        if key is None or open_to_all:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused(401, "a valid API key is needed", code="invalid_api_key")

    async def body(self, request: Request) -> bytes:
        """The request's body. Raises Refused if it is too large, too slow or not JSON."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused(415, "the body must be application/json", code="unsupported_media_type")
        length = request.headers.get("content-length", "0")
        most, parts = self.options.max_body, bytearray()
        if not length.isdigit() or int(length) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    parts += part
                    if len(parts) > most:
                        raise _too_large(most)
        except TimeoutError:
            raise Refused(408, "the body came too slowly", code="timeout") from None
        return bytes(parts)


def problem(error: Exception) -> Response:
    """A failure as a response; unforeseen ones are logged."""
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
