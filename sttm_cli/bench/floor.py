"""The minimum time of stages: their operations and bytes at the measured rates of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sttm_cli.base.device import wait_for
from sttm_cli.base.types import Json, PrefixKV

TRIES = 5
MOVED = 256 * 2**20
"""Bytes copied to measure the bandwidth; more than processor caches hold."""


@dataclass(frozen=True)
class Rates:
    """Measured rates per second: operations of a matrix product of the model's size, bytes read and
    written by a copy in memory, bytes read from the cache's disk."""

    flops: float
    memory: float
    disk: float

    def to_json(self) -> Json:
        return asdict(self)


def measure_rates(
    device: str, dtype: torch.dtype, folder: Path, *, tokens: int, width: int, inner: int
) -> Rates:
    """Measure the rates, best of `TRIES`; the product is [tokens, width] x [width, inner]."""
    left = torch.randn(tokens, width, device=device, dtype=dtype)
    right = torch.randn(width, inner, device=device, dtype=dtype)
    flops = 2 * tokens * width * inner / _best(lambda: left @ right, device)
    source = torch.ones(MOVED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    memory = 2 * MOVED / _best(lambda: target.copy_(source), device)
    return Rates(flops, memory, MOVED / _disk(folder, source))


def prefill_flops(decoder: Any, kv: PrefixKV) -> float:
    """Count the operations of a prefill: linear layers, causal attention, updates of states.

    The last layer that holds any computes keys and values only. All experts are counted; of a layer
    with a window, the tokens that it keeps.
    """
    total, last = 0.0, len(kv.lengths) - 1
    full = kv.tokens.prefix - kv.tokens.video_kept + kv.tokens.video_full
    for index, (layer, tokens) in enumerate(zip(decoder.layers, kv.lengths, strict=False)):
        if index in kv.states:
            count = full if index < kv.merge_layer else kv.tokens.prefix
            weights = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
            # A state is read twice and written once for each token.
            total += (2.0 * weights + 6.0 * kv.states[index].recurrent.numel()) * count
            continue
        if index == last:
            both = layer.self_attn.k_proj, layer.self_attn.v_proj
            total += 2.0 * sum(part.weight.numel() for part in both if part is not None) * tokens
            continue
        weights = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
        queries = layer.self_attn.q_proj.weight.shape[0]
        total += 2.0 * weights * tokens + 2.0 * queries * tokens**2
    return total


def counted_flops(run: Callable[[], object]) -> float:
    """Count the operations of the matrix products and attention in `run`."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def weight_bytes(*modules: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())


def _best(run: Callable[[], object], device: str) -> float:
    run()
    return min(_timed(run, device) for _ in range(TRIES))


def _timed(run: Callable[[], object], device: str) -> float:
    wait_for(device)
    started = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - started


def _disk(folder: Path, like: torch.Tensor) -> float:
    """Measure reading a freshly written file of `MOVED` bytes to the device of `like`."""
    path = folder / "rate"
    path.write_bytes(os.urandom(2**20) * (MOVED // 2**20))
    room = torch.empty(MOVED, dtype=torch.uint8)
    try:

        def read() -> None:
            with path.open("rb", buffering=0) as file:
                file.readinto(room.numpy().data)
            like.copy_(room)

        return _best(read, str(like.device))
    finally:
        path.unlink()
