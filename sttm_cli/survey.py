"""What each budget would cost and save on one video: counts and measured seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from sttm_cli.answer import generate
from sttm_cli.clock import Clock
from sttm_cli.decode import read_frames
from sttm_cli.merge import MergedTokens
from sttm_cli.picture import draw
from sttm_cli.pipeline import VideoQA
from sttm_cli.prefill import ROOM, KVContinuation
from sttm_cli.request import Request
from sttm_cli.store import Store
from sttm_cli.types import DecodeReport, PrefixKV, TokenCounts, VisualTokens

if TYPE_CHECKING:
    from PIL import Image

SHOWN = 8
"""Frames in a picture, spread evenly over the video."""
QUESTION = "what happens in the video?"
"""Asked to measure the time to a first token; its answer is thrown away."""

Seconds = dict[str, float | None]


@dataclass(frozen=True)
class BudgetCost:
    """One budget on one video. `seconds`: stages as in the contract, medians of the repeats;
    `speedup`: to the first token, of budget 1 over this one, frames and tokens being there."""

    budget: float | int
    tokens: TokenCounts
    kv_bytes: int
    seconds: Seconds
    speedup: float
    cached: bool
    merged: MergedTokens


@dataclass(frozen=True)
class Survey:
    """A video under several budgets; the first row's decode and encode hold for all."""

    request: Request
    report: DecodeReport
    grid: tuple[int, int, int]
    rows: tuple[BudgetCost, ...]


def survey(
    qa: VideoQA, video: str | Path, budgets: Sequence[float | int], *, repeat: int = 3
) -> Survey:
    """Decode and encode `video` once, then prefill, store, restore and ask at every budget.

    Nothing is written to the user's cache. Raises as `VideoQA.prepare`.
    """
    request, clock = qa.request(video), Clock()
    tokens, report = qa.visual_tokens(request, clock)
    # The first run pays for lazy initialisation: it warms up and is not counted.
    _measure(qa, tokens, 1.0)
    before = {name: clock.spent(name) for name in ("decode", "encode")}
    full = _medians([_measure(qa, tokens, 1.0) for _ in range(repeat)])
    rows = []
    for budget in budgets:
        runs = [_measure(qa, tokens, budget) for _ in range(repeat)] if budget != 1.0 else [full]
        cost = _medians(runs)
        cached = qa.store.find(_with_budget(qa, request, budget).identity).entry is not None
        rows.append(
            replace(
                cost,
                budget=budget,
                cached=cached,
                seconds={**before, **cost.seconds},
                speedup=_to_first_token(full.seconds) / _to_first_token(cost.seconds),
            )
        )
    time, height, width, _ = tokens.features.shape
    return Survey(request, report, (time, height, width), tuple(rows))


def picture(qa: VideoQA, found: Survey, row: BudgetCost) -> Image.Image:
    """Draw what `row`'s budget merged, over a few frames of the video, which are read again."""
    frames = found.grid[0]
    chosen = sorted({i * (frames - 1) // (SHOWN - 1) for i in range(SHOWN)})
    # Families with temporal patches have fewer grid frames than video frames.
    times = [found.report.times_s[t * len(found.report.times_s) // frames] for t in chosen]
    plan = replace(found.request.plan, times_s=tuple(times))
    chunks = list(read_frames(found.request.path, plan, report=DecodeReport(), fallback=True))
    place = torch.full((frames,), -1, dtype=torch.int32)
    place[chosen] = torch.arange(len(chosen), dtype=torch.int32)
    boxes = row.merged.boxes.cpu().clone()
    boxes[:, 0] = place[boxes[:, 0].long()]
    return draw(
        np.concatenate([chunk.frames for chunk in chunks]),
        [time for chunk in chunks for time in chunk.times_s],
        row.merged.sources.index.cpu()[chosen].numpy(),
        boxes.numpy(),
    )


def _measure(qa: VideoQA, tokens: VisualTokens, budget: float | int) -> BudgetCost:
    clock, merges = Clock(), list[MergedTokens]()
    kv = qa.prefill(tokens, clock, budget=budget, on_merged=merges.append)
    _restore(qa, kv, clock)
    made = generate(
        KVContinuation(qa.model(), kv), qa.model().question(QUESTION), qa.model(), max_new_tokens=1
    )
    names = ("merge", "prefill", "restore")
    seconds: Seconds = {name: clock.seconds()[name] for name in names}
    seconds["first_token"] = made.first_token_s
    return BudgetCost(budget, kv.tokens, kv.nbytes, seconds, 1.0, False, merges[0])


def _restore(qa: VideoQA, kv: PrefixKV, clock: Clock) -> None:
    """Write the KV to a cache of its own and read it back, timed."""
    with (
        tempfile.TemporaryDirectory(prefix="sttm-") as folder,
        Store(Path(folder) / "cache", warn=qa.warn) as store,
    ):
        entry = store.save({"survey": True}, kv, label={})
        if entry is not None:
            with clock.stage("restore"):
                store.load(entry, device=qa.model().layer_devices, room=ROOM)


def _medians(runs: Sequence[BudgetCost]) -> BudgetCost:
    seconds: Seconds = {}
    for name in runs[0].seconds:
        values = [v for run in runs if (v := run.seconds[name]) is not None]
        seconds[name] = median(values) if values else None
    return replace(runs[0], seconds=seconds)


def _to_first_token(seconds: Seconds) -> float:
    return sum(seconds[name] or 0.0 for name in ("merge", "prefill", "first_token"))


def _with_budget(qa: VideoQA, request: Request, budget: float | int) -> Request:
    identity = {**request.identity, "merge": {**request.identity["merge"], "budget": budget}}
    return replace(request, identity=identity)
