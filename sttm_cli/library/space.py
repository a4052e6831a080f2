"""Disk space for a library: the estimate, and the checks before and during a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from sttm_cli.base.errors import CacheError, SttmError, UsageError
from sttm_cli.base.types import FramePlan
from sttm_cli.decode import Source
from sttm_cli.library.outcome import Failed, Job, Stopped, Video
from sttm_cli.runtime.request import kv_bytes, plan_video
from sttm_cli.runtime.session import VideoQA
from sttm_cli.store import Store

SAMPLE = 32
"""How many videos, spread over the list, the estimate samples."""
HEADER_BYTES = 16 << 10
"""Room for an artifact's header and the prompt's own tokens."""


@dataclass(frozen=True)
class Estimate:
    """The estimated bytes of `videos` videos in the cache, and how many of them are sure to fit."""

    videos: int
    bytes: int


def needed_bytes(qa: VideoQA, plan: FramePlan) -> int | None:
    """Estimate the bytes of a video's KV on disk; None if the model's config does not tell."""
    asked = qa.settings.kv_dtype
    dtype = qa.model_plan.dtype if asked == "auto" else asked
    size = kv_bytes(plan, qa.model_plan, qa.settings.budget, dtype=dtype)
    return None if size is None else HEADER_BYTES + size


def estimate(qa: VideoQA, videos: Sequence[Video]) -> Estimate | None:
    """Estimate the bytes of all `videos` from a sample; None if unknown.

    Reads the headers of the sample, which are remembered; decodes, digests and fetches nothing.
    Remote videos are taken to be average.
    """
    near = [video for video in videos if isinstance(video, Path)]
    step = max(1, ceil(len(near) / SAMPLE))
    found = []
    for video in near[::step]:
        try:
            _, plan = plan_video(Source(str(video), video), qa.model_plan, qa.settings, qa.store)
        except SttmError:
            continue
        if (need := needed_bytes(qa, plan)) is not None:
            found.append(need)
    return Estimate(len(videos), sum(found) * len(videos) // len(found)) if found else None


def store_of(qa: VideoQA) -> Store:
    """Return the session's cache; raises UsageError if it is switched off."""
    if qa.store.keeps_nothing:
        raise UsageError("--no-cache would keep nothing", "leave it out")
    return qa.store


def check_space(qa: VideoQA, wanted: Estimate | None) -> None:
    """Raise CacheError if the cache is not writable or `wanted` cannot fit into it.

    Beyond the cache's bound, the last videos would evict the first.
    """
    store = store_of(qa)
    if not store.writable:
        raise CacheError(f"nothing can be stored in {store.location}", "give another --cache-dir")
    if wanted is None:
        return
    what = f"{wanted.videos:,} videos need about {_gib(wanted.bytes)}"
    if wanted.bytes > store.max_bytes:
        raise CacheError(
            f"{what}, and the cache is bounded to {_gib(store.max_bytes)}: the last would push "
            "out the first",
            f"give --max-bytes {_rounded_up(wanted.bytes)}, a smaller --budget or fewer videos",
        )
    free = store.space().free
    if free is not None and wanted.bytes > free + store.bytes:
        raise CacheError(
            f"{what}, and the disk of {store.location} has {_gib(free)} free",
            "make room, or give a smaller --budget, fewer videos or another --cache-dir",
        )


class Room:
    """Keeps a run from filling the disk and from evicting its own entries."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bound = store.max_bytes
        self._reserve = store.space().reserve
        self._own = 0
        self._reserved: dict[Video, int] = {}

    def admit(self, job: Job) -> Failed | Stopped | None:
        """Reserve space for a video; otherwise return why it, or any later video, cannot be
        stored."""
        need = job.need or 0
        if need > self._bound:
            return Failed(job.path, f"it needs about {_gib(need)}, more than the cache's bound")
        if reason := self._lacking(need):
            return Stopped(job.path, reason)
        self._reserved[job.path] = need
        return None

    def settle(self, video: Video, stored: int) -> None:
        """Record that a video is done, with `stored` bytes in the cache."""
        self._reserved.pop(video, None)
        self._own += stored

    def _lacking(self, need: int) -> str | None:
        ahead = sum(self._reserved.values())
        if self._own + ahead + need > self._bound:
            return bound_reached(self._bound)
        free = self._store.space().free
        if free is not None and free - ahead - need < self._reserve:
            return f"the disk of {self._store.location} is nearly full: {_gib(free)} are left"
        return None


def bound_reached(bound: int) -> str:
    """Say why no further video is prepared."""
    return (
        f"the cache's bound of {_gib(bound)} is reached (--max-bytes): more videos would push out "
        "those before them"
    )


def _gib(count: float) -> str:
    """Format bytes in the units that --max-bytes accepts."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _rounded_up(count: int) -> str:
    """Format a tenth more than `count` as --max-bytes accepts it."""
    power = 3 if count >= 1 << 30 else 2
    return f"{ceil(count * 1.1 / 1024**power)}{' KMG'[power]}"
