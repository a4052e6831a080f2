"""The routes that `sttm` itself uses: its own JSON, a line per event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sttm_cli import __version__
from sttm_cli.base.errors import SttmError
from sttm_cli.base.types import Json
from sttm_cli.decode import Source
from sttm_cli.serve.events import Asking, Told, told_json
from sttm_cli.serve.fields import read_object
from sttm_cli.serve.http_errors import Refused, refusal
from sttm_cli.serve.openai_request import VideoPart
from sttm_cli.serve.place import of_the_model, per_request, served_name
from sttm_cli.settings.settings import Settings

if TYPE_CHECKING:
    from sttm_cli.serve.app import Service

_LINES = "application/x-ndjson"


def own_routes(service: Service) -> list[Route]:
    """Routes below /sttm."""
    from sttm_cli.serve.app import stream

    async def ask(request: Request) -> Response:
        fields = read_object(await service.body(request))
        _check_version(fields)
        _check_model(service.engine.settings, fields.get("model"))
        asking = _asking(service, fields)
        if service.trusted and isinstance(seconds := fields.get("keep_alive"), float):
            service.engine.stay(seconds)
        lines = _lines(service, service.engine.ask(asking), fields["video"])
        return await stream(lines, _LINES)

    async def status(request: Request) -> Response:
        return JSONResponse(service.engine.status())

    async def stop(request: Request) -> Response:
        service.engine.stop.set()
        return JSONResponse({"stopping": True})

    routes = [service.route("/sttm/ask", ask, "POST")]
    if service.trusted:
        routes += [
            service.route("/sttm/status", status),
            service.route("/sttm/stop", stop, "POST"),
        ]
    return routes


async def _lines(service: Service, events: AsyncIterator[Told], video: str) -> AsyncIterator[str]:
    """Every event as a line; the last one is the report or an error."""
    # Said at once, so that a client knows that it is heard while the video is prepared.
    yield _line({"heard": __version__})
    async with aclosing(events) as following:  # type: ignore[type-var]
        try:
            async for told in following:
                if told.kind == "report":
                    told.value["video"]["path"] = video
                yield _line(told_json(told))
        except Exception as error:
            yield _line({"error": _error(error, trusted=service.trusted)})


def _error(error: Exception, *, trusted: bool) -> Json:
    """A failure as `sttm` itself would tell it; paths only to the user they belong to."""
    if isinstance(error, SttmError) and trusted:
        return {
            "kind": error.kind,
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
    refused = refusal(error)
    if isinstance(error, SttmError):
        kind, code = error.kind, error.exit_code
    else:
        kind, code = refused.code or "error", 1
    return {"kind": kind, "message": refused.message, "hint": "", "exit_code": code}


def _asking(service: Service, fields: Json) -> Asking:
    video, questions = fields.get("video"), fields.get("questions")
    if not isinstance(video, str) or not isinstance(questions, list) or not _texts(questions):
        raise Refused(400, "'video' and 'questions' are needed", code="invalid_request")
    history, options = fields.get("history") or [], fields.get("options") or []
    if not isinstance(history, list) or not all(_texts(t) and len(t) == 2 for t in history):
        raise Refused(400, "'history' must be pairs of texts", code="invalid_request")
    if not _texts(options):
        raise Refused(400, "'options' must be texts", code="invalid_request")
    return Asking(
        _settings(service.engine.settings, fields.get("settings")),
        _named(service, video, fields.get("name")),
        tuple(questions),
        tuple((q, a) for q, a in history),
        tuple(options),
    )


@contextmanager
def _named(service: Service, video: str, name: Any) -> Iterator[Path | Source]:
    """The file as it is where the client is this user; `name`: the address that it is a copy of."""
    if service.trusted:
        yield Source(name, Path(video), is_copy=True) if isinstance(name, str) else Path(video)
        return
    with service.videos.use(VideoPart(video, None), trusted=False) as path:
        yield path


def _settings(base: Settings, given: Any) -> Settings:
    known = per_request(base)
    if not isinstance(given, dict) or set(given) - set(known):
        raise Refused(400, "'settings' are not those of this version", code="version")
    try:
        return replace(base, **given)
    except TypeError:
        raise Refused(400, "'settings' are not valid", code="invalid_request") from None


def _check_version(fields: Json) -> None:
    if fields.get("version") != __version__:
        raise Refused(409, f"this server is of version {__version__}", code="version")


def _check_model(served: Settings, asked: Any) -> None:
    """Refuse to answer for another model, or for one that is to run otherwise."""
    ours = of_the_model(served)
    if not isinstance(asked, dict) or set(asked) != set(ours):
        raise Refused(400, "'model' is not that of this version", code="version")
    for name, value in asked.items():
        # What a client leaves to the machine, the server's machine has chosen.
        free = name in ("device", "dtype") and value == "auto"
        if value != ours[name] and not free:
            told = served_name(served) if name == "model" else ours[name]
            raise Refused(409, f"its {name} is {told}, not {value}", code="model")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _line(value: Json) -> str:
    return json.dumps(value) + "\n"
