"""The OpenAI chat protocol: what a request asks, and what is answered.

https://platform.openai.com/docs/api-reference/chat, with video parts as vLLM takes them:
{"type": "video_url", "video_url": {"url": ...}, "uuid": ...}.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from sttm_cli.config import Settings, parse_budget, parse_seconds
from sttm_cli.errors import UsageError
from sttm_cli.results import Answer
from sttm_cli.serve.problems import Refused
from sttm_cli.types import Json

_MOST_TURNS = 512


@dataclass(frozen=True)
class VideoPart:
    """A video as a client names it: an address, an identity of the client's own, or both."""

    url: str | None
    uuid: str | None


@dataclass(frozen=True)
class ChatRequest:
    """One question about one video, with the turns before it."""

    model: str
    video: VideoPart
    question: str
    history: tuple[tuple[str, str], ...]
    settings: Settings
    stream: bool
    include_usage: bool


def read_request(body: bytes, base: Settings) -> ChatRequest:
    """Check a request's body. Raises Refused (400) for what is malformed or not supported."""
    fields = read_object(body)
    _check_text(fields)
    _refuse_unsupported(fields)
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        _bad("'stream_options' must be an object")
    video, question, history = _conversation(fields.get("messages"))
    return ChatRequest(
        model=_text(fields.get("model"), "model"),
        video=video,
        question=question,
        history=history,
        settings=_settings(fields, base),
        stream=_flag(fields, "stream"),
        include_usage=_flag(options, "include_usage"),
    )


def read_object(body: bytes) -> Json:
    """A body that must be one JSON object. Raises Refused (400)."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        _bad("the body is not valid JSON")
    if not isinstance(value, dict):
        _bad("the body must be a JSON object")
    return value


def _check_text(fields: Json) -> None:
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        # NaN, or a lone surrogate, which neither a tokenizer nor an answer could hold.
        _bad("the body holds what is neither text nor number")


def _settings(fields: Json, base: Settings) -> Settings:
    most = fields.get("max_completion_tokens") or fields.get("max_tokens")
    wanted: dict[str, Any] = _video_settings(fields.get("sttm"))
    if most is not None:
        wanted["max_new_tokens"] = _whole(most, "max_tokens")
    for name in ("temperature", "top_p"):
        if fields.get(name) is not None:
            wanted[name] = _number(fields[name], name)
    if fields.get("seed") is not None:
        wanted["seed"] = _whole(fields["seed"], "seed")
    if not wanted.get("temperature", base.temperature):
        # Nothing is drawn: these change nothing, and clients send them all the same.
        wanted["seed"] = wanted["top_p"] = None
    try:
        return replace(base, **wanted)
    except UsageError as error:
        _bad(error.message)


def _video_settings(given: Any) -> dict[str, Any]:
    """The extra field "sttm": budget, frames, fps, start and end, as the flags of these names."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        _bad("'sttm' must be an object")
    readers: dict[str, Callable[[Any], Any]] = {
        "budget": lambda v: parse_budget(v if isinstance(v, str) else repr(_number(v, "budget"))),
        "frames": lambda v: _whole(v, "frames"),
        "fps": lambda v: _number(v, "fps"),
        "start": lambda v: parse_seconds("start", v if isinstance(v, str) else str(v)),
        "end": lambda v: parse_seconds("end", v if isinstance(v, str) else str(v)),
    }
    unknown = sorted(set(given) - set(readers))
    if unknown:
        _bad(f"'sttm' has no {unknown[0][:40]!r}; it has {', '.join(readers)}")
    try:
        return {name: readers[name](value) for name, value in given.items() if value is not None}
    except UsageError as error:
        _bad(error.message)


def _refuse_unsupported(fields: Json) -> None:
    # What would change the answer is refused rather than passed over.
    for name in ("tools", "functions", "stop", "logit_bias", "logprobs", "audio"):
        if fields.get(name):
            _bad(f"{name!r} is not supported")
    for name in ("frequency_penalty", "presence_penalty"):
        if fields.get(name):
            _bad(f"{name!r} is not supported")
    if fields.get("n") not in (None, 1):
        _bad("'n' must be 1")
    form = fields.get("response_format")
    if form is not None and form != {"type": "text"}:
        _bad("'response_format' must be text")


# ---- the conversation


