"""The lines between a server and its client: written and read by one definition."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from sttm_cli.base.events import (
    Answered,
    Failure,
    Heard,
    Progressed,
    Reported,
    Sent,
    TextPiece,
    Warned,
    from_line,
    to_line,
)
from sttm_cli.base.reports import AnswerReport, AskReport
from sttm_cli.base.shapes import ShapeError

ANSWER: AnswerReport = {
    "question": "how many?",
    "answer": "three",
    "new_tokens": 2,
    "ending": "end",
    "seed": 1,
    "choices": [{"text": "three", "probability": 1.0, "log_likelihood": -0.5, "tokens": 2}],
}
REPORT: AskReport = {
    "schema": "sttm.ask/1",
    "video": {
        "path": "caf\udce9.mp4",
        "digest": "d",
        "duration_s": 8.0,
        "frame_times_s": [0.0, 1.5],
        "frames_asked": 2,
        "reader": "av 18",
        "fallback": None,
        "has_audio": False,
        "notes": ["a note"],
    },
    "model": {"name": "tiny", "revision": None, "device": "cpu", "dtype": "float32"},
    "tokens": {
        "budget": 0.5,
        "method": "sttm",
        "video_full": 8,
        "video_kept": 4,
        "prefix": 6,
        "after_spatial": 5,
        "room": 9,
    },
    "cache": {
        "hit": True,
        "tier": "disk",
        "key": "k",
        "bytes": 1,
        "kv_dtype": "float32",
        "saved_bytes": 0,
        "restored_tokens": 6,
        "prefilled_tokens": 0,
        "miss_reason": None,
        "cold_seconds": 1.0,
    },
    "answers": [ANSWER],
    "seconds": {
        "load_model": None,
        "decode": None,
        "encode": None,
        "merge": None,
        "prefill": None,
        "restore": 0.1,
        "first_token": 0.2,
        "answer": 0.3,
        "total": 0.4,
    },
}
EVENTS: list[Sent] = [
    Heard("1.0"),
    Warned("look\nhere"),
    Progressed("decode", 1, 0),
    TextPiece("thr"),
    Answered(ANSWER),
    Reported(REPORT),
    Failure("video", "it is damaged", "fetch it again"),
]
OPTIONAL = {"ending", "seed", "choices"}


def malformed(value: Any) -> Iterator[tuple[str, Any]]:
    """Every copy of `value` with one part of another type, or one required field left out."""
    yield "value", [] if isinstance(value, dict) else {}
    parts = value.items() if isinstance(value, dict) else ()
    for key, part in enumerate(value) if isinstance(value, list) else parts:
        for where, other in malformed(part):
            changed = copy.copy(value)
            changed[key] = other
            yield f"{key}.{where}", changed
        if isinstance(value, dict) and key not in OPTIONAL:
            yield f"{key} left out", {k: v for k, v in value.items() if k != key}


BROKEN = [
    pytest.param(json.dumps(changed), id=f"{type(event).__name__} {where}")
    for event in EVENTS
    for where, changed in malformed(json.loads(to_line(event)))
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_read_as_it_was_written(event: Sent) -> None:
    line = to_line(event)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert len(json.loads(line)) == 1
    assert from_line(line) == from_line(line.encode()) == event


@pytest.mark.parametrize("line", BROKEN)
def test_a_field_of_another_type_or_none_is_refused(line: str) -> None:
    with pytest.raises(ShapeError):
        from_line(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"other": 1}',
        b'{"text": "a", "warning": "b"}',
        b'{"note": "of the client only"}',
        b'{"again": "of the client only"}',
        b'{"text": "\\ud800"}',
        b'{"text": true}',
        b'{"progress": {"stage": "decode", "done": true, "of": 1}}',
        b'{"progress": {"stage": "decode", "done": 1.5, "of": 1}}',
        b'{"progress": {"stage": "decode", "done": 9999999999999999999, "of": 1}}',
        b'{"error": {"kind": "usage", "message": "m", "hint": "h", "exit_code": 77}}',
        json.dumps({"report": {**REPORT, "schema": "sttm.ask/2"}}).encode(),
        json.dumps({"answer": {**ANSWER, "ending": "other"}}).encode(),
        to_line(Reported(REPORT)).replace("8.0", "NaN").encode(),
        to_line(Reported(REPORT)).replace("8.0", "1e999").encode(),
    ],
)
def test_a_line_that_is_not_an_event_is_refused(line: bytes) -> None:
    with pytest.raises(ShapeError):
        from_line(line)


def test_a_refusal_names_the_field() -> None:
    line = to_line(Reported(REPORT)).replace('"duration_s": 8.0', '"duration_s": "8"')
    with pytest.raises(ShapeError, match=r"report\.video\.duration_s"):
        from_line(line)
