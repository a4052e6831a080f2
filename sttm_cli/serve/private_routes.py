"""The routes for `sttm` itself: one JSON object in, one line per event out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sttm_cli import __version__
from sttm_cli.base.errors import SttmError
from sttm_cli.base.events import Answered, Failure, Heard, Reported, Sent, TextPiece, to_line
from sttm_cli.decode import Source
from sttm_cli.runtime.prepared import answer_json
from sttm_cli.serve.http_errors import Refused, refusal
from sttm_cli.serve.job import Event, Job, Piece, Reply
from sttm_cli.serve.openai_request import VideoPart
from sttm_cli.serve.request_body import Body, Number, read_body
from sttm_cli.serve.server_files import of_the_model, per_request, served_name
from sttm_cli.serve.service import Service
from sttm_cli.serve.streaming import stream
from sttm_cli.settings.settings import Settings

_LINES = "application/x-ndjson"
_MOST_TEXTS = 65_536


def _plain(value: Any) -> Any:
    finite = not isinstance(value, float) or abs(value) < 1e15
    if not isinstance(value, str | int | float | bool | None) or not finite:
        raise ValueError("it is not a text, a number, true, false or null")
    return value


_Plain = Annotated[Any, AfterValidator(_plain)]
_Turn = Annotated[list[str], Field(min_length=2, max_length=2)]


class AskBody(Body):
    """The questions of one `sttm ask`; `name` is the address of which `video` is a copy."""

    model: dict[str, _Plain | list[str]]
    settings: dict[str, _Plain]
    video: str
    name: str | None = None
    questions: Annotated[list[str], Field(max_length=_MOST_TEXTS)]
    history: Annotated[list[_Turn], Field(default_factory=list, max_length=_MOST_TEXTS)]
    options: Annotated[list[str], Field(default_factory=list, max_length=_MOST_TEXTS)]
    keep_alive: Number | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_version(cls, given: Any) -> Any:
        # Checked first: a client of another version may send other fields.
        if isinstance(given, dict) and given.get("version") != __version__:
            raise Refused(409, f"this server is of version {__version__}", code="version")
        return given


def private_routes(service: Service) -> list[Route]:
    """Return the routes below /sttm."""
    engine = service.engine

    async def ask(request: Request) -> Response:
        # Parsing a large body takes a while; other clients are served meanwhile.
        body = await asyncio.to_thread(
            read_body,
            await service.body(request),
            AskBody,
            with_file_names=True,
            trusted=service.trusted,
        )
        _check_model(engine.settings, body.model)
        job = _job(service, body)
        if service.trusted and body.keep_alive is not None:
            engine.stay(body.keep_alive)
        return await stream(_lines(service, engine.ask(job), body.video), _LINES)

    async def status(request: Request) -> Response:
        return JSONResponse(engine.status())

    async def stop(request: Request) -> Response:
        engine.stop.set()
        return JSONResponse({"stopping": True})

    routes = [service.route("/sttm/ask", ask, "POST")]
    if service.trusted:
        routes += [
            service.route("/sttm/status", status),
            service.route("/sttm/stop", stop, "POST"),
        ]
    return routes


async def _lines(service: Service, events: AsyncIterator[Event], video: str) -> AsyncIterator[str]:
    """Yield every event as a line; the last one is the report or a failure."""
    # Sent at once, so that the client knows the server is working while the video is prepared.
    yield to_line(Heard(__version__))
    async with aclosing(events) as following:  # type: ignore[type-var]
        try:
            async for event in following:
                if isinstance(event, Reported):
                    event.report["video"]["path"] = video
                yield to_line(_sent(event))
        except Exception as error:
            yield to_line(_failure(error, trusted=service.trusted))


def _sent(event: Event) -> Sent:
    """Convert an engine's event to the client's form."""
    if isinstance(event, Piece):
        return TextPiece(event.text)
    return Answered(answer_json(event.answer)) if isinstance(event, Reply) else event


def _failure(error: Exception, *, trusted: bool) -> Failure:
    """Convert an error for a client; it includes paths only for the user who owns them."""
    if isinstance(error, SttmError) and trusted:
        return Failure(error.kind, error.message, error.hint)
    refused = refusal(error)
    kind = error.kind if isinstance(error, SttmError) else refused.code or "error"
    return Failure(kind, refused.message, "")


def _job(service: Service, body: AskBody) -> Job:
    return Job(
        settings=_settings(service.engine.settings, body.settings),
        video=_located(service, body),
        questions=tuple(body.questions),
        history=tuple((question, answer) for question, answer in body.history),
        options=tuple(body.options),
    )


@contextmanager
def _located(service: Service, body: AskBody) -> Iterator[Path | Source]:
    """Yield the file itself for this user's own client; for others, as OpenAI's routes find it."""
    path = Path(body.video)
    if service.trusted:
        yield path if body.name is None else Source(body.name, path, is_copy=True)
        return
    with service.videos.use(VideoPart(body.video, None), trusted=False) as copy:
        yield copy


def _settings(base: Settings, given: dict[str, Any]) -> Settings:
    if given.keys() - per_request(base).keys():
        raise Refused(400, "'settings' are not those of this version", code="version")
    try:
        return replace(base, **given)
    except (TypeError, OverflowError):
        raise Refused(400, "'settings' are not valid", code="invalid_request") from None


def _check_model(served: Settings, asked: dict[str, Any]) -> None:
    """Refuse to answer for another model, or for the same one with other options."""
    ours = of_the_model(served)
    if asked.keys() != ours.keys():
        raise Refused(400, "'model' is not that of this version", code="version")
    for name, value in asked.items():
        # "auto" leaves the choice to the server's machine, which runs the model.
        free = name in ("device", "dtype") and value == "auto"
        if value != ours[name] and not free:
            known = served_name(served) if name == "model" else ours[name]
            raise Refused(409, f"its {name} is {known}, not {value}", code="model")
