"""The events between a question and its answers, and their JSON lines on a server's stream.

A line is one JSON object with one key, the kind of the event: `{"text": "a piece"}`. The value of
an event with one field is that field; with several fields it is an object.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from sttm_cli.base.reports import AnswerReport, AskReport
from sttm_cli.base.shapes import ShapeError, shaped


@dataclass(frozen=True)
class Heard:
    """The server has accepted the question; sent before the video is prepared."""

    version: str


@dataclass(frozen=True)
class Warned:
    """A warning for the user."""

    line: str


@dataclass(frozen=True)
class Progressed:
    """Progress of a stage: `done` of `of`, which is 0 if the total is unknown."""

    stage: str
    done: int
    of: int


@dataclass(frozen=True)
class TextPiece:
    """The next piece of the current answer."""

    text: str


@dataclass(frozen=True)
class Answered:
    """One answer is complete."""

    answer: AnswerReport


@dataclass(frozen=True)
class Reported:
    """The last event of a success: the report of all answers."""

    report: AskReport


@dataclass(frozen=True)
class Failure:
    """The last event of a failure. The exit code follows from the kind and is not sent."""

    kind: str
    message: str
    hint: str


@dataclass(frozen=True)
class Noted:
    """A line for the user that `--quiet` suppresses; never sent."""

    line: str


@dataclass(frozen=True)
class Restarted:
    """All answers start over, for the reason `why`; never sent."""

    why: str


Sent = Heard | Warned | Progressed | TextPiece | Answered | Reported | Failure
"""Events that a server sends."""
Shown = Warned | Noted | Progressed | Restarted | TextPiece | Answered
"""Events shown to the user before the report."""
Show = Callable[[Shown], None]

_KINDS: dict[str, type[Any]] = {
    "heard": Heard,
    "warning": Warned,
    "progress": Progressed,
    "text": TextPiece,
    "answer": Answered,
    "report": Reported,
    "error": Failure,
}
_KEYS = {kind: key for key, kind in _KINDS.items()}


def to_line(event: Sent) -> str:
    """Encode `event` as a line, with its line break."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    content = values if len(values) > 1 else next(iter(values.values()))
    return json.dumps({_KEYS[type(event)]: content}) + "\n"


def from_line(line: str | bytes) -> Sent:
    """Decode the event in a line; raises ShapeError for any other line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ShapeError("the line is not JSON") from None
    if not isinstance(value, dict) or len(value) != 1:
        raise ShapeError("the line is not an object with one key")
    ((key, content),) = value.items()
    if key not in _KINDS:
        raise ShapeError("the line is of an unknown kind")
    hints = _hints(key)
    values = content if len(hints) > 1 else {next(iter(hints)): content}
    if not isinstance(values, dict) or set(values) != set(hints):
        raise ShapeError(f"{key} has other fields")
    event: Sent = _KINDS[key](**{n: shaped(values[n], hint, n) for n, hint in hints.items()})
    _check_text(event)
    return event


def _check_text(event: Sent) -> None:
    """Raise ShapeError for text with a lone surrogate, which cannot be encoded."""
    text = event.text if isinstance(event, TextPiece) else ""
    text += event.answer["answer"] if isinstance(event, Answered) else ""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ShapeError("the text of an answer is not Unicode") from None


@cache
def _hints(key: str) -> dict[str, Any]:
    return get_type_hints(_KINDS[key])
