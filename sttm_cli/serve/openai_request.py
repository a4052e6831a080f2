"""The OpenAI chat protocol: what a request asks.

https://platform.openai.com/docs/api-reference/chat, with video parts as vLLM takes them:
{"type": "video_url", "video_url": {"url": ...}, "uuid": ...}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Json
from sttm_cli.serve.fields import (
    as_flag,
    as_number,
    as_text,
    as_whole,
    bad,
    check_text,
    read_object,
)
from sttm_cli.serve.logprobs import MOST
from sttm_cli.settings.settings import Settings, parse_budget, parse_seconds

_MOST_TURNS = 512
_READ = (
    "model messages stream stream_options sttm temperature top_p seed max_tokens "
    "max_completion_tokens logprobs top_logprobs"
).split()
_ONE_VALUE = {"n": 1, "response_format": {"type": "text"}, "modalities": ["text"]}
_CHANGES_NO_ANSWER = (
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention "
    "parallel_tool_calls tool_choice"
).split()


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
    logprobs: int | None


def read_request(body: bytes, base: Settings) -> ChatRequest:
    """Check a request's body. Raises Refused (400) for what is malformed or not supported."""
    fields = read_object(body)
    check_text(fields)
    _refuse_unsupported(fields)
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        bad("'stream_options' must be an object")
    video, question, history = _conversation(fields.get("messages"))
    return ChatRequest(
        model=as_text(fields.get("model"), "model"),
        video=video,
        question=question,
        history=history,
        settings=_settings(fields, base),
        stream=as_flag(fields.get("stream"), "stream"),
        include_usage=as_flag(options.get("include_usage"), "include_usage"),
        logprobs=_logprobs(fields),
    )


def _settings(fields: Json, base: Settings) -> Settings:
    wanted: dict[str, Any] = _video_settings(fields.get("sttm"))
    for name in ("max_tokens", "max_completion_tokens"):
        if fields.get(name) is not None:
            wanted["max_new_tokens"] = as_whole(fields[name], name)
    for name in ("temperature", "top_p"):
        if fields.get(name) is not None:
            wanted[name] = as_number(fields[name], name)
    if fields.get("seed") is not None:
        wanted["seed"] = as_whole(fields["seed"], "seed")
    if not wanted.get("temperature", base.temperature):
        # Nothing is drawn: these change nothing, and clients send them all the same.
        wanted["seed"] = wanted["top_p"] = None
    try:
        return replace(base, **wanted)
    except UsageError as error:
        bad(str(error))


def _logprobs(fields: Json) -> int | None:
    """How many alternatives each token is to be told with, None where they are not asked for."""
    wanted, most = as_flag(fields.get("logprobs"), "logprobs"), fields.get("top_logprobs")
    if most is None:
        return 0 if wanted else None
    if not 0 <= as_whole(most, "top_logprobs") <= MOST or (most and not wanted):
        bad(f"'top_logprobs' must be from 0 to {MOST}, and needs 'logprobs'")
    return most if wanted else None


def _video_settings(given: Any) -> dict[str, Any]:
    """The extra field "sttm": some settings, as the flags of these names."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        bad("'sttm' must be an object")
    readers: dict[str, Callable[[Any], Any]] = {
        "budget": lambda v: parse_budget(v if isinstance(v, str) else repr(as_number(v, "budget"))),
        "method": lambda v: as_text(v, "method"),
        "frames": lambda v: as_whole(v, "frames"),
        "fps": lambda v: as_number(v, "fps"),
        "start": lambda v: parse_seconds("start", v if isinstance(v, str) else str(v)),
        "end": lambda v: parse_seconds("end", v if isinstance(v, str) else str(v)),
    }
    unknown = sorted(set(given) - set(readers))
    if unknown:
        bad(f"'sttm' has no {unknown[0][:40]!r}; it has {', '.join(readers)}")
    try:
        return {name: readers[name](value) for name, value in given.items() if value is not None}
    except UsageError as error:
        bad(str(error))


def _refuse_unsupported(fields: Json) -> None:
    """What could change the answer is refused rather than passed over."""
    for name, only in _ONE_VALUE.items():
        if fields.get(name) not in (None, only):
            bad(f"{name!r} must be {json.dumps(only)}")
    _refuse_others(fields, (*_READ, *_ONE_VALUE, *_CHANGES_NO_ANSWER))


def _refuse_others(fields: Json, known: Sequence[str], hint: str = "") -> None:
    """Refuse fields that are not `known`, unless they are empty or off."""
    for name in sorted(name for name, value in fields.items() if value and name not in known):
        bad(f"{name[:40]!r} is not supported{hint}")


# ---- the conversation


def _conversation(messages: Any) -> tuple[VideoPart, str, tuple[tuple[str, str], ...]]:
    if not isinstance(messages, list) or not messages:
        bad("'messages' must be a list of messages")
    if len(messages) > _MOST_TURNS:
        bad(f"'messages' may have at most {_MOST_TURNS}")
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
            bad("an assistant's message must follow a user's")
    if not turns or len(turns[-1]) != 1 or any(len(turn) == 1 for turn in turns[:-1]):
        bad("the messages must alternate between user and assistant and end with the user's")
    # Nothing may stand before the video, whose prefix is shared by all conversations.
    turns[0][0] = "\n".join([*system, turns[0][0]])
    return _one(videos), turns[-1][0], tuple((q, a) for q, a in turns[:-1])


def _message(message: Any, videos: list[VideoPart]) -> tuple[str, str]:
    """A message's role and text; its videos are added to `videos`."""
    if not isinstance(message, dict):
        bad("a message must be an object")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        bad("a message's role must be system, user or assistant")
    if isinstance(content, str):
        return role, content
    if not isinstance(content, list):
        bad("a message's content must be a text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(as_text(part.get("text"), "text"))
        elif kind == "video_url" and role == "user":
            videos.append(_video(part))
        else:
            bad("a part must be of type text or, in a user's message, video_url")
    return role, "\n".join(texts)


def _video(part: Json) -> VideoPart:
    holder, uuid = part.get("video_url"), part.get("uuid")
    if holder is not None and not isinstance(holder, dict):
        bad("'video_url' must be an object with a url")
    holder = holder or {}
    url = holder.get("url")
    for given, known in ((part, ("type", "video_url", "uuid")), (holder, ("url",))):
        _refuse_others(given, known, " in a video part; settings stand in the field 'sttm'")
    if uuid is not None and not (isinstance(uuid, str) and 0 < len(uuid) <= 256):
        bad("'uuid' must be a text of at most 256 characters")
    if url is None and uuid is None:
        bad("a video part needs a url, or a uuid that is known")
    return VideoPart(None if url is None else as_text(url, "url"), uuid)


def _one(videos: Sequence[VideoPart]) -> VideoPart:
    if not videos:
        bad("no message has a video: give a part of type video_url")
    if len(set(videos)) > 1:
        bad("a conversation is about one video; this one has several")
    return videos[0]
