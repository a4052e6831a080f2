"""Prefill of the prompt prefix with merging, and the KV cache of unequal layer lengths."""

from sttm_cli.prefill.prefix import ROOM, Merging, prefill
from sttm_cli.prefill.ragged import KVContinuation
from sttm_cli.prefill.together import Together

__all__ = ["ROOM", "KVContinuation", "Merging", "Together", "prefill"]
