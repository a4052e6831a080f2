"""Requests of OpenAI's chat protocol: the question, the video and the settings.

https://platform.openai.com/docs/api-reference/chat, with video parts in vLLM's form: {"type":
"video_url", "video_url": {"url": ...}, "uuid": ...}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag, model_validator

from sttm_cli.base.errors import UsageError
from sttm_cli.serve.openai_reply import MOST
from sttm_cli.serve.request_body import Body, ClosedBody, Number, Whole, bad, read_body
from sttm_cli.settings.fields import parse_budget, parse_seconds
from sttm_cli.settings.settings import Settings

_MOST_TURNS = 512


@dataclass(frozen=True)
class VideoPart:
    """A video as the client names it: by an address, by an identity of its own, or both."""

    url: str | None
    uuid: str | None


@dataclass(frozen=True)
class ChatRequest:
    """A question about a video, with the turns before it."""

    model: str
    video: VideoPart
    question: str
    history: tuple[tuple[str, str], ...]
    settings: Settings
    stream: bool
    include_usage: bool
    logprobs: int | None


def read_request(body: bytes | bytearray, base: Settings) -> ChatRequest:
    """Parse a request's body. Raises Refused (400) if it is malformed or not supported."""
    chat = read_body(body, ChatBody)
    video, question, history = _conversation(chat.messages)
    return ChatRequest(
        model=chat.model,
        video=video,
        question=question,
        history=history,
        settings=_settings(chat, base),
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
    )


def _settings(chat: ChatBody, base: Settings) -> Settings:
    wanted = {} if chat.sttm is None else chat.sttm.model_dump(exclude_none=True)
    limit = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    given = {
        **_reading(chat),
        "max_new_tokens": limit,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "seed": chat.seed,
    }
    wanted |= {name: value for name, value in given.items() if value is not None}
    if not wanted.get("temperature", base.temperature):
        # Irrelevant at temperature 0, and many clients send them.
        wanted["seed"] = wanted["top_p"] = None
    try:
        return replace(base, **wanted)
    except UsageError as error:
        bad(str(error))


def _reading(chat: ChatBody) -> dict[str, Any]:
    """Return frames and rate from vLLM's form; the field 'sttm' may repeat, not contradict them."""
    video = chat.media_io_kwargs.video if chat.media_io_kwargs else None
    if video is None:
        return {}
    for name, ours, theirs in (("frames", "frames", "num_frames"), ("fps", "fps", "fps")):
        both = getattr(chat.sttm, ours, None), getattr(video, theirs)
        if None not in both and both[0] != both[1]:
            bad(f"'media_io_kwargs' and 'sttm' name different {name}: {both[1]} and {both[0]}")
    return {"frames": video.num_frames, "fps": video.fps}


# ---- the body


def _budget(value: Any) -> float | int:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError("a budget is a share or a number of tokens")
    budget: float | int = parse_budget("budget", value)
    return budget


def _seconds(name: str) -> Callable[[Any], float | None]:
    def read(value: Any) -> float | None:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError("a time is a number of seconds or a text such as 1:30")
        seconds: float | None = parse_seconds(name, str(value))
        return seconds

    return read


class _VideoSettings(Body):
    """The extra field "sttm"; its fields mean the same as the flags of these names."""

    budget: Annotated[float | int, PlainValidator(_budget)] | None = None
    method: str | None = None
    frames: Whole | None = None
    fps: Number | None = None
    start: Annotated[float, PlainValidator(_seconds("start"))] | None = None
    end: Annotated[float, PlainValidator(_seconds("end"))] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        unknown = sorted(set(given) - set(cls.model_fields)) if isinstance(given, dict) else []
        if unknown:
            raise ValueError(f"there is no {unknown[0][:40]!r}; use {', '.join(cls.model_fields)}")
        return given


class _VideoReading(ClosedBody):
    """vLLM's options for reading a video: `num_frames` is an upper bound here, like --frames."""

    hint: ClassVar[str] = " in 'media_io_kwargs'; it takes num_frames and fps of a video"
    num_frames: Annotated[Whole, Field(ge=1)] | None = None
    fps: Annotated[Number, Field(gt=0)] | None = None


