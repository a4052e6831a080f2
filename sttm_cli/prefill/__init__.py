"""The prompt prefix through the decoder, merged on the way; owner of the ragged KV cache."""

from sttm_cli.prefill.prefix import Merging, prefill
from sttm_cli.prefill.continuation import KVContinuation

__all__ = ["KVContinuation", "Merging", "prefill"]
