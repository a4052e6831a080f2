"""Types of the JSON objects that commands print; described in docs/cli.md and the contract."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class VideoReport(TypedDict):
    """The video of `sttm.ask/1`; times in seconds from its first frame."""

    path: str
    digest: str
    duration_s: float
    frame_times_s: list[float]
    frames_asked: int
    reader: str
    fallback: str | None
    has_audio: bool
    notes: list[str]
    subtitles: NotRequired[str | None]


class ModelReport(TypedDict):
    """The model, its device and its dtype."""

    name: str
    revision: str | None
    device: str
    dtype: str


class TokensReport(TypedDict):
    """Video tokens before and after merging. `room`: tokens left in the model's context."""

    budget: float | int
    method: str
    video_full: int
    video_kept: int
    prefix: int
    after_spatial: int | None
    room: int


class CacheReport(TypedDict):
    """Cache use. `cold_seconds`: seconds of decode, encode, merge and prefill in the run that
    computed the entry."""

    hit: bool
    tier: str | None
    key: str
    bytes: int
    kv_dtype: str
    saved_bytes: int
    restored_tokens: int
    prefilled_tokens: int
    miss_reason: str | None
    cold_seconds: float


class OptionReport(TypedDict):
    """One option and its likelihood as the answer."""

    text: str
    probability: float
    log_likelihood: float
    tokens: int


class AnswerReport(TypedDict):
    """One answer: generated, with `ending` and, if sampled, `seed`, or chosen from `choices`."""

    question: str
    answer: str
    new_tokens: int
    ending: NotRequired[Literal["end", "length", "context", "stopped"]]
    seed: NotRequired[int]
    choices: NotRequired[list[OptionReport]]


class SecondsReport(TypedDict):
    """Seconds by stage; None for a stage that did not run. `wait`: for another process that
    computed the same video."""

    load_model: float | None
    decode: float | None
    encode: float | None
    merge: float | None
    prefill: float | None
    restore: float | None
    wait: NotRequired[float | None]
    first_token: float | None
    answer: float | None
    total: float | None


class AskReport(TypedDict):
    """`sttm ask --json`."""

    schema: Literal["sttm.ask/1"]
    video: VideoReport
    model: ModelReport
    tokens: TokensReport
    cache: CacheReport
    answers: list[AnswerReport]
    seconds: SecondsReport


class LogEntry(TypedDict):
    """An answered question of `sttm log --json`; `time` in seconds since the epoch."""

    time: float
    video: str
    model: str
    budget: float | int
    question: str
    answer: str
    seconds: float | None
    conversation: str


class LogReport(TypedDict):
    """`sttm log --json`, the oldest entry first; `path`: the log's file."""

    schema: Literal["sttm.log/1"]
    path: str
    entries: list[LogEntry]


class TurnReport(TypedDict):
    """A question of a conversation and its answer; `seconds` from the question on."""

    question: str
    answer: str
    budget: float | int
    ending: str
    seconds: float


class ChatReport(TypedDict):
    """`sttm chat --json`, also written by /save."""

    schema: Literal["sttm.chat/1"]
    video: str
    model: str
    turns: list[TurnReport]


class FailedVideo(TypedDict):
    """A video that could not be prepared."""

    path: str
    error: str


class NodeReport(TypedDict):
    """What a machine of a cluster did: counts of videos, and bytes stored."""

    node: str
    done: int
    skipped: int
    failed: int
    bytes: int


class PrecomputeReport(TypedDict):
    """`sttm precompute --json`; `stopped`: why it ended early; `nodes`: those of a cluster."""

    schema: Literal["sttm.precompute/1"]
    done: int
    skipped: int
    skipped_same_bytes: int
    failed: list[FailedVideo]
    seconds: float
    bytes: int
    video_seconds: float
    seconds_per_video_hour: float | None
    stopped: str | None
    videos: NotRequired[int]
    estimated_bytes: NotRequired[int | None]
    nodes: NotRequired[list[NodeReport]]


class CacheEntryReport(TypedDict):
    """A stored KV; times in seconds since the epoch. `video` to `system` are those of the entry's
    label, None where it has none."""

    key: str
    path: str
    bytes: int
    kv_dtype: str
    saved_bytes: int
    video: object
    model: object
    budget: object
    method: object
    frames: object
    start_s: object
    end_s: object
    merge_layer: object
    system: object
    video_full: int
    video_kept: int
    created: float
    last_used: float
    hits: int
    saved_seconds: float


class CacheListReport(TypedDict):
    """`sttm cache ls --json`."""

    schema: Literal["sttm.cache/1"]
    entries: list[CacheEntryReport]
    bytes: int
    max_bytes: int


class ErrorFields(TypedDict):
    """The kind and message of an error, and a hint what to do."""

    kind: str
    message: str
    hint: str


class ErrorReport(TypedDict):
    """A failure of any command with `--json`."""

    schema: Literal["sttm.error/1"]
    error: ErrorFields


class SurveyedVideo(TypedDict):
    """The video of `sttm.inspect/1`, from its header."""

    path: str
    digest: str
    duration_s: float
    container: str
    codec: str
    width: int
    height: int
    fps: float
    rotation: int
    reader: str


class ReadFrames(TypedDict):
    """The frames that were read; times in seconds from the first frame."""

    times_s: list[float]
    lost: int
    reader: str
    fallback: str | None
    warnings: list[str]


class SampledFrames(ReadFrames):
    """The frames that were read, and the requested times."""

    asked_s: list[float]


class SurveyedModel(TypedDict):
    """The model of `sttm.inspect/1` and its settings."""

    name: str
    revision: str | None
    family: str
    device: str
    dtype: str
    kv_dtype: str
    method: str
    merge_layer: int
    positions: str


class StoredBudget(TypedDict):
    """An entry of the surveyed video in the user's cache."""

    key: str
    model: object
    budget: object
    video_kept: int
    bytes: int


class SumsOfMedians(TypedDict):
    """Seconds to the first token, from the video file and from the stored KV."""

    computed: float | None
    restored: float | None


class BudgetReport(TypedDict):
    """One budget of `sttm.inspect/1`: token counts, bytes of the KV, medians of seconds."""

    budget: float | int
    video_full: int
    after_spatial: int | None
    video_kept: int
    spatial_threshold: float | None
    temporal_threshold: float | None
    kv_bytes: int
    saved_bytes: int
    seconds: dict[str, float | None]
    sums_of_medians: SumsOfMedians
    speedup: float
    cached: bool
    key: str | None


class InspectReport(TypedDict):
    """`sttm inspect --json`; `frames`: the times of the frames that were read, in seconds."""

    schema: Literal["sttm.inspect/1"]
    video: SurveyedVideo
    model: SurveyedModel
    frames: list[float]
    sampled: SampledFrames
    grid: list[int]
    repeat: int
    budgets: list[BudgetReport]
    cache: list[StoredBudget]


class ServerFacts(TypedDict):
    """The file that a server writes beside its socket; other versions may omit fields."""

    pid: int
    version: str
    model: NotRequired[str]
    address: NotRequired[str | None]
    started: NotRequired[float]


class ServerStatus(TypedDict):
    """The status of a running server, as shown by `sttm serve --status`."""

    ready: bool
    running: int
    answered: int
    idle_s: float
    held_bytes: dict[str, int]
