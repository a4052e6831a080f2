"""The ASGI application of one socket: OpenAI's routes, those of `sttm` itself, health, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sttm_cli import __version__
from sttm_cli.serve.http_errors import Refused
from sttm_cli.serve.metrics import MEDIA_TYPE
from sttm_cli.serve.openai_routes import openai_routes
from sttm_cli.serve.private_routes import private_routes
from sttm_cli.serve.service import Service, problem


def make_app(service: Service) -> Starlette:
    """Return the application that serves with `service`."""
    engine = service.engine

    async def health(request: Request) -> Response:
        state = {"status": "ready" if engine.ready else "loading", "version": __version__}
        return JSONResponse(state, 200 if engine.ready else 503)

    async def metrics(request: Request) -> Response:
        text = await asyncio.to_thread(engine.metrics.text)
        return Response(text, media_type=MEDIA_TYPE)

    routes = [
        *openai_routes(service),
        service.route("/health", health, open_to_all=True),
        service.route("/metrics", metrics),
        *private_routes(service),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(service.bodies.counted)],
        exception_handlers={HTTPException: _unknown_route},
    )


async def _unknown_route(request: Request, error: Any) -> Response:
    words = {404: "there is no such route", 405: "this method is not allowed here"}
    message = words.get(error.status_code, "the request is not valid")
    return problem(Refused(error.status_code, message, code="invalid_request"))
