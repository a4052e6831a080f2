"""What every route answers with: one error object for each failure, and streamed events."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import TypedDict

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from sttm_cli.base.errors import SttmError

# Failures as HTTP replies, in OpenAI's form, without paths or traces.


_STATUS = {"usage": 400, "video": 422, "model": 500, "memory": 507, "cache": 500}
_PATH = re.compile(r"(?:[A-Za-z]:\\|(?<![\w/.:])/)[^\s'\",:;]+")


class ErrorFields(TypedDict):
    """The fields of an error in OpenAI's protocol."""

    message: str
    type: str
    param: None
    code: str | None


class ErrorReply(TypedDict):
    """The body of a reply whose status is not 200."""

    error: ErrorFields


class Refused(Exception):
    """A request that is answered with an error. `code` is for programs, as in OpenAI's protocol."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        # It may quote a text of the client that is not Unicode, and must be sent all the same.
        self.message = message.encode(errors="replace").decode()
        self.status, self.code = status, code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def to_json(self) -> ErrorReply:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


def refusal(error: BaseException) -> Refused:
    """Any failure, reduced to the facts that a client may have."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, TimeoutError):
        return Refused(504, "the request took longer than this server allows", code="timeout")
    if not isinstance(error, SttmError):
        return Refused(500, "the server failed on this request", code="internal_error")
    text = _PATH.sub("the file", error.message).replace("no file the file", "no such file")
    if error.kind == "context":
        return Refused(400, text, code="context_length_exceeded")
    return Refused(_STATUS.get(error.kind, 500), text, code=error.kind)


# Responses that end as soon as their client goes away, whole or line by line.


async def unless_gone(request: Request, answer: Awaitable[Response]) -> Response:
    """`answer`, cancelled as soon as the client goes away."""
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


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
