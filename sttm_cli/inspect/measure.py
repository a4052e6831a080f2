"""Costs of budgets on one video: token counts, bytes and measured seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from sttm_cli.base.reports import BudgetReport, InspectReport, StoredBudget, SurveyedModel
from sttm_cli.base.results import Clock
from sttm_cli.base.types import DecodeReport, FrameChunk, TokenCounts, VisualTokens
from sttm_cli.inspect import Kept, View, thumbnail
from sttm_cli.inspect.timing import restore_seconds, token_seconds
from sttm_cli.merge import MergedTokens
from sttm_cli.prefill import KVContinuation
from sttm_cli.runtime.request import Request
from sttm_cli.runtime.session import VideoQA
from sttm_cli.store import Entry, Store, open_store, pack

Seconds = dict[str, float | None]


@dataclass(frozen=True)
class BudgetCost:
    """The costs of one budget on one video.

    `seconds`: medians of the repeats by stage, with `first_token` counted from the question;
    `speedup`: time from visual tokens to first token at budget 1, divided by that at this budget;
    `stored`: the entry of the same KV in the user's cache; `kv_bytes`: as stored; `saved_bytes`:
    the difference to memory.
    """

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
        """Seconds from the video file to the first token, a sum of medians."""
        return _sum(self.seconds, "decode", "encode", "merge", "prefill", "first_token")

    @property
    def restored_s(self) -> float | None:
        """Seconds from the stored KV to the first token, a sum of medians."""
        return _sum(self.seconds, "restore", "first_token")

    def to_json(self) -> BudgetReport:
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
    """A video under several budgets.

    `view`: the frames as thumbnails; `entries`: all entries of this video in the user's cache, most
    recently used first. Decode and encode are measured once for all budgets and repeated in each
    of the `rows`.
    """

    request: Request
    report: DecodeReport
    grid: tuple[int, int, int]
    repeat: int
    model: SurveyedModel
    view: View
    entries: tuple[Entry, ...]
    rows: tuple[BudgetCost, ...]

    def to_json(self) -> InspectReport:
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
    """Measure all stages of `video`, `repeat` times at every budget.

    Writes nothing to the user's cache. Raises as `VideoQA.prepare`.
    """
    request = qa.request(video)
    qa.check_rate(request)
    tokens, report, view, before = _encoded(qa, request, repeat)
    costs = _costs(qa, tokens, budgets, repeat)
    full, rows = costs[1.0], list[BudgetCost]()
    for budget in budgets:
        cost = costs[budget]
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
        request=request,
        report=report,
        grid=tokens.grid,
        repeat=repeat,
        model=_model_json(qa),
        view=view,
        entries=tuple(entries),
        rows=tuple(rows),
    )


def _costs(
    qa: VideoQA, tokens: VisualTokens, budgets: Sequence[float | int], repeat: int
) -> dict[float | int, BudgetCost]:
    """Measure each budget, and always budget 1."""
    with (
        tempfile.TemporaryDirectory(prefix="sttm-") as folder,
        open_store(Path(folder) / "cache", warn=qa.warn) as store,
    ):
        # The first run includes lazy initialisation and is not counted.
        _measure(qa, store, tokens, 1.0)
        return {
            budget: _repeated(qa, store, tokens, budget, repeat)
            for budget in dict.fromkeys((1.0, *budgets))
        }


def _encoded(
    qa: VideoQA, request: Request, repeat: int
) -> tuple[VisualTokens, DecodeReport, View, Seconds]:
    """Encode the video; return also a thumbnail per grid step and the median seconds."""
    small: list[np.ndarray] = []
    planned = len(request.plan.times_s)

    def shrink(chunk: FrameChunk) -> None:
        small.extend(thumbnail(frame, planned) for frame in chunk.frames)

    clocks = [Clock() for _ in range(repeat)]
    tokens, report = qa.compute.visual_tokens(request, clocks[0], on_chunk=shrink)
    for clock in clocks[1:]:
        qa.compute.visual_tokens(request, clock)
    # Families with temporal patches have several frames per grid step.
    per_step = -(-len(small) // tokens.grid[0])
    view = View(np.stack(small[::per_step]), report.times_s[::per_step])
    seconds: Seconds = {n: median(c.spent(n) for c in clocks) for n in ("decode", "encode")}
    return tokens, report, view, seconds


def _repeated(
    qa: VideoQA, store: Store, tokens: VisualTokens, budget: float | int, repeat: int
) -> BudgetCost:
    runs = [_measure(qa, store, tokens, budget) for _ in range(repeat)]
    seconds: Seconds = {}
    for name in runs[0].seconds:
        values = [v for run in runs if (v := run.seconds[name]) is not None]
        seconds[name] = median(values) if values else None
    return replace(runs[0], seconds=seconds)


def _measure(qa: VideoQA, store: Store, tokens: VisualTokens, budget: float | int) -> BudgetCost:
    clock, model, merges = Clock(), qa.model(), list[MergedTokens]()

    def merge(features: torch.Tensor) -> MergedTokens:
        merges.append(qa.model_plan.method.merge(features, budget))
        return merges[-1]

    kv = qa.compute.prefill(tokens, clock, budget=budget, merge=merge)
    packed = pack(kv, qa.settings.kv_dtype)
    first_token, _ = token_seconds(model, KVContinuation(model, kv))
    (merged,) = merges
    return BudgetCost(
        tokens=kv.tokens,
        kv_bytes=packed.nbytes,
        saved_bytes=packed.saved_bytes,
        seconds={
            "merge": clock.spent("merge"),
            "prefill": clock.spent("prefill"),
            "restore": restore_seconds(store, packed, model),
            "first_token": first_token,
        },
        kept=Kept(budget, merged.sources.index.cpu().numpy(), merged.boxes.cpu().numpy()),
    )


def _sum(seconds: Seconds, *names: str) -> float | None:
    """Add up the seconds of stages; None if one of them did not run."""
    values = [value for name in names if (value := seconds[name]) is not None]
    return sum(values) if len(values) == len(names) else None


def _to_first_token(cost: BudgetCost) -> float:
    return sum(cost.seconds[name] or 0.0 for name in ("merge", "prefill", "first_token"))


def _with_budget(request: Request, budget: float | int) -> Request:
    identity = {**request.identity, "merge": {**request.identity["merge"], "budget": budget}}
    return replace(request, identity=identity)


def _model_json(qa: VideoQA) -> SurveyedModel:
    return {
        "name": qa.settings.model,
        "revision": qa.settings.revision,
        "family": qa.model_plan.family.name,
        "device": qa.model_plan.device,
        "dtype": qa.model_plan.dtype,
        "kv_dtype": qa.settings.kv_dtype,
        "method": qa.settings.method,
        "merge_layer": qa.model_plan.merge_layer,
        "positions": qa.model_plan.positions,
    }


def _entry_json(entry: Entry) -> StoredBudget:
    return {
        "key": entry.key,
        "model": entry.label.get("model"),
        "budget": entry.label.get("budget"),
        "video_kept": entry.tokens.video_kept,
        "bytes": entry.bytes,
    }
