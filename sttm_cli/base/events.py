"""The events of a question on its way to an answer, and the lines in which a server sends them.

A line is one JSON object with one key, the kind of the event: `{"text": "a piece"}`. An event of
one field has that field as the value, one of several an object of them.
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
    """The server has accepted the question; sent at once, while the video is being prepared."""

    version: str


@dataclass(frozen=True)
class Warned:
    """A warning for the person."""

    line: str


@dataclass(frozen=True)
class Progressed:
    """How much of a stage is done; `of` 0 where the whole is unknown."""

    stage: str
    done: int
    of: int


@dataclass(frozen=True)
class TextPiece:
    """The next piece of the answer that is being generated."""

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
    """The last event of a failure. The exit code follows from the kind; it is never sent."""

    kind: str
    message: str
    hint: str


@dataclass(frozen=True)
class Noted:
    """A line for the person that `--quiet` leaves out; never sent."""

    line: str


@dataclass(frozen=True)
class Restarted:
    """All answers begin anew, for the reason given; never sent."""

    why: str


Sent = Heard | Warned | Progressed | TextPiece | Answered | Reported | Failure
"""What a server sends."""
Shown = Warned | Noted | Progressed | Restarted | TextPiece | Answered
"""What a person may be shown on the way to the report."""
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
    """The line that stands for `event`, with its line break."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    content = values if len(values) > 1 else next(iter(values.values()))
    return json.dumps({_KEYS[type(event)]: content}) + "\n"


def from_line(line: str | bytes) -> Sent:
    """The event that a line stands for; raises ShapeError for any line that is not an event."""
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
    """Refuse an answer that cannot be written: half of a surrogate pair."""
    text = event.text if isinstance(event, TextPiece) else ""
    text += event.answer["answer"] if isinstance(event, Answered) else ""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ShapeError("the text of an answer is not Unicode") from None


@cache
def _hints(key: str) -> dict[str, Any]:
    return get_type_hints(_KINDS[key])
