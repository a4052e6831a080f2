"""Seconds and memory of each stage, by frames and budget, compared with their floors.

All budgets are measured on the same visual tokens, in turns, so that other work on the machine
slows all of them alike. Medians are reported.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sttm_cli.base.device import wait_for
from sttm_cli.base.errors import OutOfMemoryError, UsageError
from sttm_cli.base.results import Clock
from sttm_cli.base.types import DecodeReport, Json, PrefixKV, VisualTokens
from sttm_cli.bench.floor import (
    Rates,
    counted_flops,
    measure_rates,
    prefill_flops,
    weight_bytes,
)
from sttm_cli.bench.peak_memory import watch_memory
from sttm_cli.bench.transformers_alone import Alone, check_peers, transformers_alone
from sttm_cli.decode import read_frames
from sttm_cli.inspect.timing import restore_seconds, token_seconds
from sttm_cli.models.loading import free_bytes
from sttm_cli.prefill import KVContinuation, kv_shapes
from sttm_cli.runtime.request import Request
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.settings import cache_folder
from sttm_cli.store import open_store, pack


@dataclass
class SpeedRow:
    """One budget at one number of frames.

    `seconds`: medians by stage; `question`: from the prefix in memory to the first token;
    `restore`: reading the KV from disk. `floor`: the minimum seconds of encode, merge, prefill,
    restore and token at the measured rates.
    """

    frames: int
    budget: float | int
    grid: tuple[int, int, int]
    kept: int
    kv_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    tokens_per_s: float = 0.0
    peak_bytes: int | None = None
    floor: dict[str, float] = field(default_factory=dict)

    @property
    def llm(self) -> float:
        """Seconds from the visual tokens to the first token: the TTFT of most papers."""
        return self._sum("merge", "prefill", "question")

    @property
    def cold(self) -> float:
        """Seconds from the video file to the first token."""
        return self._sum("decode", "encode") + self.llm

    @property
    def cached(self) -> float:
        """Seconds from the stored KV to the first token, with the model loaded."""
        return self._sum("restore", "question")

    @property
    def shares(self) -> dict[str, float]:
        """Each stage's floor as a share of its seconds; 1 is the maximum."""
        taken = {**self.seconds, "token": 1 / self.tokens_per_s}
        return {name: least / taken[name] for name, least in self.floor.items() if taken[name]}

    def to_json(self) -> Json:
        return {
            "frames": self.frames,
            "budget": self.budget,
            "grid": list(self.grid),
            "video_full": self.grid[0] * self.grid[1] * self.grid[2],
            "video_kept": self.kept,
            "kv_bytes": self.kv_bytes,
            "peak_bytes": self.peak_bytes,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "floor_share": self.shares,
            "to_first_token": {"llm": self.llm, "cold": self.cold, "cached": self.cached},
        }

    def _sum(self, *names: str) -> float:
        return sum(self.seconds[name] for name in names)


@dataclass
class Speed:
    """The rows of one number of frames, budget 1 first, and the timings of transformers alone."""

    rates: Rates
    rows: list[SpeedRow]
    alone: Alone | None


def measure_speed(
    qa: VideoQA,
    video: Path,
    *,
    frames: Sequence[int],
    budgets: Sequence[float | int],
    repeat: int = 3,
    new_tokens: int = 16,
    peers: bool = True,
) -> Iterator[Speed]:
    """Measure `video` with each number of `frames`; yield the results.

    Budget 1 is always measured. Raises UsageError if the video has fewer frames, and
    OutOfMemoryError, before the measurement, if any number of frames does not fit.
    """
    budgets = [1.0, *(b for b in budgets if b != 1.0)]
    if peers:
        check_peers(qa.model())
    requests = {count: _request(qa, video, count) for count in frames}
    each, encode_flops = _one_chunk(qa, requests[min(frames)])
    for count in frames:
        check_room(qa, tokens=count * each, frames=count)
    folder = cache_folder(qa.settings.cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as place:
        rates = _rates(qa, Path(place))
        for count in frames:
            bench = _Bench(qa, Path(place), rates, new_tokens)
            yield bench.measure(requests[count], budgets, repeat, encode_flops, peers)


def check_room(qa: VideoQA, *, tokens: float, frames: int) -> None:
    """Raise OutOfMemoryError if a whole video's KV and activations do not fit."""
    config, kind = qa.model().decoder.config, getattr(torch, qa.model_plan.dtype)
    kv = 2 * sum(heads * dim for heads, dim in kv_shapes(config))
    # Peak of a layer per token: input, residual, and three rows of the MLP.
    row = 4 * config.hidden_size + 3 * config.intermediate_size
    needed, free = int(tokens) * (kv + row) * kind.itemsize, free_bytes(qa.model_plan.device)
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"{frames} frames are {int(tokens):,} tokens, which take {needed / 2**30:.1f} GiB "
            f"beside the weights; {free / 2**30:.1f} GiB are free on {qa.model_plan.device}",
            "give fewer --frames, --dtype bfloat16, --layers N or --scale S",
        )


