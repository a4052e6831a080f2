"""What each budget would cost and save on one video: counts and measured seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from sttm_cli.answer import generate
from sttm_cli.base.clock import Clock
from sttm_cli.base.types import DecodeReport, FrameChunk, Json, TokenCounts, VisualTokens
from sttm_cli.inspect import Kept, View, thumbnail
from sttm_cli.merge import MergedTokens
from sttm_cli.prefill import ROOM, KVContinuation
from sttm_cli.runtime.request import Request
from sttm_cli.runtime.session import VideoQA
from sttm_cli.store import Entry, PackedKV, open_store, pack

QUESTION = "what happens in the video?"
"""Asked to measure the time to a first token; its answer is thrown away."""

Seconds = dict[str, float | None]


@dataclass(frozen=True)
class BudgetCost:
    """One budget on one video. `seconds`: stages as in the contract, medians of the repeats, with
    `first_token` counted from the question; `speedup`: to the first token, of budget 1 over this
    one, frames and tokens being there; `stored`: this very KV, in the user's cache; `kv_bytes`
    as kept on disk, `saved_bytes` less than in memory."""

    tokens: TokenCounts
    kv_bytes: int
    saved_bytes: int
    seconds: Seconds
    kept: Kept
    speedup: float = 1.0
    stored: Entry | None = None

    @property
    def budget(self) -> float | int:
        return self.kept.budget

    @property
    def computed_s(self) -> float | None:
        """From the video file to the first token: a sum of medians."""
        return _sum(self.seconds, "decode", "encode", "merge", "prefill", "first_token")

    @property
    def restored_s(self) -> float | None:
        """From the stored KV to the first token: a sum of medians."""
        return _sum(self.seconds, "restore", "first_token")

    def to_json(self) -> Json:
        return {
            "budget": self.budget,
            "video_full": self.tokens.video_full,
            "after_spatial": self.tokens.after_spatial,
            "video_kept": self.tokens.video_kept,
            "spatial_threshold": self.tokens.spatial_threshold,
            "temporal_threshold": self.tokens.temporal_threshold,
            "kv_bytes": self.kv_bytes,
            "saved_bytes": self.saved_bytes,
            "seconds": self.seconds,
            "sums_of_medians": {"computed": self.computed_s, "restored": self.restored_s},
            "speedup": self.speedup,
            "cached": self.stored is not None,
            "key": self.stored.key if self.stored else None,
        }


@dataclass(frozen=True)
class Survey:
    """A video under several budgets. `model`: what ran, as JSON; `view`: its frames, small;
    `entries`: all that the user's cache holds of this video, the last used first; decode and encode
    are measured apart from the budgets and stand in each of the `rows`."""

    request: Request
    report: DecodeReport
    grid: tuple[int, int, int]
    repeat: int
    model: Json
    view: View
    entries: tuple[Entry, ...]
    rows: tuple[BudgetCost, ...]

    def to_json(self) -> Json:
        request, info, report = self.request, self.request.info, self.report
        return {
            "schema": "sttm.inspect/1",
            "video": {
                "path": request.source.name,
                "digest": request.digest,
                "duration_s": info.duration_s,
                "container": info.container,
                "codec": info.codec,
                "width": info.width,
                "height": info.height,
                "fps": info.fps,
                "rotation": info.rotation,
                "reader": report.reader,
            },
            "model": self.model,
            "frames": report.times_s,
            "sampled": {"asked_s": list(request.plan.times_s), **report.to_json()},
            "grid": list(self.grid),
            "repeat": self.repeat,
            "budgets": [row.to_json() for row in self.rows],
            "cache": [_entry_json(entry) for entry in self.entries],
        }


def survey(
    qa: VideoQA, video: str | Path, budgets: Sequence[float | int], *, repeat: int = 3
) -> Survey:
    """Decode, encode, prefill, store, restore and ask `repeat` times, at every budget.

    Nothing is written to the user's cache. Raises as `VideoQA.prepare`.
    """
    request = qa.request(video)
    qa.say_fewer(request)
    tokens, report, view, before = _encoded(qa, request, repeat)
    # The first run pays for lazy initialisation: it warms up and is not counted.
    _measure(qa, tokens, 1.0)
    full = _repeated(qa, tokens, 1.0, repeat)
    rows = []
    for budget in budgets:
        cost = full if budget == 1.0 else _repeated(qa, tokens, budget, repeat)
        rows.append(
            replace(
                cost,
                stored=qa.store.stored(_with_budget(request, budget).identity),
                seconds={**before, **cost.seconds},
                speedup=_to_first_token(full) / _to_first_token(cost),
            )
        )
    entries = [entry for entry in qa.store.entries() if entry.video == request.digest]
    entries.sort(key=lambda entry: entry.last_used, reverse=True)
    return Survey(
        request, report, tokens.grid, repeat, _model_json(qa), view, tuple(entries), tuple(rows)
    )


def _encoded(
    qa: VideoQA, request: Request, repeat: int
) -> tuple[VisualTokens, DecodeReport, View, Seconds]:
    """The visual tokens, a small picture of each step of their grid, and the medians."""
    small: list[np.ndarray] = []
    planned = len(request.plan.times_s)

    def shrink(chunk: FrameChunk) -> None:
        small.extend(thumbnail(frame, planned) for frame in chunk.frames)

    clocks = [Clock() for _ in range(repeat)]
    tokens, report = qa.visual_tokens(request, clocks[0], on_chunk=shrink)
    for clock in clocks[1:]:
        qa.visual_tokens(request, clock)
    # Families with temporal patches make one step of the grid of several frames.
    per_step = -(-len(small) // tokens.grid[0])
    view = View(np.stack(small[::per_step]), report.times_s[::per_step])
    seconds: Seconds = {n: median(c.spent(n) for c in clocks) for n in ("decode", "encode")}
    return tokens, report, view, seconds


def _repeated(qa: VideoQA, tokens: VisualTokens, budget: float | int, repeat: int) -> BudgetCost:
    runs = [_measure(qa, tokens, budget) for _ in range(repeat)]
    seconds: Seconds = {}
    for name in runs[0].seconds:
        values = [v for run in runs if (v := run.seconds[name]) is not None]
        seconds[name] = median(values) if values else None
    return replace(runs[0], seconds=seconds)


def _measure(qa: VideoQA, tokens: VisualTokens, budget: float | int) -> BudgetCost:
    clock, merges = Clock(), list[MergedTokens]()
    kv = qa.prefill(tokens, clock, budget=budget, on_merged=merges.append)
    packed = pack(kv, qa.settings.kv_dtype)
    _restore(qa, packed, clock)
    made = generate(
        KVContinuation(qa.model(), kv), qa.model().question(QUESTION), qa.model(), max_new_tokens=1
    )
    names = ("merge", "prefill", "restore")
    seconds: Seconds = {name: clock.seconds()[name] for name in names}
    seconds["first_token"] = made.first_token_s
    merged = merges[0]
    kept = Kept(budget, merged.sources.index.cpu().numpy(), merged.boxes.cpu().numpy())
    return BudgetCost(kv.tokens, packed.nbytes, packed.saved_bytes, seconds, kept)


def _restore(qa: VideoQA, packed: PackedKV, clock: Clock) -> None:
    """Write the KV to a cache of its own and read it back, timed."""
    with (
        tempfile.TemporaryDirectory(prefix="sttm-") as folder,
        open_store(Path(folder) / "cache", warn=qa.warn) as store,
    ):
        identity, devices = {"survey": True}, qa.model().layer_devices
        if store.save(identity, packed, label={}) is not None:
            with clock.stage("restore"):
                store.load(store.find(identity), device=devices, room=ROOM)


def _sum(seconds: Seconds, *names: str) -> float | None:
    """None where one of the stages did not run."""
    values = [value for name in names if (value := seconds[name]) is not None]
    return sum(values) if len(values) == len(names) else None


def _to_first_token(cost: BudgetCost) -> float:
    return sum(cost.seconds[name] or 0.0 for name in ("merge", "prefill", "first_token"))


def _with_budget(request: Request, budget: float | int) -> Request:
    identity = {**request.identity, "merge": {**request.identity["merge"], "budget": budget}}
    return replace(request, identity=identity)


def _model_json(qa: VideoQA) -> Json:
    return {
        "name": qa.settings.model,
        "revision": qa.settings.revision,
        "family": qa.choice.family.name,
        "device": qa.choice.device,
        "dtype": qa.choice.dtype,
        "kv_dtype": qa.settings.kv_dtype,
        "merge_layer": qa.choice.merge_layer,
        "positions": qa.choice.positions,
    }


def _entry_json(entry: Entry) -> Json:
    return {
        "key": entry.key,
        "model": entry.label.get("model"),
        "budget": entry.label.get("budget"),
        "video_kept": entry.tokens.video_kept,
        "bytes": entry.bytes,
    }
