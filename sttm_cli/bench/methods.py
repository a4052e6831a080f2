"""The methods that a benchmark can compare, by the names to give: ours, its variants, the peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sttm_cli.bench.peers import PEERS, Peer
from sttm_cli.errors import UsageError
from sttm_cli.merge import merge_tokens
from sttm_cli.types import Merged

OURS = "sttm"
Method = Callable[[torch.Tensor, float, int], Merged]
"""Features [T, H, W, C], the budget as a share, and how many tokens `sttm` kept of it."""


def _merged(features: torch.Tensor, budget: float, kept: int, **options: Any) -> Merged:
    return merge_tokens(features, budget=budget, **options)


@dataclass(frozen=True)
class _Contrast:
    """Likeness of what is left of the features without their mean over the video."""

    features: torch.Tensor
    merged: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.merged, name)


def _contrast(features: torch.Tensor, budget: float, kept: int, **options: Any) -> Merged:
    centred = features - features.mean((0, 1, 2), keepdim=True)
    merged = merge_tokens(centred, budget=budget, **options)
    return _Contrast(merged.sources(features), merged)


def _of_peer(peer: Peer) -> Method:
    return lambda features, budget, kept: peer(features, kept)


METHODS: dict[str, Method] = {
    OURS: _merged,
    "sttm-root0": partial(_merged, root_level=0),
    "sttm-root2": partial(_merged, root_level=2),
    "sttm-weighted": partial(_merged, weighted=True),
    "sttm-nearest": partial(_merged, link="most_similar"),
    "sttm-contrast": _contrast,
    "sttm-contrast-weighted": partial(_contrast, weighted=True),
    **{name: _of_peer(peer) for name, peer in PEERS.items()},
}


def find_methods(names: str) -> list[str]:
    """Names as typed, separated by commas; `sttm` is always there, and first."""
    wanted = [name.strip() for name in names.split(",")]
    unknown = sorted(set(wanted) - set(METHODS))
    if unknown:
        raise UsageError(f"--methods {unknown[0]!r} is not known", f"known: {', '.join(METHODS)}")
    return list(dict.fromkeys([OURS, *wanted]))