class _Bench:
    """The measurement of one number of frames."""

    def __init__(self, qa: VideoQA, place: Path, rates: Rates, new_tokens: int) -> None:
        self.qa, self.place, self.rates, self.new_tokens = qa, place, rates, new_tokens
        self.device = qa.model_plan.device

    def measure(
        self,
        request: Request,
        budgets: Sequence[float | int],
        repeat: int,
        encode_flops: float,
        peers: bool,
    ) -> Speed:
        tokens, before = self._visual_tokens(request)
        frames = len(request.plan.times_s)
        # The first run includes lazy initialisation and is not counted.
        self._once(tokens, budgets[-1])
        runs = [[self._once(tokens, budget) for budget in budgets] for _ in range(repeat)]
        rows = []
        for budget, ones in zip(budgets, zip(*runs, strict=True), strict=True):
            row = _median(ones)
            row.frames, row.budget = frames, budget
            row.seconds = {**before, **row.seconds}
            row.floor["encode"] = frames * encode_flops / self.rates.flops
            rows.append(row)
        alone = transformers_alone(self.qa.model(), tokens, repeat=repeat) if peers else None
        return Speed(self.rates, rows, alone)

    def _visual_tokens(self, request: Request) -> tuple[VisualTokens, dict[str, float]]:
        """Decode and encode; on an accelerator, where both overlap, encode is the remainder."""
        clock, started = Clock(), time.perf_counter()
        tokens, _ = self.qa.compute.visual_tokens(request, clock)
        wait_for(self.device)
        whole = time.perf_counter() - started
        decode = clock.spent("decode")
        return tokens, {"decode": decode, "encode": whole - decode}

    def _once(self, tokens: VisualTokens, budget: float | int) -> SpeedRow:
        clock, model = Clock(), self.qa.model()
        with watch_memory(self.device) as peak:
            kv = self.qa.compute.prefill(tokens, clock, budget=budget)
            wait_for(self.device)
        with open_store(self.place / "cache", max_bytes=1 << 62, warn=self.qa.warn) as store:
            restore = restore_seconds(store, pack(kv), model)
        if restore is None:
            raise UsageError("the KV could not be stored", "choose another --cache-dir")
        prefix = KVContinuation(model, kv)
        question, token = token_seconds(model, prefix, new_tokens=self.new_tokens)
        spent = {name: clock.spent(name) for name in ("merge", "prefill")}
        return SpeedRow(
            frames=0,
            budget=budget,
            grid=tokens.grid,
            kept=kv.tokens.video_kept,
            kv_bytes=kv.nbytes,
            seconds={**spent, "restore": restore, "question": question},
            tokens_per_s=1 / token,
            peak_bytes=peak.most,
            floor=self._floor(kv, tokens),
        )

    def _floor(self, kv: PrefixKV, tokens: VisualTokens) -> dict[str, float]:
        decoder, rates = self.qa.model().decoder, self.rates
        head = weight_bytes(getattr(self.qa.model(), "_lm_head", torch.nn.Identity()))
        per_token = weight_bytes(*decoder.layers) + head + kv.nbytes
        return {
            # Merging reads the tokens twice: to compare and to average them.
            "merge": 2 * tokens.features.nbytes / rates.memory,
            "prefill": prefill_flops(decoder, kv) / rates.flops,
            "restore": kv.nbytes / rates.disk,
            "token": per_token / rates.memory,
        }


def _request(qa: VideoQA, video: Path, frames: int) -> Request:
    with qa.with_settings(replace(qa.settings, frames=frames)) as chosen:
        request = chosen.request(video)
    if len(request.plan.times_s) != frames:
        raise UsageError(
            f"{video.name} gives {len(request.plan.times_s)} frames, not --frames {frames}",
            "give a longer video, a higher --fps or fewer --frames",
        )
    return request


def _one_chunk(qa: VideoQA, request: Request) -> tuple[float, float]:
    """Return tokens and encoding operations per frame; this also warms up the encoder."""
    plan = replace(request.plan, times_s=request.plan.times_s[: 2 * qa.model_plan.family.multiple])
    chunks = list(read_frames(request.path, plan, report=DecodeReport()))
    frames = sum(len(chunk.times_s) for chunk in chunks)
    encoded: list[VisualTokens] = []
    whole = len(request.plan.times_s)
    flops = counted_flops(lambda: encoded.extend(qa.model().encode(c, whole) for c in chunks))
    cells = sum(tokens.features.shape[:3].numel() for tokens in encoded)
    return cells / frames, flops / frames


def _rates(qa: VideoQA, place: Path) -> Rates:
    config: Any = qa.model().decoder.config
    return measure_rates(
        qa.model_plan.device,
        getattr(torch, qa.model_plan.dtype),
        place,
        tokens=2048,
        width=config.hidden_size,
        inner=config.intermediate_size,
    )


def _median(runs: Sequence[SpeedRow]) -> SpeedRow:
    return replace(
        runs[0],
        seconds={name: median(run.seconds[name] for run in runs) for name in runs[0].seconds},
        tokens_per_s=median(run.tokens_per_s for run in runs),
        peak_bytes=max((run.peak_bytes for run in runs if run.peak_bytes), default=None),
    )