def _conversation(messages: Any) -> tuple[VideoPart, str, tuple[tuple[str, str], ...]]:
    if not isinstance(messages, list) or not messages:
        _bad("'messages' must be a list of messages")
    if len(messages) > _MOST_TURNS:
        _bad(f"'messages' may have at most {_MOST_TURNS}")
    videos: list[VideoPart] = []
    turns: list[list[str]] = []
    system: list[str] = []
    for message in messages:
        role, text = _message(message, videos)
        if role in ("system", "developer"):
            system.append(text)
        elif role == "user":
            turns.append([text])
        elif turns and len(turns[-1]) == 1:
            turns[-1].append(text)
        else:
            _bad("an assistant's message must follow a user's")
    if not turns or len(turns[-1]) != 1 or any(len(turn) == 1 for turn in turns[:-1]):
        _bad("the messages must alternate between user and assistant and end with the user's")
    # Nothing may stand before the video, whose prefix is shared by all conversations.
    turns[0][0] = "\n".join([*system, turns[0][0]])
    return _one(videos), turns[-1][0], tuple((q, a) for q, a in turns[:-1])


def _message(message: Any, videos: list[VideoPart]) -> tuple[str, str]:
    """A message's role and text; its videos are added to `videos`."""
    if not isinstance(message, dict):
        _bad("a message must be an object")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        _bad("a message's role must be system, user or assistant")
    if isinstance(content, str):
        return role, content
    if not isinstance(content, list):
        _bad("a message's content must be a text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(_text(part.get("text"), "text"))
        elif kind == "video_url" and role == "user":
            videos.append(_video(part))
        else:
            _bad("a part must be of type text or, in a user's message, video_url")
    return role, "\n".join(texts)


def _video(part: Json) -> VideoPart:
    holder, uuid = part.get("video_url"), part.get("uuid")
    if holder is not None and not isinstance(holder, dict):
        _bad("'video_url' must be an object with a url")
    url = (holder or {}).get("url")
    if uuid is not None and not (isinstance(uuid, str) and 0 < len(uuid) <= 256):
        _bad("'uuid' must be a text of at most 256 characters")
    if url is None and uuid is None:
        _bad("a video part needs a url, or a uuid that is known")
    return VideoPart(None if url is None else _text(url, "url"), uuid)


def _one(videos: Sequence[VideoPart]) -> VideoPart:
    if not videos:
        _bad("no message has a video: give a part of type video_url")
    if len(set(videos)) > 1:
        _bad("a conversation is about one video; this one has several")
    return videos[0]


# ---- single values


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        _bad(f"{name!r} must be a text")
    return value


def _flag(fields: Json, name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        _bad(f"{name!r} must be true or false")
    return bool(value)


def _number(value: Any, name: str) -> float | int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or abs(value) > 1e15 or not math.isfinite(value):
        _bad(f"{name!r} must be a number")
    return value  # type: ignore[no-any-return]


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        _bad(f"{name!r} must be a whole number")
    return value


def _bad(message: str) -> NoReturn:
    raise Refused(400, message, code="invalid_request")


# ---- answers

_FINISH = {"end": "stop", "stopped": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Writer:
    """Writes what one request is answered with."""

    id: str
    model: str
    created: int

    @classmethod
    def new(cls, model: str) -> Writer:
        import secrets

        return cls(f"chatcmpl-{secrets.token_hex(12)}", model, int(time.time()))

    def whole(self, answer: Answer, usage: Json, extra: Json) -> Json:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _FINISH[answer.ending],
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage, "sttm": extra}

    def first(self) -> Json:
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Json:
        return self._chunk({"content": text})

    def last(self, answer: Answer, extra: Json) -> Json:
        return {**self._chunk({}, _FINISH[answer.ending]), "sttm": extra}

    def usage(self, usage: Json) -> Json:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(self, delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_of(answer: Answer, *, prompt_tokens: int, cached_tokens: int) -> Json:
    """Token counts in OpenAI's form, and the video's tokens before and after merging."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer.new_tokens,
        "total_tokens": prompt_tokens + answer.new_tokens,
        "prompt_tokens_details": {
            "cached_tokens": cached_tokens,
            "video_tokens": answer.tokens.video_kept,
            "video_tokens_full": answer.tokens.video_full,
        },
    }
