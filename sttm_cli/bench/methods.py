"""The methods that a benchmark can compare, by the names to give: ours, its variants, the peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Merged
from sttm_cli.bench.peers import PEERS, Peer
from sttm_cli.bench.peers.halves import spatial_only
from sttm_cli.bench.peers.kept import cosines, grouped, shared_out
from sttm_cli.merge import merge_tokens

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


def _by_change(features: torch.Tensor, budget: float, kept: int) -> Merged:
    """The budget shared out by how much each frame changes; in its share, each frame's quadtree."""
    frames, cells = features.shape[0], features.shape[1] * features.shape[2]
    change = 1 - cosines(features[1:], features[:-1]).mean((1, 2))
    # The first frame is new as a whole; others count as what of them is.
    weights = torch.cat([change.new_ones(1), change.clamp(min=0) / change.max().clamp(min=1e-6)])
    counts = shared_out(weights + 1e-3, kept, cells).tolist()
    parts = [
        spatial_only(features[t : t + 1], count) for t, count in enumerate(counts) if count > 0
    ]
    starts = [cells * t for t, count in enumerate(counts) if count > 0]
    names = torch.full((frames, cells), -1, device=features.device)
    for start, part in zip(starts, parts, strict=True):
        names[start // cells] = start + part.roots[part.sources.index.flatten()]
    return grouped(features, names.flatten())


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
    "sttm-change": _by_change,
    **{name: _of_peer(peer) for name, peer in PEERS.items()},
}


def find_methods(names: str, *, layers: int = 0) -> list[str]:
    """Names as typed, separated by commas; `sttm` is always there, and first.

    `NAME@L` merges before decoder layer L, of `layers`, instead of the model's own.
    """
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        method, _, layer = name.partition("@")
        if method not in METHODS or ("@" in name and not layer.isdigit()):
            raise UsageError(f"--methods {name!r} is not known", f"known: {', '.join(METHODS)}")
        if layer and layers and int(layer) >= layers:
            raise UsageError(f"--methods {name!r}: the model has {layers} layers")
    return list(dict.fromkeys([OURS, *wanted]))


def method_at(name: str, layer: int) -> tuple[Method, int]:
    """The method of a name and the layer before which it merges, `layer` unless it says."""
    method, _, own = name.partition("@")
    return METHODS[method], int(own) if own else layer
