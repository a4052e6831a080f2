"""The prompt prefix through the decoder, merged on the way; owner of the ragged KV cache."""

from sttm_cli.prefill.prefix import ROOM, Merging, prefill
from sttm_cli.prefill.ragged import KVContinuation
from sttm_cli.prefill.together import Together

__all__ = ["ROOM", "KVContinuation", "Merging", "Together", "prefill"]
