"""What is wrong with a request is told in one line that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sttm_cli import __version__
from sttm_cli.serve.http_errors import Refused
from sttm_cli.serve.openai_request import ChatBody, ChatRequest, VideoPart, read_request
from sttm_cli.serve.private_routes import AskBody
from sttm_cli.serve.request_body import read_body
from sttm_cli.settings.settings import Settings

VIDEO = {"type": "video_url", "video_url": {"url": "a.mp4"}}
ASKED = [{"role": "user", "content": [VIDEO, {"type": "text", "text": "what?"}]}]


def chat(**fields: Any) -> ChatRequest:
    body = json.dumps({"model": "tiny", "messages": ASKED, **fields})
    return read_request(body.encode(), Settings())


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{**VIDEO, **fields}]}]}


def said(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": None}, "'model' must be a text"),
        ({"messages": []}, "'messages': List should have at least 1 item"),
        ({"messages": "x"}, "'messages' must be a list"),
        ({"messages": ASKED * 513}, "'messages': List should have at most 512 items"),
        ({"messages": [1]}, "'messages[0]' must be an object"),
        (said("x", role="tool"), "'messages[0].role' must be 'system', 'developer'"),
        (said(5), "'messages[0].content': a content is a text or a list"),
        (said([5]), "'messages[0].content[0]': a part is of type text or"),
        (said([{"type": "image_url"}]), "'messages[0].content[0]': a part is of type text"),
        (said([{"type": "text", "text": 5}]), "'messages[0].content[0].text' must be a text"),
        (said([{"type": "text"}]), "'messages[0].content[0].text' is needed"),
        (part(video_url="a.mp4"), "'messages[0].content[0].video_url' must be an object"),
        (part(video_url={"url": 1}), "'messages[0].content[0].video_url.url' must be a text"),
        (part(video_url={"url": "a", "fps": 1}), "'fps' is not supported in a video part"),
        (part(fps=2), "'messages[0].content[0]': 'fps' is not supported in a video part"),
        (part(uuid=""), "'messages[0].content[0].uuid': String should have at least 1"),
        (part(uuid="u" * 257), "'messages[0].content[0].uuid': String should have at most 256"),
        (part(video_url=None), "'messages[0].content[0]': a video part needs a url"),
        (said([VIDEO], role="system"), "in a user's message, video_url"),
        ({"stream": 1}, "'stream' must be true or false"),
        ({"stream_options": {"include_usage": "x"}}, "'stream_options.include_usage' must be true"),
        ({"temperature": "1"}, "'temperature' must be a number"),
        ({"temperature": True}, "'temperature' must be a number"),
        ({"temperature": float("nan")}, "'temperature' must be a number"),
        ({"top_p": float("inf")}, "'top_p' must be a number"),
        ({"temperature": 1e16}, "'temperature' must be less than or equal to"),
        ({"seed": 1.5}, "'seed' must be a whole number"),
        ({"seed": 2**63}, "'seed' must be less than"),
        ({"max_tokens": "9"}, "'max_tokens' must be a whole number"),
        ({"max_tokens": 0}, "--max-new-tokens 0 is not possible"),
        ({"sttm": 5}, "'sttm' must be an object"),
        (
            {"sttm": {"budgte": None}},
            "'sttm': there is no 'budgte'; use budget, method, frames, fps",
        ),
        ({"sttm": {"budget": [1]}}, "'sttm.budget': a budget is a share or a number"),
        ({"sttm": {"budget": 2}}, "'sttm.budget': budget 2 is not possible"),
        ({"sttm": {"frames": 1.5}}, "'sttm.frames' must be a whole number"),
        ({"sttm": {"start": {}}}, "'sttm.start': a time is a number of seconds"),
        ({"sttm": {"end": "later"}}, "'sttm.end': end 'later' is not a number"),
        ({"n": 2}, "'n' must be 1"),
        ({"response_format": {"type": "json"}}, "'response_format.type' must be 'text'"),
        ({"modalities": ["text", "audio"]}, "'modalities': List should have at most 1 item"),
        ({"modalities": ["audio"]}, "'modalities[0]' must be 'text'"),
        ({"tools": [{}]}, "'tools' is not supported"),
        ({"x" * 99: 1}, f"'{'x' * 40}' is not supported"),
        ({"media_io_kwargs": {"video": {"num_frames": 0}}}, "'media_io_kwargs.video.num_frames'"),
        ({"media_io_kwargs": {"video": {"num_frames": "8"}}}, "must be a whole number"),
        ({"media_io_kwargs": {"video": {"backend": "x"}}}, "'backend' is not supported in 'media_"),
        ({"media_io_kwargs": {"audio": {"x": 1}}}, "'audio' is not supported in 'media_io_kwargs'"),
        (
            {"media_io_kwargs": {"video": {"num_frames": 8}}, "sttm": {"frames": 9}},
            "'media_io_kwargs' and 'sttm' name different frames: 8 and 9",
        ),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as caught:
        chat(**fields)
    assert caught.value.status == 400
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_unknown_fields_that_are_empty_or_off_are_passed_over() -> None:
    asked = chat(tools=[], stop=None, logit_bias={}, top_k=0, echo=False, user="me", store=True)
    assert asked.video == VideoPart("a.mp4", None)
    assert asked.question == "what?"


def test_values_are_read_as_the_flags_of_their_names() -> None:
    asked = chat(sttm={"budget": "0.3", "start": "0:02", "end": 6, "frames": 8}, max_tokens=5)
    settings = asked.settings
    assert (settings.budget, settings.start, settings.end) == (0.3, 2.0, 6.0)
    assert (settings.frames, settings.max_new_tokens) == (8, 5)
    assert chat(sttm={"budget": 500}).settings.budget == 500
    assert chat(max_tokens=5, max_completion_tokens=7).settings.max_new_tokens == 7


def test_media_io_kwargs_are_read_as_frames_and_rate() -> None:
    settings = chat(media_io_kwargs={"video": {"num_frames": 8, "fps": 2}}).settings
    assert (settings.frames, settings.fps) == (8, 2.0)
    both = chat(media_io_kwargs={"video": {"num_frames": 8}}, sttm={"frames": 8, "fps": 0.5})
    assert (both.settings.frames, both.settings.fps) == (8, 0.5)
    assert chat(media_io_kwargs={}).settings == chat().settings


def ask(**fields: Any) -> AskBody:
    body = {
        "version": __version__,
        "model": {"model": "tiny"},
        "settings": {"fps": 1.0},
        "video": "caf\udce9.mp4",
        "questions": ["what?"],
        **fields,
    }
    return read_body(json.dumps(body).encode(), AskBody, with_file_names=True, trusted=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "tiny"}, "'model' must be an object"),
        ({"settings": {"fps": float("nan")}}, "'settings.fps': it is not a text, a number"),
        ({"settings": {"fps": [1]}}, "'settings.fps': it is not a text, a number"),
        ({"video": 1}, "'video' must be a text"),
        ({"name": 1}, "'name' must be a text"),
        ({"questions": "what?"}, "'questions' must be a list"),
        ({"questions": [1]}, "'questions[0]' must be a text"),
        ({"questions": ["?"] * 65_537}, "'questions': List should have at most 65536"),
        ({"history": [["q"]]}, "'history[0]': List should have at least 2"),
        ({"history": [["q", 1]]}, "'history[0][1]' must be a text"),
        ({"options": {}}, "'options' must be a list"),
        ({"keep_alive": float("inf")}, "'keep_alive' must be a number"),
    ],
)
def test_a_private_refusal_names_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as caught:
        ask(**fields)
    assert caught.value.status == 400
    assert message in caught.value.message


def test_a_file_name_need_not_be_text_and_another_version_is_refused_first() -> None:
    assert ask().video == "caf\udce9.mp4"
    with pytest.raises(Refused, match="of version") as caught:
        ask(version="0", questions=5)
    assert caught.value.status == 409


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
@pytest.mark.parametrize("private", [True, False])
def test_a_body_that_is_not_json_is_refused(body: bytes, private: bool) -> None:
    model = AskBody if private else ChatBody
    with pytest.raises(Refused, match="not valid JSON"):
        read_body(body, model, with_file_names=private)
