"""Checks that a restored KV has the shape that this model's own would have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from sttm_cli.base.types import PrefixKV

if TYPE_CHECKING:
    from sttm_cli.runtime.model_plan import ModelPlan

FARTHEST = 1 << 24
"""Beyond this, neighbouring positions have the same angle in float32."""


def fits(kv: PrefixKV, config: Any, plan: ModelPlan) -> bool:
    """Whether a KV has the model's shape and its record the facts that are read later: a file
    may have all its checksums and still not be made by this program."""
    return (
        _is_shaped(kv, config, plan.dtype)
        and _is_merged(kv, plan.merge_layer, config.num_hidden_layers)
        and _is_placed(kv, plan.family.rotary_axes)
        and _has_its_record(kv, config.vocab_size)
    )


def _is_shaped(kv: PrefixKV, config: Any, dtype: str) -> bool:
    heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tensors = kv.keys + kv.values
    typed = all(str(t.dtype) == f"torch.{dtype}" for t in tensors)
    return typed and all(tuple(t.shape[1:]) == (heads, dim) for t in tensors)


def _is_merged(kv: PrefixKV, merge_layer: int, layers: int) -> bool:
    tokens = kv.tokens
    full = tokens.prefix - tokens.video_kept + tokens.video_full
    wanted = (full,) * merge_layer + (tokens.prefix,) * (layers - merge_layer)
    kept = 0 < tokens.video_kept <= tokens.video_full
    return kept and kv.merge_layer == merge_layer and tuple(kv.lengths) == wanted


def _is_placed(kv: PrefixKV, axes: int) -> bool:
    tokens = kv.tokens
    full = tokens.prefix - tokens.video_kept + tokens.video_full
    below, above = kv.next_positions
    if axes == 1:
        return below == full and above in (full, tokens.prefix)
    return max(below, above) < FARTHEST


def _has_its_record(kv: PrefixKV, vocabulary: int) -> bool:
    decode, seconds = kv.facts.get("decode"), kv.facts.get("seconds")
    if not (isinstance(decode, dict) and isinstance(seconds, dict)):
        return False
    spent, ids = [*seconds.values(), kv.facts.get("waited_s")], kv.facts.get("token_ids")
    spent = [s for s in spent if s is not None]
    return (
        _are(spent, (int, float))
        and _are(decode.get("times_s"), (int, float))
        and _are(decode.get("warnings"), str)
        and _are(ids, int)
        and all(0 <= i < vocabulary for i in ids)
    )


def _are(values: Any, kind: type | tuple[type, ...]) -> TypeGuard[list[Any]]:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
