"""What flows between the stages: video -> frames -> tokens -> merged tokens -> KV -> answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sttm_cli.base.errors import UsageError
from sttm_cli.base.reports import ReadFrames

if TYPE_CHECKING:
    import numpy as np
    import torch

Json = dict[str, Any]
Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is (0: unknown)."""


@dataclass(frozen=True)
class VideoInfo:
    """The best video stream of a file, from the header and the first frame.

    `width` and `height` are as shown: after rotation and with square pixels. `start_s` is the
    presentation time of the first frame on the file's own clock; all other times in this package
    count from it. `transfer` is "sdr", or "pq" or "hlg" for HDR. `notes`: how it is read, for the
    person who gave it, a line each.
    """

    container: str
    codec: str
    width: int
    height: int
    duration_s: float
    fps: float
    rotation: int
    start_s: float = 0.0
    has_audio: bool = False
    transfer: str = "sdr"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FramePlan:
    """Which frames to read, how, and of which video: complete before anything is decoded.

    `times_s` are the presentation times asked for, in seconds from the first frame, ascending.
    `reader` is resolved for this file (never "auto"). `size` is the (width, height) of the frames
    to deliver; `transfer` and `origin_s` are `VideoInfo`'s transfer and start_s. `image_fps` is
    how many images of a folder make a second, 0 for a file. `fallback` reads where `reader` fails.
    """

    times_s: tuple[float, ...]
    start_s: float
    end_s: float
    reader: str
    reader_version: str
    size: tuple[int, int]
    transfer: str = "sdr"
    origin_s: float = 0.0
    image_fps: float = 0.0
    fallback: str = ""

    def identity(self) -> Json:
        found: Json = {
            "times_s": list(self.times_s),
            "size": list(self.size),
            "reader": self.reader,
            "reader_version": self.reader_version,
            "transfer": self.transfer,
            "origin_s": self.origin_s,
        }
        return found | ({"image_fps": self.image_fps} if self.image_fps else {})


@dataclass(frozen=True)
class FrameChunk:
    """Consecutive sampled frames: `frames` [T, H, W, 3] uint8 RGB, upright, square pixels;
    `times_s` the presentation times that they really have, in seconds from the first frame."""

    frames: np.ndarray
    times_s: tuple[float, ...]


@dataclass
class DecodeReport:
    """What came of a decode: filled while the chunks are read, complete after the last one.

    `lost` counts the asked frames that could not be decoded; `fallback` says why the other
    reader had to take over. `causes` counts the lost frames by cause.
    """

    times_s: list[float] = field(default_factory=list)
    lost: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    reader: str = ""
    fallback: str | None = None
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> ReadFrames:
        return {
            "times_s": [round(t, 6) for t in self.times_s],
            "lost": self.lost,
            "reader": self.reader,
            "fallback": self.fallback,
            "warnings": list(self.warnings),
        }


class Frames(NamedTuple):
    """A video's frames while they are read; `report` is complete after the last chunk."""

    chunks: Iterable[FrameChunk]
    report: DecodeReport


@dataclass(frozen=True)
class VisualTokens:
    """What the vision encoder makes of frames: `features` [T, H, W, C]; `deep` are further
    features of the same shape that a family adds in its first decoder layers (deepstack).

    `times_s` are the presentation times of the frames behind them and `duration_s` the whole
    video's, in seconds: known once all frames are read, and part of some families' prompts.
    """

    features: torch.Tensor
    deep: tuple[torch.Tensor, ...] = ()
    times_s: tuple[float, ...] = ()
    duration_s: float = 0.0

    @property
    def grid(self) -> tuple[int, int, int]:
        time, height, width, _ = self.features.shape
        return time, height, width


@dataclass(frozen=True)
class Prompt:
    """The prompt before the question: token ids, with the places of the visual tokens marked.

    `ids` [L] int64; `video` [T*H*W] int64, the indices in `ids` that hold visual tokens, in the
    grid's order, text may stand between and after them; `positions` [A, L] int64 rotary ids (A is
    1, or 3 for M-RoPE); `next_position` is the rotary id of the first token after the prefix.
    `blocks` [L] int64: tokens with the same number see each other in both directions, -1 marks
    those that see only what comes before them; None where attention is causal throughout.
    """

    ids: torch.Tensor
    video: torch.Tensor
    grid: tuple[int, int, int]
    positions: torch.Tensor
    next_position: int
    blocks: torch.Tensor | None = None


