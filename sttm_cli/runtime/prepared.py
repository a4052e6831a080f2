"""A video that questions can be asked of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sttm_cli.base.results import CacheUse

if TYPE_CHECKING:
    from sttm_cli.base.clock import Clock
    from sttm_cli.base.types import Continuation, PrefixKV
    from sttm_cli.models.video_llm import VideoLLM
    from sttm_cli.runtime.request import Request

TO_PREFIX = ("decode", "encode", "merge", "prefill")
"""The stages that a cache hit skips."""


@dataclass(frozen=True)
class Prepared:
    """A video whose prefix is prefilled: questions can be asked of it at once.

    `model` answers them. `seconds`: what it took to get there, the loading of the model left
    out.
    """

    request: Request
    model: VideoLLM
    kv: PrefixKV
    cache: CacheUse
    clock: Clock
    prefix: Continuation
    seconds: float

    @property
    def frame_times_s(self) -> list[float]:
        """The times of the frames that were read, in seconds from the first frame."""
        return list(self.kv.facts["decode"]["times_s"])

    @property
    def cold_seconds(self) -> float:
        """As `seconds_to_prefix`."""
        return seconds_to_prefix(self.kv)


def seconds_to_prefix(kv: PrefixKV) -> float:
    """What a user waited for the KV when it was computed, the loading of the model left out; where
    nobody did, what decode, encode, merge and prefill took."""
    if (waited := kv.facts.get("waited_s")) is not None:
        return float(waited)
    return sum(kv.facts["seconds"].get(name) or 0.0 for name in TO_PREFIX)
