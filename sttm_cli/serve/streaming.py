"""Responses that end as soon as their client disconnects, whole or line by line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse


async def unless_gone(request: Request, answer: Awaitable[Response]) -> Response:
    """Await `answer`, cancelling it as soon as the client disconnects."""
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
    """Return a streamed response; a failure before its first line becomes an ordinary error."""
    first = await anext(lines)

    async def rest() -> AsyncIterator[str]:
        async with aclosing(lines) as following:  # type: ignore[type-var]
            yield first
            async for line in following:
                yield line

    return StreamingResponse(rest(), media_type=media_type, headers={"Cache-Control": "no-store"})


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
