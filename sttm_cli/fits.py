"""Whether a KV that was read from a file can belong to the model at hand."""

from __future__ import annotations

from typing import Any

from sttm_cli.types import PrefixKV


def fits(kv: PrefixKV, config: Any) -> bool:
    """Whether a KV has the model's shape and its record the facts that are read later: a file
    may have all its checksums and still not be made by this program."""
    heads = config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shaped = all(tuple(t.shape[1:]) == (heads, dim) for t in kv.keys + kv.values)
    layers = len(kv.lengths) == config.num_hidden_layers and kv.merge_layer < len(kv.lengths)
    decode, seconds = kv.facts.get("decode"), kv.facts.get("seconds")
    if not (isinstance(decode, dict) and isinstance(seconds, dict)):
        return False
    times, warnings = decode.get("times_s"), decode.get("warnings")
    told = isinstance(times, list) and isinstance(warnings, list)
    numbers = all(isinstance(s, (int, float)) for s in seconds.values() if s is not None)
    return shaped and layers and told and numbers
