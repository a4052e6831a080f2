"""The methods that `bench accuracy` compares, by name, and the layers before which they merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Merged
from sttm_cli.merge.method import find_method
from sttm_cli.settings.settings import DEFAULT_METHOD

Shorten = Callable[[torch.Tensor, float, int], Merged]
"""Features [T, H, W, C], the budget as a share, and how many tokens `sttm` kept of it."""


@dataclass(frozen=True)
class Entrant:
    """A way to shorten a video, merging before decoder layer `layer` (None: the model's own)."""

    name: str
    shorten: Shorten
    layer: int | None = None


def find_entrants(
    names: str, *, layers: int = 0, variants: Mapping[str, Shorten] | None = None
) -> list[Entrant]:
    """Names as typed, separated by commas; `sttm` is always among them, and first.

    `NAME@L` merges before decoder layer L, of `layers`, instead of the model's own. `variants` can
    be named beside the methods. Raises UsageError.
    """
    wanted = [DEFAULT_METHOD, *(name.strip() for name in names.split(","))]
    return [_find(name, layers, variants or {}) for name in dict.fromkeys(wanted)]


def _find(name: str, layers: int, variants: Mapping[str, Shorten]) -> Entrant:
    method, at, layer = name.partition("@")
    if at and not layer.isdigit():
        raise UsageError(f"--methods {name!r} is not known", "a layer is a number, as in sttm@2")
    if layer and layers and int(layer) >= layers:
        raise UsageError(f"--methods {name!r}: the model has {layers} layers")
    shorten = variants.get(method) or _by_method(method)
    entrant = Entrant(name, shorten)
    return replace(entrant, layer=int(layer)) if at else entrant


def _by_method(name: str) -> Shorten:
    merge = find_method(name, "--methods").merge
    if name == DEFAULT_METHOD:
        return lambda features, budget, kept: merge(features, budget)
    return lambda features, budget, kept: merge(features, kept)
