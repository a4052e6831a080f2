"""What a library needs on the disk, and whether it can have it: asked before the work starts."""

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
"""How many videos, spread over the list, the estimate looks at."""
HEADER_BYTES = 16 << 10
"""Room for an artifact's header and the prompt's own tokens."""


@dataclass(frozen=True)
class Estimate:
    """About how many bytes `videos` videos take in the cache, and how many are bound to fit."""

    videos: int
    bytes: int


def needed_bytes(qa: VideoQA, plan: FramePlan) -> int | None:
    """About how many bytes this video's KV takes on disk; None where the config does not say."""
    asked = qa.settings.kv_dtype
    dtype = qa.model_plan.dtype if asked == "auto" else asked
    size = kv_bytes(plan, qa.model_plan, qa.settings.budget, dtype=dtype)
    return None if size is None else HEADER_BYTES + size


def estimate(qa: VideoQA, videos: Sequence[Video]) -> Estimate | None:
    """What all of `videos` take, from a sample of them; None where that is unknown.

    Reads the sample's headers, which are remembered; decodes, digests and fetches nothing: videos
    from elsewhere count as the others do on average.
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
    """The cache, the purpose of all work here; raises UsageError where it is switched off."""
    if qa.store.keeps_nothing:
        raise UsageError("--no-cache would keep nothing", "leave it out")
    return qa.store


def check_space(qa: VideoQA, wanted: Estimate | None) -> None:
    """Raise CacheError where the cache cannot be written or `wanted` cannot fit into it.

    More than the cache's bound would push out at its end what was stored at its beginning.
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
    """Keeps a run from filling the disk, and from pushing out what it stored itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bound = store.max_bytes
        self._reserve = store.space().reserve
        self._own = 0
        self._reserved: dict[Video, int] = {}

    def admit(self, job: Job) -> Failed | Stopped | None:
        """Set room aside for a video; else why it, or any further one, cannot be stored."""
        need = job.need or 0
        if need > self._bound:
            return Failed(job.path, f"it needs about {_gib(need)}, more than the cache's bound")
        if reason := self._lacking(need):
            return Stopped(job.path, reason)
        self._reserved[job.path] = need
        return None

    def settle(self, video: Video, stored: int) -> None:
        """A video is through: `stored` bytes of it are in the cache."""
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
    """Why no further video is prepared."""
    return (
        f"the cache's bound of {_gib(bound)} is reached (--max-bytes): more videos would push out "
        "those before them"
    )


def _gib(count: float) -> str:
    """Bytes in the units in which --max-bytes reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _rounded_up(count: int) -> str:
    """A tenth more, as --max-bytes reads it."""
    power = 3 if count >= 1 << 30 else 2
    return f"{ceil(count * 1.1 / 1024**power)}{' KMG'[power]}"