class Merged(Protocol):
    """What prefill needs of a merge: which tokens are left, and how many there were on the way.

    `features` [N, C]; `roots` [N] int64, ascending: the flat index in the [T, H, W] grid of the
    top-left cell of each token's box. `sources` merges other features [T, H, W, C] -> [N, C]
    in the same way.
    """

    @property
    def features(self) -> torch.Tensor: ...
    @property
    def roots(self) -> torch.Tensor: ...
    @property
    def sources(self) -> Callable[[torch.Tensor], torch.Tensor]: ...
    @property
    def after_spatial(self) -> int: ...
    @property
    def spatial_threshold(self) -> float | None: ...
    @property
    def temporal_threshold(self) -> float | None: ...


class Ending(StrEnum):
    """Why an answer ended: the model said so, `max_new_tokens`, the model's context is full,
    or it was stopped."""

    END = "end"
    LENGTH = "length"
    CONTEXT = "context"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen: the likeliest each time at temperature 0, else drawn.

    The same `seed` draws the same text; without one, each answer draws its own. `top_p` keeps
    the likeliest tokens that make up this share of the probability; None leaves it to the
    checkpoint's generation settings. Raises UsageError for a value that is not possible.
    """

    temperature: float = 0.0
    seed: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature {self.temperature} is not possible", "give 0 or more")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} is not possible", "give a whole number from 0 on")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UsageError(
                f"top-p {self.top_p} is not possible", "give a share above 0 and up to 1"
            )


GREEDY = Sampling()

OnToken = Callable[[int, "torch.Tensor"], None]
"""Gets a token of an answer and the logits [V] that it was chosen from."""


class Continuation(Protocol):
    """A prefilled prefix that can be continued with tokens and wound back to its end."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The distinct token ids of the prefix, then the appended ones."""
        ...

    @property
    def appended(self) -> int:
        """How many tokens follow the prefix."""
        ...

    @property
    def room(self) -> int:
        """How many more tokens the model's context takes."""
        ...

    def extend(self, ids: torch.Tensor) -> torch.Tensor:
        """Append tokens `ids` [n] int64 and return the logits [V] float32 after the last one."""
        ...

    def extend_each(self, ids: torch.Tensor) -> torch.Tensor:
        """Append tokens `ids` [n] int64 and return the logits [n, V] float32 after each one."""
        ...

    def resume(self, ids: torch.Tensor) -> int:
        """After a rewind: take back the tokens that begin `ids` and were appended before, and
        return how many; at least one of `ids` is always left to append."""
        ...

    def rewind(self, to: int = 0) -> None:
        """Forget everything but the prefix and the first `to` tokens after it."""
        ...


@dataclass(frozen=True)
class TokenCounts:
    """Video tokens before and after merging, and the prefix's length from the merge layer on."""

    video_full: int
    video_kept: int
    prefix: int
    after_spatial: int | None = None
    spatial_threshold: float | None = None
    temporal_threshold: float | None = None


@dataclass
class PrefixKV:
    """The prefilled prefix: what is saved, restored and continued.

    `keys[i]`, `values[i]`: [capacity_i, kv_heads, head_dim] of decoder layer i, of which the
    first `lengths[i]` rows are the prefix; rows beyond are room for the question and the answer,
    and a longer one puts larger buffers in their place.
    Token-major, so that a stored prefix is read in one piece and a token is appended in one
    piece. Layers below `merge_layer` hold every video token, the others the merged ones.
    `next_positions` are the rotary ids with which the next token continues, below and from the
    merge layer on. `facts` go into the entry's record: decode report, seconds, tool version,
    and `token_ids`, the distinct token ids of the prefix.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: tuple[int, ...]
    merge_layer: int
    next_positions: tuple[int, int]
    tokens: TokenCounts
    grid: tuple[int, int, int]
    facts: Json = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the prefix itself, without the room behind it."""
        pairs = zip(self.keys + self.values, self.lengths * 2, strict=True)
        return sum(n * t[0].numel() * t.element_size() for t, n in pairs)
