"""Prefill of the prompt prefix with merging, and the KV cache of unequal layer lengths."""

from sttm_cli.prefill.merged_cache import check_cache, expect_tokens, held_by
from sttm_cli.prefill.passes import Continuing, MergingPass, Pass
from sttm_cli.prefill.prefix import ROOM, MergeConfig, MergeState, prefill
from sttm_cli.prefill.ragged import KVContinuation, hooked_layers
from sttm_cli.prefill.sizes import Counted, count_in, counted_kernel, plain_kernel
from sttm_cli.prefill.together import Together
from sttm_cli.prefill.windows import Layout, kv_shapes, layout_of

__all__ = [
    "ROOM",
    "Continuing",
    "Counted",
    "KVContinuation",
    "Layout",
    "MergeConfig",
    "MergeState",
    "MergingPass",
    "Pass",
    "Together",
    "check_cache",
    "count_in",
    "counted_kernel",
    "expect_tokens",
    "held_by",
    "hooked_layers",
    "kv_shapes",
    "layout_of",
    "plain_kernel",
    "prefill",
]
