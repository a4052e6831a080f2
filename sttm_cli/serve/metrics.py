"""The counters of /metrics, in Prometheus format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sttm_cli.base.results import Answer, Choice
from sttm_cli.runtime.resources import DEVICE, DISK, HOST

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters of one server. `queue` and `held` are called for each scrape."""

    def __init__(self, *, queue: Callable[[], int], held: Callable[[str], int]) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter("sttm_requests", "Requests.", ["endpoint", "status"], registry=own)
        self.videos = Counter("sttm_videos", "Prefixes by tier.", ["tier"], registry=own)
        self.tokens = Counter("sttm_generated_tokens", "Tokens of answers.", registry=own)
        self.together = Histogram(
            "sttm_together", "Questions decoded together.", buckets=(1, 2, 4, 8, 16), registry=own
        )
        self._stages = Histogram(
            "sttm_stage_seconds", "Seconds by stage.", ["stage"], buckets=_SECONDS, registry=own
        )
        Gauge("sttm_queue", "Questions that wait or run.", registry=own).set_function(queue)
        bytes_held = Gauge("sttm_held_bytes", "Bytes of KVs held.", ["tier"], registry=own)
        for tier in (DEVICE, HOST, DISK):
            bytes_held.labels(tier).set_function(partial(held, tier))

    def prepared(self, tier: str | None, seconds: dict[str, float | None]) -> None:
        """Count a video and the seconds that its prefix took."""
        self.videos.labels(tier or "computed").inc()
        for stage, value in seconds.items():
            if value is not None:
                self._stages.labels(stage).observe(value)

    def answered(self, answer: Answer | Choice) -> None:
        """Count an answer."""
        if isinstance(answer, Answer):
            self.tokens.inc(answer.new_tokens)
        self._stages.labels("answer").observe(answer.seconds["answer"] or 0.0)

    def text(self) -> bytes:
        """Return all metrics as /metrics sends them."""
        return generate_latest(self._registry)