class _MediaReading(ClosedBody):
    hint: ClassVar[str] = _VideoReading.hint
    video: _VideoReading | None = None


class _TextPart(Body):
    type: Literal["text"]
    text: str


class _VideoURL(ClosedBody):
    hint: ClassVar[str] = " in a video part; settings belong in the field 'sttm'"
    url: str | None = None


class _VideoPart(ClosedBody):
    hint: ClassVar[str] = _VideoURL.hint
    type: Literal["video_url"]
    video_url: _VideoURL | None = None
    uuid: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @model_validator(mode="after")
    def _check_named(self) -> _VideoPart:
        if self.named() == VideoPart(None, None):
            raise ValueError("a video part needs a url, or a uuid that is known")
        return self

    def named(self) -> VideoPart:
        return VideoPart(self.video_url.url if self.video_url else None, self.uuid)


def _kind_of_part(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return {"text": "<text>", "video_url": "<video>"}.get(kind) if isinstance(kind, str) else None


_Part = Annotated[
    Annotated[_TextPart, Tag("<text>")] | Annotated[_VideoPart, Tag("<video>")],
    Discriminator(
        _kind_of_part,
        custom_error_type="part",
        custom_error_message="a part is of type text or, in a user's message, video_url",
    ),
]


def _parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError("a content is a text or a list of parts")
    return content


class _Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_Part], BeforeValidator(_parts)]

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content if isinstance(part, _TextPart))

    @property
    def videos(self) -> list[VideoPart]:
        return [part.named() for part in self.content if isinstance(part, _VideoPart)]


class _StreamOptions(Body):
    include_usage: bool | None = None


class _TextFormat(ClosedBody):
    type: Literal["text"]


class ChatBody(ClosedBody):
    """The body of a chat completion."""

    passed_over: ClassVar[frozenset[str]] = frozenset(
        "user metadata store service_tier safety_identifier prompt_cache_key "
        "prompt_cache_retention parallel_tool_calls tool_choice".split()
    )
    model: str
    messages: Annotated[list[_Message], Field(min_length=1, max_length=_MOST_TURNS)]
    sttm: _VideoSettings | None = None
    media_io_kwargs: _MediaReading | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    seed: Whole | None = None
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    n: Literal[1] | None = None
    response_format: _TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatBody:
        most = self.top_logprobs
        if most is not None and (not 0 <= most <= MOST or (most and not self.logprobs)):
            raise ValueError(f"'top_logprobs' must be from 0 to {MOST}, and needs 'logprobs'")
        return self


# ---- the conversation


def _conversation(
    messages: Sequence[_Message],
) -> tuple[VideoPart, str, tuple[tuple[str, str], ...]]:
    """Return the video, the last question, and the turns before it."""
    turns: list[list[str]] = []
    system: list[str] = []
    for message in messages:
        if message.videos and message.role != "user":
            bad("a part must be of type text or, in a user's message, video_url")
        if message.role in ("system", "developer"):
            system.append(message.text)
        elif message.role == "user":
            turns.append([message.text])
        elif turns and len(turns[-1]) == 1:
            turns[-1].append(message.text)
        else:
            bad("an assistant's message must follow a user's")
    if not turns or len(turns[-1]) != 1 or any(len(turn) == 1 for turn in turns[:-1]):
        bad("the messages must alternate between user and assistant and end with the user's")
    # The video comes first in the prompt, so that all conversations about it share its prefix.
    turns[0][0] = "\n".join([*system, turns[0][0]])
    videos = [video for message in messages for video in message.videos]
    return _one(videos), turns[-1][0], tuple((q, a) for q, a in turns[:-1])


def _one(videos: Sequence[VideoPart]) -> VideoPart:
    if not videos:
        bad("no message has a video: give a part of type video_url")
    if len(set(videos)) > 1:
        bad("a conversation is about one video; this one has several")
    return videos[0]
