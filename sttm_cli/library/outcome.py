"""The videos of a library: jobs, the outcome of each, and their tally."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sttm_cli.base.reports import NodeReport, PrecomputeReport
from sttm_cli.base.types import TokenCounts

if TYPE_CHECKING:
    from sttm_cli.runtime.request import Request

STORED = "in the cache already"

Video = Path | str
"""A video of a library: a path, or the text of an address."""


@dataclass(frozen=True)
class Job:
    """A video to prepare. `need`: its estimated bytes in the cache, None if unknown."""

    request: Request
    need: int | None

    @property
    def path(self) -> Video:
        """The video as the user named it."""
        source = self.request.source
        return source.name if source.is_copy else Path(source.name)

    @property
    def key(self) -> str:
        """Equal for videos with the same bytes."""
        return self.request.key

    @property
    def video_s(self) -> float:
        """Seconds of video that it covers."""
        return self.request.plan.end_s - self.request.plan.start_s


@dataclass(frozen=True)
class Computed:
    """A video whose KV was computed and stored. `video_s`: the seconds of video it covers;
    `seconds`: the duration of each stage; `warnings`: the decoder's; `key`: the entry's; `digest`:
    of the video's bytes; `node`: the cluster node that did the work."""

    path: Video
    bytes: int
    tokens: TokenCounts
    video_s: float
    seconds: dict[str, float | None]
    warnings: tuple[str, ...] = ()
    key: str = ""
    digest: str = ""
    node: str = ""


@dataclass(frozen=True)
class Skipped:
    """A video that needs no work. `bytes`: of its entry, 0 if another video accounts for them;
    `key`: the entry's; `twin`: an earlier video with the same bytes; `digest` and `node` as in
    `Computed`."""

    path: Video
    reason: str
    bytes: int = 0
    key: str = ""
    twin: Video | None = None
    digest: str = ""
    node: str = ""


@dataclass(frozen=True)
class Failed:
    """A video that could not be prepared. `traceback`: for unexpected exceptions; `node` as in
    `Computed`."""

    path: Video
    error: str
    traceback: str = ""
    node: str = ""


@dataclass(frozen=True)
class Wanted:
    """In a dry run: a video that would be computed, and its estimated size."""

    path: Video
    bytes: int | None


@dataclass(frozen=True)
class Stopped:
    """The run stopped before `path`; no later video was probed."""

    path: Video
    reason: str


Outcome = Computed | Skipped | Failed | Wanted | Stopped


MEANINGFUL_S = 600.0
"""Seconds of video from which on the seconds of work for an hour of it mean something."""


@dataclass
class Tally:
    """The totals of all outcomes. `bytes`: stored (or wanted) now; `video_s`: seconds of video."""

    done: int = 0
    same_bytes: int = 0
    skipped: int = 0
    failed: list[Failed] = field(default_factory=list)
    bytes: int = 0
    video_s: float = 0.0
    stopped: str | None = None
    nodes: dict[str, NodeReport] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        if isinstance(outcome, Computed | Skipped | Failed) and outcome.node:
            self._count_node(outcome)
        if isinstance(outcome, Computed | Wanted):
            self.done += 1
            self.bytes += outcome.bytes or 0
            self.video_s += outcome.video_s if isinstance(outcome, Computed) else 0.0
        elif isinstance(outcome, Skipped):
            self.skipped += 1
            self.same_bytes += outcome.reason != STORED
        elif isinstance(outcome, Failed):
            self.failed.append(outcome)
        else:
            self.stopped = outcome.reason

    def _count_node(self, outcome: Computed | Skipped | Failed) -> None:
        fresh: NodeReport = {"node": outcome.node, "done": 0, "skipped": 0, "failed": 0, "bytes": 0}
        node = self.nodes.setdefault(outcome.node, fresh)
        if isinstance(outcome, Computed):
            node["done"] += 1
            node["bytes"] += outcome.bytes
        elif isinstance(outcome, Skipped):
            node["skipped"] += 1
        else:
            node["failed"] += 1

    @property
    def settled(self) -> int:
        """The number of videos that have an outcome."""
        return self.done + self.skipped + len(self.failed)

    def per_video_hour(self, seconds: float) -> float | None:
        """Seconds of work for an hour of video, None where the start of the first video weighs
        more than the videos."""
        return seconds / self.video_s * 3600 if self.video_s >= MEANINGFUL_S else None

    def to_json(self, seconds: float) -> PrecomputeReport:
        report: PrecomputeReport = {
            "schema": "sttm.precompute/1",
            "done": self.done,
            "skipped": self.skipped,
            "skipped_same_bytes": self.same_bytes,
            "failed": [{"path": str(f.path), "error": f.error} for f in self.failed],
            "seconds": seconds,
            "bytes": self.bytes,
            "video_seconds": self.video_s,
            "seconds_per_video_hour": self.per_video_hour(seconds),
            "stopped": self.stopped,
        }
        if self.nodes:
            report["nodes"] = sorted(self.nodes.values(), key=lambda node: node["node"])
        return report
