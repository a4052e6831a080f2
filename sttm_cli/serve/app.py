"""The routes: OpenAI's for any client, our own for `sttm` itself."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sttm_cli import __version__
from sttm_cli.base.types import Json
from sttm_cli.serve.engine import Engine
from sttm_cli.serve.events import Asking, Gone, Told
from sttm_cli.serve.http_errors import Refused, refusal
from sttm_cli.serve.logprobs import joined
from sttm_cli.serve.metrics import MEDIA_TYPE
from sttm_cli.serve.openai_reply import Writer, usage_of
from sttm_cli.serve.openai_request import ChatRequest, read_request
from sttm_cli.serve.options import Options, is_loopback
from sttm_cli.serve.place import served_name
from sttm_cli.serve.private_routes import own_routes
from sttm_cli.serve.videos import Videos

_log = logging.getLogger("sttm_cli.serve")
BODY_S = 60.0
"""How long a client may take to send a request's body."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Service:
    """What the routes of one way in share. `trusted`: it is a socket that only this user can
    open, so that no key is asked for and any file of the user's may be read."""

    def __init__(self, engine: Engine, videos: Videos, options: Options, *, trusted: bool) -> None:
        self.engine, self.videos, self.options = engine, videos, options
        self.trusted = trusted

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            self.route("/v1/chat/completions", self.chat, "POST"),
            self.route("/v1/models", self.models),
            self.route("/v1/models/{name:path}", self.model),
            self.route("/health", self.health, open_to_all=True),
            self.route("/metrics", self.metrics),
            *own_routes(self),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _unknown_route})

    def route(
        self, path: str, endpoint: Endpoint, method: str = "GET", *, open_to_all: bool = False
    ) -> Route:
        """A route whose failures are told in OpenAI's form."""

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
            # A web page whose name was made to point here.
            raise Refused(403, "this server is asked under another name", code="forbidden")
        key = self.options.api_key
        if key is None or open_to_all:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused(401, "a valid API key is needed", code="invalid_api_key")

    async def body(self, request: Request) -> bytes:
        """The request's body. Raises Refused where it is too large, too slow or not JSON."""
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

    # ---- endpoints

    async def health(self, request: Request) -> Response:
        ready = self.engine.ready
        told = {"status": "ready" if ready else "loading", "version": __version__}
        return JSONResponse(told, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        text = await asyncio.to_thread(self.engine.metrics.text)
        return Response(text, media_type=MEDIA_TYPE)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._model())

    async def chat(self, request: Request) -> Response:
        body = await self.body(request)
        asked = await asyncio.to_thread(read_request, body, self.engine.settings)
        self._check_name(asked.model)
        asking = Asking(
            asked.settings,
            self.videos.use(asked.video, trusted=self.trusted),
            (asked.question,),
            asked.history,
            logprobs=asked.logprobs,
        )
        writer = Writer.new(asked.model)
        if asked.stream:
            events = _sse(asked, writer, self.engine.ask(asking))
            return await unless_gone(request, stream(events, "text/event-stream"))
        return await unless_gone(request, _whole(writer, self.engine.ask(asking)))

    def _model(self) -> Json:
        name = served_name(self.engine.settings)
        return {"id": name, "object": "model", "created": 0, "owned_by": "sttm"}

    def _check_name(self, asked: str) -> None:
        served = served_name(self.engine.settings)
        if asked not in (served, self.engine.settings.model):
            message = f"this server has no such model: it serves {served!r}"
            raise Refused(404, message, code="model_not_found")


async def unless_gone(request: Request, answer: Awaitable[Response]) -> Response:
    """`answer`, given up as soon as the client goes away."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.create_task(_until_gone(request))
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise ClientDisconnect
    return task.result()


async def stream(lines: AsyncIterator[str], media_type: str) -> Response:
    """A streamed response; a failure before its first line is an ordinary error."""
    first = await anext(lines)

    async def rest() -> AsyncIterator[str]:
        async with aclosing(lines) as following:  # type: ignore[type-var]
            yield first
            async for line in following:
                yield line

    return StreamingResponse(rest(), media_type=media_type, headers={"Cache-Control": "no-store"})


def problem(error: Exception) -> Response:
    """A failure as a response; what nobody foresaw is logged."""
    refused = refusal(error)
    if refused.status == 500 and not isinstance(error, Refused):
        _log.error("a request failed", exc_info=error)
    return JSONResponse(refused.to_json(), refused.status, headers=refused.headers)


async def _whole(writer: Writer, events: AsyncIterator[Told]) -> Response:
    last, report, logprobs = None, {}, []
    async with aclosing(events) as following:  # type: ignore[type-var]
        async for told in following:
            logprobs.append(told.logprobs)
            if told.kind == "answer":
                last = told
            elif told.kind == "report":
                report = told.value
    if last is None:
        raise Gone
    usage = _usage(last, report)
    return JSONResponse(writer.whole(last.value, usage, _extra(report), joined(logprobs)))


async def _sse(
    asked: ChatRequest, writer: Writer, events: AsyncIterator[Told]
) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    last: Told | None = None
    started = False
    async with aclosing(events) as following:  # type: ignore[type-var]
        try:
            async for told in following:
                if told.kind == "text" and not started:
                    started = True
                    yield _event(writer.first())
                if told.kind == "text":
                    yield _event(writer.piece(told.value, told.logprobs))
                elif told.kind == "answer":
                    last = told
                elif told.kind == "report" and last is not None:
                    if not started:
                        yield _event(writer.first())
                    yield _event(writer.last(last.value, _extra(told.value), last.logprobs))
                    if asked.include_usage:
                        yield _event(writer.usage(_usage(last, told.value)))
        except Exception as error:
            if not started:
                raise
            yield _event(refusal(error).to_json())
    yield "data: [DONE]\n\n"


def _usage(last: Told, report: Json) -> Json:
    cached = report["cache"]["restored_tokens"]
    return usage_of(last.value, prompt_tokens=last.prompt_tokens, cached_tokens=cached)


def _extra(report: Json) -> Json:
    """What a client may know of the report: not where a file lies."""
    told = {name: report[name] for name in ("tokens", "cache", "seconds")}
    seen = {name: report["video"][name] for name in ("duration_s", "frame_times_s")}
    return {**told, "video": seen}


def _event(value: Json) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unknown_route(request: Request, error: Any) -> Response:
    words = {404: "there is nothing here", 405: "this method is not allowed here"}
    message = words.get(error.status_code, "the request is not valid")
    return problem(Refused(error.status_code, message, code="invalid_request"))


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _too_large(most: int) -> Refused:
    return Refused(413, f"the body is larger than {most:,} bytes", code="too_large")
