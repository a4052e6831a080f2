"""KVs of made-up numbers to store, and the folder as another process opens it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sttm_cli.base.types import LayerState, PrefixKV, TokenCounts
from sttm_cli.store import LocalStore, Store

IDENTITY = {"format": 1, "video": {"digest": "d1"}, "merge": {"budget": 0.3}, "model": {"w": "m1"}}


def kv(
    seed: int = 0,
    lengths: tuple[int, ...] = (12, 12, 7),
    dtype=torch.float32,
    merge_layer: int = 2,
) -> PrefixKV:
    torch.manual_seed(seed)
    return PrefixKV(
        keys=[torch.randn(n + 5, 2, 4).to(dtype) for n in lengths],
        values=[torch.randn(n + 5, 2, 4).to(dtype) for n in lengths],
        lengths=lengths,
        merge_layer=merge_layer,
        next_positions=(12, 7),
        tokens=TokenCounts(10, 5, 7, 8, 0.8, 0.6),
        grid=(2, 1, 5),
        facts={"decode": {"times_s": [0.0], "warnings": []}, "seconds": {"decode": 0.5}},
        sizes=torch.arange(1, lengths[-1] + 1, dtype=torch.int32),
    )


def with_states(seed: int = 0, dtype=torch.float32) -> PrefixKV:
    """As `kv`, with recurrent layers before each and behind the second of its three."""
    made = kv(seed, (0, 12, 0, 12, 0, 7), dtype, merge_layer=4)
    for layer, length in enumerate(made.lengths):
        if not length:
            none = torch.empty(0, 2, 4, dtype=dtype)
            made.keys[layer] = made.values[layer] = none
            conv, recurrent = torch.randn(6, 4).to(dtype), torch.randn(2, 3, 5)
            made.states[layer] = LayerState(conv, recurrent)
    return made


def same(a: PrefixKV, b: PrefixKV) -> bool:
    pairs = zip(a.keys + a.values, b.keys + b.values, a.lengths * 2, strict=True)
    sizes = torch.equal(a.sizes, b.sizes)
    states = a.states.keys() == b.states.keys() and all(
        one.dtype == other.dtype and torch.equal(one, other)
        for layer, state in a.states.items()
        for one, other in zip(state, b.states[layer], strict=True)
    )
    rows = all(torch.equal(x[:n], y[:n]) for x, y, n in pairs)
    return sizes and states and a.lengths == b.lengths and rows


def restored(store: Store, room: int = 0, device: str = "cpu") -> PrefixKV | None:
    """What is stored under IDENTITY, read as a hit reads it."""
    return store.load(store.find(IDENTITY), device=device, room=room)


def another(store: LocalStore, warn: Callable[[str], None] = print) -> LocalStore:
    """The same folder as another process would open it."""
    return LocalStore(store.path, warn=warn)
