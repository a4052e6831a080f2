"""`merging`: any loaded transformers model of a supported family merges inside a `with` block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args
from weakref import WeakSet

import torch
from transformers import GenerationMixin, PreTrainedModel

from sttm_cli.base.device import KERNELS
from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.types import Merged
from sttm_cli.merge.method import find_method
from sttm_cli.merge.quadtree.merging import SPATIAL, TEMPORAL, merge_tokens
from sttm_cli.models.family import Family
from sttm_cli.models.loading import FULL, LINEAR
from sttm_cli.models.registry import family_of_loaded
from sttm_cli.prefill import MergeConfig, plain_kernel
from sttm_cli.runtime.merging_block import MergingBlock, MergingStats
from sttm_cli.settings.fields import one_of, parse_budget, parse_method, whole_number
from sttm_cli.settings.settings import PAPER_METHOD, SETTINGS, Sizes

POSITIONS = ("auto", "reassigned", "survivors")


@contextmanager
def merging(
    model: Any,
    budget: float | int | None = None,
    *,
    spatial_threshold: float | None = None,
    temporal_threshold: float | None = None,
    method: str = PAPER_METHOD,
    merge_layer: int | None = None,
    positions: str = "auto",
    attention_sizes: Sizes = "auto",
) -> Iterator[MergingStats]:
    """Let `model`, a loaded transformers *ForConditionalGeneration, merge a prompt's video tokens.

    Inside the block, `generate` and plain calls merge the one video of a prompt to `budget` (0.5,
    as everywhere, unless thresholds are given) before the family's merge layer, and continue from
    caches made there. Logits stay at the positions of their input tokens, with NaN for tokens that
    were merged into another. On exit the model is restored. Raises ModelError for an unsupported
    model, UsageError, a ValueError, for unsupported options and inputs.
    """
    family, decoder = _supported(model)
    layer = _layer(family, decoder, merge_layer)
    how = MergeConfig(
        layer,
        _merge(budget, spatial_threshold, temporal_threshold, method),
        _positions(family, positions),
        _counts(attention_sizes, method, plain_kernel(decoder)),
    )
    with _alone(decoder):
        stats = MergingStats()
        with MergingBlock(model, decoder, family, how, stats).hooked():
            yield stats


# ---- checks of the arguments


def _supported(model: Any) -> tuple[Family, Any]:
    """Return the family of `model` and its text decoder; raises ModelError."""
    if hasattr(model, "_orig_mod") or any(
        getattr(part, "_compiled_call_impl", None)
        for part in (model.modules() if isinstance(model, torch.nn.Module) else ())
    ):
        raise ModelError("a compiled model cannot merge", "give the model without torch.compile")
    if not isinstance(model, PreTrainedModel) or not isinstance(model, GenerationMixin):
        raise ModelError(
            f"a {type(model).__name__} is not a model that transformers generates with",
            "give a loaded *ForConditionalGeneration",
        )
    family, decoder = family_of_loaded(model), model.get_decoder()
    kinds = set(getattr(decoder.config, "layer_types", None) or [FULL])
    if kinds - {FULL} and (family.recurrent is None or kinds - {FULL, LINEAR}):
        raise ModelError(
            f"{type(model).__name__} has layers of {', '.join(sorted(kinds))}: transformers' cache "
            "of these drops tokens, and merging needs full attention in every layer",
            "ask with sttm_cli.VideoQA",
        )
    return family, decoder


def _layer(family: Family, decoder: Any, given: int | None) -> int:
    layers = len(decoder.layers)
    layer = family.merge_layer if given is None else whole_number(0)("merge_layer", given)
    if not isinstance(layer, int) or layer >= layers:
        raise UsageError(
            f"merge_layer {layer} is not possible: the model has {layers} layers",
            f"give 0 to {layers - 1}",
        )
    return layer


def _positions(family: Family, given: str) -> str:
    positions = str(one_of(*POSITIONS)("positions", given))
    if positions == "reassigned" and family.rotary_axes > 1:
        raise UsageError(
            f"positions 'reassigned' cannot be combined with {family.name}: its tokens have ids in "
            "time, height and width",
            "leave it out, or give 'survivors'",
        )
    return family.positions if positions == "auto" else positions


def _merge(
    budget: float | int | None, spatial: float | None, temporal: float | None, method: str
) -> Callable[[torch.Tensor], Merged]:
    if ":" in parse_method("method", method):
        raise UsageError(
            f"method {method!r} cannot be combined with merging's own thresholds",
            "give spatial_threshold and temporal_threshold",
        )
    chosen = find_method(method, "method")
    if spatial is None and temporal is None:
        if budget is None:
            budget = SETTINGS["budget"].default
        amount = parse_budget("budget", budget)
        return lambda features: chosen.merge(features, amount)
    if budget is not None:
        raise UsageError(
            f"budget {budget} finds both thresholds and cannot be combined with any",
            "give a budget or thresholds",
        )
    if method != PAPER_METHOD:
        raise UsageError(f"method {method!r} has no thresholds", "give a budget")
    given = (SPATIAL if spatial is None else spatial, TEMPORAL if temporal is None else temporal)
    merge_tokens(torch.zeros(1, 1, 1, 1), *given)
    return lambda features: merge_tokens(features, *given)


def _counts(sizes: str, method: str, kernel: str) -> bool:
    """Return whether merged tokens count in attention by their size."""
    chosen = one_of(*get_args(Sizes))("attention_sizes", sizes)
    if chosen == "auto":
        return find_method(method, "method").sizes and kernel in KERNELS
    return bool(chosen == "on")


_ACTIVE: WeakSet[Any] = WeakSet()
_ENTERING = threading.Lock()


@contextmanager
def _alone(decoder: Any) -> Iterator[None]:
    """Raise UsageError if the decoder already merges in another block, in any thread."""
    with _ENTERING:
        if decoder in _ACTIVE:
            raise UsageError(
                "this model is inside of another sttm_cli.merging block", "exit that one first"
            )
        _ACTIVE.add(decoder)
    try:
        yield
    finally:
        _ACTIVE.discard(decoder)
