"""Failures as HTTP replies in OpenAI's form, without paths or traces."""

from __future__ import annotations

import re
from typing import TypedDict

from sttm_cli.base.errors import SttmError

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
        # It may quote a client's text that is not valid Unicode, which cannot be sent.
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
    """Reduce any failure to the facts that a client may learn."""
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
