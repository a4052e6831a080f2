"""OpenAI's routes: chat completions, whole or streamed, and the list of models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sttm_cli.base.events import Reported
from sttm_cli.base.reports import AskReport
from sttm_cli.base.results import Answer
from sttm_cli.base.types import Json
from sttm_cli.serve.http_errors import Refused, refusal
from sttm_cli.serve.job import Event, Gone, Job, Piece, Reply
from sttm_cli.serve.openai_reply import Writer, joined, usage_of
from sttm_cli.serve.openai_request import ChatRequest, read_request
from sttm_cli.serve.server_files import served_name
from sttm_cli.serve.service import Service
from sttm_cli.serve.streaming import stream, unless_gone
from sttm_cli.settings.settings import Settings


def openai_routes(service: Service) -> list[Route]:
    """Return the routes below /v1."""
    settings = service.engine.settings

    async def chat(request: Request) -> Response:
        # Not bound to a name, so that the body is freed once parsed.
        asked = await asyncio.to_thread(read_request, await service.body(request), settings)
        _check_name(settings, asked.model)
        events = service.engine.ask(_job(service, asked))
        writer = Writer.new(asked.model)
        if asked.stream:
            lines = _sse(asked, writer, events)
            return await unless_gone(request, stream(lines, "text/event-stream"))
        return await unless_gone(request, _whole(writer, events))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(settings)]})

    async def model(request: Request) -> Response:
        _check_name(settings, request.path_params["name"])
        return JSONResponse(_model(settings))

    return [
        service.route("/v1/chat/completions", chat, "POST"),
        service.route("/v1/models", models),
        service.route("/v1/models/{name:path}", model),
    ]


def _job(service: Service, asked: ChatRequest) -> Job:
    return Job(
        settings=asked.settings,
        video=service.videos.use(asked.video, trusted=service.trusted),
        questions=(asked.question,),
        history=asked.history,
        logprobs=asked.logprobs,
    )


def _model(settings: Settings) -> Json:
    return {"id": served_name(settings), "object": "model", "created": 0, "owned_by": "sttm"}


def _check_name(settings: Settings, asked: str) -> None:
    served = served_name(settings)
    if asked not in (served, settings.model):
        message = f"this server has no such model: it serves {served!r}"
        raise Refused(404, message, code="model_not_found")


async def _whole(writer: Writer, events: AsyncIterator[Event]) -> Response:
    """Return the answer as one JSON object."""
    last, logprobs = None, []
    async with aclosing(events) as following:  # type: ignore[type-var]
        async for event in following:
            if isinstance(event, Piece | Reply):
                logprobs.append(event.logprobs)
            if isinstance(event, Reply):
                last = event
            elif isinstance(event, Reported) and last is not None:
                answer, usage = _generated(last), _usage(last, event.report)
                extra = _extra(event.report)
                return JSONResponse(writer.whole(answer, usage, extra, joined(logprobs)))
    raise Gone


async def _sse(
    asked: ChatRequest, writer: Writer, events: AsyncIterator[Event]
) -> AsyncIterator[str]:
    """Yield the answer as server-sent events."""
    last: Reply | None = None
    started = False
    async with aclosing(events) as following:  # type: ignore[type-var]
        try:
            async for event in following:
                if isinstance(event, Piece):
                    if not started:
                        started = True
                        yield _event(writer.first())
                    yield _event(writer.piece(event.text, event.logprobs))
                elif isinstance(event, Reply):
                    last = event
                elif isinstance(event, Reported) and last is not None:
                    if not started:
                        yield _event(writer.first())
                    extra = _extra(event.report)
                    yield _event(writer.last(_generated(last), extra, last.logprobs))
                    if asked.include_usage:
                        yield _event(writer.usage(_usage(last, event.report)))
        except Exception as error:
            if not started:
                raise
            yield _event(refusal(error).to_json())
    yield "data: [DONE]\n\n"


def _generated(reply: Reply) -> Answer:
    """Return the answer of a job without options, which is always generated."""
    if not isinstance(reply.answer, Answer):
        raise TypeError("options were weighed for an OpenAI client")
    return reply.answer


def _usage(last: Reply, report: AskReport) -> Json:
    cached = report["cache"]["restored_tokens"]
    return usage_of(_generated(last), prompt_tokens=last.prompt_tokens, cached_tokens=cached)


def _extra(report: AskReport) -> Json:
    """Return the part of the report that a client may see, without the location of the file."""
    video = report["video"]
    return {
        "tokens": report["tokens"],
        "cache": report["cache"],
        "seconds": report["seconds"],
        "video": {"duration_s": video["duration_s"], "frame_times_s": video["frame_times_s"]},
    }


def _event(value: Mapping[str, object]) -> str:
    return f"data: {json.dumps(value)}\n\n"
