"""Types passed between the stages: video -> frames -> tokens -> merged tokens -> KV -> answer."""

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
"""Called with a stage's name, the amount done, and the total (0: unknown)."""


@dataclass(frozen=True)
class VideoInfo:
    """The best video stream of a file, from the header and the first frame.

    `width` and `height` are as displayed: after rotation and with square pixels. `start_s` is the
    presentation time of the first frame on the file's own clock; all other times in this package
    are relative to it. `transfer` is "sdr", or "pq" or "hlg" for HDR. `notes`: lines for the user
    about how the file is read.
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
    """The frames to read and how to read them; complete before decoding starts.

    `times_s`: the requested presentation times, in seconds from the first frame, ascending.
    `reader` is resolved for this file (never "auto"). `size`: (width, height) of the delivered
    frames; `transfer` and `origin_s` are `VideoInfo`'s transfer and start_s. `image_fps`: images
    per second for a folder of images, 0 for a file. `fallback`: the reader to use if `reader`
    fails.
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
        identity: Json = {
            "times_s": list(self.times_s),
            "size": list(self.size),
            "reader": self.reader,
            "reader_version": self.reader_version,
            "transfer": self.transfer,
            "origin_s": self.origin_s,
        }
        return identity | ({"image_fps": self.image_fps} if self.image_fps else {})


@dataclass(frozen=True)
class FrameChunk:
    """Consecutive sampled frames: `frames` [T, H, W, 3] uint8 RGB, upright, square pixels;
    `times_s`: their actual presentation times, in seconds from the first frame."""

    frames: np.ndarray
    times_s: tuple[float, ...]


@dataclass
class DecodeReport:
    """The result of a decode: filled while the chunks are read, complete after the last one.

    `lost`: number of requested frames that could not be decoded; `causes`: the same by cause;
    `fallback`: why the fallback reader took over.
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
    """An iterator over a video's frames; `report` is complete after the last chunk."""

    chunks: Iterable[FrameChunk]
    report: DecodeReport


@dataclass(frozen=True)
class VisualTokens:
    """The output of the vision encoder: `features` [T, H, W, C].

    `deep`: further features of the same shape that a family adds in its first decoder layers
    (deepstack). `times_s`: the presentation times of the frames, and `duration_s`: the duration of
    the whole video, in seconds; set once all frames are read, and part of some families' prompts.
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
    """The prompt before the question, with the places of the visual tokens.

    `ids` [L] int64; `video` [T*H*W] int64: the indices of visual tokens in `ids`, in the grid's
    order, possibly with text between and after them; `positions` [A, L] int64: rotary ids (A is
    1, or 3 for M-RoPE); `next_position`: the rotary id of the first token after the prefix.
    `blocks` [L] int64: tokens with the same number attend to each other in both directions, -1
    marks those that attend to earlier ones only; None where attention is causal throughout.
    """

    ids: torch.Tensor
    video: torch.Tensor
    grid: tuple[int, int, int]
    positions: torch.Tensor
    next_position: int
    blocks: torch.Tensor | None = None


class Merged(Protocol):
    """The part of a merge result that prefill uses.

    `features` [N, C]; `roots` [N] int64, ascending: the flat index in the [T, H, W] grid of the
    top-left cell of each token's box. `sources` merges other features [T, H, W, C] -> [N, C]
    in the same way; `patch_counts` [N]: how many cells are behind each token.
    """

    @property
    def features(self) -> torch.Tensor: ...
    @property
    def roots(self) -> torch.Tensor: ...
    @property
    def sources(self) -> Callable[[torch.Tensor], torch.Tensor]: ...
    @property
    def patch_counts(self) -> torch.Tensor: ...
    @property
    def after_spatial(self) -> int: ...
    @property
    def spatial_threshold(self) -> float | None: ...
    @property
    def temporal_threshold(self) -> float | None: ...


class Ending(StrEnum):
    """Why an answer ended: end token, `max_new_tokens`, full context, or a stop request."""

    END = "end"
    LENGTH = "length"
    CONTEXT = "context"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen: greedily at temperature 0, else sampled.

    The same `seed` gives the same text; None uses a new seed for each answer. `top_p` restricts
    sampling to the likeliest tokens that make up this share of the probability; None uses the
    checkpoint's generation settings. Raises UsageError for invalid values.
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
"""Called with each token of an answer and the logits [V] that it was chosen from."""


class Continuation(Protocol):
    """A prefilled prefix to which tokens can be appended and removed again."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The distinct token ids of the prefix, then those of the appended tokens."""
        ...

    @property
    def appended(self) -> int:
        """The number of tokens after the prefix."""
        ...

    @property
    def room(self) -> int:
        """The number of tokens left in the model's context."""
        ...

    def extend(self, ids: torch.Tensor) -> torch.Tensor:
        """Append tokens `ids` [n] int64 and return the logits [V] float32 after the last one."""
        ...

    def extend_each(self, ids: torch.Tensor) -> torch.Tensor:
        """Append tokens `ids` [n] int64 and return the logits [n, V] float32 after each one."""
        ...

    def resume(self, ids: torch.Tensor) -> int:
        """Restore tokens removed by a rewind, as far as they equal the start of `ids`.

        Returns their number; at least one of `ids` is always left to append.
        """
        ...

    def rewind(self, to: int = 0) -> None:
        """Remove everything after the first `to` tokens behind the prefix."""
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


class LayerState(NamedTuple):
    """What a recurrent layer keeps of the tokens before: `conv` [C, K], the last inputs of its
    convolution, and `recurrent` [H, D, E] float32. Never written to, always replaced."""

    conv: torch.Tensor
    recurrent: torch.Tensor


@dataclass
class PrefixKV:
    """The keys and values of a prefilled prefix, to be stored, restored and continued.

    `keys[i]`, `values[i]`: [capacity_i, kv_heads, head_dim] of decoder layer i. The first
    `lengths[i]` rows are the prefix; the rest is free for the question and the answer, and larger
    buffers replace it when it is full. Token-major, so that a stored prefix is read, and a token
    appended, in one contiguous piece. Layers below `merge_layer` hold every video token, the
    others the merged ones. `next_positions`: the rotary ids of the next token below the merge
    layer, and from it on. `sizes` [lengths[-1]] int32, on the CPU: how often each token counts in
    attention from the merge layer on; None where each counts once. `facts` are stored with the
    entry: decode report, seconds, tool version, and `token_ids`, the distinct token ids of the
    prefix. `states`: those of recurrent layers, by layer, after the prefix; such a layer has no
    keys and values, so its length is 0.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: tuple[int, ...]
    merge_layer: int
    next_positions: tuple[int, int]
    tokens: TokenCounts
    grid: tuple[int, int, int]
    facts: Json = field(default_factory=dict)
    sizes: torch.Tensor | None = None
    states: dict[int, LayerState] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the prefix, without the free rows behind it."""
        pairs = zip(self.keys + self.values, self.lengths * 2, strict=True)
        rows = sum(n * t.shape[1:].numel() * t.element_size() for t, n in pairs)
        return rows + self.state_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of the states alone."""
        return sum(t.numel() * t.element_size() for state in self.states.values() for t in state)
